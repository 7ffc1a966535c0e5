"""What a user may say to their llama-server, and what only the gateway may."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scope_runtime.errors import UsageError

_MODEL = ("-m", "--model")
_OURS = "the gateway reaches the server by an address, a key and routes of its own"
_ROUTER = "a router loads its models in other processes, where the hook is not"
_FILE = "policies are held against the model's file, so it must be one: give -m FILE"
_STEERS = "it steers, and what no policy says is not on record"
_KV = "it would use KV that was computed under another policy"
_CHECKPOINTS = "what a checkpoint brings back is KV that nobody can say the policy of"
_TOOLS = "it lets the server act by itself, around the gateway"
_UNPINNED = "llama-server picks an embedding's slot itself, so nobody could say under which policies it is computed"
_OTHER = "the server would do something else than answer"
_LOG = "what it says is passed on, and quoted where it does not start"
_SLEEPS = "a model that is loaded again is a context that nobody has proved"

_REASONS: Mapping[str, str] = {
    _OURS: "--host --port --reuse-port --api-key --api-key-file --ssl-key-file --ssl-cert-file --api-prefix --path "
    "--no-slots --props",
    _ROUTER: "--models-dir --models-preset --models-max --models-autoload --no-models-autoload",
    _FILE: "-mu --model-url -dr --docker-repo -hf -hfr --hf-repo -hff --hf-file --embd-gemma-default "
    "--gpt-oss-20b-default --gpt-oss-120b-default --vision-gemma-4b-default --fim-qwen-1.5b-default "
    "--fim-qwen-3b-default --fim-qwen-7b-default --fim-qwen-7b-spec --fim-qwen-14b-spec --fim-qwen-30b-default",
    _STEERS: "--control-vector --control-vector-scaled --control-vector-layer-range",
    _KV: "-cram --cache-ram --cache-reuse --slot-save-path --cache-idle-slots",
    _CHECKPOINTS: "-ctxcp --ctx-checkpoints --swa-checkpoints -cms --checkpoint-min-step",
    _TOOLS: "--tools --tools-runtime --mcp-servers-config --mcp-servers-json -ag --agent "
    "--ui-mcp-proxy --webui-mcp-proxy",
    _OTHER: "-h --help --usage --version -cl --cache-list --completion-bash --list-devices",
    _UNPINNED: "--embedding --embeddings --rerank --reranking",
    _SLEEPS: "--sleep-idle-seconds",
    _LOG: "--log-file --log-disable",
}
REFUSED: Mapping[str, str] = {
    flag: reason for reason, flags in _REASONS.items() for flag in flags.split()
}
"""Arguments that a user may not give, and why."""

NO_FOREIGN_KV = ("--cache-ram", "0", "--ctx-checkpoints", "0")
"""Without these llama-server brings back KV that was computed under another policy."""

_CHANGES = frozenset(
    "--lora --lora-scaled --override-kv --rope-scaling --rope-scale --rope-freq-base --rope-freq-scale --yarn-orig-ctx "
    "--yarn-ext-factor --yarn-attn-factor --yarn-beta-slow --yarn-beta-fast".split()
)
"""Arguments by which a server computes something else than the model's file says."""

_REPACKS = ("--repack", "-nr", "--no-repack")
_CPU_INFO = Path("/proc/cpuinfo")
_ENVIRONMENT = ("LLAMA_ARG_", "LLAMA_API_KEY")


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """A llama-server as its user wants it.

    Attributes:
        program: the file to run.
        model: the GGUF file that it is to load.
        arguments: the user's own, the model's among them.
    """

    program: Path
    model: Path
    arguments: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of everything that makes a running server this one: a changed program or model is another."""
        told = [
            str(self.program),
            *_version(self.program),
            *self.model_version,
            *self.arguments,
            str(Path.cwd()),
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    @property
    def model_version(self) -> tuple[int, ...]:
        """What changes when the model's file is written anew or replaced."""
        return _version(self.model)

    @property
    def changes_model(self) -> str | None:
        """The first argument by which the server computes something else than the model's file says; None: none."""
        return next((flag for each in self.arguments if (flag := _flag(each)) in _CHANGES), None)

    def argv(self, port: int, key_file: Path) -> list[str]:
        """The whole command line."""
        ours = ["--host", "127.0.0.1", "--port", str(port), "--api-key-file", str(key_file)]
        return [str(self.program), *self.arguments, *ours, *NO_FOREIGN_KV, "--slots"]


def server_command(
    program: str | Path,
    model: Path | None,
    arguments: Sequence[str],
    cpu_info: Path = _CPU_INFO,
) -> ServerCommand:
    """Checks a user's arguments.

    On a processor with AMX llama.cpp is told not to repack weights where the user says nothing of it: some builds die
    there at the first prompt.

    Args:
        program: a path, or a name on the PATH.
        model: the model, where it is not among the arguments.
        cpu_info: what Linux says of the processors.

    Raises:
        UsageError: there is no such program, no model, or an argument that only the gateway may give.
    """
    found = shutil.which(program)
    if found is None:
        raise UsageError(
            "llama-server cannot be run",
            found=str(program),
            expected="an executable file, or a name on the PATH",
        )
    for argument in arguments:
        flag = _flag(argument)
        if flag in REFUSED:
            raise UsageError(f"{flag} cannot be given to llama-server here: {REFUSED[flag]}")
    named = [
        Path(value)
        for flag, value in zip(arguments, [*arguments[1:], ""], strict=False)
        if _flag(flag) in _MODEL and value
    ]
    if named and model is not None and named != [model]:
        raise UsageError("two models are given", found=f"{model} and {named[-1]}")
    if not named and model is None:
        raise UsageError("no model is given", hint="Give it to llama-server: -- -m FILE")
    if len(named) > 1:
        raise UsageError("two models are given", found=" and ".join(map(str, named)))
    if model is not None and not named:
        arguments = ["--model", str(model), *arguments]
    if _has_amx(cpu_info) and not any(_flag(argument) in _REPACKS for argument in arguments):
        arguments = [*arguments, "--no-repack"]
    return ServerCommand(Path(found).absolute(), model or named[0], tuple(arguments))


def _has_amx(cpu_info: Path) -> bool:
    try:
        told = cpu_info.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any("amx_int8" in line.split() for line in told.splitlines() if line.startswith("flags"))


def _flag(argument: str) -> str:
    """The name of an option as llama.cpp reads it: ``--cache_ram`` is ``--cache-ram``."""
    flag = argument.partition("=")[0]
    return flag.replace("_", "-") if flag.startswith("--") else flag


def _version(path: Path) -> tuple[int, ...]:
    """What changes when a file is written anew or replaced; nothing where there is none, which its reader tells."""
    try:
        about = path.stat()
    except OSError:
        return ()
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def server_environment(hook: Mapping[str, str]) -> dict[str, str]:
    """The environment for the server: ours, without variables that would be arguments, and with the hook's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_ENVIRONMENT)}
    return {**kept, **hook}
