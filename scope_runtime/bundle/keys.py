"""Ed25519 keys in PEM files, and signatures of manifests."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from scope_runtime.bundle.manifest import canonical
from scope_runtime.errors import BundleError, Location
from scope_runtime.files import open_regular, read_exactly, written_whole

_DOMAIN = b"scope-bundle-v1\n"
"""Signed before the manifest, so that a signature made for something else never fits."""
_MAX_KEY_BYTES = 1 << 16
MAX_SIGNATURE_BYTES = 4096


def key_id(key: Ed25519PublicKey) -> str:
    """The first 32 hex digits of the SHA-256 of the raw public key."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:32]


def make_key(private: Path, public: Path) -> Ed25519PublicKey:
    """Writes a new pair; the private key is readable by its owner alone and replaces nothing.

    Raises:
        BundleError: a file exists, or cannot be written.
    """
    for path in (private, public):
        if path.exists():
            raise BundleError("the key exists already", location=Location(str(path)))
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with written_whole(private, BundleError) as temporary:
        temporary.chmod(0o600)
        temporary.write_bytes(secret)
    with written_whole(public, BundleError) as temporary:
        temporary.write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
    return key.public_key()


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """An Ed25519 private key in PKCS #8 PEM, without a password. Raises BundleError."""
    data = _pem(path)
    try:
        key: Any = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as reason:
        raise _no_key(path, "private", str(reason)) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "private", type(key).__name__)
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """An Ed25519 public key in PEM. Raises BundleError."""
    data = _pem(path)
    try:
        key: Any = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as reason:
        raise _no_key(path, "public", str(reason)) from None
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "public", type(key).__name__)
    return key


def _pem(path: Path) -> bytes:
    with open_regular(path, BundleError) as file:
        size = os.fstat(file.fileno()).st_size
        return bytes(read_exactly(file, 0, min(size, _MAX_KEY_BYTES)))


def _no_key(path: Path, kind: str, found: str) -> BundleError:
    return BundleError(
        f"not an Ed25519 {kind} key",
        location=Location(str(path)),
        found=found.splitlines()[0][:120],
        expected="a PEM file",
    )


def sign(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """The signature file of a manifest."""
    signature = key.sign(_DOMAIN + manifest)
    return canonical(
        {
            "algorithm": "ed25519",
            "key": key_id(key.public_key()),
            "signature": base64.b64encode(signature).decode(),
        }
    )


def signer(signature: bytes) -> str:
    """Who claims to have signed; says nothing about whether it is true. Raises BundleError."""
    return _parse(signature)[0]


def check_signature(
    manifest: bytes, signature: bytes | None, keys: Sequence[Ed25519PublicKey]
) -> None:
    """Holds a manifest's signature against the keys that are trusted.

    Raises:
        BundleError: it is unsigned, or signed by nobody who is trusted, or altered.
    """
    if signature is None:
        raise BundleError(
            "the bundle is not signed", expected="a signature by a key that is configured"
        )
    claimed, raw = _parse(signature)
    key = next((key for key in keys if key_id(key) == claimed), None)
    if key is None:
        raise BundleError(
            "the bundle is signed by a key that is not configured",
            found=claimed,
            expected=" or ".join(map(key_id, keys)),
        )
    try:
        key.verify(raw, _DOMAIN + manifest)
    except InvalidSignature:
        raise BundleError("the bundle's signature does not fit its manifest") from None


def _parse(signature: bytes) -> tuple[str, bytes]:
    try:
        document = json.loads(signature)
        algorithm, claimed = document["algorithm"], document["key"]
        raw = base64.b64decode(document["signature"], validate=True)
        same = canonical(
            {"algorithm": algorithm, "key": claimed, "signature": base64.b64encode(raw).decode()}
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BundleError("the bundle's signature cannot be read") from None
    if same != signature or algorithm != "ed25519" or not isinstance(claimed, str):
        raise BundleError("the bundle's signature cannot be read")
    return claimed, raw
