"""Behaviour 28: what is edited, removed, reordered, cut off or spliced is found, and the first bad record is named."""

from __future__ import annotations

import gzip
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pymerkle
import pytest

from scope_runtime.audit import AuditLog
from scope_runtime.audit.note import Checkpoint, PublicKey, SigningKey
from scope_runtime.audit.recover import read_checkpoint
from scope_runtime.audit.report import Report
from scope_runtime.audit.segments import LogFiles
from scope_runtime.audit.verify import verify
from scope_runtime.audit.walk import Broken, Walk
from scope_runtime.errors import AuditError
from tests.support.audit_logs import KEY, event, make_log

N_RECORDS = 201


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> LogFiles:
    """One segment's first record and 100 requests of two records each; signed."""
    return make_log(tmp_path_factory.mktemp("whole"), 100)


@pytest.fixture
def copy(whole: LogFiles, tmp_path: Path) -> LogFiles:
    """What an auditor has: files, and nothing else."""
    for path in (whole.path, whole.checkpoint):
        shutil.copy(path, tmp_path)
    return LogFiles(tmp_path / whole.path.name)


def lines_of(files: LogFiles) -> list[bytes]:
    return files.path.read_bytes().splitlines(keepends=True)


def checked(files: LogFiles) -> Report:
    return verify(files, keys=[KEY.public])


def bad_index(files: LogFiles, lines: list[bytes]) -> int | None:
    files.path.write_bytes(b"".join(lines))
    bad = checked(files).bad
    assert bad is not None
    return bad.index


def test_28_the_log_is_sound_and_another_implementation_says_so(whole: LogFiles) -> None:
    report = checked(whole)
    assert (report.bad, report.n_records, report.covered) == (None, N_RECORDS, N_RECORDS)
    assert (report.checked, report.signed_by) == (True, ("example.com/audit",))
    other = pymerkle.InmemoryTree(algorithm="sha256")
    for line in lines_of(whole):
        other.append_entry(line[:-1])
    # Named get_state before pymerkle 7.
    root = (getattr(other, "get_root", None) or other.get_state)()
    checkpoint = read_checkpoint(whole.checkpoint)
    assert checkpoint is not None
    assert root == checkpoint.root == bytes.fromhex(report.root or "")


def test_28_every_byte_flipped(whole: LogFiles) -> None:
    """Each byte of the file, with one bit turned: the walk stops there, or the checkpoint says no."""
    data, lines = whole.path.read_bytes(), lines_of(whole)
    checkpoint = read_checkpoint(whole.checkpoint)
    assert checkpoint is not None
    draw = random.Random(0)
    walk, start, n_flipped, n_found, n_late = Walk(), 0, 0, 0, 0
    for index, line in enumerate(lines):
        for at in range(len(line)):
            flipped = bytearray(line)
            flipped[at] ^= 1 << draw.randrange(8)
            # Two records on are enough: what follows is as it was, so what is wrong shows by then.
            after = data[start + len(line) :][: sum(map(len, lines[index + 1 : index + 3]))]
            ends = index + 3 >= len(lines)
            n_flipped += 1
            found = first_bad(walk.copy(), bytes(flipped) + after, checkpoint if ends else None)
            n_found += found is not None
            # At most the record that follows is blamed, before `verify` looks at both.
            n_late += found is not None and found > index + 1
        walk.take(line)
        start += len(line)
    assert n_flipped == n_found == len(data)
    assert n_flipped > 40_000
    assert n_late == 0


def first_bad(walk: Walk, data: bytes, checkpoint: Checkpoint | None) -> int | None:
    for line in split(data):
        if not line.endswith(b"\n"):
            break
        try:
            walk.take(line)
        except Broken as broken:
            return broken.index
    if checkpoint and (walk.tree.size, walk.tree.root()) != (checkpoint.size, checkpoint.root):
        return walk.tree.size - 1
    return None


