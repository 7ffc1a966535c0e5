"""One attempt to tell a receiver: a POST over HTTP, and what came of it in words that hold no secret."""

from __future__ import annotations

import email.utils
import functools
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from scope_runtime.alerts.options import AlertError, Receiver
from scope_runtime.types import StrEnum
from scope_runtime.version import __version__

MOST_ANSWER_BYTES = 16 << 10
_MOST_WORDS = 200


class Verdict(StrEnum):
    """What becomes of a notification after an attempt."""

    DELIVERED = "delivered"
    RETRY = "retry"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one attempt.

    Attributes:
        status: HTTP's status; None: there was no answer.
        words: what happened, for people; never an address, never a secret.
        retry_after_s: how long the receiver asks to be left alone.
    """

    verdict: Verdict
    status: int | None
    words: str
    retry_after_s: float | None = None


def send(
    receiver: Receiver, body: Mapping[str, Any], notification_id: str, *, now: float
) -> Attempt:
    """Posts one notification. Never raises for what a receiver, a network or a secret's file may do.

    A redirect is not followed: it would carry the secret to where nobody configured it. Of the answer at most
    ``MOST_ANSWER_BYTES`` are read.

    Args:
        now: seconds since the epoch, to read a ``Retry-After`` that is a date.
    """
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"scope-runtime/{__version__}",
        "Idempotency-Key": notification_id,
    }
    url = ""
    try:
        url = receiver.address()
        if receiver.secret is not None:
            headers["Authorization"] = receiver.secret.header()
        with (
            httpx.Client(
                timeout=receiver.timeout_s,
                verify=_trust(receiver.ca_file),
                follow_redirects=False,
            ) as client,
            client.stream(
                "POST", url, headers=headers, content=json.dumps(body).encode()
            ) as answer,
        ):
            said = _read(answer, time.monotonic() + receiver.timeout_s)
            return _judge(answer, said, url, now)
    except AlertError as error:
        # Whoever mends the file mends the alert: it is tried again.
        return Attempt(Verdict.RETRY, None, str(error))
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
        return Attempt(Verdict.RETRY, None, _clean(f"{type(error).__name__}: {error}", url))


def _trust(ca_file: Path | None) -> ssl.SSLContext | bool:
    return True if ca_file is None else _context(ca_file, _changed_at(ca_file))


@functools.lru_cache(maxsize=16)
def _context(ca_file: Path, changed_at: int) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise AlertError("no certificates there", found=f"{ca_file}: {error}") from None


def _changed_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _read(answer: httpx.Response, until: float) -> bytes:
    """The beginning of an answer: as much as tells people something, as long as it comes in time."""
    out = b""
    for chunk in answer.iter_raw(4096):
        out += chunk
        if len(out) >= MOST_ANSWER_BYTES or time.monotonic() > until:
            break
    return out[:MOST_ANSWER_BYTES]


def _judge(answer: httpx.Response, said: bytes, url: str, now: float) -> Attempt:
    status = answer.status_code
    text = f"{status} {answer.reason_phrase}".strip()
    if answer.is_success:
        return Attempt(Verdict.DELIVERED, status, text)
    if answer.is_redirect:
        return Attempt(Verdict.REFUSED, status, f"{text}: redirects are not followed")
    words = "".join(c if c.isprintable() else " " for c in said.decode("utf-8", "replace")).strip()
    if words and (answer.headers.get("Content-Type") or "").startswith(("text/plain", "applic")):
        text += f": {words[:_MOST_WORDS]}"
    # The receiver may echo what it was sent, and an address's path may be a secret as well.
    auth = answer.request.headers.get("Authorization", "").partition(" ")[2]
    for secret in (url, answer.request.url.raw_path.decode("ascii").lstrip("/"), auth):
        text = text.replace(secret, "…") if secret else text
    if status == httpx.codes.TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return Attempt(
            Verdict.RETRY, status, text, _retry_after(answer.headers.get("Retry-After"), now)
        )
    return Attempt(Verdict.REFUSED, status, text)


def _retry_after(value: str | None, now: float) -> float | None:
    """Seconds, or a date (RFC 9110, 10.2.3); None for anything else."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - now, 0.0)
    except (TypeError, ValueError, OverflowError):
        return None


def _clean(words: str, url: str) -> str:
    return words.replace(url, "its address")[:_MOST_WORDS] if url else words[:_MOST_WORDS]
