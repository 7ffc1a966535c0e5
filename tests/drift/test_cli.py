"""`scope drift`, as a person and as CI calls it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from scope_runtime.audit import AuditLog
from scope_runtime.cli.main import main
from scope_runtime.compile import check_against_packs
from scope_runtime.drift import read_baseline
from scope_runtime.drift.sources import replayed
from scope_runtime.events import Event
from scope_runtime.policy.load import load_policy
from scope_runtime.recording import read_recording
from scope_runtime.replay import recorded_text, replay
from tests.conftest import ROOT
from tests.support.drift_traffic import answered, drawn


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


def write(
    name: str, seed: int, n: int, shift: float = 0.0, start: float = 1000.0, **options: str
) -> None:
    rng = np.random.default_rng(seed)
    log = AuditLog(name)
    events: list[Event] = []
    for i in range(n):
        labels = {"tenant": "acme" if i % 2 else "globex"}
        events += answered(i, drawn(rng, shift), time=start + i, labels=labels, **options)
    log.write(events)  # at once: one fsync
    log.close()


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["drift", *map(str, arguments)])
    done = capsys.readouterr()
    return code, done.out, done.err


REPORT = ("report", "-b", "b.json", "--log", "a.jsonl")


def test_exit_codes_say_stable_drift_and_too_little(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.jsonl", 1, 200)
    assert call(capsys, "baseline", "--log", "a.jsonl", "-o", "b.json")[1] == (
        "b.json: 200 requests, 2 rules\n  p/dense: in 200 of them\n  p/seldom: in 200 of them\n"
    )
    # What made the baseline is not held against it.
    code, out, _ = call(capsys, *REPORT)
    assert (code, out.split("\n")[-2].split(":")[0]) == (3, "insufficient")
    write("a.jsonl", 2, 150, start=2000)
    code, out, _ = call(capsys, *REPORT)
    assert code == 0
    assert "stable: 150 requests against 200. While nothing changes, at most 1.00% of such" in out
    write("a.jsonl", 3, 150, shift=1.5, start=3000)
    code, out, _ = call(capsys, *REPORT, "--last", 150)
    assert code == 1
    [line] = [line for line in out.splitlines() if line.startswith("p/dense")]
    assert line.rstrip().endswith("drift")
    assert call(capsys, *REPORT, "--until", "1970-01-01T00:50Z")[0] == 0
    code, out, _ = call(capsys, *REPORT, "--since", "1970-01-01T00:00Z", "--last", 400)
    assert "window and baseline overlap in time" in out


def test_json_has_every_number_and_the_same_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.jsonl", 1, 200)
    code, out, _ = call(
        capsys, "baseline", "--log", "a.jsonl", "-o", "b.json", "--rule", "dense", "--json"
    )
    assert json.loads(out) == {
        "path": "b.json",
        "requests": 200,
        "rules": {"p/dense": 200},
        "of": 200,
    }
    write("a.jsonl", 2, 150, shift=1.5, start=2000)
    code, out, _ = call(capsys, *REPORT, "--json")
    data = json.loads(out)
    assert (code, data["verdict"], data["false_alarm_rate"]) == (1, "drift", 0.01)
    [rule] = data["rules"]
    assert (rule["rule"], rule["requests"]) == ("dense", {"baseline": 200, "window": 150})
    mean = rule["measures"]["mean"]
    assert mean["window"] - mean["baseline"] == pytest.approx(1.5, abs=0.3)
    assert mean["p"] == 1 / 2000
    assert sum(mean["counts"]["baseline"]) == 200
    assert len(mean["edges"]) == len(mean["counts"]["window"]) - 1
    assert data["notes"] == ["not in the baseline: p/seldom"]


def test_labels_are_the_baselines_unless_said(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.jsonl", 1, 200)
    assert call(capsys, "baseline", "--log", "a.jsonl", "-o", "b.json", "-l", "tenant=acme")[0] == 0
    assert len(read_baseline("b.json").sample.times) == 100
    write("a.jsonl", 2, 200, start=2000)
    for extra, n in (((), 100), (("-l", "tenant=globex"), 100), (("-l", "tenant=nobody"), 0)):
        data = json.loads(call(capsys, *REPORT, "--json", *extra)[1])
        assert data["requests"]["window"] == n


def test_a_long_log_is_thinned(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.jsonl", 1, 100)
    out = call(capsys, "baseline", "--log", "a.jsonl", "-o", "b.json", "--max-requests", 40)[1]
    assert out.startswith("b.json: 40 requests of 100, 2 rules\n")


def test_a_recording_gives_what_the_native_program_measures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, policy = ROOT / "policies/recordings/tiny-qwen3.rec", ROOT / "policies/refusal-watch.yaml"
    recording, program = read_recording(path), check_against_packs(load_policy(policy))
    found = list(replayed(recording, program))
    for number, request in enumerate(found):
        text, n_prompt = recorded_text(recording, number, program)
        [rule] = replay(program, text, n_prompt).rules
        seen = rule.activation[~np.isnan(rule.activation)]
        [(watched, (rate, mean, largest))] = request.measured.items()
        assert watched.name == "refusal-watch/refusal-watch"
        assert mean == pytest.approx(float(seen.mean()), rel=1e-4)
        assert largest == pytest.approx(float(seen.max()), rel=1e-4)
        assert rate == pytest.approx(rule.fired.sum() / len(seen), abs=1e-9)
    assert len(found) == len(recording.texts) == 4
    both = ("--recording", path, "--policy", policy)
    assert call(capsys, "baseline", *both, "-o", "b.json")[0] == 0
    code, out, _ = call(capsys, "report", "-b", "b.json", *both)
    assert code == 3
    assert "insufficient: 4 requests against 4" in out


def test_used_wrongly(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.jsonl", 1, 30)
    assert call(capsys, "baseline", "--log", "a.jsonl", "-o", "b.json")[0] == 0
    for arguments, words in (
        (("report", "-b", "b.json"), "give the requests as --log or as --recording"),
        (("report", "-b", "b.json", "-r", "x.rec"), "--recording and --policy go together"),
        ((*REPORT, "-P", "p.yaml"), "--recording and --policy go together"),
        (
            ("report", "-b", "b.json", "-r", "x", "-P", "p", "--since", "1h"),
            "a recording has no times",
        ),
        ((*REPORT, "--since", "soon"), "this is no time"),
        ((*REPORT, "--min-requests", "3"), "min_requests is too small"),
        ((*REPORT, "--false-alarm-rate", "2"), "false_alarm_rate is out of range"),
        ((*REPORT, "-l", "tenant"), "a label is not a pair"),
        (("report", "-b", "b.json", "--log", "none.jsonl"), "no such file or directory"),
        ((*REPORT, "--plot", "x.bmp"), "the plot's ending names no picture; found x.bmp"),
    ):
        code, _, err = call(capsys, *arguments)
        assert code == 2, arguments
        assert words in err


def test_what_is_invalid(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.jsonl", 1, 30)
    assert call(capsys, "baseline", "--log", "a.jsonl", "-o", "b.json")[0] == 0
    write("other.jsonl", 1, 30, start=5000, model="sha256:other")
    code, _, err = call(capsys, "report", "-b", "b.json", "--log", "other.jsonl")
    assert (code, err) == (
        1,
        "error: the baseline is of another model; found sha256:other; expected sha256:model. "
        "Make a baseline of this one\n",
    )
    code, out, _ = call(capsys, "report", "-b", "b.json", "--log", "other.jsonl", "--json")
    assert (code, json.loads(out)["error"]) == (1, "DriftError")
    code, _, err = call(capsys, "baseline", "--log", "a.jsonl", "--rule", "none", "-o", "c.json")
    assert code == 1
    assert "no request in which a feature was measured" in err
    assert not Path("c.json").exists()


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_the_plot_is_the_same_each_time(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("a.jsonl", 1, 100)
    assert call(capsys, "baseline", "--log", "a.jsonl", "-o", "b.json")[0] == 0
    write("a.jsonl", 2, 100, start=2000)
    first, second = (Path(f"{n}.{form}") for n in (1, 2))
    for path in (first, second):
        assert call(capsys, *REPORT, "--plot", path)[0] == 0
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[:4] in (b"\x89PNG", b"<?xm", b"%PDF")
    if form == "svg":
        assert "Date" not in first.read_text()


def test_a_plot_says_what_it_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a.jsonl", 1, 30)
    assert call(capsys, "baseline", "--log", "a.jsonl", "-o", "b.json")[0] == 0
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = call(capsys, *REPORT, "--plot", "x.png")
    assert (code, err) == (
        2,
        "error: a plot needs matplotlib. pip install 'scope-runtime[plot]'\n",
    )
