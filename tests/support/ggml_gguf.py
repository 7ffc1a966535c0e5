"""ggml's own GGUF reader, called through the library that llama-cpp-python brings."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any


class _InitParams(ctypes.Structure):
    """``struct gguf_init_params`` of gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


@cache
def _library() -> Any:
    import llama_cpp

    library = llama_cpp.llama_cpp._lib
    library.gguf_init_from_file.restype = ctypes.c_void_p
    library.gguf_init_from_file.argtypes = (ctypes.c_char_p, _InitParams)
    library.gguf_free.argtypes = (ctypes.c_void_p,)
    library.gguf_get_n_tensors.argtypes = (ctypes.c_void_p,)
    library.gguf_get_n_tensors.restype = ctypes.c_int64
    for name, result in (
        ("gguf_get_tensor_name", ctypes.c_char_p),
        ("gguf_get_tensor_type", ctypes.c_int),
        ("gguf_get_tensor_size", ctypes.c_size_t),
    ):
        getattr(library, name).argtypes = (ctypes.c_void_p, ctypes.c_int64)
        getattr(library, name).restype = result
    return library


def ggml_reads(file: Path) -> dict[str, tuple[int, int]] | None:
    """Type and bytes of every tensor by name, or None if ggml refuses the file's header."""
    library = _library()
    context = library.gguf_init_from_file(str(file).encode(), _InitParams(True, None))
    if not context:
        return None
    tensors = {
        library.gguf_get_tensor_name(context, index).decode(): (
            int(library.gguf_get_tensor_type(context, index)),
            int(library.gguf_get_tensor_size(context, index)),
        )
        for index in range(library.gguf_get_n_tensors(context))
    }
    library.gguf_free(context)
    return tensors
