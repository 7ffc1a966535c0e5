"""Which features differ: against sums written out, on the example model, and in words."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from scope_runtime.errors import UsageError
from scope_runtime.inspect import Reader, Reading, compare
from scope_runtime.inspect.compare import gathered
from scope_runtime.inspect.words import comparison_words
from scope_runtime.policy.model import GateKind
from scope_runtime.sae import FullLayer, SaeLayers, WholeEncoder
from tests.inspect.conftest import ENGLISH_ONLY, F16, MODEL, QUESTION, drawn, mirrors


def texts(levels: Sequence[float], latent: int = 2) -> list[Reading]:
    """A text for each level: at token 2 of 5 the latent of layer 1 has 4 times it, at the first token 99."""
    return [
        drawn(
            list("abcde"),
            {(1, latent): {0: 99.0, 2: 4 * level}, (2, 0): {3: 1.0}},
            name=f"text {n}",
        )
        for n, level in enumerate(levels)
    ]


@pytest.mark.parametrize(("at", "times"), [("mean", 1.0), ("max", 4.0)])
def test_what_is_made_of_a_text(at: str, times: float) -> None:
    found = compare(texts([1.0, 2.0]), texts([5.0, 6.0], latent=3), mirrors(), at=at, paired=False)
    by_name = {str(each.feature): each for each in found.differences}
    assert set(by_name) == {"1:2", "1:3", "2:0"}
    assert (by_name["1:2"].a, by_name["1:2"].b) == (1.5 * times, 0.0)
    assert (by_name["1:3"].a, by_name["1:3"].b) == (0.0, 5.5 * times)
    assert (by_name["2:0"].a, by_name["2:0"].b) == (times / 4, times / 4)
    assert by_name["2:0"].effect == 0
    spike = by_name["1:3"].spike_b
    assert (spike.text, spike.position, spike.activation) == (1, 2, 24.0)
    assert by_name["1:2"].spike_b.activation == 0
    assert found.n_features == 3


def test_one_pair_is_described_and_no_more() -> None:
    [a], [b] = texts([1.0]), texts([8.0])
    found = compare([a], [b], mirrors(), names=("old", "new"))
    assert (found.paired, found.aligned) == (True, True)
    assert (found.test, found.n_significant, found.needed) == (None, None, 6)
    assert found.differences[0].effect is None
    assert comparison_words(found) == (
        "1:2 differs most: mean activation 1.00 (old), 8.00 (new).",
        "1:2 spiked: 32.0 at token 2 “c” (new); at most 4.00 (old).",
        "One pair of texts: this describes what was read and no more. Whether features differ beyond it takes "
        "6 pairs of texts or more.",
    )


def test_sets_of_texts_are_judged() -> None:
    rng = np.random.default_rng(0)
    a = texts(1 + rng.random(5), latent=2)
    b = texts(1 + rng.random(6), latent=4)
    found = compare(a, b, mirrors(), names=("plain", "odd"))
    assert (found.paired, found.aligned) == (False, False)
    assert {str(each.feature) for each in found.significant} == {"1:2", "1:4"}
    assert found.n_significant == 2
    assert comparison_words(found)[-1] == (
        "Over 5 and 6 texts, 2 of 3 features differ (adjusted p ≤ 0.05). While nothing differs, the chance that any "
        "at all is named is at most 5%: a Westfall-Young max-T permutation test over texts, every one of 462 "
        "assignments."
    )


def test_texts_that_are_the_same_do_not_differ() -> None:
    same = texts([1.0, 2.0, 3.0])
    found = compare(same, same, mirrors())
    assert comparison_words(found) == (
        "Nothing differs: every feature is as active in A as in B.",
        "3 pairs of texts: this describes what was read and no more. Whether features differ beyond it takes "
        "6 pairs of texts or more.",
    )


def test_answers_to_one_prompt_belong_together() -> None:
    one = drawn(["p", "q", "x"], {}, n_prompt=2)
    other = Reading("text", (0, 1, 9, 9), ("p", "q", "y", "z"), 2, one.layers, one.layers)
    fits = {layer: np.vstack([h, h[:1]]) for layer, h in one.layers.items()}
    other = Reading(other.name, other.tokens, other.pieces, 2, fits, fits)
    assert compare([one], [other], mirrors()).paired
    assert not compare([one], [other], mirrors()).aligned
    assert not compare([drawn(["p", "r"], {}), one], [other], mirrors()).paired


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ([], [1.0], {}, "there is nothing to compare; found 0 and 1 texts"),
        ([1.0], [1.0, 2.0], {"paired": True}, "texts do not pair up; found 1 and 2"),
        ([1.0], [1.0], {"alpha": 1.0}, "top or alpha is out of range; found top 10, alpha 1"),
        ([1.0], [1.0], {"top": 0}, "top or alpha is out of range; found top 0"),
    ],
)
def test_what_cannot_be_compared(
    a: list[float], b: list[float], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as refused:
        compare(texts(a), texts(b), mirrors(), **options)  # type: ignore[arg-type]
    assert str(refused.value).startswith(message)


def test_what_a_policy_does_is_seen_after_it(pack: SaeLayers) -> None:
    """On the same tokens: the muted features are gone at the answer's full stop, and layer 2 before it is untouched."""
    with Reader(MODEL, n_ctx=128, n_threads=1) as reader:
        before = reader.answer(QUESTION, pack.layers, max_tokens=16)
        reader.under(ENGLISH_ONLY)
        after = reader.text(before.tokens, pack.layers, n_prompt=before.n_prompt)
    found = compare([before], [after], pack, names=("unsteered", "steered"), top=40)
    assert found.aligned
    assert {each.feature.layer for each in found.differences if each.a != each.b} == {3}
    by_label = {each.feature.label: each for each in found.differences}
    drift = by_label["drift-a"]
    assert drift.spike_a.position == 36
    assert drift.spike_b.activation < drift.spike_a.activation / 4
    assert found.spiked is drift


