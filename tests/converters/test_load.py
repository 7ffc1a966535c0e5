"""Which format a file is of, what of it is refused, and what goes from it into a pack."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from converters import FeatureRequest, ReadOptions, Vectors, convert_pack, load, open_source
from converters.features import SaeLayer
from converters.inspect import inspect_file
from converters.licence import find_licence
from scope_runtime.errors import PackError, UsageError
from scope_runtime.policy.model import EMBEDDING, GateKind

WIDTH, N = 8, 12
CONFIG: dict[str, Any] = {
    "architecture": "jumprelu",
    "d_in": WIDTH,
    "d_sae": N,
    "metadata": {"hook_name": "blocks.2.hook_resid_post", "model_name": "tiny"},
}

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def digests_are_remembered_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "digests"))


def tensors(**changes: Any) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (WIDTH, N), "W_dec": (N, WIDTH), "b_enc": (N,), "b_dec": (WIDTH,)}
    made = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    made["threshold"] = torch.rand(N, generator=rng)
    made |= changes
    return {name: each for name, each in made.items() if each is not None}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(config: dict[str, Any] | None = None, folder: str = "sae", **changes: Any) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True)
        save_file(tensors(**changes), path / "sae_weights.safetensors")
        (path / "cfg.json").write_text(json.dumps({**CONFIG, **(config or {})}))
        return path

    return make


def layer(path: Path, **options: Any) -> SaeLayer:
    sae = load(path, options=ReadOptions(**options))
    assert not isinstance(sae, Vectors)
    return sae


def hook(name: str, **more: Any) -> dict[str, Any]:
    return {"metadata": {"hook_name": name, **more}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            hook("blocks.2.hook_mlp_out"),
            "trained on an MLP, which is not the residual stream after a block",
        ),
        (hook("blocks.2.attn.hook_z"), "trained on attention, which is not"),
        (
            hook("blocks.2.hook_resid_mid"),
            "trained on the residual stream between attention and MLP",
        ),
        (hook("blocks.5000.hook_resid_post"), "no model has such a layer"),
        ({"metadata": {}}, "the hook point is not said; expected hook_name, or --layer"),
        (
            hook("blocks.2.hook_resid_post", hook_head_index=3),
            "trained on one attention head, not on the residual stream; found hook_head_index 3",
        ),
        ({"architecture": "jumprelu_transcoder"}, "a transcoder: it reads one place and writes"),
        ({"architecture": "temporal"}, "its architecture is not read; found 'temporal'; expected "),
        ({"reshape_activations": "hook_z"}, "trained on reshaped activations; found hook_z"),
        ({"activation_fn": "tanh-relu"}, "its activation function is not read; found 'tanh-relu'"),
        (
            {"normalize_activations": "layer_norm"},
            "its encoder depends on the token: each token's residual is normalised first, so no row "
            "of an encoder gives its activations; found normalize_activations 'layer_norm'; "
            "expected 'none'",
        ),
        (
            {"normalize_activations": "constant_norm_rescale"},
            "its encoder depends on the token: each token's residual is scaled to one length first",
        ),
        (
            {"normalize_activations": "expected_average_only_in"},
            "it scales its input by the average norm of a data set, and the file does not say",
        ),
        ({"d_sae": 13}, "d_sae differs from the weights; found 13; expected 12"),
        ({"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input is neither true nor false"),
        ({"metadata": []}, "metadata is no table; found []"),
    ],
)
def test_sae_lens_configurations_that_are_refused(
    make: Make, config: dict[str, Any], message: str
) -> None:
    path = make(config)
    with pytest.raises(PackError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path / 'cfg.json'}: {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": None}, "threshold is missing; found W_dec, W_enc, b_dec, b_enc"),
        ({"b_enc": torch.zeros(3)}, "b_enc has the wrong shape; found (3,); expected (12,)"),
        ({"b_dec": torch.full((WIDTH,), float("nan"))}, "b_dec is not finite; found nan at [0]"),
        ({"threshold": torch.full((N,), float("inf"))}, "threshold is not finite; found inf"),
        (
            {"W_dec": torch.zeros(WIDTH, N)},
            "encoder and decoder do not fit each other; found (8, 12) and (8, 12); "
            "expected (8, 12) and (12, 8)",
        ),
        (
            {"W_enc": torch.zeros(WIDTH, N, dtype=torch.int32)},
            "W_enc is of a type that is not read",
        ),
        ({"scaling_factor": torch.full((N,), 2.0)}, "holds scaling factors that its configuration"),
    ],
)
def test_weights_that_are_refused(make: Make, changes: dict[str, Any], message: str) -> None:
    path = make(**changes)
    with pytest.raises(PackError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path / 'sae_weights.safetensors'}: {message}")


def test_a_nan_in_a_row_is_found_when_it_is_asked_for(make: Make) -> None:
    enc = torch.zeros(WIDTH, N)
    enc[3, 7] = float("nan")
    sae = layer(make(W_enc=enc))
    sae.rows(np.array([6]))
    with pytest.raises(PackError, match="the encoder is not finite; found nan"):
        sae.rows(np.array([7]))
    with pytest.raises(PackError, match="the SAE has no such feature; found 12; expected 0 to 11"):
        sae.rows(np.array([12]))


def test_a_scaled_input_is_folded(make: Make) -> None:
    plain = layer(make(folder="plain"))
    scaled = {"normalize_activations": "expected_average_only_in"}
    ids = np.arange(N)
    for given, options in (({"norm_scaling_factor": 2.0}, {}), ({}, {"input_scale": 2.0})):
        sae = layer(make({**scaled, **given}, folder=f"scaled{len(options)}"), **options)
        ours, theirs = sae.rows(ids), plain.rows(ids)
        np.testing.assert_allclose(ours.enc, 2 * theirs.enc, rtol=1e-6)
        np.testing.assert_allclose(ours.enc_bias, theirs.enc_bias, rtol=1e-6)
        np.testing.assert_allclose(ours.dec, theirs.dec / 2, rtol=1e-6)
    with pytest.raises(UsageError, match="this SAE does not scale its input"):
        layer(make(folder="other"), input_scale=2.0)


def test_scaling_factors_of_features_are_folded(make: Make) -> None:
    factors = torch.arange(1.0, N + 1)
    sae = layer(make({"finetuning_scaling_factor": True}, scaling_factor=factors))
    expected = tensors()["W_dec"] * factors[:, None]
    np.testing.assert_allclose(sae.rows(np.arange(N)).dec, expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize(("model", "centred"), [("gpt2-small", True), ("gemma-2-2b", False)])
def test_weights_are_centred_where_that_was_done(make: Make, model: str, centred: bool) -> None:
    """TransformerLens does not centre the weights of models with RMSNorm, even when told to."""
    kwargs = {"center_writing_weights": True}
    name = "blocks.2.hook_resid_post"
    path = make(hook(name, model_name=model, model_from_pretrained_kwargs=kwargs))
    means = layer(path).rows(np.arange(N)).enc.mean(axis=1)
    assert bool((abs(means) < 1e-6).all()) is centred


def test_two_readings_are_an_error_that_names_both(make: Make) -> None:
    path = make(
        {"hook_point_in": "blocks.2.hook_resid_post", "d_model": WIDTH},
        **{"encoder.weight": torch.zeros(N, WIDTH), "decoder.weight": torch.zeros(WIDTH, N)},
    )
    with pytest.raises(PackError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path / 'sae_weights.safetensors'}: can be read in two ways; found sae-lens (d_in and "
        "d_sae in the configuration, W_enc and W_dec in the weights) or llama-scope (hook_point_in "
        "in the configuration, encoder.weight and decoder.weight in the weights); "
        "expected one of them"
    )


def test_the_name_of_a_file_does_not_matter(make: Make) -> None:
    path = make()
    (path / "sae_weights.safetensors").rename(path / "anything.bin")
    assert layer(path).kind == "sae-lens jumprelu"
    assert layer(path / "anything.bin").kind == "sae-lens jumprelu"


def test_folders_of_a_set(make: Make, tmp_path: Path) -> None:
    for number in (1, 4):
        make(hook(f"blocks.{number}.hook_resid_post"), folder=f"set/{number}")
    make(hook("blocks.4.hook_mlp_out"), folder="set/mlp")
    sae_set = open_source(tmp_path / "set")
    assert not isinstance(sae_set, Vectors)
    assert sae_set.layers == (1, 4)
    with pytest.raises(UsageError, match="several layers; found 1, 4; expected one of them to be"):
        load(tmp_path / "set")
    with pytest.raises(PackError, match="layer 2 is not in the set; expected one of 1, 4"):
        load(tmp_path / "set", layer=2)
    make(hook("blocks.4.hook_resid_post"), folder="set/more/4")
    with pytest.raises(PackError) as caught:
        load(tmp_path / "set", layer=4)
    assert str(caught.value) == (
        f"{tmp_path / 'set'}: 2 SAEs of layer 4; found 4/sae_weights.safetensors, "
        "more/4/sae_weights.safetensors; expected the folder of one of them"
    )


def test_nothing_that_is_known(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="no such file or folder"):
        load(tmp_path / "nothing")
    with pytest.raises(PackError, match="no SAE in this folder, and no steering vector"):
        load(tmp_path)


def test_links_out_of_a_set_are_refused(make: Make, tmp_path: Path) -> None:
    path = make()
    (path / "sae_weights.safetensors").rename(tmp_path / "elsewhere")
    (path / "sae_weights.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PackError, match="a link that leads out of the set"):
        load(path)


def test_a_file_that_changes_is_noticed(make: Make) -> None:
    path = make()
    sae = layer(path)
    with (path / "sae_weights.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(PackError, match="changed while it was read"):
        sae.rows(np.array([1]))


def test_into_a_pack(make: Make, tmp_path: Path) -> None:
    path = make(hook("blocks.0.hook_resid_pre", model_name="tiny"))
    (path / "README.md").write_text(
        "---\nlicense: apache-2.0\ntags: [x]\n---\n# SAE\n\n## Licence note\n\nDo no harm.\n\n## Use\n\nSo.\n"
    )
    out = tmp_path / "p.gguf"
    features = [FeatureRequest(EMBEDDING, 3, "three")]
    pack = convert_pack(path, features, out, architecture="gpt2", n_layer=12)
    only = pack.layers[EMBEDDING]
    assert only.gate is GateKind.THRESHOLD
    assert only.thresholds is not None
    assert only.thresholds[0] == tensors()["threshold"][3]
    assert only.d_sae == N
    provenance = dict(pack.provenance)
    assert provenance["licence"] == "license: apache-2.0\n## Licence note\n\nDo no harm.\n"
    assert provenance["source"] == "tiny"
    assert provenance["sae.kind"] == "sae-lens jumprelu"
    assert provenance["sae.hook.embedding"] == "blocks.0.hook_resid_pre"
    assert {"sha256.cfg.json", "sha256.sae_weights.safetensors"} < provenance.keys()
    once = out.read_bytes()
    convert_pack(path, features, out, architecture="gpt2", n_layer=12)
    assert out.read_bytes() == once
    with pytest.raises(UsageError, match="the gate of layer embedding is exact without the whole"):
        convert_pack(path, features, out, architecture="gpt2", exact_gate_layers=[EMBEDDING])
    with pytest.raises(UsageError, match="the model's number of layers is not known"):
        convert_pack(path, features, out, architecture="gpt2")


def test_a_top_k_says_what_its_relu_is_not(make: Make, tmp_path: Path) -> None:
    path = make({"architecture": "topk", "k": 2}, threshold=None)
    out = tmp_path / "p.gguf"
    features = [FeatureRequest(2, 3)]
    with_encoder = convert_pack(
        path, features, out, architecture="gpt2", n_layer=12, exact_gate_layers=[2]
    )
    assert with_encoder.layers[2].gate is GateKind.TOPK
    assert with_encoder.layers[2].notes[0].startswith("the SAE's ReLU behind its top-k is not part")
    without = convert_pack(path, features, out, architecture="gpt2", n_layer=12)
    assert without.layers[2].gate is GateKind.RELU
    assert without.layers[2].notes[0].startswith("top-2 gate without the full encoder")


def test_inspecting(make: Make) -> None:
    found = inspect_file(make())
    assert found.kind == "sae-lens jumprelu SAE of one layer"
    facts = dict(found.facts)
    assert (facts["layer"], facts["features"], facts["width"]) == ("2", "12", "8")
    assert (facts["gate"], facts["hook point"]) == ("threshold", "blocks.2.hook_resid_post")


def test_no_licence(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Nothing\n")
    assert find_licence([tmp_path]) is None


def svec(tmp_path: Path, directions: Any) -> Path:
    path = tmp_path / "x.svec"
    path.write_text(json.dumps({"model_type": "qwen3", "directions": directions}))
    return path


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ({}, "no directions, or too many; found 0"),
        ({"x": [1.0]}, "no layer; found 'x'; expected a whole number"),
        ({"1": [1.0], "01": [1.0]}, "a layer is there twice; found '01'"),
        ({"1": "text"}, "the direction of layer '1' is no list of numbers"),
        ({"1": [1.0, None]}, "the direction of layer '1' is no list of numbers"),
        ({"1": [1.0], "2": [1.0, 2.0]}, "the direction of layer 2 has the wrong shape"),
        ({"1": [1e300]}, "the direction of layer 1 is not finite; found inf at [0]"),
        ({"1": [float("nan")]}, "the direction of layer 1 is not finite; found nan at [0]"),
        ({"1": [10**400]}, "the direction of layer '1' is not finite"),
        ([], "model_type is no text, or directions is no table"),
    ],
)
def test_svec_files_that_are_refused(tmp_path: Path, directions: Any, message: str) -> None:
    path = svec(tmp_path, directions)
    with pytest.raises(PackError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {message}")
