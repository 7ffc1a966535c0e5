"""The log as a sink: what is acknowledged is on the disk, and what happens when the disk does not play along."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from scope_runtime.audit import AuditLog, AuditOptions, OnFailure
from scope_runtime.audit.keyfile import read_signing_key
from scope_runtime.audit.segments import LogFiles
from scope_runtime.audit.verify import verify
from scope_runtime.errors import AuditError, UsageError
from scope_runtime.events import Event, Kind
from tests.support.audit_logs import KEY, event, key_file, make_log, records_of, request


def whats(path: Path) -> list[str]:
    return [record["what"] for record in records_of(LogFiles(path))]


def alert() -> Event:
    return Event(kind=Kind.ALERT, what="firing", time=1.0)


def test_a_plain_path_is_a_whole_log(tmp_path: Path) -> None:
    path = tmp_path / "a" / "log.jsonl"
    for n in range(3):
        log = AuditLog(path)
        log.write([event(n), event(10 + n)])
        assert whats(path)[-2:] == [f"n{n}", f"n{10 + n}"]
        log.close()
        log.close()
    assert whats(path) == ["segment", "n0", "n10", "n1", "n11", "n2", "n12"]
    assert path.stat().st_mode & 0o777 == 0o600
    report = verify(LogFiles(path))
    assert (report.bad, report.n_records, report.covered) == (None, 7, 7)
    assert report.remarks == ["the checkpoint is unsigned: it shows damage, not forgery"]


def test_every_line_is_canonical_and_an_event(tmp_path: Path) -> None:
    files = make_log(tmp_path, 5)
    for line in files.path.read_bytes().splitlines():
        assert rfc8785.dumps(json.loads(line)) == line
    events = [e for n in range(5) for e in request(n)]
    found = records_of(files)[1:]
    for record in found:
        del record["chain"]
    assert found == [e.record() for e in events]


def test_many_callers_share_an_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one batch is on its way to the disk, the next one gathers."""
    log = AuditLog(tmp_path / "log.jsonl")
    log.write([event(0)])
    fsync, syncs = os.fsync, []
    gathered, begun = threading.Event(), threading.Event()

    def slow(fd: int) -> None:
        syncs.append(fd)
        begun.set()
        assert gathered.wait(30)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    callers = [threading.Thread(target=log.write, args=([event(n)],)) for n in range(1, 21)]
    callers[0].start()
    assert begun.wait(30)
    for caller in callers[1:]:
        caller.start()
    with log._changed:
        assert log._changed.wait_for(lambda: log.queued == 20, 30)
    gathered.set()
    for caller in callers:
        caller.join()
    assert len(syncs) == 2
    monkeypatch.undo()
    log.close()
    assert sorted(whats(log.path)) == sorted(["segment", *(f"n{n}" for n in range(21))])


def test_inside_a_request_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path / "log.jsonl")
    fsync, free = os.fsync, threading.Event()

    def held(fd: int) -> None:
        assert free.wait(30)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", held)
    rule, summary = request(1)
    log.write([alert()])
    log.write([rule])
    assert log.queued
    free.set()
    log.write([summary])
    assert log.queued == 0
    assert whats(log.path) == ["segment", "firing", "rule", "summary"]
    log.close()


