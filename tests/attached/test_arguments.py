"""What may be said to a llama-server, and when one that runs is the one that is asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scope_runtime.attached.arguments import REFUSED, server_command
from scope_runtime.attached.server import ServerFolder
from scope_runtime.errors import HookError, UsageError
from scope_runtime.types import ModelShape


@pytest.mark.parametrize(
    "flag",
    [
        "--cache_ram",
        "--control_vector=x",
        "--slot_save-path",
        "--api-key",
        "-cram",
        "--swa_checkpoints",
    ],
)
def test_an_argument_is_refused_however_llama_cpp_lets_it_be_written(flag: str) -> None:
    told = REFUSED[flag.partition("=")[0].replace("_", "-")]
    with pytest.raises(UsageError, match=told):
        server_command(sys.executable, Path("m.gguf"), ["-np", "2", flag, "8192"])


def test_no_kv_comes_from_elsewhere() -> None:
    """A host cache and checkpoints would bring KV back that the hook did not see computed."""
    told = server_command(sys.executable, Path("m.gguf"), []).argv(1, Path("key"))
    for flag in ("--cache-ram", "--ctx-checkpoints"):
        assert told[told.index(flag) + 1] == "0"


def test_a_model_that_was_replaced_is_another_server(tmp_path: Path) -> None:
    """One that is adopted would compute with the old weights, on record as the new ones."""
    model = tmp_path / "m.gguf"
    model.write_bytes(b"one")
    command = server_command(sys.executable, None, ["-m", str(model)])
    first = command.digest
    assert command.digest == first
    (tmp_path / "new").write_bytes(b"two")
    (tmp_path / "new").replace(model)
    assert command.digest != first


def test_a_model_that_was_replaced_is_not_started_again(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"one")
    command = server_command(sys.executable, None, ["-m", str(model)])
    folder = ServerFolder(tmp_path / "server", command, lambda line: None)
    try:
        model.write_bytes(b"another")
        with pytest.raises(HookError, match="another one than when the gateway started"):
            folder.start(ModelShape("qwen3", 4, 256))
    finally:
        folder.close()


@pytest.mark.parametrize(
    ("flags", "said", "sent"),
    [
        ("fpu avx2 amx_bf16 amx_tile amx_int8", [], ["--no-repack"]),
        ("fpu avx2 amx_bf16 amx_tile amx_int8", ["--repack"], ["--repack"]),
        ("fpu avx2 amx_bf16 amx_tile amx_int8", ["-nr"], ["-nr"]),
        ("fpu avx2 avx512_vnni", [], []),
    ],
)
def test_weights_are_not_repacked_where_some_builds_die_of_it(
    flags: str, said: list[str], sent: list[str], tmp_path: Path
) -> None:
    """Repacked for AMX: the first prompt is the end of some builds, whatever policies there are."""
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t:\n")
    command = server_command(sys.executable, Path("m.gguf"), said, info)
    assert [each for each in command.arguments if "repack" in each or each == "-nr"] == sent
    assert set(sent) <= set(command.argv(1, Path("key")))
    nowhere = server_command(sys.executable, Path("m.gguf"), said, tmp_path / "none")
    assert list(nowhere.arguments[2:]) == said
