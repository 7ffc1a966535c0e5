"""``scope bundle``: policies with all their files as one signed archive, and its way to other machines."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_runtime.cli.options import JsonOption
from scope_runtime.errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from scope_runtime.bundle.archive import Bundle

TOKEN = "SCOPE_BUNDLE_TOKEN"

app = typer.Typer(
    name="bundle",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Pack policies with all that they name into one signed file, and take it to a fleet.",
)

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's file.")]
PublicKeys = Annotated[
    list[Path] | None,
    typer.Option(
        "--key", "-k", metavar="FILE", help="A trusted public key (PEM); may be repeated."
    ),
]


@app.command()
def build(
    source: Annotated[
        Path, typer.Argument(metavar="POLICIES", help="A policy, or a directory of policies.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The bundle to write.")],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The bundle's name.  [default: the file's]"),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", "-k", metavar="FILE", help="Sign with this Ed25519 key (PEM)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Pack policies with the packs and vectors that they name; the same input gives the same bytes.

    The policies are checked, compiled and held against each other first. Their tests are left out.

    \b
    Examples:
      scope bundle build policies/ -o fleet.bundle --key signing.pem
    """
    from scope_runtime.bundle.build import build_bundle
    from scope_runtime.bundle.keys import read_private_key

    signing = read_private_key(key) if key is not None else None
    stem = out.name.removesuffix(".tar").removesuffix(".bundle")
    bundle = build_bundle(source, out, name or stem, key=signing)
    _say(bundle, as_json=as_json)


@app.command()
def verify(bundle: BundleArgument, key: PublicKeys = None, as_json: JsonOption = False) -> None:
    """Check every byte of a bundle; with a key, that it is signed by it.

    Exit code 0: it is whole, and signed by a given key if one was given; 1: it is not.

    \b
    Examples:
      scope bundle verify fleet.bundle --key signing.pub.pem
    """
    from scope_runtime.bundle.archive import read_archive

    _say(read_archive(bundle, _keys(key)), as_json=as_json)


@app.command()
def inspect(bundle: BundleArgument, key: PublicKeys = None, as_json: JsonOption = False) -> None:
    """Print a bundle's revision, signer, policies and files, and the models that its packs are for.

    \b
    Examples:
      scope bundle inspect fleet.bundle
    """
    from scope_runtime.bundle.archive import read_archive

    with tempfile.TemporaryDirectory(prefix="scope-bundle-") as folder:
        read = read_archive(bundle, _keys(key), unpack_to=Path(folder))
        models = _models(read, Path(folder))
    data = _data(read)
    data["policies"] = [asdict(policy) for policy in read.manifest.policies]
    data["files"] = [{**asdict(e), "model": models.get(e.path)} for e in read.manifest.files]
    if as_json:
        print(json.dumps(data, ensure_ascii=False))
        return
    _print(data)
    for policy in read.manifest.policies:
        print(f"policy   {policy.file}: {policy.name} {policy.revision}")
    for entry in data["files"]:
        model = f", for {entry['model']}" if entry["model"] else ""
        print(
            f"file     {entry['path']}: {entry['bytes']:,} bytes, sha256:{entry['sha256']}{model}"
        )


