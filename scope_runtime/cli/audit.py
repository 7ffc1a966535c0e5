"""``scope audit``: whether a log is whole, keys, proofs. Looking into a log is in audit_read.py."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from scope_runtime.audit.note import Checkpoint, PublicKey, SigningKey
from scope_runtime.audit.proof import FIRST_LINE, Proof, prove
from scope_runtime.audit.recover import read_checkpoint
from scope_runtime.audit.report import Report
from scope_runtime.audit.segments import find_logs
from scope_runtime.audit.verify import verify
from scope_runtime.cli import audit_contents, audit_read, audit_replay
from scope_runtime.cli.options import JsonOption
from scope_runtime.errors import AuditError, Location, UsageError
from scope_runtime.files import written_whole

DOES_NOT_VERIFY = 1

app = typer.Typer(
    name="audit",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look into audit logs, and show that nothing in them was changed.",
)
app.command()(audit_read.show)
app.command()(audit_read.tail)
app.command()(audit_read.query)
app.command()(audit_read.export)
app.command()(audit_contents.redact)
app.command()(audit_contents.claim)
app.command()(audit_replay.replay)

PublicKeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--public-key",
        "-k",
        metavar="KEY",
        help="A file with a public key, or the key itself; may be repeated: one of them must have signed.",
    ),
]


@app.command("verify")
def verify_logs(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE|DIR…",
            help="Logs (any segment stands for its log), directories of them, or .tlog-proof files.",
        ),
    ],
    public_key: PublicKeyOption = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint", metavar="FILE", help="A checkpoint that was kept elsewhere; repeatable."
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Earlier segments may be missing: this is a part.")
    ] = False,
    no_contents: Annotated[
        bool,
        typer.Option(
            "--no-contents", help="Do not look for prompts and outputs: this is a copy without."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check that no record was changed, removed, reordered, cut off or put in.

    Needs the files and a public key, nothing else; names the first bad record. Where prompts or
    outputs are kept beside the log, they must be what the records committed to, or redacted on
    record. Exit code 0: sound; 1: not sound; 2: wrong usage.

    \b
    Examples:
      scope audit verify audit.jsonl --public-key audit.pub
      scope audit verify /var/log/scope --public-key audit.pub --json
      scope audit verify audit.jsonl -k audit.pub --checkpoint kept-elsewhere.checkpoint
    """
    keys = [read_public_key(each) for each in public_key or []]
    kept = [_checkpoint(path) for path in checkpoint or []]
    if keys:
        for path, each in zip(checkpoint or [], kept, strict=True):
            if not any(key.signed(each.note) for key in keys):
                raise AuditError("is not signed by the public key", location=Location(str(path)))
    proofs = [path for path in paths if _is_proof(path)]
    logs = [path for path in paths if path not in proofs]
    documents = [_check_proof(path, keys) for path in proofs]
    reports = [
        verify(files, keys=keys, checkpoints=kept, partial=partial, contents=not no_contents)
        for files in (find_logs(logs) if logs else [])
    ]
    documents += [report.fields() for report in reports]
    ok = all(document["ok"] for document in documents)
    if as_json:
        typer.echo(json.dumps({"ok": ok, "logs": documents}, ensure_ascii=False))
    else:
        for document in documents[: len(proofs)]:
            typer.echo(f"{document['path']}: {document['says']}", err=not document["ok"])
        for report in reports:
            _print(report)
    if not ok:
        raise typer.Exit(DOES_NOT_VERIFY)


def _print(report: Report) -> None:
    if report.bad is not None:
        typer.echo(f"error: {report.bad}", err=True)
        return
    n = report.n_records - report.first
    since = f" from {report.first} on" if report.first else ""
    words = f"{report.path}: sound, {n} records{since} in {report.n_segments} segments"
    if report.checked:
        words += f", {report.covered} of {report.n_records} signed by {', '.join(report.signed_by)}"
    typer.echo(words)
    for remark in report.remarks:
        typer.echo(f"  note: {remark}")
    if report.repaired:
        typer.echo(f"  note: {report.repaired} torn ends were mended after a crash")
    if report.n_resumed:
        typer.echo(
            f"  note: {report.n_unsigned_before} records were not signed yet when a writer found them"
            f" ({report.n_resumed} times): whether they were changed before that, only a copy can show"
        )
    beside = report.contents
    if beside is not None and beside.n_contents:
        typer.echo(
            f"  note: of {beside.n_contents} prompts and outputs on record {beside.n_kept} are kept,"
            f" {beside.n_salts} by their salt alone, {beside.n_redacted} were redacted"
        )
    if report.dropped:
        typer.echo(f"  note: the log says that it lost {report.dropped} events")


