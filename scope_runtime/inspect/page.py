"""A picture as one HTML file: no script, nothing loaded from elsewhere, light and dark, tables that can be read out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from scope_runtime.errors import UsageError
from scope_runtime.files import written_whole
from scope_runtime.inspect.heat import Heat, Picture, Ranked
from scope_runtime.pack_types import F32Array
from scope_runtime.visible import shown_number, visible

COLOURS = {
    "light": {"paper": "#ffffff", "ink": "#1b1b1f", "quiet": "#5b5f66", "line": "#d8dade"}
    | {"hot": "#f59a3c", "cold": "#7fb0f5"},
    "dark": {"paper": "#15171b", "ink": "#f4f4f5", "quiet": "#a5abb5", "line": "#3a3e46"}
    | {"hot": "#a8500c", "cold": "#2a5cad"},
}
"""Ink is read on every mixture of paper with hot or cold; tests hold the contrast."""
_STYLE = Path(__file__).with_name("page.css")


def page(picture: Picture) -> str:
    """The whole document."""
    title = escape(picture.title)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{title}</title>",
            f"<style>\n{_style()}</style>",
            "</head>",
            "<body>",
            "<main>",
            f"<h1>{title}</h1>",
            *_sentences(picture.sentences),
            *(line for ranked in picture.ranked for line in _ranked(ranked)),
            *(line for heat in picture.heats for line in _heat(heat)),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def write_page(path: str | Path, picture: Picture) -> None:
    """Writes the document, whole or not at all. Raises UsageError if it cannot be written."""
    with written_whole(path, UsageError) as temporary:
        Path(temporary).write_text(page(picture), encoding="utf-8")


def _style() -> str:
    def variables(name: str) -> str:
        return " ".join(f"--{key}: {value};" for key, value in COLOURS[name].items())

    style = _STYLE.read_text(encoding="utf-8")
    for name in COLOURS:
        style = style.replace(f"/* {name} */", variables(name))
    return style


def _sentences(sentences: Iterable[str]) -> Iterator[str]:
    yield "<ul>"
    for each in sentences:
        yield f"<li>{_text(each)}</li>"
    yield "</ul>"


def _ranked(ranked: Ranked) -> Iterator[str]:
    yield f"<h2>{_text(ranked.title)}</h2>"
    yield from _table(
        ranked.meaning,
        [_head(each, word=i == 0) for i, each in enumerate(ranked.columns)],
        [
            [_row_head(first), *(f"<td>{_text(cell)}</td>" for cell in rest)]
            for first, *rest in ranked.rows
        ],
    )


def _heat(heat: Heat) -> Iterator[str]:
    least, zero = (shown_number(-heat.scale), "50%") if heat.signed else ("0", "0%")
    start = "var(--cold)" if heat.signed else "var(--paper)"
    yield "<section>"
    yield f"<h2>{_text(heat.title)}</h2>"
    yield (
        f'<p class="quiet">{least} <span class="bar" style="--from: {start}; --zero: {zero}"></span> '
        f"{shown_number(heat.scale)} or more{_legend(heat)}</p>"
    )
    if heat.pieces is not None:
        for column, name in enumerate(heat.columns):
            largest = _largest(heat.values[:, column])
            if not largest:
                yield f'<h3>{_text(name)} <span class="quiet">at no token</span></h3>'
                continue
            yield f'<h3>{_text(name)} <span class="quiet">largest {largest}</span></h3>'
            yield f'<p class="text">{"".join(_pieces(heat, heat.pieces, column))}</p>'
        yield "<details>"
        yield "<summary>Every number</summary>"
    yield from _numbers(heat)
    if heat.pieces is not None:
        yield "</details>"
    yield "</section>"


def _legend(heat: Heat) -> str:
    return "; grey: the prompt" if heat.pieces is not None and heat.n_prompt else ""


def _pieces(heat: Heat, pieces: Sequence[str], column: int) -> Iterator[str]:
    shares = heat.shares[:, column].tolist()
    values = heat.values[:, column].tolist()
    for position, (piece, value, share) in enumerate(zip(pieces, values, shares, strict=True)):
        prompt = heat.n_prompt is not None and position < heat.n_prompt
        classes = " ".join(["prompt"] * prompt + ["less"] * (share < 0))
        name = f' class="{classes}"' if classes else ""
        # Line ends outside of what is coloured: a token that is one would otherwise have no width.
        text = _text(piece)
        if value:
            text = text.replace("\n", "⏎\n") or "⋯"
            yield f'<span{name} style="--v: {_share(share)}" title="{position}: {shown_number(value)}">{text}</span>'
        elif text:
            yield f"<span{name}>{text}</span>" if name else text


def _numbers(heat: Heat) -> Iterator[str]:
    of_tokens = heat.pieces is not None
    head = [_head("token" if of_tokens else "text", word=True)]
    head += [_head(each) for each in heat.columns]
    head += [_head(title, word=True) for title, _ in heat.beside]
    rows = []
    for i, name in enumerate(heat.rows):
        label = f"{i} {name}" if of_tokens else name
        cells = [_row_head(label)]
        for value, share in zip(heat.values[i].tolist(), heat.shares[i].tolist(), strict=True):
            less = ' class="less"' if share < 0 else ""
            shade = f' style="--v: {_share(share)}"' if share else ""
            cells.append(f"<td{less}{shade}>{_number(value)}</td>")
        cells += [f'<td class="word">{_text(words[i])}</td>' for _, words in heat.beside]
        rows.append(cells)
    caption = f"{heat.title}; no number: not active" if not heat.signed else heat.title
    first_answer = heat.n_prompt if of_tokens else None
    yield from _table(caption, head, rows, answer=first_answer)


def _table(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], answer: int | None = None
) -> Iterator[str]:
    # What scrolls must be reachable by keyboard, and say what it is.
    yield f'<div class="scroll" role="region" aria-label="{_text(caption)}" tabindex="0">'
    yield "<table>"
    yield f"<caption>{_text(caption)}</caption>"
    yield f"<thead><tr>{''.join(head)}</tr></thead>"
    yield "<tbody>"
    for i, cells in enumerate(rows):
        opening = '<tr class="answer">' if i == answer else "<tr>"
        yield f"{opening}{''.join(cells)}</tr>"
    yield "</tbody>"
    yield "</table>"
    yield "</div>"


def _head(text: str, *, word: bool = False) -> str:
    opening = '<th scope="col" class="word">' if word else '<th scope="col">'
    return f"{opening}{_text(text)}</th>"


def _row_head(text: str) -> str:
    return f'<th scope="row">{_text(text)}</th>'


def _share(share: float) -> str:
    return f"{abs(share):.3f}".rstrip("0").rstrip(".")


def _text(text: str) -> str:
    return escape(visible(text))


def _largest(values: F32Array) -> str:
    return _number(float(values[np.abs(values).argmax()])) if len(values) else ""


def _number(value: float) -> str:
    return shown_number(value) if value else ""
