"""Writes docs/observability.md: ``python -m scope_runtime.metrics.reference [--check]``.

The page's prose is reference.md.in; in it ``{{metrics}}`` stands for the table of all metrics, ``{{telemetry}}`` for
the table of what OpenTelemetry gets.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from scope_runtime.generated import DOCS, write_or_check
from scope_runtime.metrics.families import FAMILIES, Family, Type
from scope_runtime.telemetry import names

PAGE = DOCS / "observability.md"
TEMPLATE = Path(__file__).with_name("reference.md.in")


def main(arguments: list[str]) -> int:
    """Writes the page, or with ``--check`` says whether it is up to date."""
    return write_or_check(
        PAGE, render(), "the metrics say", "scope_runtime.metrics.reference", arguments
    )


def render() -> str:
    """The whole page."""
    template = TEMPLATE.read_text(encoding="utf-8")
    rows = "\n".join(f"| `{each.name}` | {each.on} | {each.what} |" for each in names.TABLE)
    return template.replace("{{metrics}}", _tables()).replace("{{telemetry}}", rows)


def _tables() -> str:
    parts = []
    for group, families in itertools.groupby(FAMILIES, lambda family: family.group):
        lines = [f"### {group}", "", "| metric | type | labels | meaning |"]
        lines += ["| --- | --- | --- | --- |", *map(_row, families)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _row(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    meaning = family.help
    if family.type is Type.HISTOGRAM:
        bounds = ", ".join(f"{bound:g}" for bound in family.buckets)
        meaning += f" Buckets: {bounds}."
    return f"| `{family.name}` | {family.type} | {labels} | {meaning} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
