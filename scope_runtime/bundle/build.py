"""Policies → a bundle: checked, compiled once, and packed with every file that they name."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scope_runtime.bundle.archive import Bundle, read_archive, write_archive
from scope_runtime.bundle.keys import sign, signer
from scope_runtime.bundle.manifest import BundledPolicy, Entry, Manifest, check_manifest
from scope_runtime.compile import assumed_shape
from scope_runtime.errors import BundleError, Location, UsageError
from scope_runtime.files import open_regular, sha256_of, written_whole
from scope_runtime.merge import merged
from scope_runtime.policy.files import file_path, named_files
from scope_runtime.policy.load import load_policies
from scope_runtime.resolve import load_artefacts
from scope_runtime.select import ProgramSource


def build_bundle(
    source: str | Path, out: str | Path, name: str, *, key: Ed25519PrivateKey | None = None
) -> Bundle:
    """Packs one policy, or every policy of a directory; the same input gives the same bytes.

    Args:
        source: a policy file or a directory of policies. Every file that they name must lie in its
            folder.
        out: the bundle; written whole or not at all.
        name: what the bundle is called.
        key: signs it; None leaves it unsigned.

    Raises:
        ScopeError: a policy is invalid, cannot be carried out or contradicts another; or the bundle cannot
            be written.
    """
    path = Path(source)
    root = path if path.is_dir() else path.parent
    policies = load_policies(path, root=root)
    whole = merged(policies)
    compiled = ProgramSource(policies, assumed_shape(whole, load_artefacts(whole)))
    files: dict[str, Path] = {}
    for policy in policies:
        files[os.path.relpath(policy.file, root)] = Path(policy.file)
        for named in named_files(policy):
            files[named] = file_path(policy, named)
    if Path(out).resolve() in {file.resolve() for file in files.values()}:
        raise UsageError("the bundle would replace one of its files", found=str(out))
    entries = [_entry(inside, files[inside]) for inside in sorted(files)]
    manifest = Manifest(
        name=name,
        revision=compiled.revision,
        policies=tuple(
            sorted(
                (
                    BundledPolicy(
                        os.path.relpath(policy.file, root),
                        policy.name,
                        compiled.revisions[policy.name],
                    )
                    for policy in policies
                ),
                key=lambda policy: policy.file,
            )
        ),
        files=tuple(entries),
    )
    check_manifest(manifest)
    raw = manifest.serialised()
    signature = sign(raw, key) if key is not None else None
    with written_whole(out, BundleError) as temporary:
        with temporary.open("wb") as stream:
            write_archive(stream, raw, signature, [(entry, files[entry.path]) for entry in entries])
        read_archive(temporary, [key.public_key()] if key is not None else ())
    return Bundle(
        Path(out),
        manifest,
        f"sha256:{hashlib.sha256(raw).hexdigest()}",
        None if signature is None else signer(signature),
        verified=key is not None,
    )


def _entry(inside: str, path: Path) -> Entry:
    with open_regular(path, BundleError) as file:
        size = os.fstat(file.fileno()).st_size
        digest = sha256_of(file)
        if os.fstat(file.fileno()).st_size != size:
            raise BundleError("the file changed meanwhile", location=Location(str(path)))
    return Entry(inside, size, digest)
