"""The shipped policies on the shipped model, on held-out prompts: the figures that the README promises.

Every arm runs through the runtime on the GGUF files themselves, F16 and quantized. Control arms must not do what the
policies do, else the policies would prove nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "examples" / "tiny-qwen3"))

import evaluate

_seen: list[tuple[str, evaluate.Figures]] = []


@pytest.fixture(scope="module", params=list(evaluate.MODELS))
def figures(request: pytest.FixtureRequest) -> evaluate.Figures:
    path: Path = evaluate.MODELS[request.param]
    found = evaluate.measure(path, 10_000, Console(quiet=True))
    _seen.append((path.name, found))
    return found


def test_the_fault_is_there_and_the_policy_mends_it(figures: evaluate.Figures) -> None:
    plain, steered = figures.drift["unsteered"], figures.drift["english-only"]
    assert plain["drifted"] >= 0.5
    assert steered["drifted"] <= 0.02
    assert steered["perplexity"] < 1.03
    assert steered["chinese_in_chinese"] >= 0.95


def test_random_features_at_the_same_dose_do_not_mend_it(figures: evaluate.Figures) -> None:
    control, steered = figures.drift["random features"], figures.drift["english-only"]
    assert control["dose"] >= 0.5 * steered["dose"]
    assert control["drifted"] >= 0.5


def test_the_style_comes_when_amplified_and_only_then(figures: evaluate.Figures) -> None:
    assert figures.archaic["unsteered"]["archaic"] < 0.05
    assert figures.archaic["archaic-style"]["archaic"] > 0.8
    assert figures.archaic["archaic-style"]["sound"] >= figures.archaic["unsteered"]["sound"] - 0.05
    assert figures.archaic["random features"]["archaic"] < 0.2


def test_refusals_raise_the_alert_and_other_answers_do_not(figures: evaluate.Figures) -> None:
    assert figures.refusal["refusals"] >= 100
    assert figures.refusal["caught"] >= 0.95
    assert figures.refusal["false_alarms"] <= 0.01


@pytest.fixture(scope="module", autouse=True)
def _show(request: pytest.FixtureRequest) -> object:
    yield
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    console = Console(width=110, file=getattr(reporter, "_tw", None) and sys.__stdout__)
    for name, found in _seen:
        for table in evaluate.tables(found, name):
            console.print(table)
