"""A real file system of a few kilobytes, which can be full."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHARED = Path("/dev/shm")
MOST_BYTES = 1 << 30


@contextmanager
def suppress_no_space() -> Iterator[None]:
    """Ends a block when the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


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
            for n_bytes in (1 << 20, 4096):
                with suppress_no_space():
                    while True:
                        os.write(fd, bytes(n_bytes))
        finally:
            os.close(fd)

    def free(self) -> None:
        """Makes room again."""
        self._filler.unlink()


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[SmallDisk]:
    """Mounts one; where that is not allowed (a container), uses the small one that is there for shared memory."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes},mode=1777", "tmpfs", str(folder)]
    for prefix in ([], ["sudo", "-n"]):
        if shutil.which([*prefix, *mount][0]) is None:
            continue
        done = subprocess.run([*prefix, *mount], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            try:
                yield SmallDisk(folder)
            finally:
                subprocess.run([*prefix, "umount", "--lazy", str(folder)], check=True)
            return
    free_bytes = shutil.disk_usage(SHARED).free
    assert free_bytes <= MOST_BYTES, (
        f"no tmpfs can be mounted here, and {SHARED} is too large to fill"
    )
    with tempfile.TemporaryDirectory(dir=SHARED) as inside:
        yield SmallDisk(Path(inside))