def split(data: bytes) -> list[bytes]:
    return [each + b"\n" for each in data.split(b"\n")[:-1]]


def test_28_an_edit_in_every_record_is_named(copy: LogFiles) -> None:
    lines, found = lines_of(copy), 0
    for index, line in enumerate(lines):
        edited = line.replace(b'"time":1', b'"time":2')
        assert edited != line
        found += bad_index(copy, [*lines[:index], edited, *lines[index + 1 :]]) == index
    assert found == len(lines) == N_RECORDS


def test_28_an_edit_of_a_place_in_the_chain_is_named(copy: LogFiles) -> None:
    lines, found = lines_of(copy), 0
    for index in range(1, len(lines)):
        at = lines[index].index(b'"prev":"') + 8
        digit = b"0" if lines[index][at : at + 1] != b"0" else b"1"
        edited = lines[index][:at] + digit + lines[index][at + 1 :]
        found += bad_index(copy, [*lines[:index], edited, *lines[index + 1 :]]) == index
    assert found == len(lines) - 1


def test_28_every_record_removed(copy: LogFiles) -> None:
    lines = lines_of(copy)
    named = [bad_index(copy, lines[:i] + lines[i + 1 :]) for i in range(len(lines))]
    assert named == list(range(N_RECORDS))


def test_28_every_adjacent_pair_swapped(copy: LogFiles) -> None:
    lines = lines_of(copy)
    named = [
        bad_index(copy, [*lines[:i], lines[i + 1], lines[i], *lines[i + 2 :]])
        for i in range(len(lines) - 1)
    ]
    assert named == list(range(N_RECORDS - 1))


def test_28_every_record_twice(copy: LogFiles) -> None:
    lines = lines_of(copy)
    named = [bad_index(copy, lines[: i + 1] + lines[i:]) for i in range(len(lines))]
    assert named == list(range(1, N_RECORDS + 1))


def test_28_cut_off_anywhere(copy: LogFiles) -> None:
    lines = lines_of(copy)
    for n in range(len(lines)):
        assert bad_index(copy, lines[:n]) == n
        assert bad_index(copy, [*lines[:n], lines[n][:-1]]) == n


def test_28_whoever_writes_the_chain_anew_cannot_sign_it(copy: LogFiles, tmp_path: Path) -> None:
    """A forger makes a log that is sound in itself, with a checkpoint of a key of his own."""
    folder = tmp_path / "forged"
    folder.mkdir()
    log = AuditLog(folder / copy.path.name)
    log.write([event(n) for n in range(N_RECORDS - 1)])
    log.close()
    forged = LogFiles(log.path)
    assert verify(forged).bad is None
    assert str(checked(forged).bad).endswith("is not signed by the public key")
    shutil.copy(copy.checkpoint, forged.checkpoint)
    bad = checked(forged).bad
    assert bad is not None
    assert "checkpoint of example.com/audit" in bad.what
    mine = SigningKey(KEY.name, bytes(32))
    checkpoint = read_checkpoint(copy.checkpoint)
    assert checkpoint is not None
    copy.checkpoint.write_text(
        Checkpoint.make(checkpoint.origin, checkpoint.size, checkpoint.root, mine).note
    )
    assert str(checked(copy).bad).endswith("is not signed by the public key")


def test_28_a_rewritten_end_under_the_true_checkpoint(copy: LogFiles, tmp_path: Path) -> None:
    """From a record on the chain is another one, and fits: the checkpoint says since when it may be wrong."""
    kept = copy.checkpoint.read_text()
    copy.checkpoint.unlink()
    copy.path.write_bytes(b"".join(lines_of(copy)[:100]))
    log = AuditLog(copy.path)
    log.write([event(n) for n in range(101)])
    log.close()
    copy.checkpoint.write_text(kept)
    bad = checked(copy).bad
    assert bad is not None
    assert (bad.index, bad.line) == (200, 201)
    assert "all since a record from 0 on were written anew" in bad.what


