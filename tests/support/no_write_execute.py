"""Becomes a command that cannot have pages both writable and executable, as under MemoryDenyWriteExecute=.

The same filter as systemd's: mmap(2) with both bits and mprotect(2) with PROT_EXEC fail with EPERM.

    python no_write_execute.py COMMAND…
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

LOAD, EQUAL, AND, RETURN = 0x20, 0x15, 0x54, 0x06
ALLOW, ERROR = 0x7FFF0000, 0x00050000 | errno.EPERM
NUMBER, PROTECTION = 0, 32  # offsets in struct seccomp_data: nr, the lower half of args[2]
WRITE, EXECUTE = 2, 4
MMAP, MPROTECT = {"x86_64": (9, 10), "aarch64": (222, 226)}[platform.machine()]
NO_NEW_PRIVS, SET_SECCOMP, FILTER = 38, 22, 2

# (code, if equal skip, else skip, operand), as linux/filter.h has it.
PROGRAM = [
    (LOAD, 0, 0, NUMBER),
    (EQUAL, 0, 3, MMAP),
    (LOAD, 0, 0, PROTECTION),
    (AND, 0, 0, WRITE | EXECUTE),
    (EQUAL, 5, 4, WRITE | EXECUTE),
    (EQUAL, 0, 3, MPROTECT),
    (LOAD, 0, 0, PROTECTION),
    (AND, 0, 0, EXECUTE),
    (EQUAL, 1, 0, EXECUTE),
    (RETURN, 0, 0, ALLOW),
    (RETURN, 0, 0, ERROR),
]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def deny() -> None:
    """For this process, for good, and for what it becomes. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = b"".join(struct.pack("=HBBI", *each) for each in PROGRAM)
    program = _Program(len(PROGRAM), code)
    for arguments in ((NO_NEW_PRIVS, 1, 0), (SET_SECCOMP, FILTER, ctypes.byref(program))):
        if libc.prctl(*arguments, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    deny()
    os.execvp(sys.argv[1], sys.argv[1:])
