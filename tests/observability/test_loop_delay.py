"""How long a task waits for its turn: half of a batch, averaged over what was of late."""

import math
import time

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.observability.loop_delay import SPAN_S, LoopDelay


@attrs.define
class HandClock:
    now: float = 100.0
    worked: float = 7.0

    def make_delay(self) -> LoopDelay:
        return LoopDelay(lambda: self.now, lambda: self.worked)

    def work(self, seconds: float, *, kept_waiting_s: float = 0.0) -> None:
        self.worked += seconds
        self.now += seconds + kept_waiting_s


def run_batches(delay: LoopDelay, clock: HandClock, busy_s: float, idle_s: float, count: int) -> None:
    """*count* batches of one length, each after a wait."""
    for _ in range(count):
        clock.work(busy_s)
        delay.before_io_wait(0.0)
        clock.now += idle_s
        delay.after_io_wait(0.0)


async def test_it_is_zero_while_nobody_measures() -> None:
    delay = LoopDelay()

    assert delay.seconds == 0.0
    with delay.measuring():
        pass
    assert delay.seconds == 0.0


async def test_a_loop_that_is_always_busy_has_half_its_batch_as_delay() -> None:
    clock = HandClock()
    delay = clock.make_delay()
    with delay.measuring():
        run_batches(delay, clock, 0.02, 0.0, 100)
        assert delay.seconds == pytest.approx(0.01, rel=0.01)


async def test_a_loop_that_is_busy_in_short_batches_is_not_late() -> None:
    clock = HandClock()
    delay = clock.make_delay()
    with delay.measuring():
        run_batches(delay, clock, 0.001, 0.0, 1000)
        assert delay.seconds == pytest.approx(0.0005, rel=0.05)


async def test_one_long_batch_is_forgotten_after_a_moment() -> None:
    clock = HandClock()
    delay = clock.make_delay()
    with delay.measuring():
        run_batches(delay, clock, 0.2, 0.0, 1)
        at_once = delay.seconds
        run_batches(delay, clock, 0.0001, 0.01, 40)
        assert at_once > 0.09
        assert delay.seconds < 0.001


async def test_the_batch_under_way_counts_already() -> None:
    clock = HandClock()
    delay = clock.make_delay()
    with delay.measuring():
        clock.work(SPAN_S)
        assert delay.seconds == pytest.approx((1 - math.exp(-1)) * SPAN_S / 2)


async def test_what_other_processes_take_away_is_no_delay_of_ours() -> None:
    clock = HandClock()
    delay = clock.make_delay()
    with delay.measuring():
        for _ in range(20):
            clock.work(0.001, kept_waiting_s=0.05)
            delay.before_io_wait(0.0)
            delay.after_io_wait(0.0)
        assert delay.seconds <= 0.0005


@given(st.lists(st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)), max_size=30))
def test_it_lies_between_zero_and_half_the_longest_batch(batches: list[tuple[float, float]]) -> None:
    clock = HandClock()
    delay = clock.make_delay()

    async def main() -> None:
        with delay.measuring():
            for busy_s, idle_s in batches:
                run_batches(delay, clock, busy_s, idle_s, 1)
            longest_s = max((busy_s for busy_s, _ in batches), default=0.0)
            assert 0.0 <= delay.seconds <= longest_s / 2 + 1e-9

    # The hand clock stands still while Trio itself takes its turns, so that these count for nothing.
    trio.run(main)


async def test_a_real_loop_that_is_blocked_is_late() -> None:
    delay = LoopDelay()
    with delay.measuring():
        end_at = time.thread_time() + 0.1
        while time.thread_time() < end_at:
            pass
        await trio.lowlevel.checkpoint()
        assert delay.seconds > 0.02
