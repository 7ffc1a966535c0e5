"""Pictures for terminals, browsers and papers: kept as golden files; the PNG by the colours of its cells."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from scope_runtime.cli.heat import print_picture, print_strongest
from scope_runtime.errors import UsageError
from scope_runtime.inspect import compare, drawing, trace
from scope_runtime.inspect.drawing import figure, write_png
from scope_runtime.inspect.heat import Heat, Picture, comparison_picture, trace_picture
from scope_runtime.inspect.page import COLOURS, page, write_page
from tests.inspect.conftest import drawn, mirrors
from tests.support.golden import assert_golden

LABELS = {0: "plan to switch", 1: "<b>&"}
PIECES = ["<s>", "Hi", ".", "\n", " The", " lake", ".", " ", "", "游", "客\x1b[31m"]


def example() -> Any:
    """A prompt and an answer that drifts; one label is no markup, and one token no command to a terminal."""
    return drawn(
        PIECES,
        {
            (1, 0): {0: 900.0, 2: 12.5, 6: 160.0},
            (1, 1): {5: 0.25, 9: 80.0, 10: 40.0},
            (2, 3): {1: 3.0, 2: 0.001},
        },
        n_prompt=4,
    )


def traced() -> Picture:
    return trace_picture([trace(example(), mirrors(LABELS), features="1:0,1,2:3,2:4")])


def compared() -> Picture:
    """One text as two models have it: same tokens, other numbers."""
    other = drawn(PIECES, {(1, 0): {6: 20.0}, (1, 1): {9: 80.0}, (2, 3): {1: 9.0}}, n_prompt=4)
    return comparison_picture(compare([example()], [other], mirrors(LABELS), names=("f16", "q4")))


def judged() -> Picture:
    """Two sets of texts."""
    a = [
        drawn(["x", " one", f" {n}"], {(1, 0): {1: 2.0 + n % 3}}, name=f"text {n}")
        for n in range(6)
    ]
    b = [
        drawn(["x", " two", f" {n}"], {(2, 1): {2: 7.0 + n % 2}}, name=f"text {n}")
        for n in range(6)
    ]
    return comparison_picture(
        compare(a, b, mirrors(LABELS), names=("before", "after"), paired=False)
    )


PICTURES = {"trace": traced, "compare": compared, "compare-sets": judged}


def printed(picture: Picture, **options: Any) -> str:
    console = Console(
        file=io.StringIO(), width=80, highlight=False, markup=False, legacy_windows=False, **options
    )
    print_picture(picture, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PICTURES)
def test_terminal(name: str) -> None:
    plain = printed(PICTURES[name]())
    assert "\x1b" not in plain
    assert_golden(f"{name}.txt", "".join(f"{line.rstrip()}\n" for line in plain.splitlines()))


def test_terminal_in_colour() -> None:
    """The same text with colours behind it, and no other power over the terminal."""
    text = printed(traced(), force_terminal=True, color_system="truecolor", no_color=False)
    assert_golden("trace.ansi", text.replace("\x1b", "␛"))
    assert "\x1b[31m" not in text
    plain = printed(traced(), force_terminal=True, color_system="truecolor", no_color=True)
    assert "48;2" in text
    assert "48;2" not in plain


def test_each_token_s_strongest() -> None:
    console = Console(file=io.StringIO(), width=80, highlight=False, markup=False)
    print_strongest(trace(example(), mirrors(LABELS), top=2), console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert_golden("strongest.txt", "".join(f"{line.rstrip()}\n" for line in said.splitlines()))


def test_a_terminal_that_is_narrow_gets_the_columns_one_below_the_other() -> None:
    console = Console(file=io.StringIO(), width=44, highlight=False, markup=False)
    print_picture(traced(), console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    tables = [i for i, line in enumerate(lines) if line.split()[:1] == ["token"]]
    assert len(tables) == 2
    assert all(len(line) <= 44 for line in lines[tables[0] :])


@pytest.mark.parametrize("name", PICTURES)
def test_html(name: str) -> None:
    assert_golden(f"{name}.html", page(PICTURES[name]()))


class Seen(HTMLParser):
    """Checks as it reads: every element ends, nothing is fetched, tables have heads."""

    VOID = frozenset({"meta"})

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append((tag, dict(attrs)))
        assert {"src", "href", "onclick", "srcset", "action"}.isdisjoint(dict(attrs))
        if tag == "p" and dict(attrs).get("class") == "text":
            self.texts.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "p" in self.open and self.texts:
            self.texts[-1] += data


@pytest.mark.parametrize("name", PICTURES)
def test_a_page_needs_nothing_else_and_can_be_read_out(name: str) -> None:
    document = page(PICTURES[name]())
    for fetched in ("http:", "https:", "url(", "@import", "<script", "<img", "<link"):
        assert fetched not in document
    seen = Seen(document)
    tags = [tag for tag, _ in seen.names]
    assert tags.count("caption") == tags.count("table") > 0
    for tag, attributes in seen.names:
        if tag == "th":
            assert attributes["scope"] in ("col", "row")
        if attributes.get("class") == "scroll":
            assert attributes["tabindex"] == "0"
            assert attributes["aria-label"]
    [language] = [attributes["lang"] for tag, attributes in seen.names if tag == "html"]
    assert language == "en"


def test_the_text_of_a_page_is_the_text() -> None:
    seen = Seen(page(traced()))
    assert len(seen.texts) == 3  # the fourth feature is nowhere
    for text in seen.texts:
        plain = text.replace("⏎\n", "\n").replace("⋯", "")
        assert plain.startswith("<s>Hi.\n The lake. 游客\u241b[31m")


@pytest.mark.parametrize("mode", COLOURS)
def test_ink_is_read_on_every_shade(mode: str) -> None:
    """WCAG 2: 4.5 to 1, for text on any mixture of paper with hot or cold; quiet words are on paper."""

    def channels(name: str) -> np.ndarray:  # type: ignore[type-arg]
        text = COLOURS[mode][name]
        return np.array([int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)])

    def luminance(colour: np.ndarray) -> float:  # type: ignore[type-arg]
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    def contrast(one: np.ndarray, other: np.ndarray) -> float:  # type: ignore[type-arg]
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    paper = channels("paper")
    assert contrast(channels("quiet"), paper) >= 4.5
    for shade in ("hot", "cold"):
        for share in np.linspace(0, 1, 21):
            mixed = share * channels(shade) + (1 - share) * paper
            assert contrast(channels("ink"), mixed) >= 4.5, (shade, share)


def test_cells_of_the_png_have_their_colours(tmp_path: Path) -> None:
    """By the middles of the cells: letters beside them may be of any font."""
    heat = traced().heats[0]
    plot, left = figure(traced())
    assert left == 0
    [axes] = plot.axes
    assert [each.get_text() for each in axes.get_yticklabels()] == list(heat.columns)
    assert len(axes.get_xticklabels()) == len(heat.rows)
    write_png(tmp_path / "t.png", traced())
    pixels = matplotlib.image.imread(tmp_path / "t.png")[:, :, :3]
    height, width = pixels.shape[:2]
    box = axes.get_position()
    for row in range(len(heat.columns)):
        for token in range(len(heat.rows)):
            x = box.x0 + box.width * (token + 0.5) / len(heat.rows)
            y = box.y1 - box.height * (row + 0.5) / len(heat.columns)
            found = pixels[int((1 - y) * height), int(x * width)]
            share = float(heat.shares[token, row])
            hot, empty = np.array([0xD9, 0x48, 0x0F]) / 255, np.array([0xF1, 0xF2, 0xF4]) / 255
            expected = share * hot + (1 - share) if heat.values[token, row] else empty
            np.testing.assert_allclose(found, expected, atol=0.02, err_msg=f"{token} {row}")


def test_long_texts_are_plotin_lines_and_too_long_ones_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "MOST_BLOCKS", 4)

    def heat(n: int) -> Heat:
        rows = tuple(str(i) for i in range(n))
        return Heat("long", rows, rows, ("1:2",), np.ones((n, 1), np.float32), 1.0, n_prompt=n - 1)

    plot, left = figure(Picture("p", (), (heat(130),)))
    assert (len(plot.axes), left) == (3, 0)
    assert sum(len(axes.get_xticklabels()) for axes in plot.axes) == 130
    assert [len(axes.lines) for axes in plot.axes] == [0, 0, 1]  # where the answer begins
    plot, left = figure(Picture("p", (), (heat(56 * 6),)))
    assert (len(plot.axes), left) == (4, 56 * 2)
    write_png(tmp_path / "nothing.png", Picture("p", ("nothing",), ()))
    assert (tmp_path / "nothing.png").read_bytes().startswith(b"\x89PNG")


def test_differences_have_two_colours() -> None:
    plot, _ = figure(compared())
    [axes] = plot.axes
    [image] = axes.images
    assert (image.norm.vmin, image.norm.vmax) == (-1, 1)
    colours = image.to_rgba(np.array([-1.0, 0.0, 1.0]))[:, :3]
    np.testing.assert_allclose(colours[1], 1, atol=0.01)
    assert colours[0][2] > colours[0][0]
    assert colours[2][0] > colours[2][2]


def test_letters_that_no_font_has_and_formulas(tmp_path: Path) -> None:
    odd = Heat("$x", ("\U000f0000", "$"), ("a", "b"), ("1:2",), np.ones((2, 1), np.float32), 1.0)
    plot, _ = figure(Picture("p", (), (odd,)))
    assert [each.get_text() for each in plot.axes[0].get_xticklabels()] == ["⟨F0000⟩", r"\$"]
    write_png(tmp_path / "odd.png", Picture("p", (), (odd,)))


def test_pictures_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not the name of a PNG; expected \*\.png"):
        write_png(tmp_path / "t.jpg", traced())
    with pytest.raises(UsageError, match="cannot be written"):
        write_page(tmp_path / "none" / "t.html", traced())
