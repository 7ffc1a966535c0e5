"""``scope.yaml`` is checked like a policy, and says which of its keys a reload takes up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scope_runtime.audit import AuditOptions, OnFailure
from scope_runtime.errors import PolicyErrors
from scope_runtime.lifecycle.config import changes, load_config
from tests.conftest import Scope
from tests.lifecycle.conftest import Site, until

TEXT = """\
apiVersion: scope/v1
kind: Runtime
spec:
  model: {{path: {model}, ctx: 512, threads: 1}}
  policy: {{path: policies, state: state, poll_s: 600}}
  control: {{socket: control.sock}}
"""


def write(site: Site, text: str = TEXT) -> Path:
    path = site.folder.parent / "scope.yaml"
    path.write_text(text.format(model=site.model), encoding="utf-8")
    return path


def test_paths_are_relative_to_the_file_and_the_rest_has_its_defaults(site: Site) -> None:
    config = load_config(write(site))
    assert config.policy == site.folder
    assert config.control == site.folder.parent / "control.sock"
    assert (config.n_ctx, config.n_gpu_layers, config.audit) == (512, 0, None)
    assert (config.options.poll_s, config.options.debounce_ms, config.options.keep) == (600, 10, 10)


WRONG = {
    ("threads: 1", "thread: 1"): '4:35: unknown key "thread" (at spec.model.thread). Did you mean',
    ("ctx: 512", "ctx: 4"): "4:30: out of range (at spec.model.ctx); found the number 4",
    ("kind: Runtime", "kind: SteeringPolicy"): "2:7: wrong value (at kind)",
    ("poll_s: 600", "fail: maybe"): "unknown value (at spec.policy.fail)",
    ("poll_s: 600", "path: twice"): 'duplicate key "path"',
    (
        "control: {{socket: control.sock}}",
        "audit: {{path: a.jsonl, on_failure: ignore}}",
    ): 'unknown value (at spec.audit.on_failure); found "ignore"',
    (
        "control: {{socket: control.sock}}",
        "audit: {{path: a.jsonl, retention_days: never}}",
    ): "(at spec.audit.retention_days)",
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_with_its_place(site: Site, case: tuple[str, str]) -> None:
    path = write(site, TEXT.replace("{model}", "m.gguf").replace(*case))
    with pytest.raises(PolicyErrors) as refused:
        load_config(path)
    assert WRONG[case] in str(refused.value)


def test_the_audit_log_is_kept_as_the_file_says(site: Site) -> None:
    bare = load_config(write(site, TEXT + "  audit: {{path: audit/log.jsonl}}\n")).audit
    assert bare == AuditOptions(site.folder.parent / "audit" / "log.jsonl")
    every = (
        "  audit: {{path: log.jsonl, on_failure: drop, key: a.key, origin: here, rotate_bytes: 5000,"
        " rotate_days: 0.5, retention_days: forever, compress: true, checkpoint_s: 5,"
        " queue_records: 7}}\n"
    )
    given = load_config(write(site, TEXT + every)).audit
    assert given == AuditOptions(
        site.folder.parent / "log.jsonl",
        OnFailure.DROP,
        key=site.folder.parent / "a.key",
        origin="here",
        rotate_bytes=5000,
        rotate_s=43200.0,
        retention_s=None,
        compress=True,
        checkpoint_s=5.0,
        queue_records=7,
    )
    assert {f"spec.audit.{key}" for key in yaml.safe_load(every.format())["audit"]} == {
        key for key, how in changes() if key.startswith("spec.audit.") and how == "restart"
    }
    week = load_config(write(site, TEXT + "  audit: {{path: log.jsonl, retention_days: 7}}\n"))
    assert week.audit is not None
    assert week.audit.retention_s == 7 * 86400


def test_every_key_says_what_a_change_of_it_needs(site: Site, scope: Scope) -> None:
    assert {how for _, how in changes()} == {"reload", "restart"}
    shown = scope("host", write(site), "--check").stdout
    assert "restart  spec.model.path\n" in shown
    assert "reload   spec.policy.poll_s\n" in shown


def test_a_host_answers_and_takes_up_what_a_reload_can(site: Site, scope: Scope) -> None:
    config = write(site)
    control = ("--control", site.folder.parent / "control.sock")
    command = [str(Path(sys.executable).with_name("scope")), "host", str(config)]
    said = site.folder.parent / "stderr"
    with (
        said.open("w") as stderr,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(line: str) -> dict[str, object]:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer: dict[str, object] = json.loads(process.stdout.readline())
            return answer

        try:
            asked = json.dumps({"prompt": "one", "max_tokens": 2, "seed": 1})
            first = ask(asked)
            assert first["revisions"]
            assert ask('{"nonsense": 1}')["message"] == "not a prompt"
            write(site, TEXT.replace("poll_s: 600", "poll_s: 0.01").replace("ctx: 512", "ctx: 600"))
            done = scope("reload", *control)
            assert "note: " in done.stdout
            assert "spec.model.ctx: a restart is needed" in done.stdout
            hints = json.loads(scope("status", "--json", *control).stdout)["hints"]
            assert "digests every 0.01 s" in hints
            site.replace(site.text_with("0.25"))
            until(
                lambda: ask(asked)["revisions"] != first["revisions"],
                "the next answer is under the new policy",
            )
            # All or nothing (behaviour 10): sound settings beside a policy that is not are not taken up either.
            write(site, TEXT.replace("poll_s: 600", "poll_s: 0.02"))
            sound = site.policy.read_text()
            site.replace("nonsense: [")
            assert scope("reload", *control).returncode == 1
            told = said.read_text()
            assert "policy: swapped sha256:" in told
            assert f"  {site.policy}:1:1" in told[told.index("policy: refused sha256:") :]
            assert "every 0.01 s" in scope("status", *control).stdout
            site.replace(sound)
            assert scope("reload", *control).returncode == 0
            assert "every 0.02 s" in scope("status", *control).stdout
            write(site, "nonsense: [")
            refused = scope("reload", *control)
            assert refused.returncode == 1
            assert "scope.yaml:1:" in refused.stderr
        finally:
            process.stdin.close()
            process.wait()
    assert process.returncode == 0