@app.command()
def push(
    bundle: BundleArgument,
    to: Annotated[
        str,
        typer.Argument(metavar="PLACE", help="https://…, oci:FOLDER[:TAG], or a file or folder."),
    ],
    key: PublicKeys = None,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle and put it where others fetch it; a server gets it by PUT.

    A server's token is read from the environment variable SCOPE_BUNDLE_TOKEN.

    \b
    Examples:
      scope bundle push fleet.bundle https://policies.example/fleet.bundle --key signing.pub.pem
      scope bundle push fleet.bundle oci:layout:stable
    """
    from scope_runtime.bundle.archive import read_archive
    from scope_runtime.bundle.places import push_bundle

    read = read_archive(bundle, _keys(key))
    where = push_bundle(read, to, token=os.environ.get(TOKEN))
    if as_json:
        print(json.dumps({**_data(read), "pushed_to": where}, ensure_ascii=False))
    else:
        print(f"{where}: {read.manifest.name} {read.digest}")


@app.command()
def fetch(
    place: Annotated[
        str,
        typer.Argument(metavar="PLACE", help="https://…, oci:FOLDER[:TAG], or a file or folder."),
    ],
    into: Annotated[
        Path, typer.Option("--into", metavar="DIR", help="Keeps the bundle and its files.")
    ],
    key: PublicKeys = None,
    wait_s: Annotated[
        float,
        typer.Option("--wait", metavar="SECONDS", min=0, help="Longest wait for a new one."),
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Fetch a bundle, check it, and unpack it; the folder of its policies is printed.

    Where the place cannot be reached, the bundle that was kept is checked again and used.

    \b
    Examples:
      scope bundle fetch https://policies.example/fleet.bundle --into state --key signing.pub.pem
    """
    from scope_runtime.bundle.source import BundleSource
    from scope_runtime.errors import BundleError

    source = BundleSource(place, into, _keys(key), token=os.environ.get(TOKEN))
    try:
        bundle = source.fetch(wait_s)
    except BundleError as error:
        bundle = source.restore()
        if bundle is None:
            raise
        typer.echo(f"warning: {error}. The bundle that was kept is used", err=True)
    if bundle is None:
        raise UsageError("the place gave no bundle", found=place)
    source.keep(bundle)
    if as_json:
        print(json.dumps({**_data(bundle), "folder": str(bundle.folder)}, ensure_ascii=False))
    else:
        print(bundle.folder)


@app.command()
def keygen(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The private key to write (PEM).")
    ],
) -> None:
    """Make a pair of keys to sign with: FILE, and FILE's name with .pub.pem for those who verify.

    \b
    Examples:
      scope bundle keygen -o signing.pem
    """
    from scope_runtime.bundle.keys import key_id, make_key

    public = out.with_name(f"{out.name.removesuffix('.pem')}.pub.pem")
    made = make_key(out, public)
    print(f"{out}: private, keep it to yourself\n{public}: public, key {key_id(made)}")


def _keys(paths: list[Path] | None) -> list[Ed25519PublicKey]:
    from scope_runtime.bundle.keys import read_public_key

    return [read_public_key(path) for path in paths or ()]


def _models(bundle: Bundle, folder: Path) -> dict[str, str]:
    """By path in the bundle, the model that a pack says it was made for."""
    from scope_runtime.packs import read_pack
    from scope_runtime.policy.load import load_policy
    from scope_runtime.policy.model import PackFeature

    packs = {
        feature.pack
        for policy in bundle.manifest.policies
        for feature in load_policy(folder / policy.file).features
        if isinstance(feature, PackFeature)
    }
    out = {}
    for path in packs:
        model = read_pack(folder / path).model
        name = f"{model.name}, " if model.name else ""
        out[path] = f"{name}{model.architecture}, {model.layers} blocks, {model.width} wide"
    return out


def _data(bundle: Bundle) -> dict[str, Any]:
    return {
        "path": str(bundle.path),
        "name": bundle.manifest.name,
        "digest": bundle.digest,
        "revision": bundle.manifest.revision,
        "signed_by": bundle.signed_by,
        "verified": bundle.verified,
        "n_policies": len(bundle.manifest.policies),
        "n_files": len(bundle.manifest.files),
        "n_bytes": bundle.manifest.n_bytes,
    }


def _say(bundle: Bundle, *, as_json: bool) -> None:
    data = _data(bundle)
    if as_json:
        print(json.dumps(data, ensure_ascii=False))
    else:
        _print(data)


def _print(data: dict[str, Any]) -> None:
    print(
        f"bundle   {data['name']}: {data['n_policies']} policies, {data['n_files']} files, "
        f"{data['n_bytes']:,} bytes"
    )
    print(f"digest   {data['digest']}")
    print(f"revision {data['revision']}")
    if data["signed_by"] is None:
        print("signed   no")
    else:
        checked = "" if data["verified"] else ", not checked: give --key"
        print(f"signed   by {data['signed_by']}{checked}")
