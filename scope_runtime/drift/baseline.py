"""The baseline's file: JSON with the measurements of each request, so that any window can be held against it.

    {"kind": "scope-drift-baseline", "version": 1, "tool": …, "source": …, "labels": {…},
     "model": "sha256:…", "packs": ["sha256:…"], "revisions": ["sha256:…"], "times": […],
     "rules": [{"policy": …, "rule": …, "op": …, "mode": …, "features": […],
                "rate": […], "mean": […], "max": […]}]}

Lists of measurements have a number for each request, in the order of ``times``, or null where the request did not
get the rule. Nothing in it says what was asked or answered.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from scope_runtime.drift.measure import MEASURES, DriftError, Sample, Watched
from scope_runtime.drift.statistics import Floats
from scope_runtime.errors import Location
from scope_runtime.files import open_regular, read_exactly, written_whole
from scope_runtime.version import __version__

KIND = "scope-drift-baseline"
VERSION = 1
MAX_FILE_BYTES = 256 << 20
MAX_REQUESTS = 100_000
MAX_RULES = 1_000
_KEYS = frozenset(
    {"kind", "version", "tool", "source", "labels", "model", "packs", "revisions", "times", "rules"}
)
_RULE_KEYS = frozenset({"policy", "rule", "op", "mode", "features", *MEASURES})


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """Requests of a time that counts as normal.

    Attributes:
        source: where they are from: ``log`` or ``recording``.
        labels: only requests with all of these were taken, and only such are to be compared.
    """

    sample: Sample
    source: str
    labels: Mapping[str, str]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know who compares live requests with it."""
        steered = [r.name for r in self.sample.measured if r.op != "alert" and r.mode == "enforce"]
        if self.source != "recording" or not steered:
            return ()
        return (
            "the baseline is a recording of unsteered answers, but live ones are steered by "
            f"{', '.join(steered)}: a baseline from the audit log of steered requests fits better",
        )


def thinned(sample: Sample, most: int) -> Sample:
    """At most so many requests, evenly spread over the time."""
    n = len(sample.times)
    if n <= most:
        return sample
    chosen = np.floor(np.arange(most) * n / most).astype(int)
    return Sample(
        sample.times[chosen],
        sample.model,
        sample.packs,
        sample.revisions,
        {rule: values[chosen] for rule, values in sample.measured.items()},
    )


def write_baseline(path: str | Path, baseline: Baseline) -> None:
    """Writes the file whole or not at all; the same baseline gives the same bytes.

    Raises:
        DriftError: there is nothing in it, too much, or the file cannot be written.
    """
    sample = baseline.sample
    if not sample.measured or not len(sample.times):
        raise DriftError(
            "no request in which a feature was measured",
            hint="Rules that only add a direction measure nothing; an alert measures without changing anything",
        )
    if len(sample.times) > MAX_REQUESTS or len(sample.measured) > MAX_RULES:
        raise DriftError(
            "too much for one baseline",
            found=f"{len(sample.times)} requests, {len(sample.measured)} rules",
            expected=f"at most {MAX_REQUESTS} and {MAX_RULES}",
        )
    data = {
        "kind": KIND,
        "version": VERSION,
        "tool": f"scope-runtime {__version__}",
        "source": baseline.source,
        "labels": dict(baseline.labels),
        "model": sample.model,
        "packs": sorted(sample.packs),
        "revisions": sorted(sample.revisions),
        "times": [round(time, 3) for time in sample.times.tolist()],
        "rules": [
            {
                "policy": rule.policy,
                "rule": rule.rule,
                "op": rule.op,
                "mode": rule.mode,
                "features": list(rule.features),
                **{name: _listed(values[:, i]) for i, name in enumerate(MEASURES)},
            }
            for rule, values in sample.measured.items()
        ],
    }
    with written_whole(path, DriftError) as temporary:
        temporary.write_text(
            json.dumps(data, ensure_ascii=False, allow_nan=False), encoding="utf-8"
        )


def _listed(values: Floats) -> list[float | None]:
    # Exactly: a share that is another number in the file than in the traffic would lie in another bin.
    return [None if math.isnan(value) else value for value in values.tolist()]