def test_two_quantisations_read_the_same_tokens(reader: Reader) -> None:
    saes = SaeLayers.open(f"{MODEL.parent}/sae:3")
    one = [reader.text(text, saes.layers) for text in (QUESTION, "The sun rises over the sea.")]
    with Reader(F16, n_ctx=64, n_threads=1) as other:
        two = [other.text(each.tokens, saes.layers) for each in one]
    found = compare(one, two, saes, at="max", names=("q8", "f16"))
    assert found.aligned
    # The files differ by rounding: by far less than a feature's activation, except where two change places at k.
    largest = max(each.spike_a.activation for each in found.differences)
    moved = [
        abs(y - x).max() for x, y in zip(found.activations_a, found.activations_b, strict=True)
    ]
    assert 0 < max(moved) < largest
    same = compare(one, one, saes)
    assert all(each.a == each.b for each in same.differences)


WIDTH, K, LENGTH, N_TEXTS = 256, 4, 400, 60


def wide_reading(number: int) -> Reading:
    rng = np.random.default_rng(number)
    h = rng.random((LENGTH, WIDTH), dtype=np.float32)
    h[:, 17] += number >= N_TEXTS // 2
    tokens = tuple(range(LENGTH))
    return Reading(f"text {number}", tokens, ("x",) * LENGTH, None, {3: h}, {3: h})


def test_texts_are_let_go_of_as_they_are_read() -> None:
    """25 MB of residuals at a peak below 10 MB, and the same means as numpy has with all of them at once."""
    encoder = WholeEncoder(np.eye(WIDTH, dtype=np.float32), "F32", np.zeros(WIDTH, np.float32))
    layer = FullLayer(
        layer=3,
        encoder=encoder,
        gate=GateKind.TOPK,
        k=K,
        file=Path("wide"),
        decoder=lambda ids: np.eye(WIDTH, dtype=np.float32)[ids],
    )
    saes = SaeLayers("wide", "test", (3,), lambda number: layer)
    half = N_TEXTS // 2
    n_bytes = 4 * N_TEXTS * LENGTH * WIDTH
    tracemalloc.start()
    try:
        one = gathered(map(wide_reading, range(half)), saes)
        two = gathered(map(wide_reading, range(half, N_TEXTS)), saes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    found = compare(one, two, saes, paired=False, top=3)
    assert peak < 0.4 * n_bytes, peak
    assert not found.a[0].layers
    means = []
    for number in range(N_TEXTS):
        h = wide_reading(number).layers[3][1:]
        least = np.sort(h, axis=1)[:, -K]
        means.append(np.where(h >= least[:, None], h, 0).mean(axis=0, dtype=np.float64))
    assert found.differences[0].feature.id == 17
    for each in found.differences:
        column = np.array(means)[:, each.feature.id]
        assert each.a == pytest.approx(column[:half].mean(), rel=1e-5)
        assert each.b == pytest.approx(column[half:].mean(), rel=1e-5)
