"""``scope_hook.h`` in ctypes: its structures, its functions, and the library that has them, loaded once."""

from __future__ import annotations

import ctypes as c
import functools
from pathlib import Path

from scope_runtime.errors import HookError

ABI_VERSION = 3
UNKNOWN_SERIAL = 2**64 - 1
ATTACH_CALLBACK, ATTACH_COLUMNS, ATTACH_MEMORY = 1, 2, 4

ERR_BYTES = 512
i32p = c.POINTER(c.c_int32)
f32p = c.POINTER(c.c_float)


class RawEvent(c.Structure):
    """``scope_event`` of scope_hook.h."""

    _fields_ = [
        ("kind", c.c_uint32),
        ("sequence", c.c_int32),
        ("request_id", c.c_uint64),
        ("serial", c.c_uint64),
        ("time_ns", c.c_int64),
        ("rule", c.c_uint32),
        ("layer", c.c_int32),
        ("n_tokens", c.c_uint32),
        ("n_fired", c.c_uint32),
        ("n_limited", c.c_uint32),
        ("first_position", c.c_int32),
        ("last_position", c.c_int32),
        ("activation_max", c.c_float),
        ("activation_sum", c.c_double),
        ("n_measured", c.c_uint32),
        ("dose_max", c.c_float),
        ("dose_sum", c.c_double),
        ("reserved", c.c_uint64),
    ]


class RequestState(c.Structure):
    """``scope_request_state``: whether a request must end, and why."""

    _fields_ = [
        ("abort", c.c_uint32),
        ("abort_rule", c.c_uint32),
        ("abort_serial", c.c_uint64),
        ("abort_position", c.c_int32),
        ("n_firing", c.c_uint32),
    ]


class CapturedRow(c.Structure):
    """``scope_captured_row``: where a captured residual belongs."""

    _fields_ = [
        ("layer", c.c_int32),
        ("sequence", c.c_int32),
        ("position", c.c_int32),
        ("token", c.c_int32),
    ]


class RawSpan(c.Structure):
    """``scope_span``."""

    _fields_ = [("from_position", c.c_int32), ("to_position", c.c_int32), ("serial", c.c_uint64)]


class HookStats(c.Structure):
    """``scope_hook_stats``: counters since the hook was made; ns in the hook, of the latest and longest swap."""

    _fields_ = [
        ("n_ubatches", c.c_uint64),
        ("n_columns", c.c_uint64),
        ("n_residuals", c.c_uint64),
        ("n_unmatched", c.c_uint64),
        ("n_unsteered_columns", c.c_uint64),
        ("hook_ns", c.c_uint64),
        ("n_swaps", c.c_uint64),
        ("swap_ns", c.c_uint64),
        ("swap_ns_max", c.c_uint64),
    ]


def library_path() -> Path:
    """Where the hook's shared library is installed."""
    return Path(__file__).with_name("libscope_hook.so")


@functools.cache
def library() -> c.CDLL:
    """The hook's library, loaded once, globally, so that its symbols interpose llama.cpp's when that loads later."""
    path = library_path()
    if not path.exists():
        raise HookError(
            f"the native hook is not built: {path} is missing",
            hint="Install the scope-runtime wheel, or run `make env` in a checkout",
        )
    lib = c.CDLL(str(path), mode=c.RTLD_GLOBAL)
    lib.scope_abi_version.restype = c.c_uint32
    found = lib.scope_abi_version()
    if found != ABI_VERSION:
        raise HookError(
            "the native hook is of another version",
            found=f"ABI {found}",
            expected=f"ABI {ABI_VERSION}",
            hint="Install scope-runtime again",
        )
    _declare(lib)
    return lib


