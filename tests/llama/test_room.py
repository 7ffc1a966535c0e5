"""A context that has no room is refused in words, and one beyond the training is told of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scope_runtime import Runtime
from scope_runtime.errors import UsageError
from scope_runtime.llama import room
from scope_runtime.llama.checks import check_model
from tests.conftest import Scope, Tiny
from tests.support.raw_gguf import Key
from tests.support.raw_gguf import model as raw_model

MOST = 2**31 - 1


def kv_bytes(folder: Path, *keys: Key) -> int | None:
    raw = raw_model()
    raw.keys += keys
    (folder / "m.gguf").write_bytes(raw.to_bytes())
    return check_model(folder / "m.gguf").kv_bytes


def attention(name: str, value: int) -> Key:
    return Key(f"qwen3.attention.{name}", "u32", value)


def test_what_a_token_takes_is_its_keys_and_values(tmp_path: Path) -> None:
    heads = attention("head_count", 4)
    assert kv_bytes(tmp_path, heads) == 2 * 4 * 4 * (8 + 8)
    grouped = (heads, attention("head_count_kv", 2))
    assert kv_bytes(tmp_path, *grouped) == 2 * 4 * 2 * (8 + 8)
    wide = (attention("key_length", 16), attention("value_length", 12))
    assert kv_bytes(tmp_path, *grouped, *wide) == 2 * 4 * 2 * (16 + 12)


def test_what_is_not_known_is_not_guessed(tmp_path: Path) -> None:
    heads = attention("head_count", 4)
    assert kv_bytes(tmp_path) is None
    assert kv_bytes(tmp_path, heads, attention("sliding_window", 64)) is None
    assert kv_bytes(tmp_path, heads, Key("qwen3.ssm.state_size", "u32", 64)) is None
    by_layer = Key("qwen3.attention.head_count_kv", "i32[]", [1, 0, 1, 0])
    assert kv_bytes(tmp_path, heads, by_layer) is None


def test_it_is_what_llama_cpp_takes(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    """By the size of a sequence that is saved: keys and values of its tokens, and little else."""
    known = check_model(tiny.model).kv_bytes
    assert known is not None
    with Runtime(tiny.model, n_ctx=256, n_threads=1) as runtime:
        sizes = []
        for n in (32, 160):
            runtime.generate(list(range(3, 3 + n)), max_tokens=1)
            sizes.append(len(runtime._engine.context.save(0)))
    per_token = (sizes[1] - sizes[0]) / 128
    assert known <= per_token <= known + 64  # a cell's position and sequences


def test_a_context_that_does_not_fit_is_refused_in_words(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = check_model(tiny.model).kv_bytes
    assert known is not None
    monkeypatch.setattr(room, "free_bytes", lambda: known * 1000)
    Runtime(tiny.model, n_ctx=500, n_parallel=2, n_threads=1).close()
    with pytest.raises(UsageError, match="the context does not fit into memory") as caught:
        Runtime(tiny.model, n_ctx=501, n_parallel=2)
    assert "found 1,002 tokens, for which llama.cpp takes" in str(caught.value)
    assert "expected at most 1,000, for the" in str(caught.value)


def test_the_memory_that_is_free_is_the_machines(tiny: Tiny, scope: Scope) -> None:
    """Really: llama.cpp would take terabytes."""
    free = room.free_bytes()
    assert free is not None
    assert 0 < free < 1 << 44
    done = scope("run", "-m", tiny.model, "--no-policy", "-p", "x", "--ctx", MOST)
    assert done.returncode == 2
    assert "the context does not fit into memory" in done.stderr


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "a" / "b"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("5000\n")
    (group / "memory.current").write_text("3000\n")
    (group / "memory.stat").write_text("anon 2000\nfile 1000\n")
    (tmp_path / "own").write_text("0::/a/b\n")
    monkeypatch.setattr(room, "_CGROUP", tmp_path / "own")
    monkeypatch.setattr(room, "_CGROUPS", tmp_path)
    assert room.free_bytes() == 3000
    (group / "memory.max").write_text("max\n")
    assert (room.free_bytes() or 0) > 3000


def test_a_context_beyond_the_training_is_told_of(tiny: Tiny, scope: Scope) -> None:
    info = check_model(tiny.model)
    trained = info.n_ctx_train
    assert trained is not None
    assert room.beyond_training(info, trained) is None
    assert room.beyond_training(replace(info, n_ctx_train=None), MOST) is None
    run = ("run", "-m", tiny.model, "--no-policy", "-p", "x", "-n", 1, "--ctx")
    assert "note:" not in scope(*run, trained).stderr
    beyond = f"note: a context of {trained + 1:,} tokens is longer than the {trained:,} that"
    assert beyond in scope(*run, trained + 1).stderr
    with Runtime(tiny.model, n_ctx=trained + 1) as runtime:
        (start,) = [e for e in runtime.events() if e.what == "start"]
        assert start.detail["notes"] == list(runtime.notes) != []


def test_by_default_a_context_is_the_models_up_to_a_bound(tiny: Tiny) -> None:
    info = check_model(tiny.model)
    assert room.context_tokens(replace(info, n_ctx_train=2048), None) == 2048
    assert room.context_tokens(replace(info, n_ctx_train=131_072), None) == room.DEFAULT_CTX == 4096
    assert room.context_tokens(replace(info, n_ctx_train=None), None) == room.DEFAULT_CTX
    assert room.context_tokens(info, 4097) == 4097
    with Runtime(tiny.model, n_threads=1) as runtime:
        assert runtime.notes == ()
        runtime.generate([5, 17, 33], max_tokens=1)
