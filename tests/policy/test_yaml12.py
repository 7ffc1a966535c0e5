from __future__ import annotations

from typing import Any

import pytest

from scope_runtime.errors import Location, PolicyErrors
from scope_runtime.policy.yaml12 import decode, key_text, parse

FILE = "p.yaml"


@pytest.mark.parametrize(
    ("written", "means"),
    [
        # words that YAML 1.1 takes for truth values
        *[(word, word) for word in ("off", "Off", "OFF", "on", "On", "yes", "Yes", "no", "NO", "y", "n")],
        *[("true", True), ("True", True), ("TRUE", True), ("false", False), ("tRUE", "tRUE")],
        # nothing
        *[("~", None), ("null", None), ("Null", None), ("NULL", None), ("", None), ("nULL", "nULL")],
        # whole numbers
        *[("0", 0), ("-7", -7), ("+7", 7), ("017", 17), ("08", 8), ("0o17", 15), ("0xFf", 255)],
        *[("1_000", "1_000"), ("0b11", "0b11"), ("-0x1", "-0x1"), ("0o8", "0o8"), ("0X1", "0X1")],
        ("9223372036854775807", 2**63 - 1),
        # numbers
        *[("1e-3", 0.001), ("1E3", 1000.0), ("1.5e+3", 1500.0), (".5", 0.5), ("5.", 5.0), ("-.5", -0.5)],
        *[("1.", 1.0), ("e3", "e3"), (".", "."), ("1e", "1e"), ("1.2.3", "1.2.3"), ("+-1", "+-1")],
        *[("nan", "nan"), ("inf", "inf"), (".Nan", ".Nan"), ("+.nan", "+.nan")],
        # base 60, dates, merge, value: only in YAML 1.1
        *[("20:45", "20:45"), ("190:20:30", "190:20:30"), ("2027-01-31", "2027-01-31")],
        *[("2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"), ("=", "=")],
        # quotes and core tags
        *[("'1'", "1"), ('"true"', "true"), ('"\\x41"', "A"), ("!!str 1e3", "1e3"), ("!!int 7", 7)],
        *[("!!float 7", 7), ("!!null ''", None), ("!!bool 'true'", True), ("! 7", "7")],
        *[("|\n  off\n", "off\n"), (">-\n  a\n  b\n", "a b")],
        ('"\\ud83d\\ude00"', "😀"),
    ],
)  # fmt: skip
def test_a_scalar_means_what_yaml_1_2_says(written: str, means: Any) -> None:
    document = parse(f"key: {written}", FILE)
    assert document.errors == ()
    value = document.tree["key"]
    assert value == means
    assert type(value) is type(means)


@pytest.mark.parametrize("written", [".inf", "-.Inf", "+.INF", ".nan", ".NaN", ".NAN", "1e999"])
def test_what_is_not_finite_is_recognised_and_refused(written: str) -> None:
    document = parse(f"key: {written}", FILE)
    ((path, error),) = document.errors
    assert path == ("key",)
    assert error.found == written


def test_every_value_and_key_has_its_place() -> None:
    document = parse("a:\n  - {b: 1, c: [x,\n   y]}\n", FILE)
    assert document.tree == {"a": [{"b": 1, "c": ["x", "y"]}]}
    places = {
        key_text(path): (
            mark.key and (mark.key.line, mark.key.column),
            mark.value.line,
            mark.value.column,
        )
        for path, mark in document.marks.items()
    }
    assert places == {
        None: (None, 1, 1),
        "a": ((1, 1), 2, 3),
        "a[0]": (None, 2, 5),
        "a[0].b": ((2, 6), 2, 9),
        "a[0].c": ((2, 12), 2, 15),
        "a[0].c[0]": (None, 2, 16),
        "a[0].c[1]": (None, 3, 4),
    }


def test_a_key_with_dots_is_told_from_a_path() -> None:
    assert key_text(("spec", "features", "a.b", "id")) == 'spec.features["a.b"].id'


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_ends_of_every_system(newline: str) -> None:
    text = newline.join(["a: 1", "b:", "  c: 2", ""])
    document = parse(text, FILE)
    assert document.tree == {"a": 1, "b": {"c": 2}}
    assert document.marks[("b", "c")].value == Location(FILE, 3, 6)


def test_a_byte_order_mark_is_passed_over() -> None:
    document = parse(decode(b"\xef\xbb\xbfa: 1", FILE), FILE)
    assert document.tree == {"a": 1}
    assert document.marks[("a",)].key == Location(FILE, 1, 1)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf" * 2])
def test_the_place_of_a_bad_byte_counts_characters(mark: bytes) -> None:
    with pytest.raises(PolicyErrors) as refused:
        decode(mark + "a: ü\nb: üü".encode() + b"\xff", FILE)
    assert (
        str(refused.value)
        == "p.yaml:2:6: the file is not UTF-8; found byte 0xff; expected UTF-8 text"
    )


def test_behaviour_1_a_duplicate_key_is_an_error_and_the_rest_is_read() -> None:
    document = parse("a: 1\na: {x: 2, x: 3}\nb: 4\n", FILE)
    assert document.tree == {"a": 1, "b": 4}
    assert [str(error) for _, error in document.errors] == [
        'p.yaml:2:1: duplicate key "a" (at a). It already stands at p.yaml:1:1.'
    ]


def test_what_was_found_before_the_text_broke_is_reported_as_well() -> None:
    with pytest.raises(PolicyErrors) as refused:
        parse("a: 1\na: 2\nb: [\n", FILE)
    assert [error.location and error.location.line for error in refused.value.errors] == [2, 4]


def test_json_is_yaml() -> None:
    assert parse('{"a":[1,2.5,"x",null,true],"b":{"c":"\\u00e9\\/"}}', FILE).tree == {
        "a": [1, 2.5, "x", None, True],
        "b": {"c": "é/"},
    }
