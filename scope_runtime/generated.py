"""Pages of docs/ that are generated: written, or with ``--check`` held against what would be written."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def write_or_check(page: Path, text: str, origin: str, module: str, arguments: list[str]) -> int:
    """Writes a page, or with ``--check`` says whether it is up to date; returns the exit code.

    Args:
        text: what the page should be.
        origin: what it is made of, for the message: "the schema says".
        module: whose command this is, for the usage.
    """
    if arguments == ["--check"]:
        if page.is_file() and page.read_text(encoding="utf-8") == text:
            return 0
        sys.stderr.write(f"{page} is not what {origin}; write it with `make docs`\n")
        return 1
    if arguments:
        sys.stderr.write(f"usage: python -m {module} [--check]\n")
        return 2
    page.write_text(text, encoding="utf-8")
    return 0
