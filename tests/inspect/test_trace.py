"""What a text lights up, against brute force over every latent, and where the example's features are first lit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scope_runtime.errors import ScopeError
from scope_runtime.inspect import FeatureRef, Reader, trace
from scope_runtime.inspect.features import chosen
from scope_runtime.inspect.reading import Said
from scope_runtime.inspect.words import said_words, trace_words
from scope_runtime.sae import SaeLayers
from tests.inspect.conftest import MODEL, QUESTION, SAE, drawn, mirrors


def test_activations_are_those_of_torch_over_every_latent(reader: Reader) -> None:
    reading = reader.answer(QUESTION, [3], max_tokens=30)
    weights = torch.load(SAE / "layer3.sae.pt", weights_only=True)
    h = torch.from_numpy(reading.layers[3])
    scores = h @ weights["W_enc"].float().T + weights["b_enc"].float()
    top = scores.topk(17)
    gaps = top.values[:, 15] - top.values[:, 16]
    span = float(scores.max() - scores.min())
    assert float(gaps.min()) > 1e-6 * span  # no ties: the sets must be the same
    z = torch.zeros_like(scores).scatter(1, top.indices[:, :16], top.values[:, :16]).numpy()

    saes = SaeLayers.open(f"{SAE}:3")
    found = trace(reading, saes, features="767,843,5,3:28", top=16)
    assert found.features == tuple(FeatureRef(3, id) for id in (767, 843, 5, 28))
    np.testing.assert_allclose(found.activations, z[:, [767, 843, 5, 28]], atol=1e-4 * span)
    for token, listed in enumerate(found.strongest):
        order = np.argsort(-z[token], kind="stable")[:16]
        assert [lit.feature.id for lit in listed] == order.tolist()
        np.testing.assert_allclose(
            [lit.activation for lit in listed], z[token][order], atol=1e-4 * span
        )
    for feature, first in zip(found.features, found.first, strict=True):
        lit = np.flatnonzero(z[:, feature.id] > 0)
        assert (first.position if first else None) == (int(lit[0]) if len(lit) else None)


def test_the_drift_is_first_lit_in_the_answer_where_the_policy_s_record_says(
    pack: SaeLayers,
) -> None:
    """The policy that mutes the same features acted first at that token, by its own measurement."""
    with Reader(MODEL, n_ctx=128, n_threads=1) as reader:
        unsteered = trace(
            reader.answer(QUESTION, pack.layers, max_tokens=40), pack, features="drift-a"
        )
    [first] = unsteered.first_answer
    assert first is not None
    assert (first.position, unsteered.reading.pieces[first.position]) == (36, ".")
    assert first.said[0].text == " "
    # What follows is Chinese: the model was about to say it, and did.
    assert unsteered.reading.tokens[37] == first.said[0].token
    assert "游" in "".join(unsteered.reading.pieces[38:40])


def test_several_layers_and_the_first_token_left_out() -> None:
    saes = mirrors({2: "loud"})
    reading = drawn(
        ["<s>", " a", " b", " c"],
        {(1, 0): {0: 99.0}, (1, 2): {1: 3.0, 3: 4.0}, (2, 5): {2: 5.0, 3: 1.0}, (2, 4): {1: 0.5}},
        n_prompt=2,
    )
    found = trace(reading, saes, top=2)
    # 1:0 is strong at the first token alone, where models keep numbers of their own.
    assert [str(each) for each in found.features] == ["2:5", "1:2 loud", "2:4"]
    assert [[str(lit.feature) for lit in row] for row in found.strongest] == [
        ["1:0"],
        ["1:2 loud", "2:4"],
        ["2:5"],
        ["1:2 loud", "2:5"],
    ]
    assert [lit.position if lit else None for lit in found.first] == [2, 1, 1]
    assert [lit.position if lit else None for lit in found.first_answer] == [2, 1, 1]
    loud = trace(reading, saes, features="loud", above=3.0)
    assert [lit.position if lit else None for lit in loud.first] == [3]
    assert trace_words(loud) == (
        "1:2 loud is first lit above 3 at token 3 “␣c” (4.00), as the model was about to say “<end>” 50%.",
    )


def test_where_it_is_first_lit_in_words() -> None:
    reading = drawn(
        ["<s>", "\n", " b", "", "é"],
        {(1, 0): {0: 2.0}, (1, 1): {1: 0.25, 3: 7.0}, (1, 2): {3: 0.001}},
        n_prompt=3,
    )
    assert trace_words(trace(reading, mirrors(), features="1:0,1,2,3")) == (
        "1:0 is first lit at token 0 “<s>” (2.00) of the prompt, and nowhere in the answer.",
        "1:1 is first lit at token 1 “⏎” (0.25) of the prompt; in the answer at token 3 “⋯” (7.00), "
        "as the model was about to say “é” 75%, “␣or” 12%.",
        "1:2 is first lit at token 3 “⋯” (0.001), as the model was about to say “é” 75%, “␣or” 12%.",
        "1:3 is not lit at any token.",
    )
    no_answer = drawn(["a", "b"], {(1, 0): {1: 1.0}}, n_prompt=2, said=False)
    assert trace_words(trace(no_answer, mirrors(), features="1:0")) == (
        "1:0 is first lit at token 1 “b” (1.00).",
    )


def test_next_tokens_that_nobody_would_see_are_not_named() -> None:
    sure = (Said(1, " a", 0.999), Said(2, "b", 0.0009), Said(3, "c", 0.0001))
    assert said_words(sure) == "“␣a” 100%"
    open_ = (Said(1, "a", 0.004), Said(2, "b", 0.003))
    assert said_words(open_) == "“a” 0%"
    assert said_words([*sure[:1], Said(4, "d", 0.006)]) == "“␣a” 100%, “d” 1%"


def test_features_by_number_and_by_label() -> None:
    saes = mirrors({2: "loud", 4: "drift-a", 5: "drift-b"})
    assert [str(each) for each in chosen(saes, "2:3, 4,drift-a,1:2,2:3")] == [
        "2:3",
        "2:4",
        "1:4 drift-a",
        "1:2 loud",
    ]
    assert chosen(saes, ["1:0"]) == (FeatureRef(1, 0),)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("3:0", "mirrors: layer 3 is not in the set; expected one of 1, 2"),
        ("1:6", "the SAE of layer 1 has no such feature; found 6; expected 0 to 5"),
        (
            "drift",
            "no such feature; found 'drift'; expected LAYER:ID, such as 20:6159, or a label. "
            "Did you mean drift-b or drift-a?",
        ),
        ("7", "no such feature; found '7'; expected LAYER:ID, such as 20:6159, or a label"),
        ("twice", "several features have this label; found 'twice'; expected one of 1:0, 1:1"),
    ],
)
def test_features_that_are_not_there(wanted: str, message: str) -> None:
    saes = mirrors({4: "drift-a", 5: "drift-b", 0: "twice", 1: "twice"})
    with pytest.raises(ScopeError) as refused:
        chosen(saes, wanted)
    assert str(refused.value) == message


def test_layers_that_were_not_read(reader: Reader, pack: SaeLayers) -> None:
    with pytest.raises(ScopeError) as refused:
        trace(reader.text("a", [0, 3]), pack)
    assert str(refused.value) == (
        "text was not read at every layer of the SAEs; found layers 0, 3; expected 2"
    )


def test_numbers_that_are_refused() -> None:
    reading = drawn(["a"], {})
    with pytest.raises(ScopeError, match="top and above are not negative; found top -1, above 0"):
        trace(reading, mirrors(), top=-1)
    with pytest.raises(ScopeError, match="above nan"):
        trace(reading, mirrors(), above=float("nan"))
