"""Prompts and outputs beside a log: committed to, kept, verified, redacted, expired, and whole after a crash."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scope_runtime.audit import AuditLog, AuditOptions
from scope_runtime.audit.openings import find
from scope_runtime.audit.redact import Redaction, Selection
from scope_runtime.audit.report import ContentsReport, Report
from scope_runtime.audit.segments import LogFiles
from scope_runtime.audit.verify import verify
from scope_runtime.cli.main import main
from scope_runtime.errors import AuditError, UsageError
from scope_runtime.events import Content, Event
from scope_runtime.policy.model import Keep
from tests.support.audit_logs import KEY, key_file, records_of, request


def asked(n: int, keep: Keep = Keep.KEEP) -> list[Event]:
    """A request whose prompt and output a policy wants kept."""
    *others, summary = request(n)
    contents = (
        Content("prompt", (1, 2, n), f"secret question {n} ä", keep),
        Content("output", (7, n), f"secret answer {n}", keep),
    )
    return [*others, replace(summary, contents=contents)]


def make(folder: Path, n_requests: int, keep: Keep = Keep.KEEP, **options: Any) -> LogFiles:
    log = AuditLog(AuditOptions(folder / "audit.jsonl", key=key_file(folder), **options))
    for n in range(n_requests):
        log.write(asked(n, keep))
    log.close()
    return LogFiles(folder / "audit.jsonl")


def everything(folder: Path) -> bytes:
    """All bytes of all files, compressed ones unpacked."""
    return b"".join(
        gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for path in sorted(folder.iterdir())
    )


def sound(files: LogFiles) -> Report:
    report = verify(files, keys=[KEY.public])
    assert report.bad is None, report.bad
    assert report.contents is not None
    return report


def redact(files: LogFiles, selection: Selection, **options: Any) -> Redaction:
    log = AuditLog(
        AuditOptions(files.path, key=key_file(files.path.parent), **options), clock=lambda: 5000.0
    )
    try:
        return log.redact(selection, "somebody", "erasure request 12")
    finally:
        log.close()


def test_a_record_commits_to_what_lies_beside_it(tmp_path: Path) -> None:
    """The formula of docs/audit.md, worked out anew."""
    files = make(tmp_path, 2)
    assert b"secret" not in files.path.read_bytes()
    lines = [json.loads(line) for line in files.content_path(0).read_bytes().splitlines()]
    assert [line["text"] for line in lines] == [
        "secret question 0 ä",
        "secret answer 0",
        "secret question 1 ä",
        "secret answer 1",
    ]
    assert files.content_path(0).stat().st_mode & 0o777 == 0o600
    summaries = [r for r in records_of(files) if r["what"] == "summary"]
    for record, prompt, output in zip(summaries, lines[::2], lines[1::2], strict=True):
        for name, line in (("prompt", prompt), ("output", output)):
            said = record["contents"][name]
            salt = bytes.fromhex(line["salt"])
            assert len(salt) == 32
            head = b"scope-runtime/audit/content/v1\0" + name.encode()
            text = head + b"/text\0" + salt + line["text"].encode()
            tokens = json.dumps(line["tokens"], separators=(",", ":")).encode()
            assert said["text"] == hashlib.sha256(text).hexdigest() == line["commitment"]
            assert said["tokens"] == hashlib.sha256(head + b"/tokens\0" + salt + tokens).hexdigest()
    assert len({line["salt"] for line in lines}) == 4
    assert sound(files).contents == ContentsReport(n_contents=4, n_kept=4)


def test_a_commitment_alone_keeps_no_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = make(tmp_path, 2, Keep.COMMIT)
    assert b"secret" not in everything(tmp_path)
    assert sound(files).contents.n_salts == 4  # type: ignore[union-attr]
    claimed = tmp_path / "claimed.txt"
    for text, code in (("secret answer 1", 0), ("secret answer 1 ", 1), ("secret answer 0", 1)):
        claimed.write_text(text)
        arguments = ["audit", "claim", str(files.path), "--request", "r1", "--output", str(claimed)]
        assert main(arguments) == code
    assert capsys.readouterr().out.splitlines() == [
        "output: the one on record",
        "output: not the one on record",
        "output: not the one on record",
    ]
    assert main(["audit", "claim", str(files.path), "--request", "r9", "--prompt", "x"]) == 1
    assert "has no prompt of this request on record" in capsys.readouterr().err


def test_another_request_by_the_same_id_makes_no_claim_false(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clients choose the ids; one who was told something bad may ask for something good by the same."""
    log = AuditLog(AuditOptions(tmp_path / "audit.jsonl"))
    for n in (1, 2):
        log.write([replace(each, request_id="r1") for each in asked(n, Keep.COMMIT)])
    log.close()
    path, claimed = LogFiles(log.path).content_path(0), tmp_path / "claimed.txt"
    claimed.write_text("secret answer 1")
    arguments = ["audit", "claim", str(log.path), "--request", "r1", "--output", str(claimed)]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "output: the one on record, of 2 by this id\n"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert main(arguments) == 0
    claimed.write_text("something else")
    assert main(arguments) == 1
    assert "was redacted, or its salt is not here" in capsys.readouterr().err


