"""``scope alerts``: what fires in a running process; whether receivers can be told; dead letters, told again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from scope_runtime.cli.control import ControlOption, control_client, local_time
from scope_runtime.cli.options import JsonOption

NOT_TOLD = 1

app = typer.Typer(
    name="alerts",
    add_completion=False,
    rich_markup_mode=None,
    help="Look at a running process' alerts, and at whom they concern.",
)

ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config", "-c", metavar="CONFIG", help="The configuration that has the receivers."
    ),
]
ReceiverOption = Annotated[
    list[str] | None,
    typer.Option("--receiver", "-r", metavar="NAME", help="Only this one; may be repeated."),
]


@app.callback(invoke_without_command=True)
def alerts(
    context: typer.Context, control: ControlOption = None, as_json: JsonOption = False
) -> None:
    """Print what is pending and firing in a running process, since when, and what is not delivered.

    \b
    Examples:
      scope alerts
      scope alerts --json | jq .alerts[].labels
      scope alerts send-test --config scope.yaml
      scope alerts replay alerts/dead.jsonl --config scope.yaml
    """
    if context.invoked_subcommand is not None:
        return
    with control_client(control) as client:
        data = client.get("/-/alerts")
    if as_json:
        print(json.dumps(data, ensure_ascii=False))
    else:
        _print(data)


def _print(data: dict[str, Any]) -> None:
    if not data["alerts"]:
        print("nothing fires")
    for alert in data["alerts"]:
        own = dict(alert["labels"])
        name, policy, severity = own.pop("alertname"), own.pop("policy"), own.pop("severity")
        told = "" if alert["webhook"] else ", receivers are not told"
        labels = "".join(f", {key}={value}" for key, value in own.items())
        print(f"{alert['state']:9} {name} of {policy} ({severity}{labels}{told})")
        print(f"          since {local_time(alert['starts_at'])}, fired {alert['n_firings']} times")
    for each in data["receivers"]:
        print(
            f"receiver  {each['name']}: {each['delivered']} delivered, {each['waiting']} waiting, "
            f"{each['failed']} failed attempts, {each['dead']} dead letters"
        )
        if each["error"]:
            since = local_time(each["oldest_at"])
            print(f"          undelivered since {since}: {each['error']}")
    if data["folded"]:
        print(f"folded    {data['folded']} firings: too many alerts to tell requests apart")
    if data["trouble"]:
        print(f"trouble   {data['trouble']}")


@app.command("send-test")
def send_test(
    config: ConfigOption = Path("scope.yaml"),
    receiver: ReceiverOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send every receiver an alert named scope-test, then its end; say what came of it.

    Exit code 0: all were told; 1: some were not.

    \b
    Examples:
      scope alerts send-test --config scope.yaml
      scope alerts send-test -c scope.yaml --receiver pager
    """
    from scope_runtime.alerts.send import Verdict, send
    from scope_runtime.alerts.trial import trial_bodies

    options, receivers = _receivers(config, receiver)
    done = []
    for each in receivers:
        for body in trial_bodies(each.name, options, time.time()):
            attempt = send(each, body, f"test-{time.time_ns():x}", now=time.time())
            if attempt.verdict is not Verdict.DELIVERED:
                break
        done.append((each.name, attempt.verdict is Verdict.DELIVERED, attempt.words))
    _report(done, as_json)


@app.command()
def replay(
    letters: Annotated[
        Path, typer.Argument(metavar="DEADLETTERS", help="The file of dead letters.")
    ],
    config: ConfigOption = Path("scope.yaml"),
    receiver: ReceiverOption = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also those that were replayed before.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Send dead letters again, oldest first, each to the receiver that it was for.

    What was delivered is noted beside the file (DEADLETTERS.replayed) and not sent again. After a
    failure the receiver's later letters are left alone, so that none overtakes another. Exit code
    0: all were delivered; 1: some were not.

    \b
    Examples:
      scope alerts replay alerts/dead.jsonl --config scope.yaml
      scope alerts replay alerts/dead.jsonl -c scope.yaml --receiver pager
    """
    from scope_runtime.alerts.files import note_replayed, read_letters, read_replayed
    from scope_runtime.alerts.send import Verdict, send

    _, wanted = _receivers(config, receiver)
    known = {each.name: each for each in wanted}
    replayed = set() if again else set(read_replayed(letters))
    done, failed = [], set()
    for letter in read_letters(letters):
        if letter.id in replayed or (receiver and letter.receiver not in known):
            continue
        replayed.add(letter.id)
        name = f"{letter.receiver} {letter.id}"
        to = known.get(letter.receiver)
        if to is None:
            done.append((name, False, f"{config} has no such receiver"))
        elif letter.receiver in failed:
            done.append((name, False, "not tried: an earlier one failed"))
        else:
            attempt = send(to, letter.body, letter.id, now=time.time())
            ok = attempt.verdict is Verdict.DELIVERED
            if ok:
                note_replayed(letters, letter.id)
            else:
                failed.add(letter.receiver)
            done.append((name, ok, attempt.words))
    _report(done, as_json)


def _receivers(config: Path, names: list[str] | None) -> tuple[Any, list[Any]]:
    from scope_runtime.errors import Location, UsageError
    from scope_runtime.lifecycle.config import load_config

    options = load_config(config).alerts
    known = {each.name: each for each in options.receivers}
    for name in names or known or [""]:
        if name not in known:
            raise UsageError(
                "no such receiver" if name else "there are no receivers",
                location=Location(str(config)),
                found=name or None,
                expected=", ".join(known) or "some in spec.alerts.receivers",
            )
    return options, [known[name] for name in names or known]


def _report(done: list[tuple[str, bool, str]], as_json: bool) -> None:
    if as_json:
        rows = [{"name": name, "ok": ok, "answer": words} for name, ok, words in done]
        print(json.dumps({"ok": all(ok for _, ok, _ in done), "sent": rows}, ensure_ascii=False))
    else:
        for name, ok, words in done:
            print(f"{name}: {'delivered' if ok else 'NOT DELIVERED'}: {words}")
        if not done:
            print("nothing to send")
    if not all(ok for _, ok, _ in done):
        raise typer.Exit(NOT_TOLD)
