"""Writes docs/policy.md out of the schema: ``python -m scope_runtime.policy.reference [--check]``.

The page's prose is reference.md.in. In it, ``{{table P}}`` stands for the table of the keys of
the object at ``$defs/P`` of the schema (without P: of the whole file), ``{{description P}}`` for what
the schema says of it, and ``{{errors}}`` for what the loader says to the page's own bad example.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scope_runtime.errors import PolicyErrors
from scope_runtime.generated import DOCS, write_or_check
from scope_runtime.policy.load import parse_policy
from scope_runtime.policy.schema import schema

PAGE = DOCS / "policy.md"
TEMPLATE = Path(__file__).with_name("reference.md.in")


def main(arguments: list[str]) -> int:
    """Writes the page, or with ``--check`` says whether it is up to date."""
    return write_or_check(
        PAGE, render(), "the schema says", "scope_runtime.policy.reference", arguments
    )


def render() -> str:
    """The whole page."""
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+) ?([\w/]*)\}\}", lambda m: _part(m[1], m[2], template), template)


def yaml_blocks(page: str, kind: str = "yaml") -> Iterator[str]:
    """The page's code blocks of that kind."""
    for block in re.finditer(rf"^```{kind}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        yield block[1]


def _part(what: str, path: str, template: str) -> str:
    if what == "errors":
        try:
            bad = next(yaml_blocks(template, "yaml error"))
            parse_policy(bad, file="first-try.yaml", files=False)
        except PolicyErrors as errors:
            return str(errors)
        raise ValueError("the page's bad example is not bad")
    node = _lookup(path)
    return str(node["description"]) if what == "description" else _table(node)


def _lookup(path: str) -> dict[str, Any]:
    node: Any = schema()
    for part in ["$defs", *path.split("/")] if path else []:
        node = node[int(part)] if isinstance(node, list) else node[part]
    return _resolved(node)


def _resolved(node: dict[str, Any]) -> dict[str, Any]:
    """The node with what it refers to; its own words win."""
    if "$ref" not in node:
        return node
    target = _resolved(schema()["$defs"][node["$ref"].rpartition("/")[2]])
    return {**target, **{key: value for key, value in node.items() if key != "$ref"}}


def _table(node: dict[str, Any]) -> str:
    lines = ["| key | value | meaning |", "| --- | --- | --- |"]
    for key, raw in node["properties"].items():
        value = _resolved(raw)
        needed = " (needed)" if key in node.get("required", ()) else ""
        meaning = value.get("description", "").replace("|", "\\|")
        lines.append(f"| `{key}`{needed} | {_value(value)} | {meaning} |")
    return "\n".join(lines)


def _value(node: dict[str, Any]) -> str:
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{choice}`" for choice in node["enum"])
    return str(node["title"]).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