@pytest.mark.parametrize("compress", [False, True])
def test_what_is_redacted_is_gone_and_the_log_verifies(tmp_path: Path, compress: bool) -> None:
    files = make(tmp_path, 12, rotate_bytes=3000, compress=compress)
    assert len(files.contents()) > 2
    assert any(path.suffix == ".gz" for path in files.contents().values()) == compress
    before = [path.read_bytes() for path in files.closed().values()]
    assert redact(files, Selection(request_id="r3"), rotate_bytes=1 << 20) == Redaction(2, 1)
    assert [path.read_bytes() for path in files.closed().values()] == before
    left = everything(tmp_path)
    assert b"question 3 " not in left
    assert b"answer 3" not in left
    assert left.count(b"secret") == 22
    report = sound(files)
    assert report.contents is not None
    assert (report.contents.n_kept, report.contents.n_redacted) == (22, 2)
    note = records_of(files)[-1]
    assert (note["what"], note["actor"], note["reason"], note["request_id"]) == (
        "redacted",
        "somebody",
        "erasure request 12",
        "r3",
    )
    with pytest.raises(AuditError, match=r"nothing is kept of what is to be redacted.*r3"):
        redact(files, Selection(request_id="r3"))
    assert redact(files, Selection(before=1006.0), rotate_bytes=1 << 20) == Redaction(10, 5)
    assert sound(files).contents.n_redacted == 12  # type: ignore[union-attr]
    assert everything(tmp_path).count(b"secret") == 12


def test_a_redaction_overwrites_what_was_there(tmp_path: Path) -> None:
    """Who held the old file open, or finds its blocks, reads zeros."""
    files = make(tmp_path, 2)
    with files.content_path(0).open("rb") as old:
        redact(files, Selection(request_id="r1"))
        assert set(old.read()) == {0}


def test_a_log_in_use_goes_on_after_a_redaction(tmp_path: Path) -> None:
    log = AuditLog(AuditOptions(tmp_path / "audit.jsonl", key=key_file(tmp_path)))
    log.write(asked(0))
    assert log.redact(Selection(request_id="r0"), "ops", "asked to") == Redaction(2, 1)
    log.write(asked(1))
    log.close()
    files = LogFiles(log.path)
    assert [each.text for each in find(files, lambda _: True)] == [
        "secret question 1 ä",
        "secret answer 1",
    ]
    sound(files)
    with pytest.raises(AuditError, match="it is closed"):
        log.redact(Selection(request_id="r1"), "ops", "too late")


