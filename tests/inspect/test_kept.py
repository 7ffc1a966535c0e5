"""`find` on more than memory should hold: the same numbers as numpy on all of it at once, at a bounded peak."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from scope_runtime.inspect.ahead import Ahead
from scope_runtime.inspect.kept import IN_MEMORY_BYTES, Kept, roomy
from scope_runtime.inspect.rank import Criteria, rank
from scope_runtime.inspect.sample import FEWEST_TEXTS, Part, Pool, sample
from scope_runtime.sae import Active

D_SAE, N_TEXTS, N_TOKENS, EACH = 65_536, 100, 100, 20
PLANTED, WIDTH = 4_321, 512
PEAK_BYTES = 150 << 20


def test_latents_come_back_as_they_were_added() -> None:
    kept, rng = Kept(), np.random.default_rng(1)
    added = []
    for first in range(0, 40, 4):
        n_active = int(rng.integers(0, 9))
        indptr = np.array([0, 0, n_active // 2, n_active, n_active])
        ids = np.arange(n_active, dtype=np.int32)
        active = Active(indptr, ids, rng.random(n_active).astype(np.float32), 9)
        kept.add(first % 3, first, active)
        added.append((first % 3, first, active))
    for layer in range(3):
        found = list(kept.pieces(layer))
        expected = [(first, active) for at, first, active in added if at == layer]
        assert [first for first, _ in found] == [first for first, _ in expected]
        for (_, one), (_, other) in zip(found, expected, strict=True):
            assert one.indptr.tolist() == other.indptr.tolist()
            assert one.ids.tolist() == other.ids.tolist()
            assert one.values.tolist() == other.values.tolist()


def text(number: int) -> Active:
    """A text in which every twentieth latent is active at each token: which ones, changes from token to token."""
    rng = np.random.default_rng(number)
    starts = rng.integers(0, EACH, N_TOKENS)
    ids = [np.arange(start, D_SAE, EACH, dtype=np.int32) for start in starts]
    values = rng.random(sum(map(len, ids)), dtype=np.float32)
    chosen = np.concatenate(ids)
    values[chosen == PLANTED] += number % 2
    return Active(np.cumsum([0, *map(len, ids)]), chosen, values, D_SAE)


def parts(number: int) -> Iterator[Part]:
    yield range(N_TOKENS), {7: text(number)}


def test_64k_latents_over_10000_tokens_stay_within_150_mb() -> None:
    positive = [number % 2 == 1 for number in range(N_TEXTS)]
    n_active = N_TEXTS * len(text(0).ids)
    assert 8 * n_active > 1.25 * PEAK_BYTES  # held at once they would not fit
    tracemalloc.start()
    try:
        read = sample((parts(number) for number in range(N_TEXTS)), positive)
        pooled = read.pooled(Pool.MAX)
        # The directions of all are 134 MB.
        ends = np.ones((N_TEXTS, WIDTH), np.float32) * np.array(positive)[:, None]
        ahead = Ahead(ends, ends, lambda layer, ids: np.ones((len(ids), WIDTH), np.float32))
        found = rank(pooled, read.positive, Criteria(n_permutations=999), ahead)
        activations = read.activations([(7, PLANTED), (7, 3)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < PEAK_BYTES, peak
    # All of it at once, text after text.
    expected = np.zeros((N_TEXTS, D_SAE), np.float32)
    for number in range(N_TEXTS):
        active = text(number)
        begin = int(active.indptr[1])  # the first token of a text does not count
        np.maximum.at(expected[number], active.ids[begin:], active.values[begin:])
        columns = active.of([PLANTED, 3])
        assert (activations[number * N_TOKENS : (number + 1) * N_TOKENS] == columns).all()
    often = np.flatnonzero((expected > 0).sum(axis=0) >= FEWEST_TEXTS)
    assert pooled.ids.tolist() == often.tolist()
    assert (pooled.values == expected[:, often]).all()
    assert [each.id for each in found.significant] == [PLANTED]
    # All directions go along what comes next, by 1 a unit in each of the coordinates, where the residual does.
    rise = expected[1::2, PLANTED].mean() - expected[::2, PLANTED].mean()
    assert found.features[0].push == pytest.approx(rise, rel=1e-2)


def test_a_large_array_lies_in_a_file_and_is_zeros() -> None:
    small, large = roomy((3, 4)), roomy((5, IN_MEMORY_BYTES // 16))
    assert not isinstance(small, np.memmap)
    assert isinstance(large, np.memmap)
    assert not small.any()
    assert not large[:, ::997].any()
    large[4, -1] = 2
    assert large[4, -1] == 2
