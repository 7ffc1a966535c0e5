"""Qwen-Scope sets against torch on the same weights, and everything that is refused."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters import FeatureRequest, convert_pack
from converters.features import parse_feature, read_features
from converters.fold import fold_encoder
from converters.inspect import inspect_file
from converters.readers.qwen_scope import QwenScopeSet
from scope_runtime.errors import PackError, ScopeError, UsageError
from scope_runtime.packs import read_pack
from scope_runtime.policy.model import GateKind
from tests.support.mutations import survive
from tests.support.raw_gguf import Key
from tests.support.raw_gguf import model as raw_model

N_LAYERS, D_MODEL, D_SAE, K = 3, 16, 64, 4
CONFIG = {
    "model_type": "topk_sae",
    "base_model": "Qwen/Tiny-Base",
    "d_model": D_MODEL,
    "d_sae": D_SAE,
    "k": K,
    "num_layers": N_LAYERS,
    "hook_point": "resid_post",
    "dtype": "float32",
}
FEATURES = [FeatureRequest(1, 60, "sixty"), FeatureRequest(1, 5), FeatureRequest(0, 7, "seven")]


@dataclass(frozen=True)
class Sae:
    """A set on disk and its weights, ``weights[layer][name]``."""

    path: Path
    weights: list[dict[str, Any]]

    def encode(self, layer: int, h: Any) -> Any:
        """The card's own formula: ``topk(x @ W_enc.T + b_enc, k)``."""
        one = self.weights[layer]
        scores = h @ one["W_enc"].T + one["b_enc"]
        chosen = scores.topk(K, dim=-1)
        return torch.zeros_like(scores).scatter(-1, chosen.indices, chosen.values)


def make(path: Path, dtype: Any = torch.float32) -> Sae:
    path.mkdir()
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator).to(dtype)

    weights = []
    for layer in range(N_LAYERS):
        one = {
            "W_enc": random(D_SAE, D_MODEL),
            "W_dec": random(D_MODEL, D_SAE),
            "b_enc": random(D_SAE),
            "b_dec": random(D_MODEL),
        }
        torch.save(one, path / f"layer{layer}.sae.pt")
        weights.append({name: tensor.float() for name, tensor in one.items()})
    (path / "config.json").write_text(json.dumps(CONFIG))
    return Sae(path, weights)


