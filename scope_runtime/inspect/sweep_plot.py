"""A sweep as a picture: effect and cost over strength, each arm with its interval."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scope_runtime.errors import ScopeError, UsageError
from scope_runtime.files import written_whole
from scope_runtime.inspect.arms import MEAN, OWN, RANDOM
from scope_runtime.inspect.sweep import Measured, Sweep

_FORMATS = ("png", "svg", "pdf")
_COLOURS = {OWN: "#0072b2", RANDOM: "#7f7f7f", MEAN: "#d55e00"}
_Interval = Callable[[Measured], "tuple[float, float] | None"]


class PlotError(ScopeError):
    """A plot that cannot be written."""


def plot(path: str | Path, done: Sweep) -> None:
    """Draw a sweep; the same one gives the same bytes.

    Raises:
        UsageError: the ending names no picture, or matplotlib is not installed.
        PlotError: the file cannot be written.
    """
    form = Path(path).suffix.removeprefix(".")
    if form not in _FORMATS:
        raise UsageError(
            "the plot's ending names no picture",
            found=Path(path).name,
            expected=".png, .svg or .pdf",
        )
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "a plot needs matplotlib", hint="pip install 'scope-runtime[plot]'"
        ) from None
    panels: list[tuple[str, Callable[[Measured], float | None], _Interval]] = [
        ("target cases that hold", lambda m: m.effect, lambda m: m.effect_interval),
        ("perplexity of collateral texts, ratio", lambda m: m.perplexity, _perplexity),
        ("collateral cases that hold", lambda m: m.cases, lambda m: None),
        ("shift of other features", lambda m: m.shift, lambda m: None),
        ("mean dose", lambda m: m.dose, lambda m: None),
    ]
    own = next(iter(done.arms.values()))
    shown = [panel for panel in panels if any(panel[1](m) is not None for m in own)]
    with rc_context({"svg.hashsalt": "scope", "font.size": 8}):
        figure = Figure(figsize=(3.4 * len(shown), 3.0), layout="constrained")
        for axes, (title, value, between) in zip(
            figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True
        ):
            for name, measured in done.arms.items():
                _curve(axes, name, measured, value, between)
            _mark(axes, done)
            axes.set_title(title, loc="left")
            axes.set_xlabel(f"strength of {done.rule} ({done.op})")
            axes.spines[["top", "right"]].set_visible(False)
        lines, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(lines, names, loc="outside lower center", ncols=len(names), frameon=False)
        if len(shown) > 1 and shown[1][0].startswith("perplexity"):
            figure.axes[1].axhline(done.limits.perplexity, color="black", lw=0.6, ls=":")
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[form]
        with written_whole(path, PlotError) as temporary:
            figure.savefig(temporary, format=form, dpi=110, metadata=metadata)


def _perplexity(measured: Measured) -> tuple[float, float] | None:
    return measured.perplexity_interval


def _curve(
    axes: Any,
    name: str,
    measured: tuple[Measured, ...],
    value: Callable[[Measured], float | None],
    between: _Interval,
) -> None:
    points = sorted((m.strength, value(m), between(m)) for m in measured if value(m) is not None)
    if not points:
        return
    x, colour = [each[0] for each in points], _COLOURS[name]
    axes.plot(x, [each[1] for each in points], marker="o", ms=3, lw=1.4, color=colour, label=name)
    bands = [each[2] for each in points]
    if all(band is not None for band in bands):
        low, high = zip(*(band for band in bands if band is not None), strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)


def _mark(axes: Any, done: Sweep) -> None:
    proposal = done.proposal
    if proposal.strength is None:
        return
    axes.axvline(proposal.strength, color="black", lw=0.8)
    if proposal.low is not None and proposal.high is not None and proposal.low < proposal.high:
        axes.axvspan(proposal.low, proposal.high, color="black", alpha=0.06, lw=0)
