"""Where a request's time went, by a clock that the test moves."""

from __future__ import annotations

from scope_runtime.llama.timing import Timing


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_waiting_prompt_and_answer_apart_and_the_reader_in_none_of_them() -> None:
    clock = Clock()
    timing = Timing(clock)
    clock.now += 2.0  # others are answered
    timing.begin()
    timing.start()
    clock.now += 0.5
    timing.start()  # runs already
    clock.now += 0.25
    timing.stop()
    for _ in range(3):
        clock.now += 10.0  # who reads the stream takes his time
        timing.start()
        clock.now += 0.125
        timing.stop()
    timing.stop()  # does not run
    assert timing.record() == {
        "queue_s": 2.0,
        "prompt_s": 0.75,
        "generation_s": 0.375,
        "duration_s": 33.125,
    }


def test_a_request_that_ended_before_its_prompt_was_computed() -> None:
    clock = Clock()
    timing = Timing(clock)
    clock.now += 1.0
    assert timing.record() == {
        "queue_s": 0.0,
        "prompt_s": 0.0,
        "generation_s": 0.0,
        "duration_s": 1.0,
    }