def read_baseline(path: str | Path) -> Baseline:
    """Reads a file made by `write_baseline` and checks all of it.

    Raises:
        DriftError: it is none, of an unknown version, or damaged.
    """
    with open_regular(path, DriftError) as file:
        data = read_exactly(file, 0, MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        _fail(path, "the baseline is too large", expected=f"at most {MAX_FILE_BYTES} bytes")
    try:
        tree = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        _fail(path, "no baseline: it is no JSON", found=str(error)[:120])
    if not isinstance(tree, dict) or tree.get("kind") != KIND:
        _fail(
            path,
            "no baseline",
            expected=f'"kind": "{KIND}"',
            hint="Make one with `scope drift baseline`",
        )
    if tree.get("version") != VERSION:
        _fail(
            path,
            "a baseline of another version",
            found=repr(tree.get("version"))[:40],
            expected=str(VERSION),
            hint="Make it anew",
        )
    _keys(path, "", tree, _KEYS)
    source, labels = _text(path, "source", tree["source"]), tree["labels"]
    if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
        _fail(path, "no mapping of texts", key="labels")
    times = _numbers(path, "times", tree["times"], None, gaps=False)
    if not 1 <= len(times) <= MAX_REQUESTS:
        _fail(path, "an absurd number of requests", key="times", found=str(len(times)))
    rules = tree["rules"]
    if not isinstance(rules, list) or not 1 <= len(rules) <= MAX_RULES:
        _fail(path, f"no list of 1 to {MAX_RULES} rules", key="rules")
    measured: dict[Watched, Floats] = {}
    for i, part in enumerate(rules):
        rule, values = _rule(path, f"rules[{i}]", part, len(times))
        if any(rule.same_rule(other) for other in measured):
            _fail(path, "a rule stands there twice", key=f"rules[{i}]", found=rule.name)
        measured[rule] = values
    sample = Sample(
        times,
        _text(path, "model", tree["model"]),
        frozenset(_texts(path, "packs", tree["packs"])),
        frozenset(_texts(path, "revisions", tree["revisions"])),
        measured,
    )
    return Baseline(sample, source, labels)


def _rule(path: str | Path, key: str, part: Any, n: int) -> tuple[Watched, Floats]:
    if not isinstance(part, dict):
        _fail(path, "no rule", key=key)
    _keys(path, key, part, _RULE_KEYS)
    policy, name, op, mode = (
        _text(path, f"{key}.{name}", part[name]) for name in ("policy", "rule", "op", "mode")
    )
    rule = Watched(policy, name, op, mode, tuple(_texts(path, f"{key}.features", part["features"])))
    columns = [_numbers(path, f"{key}.{name}", part[name], n, gaps=True) for name in MEASURES]
    values = np.stack(columns, axis=1)
    missing = np.isnan(values)
    if (missing.any(axis=1) != missing.all(axis=1)).any():
        _fail(path, "a request has some of a rule's measurements and lacks others", key=key)
    rates = values[~missing[:, 0], 0]
    if rates.size and not (rates.min() >= 0 and rates.max() <= 1):
        _fail(path, "a firing rate is no share", key=f"{key}.rate", expected="0 to 1")
    return rule, values


def _keys(path: str | Path, key: str, found: dict[str, Any], expected: frozenset[str]) -> None:
    for word, names in (("missing", expected - set(found)), ("unknown", set(found) - expected)):
        if names:
            shown = repr(min(names))[:60]
            _fail(path, f"{word} key {shown}", key=key or None)


def _numbers(path: str | Path, key: str, found: Any, n: int | None, *, gaps: bool) -> Floats:
    if not isinstance(found, list) or not all(
        type(value) in (int, float) or (gaps and value is None) for value in found
    ):
        _fail(path, "no list of numbers", key=key)
    if n is not None and len(found) != n:
        _fail(path, "a list of another length", key=key, found=str(len(found)), expected=str(n))
    try:
        values = np.array([math.nan if value is None else value for value in found], np.float64)
    except OverflowError:
        _fail(path, "a number that is not finite", key=key)
    if np.isinf(values).any():
        _fail(path, "a number that is not finite", key=key)
    return values


def _text(path: str | Path, key: str, found: Any) -> str:
    if not isinstance(found, str):
        _fail(path, "no text", key=key, found=repr(found)[:40])
    return found


def _texts(path: str | Path, key: str, found: Any) -> list[str]:
    if not isinstance(found, list):
        _fail(path, "no list of texts", key=key)
    return [_text(path, key, each) for each in found]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _fail(
    path: str | Path,
    message: str,
    *,
    key: str | None = None,
    found: str | None = None,
    expected: str | None = None,
    hint: str | None = None,
) -> NoReturn:
    raise DriftError(
        message, location=Location(str(path)), key=key, found=found, expected=expected, hint=hint
    )
