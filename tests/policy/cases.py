"""Bad documents as data: one file for each, with the exact message that it must give.

A case in tests/cases/policy has a ``note``, a ``document`` (or ``document_parts``: texts to repeat, or
``document_base64``), perhaps ``links`` to lay beside it, and ``want_error``. The document is called
policy.yaml; beside it lie packs/a.gguf and vectors/v.gguf, both empty. A case without ``want_error``
gets what is said now written into it, and fails.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "cases" / "policy"


@dataclass(frozen=True, slots=True)
class Case:
    path: Path
    document: bytes
    links: dict[str, str]
    want_error: str | None

    def lay_out(self, folder: Path) -> Path:
        """Writes the case's files, and returns the policy's path."""
        for name in ("packs/a.gguf", "vectors/v.gguf"):
            (folder / name).parent.mkdir()
            (folder / name).touch()
        for name, target in self.links.items():
            (folder / name).symlink_to(target)
        policy = folder / "policy.yaml"
        policy.write_bytes(self.document)
        return policy

    def settle(self, said: str) -> None:
        """Writes the message into a case that has none yet."""
        lines = "".join(f"  {line}\n" for line in said.splitlines())
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"want_error: |\n{lines}")


def read_case(path: Path) -> Case:
    raw: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    want = raw.get("want_error")
    return Case(
        path, _document(raw), raw.get("links", {}), None if want is None else want.rstrip("\n")
    )


def _document(raw: dict[str, Any]) -> bytes:
    if "document_base64" in raw:
        return base64.b64decode(raw["document_base64"])
    if "document_parts" in raw:
        return b"".join(part["text"].encode() * part["times"] for part in raw["document_parts"])
    return str(raw["document"]).encode()


CASES = sorted(FOLDER.glob("*.yaml"))
