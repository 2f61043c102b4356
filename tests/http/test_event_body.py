"""The SSE writer: both ways of writing it say the same, and silence is broken in time."""

from collections.abc import Awaitable, Callable
from math import inf

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from dwctl_trio.http.event_body import EventBody
from dwctl_trio.protocol.sse import DONE, KEEP_ALIVE

KEEP_ALIVE_S = 15.0
PAUSES = st.sampled_from([0.0, 0.0, 1.0, 14.9, 15.1, 31.0])
Writes = list[tuple[float, bytes]]
"""When, and what."""


async def iterate(body: EventBody, writes: Writes, _takes: int) -> None:
    async for data in body:
        writes.append((trio.current_time(), data))


async def pour(body: EventBody, writes: Writes, takes: int) -> None:
    """As the direct way does it, to a client of whose every write the kernel takes *takes* bytes at once."""

    def write_now(data: bytes) -> bytes:
        if data:
            writes.append((trio.current_time(), data))
        return data[takes:]

    async def write(rest: bytes) -> None:
        assert rest
        await trio.lowlevel.checkpoint()

    last = await body.pour(write_now, write)
    writes.append((trio.current_time(), last))


async def play(way: Callable[[EventBody, Writes, int], Awaitable[None]], pauses: list[float], takes: int) -> Writes:
    """What is written of frames that come with these pauses before them."""
    send_frames, receive_frames = trio.open_memory_channel[bytes](inf)
    writes: Writes = []

    async def tell() -> None:
        async with send_frames:
            for index, pause in enumerate(pauses):
                if pause:
                    await trio.sleep(pause)
                await send_frames.send(b"frame %d\n\n" % index)

    async with trio.open_nursery() as nursery, EventBody(receive_frames, keep_alive_s=KEEP_ALIVE_S) as body:
        nursery.start_soon(tell)
        await way(body, writes, takes)
    return writes


@given(st.lists(PAUSES, max_size=6), st.sampled_from([0, 3, 1_000_000]))
def test_both_ways_of_writing_say_the_same_at_the_same_time(pauses: list[float], takes: int) -> None:
    plain, direct = (
        trio.run(play, way, pauses, takes, clock=MockClock(autojump_threshold=0)) for way in (iterate, pour)
    )

    def by_time(writes: Writes) -> dict[float, bytes]:
        times = {round(at, 6) for at, _ in writes}
        return {time: b"".join(data for at, data in writes if round(at, 6) == time) for time in times}

    assert by_time(direct) == by_time(plain)
    assert b"".join(data for _, data in direct).endswith(DONE)


@pytest.mark.parametrize("way", [iterate, pour])
def test_silence_is_broken_once_in_a_while_and_not_while_frames_come(
    way: Callable[[EventBody, Writes, int], Awaitable[None]],
) -> None:
    writes = trio.run(play, way, [*[1.0] * 20, 40.0], 1_000_000, clock=MockClock(autojump_threshold=0))

    assert [at - writes[0][0] for at, data in writes if data == KEEP_ALIVE] == pytest.approx([19 + 15, 19 + 30])