def _declare(lib: c.CDLL) -> None:
    vp, u32, u64, i32, size = c.c_void_p, c.c_uint32, c.c_uint64, c.c_int32, c.c_size_t
    err = (c.c_char_p, size)
    signatures = {
        "scope_build_info": (c.c_char_p, ()),
        "scope_program_load": (c.c_int, (vp, size, c.POINTER(vp), *err)),
        "scope_program_free": (None, (vp,)),
        "scope_hook_new": (c.c_int, (u32, u32, u32, c.POINTER(vp), *err)),
        "scope_hook_free": (None, (vp,)),
        "scope_hook_install": (c.c_int, (vp, vp, u64, *err)),
        "scope_hook_hold": (c.c_int, (vp, vp, u64, *err)),
        "scope_hook_release": (c.c_int, (vp, u64)),
        "scope_hook_assign": (
            c.c_int,
            (vp, u64, i32p, c.POINTER(u64), size, c.POINTER(u64), *err),
        ),
        "scope_hook_in_force": (c.c_int, (vp,)),
        "scope_hook_assignment": (u64, (vp,)),
        "scope_hook_collect": (size, (vp,)),
        "scope_hook_acknowledged": (u64, (vp,)),
        "scope_attach": (c.c_int, (vp, vp, *err)),
        "scope_hook_attached": (u32, (vp,)),
        "scope_hook_callback": (vp, ()),
        "scope_hook_bind_memory": (c.c_int, (vp, vp, *err)),
        "scope_hook_chain": (None, (vp, vp, vp)),
        "scope_hook_expect_columns": (
            c.c_int,
            (vp, u32, i32p, i32p, i32p, c.POINTER(c.c_int8)),
        ),
        "scope_hook_embedding_node": (c.c_int, (vp, c.c_char_p)),
        "scope_hook_record_names": (None, (vp, c.c_int)),
        "scope_hook_names": (size, (vp, c.c_char_p, size)),
        "scope_hook_columns": (c.c_int, (vp, u32, i32p, i32p, i32p, c.POINTER(c.c_int8))),
        "scope_hook_residual": (c.c_int, (vp, i32, f32p, u32)),
        "scope_hook_end_ubatch": (None, (vp,)),
        "scope_hook_capture": (c.c_int, (vp, i32p, u32, size)),
        "scope_hook_captured": (size, (vp, c.POINTER(u64))),
        "scope_hook_take_captured": (None, (vp, c.POINTER(CapturedRow), f32p)),
        "scope_request_begin": (c.c_int, (vp, i32, u64, i32)),
        "scope_request_end": (c.c_int, (vp, i32)),
        "scope_request_status": (c.c_int, (vp, i32, c.POINTER(RequestState))),
        "scope_sequence_spans": (size, (vp, i32, c.POINTER(RawSpan), size)),
        "scope_sequence_measured": (
            size,
            (vp, i32, i32, f32p, f32p, c.POINTER(c.c_uint8), size),
        ),
        "llama_memory_clear": (None, (vp, c.c_bool)),
        "llama_memory_seq_rm": (c.c_bool, (vp, i32, i32, i32)),
        "llama_memory_seq_cp": (None, (vp, i32, i32, i32, i32)),
        "llama_memory_seq_add": (None, (vp, i32, i32, i32, i32)),
        "scope_memory_clear": (None, (vp,)),
        "scope_memory_seq_rm": (None, (vp, i32, i32, i32)),
        "scope_memory_seq_cp": (None, (vp, i32, i32, i32, i32)),
        "scope_memory_seq_keep": (None, (vp, i32)),
        "scope_memory_seq_add": (None, (vp, i32, i32, i32, i32)),
        "scope_memory_restored": (None, (vp, i32, i32)),
        "scope_hook_drain": (size, (vp, c.POINTER(RawEvent), size)),
        "scope_hook_dropped": (u64, (vp,)),
        "scope_hook_get_stats": (None, (vp, c.POINTER(HookStats))),
    }
    for name, (restype, argtypes) in signatures.items():
        function = getattr(lib, name)
        function.restype = restype
        function.argtypes = argtypes


def build_info() -> str:
    """Compiler and the kernel variant chosen for this CPU."""
    return str(library().scope_build_info().decode())


def attach(libllama: int, libggml_base: int) -> None:
    """Tells the hook where the mapped llama.cpp is: dlopen handles. Once per process."""
    error = c.create_string_buffer(ERR_BYTES)
    if library().scope_attach(libllama, libggml_base, error, ERR_BYTES) != 0:
        raise HookError(error.value.decode())
