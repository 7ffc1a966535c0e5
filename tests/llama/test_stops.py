"""Stop texts, against the plainest reading of them: character by character over the whole text."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from scope_runtime.llama.stops import Stops

TEXTS = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)


def reference(text: str, stops: list[str]) -> tuple[str, bool]:
    for end in range(1, len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            return text[: end - max(map(len, met))], True
    return text, False


@given(text=TEXTS, stops=STOPS, cuts=st.lists(st.integers(0, 30), max_size=10))
def test_the_cuts_of_the_text_do_not_matter(text: str, stops: list[str], cuts: list[int]) -> None:
    looking = Stops(stops)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    out = "".join(looking.feed(text[a:b]) for a, b in itertools.pairwise(places))
    assert (out + looking.rest(), looking.found) == reference(text, stops)


@given(text=TEXTS, stops=STOPS)
def test_what_is_given_is_never_the_begin_of_a_stop_text(text: str, stops: list[str]) -> None:
    looking = Stops(stops)
    given_out = ""
    for n, character in enumerate(text, 1):
        given_out += looking.feed(character)
        if looking.found:
            break
        held = text[len(given_out) : n]
        assert not held or any(stop.startswith(held) for stop in stops)