def _is_proof(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(FIRST_LINE)) == FIRST_LINE.encode()
    except OSError:
        return False


def _check_proof(path: Path, keys: list[PublicKey]) -> dict[str, object]:
    proof = Proof.parse(path.read_text(encoding="utf-8"))
    says = f"record {proof.index} is in {proof.checkpoint.origin}"
    ok = proof.holds
    if not ok:
        says = f"record {proof.index} is not what the checkpoint covers"
    elif keys and not any(key.signed(proof.checkpoint.note) for key in keys):
        ok, says = False, "the checkpoint is not signed by the public key"
    elif not keys:
        says += ", if its checkpoint is true: no public key was given"
    return {"path": str(path), "ok": ok, "index": proof.index, "says": says}


def _checkpoint(path: Path) -> Checkpoint:
    found = read_checkpoint(path)
    if found is None:
        raise UsageError("no such file", found=str(path))
    return found


def read_public_key(given: str) -> PublicKey:
    """A key from a file, or as it was typed.

    Raises:
        UsageError: it is neither.
        AuditError: the file holds no key.
    """
    path = Path(given)
    if not path.exists():
        if "+" not in given:
            raise UsageError("no such file", found=given, expected="a public key or a file of one")
        return PublicKey.parse(given)
    try:
        return PublicKey.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError("cannot be read", location=Location(given), found=str(error)) from None
    except AuditError as error:
        error.location = Location(given)
        raise


@app.command()
def keygen(
    out: Annotated[
        Path, typer.Argument(metavar="FILE", help="The signing key to write; FILE.pub beside it.")
    ],
    name: Annotated[
        str,
        typer.Option(
            "--name", metavar="NAME", help="The key's name, best a domain and path of yours."
        ),
    ] = "scope-runtime/audit",
) -> None:
    """Make a key that signs checkpoints (Ed25519), and the public key that checks them.

    The signing key is a secret of the machine that writes the log. The public key belongs to whoever
    is to check it, kept where the log's writer cannot change it.

    \b
    Examples:
      scope audit keygen audit.key --name example.com/llm/audit
    """
    public = out.with_name(out.name + ".pub")
    for path in (out, public):
        if path.exists():
            raise UsageError("the file exists already", found=str(path))
    try:
        key = SigningKey.generate(name)
    except AuditError as error:
        raise UsageError(error.message, found=error.found, expected=error.expected) from None
    try:
        # Made with its mode: at no time can others read it.
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(key.text + "\n")
        public.write_text(key.public.text + "\n", encoding="utf-8")
    except OSError as error:
        raise AuditError(
            "cannot be written", location=Location(str(out)), found=str(error)
        ) from None
    typer.echo(f"{out}: signing key, keep it secret")
    typer.echo(f"{public}: {key.public.text}")


@app.command("prove")
def prove_record(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The log.")],
    index: Annotated[int, typer.Argument(min=0, help="The record's index.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Default: standard output.")
    ] = None,
) -> None:
    """Show that one record is in the log, without showing the others.

    The proof holds the record, its hash path and the checkpoint (c2sp.org/tlog-proof);
    scope audit verify checks it.

    \b
    Examples:
      scope audit prove audit.jsonl 17 --out record-17.tlog-proof
      scope audit verify record-17.tlog-proof --public-key audit.pub
    """
    [files] = find_logs([path])
    proof = prove(files, index)
    if out is None:
        typer.echo(proof.text, nl=False)
        return
    with written_whole(out, AuditError) as temporary:
        temporary.write_text(proof.text, encoding="utf-8", newline="\n")
    typer.echo(f"{out}: record {index} under a checkpoint of {proof.checkpoint.size}")
