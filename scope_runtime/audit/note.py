"""Signed notes and checkpoints: c2sp.org/signed-note and c2sp.org/tlog-checkpoint, with Ed25519."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from scope_runtime.errors import AuditError

_ED25519 = b"\x01"
_PRIVATE = "PRIVATE+KEY+"
_DASH = "— "
_MAX_NOTE_BYTES = 1 << 16


def check_name(name: str) -> str:
    """A key's or log's name, if it may be one.

    Raises:
        AuditError: it is empty, or has a space, a control character or a plus in it.
    """
    if not name or "+" in name or any(c.isspace() or c < " " for c in name):
        raise AuditError(
            "a key cannot have this name",
            found=repr(name),
            expected="a name without spaces and plus signs, such as example.com/audit",
        )
    return name


@dataclass(frozen=True, slots=True)
class PublicKey:
    """Checks signatures.

    Attributes:
        name: by which signatures name it.
        raw: the 32 bytes of RFC 8032.
    """

    name: str
    raw: bytes

    @property
    def key_id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.raw).digest()[:4]

    @property
    def text(self) -> str:
        """One line: name, id and key, joined by plus signs."""
        return f"{self.name}+{self.key_id.hex()}+{b64encode(_ED25519 + self.raw).decode()}"

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Raises: AuditError."""
        name, raw = _parse_key(text, "public")
        key = cls(name, raw)
        if key.text != text.strip():
            raise AuditError("this is no public key: its id does not fit", found=repr(text.strip()))
        return key

    def signed(self, note: str) -> bool:
        """Whether the note has a signature of this key, and a right one."""
        text, _, signatures = note.rpartition("\n\n")
        for line in signatures.splitlines():
            name, _, value = line.removeprefix(_DASH).partition(" ")
            try:
                data = b64decode(value, validate=True)
            except ValueError:
                return False
            if not line.startswith(_DASH) or name != self.name or data[:4] != self.key_id:
                continue
            try:
                Ed25519PublicKey.from_public_bytes(self.raw).verify(
                    data[4:], (text + "\n").encode()
                )
            except InvalidSignature:
                return False
            return True
        return False


@dataclass(frozen=True, slots=True, repr=False)
class SigningKey:
    """Signs. Its text is a secret.

    Attributes:
        seed: the 32 secret bytes of RFC 8032.
    """

    name: str
    seed: bytes

    def __repr__(self) -> str:
        return f"SigningKey({self.name!r})"

    @classmethod
    def generate(cls, name: str) -> SigningKey:
        return cls(check_name(name), Ed25519PrivateKey.generate().private_bytes_raw())

    @property
    def public(self) -> PublicKey:
        private = Ed25519PrivateKey.from_private_bytes(self.seed)
        return PublicKey(self.name, private.public_key().public_bytes_raw())

    @property
    def text(self) -> str:
        data = b64encode(_ED25519 + self.seed).decode()
        return f"{_PRIVATE}{self.name}+{self.public.key_id.hex()}+{data}"

    @classmethod
    def parse(cls, text: str) -> SigningKey:
        """Raises: AuditError, which does not repeat the text."""
        name, seed = _parse_key(text.strip().removeprefix(_PRIVATE), "signing")
        key = cls(name, seed)
        if key.text != text.strip():
            raise AuditError("this is no signing key", expected="a file made by scope audit keygen")
        return key

    def sign(self, text: str) -> str:
        """The text, which ends with a newline, as a signed note."""
        private = Ed25519PrivateKey.from_private_bytes(self.seed)
        value = b64encode(self.public.key_id + private.sign(text.encode())).decode()
        return f"{text}\n{_DASH}{self.name} {value}\n"


def _parse_key(text: str, what: str) -> tuple[str, bytes]:
    name, _, rest = text.strip().partition("+")
    _, _, data = rest.partition("+")
    try:
        raw = b64decode(data, validate=True)
    except ValueError:
        raw = b""
    if len(raw) != 33 or raw[:1] != _ED25519:
        raise AuditError(
            f"this is no {what} key", expected="an Ed25519 key made by scope audit keygen"
        )
    return check_name(name), raw[1:]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head: which log, how many records, and the root over them.

    Attributes:
        note: the whole text as it was read or signed.
    """

    origin: str
    size: int
    root: bytes
    note: str

    @classmethod
    def make(cls, origin: str, size: int, root: bytes, key: SigningKey | None) -> Checkpoint:
        """Without a key it ends with the empty line: it shows damage, not forgery."""
        text = f"{origin}\n{size}\n{b64encode(root).decode()}\n"
        return cls(origin, size, root, key.sign(text) if key else f"{text}\n")

    @property
    def signed(self) -> bool:
        return not self.note.endswith("\n\n")

    @property
    def signers(self) -> tuple[str, ...]:
        """Names of the keys that say they signed it."""
        lines = self.note.rpartition("\n\n")[2].splitlines()
        return tuple(line.removeprefix(_DASH).split(" ")[0] for line in lines)

    @classmethod
    def parse(cls, note: str) -> Checkpoint:
        """Reads a checkpoint; whether it is signed rightly is for ``PublicKey.signed`` to say.

        Raises:
            AuditError: it is not of the form.
        """
        body, blank, signatures = note.rpartition("\n\n")
        lines = body.split("\n")
        sound = (
            bool(blank)
            and len(note) <= _MAX_NOTE_BYTES
            and len(lines) >= 3
            and all(lines)
            and re.fullmatch(r"0|[1-9][0-9]{0,15}", lines[1]) is not None
            and all(line.startswith(_DASH) for line in signatures.splitlines())
            and (not signatures or signatures.endswith("\n"))
        )
        try:
            root = b64decode(lines[2], validate=True) if sound else b""
        except ValueError:
            root = b""
        if len(root) != 32 or b64encode(root).decode() != lines[2]:
            raise AuditError(
                "this is no checkpoint",
                found=repr(note[:80]),
                expected="lines of origin, size and root, an empty line, and signatures",
            )
        return cls(lines[0], int(lines[1]), root, note)