class FullDisk:
    """Lets no record through until ``free``; what is written of one is half of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, self.tries = True, threading.Semaphore(0)
        pwrite = os.pwrite

        def write(fd: int, data: Any, offset: int) -> int:
            if self.full and len(data) > 20:
                return pwrite(fd, data[: len(data) // 2], offset)
            if self.full:
                self.tries.release()
                raise OSError(errno.ENOSPC, "No space left on device")
            return pwrite(fd, data, offset)

        monkeypatch.setattr(os, "pwrite", write)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[OnFailure], AuditLog]:
    def open_log(on_failure: OnFailure) -> AuditLog:
        log = AuditLog(AuditOptions(tmp_path / "log.jsonl", on_failure))
        log.write([event(0)])
        return log

    return open_log


def test_30_disk_full_block(
    opened: Callable[[OnFailure], AuditLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(OnFailure.BLOCK)
    disk = FullDisk(monkeypatch)
    caller = threading.Thread(target=log.write, args=([event(1)],))
    caller.start()
    assert disk.tries.acquire(timeout=30)
    assert disk.tries.acquire(timeout=30)
    assert caller.is_alive()
    assert (log.failed, log.queued) == (None, 1)
    disk.full = False
    caller.join(30)
    log.close()
    assert whats(log.path) == ["segment", "n0", "n1"]
    assert verify(LogFiles(log.path)).bad is None


def test_30_disk_full_block_ends_with_the_log(
    opened: Callable[[OnFailure], AuditLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(OnFailure.BLOCK)
    disk, errors = FullDisk(monkeypatch), []

    def call() -> None:
        try:
            log.write([event(1)])
        except AuditError as error:
            errors.append(str(error))

    caller = threading.Thread(target=call)
    caller.start()
    assert disk.tries.acquire(timeout=30)
    log.close()
    caller.join(30)
    [error] = errors
    assert "cannot be written; found [Errno 28] No space left on device" in error


def test_30_disk_full_drop(
    opened: Callable[[OnFailure], AuditLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(OnFailure.DROP)
    disk = FullDisk(monkeypatch)
    for n in range(1, 4):
        log.write([event(n), event(10 + n)])
    assert log.dropped == 6
    disk.full = False
    log.write([event(4)])
    assert log.dropped == 6
    log.close()
    assert whats(log.path) == ["segment", "n0", "dropped", "n4"]
    assert records_of(LogFiles(log.path))[2]["n_events"] == 6
    report = verify(LogFiles(log.path))
    assert (report.bad, report.dropped) == (None, 6)


def test_30_disk_full_drop_is_noted_though_nobody_writes(
    opened: Callable[[OnFailure], AuditLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scope_runtime.audit.log.LONGEST_PAUSE_S", 0.01)
    log = opened(OnFailure.DROP)
    disk = FullDisk(monkeypatch)
    log.write([event(1)])
    assert (log.status.error, log.status.serving) == ("[Errno 28] No space left on device", True)
    assert disk.tries.acquire(timeout=30)
    assert disk.tries.acquire(timeout=30)
    disk.full = False
    with log._changed:
        assert log._changed.wait_for(lambda: log._trouble is None, 30)
    assert whats(log.path) == ["segment", "n0", "dropped"]
    status = log.status
    assert (status.records_written, status.dropped, status.failing_since) == (1, 1, None)
    log.close()


def test_30_disk_full_drop_is_noted_at_the_close(
    opened: Callable[[OnFailure], AuditLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(OnFailure.DROP)
    disk = FullDisk(monkeypatch)
    log.write([event(1)])
    disk.full = False
    log.close()
    assert whats(log.path) == ["segment", "n0", "dropped"]


def test_30_disk_full_stop(
    opened: Callable[[OnFailure], AuditLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(OnFailure.STOP)
    disk = FullDisk(monkeypatch)
    with pytest.raises(AuditError, match=r"cannot be written; found .* No space left on device"):
        log.write([event(1)])
    disk.full = False
    with pytest.raises(AuditError, match=r"failed before; found .* No space left on device"):
        log.write([event(2)])
    assert log.failed == "[Errno 28] No space left on device"
    log.close()
    assert whats(log.path) == ["segment", "n0"]


@pytest.mark.parametrize("on_failure", list(OnFailure))
def test_30_a_failed_fsync_is_final(
    opened: Callable[[OnFailure], AuditLog],
    monkeypatch: pytest.MonkeyPatch,
    on_failure: OnFailure,
) -> None:
    """Even where the kernel says ENOSPC: after it, the next fsync reports success for lost pages."""
    log = opened(on_failure)
    calls = []

    def broken(fd: int) -> None:
        calls.append(fd)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    if on_failure is OnFailure.DROP:
        log.write([event(1)])
        log.write([event(2)])
        assert log.dropped == 2
    else:
        with pytest.raises(AuditError, match=r"found fsync: .*No space"):
            log.write([event(1)])
        monkeypatch.undo()
        with pytest.raises(AuditError, match="failed before; found fsync"):
            log.write([event(2)])
    assert len(calls) == 1
    log.close()
    assert len(calls) == 1


def test_an_error_that_is_not_for_want_of_space_is_final(
    opened: Callable[[OnFailure], AuditLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(OnFailure.BLOCK)

    def broken(fd: int, data: Any, offset: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwrite", broken)
    with pytest.raises(AuditError, match="Input/output error"):
        log.write([event(1)])
    monkeypatch.undo()
    with pytest.raises(AuditError, match="failed before"):
        log.write([event(2)])
    log.close()


def test_an_event_that_is_no_json_harms_nobody_else(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log.jsonl")
    with pytest.raises(AuditError, match="an event cannot be written as JSON"):
        log.write([event(1, bad=object())])
    log.write([event(2)])
    log.close()
    assert whats(log.path) == ["segment", "n2"]


def test_two_writers_are_one_too_many(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log.jsonl")
    with pytest.raises(AuditError) as caught:
        AuditLog(tmp_path / "log.jsonl")
    assert f"is being written already; found process {os.getpid()} (" in str(caught.value)
    log.close()
    AuditLog(tmp_path / "log.jsonl").close()


def test_two_writers_are_one_too_many_without_the_lock_file_too(tmp_path: Path) -> None:
    """Somebody took it for stale."""
    log = AuditLog(tmp_path / "audit.jsonl")
    log.write([event(0)])
    LogFiles(log.path).lock.unlink()
    before = log.path.read_bytes()
    with pytest.raises(AuditError, match="is being written already"):
        AuditLog(tmp_path / "audit.jsonl")
    assert log.path.read_bytes() == before
    log.write([event(1)])
    log.close()
    assert verify(LogFiles(log.path)).bad is None


def test_29_a_torn_tail_is_repaired_at_every_byte(tmp_path: Path) -> None:
    """What a crash leaves of the last record, at each of its bytes; and the same in a segment that has just begun."""
    path = tmp_path / "log.jsonl"
    log = AuditLog(path)
    for n in range(3):
        log.write(request(n))
    log.close()
    LogFiles(path).checkpoint.unlink()  # a crash leaves the last records without one
    whole = path.read_bytes()
    for first_line, n_kept in ((whole[: -len(whole.splitlines()[-1]) - 1], 6), (b"", 0)):
        last = len(whole.splitlines(keepends=True)[n_kept])
        for n_torn in range(1, last):
            path.write_bytes(whole[: len(first_line) + n_torn])
            torn = verify(LogFiles(path))
            assert (torn.bad, torn.torn_bytes, torn.n_records) == (None, n_torn, n_kept)
            AuditLog(path).close()
            report = verify(LogFiles(path))
            assert (report.bad, report.torn_bytes, report.repaired) == (None, 0, 1)
            note = records_of(LogFiles(path))[-1]
            assert (note["what"], note["n_bytes"]) == ("repaired", n_torn)
            assert path.read_bytes().startswith(first_line)
            LogFiles(path).checkpoint.unlink()


def test_segments_follow_one_another(tmp_path: Path) -> None:
    files = make_log(tmp_path, 40, rotate_bytes=4000, compress=True)
    names = [path.name for path in files.segments()]
    assert names[:2] == ["audit.000000.jsonl.gz", "audit.000001.jsonl.gz"]
    assert names[-1] == "audit.jsonl"
    report = verify(files, keys=[KEY.public])
    assert (report.bad, report.n_records) == (None, 80 + len(names))
    assert report.n_segments == len(names) > 3


def test_a_segment_is_closed_when_it_is_old(tmp_path: Path) -> None:
    now = [1000.0]
    options = AuditOptions(tmp_path / "log.jsonl", rotate_s=60)
    log = AuditLog(options, clock=lambda: now[0])
    for n in range(4):
        log.write([event(n)])
        now[0] += 30
    log.close()
    assert len(LogFiles(log.path).closed()) == 1
    now[0] += 60
    AuditLog(options, clock=lambda: now[0]).close()
    assert len(LogFiles(log.path).closed()) == 2
    assert verify(LogFiles(log.path)).bad is None


@pytest.mark.parametrize("compress", [False, True])
def test_what_is_past_its_time_goes_on_record(tmp_path: Path, compress: bool) -> None:
    day, now = 86_400.0, [0.0]
    options = AuditOptions(
        tmp_path / "audit.jsonl", key=key_file(tmp_path), rotate_s=30 * day, compress=compress
    )
    for month in range(12):
        log = AuditLog(options, clock=lambda: now[0])
        log.write(request(month))
        log.close()
        now[0] += 30 * day
    files = LogFiles(options.path if isinstance(options.path, Path) else Path(options.path))
    kept = records_of(files)
    oldest = min(float(r["time"]) for r in kept if r["what"] == "segment")
    # Six months are kept whole; no segment is longer than one.
    assert 184 * day < now[0] - oldest <= (184 + 60) * day
    report = verify(files, keys=[KEY.public])
    assert report.bad is None
    assert report.first == kept[0]["chain"]["index"] > 0
    assert [r["segments"] for r in kept if r["what"] == "expired"]
    files.segments()[0].unlink()
    bad = verify(files, keys=[KEY.public]).bad
    assert bad is not None
    assert "no record under a checkpoint says that it has expired" in str(bad)


def test_checkpoints_come_with_time(tmp_path: Path) -> None:
    now = [0.0]
    log = AuditLog(AuditOptions(tmp_path / "log.jsonl", checkpoint_s=60), clock=lambda: now[0])
    log.write([event(0)])
    checkpoint = LogFiles(log.path).checkpoint
    assert not checkpoint.exists()
    now[0] = 61
    log.write([event(1)])
    log.write([event(2)])
    assert checkpoint.read_text().splitlines()[1] == "3"
    log.close()
    assert checkpoint.read_text().splitlines()[1] == "4"


def test_a_log_that_was_cut_is_not_continued(tmp_path: Path) -> None:
    files = make_log(tmp_path, 5)
    lines = files.path.read_bytes().splitlines(keepends=True)
    files.path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(AuditError, match="was cut off; found 10 records; expected at least 11"):
        AuditLog(files.path)
    files.path.write_bytes(b"".join([*lines[:3], *lines[4:]]))
    with pytest.raises(AuditError, match=r"audit.jsonl:4: the audit log cannot be continued"):
        AuditLog(files.path)
    files.path.write_bytes(b"".join(lines[:-1]) + lines[-1].replace(b"stop", b"stap"))
    with pytest.raises(AuditError, match="is not the one that its checkpoint is of"):
        AuditLog(files.path)
    files.path.write_bytes(b"".join(lines))
    AuditLog(files.path).close()


@pytest.mark.parametrize(
    ("mine", "mode", "good"),
    [
        (True, 0o600, True),
        (True, 0o640, False),
        (True, 0o604, False),
        (False, 0o440, True),
        (False, 0o460, False),
        (False, 0o444, False),
    ],
)
def test_who_may_read_a_signing_key(
    mine: bool, mode: int, good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner alone; a file that somebody else mounted for us, our group as well, as Kubernetes does it."""
    key = key_file(tmp_path)
    key.chmod(mode)
    if not mine:
        monkeypatch.setattr("os.geteuid", lambda: key.stat().st_uid + 1)
    if good:
        assert read_signing_key(key).public.text
    else:
        with pytest.raises(AuditError, match="open to others"):
            read_signing_key(key)


