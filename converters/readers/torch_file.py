"""``.pt`` files without trust: no code is run, nothing is unpacked, nothing is read but what is
asked for.

A ``.pt`` file is a zip archive of one pickle and one record per tensor. PyTorch maps it into memory
(``mmap=True``) and unpickles tensors only (``weights_only=True``). Before that, the archive's
directory is checked: records stored plainly, inside the file, a pickle of sane size.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from converters.readers.stored import (
    NO_ZIP,
    File,
    FileArray,
    Identity,
    MappedArray,
    OtherArray,
    StoredArray,
)
from scope_runtime.errors import Location, PackError, UsageError
from scope_runtime.files import open_regular
from scope_runtime.pack_types import F32Array

KIND = "pt"
MAX_RECORDS = 4096
MAX_PICKLE_BYTES = 1 << 20


def load_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a ``.pt`` file that holds a dictionary of tensors, mapped.

    Raises:
        PackError: no such file, or one that is not what it should be.
        UsageError: PyTorch is not installed.
    """
    loaded = load_values(path)
    if not isinstance(loaded, dict):
        _fail(path, "not a dictionary of tensors", found=type(loaded).__name__)
    for name, tensor in loaded.items():
        if not isinstance(name, str):
            _fail(path, "not a dictionary of tensors", found=f"{name!r}: {type(tensor).__name__}")
        check_tensor(tensor, name, path)
    return loaded


def open_torch(path: Path) -> File:
    """The same as arrays in their file; whole numbers that stand alone become its metadata.

    Raises:
        PackError, UsageError: as `load_tensors`.
    """
    arrays: dict[str, StoredArray] = {}
    metadata: dict[str, str] = {}
    with open_regular(path, PackError) as file:
        identity = Identity.of(path, file)
    for name, tensor in load_tensors(path).items():
        if tensor.numel() == 0:
            _fail(path, f"{name[:80]} is empty", found=str(tuple(tensor.shape)))
        if tensor.dim() == 0 and not tensor.dtype.is_floating_point and not tensor.is_complex():
            metadata[name] = str(tensor.item())
        else:
            arrays[name] = as_array(tensor, identity)
    return File(path, KIND, arrays, metadata)


def as_array(tensor: Any, identity: Identity) -> StoredArray:
    """A tensor as an array: where it lies in the file, or else over the same mapped bytes."""
    import torch

    types = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    shape, tensor = tuple(tensor.shape), tensor.detach()
    if tensor.dtype not in types:
        return OtherArray(shape, str(tensor.dtype).removeprefix("torch."))
    offset = _offset_in_file(tensor.data_ptr(), identity) if tensor.is_contiguous() else None
    if offset is not None:
        return FileArray(identity, offset, shape, types[tensor.dtype])
    if tensor.dtype == torch.bfloat16:
        return MappedArray(tensor.view(torch.int16).numpy().view(np.uint16), "BF16")
    return MappedArray(tensor.numpy(), types[tensor.dtype])


def _offset_in_file(address: int, identity: Identity) -> int | None:
    """Where in the file a mapped byte lies, by the system's own table; None where it has none.

    PyTorch maps the whole file, and does not say where in it a tensor is.
    """
    try:
        table = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in table.splitlines():
        place, _, offset, _, inode, *_ = line.split(None, 5)
        first, last = (int(each, 16) for each in place.split("-"))
        if first <= address < last:
            same = int(inode) == identity.status[1]
            return int(offset, 16) + address - first if same else None
    return None


def load_values(path: Path) -> Any:
    """Whatever a ``.pt`` file holds of tensors, numbers, text and collections of them, mapped.

    Raises:
        PackError: no such file, or one that is not what it should be.
        UsageError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise UsageError(
            "PyTorch is needed to read .pt files",
            hint="Install it with: pip install 'scope-runtime[convert]'",
        ) from None
    _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as reason:  # whatever a damaged pickle makes it raise
        first = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
        _fail(path, "not a file of tensors", found=first[:200])


def check_tensor(tensor: Any, name: object, path: Path) -> None:
    """Raise PackError if this is no plain tensor in main memory."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        _fail(path, "not a dictionary of tensors", found=f"{name!r}: {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        _fail(path, f"{name} is no plain tensor", found=str(tensor.layout))


def as_float32(tensor: Any, what: str, path: Path) -> F32Array:
    """A tensor as numpy, F32; without a copy if it is F32 already.

    Raises:
        PackError: it holds no floating-point numbers of 32 bits or less.
    """
    import torch

    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        _fail(
            path,
            f"{what} is of a type that is not read",
            found=str(tensor.dtype),
            expected="float32",
        )
    values: F32Array = np.asarray(tensor.detach().to(torch.float32).numpy())
    return values


def _check_archive(path: Path) -> None:
    with open_regular(path, PackError) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                records = archive.infolist()
        except NO_ZIP as reason:
            _fail(path, "not a .pt file, or cut short", found=str(reason)[:200])
    if len(records) > MAX_RECORDS:
        _fail(path, "too many records", found=str(len(records)), expected=f"at most {MAX_RECORDS}")
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.file_size > size:
            _fail(path, f"the record {record.filename[:80]!r} is packed", expected="stored plainly")
        if record.header_offset + record.file_size > size:
            _fail(path, f"the record {record.filename[:80]!r} does not fit", found=f"{size} bytes")
        if record.filename.endswith(".pkl") and record.file_size > MAX_PICKLE_BYTES:
            _fail(path, "too large a description of the tensors", found=f"{record.file_size} bytes")


def _fail(
    path: Path, message: str, *, found: str | None = None, expected: str | None = None
) -> NoReturn:
    raise PackError(message, location=Location(str(path)), found=found, expected=expected)
