"""``scope serve``: OpenAI's API over a model that runs under policies."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_runtime.cli.options import (
    AnswerContextOption,
    GpuLayersOption,
    RootOption,
    ThreadsOption,
)
from scope_runtime.errors import UsageError
from scope_runtime.types import Pooling, StrEnum

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scope_runtime.attached.arguments import ServerCommand
    from scope_runtime.events import Sink
    from scope_runtime.lifecycle.config import RuntimeConfig
    from scope_runtime.runtime import Runtime
    from scope_runtime.serve.keys import KeyRing
    from scope_runtime.serve.options import ServeOptions
    from scope_runtime.serve.server import Opened


class EngineName(StrEnum):
    """What computes the answers."""

    EMBEDDED = "embedded"
    LLAMA_SERVER = "llama-server"


class PlaneName(StrEnum):
    """How a llama-server is steered."""

    HOOK = "hook"
    CONTROL_VECTOR = "control-vector"


def serve(
    model: Annotated[
        Path | None, typer.Option("--model", "-m", metavar="FILE", help="The model: a GGUF file.")
    ] = None,
    policies: Annotated[
        Path | None,
        typer.Option(
            "--policies", "-P", metavar="FILE|DIR", help="The policies to obey, and to follow."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="A scope.yaml that says all of this."),
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="Where to listen.  [127.0.0.1]")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", metavar="N", min=0, max=65535, help="Of it; 0 takes a free one.  [8080]"
        ),
    ] = None,
    admin: Annotated[
        str | None,
        typer.Option(
            "--admin", metavar="ADDRESS", help="Control routes: HOST:PORT, :PORT or unix:PATH."
        ),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", metavar="FILE", help="API keys (see scope api-key)."),
    ] = None,
    alias: Annotated[
        str | None, typer.Option("--alias", metavar="NAME", help="The model's name in requests.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-label", metavar="NAME", help="A label that requests may set; repeatable."
        ),
    ] = None,
    root: RootOption = None,
    state: Annotated[
        Path | None,
        typer.Option("--state", metavar="DIR", help="Where policies outlive the process."),
    ] = None,
    control: Annotated[
        Path | None,
        typer.Option("--control", metavar="SOCKET", help="Socket for scope status, reload, off."),
    ] = None,
    audit: Annotated[
        Path | None, typer.Option("--audit", metavar="FILE", help="Audit log to append to.")
    ] = None,
    n_gpu_layers: GpuLayersOption = 0,
    threads: ThreadsOption = None,
    ctx: AnswerContextOption = None,
    parallel: Annotated[
        int,
        typer.Option("--parallel", metavar="N", min=1, max=256, help="Answers side by side."),
    ] = 1,
    embeddings: Annotated[
        Pooling | None,
        typer.Option("--embeddings", help="Serve embeddings: what of a text's tokens they are."),
    ] = None,
    sae: Annotated[
        str | None,
        typer.Option(
            "--sae", metavar="SAE[:LAYERS]", help="Whole SAE layers, for the console's Compare."
        ),
    ] = None,
    engine: Annotated[
        EngineName,
        typer.Option("--engine", help="What computes: llama.cpp in this process, or your server."),
    ] = EngineName.EMBEDDED,
    llama_server: Annotated[
        str | None,
        typer.Option("--llama-server", metavar="PATH", help="The llama-server program to start."),
    ] = None,
    plane: Annotated[
        PlaneName,
        typer.Option(
            "--plane", help="How your server is steered: control-vector, where no hook can be."
        ),
    ] = PlaneName.HOOK,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- ARGS]", help="Arguments of llama-server.", show_default=False),
    ] = None,
) -> None:
    """Serve OpenAI's API; every answer is under the policies that select it.

    With --config the model, its policies and their files are said there, and only --host, --port,
    --admin, --keys, --alias, --allow-label and --sae count beside it. SIGHUP reloads policies and keys;
    SIGTERM lets running answers end; a second one does not.

    \b
    Examples:
      scope serve -m model.gguf -P policies/
      scope serve --config scope.yaml --host 0.0.0.0 --keys keys.yaml --admin :8081
      scope serve --engine llama-server -P policies/ -- -m model.gguf -np 8
    """
    from scope_runtime.signals import hold_signals

    hold_signals()
    from scope_runtime.serve.options import ServeOptions, admin_place

    read: RuntimeConfig | None = None
    options = ServeOptions()
    if config is not None:
        from scope_runtime.lifecycle.config import load_config
        from scope_runtime.serve.config import serve_options

        if model is not None or policies is not None:
            raise UsageError("--config says which model and policies", hint="Leave out one of them")
        read = load_config(config)
        options = serve_options(read)
        model = read.model
    command = None
    if engine is EngineName.LLAMA_SERVER:
        from scope_runtime.attached.arguments import server_command

        if (ctx, parallel, n_gpu_layers, threads, embeddings) != (None, 1, 0, None, None):
            raise UsageError(
                "--ctx, --parallel, --embeddings, --n-gpu-layers and --threads are for the embedded engine",
                hint="Give llama-server its own after --: -c, -np, -ngl, -t",
            )
        command = server_command(llama_server or "llama-server", model, arguments or ())
        model = command.model
    elif arguments or llama_server is not None:
        raise UsageError(
            "arguments that nobody takes",
            found=" ".join(arguments or ["--llama-server"]),
            hint="They are for --engine llama-server",
        )
    elif plane is not PlaneName.HOOK:
        raise UsageError(
            "the embedded engine needs no other plane",
            found=f"--plane {plane}",
            hint="It is for --engine llama-server",
        )
    if model is None:
        raise UsageError("no model is given", hint="Give --model FILE, or --config scope.yaml")
    if read is None and policies is None:
        raise UsageError("no policies are given", hint="Give --policies DIR, or --config")
    changes: dict[str, Any] = {
        "listen": dataclasses.replace(
            options.listen,
            host=host if host is not None else options.listen.host,
            port=port if port is not None else options.listen.port,
        ),
        "admin": admin_place(admin) if admin is not None else None,
        "keys": keys,
        "alias": alias,
        "sae": sae,
        "labels": tuple(labels) if labels else None,
    }
    options = dataclasses.replace(
        options, **{name: value for name, value in changes.items() if value is not None}
    )

    if command is not None:
        from scope_runtime.attached.folder import server_folder

        leaving: list[Callable[[], None]] = []
        _serve(
            options,
            model,
            _attached(
                command,
                plane,
                leaving.append,
                server_folder(read.state if read is not None else state, command),
                options,
                read,
                {
                    "policy": policies,
                    "policy_root": root,
                    "state": state,
                    "control": control,
                    "audit": audit,
                },
            ),
            leaving,
        )
        return

    def opened() -> Runtime:
        from scope_runtime.cli.told import Told

        if read is not None:
            from scope_runtime.configured import configured

            return configured(read, Told())
        from scope_runtime.runtime import Runtime

        return Runtime(
            model,
            policies,
            policy_root=root,
            watch=True,
            state=state,
            control=control,
            audit=audit,
            sinks=[Told()],
            n_ctx=ctx,
            n_parallel=parallel,
            embeddings=embeddings,
            n_gpu_layers=n_gpu_layers,
            n_threads=threads,
        )

    def embedded(ring: KeyRing) -> Opened:
        from scope_runtime.serve.admin import Control
        from scope_runtime.serve.embedded import Embedded
        from scope_runtime.serve.server import Opened

        runtime = opened()
        try:
            return Opened(Embedded(runtime), Control.of(runtime.hosted, ring))
        except BaseException:
            runtime.close()
            raise

    _serve(options, model, embedded)


def _attached(
    command: ServerCommand,
    plane: PlaneName,
    leaving: Callable[[Callable[[], None]], None],
    folder: Path,
    options: ServeOptions,
    read: RuntimeConfig | None,
    said: dict[str, Any],
) -> Callable[[KeyRing], Opened]:
    """What opens a llama-server, as a configuration or, without one, as the options say."""

    def opened(ring: KeyRing) -> Opened:
        from scope_runtime.attached.runtime import AttachedRuntime
        from scope_runtime.cli.told import Told
        from scope_runtime.configured import opened_by
        from scope_runtime.serve.admin import Control
        from scope_runtime.serve.attached import AttachedEngine
        from scope_runtime.serve.server import Opened
        from scope_runtime.told import tell

        kind: type[AttachedRuntime] = AttachedRuntime
        if plane is PlaneName.CONTROL_VECTOR:
            from scope_runtime.attached.vector_runtime import VectorRuntime

            kind = VectorRuntime

        def of_config(config: RuntimeConfig, sinks: Sequence[Sink]) -> AttachedRuntime:
            return kind(
                command,
                config.policy,
                folder=folder,
                say=tell,
                leaving=leaving,
                hangs_s=options.engine_hangs_s,
                drain_s=options.drain_s,
                policy_root=config.policy_root,
                watch=config.options,
                state=config.state,
                control=config.control,
                audit=config.audit,
                sinks=sinks,
            )

        if read is not None:
            runtime = opened_by(read, of_config, Told())
        else:
            runtime = kind(
                command,
                folder=folder,
                say=tell,
                leaving=leaving,
                hangs_s=options.engine_hangs_s,
                drain_s=options.drain_s,
                sinks=[Told()],
                **said,
            )
        try:
            engine = AttachedEngine(runtime)
            return Opened(engine, Control.of(runtime.hosted, ring), lambda: runtime.trouble)
        except BaseException:
            runtime.close()
            raise

    return opened


def _serve(
    options: ServeOptions,
    model: Path,
    opener: Callable[[KeyRing], Opened],
    leaving: Sequence[Callable[[], None]] = (),
) -> None:
    from scope_runtime.serve.server import serve
    from scope_runtime.told import tell

    serve(options, options.alias or model.stem, opener, tell, leaving)
