"""Heatmaps on a terminal: numbers, with a colour behind them where there are colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from scope_runtime.inspect.heat import Heat, Picture, Ranked
from scope_runtime.visible import shown_number, shown_token, visible

if TYPE_CHECKING:
    from scope_runtime.inspect.trace import Trace

_HOT = ("", "white on #5f3700", "white on #8a4b00", "black on #d9760a", "black on #ff9f2e")
_COLD = ("", "white on #12305c", "white on #1a4a8c", "black on #4b8fe0", "black on #8cbcff")
_EDGES = (0.05, 0.25, 0.5, 0.75)
_TOKEN = 14
_TEXT = 34
_COLUMN = 9
_WORDS = 26


def print_picture(picture: Picture, console: Console) -> None:
    """Everything, one below the other."""
    for sentence in picture.sentences:
        console.print(visible(sentence), soft_wrap=True)
    for ranked in picture.ranked:
        console.print()
        _print_ranked(ranked, console)
    for heat in picture.heats:
        print_heat(heat, console)


def print_heat(heat: Heat, console: Console) -> None:
    """Rows as lines, columns side by side as far as there is room, the others below."""
    console.print()
    least = f"{shown_number(-heat.scale)} to " if heat.signed else ""
    empty = "" if heat.signed else "; no number: not active"
    console.print(
        f"{visible(heat.title)} (full colour: {least}{shown_number(heat.scale)}{empty})",
        soft_wrap=True,
    )
    of_tokens = heat.pieces is not None
    name = min(max(map(cell_len, heat.rows), default=4), _TOKEN if of_tokens else _TEXT)
    left = name + (len(str(len(heat.rows))) + 2 if of_tokens else 0)
    room = max((console.width - left) // (_COLUMN + 2), 1)
    for start in range(0, max(len(heat.columns), 1), room):
        columns = range(start, min(start + room, len(heat.columns)))
        beside = heat.beside[0] if heat.beside and not start else None
        width = console.width - left - len(columns) * (_COLUMN + 2) - 2
        console.print(_table(heat, columns, name, beside, min(width, 2 * _WORDS)))


def print_strongest(trace: Trace, console: Console) -> None:
    """Each token with its strongest features, as many as were asked for."""
    largest = max((lit.activation for row in trace.strongest[1:] for lit in row), default=0.0)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", justify="right")
    table.add_column("token", no_wrap=True)
    table.add_column("strongest features")
    for position, (piece, lit) in enumerate(
        zip(trace.reading.pieces, trace.strongest, strict=True)
    ):
        line = Text()
        for one in lit:
            if line:
                line.append("  ")
            share = one.activation / largest if largest > 0 else 0.0
            # A feature and its number stay on one line.
            named = f"{one.feature.number} {visible(one.feature.label)}".strip().replace(
                " ", "\u00a0"
            )
            line.append(f"{named}\u00a0")
            line.append(f"{shown_number(one.activation)}", style=_style(share))
        answer = position == trace.reading.n_prompt
        if answer:
            table.add_row("", Text("answer:", style="italic"), "")
        table.add_row(str(position), _fitted(shown_token(piece), _TOKEN), line)
    console.print()
    console.print(f"{visible(trace.reading.name)}: strongest features", soft_wrap=True)
    console.print(table)


def _table(
    heat: Heat,
    columns: Sequence[int],
    name: int,
    beside: tuple[str, tuple[str, ...]] | None,
    width: int,
) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    of_tokens = heat.pieces is not None
    if of_tokens:
        table.add_column("", justify="right", no_wrap=True)
    table.add_column("token" if of_tokens else "text", no_wrap=True)
    for column in columns:
        number, _, label = heat.columns[column].partition(" ")
        table.add_column(
            Text(f"{number}\n{visible(label)}" if label else number),
            justify="right",
            width=_COLUMN,
            overflow="fold",
        )
    words = beside if beside is not None and width >= _WORDS else None
    if words is not None:
        table.add_column(words[0], no_wrap=True, width=width)
    shares = heat.shares
    for i, row in enumerate(heat.rows):
        if of_tokens and i and i == heat.n_prompt:
            table.add_row("", Text("answer:", style="italic"))
        cells: list[str | Text] = [str(i)] if of_tokens else []
        cells.append(_fitted(row, name))
        cells += [
            _cell(float(heat.values[i, column]), float(shares[i, column])) for column in columns
        ]
        if words is not None:
            cells.append(_fitted(words[1][i], width))
        table.add_row(*cells)
    return table


def _print_ranked(ranked: Ranked, console: Console) -> None:
    console.print(visible(ranked.title), soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(ranked.columns):
        table.add_column(Text(visible(title)), justify="right" if i else "left", overflow="fold")
    for row in ranked.rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console.print(table)


def _cell(value: float, share: float) -> Text:
    if not value:
        return Text("")
    return Text(f" {shown_number(value)}", style=_style(share))


def _style(share: float) -> Style:
    step = sum(abs(share) > edge for edge in _EDGES)
    return Style.parse((_COLD if share < 0 else _HOT)[step])


def _fitted(text: str, width: int) -> Text:
    text = visible(text)
    return Text(text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…")
