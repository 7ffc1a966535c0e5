"""The licence of what is published, as it is found: it goes with every pack that is made of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from scope_runtime.errors import PackError
from scope_runtime.files import open_regular, read_exactly

LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md")
MAX_LICENCE_BYTES = 256 << 10
_README = ("README.md", "README")
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---(?:\n|\Z)", re.S)
_LICENCE_KEY = re.compile(r"^licen[cs]e\w*:.*$", re.M | re.I)
_HEADING = re.compile(r"^(#{1,6})\s+(.*)$", re.M)


def find_licence(folders: Sequence[Path]) -> str | None:
    """Text of the licence file in one of the folders, or else what a README says of the licence.

    Of a README that is the lines ``license…:`` of its front matter and the sections that have the
    licence in their heading. (Qwen-Scope's asks that it not be used to remove safety filters.)
    """
    for names, pick in ((LICENCE_FILES, str), (_README, _of_readme)):
        for folder in folders:
            for name in names:
                file = folder / name
                if file.is_file() and (text := pick(_text(file))):
                    return text
    return None


def _text(file: Path) -> str:
    with open_regular(file, PackError) as opened:
        raw = bytes(read_exactly(opened, 0, MAX_LICENCE_BYTES))
    text = raw.decode("utf-8", "replace").replace("\r\n", "\n")
    return "".join(each for each in text if each.isprintable() or each in "\n\t")


def _of_readme(text: str) -> str:
    parts = []
    if match := _FRONT_MATTER.match(text):
        parts += _LICENCE_KEY.findall(match[1])
        text = text[match.end() :]
    headings = list(_HEADING.finditer(text))
    for index, heading in enumerate(headings):
        if re.search(r"licen[cs]e", heading[2], re.I):
            deeper = (each for each in headings[index + 1 :] if len(each[1]) <= len(heading[1]))
            following = next(deeper, None)
            parts.append(text[heading.start() : following.start() if following else None].strip())
    return "\n".join(parts) + "\n" if parts else ""
