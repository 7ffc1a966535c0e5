"""Calibration of packs: the model's own activations, computed by PyTorch, in the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converters.calibrate import calibrate
from scope_runtime.errors import PackError
from scope_runtime.llama import library
from scope_runtime.llama.context import Context, ContextOptions
from scope_runtime.packs import FeaturePack, PackLayer, read_pack, write_pack
from scope_runtime.policy.model import EMBEDDING, GateKind
from tests.support.random_model import SHAPES, RandomModel, make_random_model
from tests.support.random_pack import TOP_K, RandomPack, make_random_pack
from tests.support.torch_reference import Gate, Rule, activation, run

library.load()

TEXTS = ["the sun rises and a bird sings", "rain, at last! " * 6, "good morning", "x"]
LAYERS = [EMBEDDING, 2, 4]
N_CTX = 24
IDS = [3, 7, 20, 41]


@pytest.fixture(autouse=True)
def digests_are_remembered_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    return make_random_model("qwen3", tmp_path_factory.mktemp("calibrate"))


@pytest.fixture(scope="module")
def random_pack(tmp_path_factory: pytest.TempPathFactory) -> RandomPack:
    return make_random_pack(SHAPES["qwen3"], tmp_path_factory.mktemp("pack"))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, TEXTS)))
    return path


def cut(whole: PackLayer, gate: GateKind) -> PackLayer:
    """Some of the features; the whole encoder where the gate needs it."""
    topk = gate is GateKind.TOPK
    return replace(
        whole,
        ids=np.array(IDS),
        labels=("",) * len(IDS),
        enc=whole.enc[IDS],
        enc_bias=whole.enc_bias[IDS],
        dec=whole.dec[IDS],
        gate=gate,
        stats=None,
        full_enc=whole.full_enc if topk else None,
        full_enc_bias=whole.full_enc_bias if topk else None,
    )


def packed(random_pack: RandomPack, path: Path, gate: GateKind) -> FeaturePack:
    whole = read_pack(random_pack.folder / random_pack.pack_name)
    layers = [cut(whole.layer(number), gate) for number in LAYERS]
    write_pack(path, whole.model, layers, {"source": "random"})
    return read_pack(path)


def torch_activations(
    model: RandomModel, random_pack: RandomPack, layer: int, gate: str
) -> np.ndarray:
    """Of every feature at every token of every window, (n_tokens, n)."""
    context = Context(model.path, ContextOptions(n_ctx=64, n_threads=1, use_extra_bufts=False))
    latents = random_pack.latents[layer]
    encoder = np.stack([each.w for each in latents])
    bias = np.array([each.b for each in latents], np.float32)
    kind = Gate(gate, k=TOP_K, encoder=encoder, bias=bias)
    wanted = [replace(latents[id], gate=kind) for id in IDS]
    out = []
    for text in TEXTS:
        tokens = context.tokenize(text, special=False)
        for start in range(0, len(tokens), N_CTX):
            rules = [Rule("scale", (wanted[0],), factor=1.0)]
            h = run(model.torch_model, tokens[start : start + N_CTX], rules).residuals[layer]
            out.append(np.stack([activation(each, h) for each in wanted], axis=1))
    context.close()
    return np.concatenate(out)


@pytest.mark.parametrize("gate", [GateKind.RELU, GateKind.TOPK])
def test_statistics_are_those_of_pytorch(
    model: RandomModel, random_pack: RandomPack, texts: Path, tmp_path: Path, gate: GateKind
) -> None:
    path = tmp_path / "p.gguf"
    packed(random_pack, path, gate)
    done = calibrate(path, model.path, texts, n_ctx=N_CTX, n_threads=1)
    assert done.n_texts == 4
    assert done.pack.digest == read_pack(path).digest
    for number in LAYERS:
        wanted = torch_activations(model, random_pack, number, str(gate))
        assert len(wanted) == done.n_tokens
        stats = done.pack.layer(number).stats
        assert stats is not None
        # A token that lies at the gate's edge may fall to either side.
        edge = 1.5 / done.n_tokens
        assert np.allclose(stats.firing_rate, (wanted != 0).mean(axis=0), atol=edge)
        assert np.allclose(stats.max, wanted.max(axis=0), atol=2e-3)
        fired = [wanted[wanted[:, i] != 0, i] for i in range(len(IDS))]
        means = [each.mean() if each.size else 0 for each in fired]
        assert np.allclose(stats.mean, means, atol=0.05)
    assert done.notes == (() if gate is GateKind.TOPK else done.notes)
    assert len(done.notes) == (0 if gate is GateKind.TOPK else len(LAYERS))


def test_thresholds_stand_in_for_the_topk(
    model: RandomModel, random_pack: RandomPack, texts: Path, tmp_path: Path
) -> None:
    path, small = tmp_path / "p.gguf", tmp_path / "small.gguf"
    before = packed(random_pack, path, GateKind.TOPK)
    done = calibrate(path, model.path, texts, small, drop_encoder=True, n_ctx=N_CTX, n_threads=1)
    assert read_pack(path).digest == before.digest
    assert small.stat().st_size < path.stat().st_size / 4
    for number in LAYERS:
        layer = done.pack.layer(number)
        assert layer.gate is GateKind.THRESHOLD
        assert layer.full_enc is None
        assert layer.d_sae == 64
        assert "thresholds stand in for the top-8" in layer.notes[-1]
        best = done.thresholds[number]
        assert layer.thresholds is not None
        assert layer.thresholds.tolist() == pytest.approx([each.value for each in best])
        wanted = torch_activations(model, random_pack, number, "topk") != 0
        pre = torch_activations(model, random_pack, number, "none")
        for i, each in enumerate(best):
            on = pre[:, i] > each.value
            right = (on & wanted[:, i]).sum()
            assert each.precision == pytest.approx(right / max(on.sum(), 1), abs=0.1)
            assert each.recall == pytest.approx(right / max(wanted[:, i].sum(), 1), abs=0.1)
    facts = json.loads(dict(done.pack.provenance)["calibration"])
    assert facts["n_tokens"] == done.n_tokens
    assert facts["texts"]["name"] == "t.jsonl"
    assert dict(done.pack.provenance)["source"] == "random"


def test_the_same_sample_gives_the_same_bytes(
    model: RandomModel, random_pack: RandomPack, texts: Path, tmp_path: Path
) -> None:
    path = tmp_path / "p.gguf"
    packed(random_pack, path, GateKind.TOPK)
    outs = [tmp_path / "1.gguf", tmp_path / "2.gguf"]
    for out in outs:
        calibrate(path, model.path, texts, out, n_ctx=N_CTX, n_threads=1)
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_statistics_that_moved_are_named(
    model: RandomModel, random_pack: RandomPack, texts: Path, tmp_path: Path
) -> None:
    path = tmp_path / "p.gguf"
    packed(random_pack, path, GateKind.NONE)
    done = calibrate(path, model.path, texts, n_ctx=N_CTX, n_threads=1)
    assert done.shifts == ()
    assert calibrate(path, model.path, texts, n_ctx=N_CTX, n_threads=1).shifts == ()
    layers = dict(done.pack.layers)
    stats = layers[2].stats
    assert stats is not None
    mean = stats.mean.copy()
    mean[1] *= 3
    layers[2] = replace(layers[2], stats=replace(stats, mean=mean))
    write_pack(path, done.pack.model, layers.values(), done.pack.provenance)
    [shift] = calibrate(path, model.path, texts, n_ctx=N_CTX, n_threads=1).shifts
    assert (shift.layer, shift.id, shift.what) == (2, 7, "mean activation")


def test_a_pack_for_another_model_is_refused(
    model: RandomModel, random_pack: RandomPack, texts: Path, tmp_path: Path
) -> None:
    path = tmp_path / "p.gguf"
    pack = packed(random_pack, path, GateKind.RELU)
    write_pack(path, replace(pack.model, architecture="llama"), pack.layers.values())
    before = path.read_bytes()
    with pytest.raises(PackError, match="the architecture differs; found qwen3; expected llama"):
        calibrate(path, model.path, texts)
    assert path.read_bytes() == before
