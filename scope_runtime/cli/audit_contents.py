"""``scope audit redact`` and ``claim``: prompts and outputs that a policy keeps beside the log."""

from __future__ import annotations

import getpass
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from scope_runtime.audit.contents import Sealed, sealed_in
from scope_runtime.audit.log import AuditLog
from scope_runtime.audit.openings import all_openings
from scope_runtime.audit.options import AuditOptions, OnFailure
from scope_runtime.audit.query import parse_time
from scope_runtime.audit.read import Query, read
from scope_runtime.audit.redact import Redaction, Selection
from scope_runtime.audit.segments import find_logs
from scope_runtime.cli.audit_read import LogArgument
from scope_runtime.cli.options import JsonOption
from scope_runtime.errors import AuditError, Location, UsageError

NOT_THE_ONE = 1


def redact(
    log: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="The log. Of a running process: --control instead."),
    ] = None,
    request: Annotated[
        str | None, typer.Option("--request", metavar="ID", help="What this request left.")
    ] = None,
    before: Annotated[
        str | None,
        typer.Option(
            "--before", metavar="TIME", help="What all requests before then left: 2026-11-21, 30d."
        ),
    ] = None,
    reason: Annotated[
        str, typer.Option("--reason", "-r", metavar="TEXT", help="Why; it goes on record.")
    ] = "",
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", help="The key that signs the log's checkpoints."),
    ] = None,
    control: Annotated[
        Path | None,
        typer.Option(
            "--control",
            metavar="SOCKET",
            envvar="SCOPE_CONTROL",
            help="Ask the process that writes the log, at its control socket.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Erase prompts and outputs that are kept beside a log; the log still verifies.

    Who did it, when and why goes on record in the log itself. A log that a process is writing is
    redacted through its control socket.

    \b
    Examples:
      scope audit redact audit.jsonl --key audit.key --request 7c1f… --reason "erasure request 12"
      scope audit redact --control control.sock --before 90d --reason "kept for 90 days"
    """
    if not reason.strip():
        raise UsageError("no reason is given", hint="Give --reason TEXT: it goes on record")
    selection = Selection(request, parse_time(before, time.time()) if before else None)
    if log is None and control is None:
        raise UsageError("no log is given", expected="FILE, or --control SOCKET")
    if log is not None:
        done = _redact_here(log, key, selection, reason)
    else:
        done = _redact_there(Path(str(control)), selection, reason)
    if as_json:
        typer.echo(json.dumps({"n_openings": done.n_openings, "n_requests": done.n_requests}))
        return
    typer.echo(f"{done.n_openings} prompts and outputs of {done.n_requests} requests erased")


def _redact_here(path: Path, key: Path | None, selection: Selection, reason: str) -> Redaction:
    [files] = find_logs([path])
    signed = files.checkpoint.exists() and "\n\n\u2014" in files.checkpoint.read_text("utf-8")
    if signed and key is None:
        raise UsageError(
            "the log's checkpoints are signed", hint="Give its signing key with --key FILE"
        )
    # As it was set up, segments stay as they are: neither rotated nor expired nor compressed here.
    options = AuditOptions(
        files.path, OnFailure.STOP, key=key, rotate_s=1e18, rotate_bytes=1 << 60, retention_s=None
    )
    log = AuditLog(options)
    try:
        return log.redact(selection, f"{getpass.getuser()} (uid {os.getuid()})", reason)
    finally:
        log.close()


def _redact_there(socket: Path, selection: Selection, reason: str) -> Redaction:
    from scope_runtime.lifecycle.client import ControlClient

    which = {key: str(value) for key, value in selection.fields().items()}
    with ControlClient(socket) as client:
        said = client.post("/-/redact", {"reason": reason, **which})
    return Redaction(said["n_openings"], said["n_requests"])


def claim(
    log: LogArgument,
    request: Annotated[str, typer.Option("--request", metavar="ID", help="Of this request.")],
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="FILE", help="The claimed prompt, as the model saw it."),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", metavar="FILE", help="The claimed answer; - is stdin.")
    ] = None,
) -> None:
    """Tell whether a claimed prompt or answer is the one that the log committed to.

    Works where a policy keeps texts and where it keeps commitments alone; the bytes must be the same.
    Exit code 0: it is the one; 1: it is not.

    \b
    Examples:
      scope audit claim audit.jsonl --request 7c1f… --output answer.txt
    """
    claims = {"prompt": prompt, "output": output}
    if prompt is None and output is None:
        raise UsageError("nothing is claimed", expected="--prompt FILE or --output FILE")
    [files] = find_logs([log])
    # Clients choose the ids of requests, so several may have one.
    sealed: dict[str, list[Sealed]] = {}
    for record in read(files, Query(request=request)):
        for each in sealed_in(record):
            sealed.setdefault(each.name, []).append(each)
    found = all_openings(files, {each.text for these in sealed.values() for each in these})
    same = True
    for name, source in claims.items():
        if source is None:
            continue
        if name not in sealed:
            raise AuditError(
                f"the log has no {name} of this request on record",
                found=request,
                hint="A policy must ask for it: spec.audit",
            )
        there = [(each, found[each.text]) for each in sealed[name] if each.text in found]
        claimed = _text(source)
        is_it = any(opening.is_of(each, text=claimed) for each, opening in there)
        if not is_it and len(there) < len(sealed[name]):
            raise AuditError(f"the {name} was redacted, or its salt is not here", found=request)
        others = f", of {len(sealed[name])} by this id" if len(sealed[name]) > 1 else ""
        typer.echo(f"{name}: {'the one on record' if is_it else 'not the one on record'}{others}")
        same = same and is_it
    if not same:
        raise typer.Exit(NOT_THE_ONE)


def _text(source: str) -> str:
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError("cannot be read", location=Location(source), found=str(error)) from None
