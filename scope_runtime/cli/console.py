"""``scope console``: the operators' page on a model of one's own, without a server for others."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from scope_runtime.cli.options import GpuLayersOption, ThreadsOption
from scope_runtime.errors import UsageError

_KEYS = "apiVersion: scope/v1\nkind: Keys\nkeys:\n  - {{name: console, sha256: {digest}, admin: true}}\n"


def console(
    model: Annotated[
        Path, typer.Option("--model", "-m", metavar="FILE", help="The model: a GGUF file.")
    ],
    policies: Annotated[
        Path,
        typer.Option(
            "--policies", "-P", metavar="DIR", help="Policies and packs; what is saved goes there."
        ),
    ] = Path("policies"),
    sae: Annotated[
        str | None,
        typer.Option("--sae", "-s", metavar="SAE[:LAYERS]", help="Whole SAE layers, for Compare."),
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            "--port", metavar="N", min=0, max=65535, help="Of 127.0.0.1; 0 takes a free one."
        ),
    ] = 8081,
    audit: Annotated[
        Path | None, typer.Option("--audit", metavar="FILE", help="Audit log to append to.")
    ] = None,
    n_gpu_layers: GpuLayersOption = 0,
    threads: ThreadsOption = None,
    ctx: Annotated[
        int, typer.Option("--ctx", "-c", metavar="N", min=8, help="Tokens of context, per answer.")
    ] = 4096,
) -> None:
    """Open the console on a model: compare texts, steer, save policies.

    Prints an address and a key for this one run; nobody but this machine reaches it. The policies
    of the directory are in force, and followed; it may be without any yet.

    \b
    Examples:
      scope console -m model.gguf
      scope console -m model.gguf -P policies/ --sae sae/:20
    """
    from scope_runtime.signals import hold_signals

    hold_signals()
    from scope_runtime.lifecycle.address import Address
    from scope_runtime.lifecycle.types import Options
    from scope_runtime.runtime import Runtime
    from scope_runtime.serve.admin import Control
    from scope_runtime.serve.embedded import Embedded
    from scope_runtime.serve.keys import KeyRing, digest, new_key
    from scope_runtime.serve.options import ServeOptions
    from scope_runtime.serve.server import Opened, serve

    if not policies.is_dir():
        raise UsageError(
            "no such directory of policies",
            found=str(policies),
            hint="Make it and put a feature pack into it, or name another with --policies",
        )
    if sae is not None:
        from scope_runtime.cli.inspecting import opened

        opened(sae, model)

    def opener(ring: KeyRing) -> Opened:
        runtime = Runtime(
            model,
            policies,
            watch=Options(fail="open"),
            audit=audit,
            n_ctx=ctx,
            n_parallel=2,  # both answers of a trial come at once
            n_gpu_layers=n_gpu_layers,
            n_threads=threads,
        )
        try:
            return Opened(Embedded(runtime), Control.of(runtime.hosted, ring))
        except BaseException:
            runtime.close()
            raise

    key = new_key()

    def ready(line: str) -> None:
        what, _, place = line.partition(": ")
        if what == "admin":
            print(f"console: {place}/console/\nkey: {key}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="scope-console-") as folder:
        keys = Path(folder) / "keys.yaml"
        keys.write_text(_KEYS.format(digest=digest(key)), encoding="utf-8")
        here = "127.0.0.1"
        options = ServeOptions(
            listen=Address(here, 0), admin=Address(here, port), keys=keys, sae=sae
        )
        serve(options, model.stem, opener, ready)
