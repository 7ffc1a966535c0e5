"""The cases of ``cases/files.yaml``: a damaged file each, and the message that refuses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scope_runtime.llama.checks import check_model
from scope_runtime.packs import read_pack
from scope_runtime.vectors import read_control_vector
from tests.support.damage import damaged

FILE = Path(__file__).resolve().parent.parent / "cases" / "files.yaml"
READERS: dict[str, Callable[[Path], object]] = {
    "pack": read_pack,
    "vector": read_control_vector,
    "model": check_model,
}


@dataclass(frozen=True, slots=True)
class FileCase:
    """``message`` without the path that stands before it."""

    name: str
    base: str
    damage: list[dict[str, Any]]
    message: str

    def raw(self) -> bytes:
        return damaged(self.base, self.damage)


def file_cases(base: str) -> list[FileCase]:
    """Those of one kind of file."""
    cases = [FileCase(**case) for case in yaml.safe_load(FILE.read_text(encoding="utf-8"))]
    return [case for case in cases if case.base == base]
