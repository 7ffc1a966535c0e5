"""The overhead benchmark runs and its statistics are right. Nothing here looks at how long anything takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import overhead, report
from benchmarks.arms import ARMS, BASE, SLOW_ARM, Bench
from benchmarks.samples import Journal, Plan, Round
from scope_runtime.paired import paired_ratio

PLAN = Plan(
    "tiny", "a build", 2, n_rounds=2, n_prompt=8, n_blocks=2, n_block_tokens=3, slow_every=2
)


def drifting_rounds(
    ratio: float, n_rounds: int = 60
) -> tuple[list[list[float]], list[list[float]]]:
    """An arm and its base on a machine that gets three times slower on the way."""
    rng = np.random.default_rng(0)
    load = np.linspace(1, 3, n_rounds)[:, None] * rng.lognormal(0, 0.01, (n_rounds, 5))
    noise = rng.lognormal(0, 0.01, (n_rounds, 5))
    return (load * ratio * noise).tolist(), load.tolist()


@pytest.mark.parametrize("ratio", [1.0, 1.02, 2.0])
def test_ratio_of_paired_blocks(ratio: float) -> None:
    found = paired_ratio(*drifting_rounds(ratio))
    assert found.lower <= found.median <= found.upper
    assert found.lower - 0.002 <= ratio <= found.upper + 0.002
    assert found.upper - found.lower < 0.01
    assert found.n_blocks == 300


def test_ratio_of_nothing() -> None:
    with pytest.raises(ValueError, match="no block"):
        paired_ratio([], [])


def a_round(ms: float) -> Round:
    return Round(dict.fromkeys(ARMS, ms * 8), {name: [ms, ms] for name in ARMS})


def test_journal_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j.jsonl", PLAN)
    first.add(a_round(0.001))
    again = Journal(tmp_path / "j.jsonl", PLAN)
    assert again.rounds == first.rounds
    again.add(a_round(0.002))
    assert Journal(tmp_path / "j.jsonl", PLAN).n_sittings == 2
    again.discard()
    assert Journal(tmp_path / "j.jsonl", PLAN).rounds == []


@pytest.mark.parametrize("torn", ["", '{"sitting": 1.0, "pro'])
def test_journal_of_another_plan_or_half_a_line(tmp_path: Path, torn: str) -> None:
    """A line cut by a crash is dropped; rounds of another plan are not mixed in."""
    other = Plan("other", "a build", 2, 2, 8, 2, 3, 2)
    Journal(tmp_path / "j.jsonl", other).add(a_round(0.001))
    with (tmp_path / "j.jsonl").open("a") as file:
        file.write(torn)
    assert len(Journal(tmp_path / "j.jsonl", other).rounds) == 1
    assert Journal(tmp_path / "j.jsonl", PLAN).rounds == []


def test_targets_are_judged_by_median_and_upper_bound() -> None:
    rounds = [a_round(0.001) for _ in range(4)]
    assert all(report.summarise(PLAN, rounds, 1, "2026-01-01")["met"].values())
    slow = [
        Round(one.prompt, {**one.decode, "8 features, 1 layer": [0.00102, 0.00102]})
        for one in rounds
    ]
    met = report.summarise(PLAN, slow, 1, "2026-01-01")["met"]
    assert met == {"8 features, 1 layer": False, "8 features, every layer": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of what the benchmark writes into."""
    (tmp_path / "README.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    return tmp_path


def run(folder: Path, *options: str) -> int:
    return overhead.main(
        [
            "--quick",
            "--threads",
            "1",
            "--out",
            str(folder / "results"),
            "--cache",
            str(folder / "cache"),
            *options,
        ]
    )


def test_quick_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    results = json.loads((folder / "results" / "overhead.json").read_text())
    assert printed == {key: value for key, value in results.items() if key != "rounds"}
    assert list(results["arms"]) == list(ARMS)
    assert results["arms"][BASE]["n_decode_tokens"] == 18
    assert results["arms"][SLOW_ARM]["n_decode_tokens"] == 12
    assert results["arms"][BASE]["decode"]["median"] == 1.0
    assert len(results["rounds"]) == 3
    assert (folder / "results" / "overhead.svg").read_text().startswith("<?xml")
    readme = (folder / "README.md").read_text()
    assert readme.startswith("before\n")
    assert readme.endswith("after\n")
    assert "old" not in readme
    assert "| 8 features, every layer |" in readme
    assert "(results/overhead.svg)" in readme


def test_interrupted_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure, numbers = overhead.measure_round, []

    def interrupted(bench: Bench, plan: Plan, number: int) -> Round:
        numbers.append(number)
        if numbers == [0, 1]:
            raise KeyboardInterrupt
        return measure(bench, plan, number)

    monkeypatch.setattr(overhead, "measure_round", interrupted)
    assert run(folder) == 130
    assert not (folder / "results" / "overhead.json").exists()
    assert run(folder) == 0
    assert numbers == [0, 1, 1, 2]
    results = json.loads((folder / "results" / "overhead.json").read_text())
    assert results["n_sittings"] == 2
    assert "2 sittings" in capsys.readouterr().out


def test_drawing_again_changes_nothing(folder: Path) -> None:
    run(folder)
    written = [folder / "README.md", folder / "results" / "overhead.svg"]
    before = [path.read_bytes() for path in written]
    assert run(folder, "--plot") == 0
    assert [path.read_bytes() for path in written] == before
