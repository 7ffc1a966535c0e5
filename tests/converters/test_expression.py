"""Expressions over vectors: what they mean, and that nothing else gets through."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.expression import parse_expression
from scope_runtime.errors import UsageError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a", {"a": 1}),
        ("0.7*a - 0.2*b", {"a": 0.7, "b": -0.2}),
        (" - ( a + 2 * b ) * 3 ", {"a": -3, "b": -6}),
        ("a - a", {"a": 0}),
        ("2*(a*3) + .5e1*b.v2", {"a": 6, "b.v2": 5}),
        ("(1 - 1) + a", {"a": 1}),
        ("--a", {"a": 1}),
        ("1-1+a*(2-1)", {"a": 1}),
    ],
)
def test_what_it_means(text: str, wanted: dict[str, float]) -> None:
    assert parse_expression(text) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a number, a name or a parenthesis is missing; found the end"),
        ("a*b", "two vectors are multiplied; found 'b' at column 3"),
        ("(a", "a parenthesis is not closed; found the end"),
        ("a b", "this has no place in an expression; found 'b' at column 3"),
        ("a/2", "this has no place in an expression; found '/2' at column 2"),
        ("a**2", r"a number, a name or a parenthesis is missing; found '\*2' at column 3"),
        ("2", "no vector in it"),
        ("a + 2", "gives a number beside the vectors"),
        ("1e999*a", "a coefficient is not finite"),
        ("__import__('os')", "this has no place"),
        ("a; b", "this has no place"),
        ("(" * 65 + "a" + ")" * 65, "nested too deeply"),
        ("a+" * 3000 + "a", "the expression is too long"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_expression(text)


numbers = st.floats(-9, 9).map(lambda value: round(value, 3))
atoms = st.sampled_from("abc").map(lambda name: (name, {name: 1.0}))


def _joined(parts: st.SearchStrategy[tuple[str, dict[str, float]]]) -> st.SearchStrategy:  # type: ignore[type-arg]
    def total(one: tuple, other: tuple, sign: str) -> tuple[str, dict[str, float]]:  # type: ignore[type-arg]
        factor = 1 if sign == "+" else -1
        names = {n: one[1].get(n, 0) + factor * other[1].get(n, 0) for n in {*one[1], *other[1]}}
        return f"({one[0]} {sign} ({other[0]}))", names

    def scaled(one: tuple, number: float) -> tuple[str, dict[str, float]]:  # type: ignore[type-arg]
        return f"({number!r}) * {one[0]}", {n: number * value for n, value in one[1].items()}

    return st.builds(total, parts, parts, st.sampled_from("+-")) | st.builds(scaled, parts, numbers)


@given(st.recursive(atoms, _joined, max_leaves=12))
def test_it_agrees_with_arithmetic(case: tuple[str, dict[str, float]]) -> None:
    text, wanted = case
    assert parse_expression(text) == pytest.approx(wanted, abs=1e-6, rel=1e-9)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(UsageError):
        parse_expression(text)
