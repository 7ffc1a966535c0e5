"""The command line: exit codes, exact messages, JSON, help; and each command once on a real (tiny) model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scope_runtime import __version__
from scope_runtime.cli import main as cli
from scope_runtime.cli.commands import COMMANDS, load
from scope_runtime.cli.explain import amount
from scope_runtime.cli.options import parse_labels
from scope_runtime.errors import Location, PolicyError, PolicyErrors, UsageError
from scope_runtime.policy.model import Op, Positions, PositionsOf, Rollout, Rule, Unit, When
from scope_runtime.visible import visible
from tests.conftest import Scope, Tiny

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command line in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


# -- messages and exit codes


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["run", "-m", "m.gguf", "-p", "hi"],
            2,
            "error: no policy is given. Give --policy FILE, or --no-policy\n",
        ),
        (
            ["run", "-m", "m.gguf", "-p", "hi", "--no-policy", "--compare"],
            2,
            "error: --compare needs a policy to compare with. Give --policy FILE\n",
        ),
        (
            ["run", "-m", "m.gguf", "-p", " ", "--no-policy"],
            2,
            "error: the prompt is empty. Give --prompt TEXT, or - and text on stdin\n",
        ),
        (
            ["run", "-m", "m.gguf", "-p", "hi", "--no-policy", "--raw", "--system", "s"],
            2,
            "error: --system needs the chat template, and --raw leaves it out\n",
        ),
        (
            ["run", "-m", "m.gguf", "-p", "hi", "--no-policy", "--labels", "tenant"],
            2,
            "error: a label is not a pair; found 'tenant'; expected key=value\n",
        ),
        (
            ["run", "-m", "absent.gguf", "-p", "hi", "--no-policy"],
            1,
            "error: absent.gguf: no such file\n",
        ),
    ],
)
def test_expected_errors_are_one_line(
    call: Cli, arguments: list[str], code: int, message: str
) -> None:
    assert call(*arguments) == (code, "", message)


def test_expected_errors_as_json(call: Cli) -> None:
    code, out, err = call("run", "-m", "absent.gguf", "-p", "hi", "--no-policy", "--json")
    assert (code, err) == (1, "")
    error = json.loads(out)
    assert (error["error"], error["message"], error["file"]) == (
        "ModelError",
        "no such file",
        "absent.gguf",
    )


def _raise(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)


def test_several_errors_are_a_line_each(call: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    first = PolicyError("bad key", location=Location("p.yaml", 3, 5))
    second = PolicyError("bad value", location=Location("p.yaml", 9))
    _raise(monkeypatch, PolicyErrors((first, second)))
    assert call() == (1, "", "error: p.yaml:3:5: bad key\nerror: p.yaml:9: bad value\n")


def test_unexpected_errors_keep_their_traceback(call: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _raise(monkeypatch, RuntimeError("boom"))
    code, out, err = call("doctor", "--json")
    assert (code, out) == (cli.FAULT, "")
    assert "Traceback" in err
    assert "RuntimeError: boom" in err
    assert f"This is a fault in scope {__version__}" in err


def test_interrupt_is_130(call: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _raise(monkeypatch, KeyboardInterrupt())
    assert call()[0] == 130


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["run", "--no-such-option"],
        ["run", "-m", "m.gguf"],
        ["run", "-m", "m.gguf", "-p", "hi", "--max-tokens", "0"],
        ["run", "-m", "m.gguf", "-p", "hi", "--temperature", "-1"],
        ["explain"],
    ],
)
def test_wrong_usage_is_2(call: Cli, arguments: list[str]) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert "Error" in err
    assert "Traceback" not in err


# -- help, version, completion


def test_version(call: Cli) -> None:
    assert call("--version") == (0, f"scope {__version__}\n", "")


def test_root_help_lists_every_command(call: Cli) -> None:
    code, out, _ = call("--help")
    assert code == 0
    listed = dict(re.findall(r"^  ([a-z-]+) +(.*)$", out.split("Commands:")[1], re.MULTILINE))
    assert listed == {name: entry.summary for name, entry in COMMANDS.items()}


def leaves(name: str, command: Any) -> list[tuple[str, ...]]:
    if not hasattr(command, "list_commands"):
        return [(name,)]
    inner = [(each, command.get_command(None, each)) for each in command.list_commands(None)]
    return [(name, *rest) for each, found in inner for rest in leaves(each, found)]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_examples(call: Cli, name: str) -> None:
    for words in leaves(name, load(name, COMMANDS[name])):
        for flag in ("--help", "-h"):
            code, out, _ = call(*words, flag)
            assert code == 0
        assert f"scope {' '.join(words)}" in out.partition("Examples:")[2], f"{words}: no example"


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from scope_runtime.cli.main import main\n"
        "main(['--help'])\n"
        "heavy = {'numpy', 'llama_cpp', 'torch', 'yaml', 'jsonschema', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {sorted(heavy)}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_completion_script(scope: Scope) -> None:
    command = Path(sys.executable).with_name("scope")
    done = subprocess.run(
        [str(command)],
        env={**os.environ, "_SCOPE_COMPLETE": "source_bash"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert "complete" in done.stdout
    assert "scope" in done.stdout


# -- as a process


@pytest.mark.parametrize(
    "arguments", ["explain '{0.policy}'", "run -m '{0.model}' --no-policy -p x -q -n 300"]
)
def test_closed_pipe_is_quiet(tiny: Tiny, arguments: str) -> None:
    command = Path(sys.executable).with_name("scope")
    line = f"'{command}' {arguments.format(tiny)} | true"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr


def test_ctrl_c_is_quiet(tiny: Tiny) -> None:
    command = Path(sys.executable).with_name("scope")
    process = subprocess.Popen(
        [command, "run", "-m", tiny.model, "--no-policy", "-p", "x", "-n", "100000", "-c", "4096"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.read(1)  # it answers
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode in (130, 0), err  # 0: it had run into its context's end
    assert b"Traceback" not in err


HALF_WRITTEN = """
import signal, sys
from scope_runtime.cli import main
from scope_runtime.errors import PackError
from scope_runtime.files import written_whole

