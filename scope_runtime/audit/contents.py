"""Prompts and outputs on record: the log holds a salted commitment to each, and what opens it lies beside the log.

A commitment is SHA-256 over a name for the purpose, 32 random bytes of salt, and the content. Whoever has the opening
(salt and content) can show what was said; once the opening is erased the commitment says nothing, and the chain of
records that holds it is as sound as before.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rfc8785

from scope_runtime.audit.canonical import Body, canonical
from scope_runtime.errors import AuditError
from scope_runtime.events import Content, Event
from scope_runtime.policy.model import Keep

CONTENTS = "contents"
"""The key under which a request's record has its commitments, by ``prompt`` and ``output``."""

SALT_BYTES = 32
_DOMAIN = b"scope-runtime/audit/content/v1"


def commitment(of: str, salt: bytes, data: bytes) -> str:
    """Hex of SHA-256 over ``scope-runtime/audit/content/v1``, a zero byte, ``of``, a zero byte, the salt, the data.

    Args:
        of: ``prompt`` or ``output``, a slash, and ``text``, ``tokens`` or ``salt``.
        data: the text in UTF-8, or the token ids as a JSON list without spaces; nothing for the salt.
    """
    return hashlib.sha256(b"\0".join([_DOMAIN, of.encode(), salt + data])).hexdigest()


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a record says of one content.

    Attributes:
        text, tokens: commitments; the text's is the content's name in the log.
        keep: what was kept of it: ``keep`` or ``commit``.
        salt: a commitment to the salt, where nothing else tells whether it is the one; None where the text does.
    """

    name: str
    keep: str
    text: str
    tokens: str
    salt: str | None = None

    def fields(self) -> dict[str, str]:
        salt = {"salt": self.salt} if self.salt is not None else {}
        return {"keep": self.keep, "text": self.text, "tokens": self.tokens, **salt}


def sealed_in(record: Mapping[str, Any]) -> tuple[Sealed, ...]:
    """The commitments of a record; none where it has none, or what it has is not sound."""
    found = record.get(CONTENTS)
    if not isinstance(found, dict):
        return ()
    out = []
    for name in ("prompt", "output"):
        match found.get(name):
            case {"keep": str(keep), "text": str(text), "tokens": str(tokens), **more}:
                salt = more.get("salt")
                known = salt if isinstance(salt, str) else None
                out.append(Sealed(name, keep, text, tokens, known))
    return tuple(out)


REDACTED = "redacted"


def redacted_in(record: Mapping[str, Any]) -> frozenset[str]:
    """The commitments that a record of the log's own says were redacted."""
    if record.get("kind") != "runtime" or record.get("what") != REDACTED:
        return frozenset()
    found = record.get("commitments")
    listed = found if isinstance(found, list) else ()
    return frozenset(each for each in listed if isinstance(each, str))


@dataclass(frozen=True, slots=True)
class Opening:
    """What opens a commitment: a line of a side file.

    Attributes:
        commitment: the text's, as the record has it.
        time: of the record.
        text, tokens: None where only the salt was kept.
    """

    commitment: str
    request_id: str | None
    time: float
    name: str
    salt: bytes
    text: str | None = None
    tokens: tuple[int, ...] | None = None

    def line(self) -> bytes:
        """Canonical JSON with its newline."""
        kept: dict[str, Any] = {}
        if self.text is not None and self.tokens is not None:
            kept = {"text": self.text, "tokens": list(self.tokens)}
        about = {
            "commitment": self.commitment,
            "request_id": self.request_id,
            "time": self.time,
            "name": self.name,
            "salt": self.salt.hex(),
        }
        return canonical(about | kept) + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Opening | None:
        """None where the line is no opening, or only a part of one."""
        try:
            said = json.loads(line)
            tokens = said.get("tokens")
            opening = cls(
                said["commitment"],
                said["request_id"],
                float(said["time"]),
                said["name"],
                bytes.fromhex(said["salt"]),
                said.get("text"),
                None if tokens is None else tuple(map(int, tokens)),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        sound = line.endswith(b"\n") and isinstance(opening.commitment, str)
        whole = (opening.text is None) == (opening.tokens is None)
        return opening if sound and whole and isinstance(opening.text, str | None) else None

    def opens(self, sealed: Sealed) -> bool:
        """Whether it is what the record committed to."""
        if self.text is None or self.tokens is None:
            # Another salt would make a true claim look false.
            same = sealed.salt == commitment(f"{sealed.name}/salt", self.salt, b"")
            return sealed.keep == Keep.COMMIT and same
        return self.is_of(sealed, text=self.text) and sealed.tokens == commitment(
            f"{sealed.name}/tokens", self.salt, _listed(self.tokens)
        )

    def is_of(self, sealed: Sealed, *, text: str) -> bool:
        """Whether this text is the one that was committed to."""
        return sealed.text == commitment(f"{sealed.name}/text", self.salt, _bytes(text))

    def is_of_tokens(self, sealed: Sealed, tokens: Sequence[int]) -> bool:
        """Whether these tokens are the ones that were committed to."""
        return sealed.tokens == commitment(f"{sealed.name}/tokens", self.salt, _listed(tokens))


def seal(content: Content, request_id: str | None, time: float) -> tuple[Sealed, Opening]:
    """Commits to a content, with a salt of its own."""
    salt = secrets.token_bytes(SALT_BYTES)
    sealed = Sealed(
        content.name,
        str(content.keep),
        commitment(f"{content.name}/text", salt, _bytes(content.text)),
        commitment(f"{content.name}/tokens", salt, _listed(content.tokens)),
        commitment(f"{content.name}/salt", salt, b"") if content.keep is Keep.COMMIT else None,
    )
    opening = Opening(sealed.text, request_id, time, content.name, salt)
    if content.keep is Keep.KEEP:
        text = _bytes(content.text).decode("utf-8")
        opening = Opening(
            sealed.text, request_id, time, content.name, salt, text, tuple(content.tokens)
        )
    return sealed, opening


def body_of(event: Event) -> Body:
    """An event as a body for the log, its contents as commitments; what opens them goes with it.

    Raises:
        AuditError: it cannot be written as JSON.
    """
    record = event.record()
    if not event.contents:
        return Body(record)
    if CONTENTS in record:
        raise AuditError(f"an event cannot have the key {CONTENTS}", found=str(record[CONTENTS]))
    pairs = [seal(each, event.request_id, record["time"]) for each in event.contents]
    record[CONTENTS] = {sealed.name: sealed.fields() for sealed, _ in pairs}
    return Body(record, tuple(opening.line() for _, opening in pairs))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _listed(tokens: Sequence[int]) -> bytes:
    return rfc8785.dumps(list(tokens))
