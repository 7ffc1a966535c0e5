"""Products by ggml against F64 sums, for every type that rows have, also where numbers are large or small."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scope_runtime.llama import ggml
from scope_runtime.sae import WholeEncoder, product
from scope_runtime.sae.product import Product, plain_scores, split

TYPES = ("F32", "F16", "BF16")


def stored(values: Any, type: str) -> Any:
    if type == "BF16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16 if type == "F16" else np.float32)


def encoder(d_sae: int, width: int, type: str) -> WholeEncoder:
    rows = np.random.default_rng(4).standard_normal((d_sae, width))
    return WholeEncoder(stored(rows, type), type, np.zeros(d_sae, np.float32))


def residuals(n: int, width: int) -> Any:
    """Few of their numbers are large, as in models, and some are tiny."""
    rng = np.random.default_rng(n)
    h = rng.standard_normal((n, width))
    h[:, ::7] *= 1e-4
    h[:, 3] *= 3e3
    h[n // 2 :] *= 100
    return h.astype(np.float32)


def check(scores: Any, one: WholeEncoder, h: Any) -> None:
    rows, wide = one.take(slice(None)).astype(np.float64), h.astype(np.float64)
    room = np.linalg.norm(wide, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
    assert (np.abs(scores - wide @ rows.T) / room).max() < 1e-6


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("n_tokens", [1, 2, 5, 33, 100])
@pytest.mark.parametrize("shape", [(256, 128), (65, 50), (1, 1)])
def test_products_are_f32_s_own(type: str, n_tokens: int, shape: tuple[int, int]) -> None:
    one = encoder(*shape, type)
    h = residuals(n_tokens, max(shape[1], 4))[:, : shape[1]]
    check(Product(one, n_threads=2)(np.ascontiguousarray(h)), one, h)


@pytest.mark.parametrize("type", TYPES)
def test_parts_hold_the_whole_number(type: str) -> None:
    h = residuals(6, 40)
    columns, factors = split(h, type)
    one = WholeEncoder(columns, type, np.zeros(len(columns), np.float32))
    parts = one.take(slice(None)).astype(np.float64).reshape(-1, 6, 40)
    whole = sum(part * factor for part, factor in zip(parts, factors, strict=True))
    largest = np.abs(h).max(axis=1, keepdims=True)
    assert (np.abs(whole - h) / largest).max() <= {"F32": 0, "F16": 2.0**-22, "BF16": 0}[type]


def test_a_kernel_that_sums_in_f16_is_found_out_and_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, h = encoder(70, 64, "F16"), residuals(3, 64)
    by_ggml = Product._by_ggml

    def rounded(self: Product, h: Any) -> Any:
        return by_ggml(self, h) * np.float32(1 + 2.0**-11)

    monkeypatch.setattr(Product, "_by_ggml", rounded)
    multiply = Product(one)
    check(multiply(h), one, h)
    monkeypatch.setattr(Product, "_by_ggml", None)
    check(multiply(h), one, h)


@pytest.mark.parametrize("type", ["F16", "BF16"])
@pytest.mark.parametrize("by_ggml", [True, False])
def test_batches_are_multiplied_in_f32_block_by_block(
    type: str, by_ggml: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, h = encoder(65, 50, type), residuals(100, 50)
    monkeypatch.setattr(product, "BLOCK_BYTES", 4 * 50 * 16)
    monkeypatch.setattr(Product, "_by_ggml", None)
    if not by_ggml:
        monkeypatch.setattr(ggml, "_converter", lambda type: None)
    check(Product(one)(h), one, h)


@pytest.mark.parametrize("type", ["F16", "BF16"])
def test_every_number_is_converted_exactly(type: str) -> None:
    numbers = np.arange(2**16, dtype=np.uint16)
    if type == "F16":
        numbers = numbers.view(np.float16)  # type: ignore[assignment]
    out = np.empty(2**16, np.float32)
    ggml.to_f32(numbers, type, out)
    expected = (
        numbers.astype(np.float32)
        if type == "F16"
        else (numbers.astype(np.uint32) << 16).view(np.float32)
    )
    # A NaN is a NaN, whatever is in it.
    np.testing.assert_array_equal(out, expected)
    with pytest.raises(ValueError, match="for 3: 65536"):
        ggml.to_f32(numbers, type, out[:3])


def test_rows_that_lie_askew(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = np.zeros(4 * 30 * 20 + 1, np.uint8)
    askew = raw[1:].view(np.float32).reshape(30, 20)
    askew[:] = np.random.default_rng(0).standard_normal(askew.shape)
    one = WholeEncoder(askew, "F32", np.zeros(30, np.float32))
    monkeypatch.setattr(product, "BLOCK_BYTES", 4 * 20 * 7)
    h = residuals(4, 20)
    check(Product(one)(h), one, h)
    assert plain_scores(one, h[:0]).shape == (0, 30)
    assert Product(encoder(30, 20, "F16"))(h[:0]).shape == (0, 30)
