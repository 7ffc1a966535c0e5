"""``spec.alerts`` of a scope.yaml in a process: told, shown, recorded, counted, reloaded; and the commands."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from scope_runtime.alerts.outbox import Notification
from scope_runtime.cli.main import main
from scope_runtime.configured import configured
from scope_runtime.errors import PolicyErrors, ScopeError
from scope_runtime.lifecycle.client import ControlClient
from scope_runtime.lifecycle.config import load_config
from scope_runtime.lifecycle.types import Cause
from scope_runtime.metrics import exposition
from scope_runtime.runtime import Runtime
from tests.conftest import ROOT, Tiny
from tests.lifecycle.conftest import until
from tests.support.webhook import Hook, webhook

PROMPT = [5, 17, 33, 80]
TOKEN = "a-token-nobody-else-knows"
PAGE = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
(CONFIG,) = re.findall(r"^```yml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:9099/alerts"


@pytest.fixture
def hook() -> Iterator[Hook]:
    with webhook() as serving:
        yield serving


@pytest.fixture
def site(tiny: Tiny, tmp_path: Path, hook: Hook) -> Path:
    """A folder as the page's configuration wants it, the receiver's address apart."""
    shutil.copy(tiny.model, tmp_path / "model.gguf")
    policies = tmp_path / "policies"
    policies.mkdir()
    for name in ("pack.gguf", "vector.gguf"):
        shutil.copy(tiny.policy.with_name(name), policies / name)
    text = tiny.policy.read_text().replace("above: -1.0}", "above: -1e9, actions: [log, webhook]}")
    (policies / "policy.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "webhook.token").write_text(TOKEN)
    write(tmp_path, hook)
    return tmp_path


def write(folder: Path, hook: Hook, *changes: tuple[str, str]) -> None:
    text = CONFIG.replace(ADDRESS, hook.url)
    assert hook.url in text
    text += "  audit: {path: audit.jsonl}\n"
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "scope.yaml").write_text(text, encoding="utf-8")


def counted(runtime: Runtime, name: str) -> dict[tuple[str, ...], float]:
    text, _ = exposition(runtime.metrics, None)
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name == name
    }


def test_the_pages_configuration_in_a_process(
    site: Path, hook: Hook, capsys: pytest.CaptureFixture[str]
) -> None:
    control = ["--control", str(site / "control.sock")]
    with configured(load_config(site / "scope.yaml")) as runtime:
        runtime.generate(PROMPT, max_tokens=2, labels={"tenant": "acme", "user": "somebody"})
        got = hook.next()
        (alert,) = got.body["alerts"]
        assert alert["labels"] == {
            "alertname": "watch",
            "policy": "tiny",
            "severity": "warning",
            "tenant": "acme",
        }
        assert got.headers["Authorization"] == f"Bearer {TOKEN}"
        until(
            lambda: any(event.what == "notified" for event in runtime.events()), "it is on record"
        )
        assert main(["alerts", *control]) == 0
        shown = capsys.readouterr().out
        assert "firing    watch of tiny (warning, tenant=acme)" in shown
        assert (
            "receiver  on-call: 1 delivered, 0 waiting, 0 failed attempts, 0 dead letters" in shown
        )
        assert main(["alerts", "--json", *control]) == 0
        (told,) = json.loads(capsys.readouterr().out)["alerts"]
        assert told["fingerprint"] == alert["fingerprint"]
        found = counted(runtime, "scope_alert_notifications_total")
        assert found == {("on-call", "delivered"): 1.0, ("on-call", "dead"): 0.0}
        assert counted(runtime, "scope_alerts") == {("pending",): 0.0, ("firing",): 1.0}
    records = (site / "audit.jsonl").read_text()
    whats = [json.loads(line)["what"] for line in records.splitlines()]
    assert whats.count("raised") == whats.count("notified") == 1
    assert json.loads((site / "alerts" / "state.json").read_text())["alerts"]
    for text in (records, shown, (site / "alerts" / "state.json").read_text()):
        assert TOKEN not in text
        assert hook.url not in text
        assert "somebody" not in text or text is records  # the request's own labels, no alert's
    with configured(load_config(site / "scope.yaml")) as runtime:
        with ControlClient(site / "control.sock") as client:
            (again,) = client.get("/-/alerts")["alerts"]
        assert again["fingerprint"] == alert["fingerprint"]
        assert again["starts_at"] == told["starts_at"]
    assert len(hook.got) == 1  # what was told before the restart is not told again


def test_receivers_are_reloaded_and_a_bad_one_is_refused(site: Path, hook: Hook) -> None:
    cause = Cause("test", "test")
    with webhook() as other, configured(load_config(site / "scope.yaml")) as runtime:
        runtime.generate(PROMPT, max_tokens=2)
        assert hook.next().body["receiver"] == "on-call"
        lifecycle = runtime.hosted.lifecycle
        write(site, hook, ("file: webhook.token", "file: not-there"))
        with pytest.raises(ScopeError, match="not-there: no such file"):
            lifecycle.reload(cause)
        write(site, other, ("name: on-call", "name: pager"))
        lifecycle.reload(cause)
        assert other.next().body["receiver"] == "pager"
        write(site, other, ("state: alerts/state.json", "state: alerts/other.json"))
        note = lifecycle.reload(cause).note
        assert note is not None
        assert "spec.alerts.state: a restart is needed" in note


WRONG = {
    ("name: on-call", "name: on call"): "malformed value (at spec.alerts.receivers[0].name)",
    ("file: webhook.token", "fil: x"): 'unknown key "fil"',
    ("{file: webhook.token}", "{file: a, env: B}"): "spec.alerts.receivers[0].secret",
    ("for_s: 0", "for_s: -1"): "out of range (at spec.alerts.for_s)",
    ("for_s: 0", "for: 5m"): 'unknown key "for" (at spec.alerts.for). Did you mean "for_s"?',
    ('"ADDRESS"', '"ftp://x/"'): "malformed value (at spec.alerts.receivers[0].url)",
    ('"ADDRESS"', '"http://somewhere.example/"'): "15:30: receiver on-call: a secret is not sent "
    "over plain HTTP (at spec.alerts.receivers[0].url); found somewhere.example; expected https://",
    (
        "[tenant]",
        "[severity]",
    ): "a label that every alert has already (at spec.alerts.request_labels)",
    ("[warning, critical]", "[loud]"): "unknown value (at spec.alerts.receivers[0].severities[0])",
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_with_its_place(tmp_path: Path, case: tuple[str, str]) -> None:
    old, new = case
    text = CONFIG.replace(ADDRESS, "ADDRESS").replace(old, new).replace("ADDRESS", ADDRESS)
    (tmp_path / "scope.yaml").write_text(text)
    with pytest.raises(PolicyErrors) as refused:
        load_config(tmp_path / "scope.yaml")
    assert WRONG[case] in str(refused.value)


def test_two_receivers_of_one_name_are_refused(tmp_path: Path) -> None:
    line = next(line for line in CONFIG.splitlines() if "on-call" in line)
    (tmp_path / "scope.yaml").write_text(CONFIG + line + "\n")
    with pytest.raises(PolicyErrors, match="two receivers have one name"):
        load_config(tmp_path / "scope.yaml")


# -- commands against receivers


def test_send_test_tells_each_receiver_and_says_what_came_of_it(
    site: Path, hook: Hook, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["alerts", "send-test", "--config", str(site / "scope.yaml")]
    assert main(command) == 0
    assert capsys.readouterr().out == "on-call: delivered: 200 OK\n"
    assert [got.body["status"] for got in hook.got] == ["firing", "resolved"]
    assert hook.got[0].body["alerts"][0]["labels"]["alertname"] == "scope-test"
    hook.status = 401
    assert main([*command, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    assert said["sent"][0]["answer"].startswith("401 Unauthorized")
    assert main([*command, "--receiver", "nobody"]) == 2
    assert "no such receiver; found nobody; expected on-call" in capsys.readouterr().err


def letters(path: Path, *ids: str, receiver: str = "on-call") -> None:
    from scope_runtime.alerts.files import append_letters

    body: dict[str, Any] = {"version": "4", "status": "firing"}
    append_letters(
        path, [(Notification(receiver, {**body, "id": id}, 0.0, 0.0, id), "why") for id in ids]
    )


def test_replay_sends_dead_letters_once_and_in_order(
    site: Path, hook: Hook, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = site / "alerts" / "dead.jsonl"
    letters(dead, "a", "b", "c")
    letters(dead, "x", receiver="gone")
    command = ["alerts", "replay", str(dead), "--config", str(site / "scope.yaml")]
    hook.status = 500
    assert main(command) == 1
    out = capsys.readouterr().out
    assert out.count("NOT DELIVERED") == 4
    assert "on-call b: NOT DELIVERED: not tried: an earlier one failed" in out
    assert [got.body["id"] for got in hook.got] == ["a"]
    hook.status = 200
    assert main(command) == 1  # one is for nobody
    assert [got.body["id"] for got in hook.got] == ["a", "a", "b", "c"]
    assert hook.got[-1].headers["Idempotency-Key"] == "c"
    capsys.readouterr()
    assert main([*command, "--receiver", "on-call"]) == 0
    assert capsys.readouterr().out == "nothing to send\n"
    letters(dead, "d")
    assert main([*command, "-r", "on-call"]) == 0
    assert main([*command, "-r", "on-call", "--again"]) == 0
    assert [got.body["id"] for got in hook.got][4:] == ["d", "a", "b", "c", "d"]


def test_every_command_of_the_page_runs(
    site: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(site)
    monkeypatch.setenv("SCOPE_CONTROL", str(site / "control.sock"))
    letters(Path("alerts/dead.jsonl"), "a")
    lines = re.findall(r"^\$ scope (.*)$", PAGE, re.MULTILINE)
    assert len(lines) == 4
    with configured(load_config("scope.yaml")):
        for line in lines:
            assert main(line.split()) == 0, line + capsys.readouterr().err


def test_the_page_names_every_key_as_the_schema_describes_it() -> None:
    from scope_runtime.lifecycle.config import SCHEMA_PATH
    from scope_runtime.policy.schema import schema

    tree = schema(SCHEMA_PATH)
    keys = tree["properties"]["spec"]["properties"]["alerts"]["properties"]
    for name, node in keys.items():
        assert f"| `{name}` | {node['description']} | {node['x-change']} |" in PAGE
    for name, node in tree["$defs"]["receiver"]["properties"].items():
        assert f"| `{name}` | {node['description']} |" in PAGE
