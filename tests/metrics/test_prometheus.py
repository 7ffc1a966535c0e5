"""A real Prometheus scrapes a live runtime and evaluates the rules and the dashboard that ship."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scope_runtime import Runtime
from scope_runtime.configured import configured
from scope_runtime.lifecycle.config import load_config
from tests.conftest import Tiny
from tests.lifecycle.conftest import PROMPT, Site, make_site
from tests.metrics.test_observability import panels, rules
from tests.support.prometheus import Prometheus, configuration, running

CONFIG = """\
apiVersion: scope/v1
kind: Runtime
spec:
  model: {{path: {model}, ctx: 512, threads: 1}}
  policy: {{path: policies, state: state}}
  audit: {{path: audit/events.jsonl}}
  metrics: {{listen: "127.0.0.1:0"}}
  alerts: {{receivers: [{{name: desk, url: "http://127.0.0.1:9/"}}]}}  # nobody is there
"""


@dataclass(frozen=True, slots=True)
class Watched:
    """A live runtime, and the Prometheus that watches it."""

    site: Site
    runtime: Runtime
    prometheus: Prometheus


@pytest.fixture(scope="module")
def watched(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    site = make_site(tiny, folder)
    config = folder / "scope.yaml"
    config.write_text(CONFIG.format(model=tiny.model), encoding="utf-8")
    with configured(load_config(config)) as runtime:
        runtime.generate(PROMPT, max_tokens=2)
        address = str(runtime.hosted.metrics_address)
        with running(configuration(folder, address, interval="200ms", wait="200ms")) as prometheus:
            prometheus.until(
                lambda: (
                    prometheus.value('count_over_time(up{job="scope-runtime"}[1m])') is not None
                    and (prometheus.value("scope_hook_tokens_total") or 0) > 0
                ),
                "a scrape is there",
            )
            for n in range(3):
                runtime.generate([*PROMPT[: n + 3]], max_tokens=3)
            yield Watched(site, runtime, prometheus)


def test_what_is_scraped_is_what_was_counted(watched: Watched) -> None:
    prometheus, runtime = watched.prometheus, watched.runtime
    for name in (
        "scope_hook_tokens_total",
        "scope_tokens_predicted_total",
        "scope_audit_records_total",
    ):
        expected = runtime.metrics.get_sample_value(name)
        prometheus.until(
            lambda name=name, expected=expected: prometheus.value(name) == expected,
            f"{name} is scraped",
        )
    (target,) = prometheus.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")


def test_the_metadata_is_the_tables(watched: Watched) -> None:
    """What Prometheus was told of types and words; it leaves ``_total`` away where OpenMetrics does."""
    from scope_runtime.metrics.families import FAMILIES

    table = {name: f for f in FAMILIES for name in (f.name, f.name.removesuffix("_total"))}
    told = {k: v for k, v in watched.prometheus.ask("metadata").items() if k.startswith("scope_")}
    assert {"scope_interventions", "scope_rule_dose", "scope_revision_info"} <= set(told)
    for name, (meta,) in told.items():
        assert (meta["type"], meta["help"]) == (str(table[name].type), table[name].help)


def test_every_panel_of_the_dashboard_has_data(watched: Watched) -> None:
    prometheus = watched.prometheus
    for panel in panels():
        for target in panel["targets"]:
            expr = target["expr"].replace("$__rate_interval", "1m")
            expr = expr.replace("$job", ".*").replace("$instance", ".*")
            if "scope_rules_left_out_total" in expr:  # there is no rollout in this policy
                assert prometheus.query(expr) == []
                continue
            if re.search("scope_(drift|bundle)_", expr):
                # Of what is not configured here; it must be PromQL all the same.
                assert prometheus.query(expr) == []
                continue
            prometheus.until(
                lambda expr=expr: bool(prometheus.query(expr)),
                f"{panel['title']} has data: {expr}",
            )


def test_every_recorded_rule_has_data(watched: Watched) -> None:
    prometheus = watched.prometheus
    for rule in rules():
        if "record" in rule:
            prometheus.until(
                lambda name=rule["record"]: bool(prometheus.query(name)),
                f"{rule['record']} is recorded",
            )
    for group in prometheus.ask("rules")["groups"]:
        for each in group["rules"]:
            assert each.get("health") in ("ok", "unknown"), each


def test_behaviour_9_a_bad_edit_fires_the_shipped_alert_and_the_fix_ends_it(
    watched: Watched,
) -> None:
    site, prometheus = watched.site, watched.prometheus
    name = "ScopePolicyReloadFailed"
    assert name not in prometheus.alerts()
    site.replace(site.text.replace("mute: [one, two]", "mute: [one, tow]"))
    prometheus.until(lambda: name in prometheus.alerts(), f"{name} fires")
    assert prometheus.value("scope_policy_reload_success") == 0
    assert prometheus.value('scope_policy_reloads_total{result="refused"}') == 1
    site.replace(site.text)
    prometheus.until(lambda: name not in prometheus.alerts(), f"{name} is over")


def test_behaviour_21_the_switch_fires_the_shipped_alert(watched: Watched) -> None:
    from scope_runtime.lifecycle.types import Cause

    lifecycle, prometheus = watched.runtime.hosted.lifecycle, watched.prometheus
    lifecycle.off(Cause("control", "tests", "to see it"))
    prometheus.until(lambda: "ScopeSteeringOff" in prometheus.alerts(), "ScopeSteeringOff fires")
    assert prometheus.value('scope_revision_info{revision="none"}') == 1
    lifecycle.on(Cause("control", "tests", "seen"))
    prometheus.until(lambda: "ScopeSteeringOff" not in prometheus.alerts(), "it is over")


def test_a_policys_alert_reaches_prometheus_with_its_own_severity(watched: Watched) -> None:
    runtime, prometheus = watched.runtime, watched.prometheus
    prometheus.until(
        lambda: (
            (prometheus.value('scope_alert_transitions_total{to="firing"}') or 0) > 0
            and "ScopePolicyAlert" in prometheus.alerts()
        ),
        "ScopePolicyAlert fires",
    )
    (alert,) = [
        a
        for a in prometheus.ask("alerts")["alerts"]
        if a["labels"]["alertname"] == "ScopePolicyAlert"
    ]
    assert alert["labels"]["rule"] == "watch"
    assert alert["labels"]["severity"] == "warning"
    assert runtime.hosted.lifecycle.revision != "none"


def test_a_process_that_is_gone_is_seen(tiny: Tiny, tmp_path: Path) -> None:
    make_site(tiny, tmp_path)
    config = tmp_path / "scope.yaml"
    config.write_text(CONFIG.format(model=tiny.model), encoding="utf-8")
    with configured(load_config(config)) as runtime:
        address = str(runtime.hosted.metrics_address)
    with running(configuration(tmp_path, address, interval="200ms", wait="200ms")) as prometheus:
        prometheus.until(lambda: prometheus.alerts() == {"ScopeDown"}, "ScopeDown fires")
