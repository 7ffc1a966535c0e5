"""Whether a library can be loaded into a program before its own: told from the file, before anything is started."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import BinaryIO

from scope_runtime.errors import HookError

_PT_INTERP = 3  # see elf(5): the program's dynamic linker, which is what preloads
OTHERWISE = (
    "policies that only amplify, for every request alike, need no hook: --plane control-vector"
)
"""What is left to a server into which the hook cannot come."""

_INSTEAD = (
    "Give a llama-server that is linked to llama.cpp's shared libraries (the default when it is built), "
    f"or serve the model with --engine embedded; {OTHERWISE}"
)


def check_program(path: Path) -> None:
    """Refuses a program into which the hook cannot come.

    Raises:
        HookError: in words: a script, a static program, one that runs with more rights than ours.
    """
    with path.open("rb") as file:
        about = os.fstat(file.fileno())
        head = file.read(64)
        if head[:2] == b"#!":
            raise _refused(path, "is a script", "the program itself, not what starts it")
        if head[:4] != b"\x7fELF" or len(head) < 64:
            raise _refused(path, "is no ELF program", "a llama-server for Linux")
        if about.st_mode & (stat.S_ISUID | stat.S_ISGID) or _has_capabilities(path):
            raise _refused(
                path,
                "runs with rights that its user has not",
                "a file without setuid or capabilities",
            )
        if not _has_interpreter(head, file):
            raise _refused(path, "is linked statically", "a program with shared libraries")


def _refused(path: Path, what: str, expected: str) -> HookError:
    message = f"{path} {what}: the hook cannot be loaded into it"
    return HookError(message, expected=expected, hint=_INSTEAD)


def _has_capabilities(path: Path) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False


def _has_interpreter(head: bytes, file: BinaryIO) -> bool:
    """Whether one of the program's headers names a dynamic linker."""
    order = ">" if head[5] == 2 else "<"
    if head[4] == 2:
        (at,), (size, n) = (
            struct.unpack_from(f"{order}Q", head, 32),
            struct.unpack_from(f"{order}HH", head, 54),
        )
    else:
        (at,), (size, n) = (
            struct.unpack_from(f"{order}I", head, 28),
            struct.unpack_from(f"{order}HH", head, 42),
        )
    file.seek(at)
    headers = file.read(size * n)
    kinds = [
        struct.unpack_from(f"{order}I", headers, i)[0]
        for i in range(0, len(headers) - 3, max(size, 4))
    ]
    return _PT_INTERP in kinds