def test_28_a_checkpoint_that_was_kept_elsewhere(tmp_path: Path) -> None:
    """Log and checkpoint cut back together: only somebody who kept a later checkpoint can tell."""
    files = make_log(tmp_path, 3)
    early = (files.path.read_bytes(), files.checkpoint.read_text())
    make_log(tmp_path, 2)
    late = read_checkpoint(files.checkpoint)
    assert late is not None
    assert verify(files, keys=[KEY.public], checkpoints=[Checkpoint.parse(early[1])]).bad is None
    files.path.write_bytes(early[0])
    files.checkpoint.write_text(early[1])
    assert checked(files).bad is None
    bad = verify(files, keys=[KEY.public], checkpoints=[late]).bad
    assert bad is not None
    assert (bad.index, bad.what) == (7, "is missing: the checkpoint is of 11 records")


def test_28_segments_removed_swapped_and_spliced(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = make_log(tmp_path / "one", 30, rotate_bytes=3000)
    two = make_log(tmp_path / "two", 30, rotate_bytes=3000)
    assert checked(one).bad is None
    names = [path.name for path in one.segments()]
    assert len(names) > 4
    firsts = [path.read_bytes().splitlines()[0] for path in one.segments()]
    saved = {path.name: path.read_bytes() for path in one.path.parent.iterdir()}

    def named(change: Callable[[Path], None]) -> int | None:
        change(one.path.parent)
        report = checked(one)
        for path in one.path.parent.iterdir():
            path.unlink()
        for name, data in saved.items():
            (one.path.parent / name).write_bytes(data)
        assert report.bad is not None
        return report.bad.index

    def first_index(n: int) -> int:
        return int(firsts[n].split(b'"index":')[1].split(b",")[0])

    found = 0
    for n, name in enumerate(names):
        expected = first_index(n) if n else 0
        found += named(lambda d, name=name: (d / name).unlink()) == expected  # type: ignore[misc]
    for n in range(len(names) - 1):

        def swap(folder: Path, n: int = n) -> None:
            (folder / names[n]).write_bytes(saved[names[n + 1]])
            (folder / names[n + 1]).write_bytes(saved[names[n]])

        found += named(swap) is not None

    def splice(folder: Path) -> None:
        shutil.copy(two.segments()[2], folder / names[2])

    found += named(splice) == first_index(2)
    assert found == 2 * len(names)
    one.checkpoint.unlink()
    assert "there is no checkpoint" in str(checked(one).bad)


def test_a_compressed_segment_that_is_damaged(tmp_path: Path) -> None:
    files = make_log(tmp_path, 8, rotate_bytes=1500, compress=True)
    packed = files.segments()[1]
    data = packed.read_bytes()
    assert gzip.decompress(data).startswith(b'{"chain":')
    found = 0
    for at in range(len(data)):
        packed.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        try:
            found += checked(files).bad is not None
        except AuditError:
            found += 1
    # gzip's own header holds a time, flags and a system, which say nothing of the content.
    assert found >= len(data) - 10
    packed.write_bytes(data[:-20])
    bad = checked(files).bad
    assert bad is not None
    assert "cannot be unpacked" in bad.what


def test_without_a_key_or_checkpoint_it_says_what_was_not_looked_at(copy: LogFiles) -> None:
    assert verify(copy).remarks == ["signatures were not checked: no public key was given"]
    copy.checkpoint.unlink()
    report = verify(copy)
    assert report.bad is None
    assert report.remarks == ["there is no checkpoint: records missing at the end go unseen"]


def test_a_part_of_a_log_is_sound_where_one_knows_it_is_a_part(tmp_path: Path) -> None:
    files = make_log(tmp_path, 30, rotate_bytes=3000)
    files.segments()[0].unlink()
    assert checked(files).bad is not None
    report = verify(files, keys=[PublicKey.parse(KEY.public.text)], partial=True)
    assert report.bad is None
    assert report.first > 0
