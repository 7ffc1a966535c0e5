"""Compiled policies on their way between two processes of ours. Never for files: a pickle runs code when it is read."""

from __future__ import annotations

import copyreg
import io
import pickle
from types import MappingProxyType
from typing import Any


def _read_only(items: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(items)


class _Pickler(pickle.Pickler):
    dispatch_table = copyreg.dispatch_table | {
        MappingProxyType: lambda proxy: (_read_only, (dict(proxy),))
    }


def dumps(value: object) -> bytes:
    """``pickle.dumps`` that can also pickle read-only mappings."""
    out = io.BytesIO()
    _Pickler(out, pickle.HIGHEST_PROTOCOL).dump(value)
    return out.getvalue()


def parts(value: object) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """``dumps``, and apart from it what ``value`` hands over as it lies in memory (``pickle.PickleBuffer``)."""
    out, apart = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(out, pickle.HIGHEST_PROTOCOL, buffer_callback=apart.append).dump(value)
    return out.getvalue(), apart
