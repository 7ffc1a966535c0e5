"""The file with the key that signs a log's checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

from scope_runtime.audit.note import SigningKey
from scope_runtime.errors import AuditError, Location


def read_signing_key(path: str | Path) -> SigningKey:
    """Reads a file made by ``scope audit keygen``.

    Raises:
        AuditError: it cannot be read, others may read it, or it is no key.
    """
    path = Path(path)
    location = Location(str(path))
    try:
        status = path.stat()
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError(
            "the signing key cannot be read", location=location, found=str(error)
        ) from None
    # A secret that a cluster mounts belongs to root, and to the process by its group: the group is its reader.
    mode = status.st_mode & 0o777
    if mode & (0o077 if status.st_uid == os.geteuid() else 0o037):
        raise AuditError(
            "the signing key is open to others",
            location=location,
            found=f"mode {mode:o}",
            expected="600",
        )
    try:
        return SigningKey.parse(text)
    except AuditError as error:
        error.location = location
        raise
