"""What ships for Prometheus and Grafana: sound, tested, and about metrics that we have."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from scope_runtime.metrics.families import FAMILIES, Type
from tests.conftest import ROOT
from tests.support.prometheus import SHIPPED

RULES = yaml.safe_load((SHIPPED / "scope-rules.yml").read_text(encoding="utf-8"))
TEST_FILES = ("scope-rules.test.yml", "scope-rules-days.test.yml")
CASES = [
    case
    for name in TEST_FILES
    for case in yaml.safe_load((SHIPPED / name).read_text(encoding="utf-8"))["tests"]
]
DASHBOARD = json.loads((SHIPPED / "grafana-dashboard.json").read_text(encoding="utf-8"))


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments], cwd=SHIPPED, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "--lint=all", "--lint-fatal", "scope-rules.yml"),
        ("test", "rules", *TEST_FILES),
    ],
    ids=" ".join,
)
def test_promtool_finds_nothing(arguments: tuple[str, ...]) -> None:
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def rules() -> Iterator[dict[str, Any]]:
    for group in RULES["groups"]:
        yield from group["rules"]


def test_every_alert_and_every_recorded_rule_has_a_test() -> None:
    fires, stays_silent, evaluated = set(), set(), set()
    for case in CASES:
        for each in case.get("alert_rule_test", ()):
            (fires if each.get("exp_alerts") else stays_silent).add(each["alertname"])
        evaluated |= {name for e in case.get("promql_expr_test", ()) for name in names(e["expr"])}
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert fires == alerts
    assert stays_silent == alerts
    assert {rule["record"] for rule in rules() if "record" in rule} <= evaluated


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in rules():
        if "alert" in rule:
            assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
            severity = rule["labels"]["severity"]
            assert severity in ("info", "warning", "critical", "{{ $labels.severity }}")


def names(expr: str) -> set[str]:
    """Metric names of an expression: words that no bracket opens after, outside of strings, labels and durations."""
    bare = re.sub(r'"[^"]*"', "", expr)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", bare)
    words = re.findall(r"[a-zA-Z_:][\w:]*(?!\w*\s*\()", bare)
    return {w for w in words if w not in ("and", "or", "unless", "offset", "d", "by")}


def exported() -> set[str]:
    out = {"up"}
    for family in FAMILIES:
        parts = ("_bucket", "_sum", "_count") if family.type is Type.HISTOGRAM else ("",)
        out |= {family.name + part for part in parts}
    return out


def test_rules_name_only_metrics_that_we_export() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        assert names(rule["expr"]), rule
        assert names(rule["expr"]) <= exported() | recorded, rule
    series = {
        re.split(r"[{ ]", each["series"])[0] for case in CASES for each in case["input_series"]
    }
    assert series <= exported()


def panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            yield panel


def test_the_dashboard_names_only_metrics_that_we_export() -> None:
    for panel in panels():
        assert panel["description"]
        for target in panel["targets"]:
            assert names(target["expr"]), panel["title"]
            assert names(target["expr"]) <= exported(), panel["title"]


def test_a_name_that_we_do_not_export_would_be_seen() -> None:
    expr = 'sum by (rule, le) (rate(scope_gone_total{job=~"a, b"}[5m])) / on (job) up offset 1d > 0'
    assert names(expr) == {"scope_gone_total", "up"}


def test_panels_fill_the_grid_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_page_leads_to_each_file() -> None:
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    for path in SHIPPED.iterdir():
        assert f"../examples/observability/{path.name}" in page or path.name == "README.md"
