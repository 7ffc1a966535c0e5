"""Errors carry their fields, and carry them anywhere."""

from __future__ import annotations

import pickle

import pytest

from scope_runtime.errors import Location, PackError, PolicyError, PolicyErrors, ScopeError

ONE = PolicyError(
    "unknown key",
    location=Location("p.yaml", 3, 7),
    key="spec.x",
    found="x",
    expected="y",
    hint="Try y",
)


@pytest.mark.parametrize("error", [ONE, PackError("too big"), PolicyErrors((ONE, PackError("b")))])
def test_an_error_survives_the_way_between_processes(error: ScopeError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.fields() == error.fields()


def test_the_sentence_has_place_key_found_expected_and_hint() -> None:
    assert str(ONE) == "p.yaml:3:7: unknown key (at spec.x); found x; expected y. Try y"


def test_several_errors_as_data() -> None:
    one, other = PolicyError("wrong", location=Location("p.yaml", 3, 5)), PolicyError("odd")
    alone, both = PolicyErrors((one,)).fields(), PolicyErrors((one, other)).fields()
    assert (alone["message"], alone["line"]) == ("wrong", 3)
    assert (both["message"], both["line"]) == ("2 errors", 3)
    assert both["errors"] == [one.fields(), other.fields()]