@pytest.fixture(autouse=True)
def digests_are_remembered_apart(tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def sae(tmp_path: Path) -> Sae:
    return make(tmp_path / "sae")


def test_encoding_and_decoding_are_the_sae_s_own(sae: Sae, tmp_path: Path) -> None:
    pack = convert_pack(
        sae.path, FEATURES, tmp_path / "p.gguf", exact_gate_layers=[0, 1], architecture="qwen3"
    )
    h = torch.randn(200, D_MODEL, generator=torch.Generator().manual_seed(9))
    for layer in (0, 1):
        ours = pack.layers[layer]
        assert ours.gate is GateKind.TOPK
        assert ours.k == K
        assert ours.full_enc is not None
        assert ours.full_enc_bias is not None
        expected = sae.encode(layer, h)
        scores = h.numpy() @ ours.full_enc.T + ours.full_enc_bias
        kth = np.sort(scores, axis=1)[:, -K, None]
        z = np.where(scores >= kth, scores, 0)[:, ours.ids]
        np.testing.assert_allclose(z, expected.numpy()[:, ours.ids], atol=1e-5)
        for row, id in enumerate(ours.ids.tolist()):
            expected_direction = sae.weights[layer]["W_dec"][:, id].numpy()
            assert np.array_equal(ours.dec[row], expected_direction)
            assert np.array_equal(ours.enc[row], sae.weights[layer]["W_enc"][id].numpy())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_are_the_weights_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    sae = make(tmp_path / "sae", getattr(torch, dtype))
    pack = convert_pack(sae.path, FEATURES, tmp_path / "p.gguf", architecture="qwen3")
    ids = [60, 5]
    ours = pack.layers[1]
    assert ours.ids.tolist() == ids
    assert ours.labels == ("sixty", "")
    assert np.array_equal(ours.enc, sae.weights[1]["W_enc"][ids].numpy())
    assert np.array_equal(ours.enc_bias, sae.weights[1]["b_enc"][ids].numpy())
    assert np.array_equal(ours.dec, sae.weights[1]["W_dec"][:, ids].T.numpy())


def test_without_the_whole_encoder_a_relu_stands_in(sae: Sae, tmp_path: Path) -> None:
    out = tmp_path / "p.gguf"
    pack = convert_pack(sae.path, FEATURES, out, exact_gate_layers=[0], architecture="qwen3")
    assert pack.layers[0].notes == ()
    assert pack.layers[1].gate is GateKind.RELU
    assert pack.layers[1].k == K
    assert pack.layers[1].d_sae == D_SAE
    assert pack.layers[1].notes == (
        "top-4 gate without the full encoder: relu stands in, and a feature can be active where "
        "the SAE would not have chosen it among its 4",
    )


def test_where_it_comes_from(sae: Sae, tmp_path: Path) -> None:
    (sae.path / "LICENSE").write_text("Do no harm.\r\nNot even a little.\n")
    out = tmp_path / "p.gguf"
    provenance = dict(convert_pack(sae.path, FEATURES, out, architecture="qwen3").provenance)
    assert provenance["source"] == "Qwen/Tiny-Base"
    assert provenance["sae.kind"] == "qwen-scope topk_sae"
    assert provenance["licence"] == "Do no harm.\nNot even a little.\n"
    assert {key for key in provenance if key.startswith("sha256.")} == {
        "sha256.config.json",
        "sha256.license",
        "sha256.layer0.sae.pt",
        "sha256.layer1.sae.pt",
    }
    convert_pack(sae.path, FEATURES, out, architecture="qwen3", digests=False)
    assert not any(key.startswith("sha256.") for key, _ in read_pack(out).provenance)


def test_same_input_same_bytes(sae: Sae, tmp_path: Path) -> None:
    files = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for file in files:
        convert_pack(sae.path, FEATURES, file, exact_gate_layers=[1], architecture="qwen3")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_model_s_own_file_says_what_it_is(sae: Sae, tmp_path: Path) -> None:
    raw = raw_model()
    raw.key("qwen3.block_count").value = N_LAYERS
    raw.key("qwen3.embedding_length").value = D_MODEL
    model = tmp_path / "m.gguf"
    model.write_bytes(raw.to_bytes())
    pack = convert_pack(sae.path, FEATURES, tmp_path / "p.gguf", model=model)
    assert pack.model.architecture == "qwen3"
    assert (pack.model.layers, pack.model.width) == (N_LAYERS, D_MODEL)
    raw.keys.append(Key("qwen3.nextn_predict_layers", "u32", 1))
    model.write_bytes(raw.to_bytes())
    with pytest.raises(PackError) as caught:
        convert_pack(sae.path, FEATURES, tmp_path / "p.gguf", model=model)
    assert str(caught.value) == (
        f"{model}: the SAEs are not of this model: the number of layers differs; "
        "found 2; expected 3"
    )


def test_a_set_without_configuration(sae: Sae, tmp_path: Path) -> None:
    (sae.path / "config.json").unlink()
    out = tmp_path / "p.gguf"
    with pytest.raises(UsageError) as caught:
        convert_pack(sae.path, FEATURES, out, architecture="qwen3")
    assert str(caught.value) == (
        f"{sae.path}: k of the top-k gate is not known: the set has no config.json, or none with "
        "k. Give it with --k"
    )
    with pytest.raises(UsageError) as caught:
        convert_pack(sae.path, FEATURES, out, architecture="qwen3", k=4)
    assert str(caught.value) == (
        f"{sae.path}: the model's number of layers is not known. "
        "Give a GGUF file of the model with --model, or its number with --layers"
    )
    assert not out.exists()


def convert(sae: Sae, out: Path, features: list[FeatureRequest] = FEATURES, **options: Any) -> None:
    convert_pack(sae.path, features, out, **{"architecture": "qwen3", **options})


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ([], {}, "no feature is asked for. Name some with --feature LAYER:ID=label"),
        ([FeatureRequest(1, 5)] * 2, {}, "a feature is asked for twice; found 1:5"),
        (
            FEATURES,
            {"exact_gate_layers": [2]},
            "an exact gate for a layer of which no feature is asked for; found 2; "
            "expected one of 0, 1",
        ),
        (FEATURES, {"k": 50}, "k differs from the set's own; found 50; expected 4"),
        (
            FEATURES,
            {"architecture": None},
            "{set}: the model's architecture is not known. Give a GGUF file of the model with "
            "--model, or its name in llama.cpp with --architecture",
        ),
        (
            [FeatureRequest(7, 1)],
            {},
            "{set}: layer 7 is not in the set; expected one of 0, 1, 2",
        ),
        (
            [FeatureRequest(2, 64)],
            {},
            "{set}/layer2.sae.pt: the SAE has no such feature; found 64; expected 0 to 63",
        ),
    ],
)
def test_what_cannot_be_asked_for(
    sae: Sae,
    tmp_path: Path,
    features: list[FeatureRequest],
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ScopeError) as caught:
        convert(sae, tmp_path / "p.gguf", features, **options)
    assert str(caught.value) == message.replace("{set}", str(sae.path))
    assert [file.name for file in tmp_path.iterdir()] == ["sae"]


