"""`spec.drift` of a configuration: the watch runs with the runtime, and its metrics are scraped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scope_runtime.audit.read import read
from scope_runtime.audit.segments import LogFiles
from scope_runtime.configured import configured
from scope_runtime.drift import Baseline, Criteria, DriftError, Window, write_baseline
from scope_runtime.drift.measure import Sample, sample
from scope_runtime.drift.sources import logged
from scope_runtime.errors import UsageError
from scope_runtime.lifecycle.config import load_config, settings
from scope_runtime.llama import library
from scope_runtime.metrics.families import FAMILIES
from tests.conftest import Tiny
from tests.support.drift_traffic import baseline

library.load()
CONFIG = """\
apiVersion: scope/v1
kind: Runtime
spec:
  model: {{path: {model}, ctx: 512, threads: 1}}
  policy: {{path: {policy}, poll_s: 600}}
  audit: {{path: audit.jsonl}}
  drift:
    baseline: baseline.json
    window: {{requests: 30, looks: 1}}
    min_requests: 20
"""


def write(tiny: Tiny, folder: Path, text: str = CONFIG) -> Path:
    path = folder / "scope.yaml"
    path.write_text(text.format(model=tiny.model, policy=tiny.policy), encoding="utf-8")
    return path


def ask(path: Path) -> tuple[dict[str, float], list[str], list[str]]:
    """30 prompts; what a scraper reads of rule ``watch`` once they were looked at, and what was said of drift.

    Last the rules that an alert ``drift`` over all requests is firing for.
    """
    rng = np.random.default_rng(1)
    with configured(load_config(path)) as runtime:
        for _ in range(30):
            runtime.generate(rng.integers(5, 90, 8).tolist(), max_tokens=1, temperature=0.0)
        [sink] = [each for each in runtime._records.sinks if type(each).__name__ == "DriftSink"]
        sink.settle()  # type: ignore[attr-defined]
        scraped = {
            one.name: one.value
            for metric in runtime.metrics.collect()
            for one in metric.samples
            if one.labels in ({}, {"policy": "tiny", "rule": "watch"})
        }
        alerts = runtime.hosted.lifecycle.alerts
        assert alerts is not None
        held = [a["labels"]["rule"] for a in alerts()["alerts"] if "rule" in a["labels"]]
        return scraped, [e.what for e in runtime.events() if e.what.startswith("drift")], held


def moved(found: Sample) -> Sample:
    """As if every activation had been far lower."""
    measured = {rule: values - [0, 100, 100] for rule, values in found.measured.items()}
    return Sample(found.times, found.model, found.packs, found.revisions, measured)


def test_the_watch_runs_alarms_and_is_scraped(tiny: Tiny, tmp_path: Path) -> None:
    plain = CONFIG[: CONFIG.index("  drift:")]
    rng = np.random.default_rng(0)
    with configured(load_config(write(tiny, tmp_path, plain))) as runtime:
        for _ in range(40):
            runtime.generate(rng.integers(5, 90, 8).tolist(), max_tokens=1, temperature=0.0)
    files = LogFiles(tmp_path / "audit.jsonl")
    normal = sample(logged([files]))
    assert {rule.name for rule in normal.measured} == {"tiny/quiet", "tiny/watch"}
    write_baseline(tmp_path / "baseline.json", Baseline(normal, "log", {}))
    path = write(tiny, tmp_path)
    scraped, said, held = ask(path)
    assert (said, held) == ([], [])
    assert {f.name for f in FAMILIES if f.group == "Drift"} <= scraped.keys()
    assert scraped["scope_drift_looks_total"] == 1
    assert scraped["scope_drift_window_requests"] == 30
    assert scraped["scope_drift_firing"] == 0
    write_baseline(tmp_path / "baseline.json", Baseline(moved(normal), "log", {}))
    scraped, said, held = ask(path)
    assert (said, held) == (["drift", "drift"], ["quiet", "watch"])
    assert scraped["scope_drift_firing"] == 1
    on_record = [record["rule"] for record in read(files) if record["what"] == "drift"]
    assert sorted(on_record) == ["quiet", "watch"]
    with configured(load_config(path)) as runtime:
        alerts = runtime.hosted.lifecycle.alerts
        assert alerts is not None
        assert sorted(a["labels"]["rule"] for a in alerts()["alerts"]) == ["quiet", "watch"]


def test_what_is_wrong_is_told_before_the_model_is_loaded(tiny: Tiny, tmp_path: Path) -> None:
    path = write(tiny, tmp_path)
    with pytest.raises(DriftError, match=r"baseline.json: no such file"):
        configured(load_config(path))
    (tmp_path / "baseline.json").write_text("{}")
    with pytest.raises(DriftError, match="no baseline"):
        configured(load_config(path))
    write_baseline(tmp_path / "baseline.json", baseline(1, 30))
    text = CONFIG.replace("min_requests: 20", "min_requests: 31")
    with pytest.raises(UsageError) as refused:
        configured(load_config(write(tiny, tmp_path, text)))
    assert str(refused.value).startswith(f"{path}:8:5: the window never holds as many requests")
    assert "(at spec.drift)" in str(refused.value)
    assert not LogFiles(tmp_path / "audit.jsonl").path.exists()


def test_the_defaults_that_are_told_are_those_that_hold(tiny: Tiny, tmp_path: Path) -> None:
    config = load_config(write(tiny, tmp_path, CONFIG[: CONFIG.index("    window")]))
    told = {each.key: each.value for each in settings(config)}
    for name in ("requests", "hours", "looks"):
        assert told[f"spec.drift.window.{name}"] == getattr(Window(), name)
    for name in ("min_requests", "false_alarm_rate", "psi"):
        assert told[f"spec.drift.{name}"] == getattr(Criteria(), name)