def test_places_and_keys_that_will_not_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditError, match="cannot be opened"):
        AuditLog(tmp_path / "file" / "log.jsonl")
    key = key_file(tmp_path)
    key.chmod(0o644)
    with pytest.raises(AuditError, match="open to others; found mode 644; expected 600"):
        AuditLog(AuditOptions(tmp_path / "log.jsonl", key=key))
    with pytest.raises(AuditError, match="the signing key cannot be read"):
        AuditLog(AuditOptions(tmp_path / "log.jsonl", key=tmp_path / "none"))
    with pytest.raises(UsageError, match="rotate_bytes must be positive; found 0"):
        AuditOptions(tmp_path / "log.jsonl", rotate_bytes=0)


def test_a_closed_segment_that_cannot_be_read_stops_nobody(tmp_path: Path) -> None:
    files = make_log(tmp_path, 12, rotate_bytes=1500, compress=True)
    packed = files.segments()[1]
    packed.write_bytes(packed.read_bytes()[:5])
    log = AuditLog(AuditOptions(files.path, key=key_file(tmp_path)))
    log.write([event(1)])
    log.close()
    last = [record["what"] for record in map(json.loads, files.path.read_text().splitlines())]
    assert last[-2:] == ["expiry-failed", "n1"]
    bad = verify(files, keys=[KEY.public]).bad
    assert bad is not None
    assert bad.file == str(packed)


def test_a_checkpoint_that_cannot_be_written_goes_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records are safe all the same, and the next checkpoint covers them."""
    now = [0.0]
    log = AuditLog(AuditOptions(tmp_path / "log.jsonl", checkpoint_s=60), clock=lambda: now[0])
    log.write([event(0)])
    with monkeypatch.context() as patched:

        def broken(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        patched.setattr(Path, "replace", broken)
        now[0] = 61
        log.write([event(1)])
        log.write([event(2)])
    now[0] = 130
    log.write([event(3)])
    log.close()
    assert whats(log.path) == ["segment", "n0", "n1", "checkpoint-failed", "n2", "n3"]
    report = verify(LogFiles(log.path))
    assert (report.bad, report.covered) == (None, 6)
