"""Behaviour 28 behind the newest checkpoint: there anybody can add records, and change those that are there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from scope_runtime.audit import AuditLog, AuditOptions
from scope_runtime.audit.canonical import Body
from scope_runtime.audit.merkle import leaf_hash
from scope_runtime.audit.redact import Selection
from scope_runtime.audit.segments import LogFiles
from scope_runtime.audit.store import own_record
from scope_runtime.audit.verify import verify
from scope_runtime.cli.main import main
from tests.audit.test_contents import make as make_with_contents
from tests.support.audit_logs import KEY, event, key_file, make_log, records_of

DAY_S = 86_400.0


def forge(files: LogFiles, what: str, **detail: object) -> None:
    """Adds a record as somebody would who has no key: the chain takes no secret."""
    last = files.path.read_bytes().splitlines()[-1]
    index = json.loads(last)["chain"]["index"]
    line = own_record(what, 9e9, **detail).line(index + 1, leaf_hash(last))
    with files.path.open("ab") as file:
        file.write(line + b"\n")


def begun_anew(files: LogFiles) -> None:
    AuditLog(AuditOptions(files.path, key=files.path.parent / "audit.key")).close()


def test_28_a_forged_expiry_excuses_nothing(tmp_path: Path) -> None:
    files = make_log(tmp_path, 30, rotate_bytes=3000)
    second = json.loads(files.segments()[1].read_bytes().splitlines()[0])
    before = second["chain"]["index"]
    files.segments()[0].unlink()
    forge(files, "expired", segments=[0], before=before)
    bad = verify(files, keys=[KEY.public]).bad
    assert bad is not None
    assert (bad.index, bad.what) == (
        0,
        f"is missing, up to {before - 1}, and no record under a checkpoint says that it has expired",
    )


def test_28_a_forged_redaction_excuses_nothing(tmp_path: Path) -> None:
    files = make_with_contents(tmp_path, 3)
    path = files.content_path(0)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    commitment = json.loads(lines[2])["commitment"]
    forge(files, "redacted", commitments=[commitment], actor="nobody", reason="none")
    bad = verify(files, keys=[KEY.public]).bad
    assert bad is not None
    assert (bad.index, "no record under a checkpoint says" in bad.what) == (4, True)


def test_what_goes_is_signed_off_before_it_goes(tmp_path: Path) -> None:
    """Copies of a running log, none of which was closed: what is missing in them is under a checkpoint."""
    now = [0.0]
    options = AuditOptions(
        tmp_path / "audit.jsonl", key=key_file(tmp_path), rotate_s=DAY_S, retention_s=2 * DAY_S
    )
    log = AuditLog(options, clock=lambda: now[0], steady=lambda: now[0])
    n_first = 0
    for day in range(6):
        now[0] = day * DAY_S
        log.write([event(day)])
        copy = tmp_path / f"copy{day}"
        copy.mkdir()
        for path in tmp_path.glob("audit.*"):
            shutil.copy(path, copy)
        report = verify(LogFiles(copy / "audit.jsonl"), keys=[KEY.public] if day else [])
        assert report.bad is None
        n_first += report.first > 0
    log.close()
    assert n_first >= 2


def test_a_clock_that_is_put_forward_deletes_nothing(tmp_path: Path) -> None:
    now, steady = [1e9], [50.0]
    options = AuditOptions(
        tmp_path / "audit.jsonl", key=key_file(tmp_path), rotate_s=DAY_S, retention_s=2 * DAY_S
    )
    log = AuditLog(options, clock=lambda: now[0], steady=lambda: steady[0])
    log.write([event(0)])
    now[0] += 365 * DAY_S
    for n in range(1, 4):
        log.write([event(n)])
        now[0] += DAY_S
    files = LogFiles(options.path if isinstance(options.path, Path) else Path(options.path))
    assert min(files.closed()) == 0
    log.close()
    assert verify(files, keys=[KEY.public]).bad is None


def test_a_redaction_is_signed_off_before_anything_is_erased(tmp_path: Path) -> None:
    files = make_with_contents(tmp_path, 2)
    log = AuditLog(AuditOptions(files.path, key=tmp_path / "audit.key"))
    log.redact(Selection("r1"), "somebody", "erasure request 12")
    report = verify(files, keys=[KEY.public])  # of a log that is still open
    log.close()
    assert report.bad is None
    assert report.contents is not None
    assert report.contents.n_redacted == 2


def test_28_what_was_changed_while_no_process_ran_is_not_signed_unseen(
    tmp_path: Path, capsys: object
) -> None:
    """Without the checkpoint the end of a log can be written anew; whoever signs it then says what he found."""
    files = make_log(tmp_path, 3)
    files.checkpoint.unlink()
    lines = files.path.read_bytes().splitlines()
    prev: bytes | None = None
    forged: list[bytes] = []
    for line in lines:
        record = json.loads(line)
        record.pop("chain")
        if record["what"] == "summary":
            record["n_tokens"] = 0
        forged.append(Body(record).line(len(forged), prev))
        prev = leaf_hash(forged[-1])
    assert forged != lines
    files.path.write_bytes(b"\n".join([*forged, b""]))
    begun_anew(files)
    report = verify(files, keys=[KEY.public])
    assert report.bad is None
    assert (report.n_resumed, report.n_unsigned_before) == (1, len(lines))
    [said] = [record for record in records_of(files) if record["what"] == "resumed"]
    assert (said["signed"], said["found"]) == (0, len(lines))


def test_a_checkpoint_of_another_key_vouches_for_nothing(tmp_path: Path) -> None:
    files = make_log(tmp_path, 3, key=None)
    key_file(tmp_path)
    n_records = len(records_of(files))
    begun_anew(files)
    assert verify(files, keys=[KEY.public]).n_unsigned_before == n_records


def test_a_log_that_was_closed_is_resumed_without_a_word(tmp_path: Path) -> None:
    files = make_log(tmp_path, 30, rotate_bytes=3000)
    begun_anew(files)
    report = verify(files, keys=[KEY.public])
    assert (report.bad, report.n_resumed) == (None, 0)


def test_29_after_a_crash_the_log_says_what_was_not_signed_yet(tmp_path: Path) -> None:
    (tmp_path / "crashed").mkdir()
    log = AuditLog(AuditOptions(tmp_path / "audit.jsonl", key=key_file(tmp_path)))
    log.write([event(0)])
    log.close()
    log = AuditLog(AuditOptions(tmp_path / "audit.jsonl", key=tmp_path / "audit.key"))
    log.write([event(1), event(2), event(3)])
    for path in tmp_path.glob("audit.*"):
        shutil.copy(path, tmp_path / "crashed")
    log.close()
    files = LogFiles(tmp_path / "crashed" / "audit.jsonl")
    begun_anew(files)
    report = verify(files, keys=[KEY.public])
    assert (report.bad, report.n_resumed, report.n_unsigned_before) == (None, 1, 3)
    assert main(["audit", "verify", str(files.path), "-k", KEY.public.text]) == 0
    begun_anew(files)
    assert verify(files, keys=[KEY.public]).n_resumed == 1


def test_a_clock_that_is_put_back_puts_no_checkpoint_off(tmp_path: Path) -> None:
    now = [1e6]
    log = AuditLog(AuditOptions(tmp_path / "log.jsonl", checkpoint_s=60), clock=lambda: now[0])
    log.write([event(0)])
    now[0] -= DAY_S
    log.write([event(1)])
    now[0] += 61
    log.write([event(2)])
    log.write([event(3)])
    assert LogFiles(log.path).checkpoint.exists()
    log.close()
