"""What of the alerts outlives the process: the state file, and the dead letters."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope_runtime.alerts.groups import Group
from scope_runtime.alerts.options import AlertError
from scope_runtime.alerts.outbox import Notification
from scope_runtime.alerts.states import Alert
from scope_runtime.errors import Location
from scope_runtime.files import open_regular, read_exactly, written_whole

STATE_VERSION = 1
LETTER_VERSION = 1
_MOST_STATE_BYTES = 256 << 20
_MOST_LETTER_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Kept:
    """Everything that a restart must not lose, as of ``saved_at``."""

    saved_at: float
    alerts: tuple[Alert, ...] = ()
    groups: tuple[Group, ...] = ()
    waiting: tuple[Notification, ...] = ()


def save_state(path: Path, kept: Mapping[str, Any]) -> None:
    """Writes the state file, whole or not at all. Raises AlertError."""
    with written_whole(path, AlertError) as temporary:
        temporary.chmod(0o600)
        temporary.write_text(json.dumps({"version": STATE_VERSION, **kept}), encoding="utf-8")


def read_state(path: Path) -> Kept | None:
    """What an earlier process left; None: nothing.

    Raises:
        AlertError: what lies there is not what one wrote.
    """
    if not path.exists():
        return None
    with open_regular(path, AlertError) as file:
        data = read_exactly(file, 0, min(os.fstat(file.fileno()).st_size, _MOST_STATE_BYTES))
    try:
        tree = json.loads(data)
        if tree["version"] != STATE_VERSION:
            raise AlertError(
                "alerts of another version",
                location=Location(str(path)),
                found=str(tree["version"]),
                expected=str(STATE_VERSION),
            )
        return Kept(
            float(tree["saved_at"]),
            tuple(map(Alert.of, tree["alerts"])),
            tuple(map(Group.of, tree["groups"])),
            tuple(map(Notification.of, tree["waiting"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise AlertError(
            "the alerts' state is damaged",
            location=Location(str(path)),
            found=f"{type(error).__name__}: {error}",
        ) from None


def put_aside(path: Path, now: float) -> Path:
    """Renames a file that cannot be used, so that people can look at it. Raises AlertError."""
    aside = path.with_name(f"{path.name}.damaged-{now:.0f}")
    try:
        path.rename(aside)
    except OSError as error:
        raise AlertError(
            "cannot be put aside", location=Location(str(path)), found=error.strerror
        ) from None
    return aside


@contextmanager
def only_here(path: Path) -> Iterator[None]:
    """Holds the state file's lock: two processes that share it would each lose what the other keeps.

    Raises:
        AlertError: another process holds it, or it cannot be made.
    """
    lock = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise AlertError(
            "the alerts' state cannot be kept", location=Location(str(path)), found=error.strerror
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise AlertError(
            "another process keeps its alerts there",
            location=Location(str(path)),
            found=error.strerror,
            hint="Give each process a state file of its own",
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def append_letters(
    path: Path, letters: Iterable[tuple[Notification, str]], *, now: float | None = None
) -> None:
    """Adds notifications, each with why it was given up; they are on the disk when this returns.

    Raises:
        AlertError: they are not.
    """
    at = time.time() if now is None else now
    lines = [
        {
            "v": LETTER_VERSION,
            "time": round(at, 6),
            "id": letter.id,
            "receiver": letter.receiver,
            "reason": reason,
            "attempts": letter.attempts,
            "made_at": letter.made_at,
            "body": letter.body,
        }
        for letter, reason in letters
    ]
    if lines:
        _append(path, b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def _append(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise _unwritten(path, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data  # a line that a crash cut off stays by itself
        try:
            left = data
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):  # half a line, for want of space
                os.ftruncate(descriptor, size)
            raise
    except OSError as error:
        raise _unwritten(path, error) from None
    finally:
        os.close(descriptor)


def _unwritten(path: Path, error: OSError) -> AlertError:
    return AlertError(
        "the dead letters cannot be written", location=Location(str(path)), found=error.strerror
    )


def read_letters(path: Path) -> Iterator[Notification]:
    """The dead letters of a file, oldest first; a line that a crash cut off is left out.

    Raises:
        AlertError: no such file, or a line in it is not one of ours.
    """
    with open_regular(path, AlertError) as raw, os.fdopen(os.dup(raw.fileno()), "rb") as file:
        number = 0
        while line := file.readline(_MOST_LETTER_BYTES):
            number += 1
            try:
                tree = json.loads(line)
                if not isinstance(tree, dict) or tree["v"] != LETTER_VERSION:
                    raise ValueError("not a dead letter of this version")
                yield Notification.of({**tree, "next_at": 0.0, "error": tree["reason"]})
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                if _cut_off(line):
                    continue
                raise AlertError(
                    "not a dead letter",
                    location=Location(str(path), number),
                    found=f"{type(error).__name__}: {error}",
                ) from None


def _cut_off(line: bytes) -> bool:
    """Whether a crash may have left this: it begins as a letter does, and does not end as one."""
    return (line.startswith(b'{"v"') and not line.rstrip(b"\n").endswith(b"}}")) or not line.strip()


def replayed_path(path: Path) -> Path:
    """Where the ids of dead letters that were delivered after all are noted."""
    return path.with_name(f"{path.name}.replayed")


def read_replayed(path: Path) -> frozenset[str]:
    """Those ids."""
    try:
        return frozenset(replayed_path(path).read_text(encoding="ascii").split())
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError) as error:
        raise AlertError(
            "cannot be read", location=Location(str(replayed_path(path))), found=str(error)
        ) from None


def note_replayed(path: Path, notification_id: str) -> None:
    """Notes that one was delivered, on the disk when this returns. Raises AlertError."""
    _append(replayed_path(path), f"{notification_id}\n".encode())