def halfway(arguments):
    with written_whole("out.gguf", PackError) as path:
        path.write_text("half")
        print("ready", flush=True)
        signal.pause()

main.main = halfway
main.run()
"""


def test_a_termination_leaves_nothing_half_written(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HALF_WRITTEN], stdout=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    assert list(tmp_path.iterdir())
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


# -- run


def test_run_streams_and_reports(scope: Scope, tiny: Tiny, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    done = scope(
        *("run", "-m", tiny.model, "-P", tiny.policy, "-p", "hello", "-n", 12),
        *("--temperature", 0, "--audit", audit, "--labels", "tenant=acme"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")
    for rule in ("quiet", "push", "watch"):
        assert rule in done.stderr
    events = [json.loads(line) for line in audit.read_text().splitlines()]
    labels = [event["labels"] for event in events if event["kind"] == "request"]
    assert labels
    assert all(each == {"tenant": "acme"} for each in labels)


def test_run_json_is_the_same_answer(scope: Scope, tiny: Tiny) -> None:
    ask = ("run", "-m", tiny.model, "-P", tiny.policy, "-n", 8, "--temperature", 0)
    plain = scope(*ask, "-p", "hello", "--quiet")
    data = json.loads(scope(*ask, "-p", "-", "--json", stdin="hello\n").stdout)
    assert plain.stderr == ""
    assert data["text"] + "\n" == plain.stdout
    assert data["finish_reason"] in ("stop", "length")
    assert data["revisions"][0]["revision"].startswith("sha256:")
    assert {event["rule"] for event in data["report"] if event["what"] == "rule"} == {
        "quiet",
        "push",
        "watch",
    }


def test_compare_puts_both_side_by_side(scope: Scope, tiny: Tiny) -> None:
    ask = ("run", "-m", tiny.model, "-P", tiny.policy, "-p", "hello", "-n", 8, "--compare")
    shown = scope(*ask)
    assert shown.returncode == 0, shown.stderr
    assert "unsteered" in shown.stdout
    assert "under tiny" in shown.stdout
    both = json.loads(scope(*ask, "--json", "--temperature", 0).stdout)
    assert both["unsteered"]["tokens"] != both["steered"]["tokens"]
    assert both["unsteered"]["revisions"][0]["revision"] == "none"


def test_no_policy_is_the_unsteered_answer(scope: Scope, tiny: Tiny) -> None:
    ask = ("run", "-m", tiny.model, "-P", tiny.policy, "-p", "hello", "-n", 8, "--temperature", 0)
    plain = json.loads(scope(*ask, "--no-policy", "--json").stdout)
    both = json.loads(scope(*ask, "--compare", "--json").stdout)
    assert plain["tokens"] == both["unsteered"]["tokens"]


def test_a_bad_policy_answers_nothing(scope: Scope, tiny: Tiny) -> None:
    bad = tiny.policy.with_name("bad.yaml")
    bad.write_text(tiny.policy.read_text().replace("alpha: 0.5", "alpa: 0.5"), encoding="utf-8")
    done = scope("run", "-m", tiny.model, "-P", bad, "-p", "hello")
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"error: {bad}:11:36: unknown key" in done.stderr
    assert "alpa" in done.stderr


# -- explain and doctor


def test_explain(scope: Scope, tiny: Tiny) -> None:
    done = scope("explain", tiny.policy, "-m", tiny.model)
    assert done.returncode == 0, done.stderr
    for word in ("tiny (enforce)", "qwen3", "alpha 0.5 residual, in the generation", "above -1"):
        assert word in done.stdout
    data = json.loads(scope("explain", tiny.policy, "-m", tiny.model, "--json").stdout)
    assert [(each["layer"], [r["rule"] for r in each["rules"]]) for each in data["layers"]] == [
        (1, ["quiet"]),
        (2, ["quiet", "push", "watch"]),
    ]
    without_model = json.loads(scope("explain", tiny.policy, "--json").stdout)
    assert without_model["program"] == data["program"]


def test_doctor_proves_the_layers(scope: Scope, tiny: Tiny) -> None:
    done = scope("doctor", "-m", tiny.model, "--cost")
    assert done.returncode == 0, done.stderr
    assert "proved: the same logits, bit for bit" in done.stdout
    assert "WRONG" not in done.stdout
    data = json.loads(scope("doctor", "-m", tiny.model, "--json").stdout)
    assert data["attach"]["callback"] is True
    assert all(layer["changes_logits"] for layer in data["layers"])


def test_doctor_without_a_model(scope: Scope) -> None:
    done = scope("doctor")
    assert done.returncode == 0, done.stderr
    assert "llama-cpp-python" in done.stdout


# -- small parts


def test_labels() -> None:
    assert parse_labels(["a=b", "c=d=e", "f="]) == {"a": "b", "c": "d=e", "f": ""}
    with pytest.raises(UsageError, match="given twice"):
        parse_labels(["a=b", "a=c"])


def test_control_characters_cannot_move_the_cursor() -> None:
    assert visible("a\x1b[2J\tb\n\x07\x7f\x9b") == "a␛[2J\tb\n␇␡\ufffd"


def test_amount_in_words() -> None:
    rule = Rule(
        name="r",
        op=Op.AMPLIFY,
        targets=("x",),
        mode=None,
        when=When(positions=Positions(2, None, PositionsOf.ANSWER)),
        alpha=0.15,
        unit=Unit.RESIDUAL,
        rollout=Rollout(10, "tenant"),
    )
    assert (
        amount(rule) == "alpha 0.15 residual, at positions from 2 of the answer, for 10 % by tenant"
    )
