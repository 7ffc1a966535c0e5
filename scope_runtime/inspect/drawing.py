"""A picture's heatmaps as PNG. Needs matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from scope_runtime.errors import Location, UsageError
from scope_runtime.files import written_whole
from scope_runtime.inspect.heat import Heat, Picture
from scope_runtime.pack_types import F32Array
from scope_runtime.visible import shown_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLD, PAPER, HOT = "#1d5fbf", "#ffffff", "#d9480f"
EMPTY = "#f1f2f4"
N_ACROSS = 56
"""At most so many tokens stand in a row."""
MOST_BLOCKS = 24
"""Of more blocks of cells the first are drawn: a picture that nobody can open shows nothing."""
_CELL = 0.235
_LETTER = 0.066
_NARROWEST = 8.6
_DPI = 130


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Cells that are drawn in one piece; values and shares (n_down, n_across)."""

    heat: Heat
    title: str
    across: tuple[str, ...]
    down: tuple[str, ...]
    values: F32Array
    shares: F32Array
    n_prompt: int | None

    @property
    def title_room(self) -> float:
        """Inches above the cells."""
        return 0.35 if self.title else 0.12

    @property
    def margin(self) -> float:
        """Inches left of them."""
        return 0.2 + _LETTER * _longest(self.down)

    @property
    def height(self) -> float:
        """Inches from the title to the end of the names below."""
        return self.title_room + _CELL * len(self.down) + 0.2 + _LETTER * _longest(self.across)


def _longest(names: Sequence[str]) -> int:
    """In letters; those that are twice as wide count so, and those that no font has by their numbers."""
    return max((cell_len(_drawable(name)) for name in names), default=0)


def write_png(path: str | Path, picture: Picture) -> int:
    """Draws the heatmaps; returns how many tokens or texts found no room.

    Raises:
        UsageError: matplotlib is not installed, the file's ending is not .png, or it cannot be written.
    """
    if Path(path).suffix != ".png":
        raise UsageError("not the name of a PNG", location=Location(str(path)), expected="*.png")
    drawn, left = figure(picture)
    with written_whole(path, UsageError) as temporary:
        drawn.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})
    return left


def figure(picture: Picture) -> tuple[Figure, int]:
    """The figure with one image for each row of cells, and how many tokens or texts were left out."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "a PNG needs matplotlib", hint="pip install 'scope-runtime[plot]'"
        ) from None
    blocks = [block for heat in picture.heats for block in _parts(heat)]
    left = sum(len(block.across) for block in blocks[MOST_BLOCKS:])
    blocks = blocks[:MOST_BLOCKS]
    margin = max((block.margin for block in blocks), default=0.0)
    across = max((_CELL * len(block.across) for block in blocks), default=0.0)
    width = max(margin + across + 0.2, _NARROWEST)
    fits = int(width / _LETTER)
    sentences = [line for each in picture.sentences for line in textwrap.wrap(each, fits) or [""]]
    top = 0.35 + 0.17 * len(sentences)
    height = top + sum(block.height for block in blocks) + 0.1
    # Sizes are ours, in inches: cells are as large whatever fonts there are.
    with rc_context({"font.family": list(_families()), "font.size": 8}):
        drawn = Figure(figsize=(width, height), facecolor=PAPER)
        at = 0.1 / width
        title = _drawable(picture.title)
        drawn.text(at, 1 - 0.1 / height, title, va="top", weight="bold", size=11)
        for number, line in enumerate(sentences):
            drawn.text(at, 1 - (0.36 + 0.17 * number) / height, _drawable(line), va="top")
        y = height - top
        for block in blocks:
            tall = _CELL * len(block.down)
            bottom = y - block.title_room - tall
            wide = _CELL * len(block.across)
            box = (margin / width, bottom / height, wide / width, tall / height)
            _draw(drawn.add_axes(box), block)
            y -= block.height
    return drawn, left


def _parts(heat: Heat) -> Iterator[_Block]:
    """Tokens from left to right, in as many lines as they need; texts from top to bottom. A title for the first."""
    if heat.pieces is None:
        yield _Block(heat, heat.title, heat.columns, heat.rows, heat.values, heat.shares, None)
        return
    n_lines = -(-len(heat.rows) // N_ACROSS)
    across = max(-(-len(heat.rows) // max(n_lines, 1)), 1)
    for start in range(0, len(heat.rows), across):
        here = slice(start, start + across)
        yield _Block(
            heat,
            "" if start else heat.title,
            heat.rows[here],
            heat.columns,
            heat.values[here].T,
            heat.shares[here].T,
            None if heat.n_prompt is None else heat.n_prompt - start,
        )


def _draw(axes: Any, block: _Block) -> None:
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    heat = block.heat
    colours = [COLD, PAPER, HOT] if heat.signed else [PAPER, HOT]
    # What is not active is no small number: it has a colour of its own.
    shades = LinearSegmentedColormap.from_list("scope", colours).with_extremes(bad=EMPTY)
    axes.imshow(
        np.ma.masked_where(block.values == 0, block.shares),
        cmap=shades,
        vmin=-1 if heat.signed else 0,
        vmax=1,
        aspect="auto",
        interpolation="nearest",
    )
    n_across, n_down = len(block.across), len(block.down)
    axes.set_xticks(range(n_across), [_drawable(each) for each in block.across], rotation=90)
    axes.set_yticks(range(n_down), [_drawable(each) for each in block.down])
    axes.set_xticks(np.arange(n_across + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n_down + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=PAPER, lw=0.8)
    axes.tick_params(which="both", length=0, labelsize=7)
    axes.spines[:].set_visible(False)
    if block.n_prompt is not None and 0 < block.n_prompt < n_across:
        axes.axvline(block.n_prompt - 0.5, color="black", lw=1.2)
        axes.text(block.n_prompt - 0.3, -0.65, "answer", size=7, va="bottom")
    if block.title:
        least = f"{shown_number(-heat.scale)} to " if heat.signed else ""
        words = f"full colour: {least}{shown_number(heat.scale)}"
        axes.set_title(_drawable(f"{block.title}   ({words})"), loc="left", size=8, pad=4)


@cache
def _families() -> tuple[str, ...]:
    """Installed families, those first that many scripts are likely to be in."""
    from matplotlib import font_manager

    there = {each.name for each in font_manager.fontManager.ttflist}
    cjk = [
        name
        for name in sorted(there)
        if any(word in name for word in ("CJK", "WenQuanYi", "Source Han", "Droid Sans Fallback"))
    ]
    return ("DejaVu Sans", *cjk[:4])


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    found: set[int] = set()
    for name in _families():
        path = font_manager.findfont(name, fallback_to_default=True)
        found |= set(FT2Font(path).get_charmap())
    return frozenset(found)


def _drawable(text: str) -> str:
    """The text with characters that no installed font has as ``U+4E2D``; ``$`` is no formula."""
    out = "".join(
        each if ord(each) in _glyphs() else f"⟨{ord(each):X}⟩" for each in text.replace("\n", "⏎")
    )
    return out.replace("$", r"\$")
