"""A runtime's metrics, against what its own answers say happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from scope_runtime import Runtime
from scope_runtime.alerts.manager import AlertManager
from scope_runtime.alerts.options import AlertOptions, Receiver
from scope_runtime.errors import UsageError
from scope_runtime.lifecycle.address import Address
from scope_runtime.llama import library
from scope_runtime.metrics import Metrics, exposition
from scope_runtime.metrics.collect import alerts_reader, queue_reader
from scope_runtime.metrics.families import FAMILIES, Family
from tests.conftest import Tiny

library.load()
PROMPT = [5, 17, 33, 80, 41, 60, 77]


@pytest.fixture(scope="module")
def runtime(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    folder = tmp_path_factory.mktemp("metrics")
    with Runtime(
        tiny.model,
        tiny.policy,
        watch=True,
        audit=folder / "log.jsonl",
        n_ctx=512,
        n_threads=1,
    ) as runtime:
        alerts = AlertManager(AlertOptions(receivers=(Receiver("desk", "http://127.0.0.1:9/"),)))
        runtime.hosted.metrics.read(alerts_reader(alerts))
        yield runtime
        alerts.close()


def values(registry: CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in registry.collect()
        for sample in metric.samples
    }


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0.0


def always_told(family: Family) -> bool:
    """Drift is told where there is a baseline (tests/drift), bundles where they are followed (tests/lifecycle)."""
    return family.group != "Drift" and not family.name.startswith("scope_bundle_")


def test_every_metric_of_the_table_is_there_and_no_other(runtime: Runtime) -> None:
    """Names, types and words as a scraper reads them; labels wherever there is a sample."""
    runtime.generate(PROMPT, max_tokens=2)
    text, _ = exposition(runtime.metrics, None)
    table = {family.name: family for family in FAMILIES}
    told = {}
    for metric in plain(text.decode()):
        name = metric.name + ("_total" if metric.type == "counter" else "")
        told[name] = (metric.type, metric.documentation)
        for sample in metric.samples:
            assert set(sample.labels) - {"le"} == set(table[name].labels), name
    assert told == {f.name: (str(f.type), f.help) for f in FAMILIES if always_told(f)}


def test_rules_are_counted_as_their_answers_report_them(runtime: Runtime) -> None:
    before = values(runtime.metrics)
    answers = [runtime.generate(PROMPT[:n], max_tokens=n, temperature=0.0) for n in (3, 5, 7)]
    after = values(runtime.metrics)
    acted: Counter[str] = Counter()
    for answer in answers:
        for event in answer.report:
            if event.what == "rule":
                acted[event.rule or ""] += event.detail["n_fired"]
    for name, op in (("quiet", "mute"), ("push", "amplify"), ("watch", "alert")):
        labels = (("mode", "enforce"), ("op", op), ("policy", "tiny"), ("rule", name))
        key = ("scope_interventions_total", labels)
        assert after[key] - before.get(key, 0) == acted[name], name
    # Known without any of our records: phase generation begins at the prompt's last token, and the answer's last
    # token is drawn but not computed.
    assert acted["push"] == sum(len(answer.tokens) for answer in answers)


def test_tokens_are_counted_as_they_were(runtime: Runtime) -> None:
    names = ("prompt_tokens", "prompt_tokens_reused", "tokens_predicted")
    before = [value(runtime.metrics, f"scope_{name}_total") for name in names]
    hooked = value(runtime.metrics, "scope_hook_tokens_total")
    answers = [runtime.generate(PROMPT, max_tokens=4) for _ in range(2)]
    computed, reused, answered = (
        value(runtime.metrics, f"scope_{name}_total") - was
        for name, was in zip(names, before, strict=True)
    )
    assert computed + reused == 2 * len(PROMPT)
    assert reused == sum(answer.n_reused for answer in answers) > 0
    assert answered == sum(len(answer.tokens) for answer in answers)
    # What the hook saw is counted by the hook: all that was computed, short of each answer's last token.
    assert value(runtime.metrics, "scope_hook_tokens_total") - hooked == computed + answered - 2


def test_times_add_up(runtime: Runtime) -> None:
    answer = runtime.generate(PROMPT, max_tokens=6, temperature=0.0)
    timing = answer.report[-1].detail["timing"]
    parts = timing["queue_s"] + timing["prompt_s"] + timing["generation_s"]
    assert timing["prompt_s"] > 0
    assert timing["generation_s"] > 0
    assert parts <= timing["duration_s"] + 1e-5


def test_nothing_that_a_request_brings_becomes_a_label(runtime: Runtime) -> None:
    runtime.generate(PROMPT, max_tokens=1, request_id="who-asks", labels={"tenant": "acme-corp"})
    text, _ = exposition(runtime.metrics, None)
    assert b"who-asks" not in text
    assert b"acme-corp" not in text


def test_both_formats_say_the_same(runtime: Runtime) -> None:
    old, old_type = exposition(runtime.metrics, "text/plain")
    new, new_type = exposition(runtime.metrics, "application/openmetrics-text; version=1.0.0")
    assert old_type.startswith("text/plain; version=0.0.4")
    assert new_type.startswith("application/openmetrics-text; version=1.0.0")

    def samples(families: Iterator[object]) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        return {
            (s.name, tuple(sorted(s.labels.items())))
            for family in families
            for s in family.samples  # type: ignore[attr-defined]
        }

    assert samples(plain(old.decode())) == samples(openmetrics(new.decode()))
    assert b"_created" not in old + new


def test_an_injected_registry_outlives_its_runtime(tiny: Tiny) -> None:
    registry = CollectorRegistry()
    with Runtime(tiny.model, None, metrics=registry, n_ctx=64, n_threads=1) as runtime:
        assert runtime.metrics is registry
        runtime.generate(PROMPT, max_tokens=1)
        assert value(registry, "scope_hook_tokens_total") > 0
    assert value(registry, "scope_requests_total", finish_reason="length") == 1
    assert registry.get_sample_value("scope_hook_tokens_total") is None, "its hook is gone"


def test_behaviour_20_an_exception_is_counted_apart(tiny: Tiny, tmp_path: Path) -> None:
    for name in ("pack.gguf", "vector.gguf"):
        (tmp_path / name).symlink_to(tiny.policy.with_name(name))
    policy = tmp_path / "policy.yaml"
    text = tiny.policy.read_text(encoding="utf-8")
    exception = "{selector: {tenant: acme}, rules: [quiet], owner: ops, until: 2999-01-01}"
    policy.write_text(f"{text}  exceptions: [{exception}]\n", encoding="utf-8")
    with Runtime(tiny.model, policy, policy_root=tmp_path.parent, n_ctx=64, n_threads=1) as runtime:
        acted = {"policy": "tiny", "rule": "quiet", "op": "mute", "mode": "enforce"}
        runtime.generate(PROMPT, max_tokens=1, labels={"tenant": "acme"})
        assert value(runtime.metrics, "scope_interventions_total", **acted) == 0
        runtime.generate(PROMPT[:3], max_tokens=1, labels={"tenant": "globex"})
        used = value(runtime.metrics, "scope_exceptions_used_total", policy="tiny", rule="quiet")
        assert used == 1
        assert value(runtime.metrics, "scope_rule_tokens_total", **acted) == 3


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9464", "127.0.0.1", 9464),
        (":9464", "127.0.0.1", 9464),
        ("0.0.0.0:9464", "0.0.0.0", 9464),
        ("[::1]:0", "::1", 0),
        ("metrics.internal:80", "metrics.internal", 80),
    ],
)
def test_an_address_without_a_host_is_the_loopback(text: str, host: str, port: int) -> None:
    assert Address.parse(text) == Address(host, port)


@pytest.mark.parametrize("text", ["9464", "127.0.0.1", "::1:9464", "host:65536", "http://h:1", ":"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not an address to listen at"):
        Address.parse(text)


def test_a_rules_counters_are_there_before_it_acts(tiny: Tiny) -> None:
    """Otherwise Prometheus, which needs two values for an increase, would not see an alert's first firing."""
    with Runtime(tiny.model, tiny.policy, n_ctx=64, n_threads=1) as runtime:
        counted = values(runtime.metrics)
        watch = (("policy", "tiny"), ("rule", "watch"), ("severity", "warning"))
        assert counted["scope_alert_transitions_total", (*watch, ("to", "firing"))] == 0
        assert counted["scope_alert_firing", watch] == 0
        quiet = (("mode", "enforce"), ("op", "mute"), ("policy", "tiny"), ("rule", "quiet"))
        assert counted["scope_interventions_total", quiet] == 0
        answer = runtime.generate(PROMPT, max_tokens=1)
        assert answer.finish_reason in ("length", "stop")
        assert (
            values(runtime.metrics)["scope_alert_transitions_total", (*watch, ("to", "firing"))]
            == 1
        )


def test_what_several_readers_know_of_is_added() -> None:
    """Requests wait in a server's queue and for their turn at the engine; each of them once."""
    metrics = Metrics()
    metrics.read(queue_reader(lambda: 3))
    metrics.read(queue_reader(lambda: 2))
    assert value(metrics.registry, "scope_requests_deferred") == 5
    text, _ = exposition(metrics.registry, None)
    assert text.decode().count("# TYPE scope_requests_deferred gauge") == 1
