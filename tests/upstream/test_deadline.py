"""The clock of a model call, on a clock that jumps."""

import pytest
import trio

from dwctl_trio.domain.errors import UpstreamTimeout
from dwctl_trio.domain.limits import Limits
from dwctl_trio.upstream.deadline import CallDeadline

LIMITS = Limits(upstream_first_byte_s=10.0, upstream_chunk_s=5.0, upstream_total_s=100.0)


async def test_the_clock_of_the_upstream_stands_still_while_nobody_reads(autojump_clock) -> None:
    with CallDeadline(LIMITS) as deadline:
        deadline.expect_first_byte()
        for _ in range(3):
            with deadline.expect_chunk():
                await trio.sleep(4)
            await trio.sleep(20)  # busy with our own client, far beyond the time between two chunks

    assert trio.current_time() == 72


async def test_the_head_and_the_first_chunk_share_the_time_to_the_first_byte(autojump_clock) -> None:
    with pytest.raises(UpstreamTimeout, match="did not begin to answer"), CallDeadline(LIMITS) as deadline:
        deadline.expect_first_byte()
        await trio.sleep(6)
        with deadline.expect_chunk():
            await trio.sleep(5)

    assert trio.current_time() == 10


async def test_a_later_chunk_has_a_time_of_its_own(autojump_clock) -> None:
    with pytest.raises(UpstreamTimeout, match="stopped in the middle"), CallDeadline(LIMITS) as deadline:
        deadline.expect_first_byte()
        with deadline.expect_chunk():
            await trio.sleep(9)
        with deadline.expect_chunk():
            await trio.sleep_forever()

    assert trio.current_time() == 14


async def test_the_whole_call_has_an_end_also_while_nobody_reads(autojump_clock) -> None:
    with pytest.raises(UpstreamTimeout, match="the whole answer"), CallDeadline(LIMITS) as deadline:
        deadline.expect_first_byte()
        with deadline.expect_chunk():
            await trio.sleep(1)
        await trio.sleep_forever()

    assert trio.current_time() == 100


async def test_a_chunk_that_would_outlast_the_whole_call_ends_with_it(autojump_clock) -> None:
    with pytest.raises(UpstreamTimeout, match="the whole answer"), CallDeadline(LIMITS) as deadline:
        await trio.sleep(98)
        with deadline.expect_chunk():
            await trio.sleep(3)


async def test_a_cancellation_from_outside_is_not_taken_for_a_timeout(autojump_clock) -> None:
    with trio.move_on_after(2) as outer, CallDeadline(LIMITS) as deadline:
        deadline.expect_first_byte()
        await trio.sleep_forever()

    assert outer.cancelled_caught