def test_a_selection_is_one_thing() -> None:
    for wrong in ({}, {"request_id": "r", "before": 1.0}):
        with pytest.raises(UsageError, match="say what to redact"):
            Selection(**wrong)  # type: ignore[arg-type]


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "text": (lambda line: line.update(text="a harmless answer"), "has its output changed"),
    "tokens": (lambda line: line.update(tokens=[7, 8]), "has its output changed"),
    "salt": (lambda line: line.update(salt="00" * 32), "has its output changed"),
    "no text": (lambda line: (line.pop("text"), line.pop("tokens")), "has its output changed"),
    "whose": (lambda line: line.update(request_id="r2"), "has its output changed"),
    "name": (lambda line: line.update(commitment="00" * 32), "has no output in audit.*.content"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_28_an_altered_content_is_named(tmp_path: Path, what: str) -> None:
    files = make(tmp_path, 3)
    path = files.content_path(0)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    DAMAGE[what][0](lines[3])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    bad = verify(files, keys=[KEY.public]).bad
    assert bad is not None
    assert bad.index == 4  # segment, rule, summary, rule, summary of r1
    assert DAMAGE[what][1] in bad.what
    assert verify(files, keys=[KEY.public], contents=False).bad is None


def test_28_a_content_that_is_missing_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = make(tmp_path, 3)
    path = files.content_path(0)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    assert main(["audit", "verify", str(files.path)]) == 1
    assert (
        "record 4 has no prompt in audit.*.content, and no record under a checkpoint says"
        in capsys.readouterr().err
    )
    path.unlink()
    bad = verify(files).bad
    assert bad is not None
    assert bad.index == 2
    assert main(["audit", "verify", str(files.path), "--no-contents"]) == 0


def test_28_every_byte_of_the_contents_flipped(tmp_path: Path) -> None:
    files = make(tmp_path, 2)
    path, unseen = files.content_path(0), []
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        if verify(files).bad is None:
            unseen.append(place)
    assert unseen == []
    assert len(whole) > 800


def test_28_an_altered_salt_is_named(tmp_path: Path) -> None:
    """Where no text is kept, another salt would make a true claim look false."""
    files = make(tmp_path, 2, Keep.COMMIT)
    path = files.content_path(0)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    [record, _] = [r for r in records_of(files) if r["what"] == "summary"]
    head = b"scope-runtime/audit/content/v1\0prompt/salt\0"
    digest = hashlib.sha256(head + bytes.fromhex(lines[0]["salt"])).hexdigest()
    assert record["contents"]["prompt"]["salt"] == digest
    lines[3]["salt"] = "00" * 32
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    bad = verify(files, keys=[KEY.public]).bad
    assert bad is not None
    assert (bad.index, "has its output changed" in bad.what) == (4, True)


def test_contents_go_with_their_segment(tmp_path: Path) -> None:
    """Retention deletes them too, and nobody misses them."""
    day, now = 86_400.0, [0.0]
    options = AuditOptions(
        tmp_path / "audit.jsonl",
        key=key_file(tmp_path),
        rotate_s=30 * day,
        retention_s=90 * day,
        compress=True,
    )
    for month in range(8):
        log = AuditLog(options, clock=lambda: now[0])
        log.write(asked(month))
        log.close()
        now[0] += 30 * day
    files = LogFiles(tmp_path / "audit.jsonl")
    assert set(files.contents()) <= {*files.closed(), max(files.closed()) + 1}
    assert min(files.contents()) == min(files.closed()) > 0
    assert b"secret question 0" not in everything(tmp_path)
    # A crash deletes the side file alone: its segment is on record as expired.
    sound(files)


def test_29_what_a_crash_left_beside_the_log_is_taken_out(tmp_path: Path) -> None:
    files = make(tmp_path, 2)
    path = files.content_path(0)
    whole = path.read_bytes()
    for torn in (1, 40, len(whole.splitlines()[0])):
        path.write_bytes(whole + whole.splitlines(keepends=True)[0][:torn])
        left = path.with_name(".audit.000000.content.gz.0123456789ab.tmp")
        left.write_bytes(b"half a copy")
        AuditLog(AuditOptions(files.path, key=key_file(tmp_path))).close()
        assert path.read_bytes() == whole
        assert not left.exists()
        note = records_of(files)[-1]
        assert (note["what"], note["n_openings"]) == ("contents-repaired", 1)
        sound(files)


def test_29_a_line_of_a_record_that_was_never_written_is_taken_out(tmp_path: Path) -> None:
    files = make(tmp_path, 2)
    files.checkpoint.unlink()
    lines = files.path.read_bytes().splitlines(keepends=True)
    files.path.write_bytes(b"".join(lines[:-1]))
    assert verify(files).contents.n_unknown == 2  # type: ignore[union-attr]
    AuditLog(AuditOptions(files.path, key=key_file(tmp_path))).close()
    assert b"question 1" not in everything(tmp_path)
    assert sound(files).contents.n_unknown == 0  # type: ignore[union-attr]


def test_29_a_redaction_that_a_crash_cut_off_is_seen_and_done(tmp_path: Path) -> None:
    files = make(tmp_path, 2)
    path = files.content_path(0)
    whole = path.read_bytes()
    redact(files, Selection(request_id="r1"))
    path.write_bytes(whole)
    bad = verify(files).bad
    assert bad is not None
    assert bad.index == 4
    assert "though the log says that it was redacted" in bad.what
    AuditLog(AuditOptions(files.path, key=key_file(tmp_path))).close()
    assert b"question 1" not in everything(tmp_path)
    sound(files)


def test_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = make(tmp_path, 3)
    log, key = str(files.path), str(tmp_path / "audit.key")
    assert main(["audit", "show", log, "--request", "r1", "--content"]) == 0
    out = capsys.readouterr().out
    assert '        prompt: "secret question 1 ä"\n        output: "secret answer 1"\n' in out
    assert "question 2" not in out
    assert main(["audit", "show", log, "--request", "r1"]) == 0
    assert "secret" not in capsys.readouterr().out
    erase = ["audit", "redact", log, "--request", "r1"]
    assert main([*erase, "--key", key]) == 2
    assert "no reason is given" in capsys.readouterr().err
    assert main([*erase, "-r", "asked to"]) == 2
    assert "checkpoints are signed" in capsys.readouterr().err
    assert main([*erase, "-r", "asked to", "--key", key]) == 0
    assert capsys.readouterr().out == "2 prompts and outputs of 1 requests erased\n"
    assert main(["audit", "show", log, "--request", "r1", "--content"]) == 0
    assert "        prompt: (redacted, or not here)\n" in capsys.readouterr().out
    assert main(["audit", "verify", log, "-k", KEY.public.text]) == 0
    said = capsys.readouterr().out
    assert "of 6 prompts and outputs on record 4 are kept, 0 by their salt alone, 2 were" in said
