"""What people ask a log for, in words: times as they write them, names as they stand in records."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta, timezone

from scope_runtime.audit.read import Query
from scope_runtime.errors import UsageError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def make_query(
    since: str | None,
    until: str | None,
    request: str | None,
    rule: str | None,
    policy: str | None,
    kind: str | None,
) -> Query:
    """The options as a query. Raises: UsageError."""
    if kind is not None and kind not in ("request", "alert", "policy", "runtime"):
        raise UsageError("unknown kind", found=kind, expected="request, alert, policy or runtime")
    now = time.time()
    return Query(
        since=parse_time(since, now) if since else None,
        until=parse_time(until, now) if until else None,
        request=request,
        rule=rule,
        policy=policy,
        kind=kind,
    )


def parse_time(text: str, now: float) -> float:
    """``2026-11-21``, ``2026-11-21T10:00Z`` or ``24h`` before ``now``, as seconds since the epoch.

    A time without a zone is UTC, like the times that are printed.

    Raises:
        UsageError: it is neither.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", text)
    if match:
        return now - timedelta(**{_UNITS[match[2]]: float(match[1])}).total_seconds()
    try:
        # Python 3.10 reads no Z.
        when = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))
    except ValueError:
        raise UsageError(
            "this is no time", found=text, expected="2026-11-21T10:00Z, or 30m, 24h, 7d"
        ) from None
    return (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()