def changed(sae: Sae, **changes: Any) -> dict[str, Any]:
    tensors = {**sae.weights[1], **changes}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_enc": None}, "W_enc is missing; found W_dec, b_dec, b_enc"),
        (
            {"W_dec": torch.zeros(D_SAE, D_MODEL)},
            "W_dec has the wrong shape; found (64, 16); expected (16, 64)",
        ),
        ({"b_enc": torch.zeros(3)}, "b_enc has the wrong shape; found (3,); expected (64,)"),
        ({"b_dec": torch.zeros(3)}, "b_dec has the wrong shape; found (3,); expected (16,)"),
        (
            {"W_enc": torch.zeros(64)},
            "W_enc has an impossible shape; found (64,); expected (d_sae, d_model)",
        ),
        (
            {
                "W_enc": torch.zeros(32, D_MODEL),
                "W_dec": torch.zeros(D_MODEL, 32),
                "b_enc": torch.zeros(32),
            },
            "d_sae differs from config.json; found 32; expected 64",
        ),
        (
            {"W_enc": torch.zeros(D_SAE, D_MODEL, dtype=torch.float64)},
            "W_enc is of a type that is not read; found float64; expected F32",
        ),
        (
            {"W_dec": torch.full((D_MODEL, D_SAE), float("nan"))},
            "W_dec is not finite; found nan at [0, 0]",
        ),
        ({"b_enc": torch.full((D_SAE,), float("inf"))}, "b_enc is not finite; found inf at [0]"),
        ({"note": "text"}, "not a dictionary of tensors; found 'note': str"),
    ],
)
def test_bad_layers_are_refused(
    sae: Sae, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = sae.path / "layer1.sae.pt"
    torch.save(changed(sae, **changes), file)
    with pytest.raises(PackError) as caught:
        convert(sae, tmp_path / "p.gguf")
    assert str(caught.value) == f"{file}: {message}"


class Wicked:
    """Runs code when it is unpickled without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/nonexistent/wicked"),))


def test_no_code_is_run(sae: Sae, tmp_path: Path) -> None:
    torch.save({"W_enc": Wicked()}, sae.path / "layer1.sae.pt")
    with pytest.raises(PackError, match=r"layer1\.sae\.pt: not a file of tensors"):
        convert(sae, tmp_path / "p.gguf")


def test_packed_records_are_refused(sae: Sae, tmp_path: Path) -> None:
    file = sae.path / "layer1.sae.pt"
    with zipfile.ZipFile(file) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    with pytest.raises(PackError, match="is packed; expected stored plainly"):
        convert(sae, tmp_path / "p.gguf")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON; found Expecting property name enclosed in double quotes"),
        ("[]", "no JSON object; found list"),
        ('{"k": "4"}', "k is no count; found '4'; expected a whole number from 1"),
        ('{"k": 0}', "k is no count; found 0; expected a whole number from 1"),
        ('{"base_model": 7}', "base_model is no text; found 7"),
        (
            '{"hook_point": "resid_pre"}',
            "hook_point is not Qwen-Scope's; found 'resid_pre'; expected resid_post",
        ),
        (
            '{"model_type": "jumprelu"}',
            "model_type is not Qwen-Scope's; found 'jumprelu'; expected topk_sae",
        ),
        ("[" * 100_000, "no JSON; found "),
    ],
)
def test_bad_configurations(sae: Sae, text: str, message: str) -> None:
    (sae.path / "config.json").write_text(text)
    with pytest.raises(PackError) as caught:
        QwenScopeSet(sae.path)
    assert str(caught.value).startswith(f"{sae.path / 'config.json'}: {message}")


def test_what_is_no_set(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="no such folder"):
        QwenScopeSet(tmp_path / "nothing")
    with pytest.raises(PackError, match="no SAE in this folder"):
        QwenScopeSet(tmp_path)


def test_links_stay_inside(sae: Sae, tmp_path: Path) -> None:
    file = sae.path / "layer1.sae.pt"
    file.rename(tmp_path / "elsewhere.pt")
    file.symlink_to(tmp_path / "elsewhere.pt")
    with pytest.raises(PackError) as caught:
        convert(sae, tmp_path / "p.gguf")
    assert str(caught.value) == f"{file}: a link that leads out of the set"


def test_the_hub_s_cache_may_link(sae: Sae, tmp_path: Path) -> None:
    """Its snapshots are folders of links to files beside them."""
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in sae.path.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    pack = convert_pack(snapshot, FEATURES, tmp_path / "p.gguf", architecture="qwen3")
    assert list(pack.layers) == [0, 1]


def test_mutations_are_refused_or_read(sae: Sae) -> None:
    def read_rows(_: Path) -> None:
        QwenScopeSet(sae.path).open(1).rows(np.array([5, 60]))

    file = sae.path / "layer1.sae.pt"
    refused, _ = survive(read_rows, file.read_bytes(), file, n=2000, seed=7, most_bytes=256 << 20)
    assert refused > 500


def test_features_as_text() -> None:
    assert parse_feature("20:6159=chinese") == FeatureRequest(20, 6159, "chinese")
    assert parse_feature("0:1") == FeatureRequest(0, 1)
    assert parse_feature("embedding:4= a = b ") == FeatureRequest(-1, 4, "a = b")
    for text in ("", "1", "1:", ":1", "-1:2", "1:2.0", "x:1", "1:2:3", "1:99999999999", "¹:2"):
        with pytest.raises(UsageError) as caught:
            parse_feature(text)
        assert str(caught.value) == (
            f"cannot read the feature; found {text!r}; expected LAYER:ID=label"
        )


def test_features_as_a_table(tmp_path: Path) -> None:
    file = tmp_path / "f.csv"
    file.write_text('\ufefflayer,id,why,label\n20,6159,found,"a, b"\nembedding,3,,\n')
    assert read_features(file) == (FeatureRequest(20, 6159, "a, b"), FeatureRequest(-1, 3, ""))
    file.write_text("layer,id\n1,2\n1,x\n")
    with pytest.raises(UsageError) as caught:
        read_features(file)
    assert str(caught.value) == f"{file}:3: no feature; found '1', 'x'; expected two whole numbers"
    file.write_text("layer;id\n1;2\n")
    with pytest.raises(UsageError) as caught:
        read_features(file)
    assert str(caught.value) == (
        f"{file}:1: the first line does not name the columns; found 'layer;id'; "
        "expected layer,id or layer,id,label"
    )
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no CSV"):
        read_features(file)


def test_folding_is_exact() -> None:
    rng = np.random.default_rng(0)
    enc = rng.standard_normal((5, 32)).astype(np.float32)
    bias, offset = rng.standard_normal(5).astype(np.float32), rng.standard_normal(32)
    h = rng.standard_normal((100, 32))
    w, b = fold_encoder(enc, bias, input_offset=offset.astype(np.float32), input_scale=0.37)
    expected = (0.37 * h - offset) @ enc.T.astype(np.float64) + bias
    np.testing.assert_allclose(h @ w.T + b, expected, atol=1e-5)
    assert fold_encoder(enc, bias) == (enc, bias)


def test_what_a_file_is(sae: Sae, tmp_path: Path) -> None:
    pack = tmp_path / "p.gguf"
    convert_pack(sae.path, FEATURES, pack, exact_gate_layers=[1], architecture="qwen3")
    found = inspect_file(pack)
    assert found.kind == "feature pack"
    assert found.features == (
        ("0", 7, "seven", "relu"),
        ("1", 60, "sixty", "topk 4"),
        ("1", 5, "", "topk 4"),
    )
    assert inspect_file(sae.path).kind == "Qwen-Scope SAE set"
    layer = inspect_file(sae.path / "layer1.sae.pt")
    assert layer.kind == "Qwen-Scope SAE of one layer"
    assert dict(layer.facts)["gate"] == "top-4"
    model = tmp_path / "m.gguf"
    model.write_bytes(raw_model().to_bytes())
    assert dict(inspect_file(model).facts)["types"] == "F32, Q8_0"
    (tmp_path / "x").write_text("text")
    with pytest.raises(PackError, match="no format that is known; found a file of type unknown"):
        inspect_file(tmp_path / "x")
