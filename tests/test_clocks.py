"""A clock that is put forward, put back, and goes on."""

from __future__ import annotations

from scope_runtime.clocks import SteadyClock


def test_a_steady_clock_follows_forward_and_goes_on_when_it_is_put_back() -> None:
    wall, monotonic = [1000.0], [5.0]
    clock = SteadyClock(lambda: wall[0], lambda: monotonic[0])

    def after(passed: float, put: float = 0.0) -> float:
        monotonic[0] += passed
        wall[0] += passed + put
        return clock()

    assert after(0) == 1000
    assert after(10) == 1010
    assert after(10, put=3600) == 4620
    assert after(10, put=-86_400) == 4630
    assert after(10) == 4640
    assert after(10, put=86_400) == 4650
    assert after(10, put=1) == 4661
