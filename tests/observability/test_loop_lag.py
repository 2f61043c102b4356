"""The lag of the event loop, on a clock that tests hold in their hands."""

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.observability.loop_lag import HALF_LIFE_S, INTERVAL_S, LoopLag, run_loop_lag


@attrs.define
class BlockedClock:
    """Trio's virtual time, and the time in which a computation kept the loop from everything else."""

    blocked_s: float = 0.0

    def __call__(self) -> float:
        return trio.current_time() + self.blocked_s


@attrs.define
class HandClock:
    """A clock that a test sets."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


def measured(clock: HandClock, late_s: float) -> LoopLag:
    """A lag that has been measured once, just now."""
    lag = LoopLag(clock)
    lag.expect(clock() + INTERVAL_S)
    clock.seconds += INTERVAL_S + late_s
    lag.note_fired()
    lag.expect(clock() + INTERVAL_S)
    return lag


def test_a_lag_that_nobody_measures_is_none() -> None:
    assert LoopLag(HandClock(1e9)).seconds == 0.0


def test_a_timer_that_fires_late_tells_how_late() -> None:
    assert measured(HandClock(), 0.75).seconds == pytest.approx(0.75)


def test_a_timer_that_fires_early_is_not_late() -> None:
    assert measured(HandClock(), -0.05).seconds == 0.0


def test_a_peak_loses_half_in_each_half_life() -> None:
    clock = HandClock()
    lag = measured(clock, 0.8)

    for expected in (0.4, 0.2, 0.1):
        clock.seconds += HALF_LIFE_S
        lag.expect(clock() + INTERVAL_S)
        assert lag.seconds == pytest.approx(expected)


def test_a_second_of_lag_is_forgotten_within_the_five_seconds_of_a_recovery() -> None:
    clock = HandClock()
    lag = measured(clock, 1.0)
    clock.seconds += 5.0
    lag.expect(clock() + INTERVAL_S)

    assert lag.seconds < 0.05


def test_a_smaller_lag_does_not_hide_a_larger_one_before() -> None:
    clock = HandClock()
    lag = measured(clock, 2.0)
    clock.seconds += INTERVAL_S + 0.1
    lag.note_fired()
    lag.expect(clock() + INTERVAL_S)

    assert lag.seconds > 1.5


def test_a_timer_that_is_overdue_counts_before_it_has_fired() -> None:
    clock = HandClock()
    lag = measured(clock, 0.0)
    clock.seconds += INTERVAL_S + 3.0

    assert lag.seconds == pytest.approx(3.0)


@given(st.lists(st.floats(min_value=0.0, max_value=60.0), min_size=1, max_size=20))
def test_the_lag_is_never_negative_below_the_last_measurement_or_above_the_largest(lates: list[float]) -> None:
    clock = HandClock()
    lag = LoopLag(clock)
    for late_s in lates:
        lag.expect(clock() + INTERVAL_S)
        clock.seconds += INTERVAL_S + late_s
        lag.note_fired()
        lag.expect(clock() + INTERVAL_S)

        assert lag.seconds >= late_s - 1e-9
        assert 0.0 <= lag.seconds <= max(lates) + 1e-9


async def test_a_loop_that_is_not_blocked_has_no_lag(autojump_clock) -> None:
    noted: list[float] = []
    lag = LoopLag()
    with trio.move_on_after(10.5 * INTERVAL_S):
        await run_loop_lag(lag, noted.append)

    assert len(noted) == 10
    assert max(noted) < 1e-9


async def test_a_computation_that_blocks_the_loop_is_measured(autojump_clock) -> None:
    clock, noted = BlockedClock(), []
    lag = LoopLag(clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_loop_lag, lag, noted.append)
        await trio.sleep(INTERVAL_S / 2)
        clock.blocked_s += 0.4
        assert lag.seconds == pytest.approx(0.35), "seen by whoever runs first after it"
        await trio.sleep(INTERVAL_S)
        assert lag.seconds == pytest.approx(0.4, rel=0.1)
        nursery.cancel_scope.cancel()

    assert noted == [pytest.approx(0.4)]


async def test_a_lag_that_is_no_longer_measured_does_not_grow(autojump_clock) -> None:
    lag = LoopLag()
    with trio.move_on_after(3 * INTERVAL_S):
        await run_loop_lag(lag, lambda _: None)
    await trio.sleep(100.0)

    assert lag.seconds == 0.0
