"""``scope api-key``: a key for a server's users or operators; the file keeps its digest, nobody keeps the key."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from scope_runtime.cli.options import parse_labels
from scope_runtime.errors import PolicyError, UsageError
from scope_runtime.files import written_whole

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_EMPTY = "apiVersion: scope/v1\nkind: Keys\nkeys: []\n"


def api_key(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Its holder, as records and the queue name them.")
    ],
    file: Annotated[
        Path, typer.Option("--file", "-f", metavar="FILE", help="The file of keys to add it to.")
    ] = Path("keys.yaml"),
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels", metavar="KEY=VALUE", help="A label of its requests; may be repeated."
        ),
    ] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="For the admin listener, and for nothing else.")
    ] = False,
) -> None:
    """Make an API key, print it once, and add its digest to a file of keys.

    A running server takes the file up at the next reload (SIGHUP, scope reload). To withdraw a key,
    remove its entry and reload.

    \b
    Examples:
      scope api-key acme-web --labels tenant=acme
      scope api-key ops --admin --file /etc/scope/keys.yaml
    """
    from ruamel.yaml import YAML

    from scope_runtime.serve.keys import digest, load_keys, new_key

    if not _NAME.fullmatch(name):
        raise UsageError(
            "not a name for a key",
            found=repr(name),
            expected="1 to 64 letters, digits, -, _ and .",
        )
    if file.exists() and name in (holder.name for holder in load_keys(file)):
        raise UsageError("there is a key of this name", found=name, hint=f"See {file}")
    key = new_key()
    yaml = YAML()
    tree = yaml.load(file.read_text(encoding="utf-8") if file.exists() else _EMPTY)
    entry: dict[str, object] = {"name": name, "sha256": digest(key)}
    if labels:
        entry["labels"] = parse_labels(labels)
    if admin:
        entry["admin"] = True
    tree["keys"].append(entry)
    tree["keys"].fa.set_block_style()
    with written_whole(file, PolicyError) as part, part.open("w", encoding="utf-8") as stream:
        os.fchmod(stream.fileno(), 0o600)
        yaml.dump(tree, stream)
    load_keys(file)
    print(f"{file}: {name} added; the key is printed once, here:", file=sys.stderr)
    print(key)
