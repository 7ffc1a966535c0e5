"""Records as bytes: RFC 8785, and what it cannot say."""

from __future__ import annotations

import json
import math

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from scope_runtime.audit.canonical import CHAIN, Body, canonical
from scope_runtime.errors import AuditError

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('abcdez{"é😀'), inner),
    max_leaves=10,
)


def test_the_example_of_the_rfc() -> None:
    """RFC 8785, section 3.2.2 and 3.2.3."""
    source = json.loads(
        r'{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],'
        r'"string":"\u20ac$\u000F\u000aA'
        "'"
        r'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}'
    )
    assert canonical(source).decode() == (
        r'{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$' + r"\u000f\nA'B\"\\\\\"/" + '"}'
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (2**53 - 1, "9007199254740991"),
        (2**53, '"9007199254740992"'),
        (-(2**60), '"-1152921504606846976"'),
        (math.nan, "null"),
        (-math.inf, "null"),
        ("a\udc80", '"a\ufffd"'),
        ((1, [True, {"k": 2**64}]), '[1,[true,{"k":"18446744073709551616"}]]'),
        (1e300, "1e+300"),
    ],
)
def test_what_json_cannot_say(value: object, said: str) -> None:
    assert canonical({"v": value}).decode() == f'{{"v":{said}}}'


@pytest.mark.parametrize("value", [object(), {1: 2}, b"bytes"])
def test_what_has_no_form_is_an_error(value: object) -> None:
    with pytest.raises(AuditError, match="an event cannot be written as JSON"):
        canonical({"v": value})


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), json_values),
    st.integers(0, 2**40),
    st.none() | st.binary(min_size=32, max_size=32),
)
def test_a_body_at_its_place_is_canonical(
    record: dict[str, object], index: int, prev: bytes | None
) -> None:
    record.pop(CHAIN, None)
    whole = {**record, CHAIN: {"index": index, "prev": prev.hex() if prev else None}}
    assert Body(record).line(index, prev) == rfc8785.dumps(whole)


def test_the_place_is_not_the_events_to_choose() -> None:
    with pytest.raises(AuditError, match="an event cannot have the key chain"):
        Body({"chain": 1})
