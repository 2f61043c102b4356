"""The clock of a model call, on a clock that jumps."""

from collections.abc import AsyncIterator

import pytest
import trio

from dwctl_trio.domain.errors import UpstreamTimeout
from dwctl_trio.domain.limits import Limits
from dwctl_trio.upstream.deadline import CallClock, CallDeadline, open_call_clock

LIMITS = Limits(upstream_first_byte_s=10.0, upstream_chunk_s=5.0, upstream_total_s=100.0)


@pytest.fixture
async def clock() -> AsyncIterator[CallClock]:
    with open_call_clock() as clock:
        yield clock


async def test_the_clock_of_the_upstream_stands_still_while_nobody_reads(autojump_clock, clock) -> None:
    with CallDeadline(clock, LIMITS) as deadline:
        deadline.expect_first_byte()
        for _ in range(3):
            deadline.expect_chunk()
            await trio.sleep(4)
            deadline.pause()
            await trio.sleep(20)  # busy with our own client, far beyond the time between two chunks

    assert trio.current_time() == 72


async def test_the_head_and_the_first_chunk_share_the_time_to_the_first_byte(autojump_clock, clock) -> None:
    with pytest.raises(UpstreamTimeout, match="did not begin to answer"), CallDeadline(clock, LIMITS) as deadline:
        deadline.expect_first_byte()
        await trio.sleep(6)
        deadline.expect_chunk()
        await trio.sleep(5)
        deadline.pause()

    assert trio.current_time() == 10


async def test_a_later_chunk_has_a_time_of_its_own(autojump_clock, clock) -> None:
    with pytest.raises(UpstreamTimeout, match="stopped in the middle"), CallDeadline(clock, LIMITS) as deadline:
        deadline.expect_first_byte()
        deadline.expect_chunk()
        await trio.sleep(9)
        deadline.pause()
        deadline.expect_chunk()
        await trio.sleep_forever()
        deadline.pause()

    assert trio.current_time() == 14


async def test_the_whole_call_has_an_end_also_while_nobody_reads(autojump_clock, clock) -> None:
    with pytest.raises(UpstreamTimeout, match="the whole answer"), CallDeadline(clock, LIMITS) as deadline:
        deadline.expect_first_byte()
        deadline.expect_chunk()
        await trio.sleep(1)
        deadline.pause()
        await trio.sleep_forever()

    assert trio.current_time() == 100


async def test_a_chunk_that_would_outlast_the_whole_call_ends_with_it(autojump_clock, clock) -> None:
    with pytest.raises(UpstreamTimeout, match="the whole answer"), CallDeadline(clock, LIMITS) as deadline:
        await trio.sleep(98)
        deadline.expect_chunk()
        await trio.sleep(3)
        deadline.pause()


async def test_a_cancellation_from_outside_is_not_taken_for_a_timeout(autojump_clock, clock) -> None:
    with trio.move_on_after(2) as outer, CallDeadline(clock, LIMITS) as deadline:
        deadline.expect_first_byte()
        await trio.sleep_forever()

    assert outer.cancelled_caught


async def test_a_first_byte_that_came_too_late_to_be_read_is_late(autojump_clock, clock) -> None:
    with pytest.raises(UpstreamTimeout, match="did not begin to answer"), CallDeadline(clock, LIMITS) as deadline:
        deadline.expect_first_byte()
        deadline.pause()
        await trio.sleep(30)  # nobody reads, and nobody is cancelled
        deadline.expect_chunk()
        await trio.sleep_forever()

    assert trio.current_time() == 30


async def test_one_clock_looks_after_many_calls_each_at_its_own_time(autojump_clock, clock) -> None:
    ended_at = {}

    async def call(number: int) -> None:
        await trio.sleep(number % 7)
        with pytest.raises(UpstreamTimeout), CallDeadline(clock, LIMITS) as deadline:
            deadline.expect_first_byte()
            for _ in range(number):
                deadline.expect_chunk()
                await trio.sleep(1)
                deadline.pause()
                await trio.sleep(number % 3)
            deadline.expect_chunk()
            await trio.sleep_forever()
        ended_at[number] = trio.current_time()

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(call, number)

    own_s = {number: LIMITS.upstream_chunk_s if number else LIMITS.upstream_first_byte_s for number in range(20)}
    assert ended_at == {number: number % 7 + number * (1 + number % 3) + own_s[number] for number in range(20)}


async def test_a_whole_answer_has_only_the_limit_for_the_whole_call(autojump_clock, clock) -> None:
    late = pytest.raises(UpstreamTimeout, match="the whole answer")
    with late, CallDeadline(clock, LIMITS, is_whole=True) as deadline:
        deadline.expect_first_byte()
        await trio.sleep(50)
        deadline.expect_chunk()
        await trio.sleep_forever()

    assert trio.current_time() == 100
