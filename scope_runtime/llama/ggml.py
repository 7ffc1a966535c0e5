"""Products with large matrices, by ggml's own kernels and threads: the public part of ggml.h in ctypes.

The libraries are those that llama-cpp-python has mapped. ggml ends the process where an argument is wrong, so
everything is checked here before it is called.
"""

from __future__ import annotations

import ctypes as c
import functools
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from scope_runtime.errors import HookError
from scope_runtime.llama.library import GGML_BASE, load, mapped
from scope_runtime.pack_types import F32Array

TYPES = {"F32": (0, np.float32), "F16": (1, np.float16), "BF16": (30, np.uint16)}
"""ggml_type of ggml.h, and how numpy sees the numbers (it has no BF16)."""

_GGML = ("libggml.so.0", "libggml.so")
_GGML_CPU = ("libggml-cpu.so.0", "libggml-cpu.so")
_CONVERTERS = {"F16": "ggml_cpu_fp16_to_fp32", "BF16": "ggml_cpu_bf16_to_fp32"}  # ggml-cpu.h
_CPU_DEVICE = 0  # GGML_BACKEND_DEVICE_TYPE_CPU
_ALIGNMENT = 64
_PAGE = 4096
_GRAPH_NODES = 4
_void = c.c_void_p


class _InitParams(c.Structure):
    """``ggml_init_params``."""

    _fields_ = [("mem_size", c.c_size_t), ("mem_buffer", _void), ("no_alloc", c.c_bool)]


class Matrix:
    """Rows of numbers where they lie, in memory or mapped from a file; nothing is copied.

    Args:
        rows: (n_rows, width), row by row without gaps; held as long as this.
        type: of `TYPES`; its numpy type is that of ``rows``.
    """

    def __init__(self, rows: npt.NDArray[Any], type: str) -> None:
        if rows.ndim != 2 or not rows.size or not rows.flags.c_contiguous:
            raise ValueError(f"no plain matrix: {rows.shape}")
        if rows.dtype != TYPES[type][1] or rows.ctypes.data % rows.itemsize:
            raise ValueError(f"no numbers of type {type} at their places: {rows.dtype}")
        self.rows, self.type = rows, type

    def times(self, columns: npt.NDArray[Any], *, n_threads: int | None = None) -> F32Array:
        """Every row's product with every column, summed in F32 (on ARM, of F16, in F16), (n, n_rows).

        Args:
            columns: (n, width), of the rows' type; they are multiplied as they are.
            n_threads: all of this process's CPUs by default.

        Raises:
            HookError: ggml is missing or cannot compute it.
        """
        columns = _aligned_copy(columns)
        if columns.shape[1] != self.rows.shape[1] or columns.dtype != self.rows.dtype:
            raise ValueError(f"columns do not fit: {columns.shape}, {columns.dtype}")
        if not len(columns):
            return np.empty((0, len(self.rows)), np.float32)
        out = _aligned((len(columns), len(self.rows)), np.float32)
        ggml = _Ggml.get()
        with ggml.lock, ExitStack() as stack:
            context = ggml.init(_InitParams(ggml.context_bytes, None, True))
            if not context:
                raise HookError("ggml has no memory for a product")
            stack.callback(ggml.free, context)
            number = TYPES[self.type][0]
            rows = ggml.new_tensor_2d(context, number, *self.rows.shape[::-1])
            by = ggml.new_tensor_2d(context, number, *columns.shape[::-1])
            product = ggml.mul_mat(context, rows, by)
            for tensor, array in ((rows, self.rows), (by, columns), (product, out)):
                stack.callback(ggml.buffer_free, ggml.place(tensor, array))
            graph = ggml.new_graph(context, _GRAPH_NODES, False)
            ggml.build_forward_expand(graph, product)
            ggml.set_n_threads(ggml.backend, n_threads or default_threads())
            status = ggml.graph_compute(ggml.backend, graph)
        if status != 0:
            raise HookError("ggml could not compute a product", found=f"status {status}")
        return out


def to_f32(numbers: npt.NDArray[Any], type: str, out: F32Array) -> None:
    """Converts F16 or BF16 numbers, as ggml's CPU backend does: ten times as fast as numpy does F16.

    Args:
        numbers: of `TYPES`, without gaps; as many are written to ``out``.
    """
    convert = _converter(type)
    whole = numbers.flags.c_contiguous and numbers.flags.aligned and out.flags.c_contiguous
    if numbers.size != out.size or numbers.dtype != TYPES[type][1]:
        raise ValueError(
            f"no numbers of type {type} for {out.size}: {numbers.size}, {numbers.dtype}"
        )
    if convert is not None and whole:
        convert(numbers.ctypes.data, out.ctypes.data, numbers.size)
    elif type == "BF16":
        bits = out.view(np.uint32)
        bits[:] = numbers
        np.left_shift(bits, 16, out=bits)
    else:
        out[:] = numbers


