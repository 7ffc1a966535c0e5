"""Loads llama-cpp-python the way the hook needs it: the hook's library first, so that its symbols come first."""

from __future__ import annotations

import ctypes
import functools
import sys
from dataclasses import dataclass
from types import ModuleType

from scope_runtime.errors import HookError
from scope_runtime.native import abi

GGML_BASE = ("libggml-base.so.0", "libggml-base.so")


@dataclass(frozen=True, slots=True)
class LlamaLibrary:
    """The mapped llama.cpp.

    Attributes:
        api: the ``llama_cpp.llama_cpp`` module: llama.h in ctypes.
        interposed: False when llama_cpp had been imported before us: then llama.cpp's own calls do not pass through
            the hook, and only the plain eval callback is to be had.
        version: llama-cpp-python's version.
        system_info: llama.cpp's own line on the CPU features it was built with and found.
    """

    api: ModuleType
    interposed: bool
    version: str
    system_info: str

    @property
    def amx(self) -> bool:
        """Whether this build uses AMX tiles, which crash on prompt batches of quantized weights (see checks)."""
        return "AMX_INT8 = 1" in self.system_info


@functools.cache
def load() -> LlamaLibrary:
    """Imports llama_cpp once, with the hook in front of it, and connects the two.

    Raises:
        HookError: llama_cpp is missing, broken, or lacks a function that the hook needs.
    """
    late = "llama_cpp" in sys.modules
    abi.library()
    try:
        import llama_cpp
        from llama_cpp import llama_cpp as api
    except (ImportError, OSError, RuntimeError) as error:
        raise HookError(
            "llama-cpp-python cannot be loaded",
            found=str(error),
            hint="Install it again: pip install --force-reinstall --no-binary :all: llama-cpp-python",
        ) from error
    abi.attach(api._lib._handle, mapped(*GGML_BASE)._handle)
    api.llama_log_set(_log_sink, None)
    api.llama_backend_init()
    return LlamaLibrary(
        api=api,
        interposed=not late,
        version=llama_cpp.__version__,
        system_info=api.llama_print_system_info().decode(errors="replace"),
    )


def mapped(*names: str) -> ctypes.CDLL:
    """A library that libllama mapped; opening it by path would map a second copy with its own addresses.

    Args:
        names: what it may be called; the first that is mapped is taken.

    Raises:
        HookError: none of them is.
    """
    for name in names:
        try:
            return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL | _RTLD_NOLOAD)
        except OSError:
            continue
    raise HookError(
        f"{names[0].partition('.')[0]} is not mapped by llama-cpp-python",
        hint="A statically linked llama.cpp cannot be steered: install llama-cpp-python with shared libraries",
    )


_RTLD_NOLOAD = 4  # <dlfcn.h>, Linux; ctypes does not name it

_last_lines: list[str] = []


def _keep_line(level: int, text: bytes, user: object) -> None:
    """Keeps llama.cpp's warnings and errors for our own messages, instead of printing everything."""
    del user
    if level >= 3:
        _last_lines.append(text.decode(errors="replace").strip())
        del _last_lines[:-20]


_log_sink = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_keep_line)


def last_log_lines() -> str:
    """llama.cpp's last warnings and errors, in one string, and forgets them."""
    # Dots are its progress bar.
    text = "; ".join(line for line in _last_lines if line.strip("."))
    _last_lines.clear()
    return text
