"""A real file system of a few kilobytes, which can be full."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SmallDisk:
    """A tmpfs.

    Attributes:
        folder: where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leaves no page free."""
        fd = os.open(self._filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while True:
                os.write(fd, bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        finally:
            os.close(fd)

    def free(self) -> None:
        """Makes room again."""
        self._filler.unlink()


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[SmallDisk]:
    """Mounts one; needs to be root, or sudo without a password."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes},mode=1777", "tmpfs", str(folder)]
    unmount = ["umount", "--lazy", str(folder)]
    for prefix in ([], ["sudo", "-n"]):
        try:
            done = subprocess.run([*prefix, *mount], capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise AssertionError(f"a tmpfs cannot be mounted: {error}") from None
        if done.returncode == 0:
            break
    else:
        raise AssertionError(f"a tmpfs cannot be mounted: {done.stderr}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run([*prefix, *unmount], check=True)