@functools.cache
def _converter(type: str) -> Callable[[int, int, int], None] | None:
    """What ggml itself converts by; None where this llama.cpp has it in no place that is known."""
    load()
    try:
        return _function(mapped(*_GGML_CPU), _CONVERTERS[type], None, _void, _void, c.c_int64)
    except HookError:
        return None


def default_threads() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Ggml:
    """The functions, and one CPU backend; it has one work buffer, so one product is computed at a time."""

    def __init__(self) -> None:
        load()
        base, ggml = mapped(*GGML_BASE), mapped(*_GGML)
        self.lock = threading.Lock()
        self.init = _function(base, "ggml_init", _void, _InitParams)
        self.free = _function(base, "ggml_free", None, _void)
        self.new_tensor_2d = _function(
            base, "ggml_new_tensor_2d", _void, _void, c.c_int, c.c_int64, c.c_int64
        )
        self.mul_mat = _function(base, "ggml_mul_mat", _void, _void, _void, _void)
        self.new_graph = _function(
            base, "ggml_new_graph_custom", _void, _void, c.c_size_t, c.c_bool
        )
        self.build_forward_expand = _function(base, "ggml_build_forward_expand", None, _void, _void)
        self.buffer_from_ptr = _function(
            base, "ggml_backend_cpu_buffer_from_ptr", _void, _void, c.c_size_t
        )
        self.buffer_free = _function(base, "ggml_backend_buffer_free", None, _void)
        self.tensor_alloc = _function(
            base, "ggml_backend_tensor_alloc", c.c_int, _void, _void, _void
        )
        self.graph_compute = _function(base, "ggml_backend_graph_compute", c.c_int, _void, _void)
        tensor_bytes = _function(base, "ggml_tensor_overhead", c.c_size_t)()
        graph_bytes = _function(
            base, "ggml_graph_overhead_custom", c.c_size_t, c.c_size_t, c.c_bool
        )(_GRAPH_NODES, False)
        self.context_bytes = 8 * tensor_bytes + graph_bytes + _PAGE

        device = _function(ggml, "ggml_backend_dev_by_type", _void, c.c_int)(_CPU_DEVICE)
        if not device:
            raise HookError("ggml has no CPU backend")
        self.backend = _function(base, "ggml_backend_dev_init", _void, _void, c.c_char_p)(
            device, None
        )
        registry = _function(base, "ggml_backend_dev_backend_reg", _void, _void)(device)
        address = _function(base, "ggml_backend_reg_get_proc_address", _void, _void, c.c_char_p)(
            registry, b"ggml_backend_set_n_threads"
        )
        if not self.backend or not address:
            raise HookError("ggml's CPU backend cannot be used")
        self.set_n_threads = c.CFUNCTYPE(None, _void, c.c_int)(address)

    @staticmethod
    @functools.cache
    def get() -> _Ggml:
        """Made once a process. Raises HookError."""
        return _Ggml()

    def place(self, tensor: int, array: npt.NDArray[Any]) -> int:
        """Lets a tensor stand for an array's memory; returns the buffer, to be freed after the tensor's use."""
        address = array.ctypes.data
        # Buffers begin where ggml likes; tensors in them where files have them.
        first = address - address % _PAGE
        buffer = self.buffer_from_ptr(first, address - first + array.nbytes)
        self.tensor_alloc(buffer, tensor, address)
        return int(buffer)


def _function(library: c.CDLL, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    try:
        function = library[name]
    except AttributeError:
        raise HookError(
            "this llama.cpp lacks a function of ggml",
            found=name,
            hint="Install the version in constraints.txt",
        ) from None
    function.restype, function.argtypes = result, arguments
    return function


def _aligned(shape: tuple[int, int], dtype: Any) -> npt.NDArray[Any]:
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.empty(n_bytes + _ALIGNMENT, np.uint8)
    first = -room.ctypes.data % _ALIGNMENT
    out: npt.NDArray[Any] = room[first : first + n_bytes].view(dtype).reshape(shape)
    return out


def _aligned_copy(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    out: npt.NDArray[Any] = _aligned((values.shape[0], values.shape[1]), values.dtype)
    out[:] = values
    return out
