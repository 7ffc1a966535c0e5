"""``scope status``, ``plan``, ``reload``, ``rollback``, ``off`` and ``on``: asking, and telling, a running process."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from scope_runtime.cli.options import JsonOption

ControlOption = Annotated[
    Path | None,
    typer.Option(
        "--control",
        metavar="SOCKET",
        envvar="SCOPE_CONTROL",
        help="The running process's control socket.  [default: the user's own]",
    ),
]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", "-r", metavar="TEXT", help="Why; goes on record.")
]
IfMatchOption = Annotated[
    str | None,
    typer.Option(
        "--if-match", metavar="REVISION", help="Only if this is the revision that is loaded."
    ),
]


def status(control: ControlOption = None, as_json: JsonOption = False) -> None:
    """Print what policies a running process obeys, and why not the ones you expect.

    \b
    Examples:
      scope status
      scope status --json | jq .policies[].revision
    """
    with control_client(control) as client:
        data = client.get("/-/policies")
    if as_json:
        print(json.dumps(data, ensure_ascii=False))
    else:
        _print_status(data)


def plan(control: ControlOption = None, as_json: JsonOption = False) -> None:
    """Print what a reload would change, without doing it.

    \b
    Examples:
      scope plan
      scope plan --json | jq .planned
    """
    with control_client(control) as client:
        data = client.get("/-/plan")
    if as_json:
        print(json.dumps(data, ensure_ascii=False))
        return
    if not data["changes"]:
        print(f"a reload changes nothing: {data['revision']}")
        return
    for word in ("added", "removed", "changed"):
        for name in data[word]:
            print(f"{word}: {name}")
    print(f"loaded:  {data['revision']}\nplanned: {data['planned']}")


def reload(
    reason: ReasonOption = None,
    if_match: IfMatchOption = None,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load the policies again, now; returns when they are in force, or with what is wrong with them.

    A changed file reloads by itself. This one waits for the result, and takes up the files again
    after a rollback.

    \b
    Examples:
      scope reload --reason "new thresholds"
      scope reload --json
    """
    _post("/-/reload", {"reason": reason}, control, as_json, if_match=if_match)


def rollback(
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="REVISION", help="Which.  [default: the one before]"),
    ] = None,
    reason: ReasonOption = None,
    if_match: IfMatchOption = None,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put an earlier revision in force, and keep it until the files change or somebody reloads.

    `scope status` lists the revisions that are kept.

    \b
    Examples:
      scope rollback --reason "false alarms"
      scope rollback --to $(scope status --json | jq -r .kept[2].revision)
    """
    _post("/-/rollback", {"reason": reason, "to": to}, control, as_json, if_match=if_match)


def off(
    reason: ReasonOption = None, control: ControlOption = None, as_json: JsonOption = False
) -> None:
    """Stop all steering by the next token. Stays off, also over a restart, until `scope on`.

    \b
    Examples:
      scope off --reason "incident 42"
    """
    _post("/-/off", {"reason": reason}, control, as_json)


def on(
    reason: ReasonOption = None, control: ControlOption = None, as_json: JsonOption = False
) -> None:
    """Steer again after `scope off`.

    \b
    Examples:
      scope on --reason "incident 42 is over"
    """
    _post("/-/on", {"reason": reason}, control, as_json)


def control_client(control: Path | None) -> Any:
    """A client of the process that serves at a socket; the user's own without one."""
    from scope_runtime.lifecycle.client import ControlClient, default_socket

    return ControlClient(control or default_socket())


def _post(
    path: str,
    body: dict[str, str | None],
    control: Path | None,
    as_json: bool,
    *,
    if_match: str | None = None,
) -> None:
    with control_client(control) as client:
        done = client.post(path, body, if_match=if_match)
    if as_json:
        print(json.dumps(done, ensure_ascii=False))
        return
    if "policies" in done:
        _print_status(done)
    else:
        word = "in force" if done["changed"] else "in force already"
        print(f"{done['revision']} {word}")
    if done.get("note"):
        print(f"note: {done['note']}")


def _print_status(data: dict[str, Any]) -> None:
    off_now = data["off"]
    if off_now:
        why = f": {off_now['reason']}" if off_now["reason"] else ""
        print(f"OFF since {local_time(off_now['time'])} by {off_now['actor']}{why}")
    seen = "acknowledged" if data["acknowledged"] else "waits for its first token"
    print(f"in force  {data['revision']} ({seen})")
    if data["effect"]:
        print(f"effect    {data['effect']}")
    if off_now:
        print(f"loaded    {data['loaded']}")
    print(f"source    {data['source']} ({data['hints']})")
    _print_bundle(data["bundle"])
    if data["held"]:
        print("          rolled back: held until the source changes, or `scope reload`")
    for policy in data["policies"]:
        generation = "" if policy["generation"] is None else f", generation {policy['generation']}"
        owner = f", {policy['owner']}" if policy["owner"] else ""
        print(
            f"policy    {policy['name']} ({policy['mode']}{generation}{owner}) {policy['revision']}"
        )
    last = data["last_reload"]
    if last:
        went = "well" if data["success"] else "REFUSED"
        print(f"reload    {local_time(last['time'])} by {last['trigger']}: {went}")
        for line in (last["text"] or "").splitlines():
            print(f"          {line}")
    if data["trouble"]:
        print(f"trouble   {data['trouble']}")
    log = data["audit"]
    if log is not None and log["error"]:
        print(f"audit     cannot be written ({log['on_failure']}): {log['error']}")
    for kept in data["kept"]:
        print(
            f"kept      {kept['revision']} {local_time(kept['time'])} {', '.join(kept['policies'])}"
        )


def _print_bundle(bundle: dict[str, Any] | None) -> None:
    if bundle is None:
        return
    by = f"signed by {bundle['signed_by']}" if bundle["signed_by"] else "unsigned"
    checked = "" if bundle["verified"] else ", no key is configured"
    if bundle["digest"]:
        print(f"bundle    {bundle['digest']} ({by}{checked})")
    if bundle["text"]:
        since = f" since {local_time(bundle['last_good'])}" if bundle["last_good"] else ""
        stale = "STALE, " if bundle["stale"] else ""
        print(f"          {stale}not fetched{since}: {bundle['text']}")


def local_time(seconds: float) -> str:
    """A time of records, as people here read it."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
