"""API keys: a file of digests, read again when asked; who a key belongs to, in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scope_runtime.errors import Location, PolicyError, PolicyErrors, ScopeError
from scope_runtime.policy.schema import schema_findings
from scope_runtime.policy.yaml12 import MAX_FILE_BYTES, decode, parse

SCHEMA_PATH = Path(__file__).with_name("keys.schema.json")
PREFIX = "scope-"
_RANDOM_BYTES = 32
MAX_KEY_CHARS = 512
"""Of what a client sends; longer is no key of ours."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a key belongs to. The key itself is known to nobody but them."""

    name: str
    sha256: str = field(repr=False)
    labels: Mapping[str, str]
    admin: bool = False


def new_key() -> str:
    """A key of 256 random bits: high enough for a plain digest to keep it."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest(key: str) -> str:
    """What the file keeps of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def load_keys(path: Path) -> tuple[Holder, ...]:
    """Reads and checks a file of keys.

    Raises:
        PolicyErrors: everything that is wrong with it, in file order.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        unreadable = PolicyError(
            "the keys cannot be read",
            location=Location(str(path)),
            found=error.strerror or str(error),
            hint="Make one with `scope api-key`",
        )
        raise PolicyErrors((unreadable,)) from None
    document = parse(decode(data, str(path)), str(path))
    errors: list[ScopeError] = [error for _, error in document.errors]
    errors += [finding.error for finding in schema_findings(document, SCHEMA_PATH)]
    if errors:
        raise PolicyErrors(tuple(errors))
    holders = tuple(
        Holder(
            each["name"],
            each["sha256"],
            dict(each.get("labels", {})),
            bool(each.get("admin", False)),
        )
        for each in document.tree["keys"]
    )
    for what in ("name", "sha256"):
        values = [getattr(holder, what) for holder in holders]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            found = twice[0] if what == "name" else f"{twice[0][:8]}…"
            raise PolicyErrors(
                (
                    PolicyError(
                        f"two keys have one {what}", location=Location(str(path)), found=found
                    ),
                )
            )
    return holders


class KeyRing:
    """The keys in force.

    Args:
        path: their file; None: nobody needs one.

    Raises:
        PolicyErrors: see ``load_keys``.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._holders = load_keys(path) if path is not None else ()

    def reload(self) -> None:
        """Reads the file again; on PolicyErrors the old keys stay good."""
        self.read()()

    def read(self) -> Callable[[], None]:
        """Reads the file again; what is returned takes the keys up. Raises PolicyErrors."""
        holders = self._holders if self.path is None else load_keys(self.path)

        def take_up() -> None:
            self._holders = holders

        return take_up

    @property
    def has_admin(self) -> bool:
        """Whether some key is good for the admin listener."""
        return any(holder.admin for holder in self._holders)

    def holder(self, key: str, *, admin: bool = False) -> Holder | None:
        """Whose key it is; None for no key, and for one that is not for this listener.

        Every digest is compared, and each in constant time: how long it takes says nothing.
        """
        if len(key) > MAX_KEY_CHARS:
            return None
        mine = digest(key)
        found: Holder | None = None
        for holder in self._holders:
            if hmac.compare_digest(holder.sha256, mine):
                found = holder
        return found if found is not None and found.admin == admin else None


def bearer(header: str | None) -> str | None:
    """The key of an ``Authorization`` header."""
    scheme, _, key = (header or "").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None
