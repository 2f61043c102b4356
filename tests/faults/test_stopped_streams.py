"""A stream that is stopped while its client is still there misses nothing and breaks no rule."""

from uuid import uuid4

import pytest
import trio

from dwctl_trio.domain.errors import DwctlError, LeaseLost, ServerStopping
from dwctl_trio.domain.event_grammar import check_stream
from dwctl_trio.domain.items import output_text
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.response import ErrorType
from dwctl_trio.engine.scope import run_inline_streaming
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_store import MemoryStore
from dwctl_trio.testing.request_bench import RequestBench, make_new, open_request_bench
from dwctl_trio.testing.wire import ReadStream, read_stream

WAIT_S = 10.0
TEXT = "word0 word1 "


async def _stream_until_stopped(bench: RequestBench, reason: DwctlError) -> ReadStream:
    """Stop a stream that pauses after two tokens; what its client got of it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.serve_stream, "each-4-pause-2")
        with trio.fail_after(WAIT_S):
            await bench.simulator.wait_until(lambda counts: counts.paused == 1)
            while TEXT.split()[1].encode() not in b"".join(bench.told):
                await trio.lowlevel.checkpoint()
        bench.services.live.stop_all(lambda: reason)
    assert bench.new is not None
    return read_stream(b"".join(bench.told), bench.new.request)


@pytest.mark.parametrize("reason", [ServerStopping("the end"), LeaseLost("not renewed in time")])
async def test_a_stream_that_is_stopped_from_outside_tells_all_its_events_in_order(reason: DwctlError) -> None:
    database = MemoryDatabase()
    store = MemoryStore(database, daemon_id=uuid4())
    await store.register_process()

    async with open_request_bench(store) as bench:
        stream = await _stream_until_stopped(bench, reason)
        row = database.rows[bench.response_id]
        log = database.events[bench.response_id]

    assert check_stream(stream.events) is None
    assert stream.is_done
    told = stream.events[-1].event.response
    assert (told.status.value, output_text(told.output)) == ("failed", TEXT)
    assert row.state is RowState.FAILED, "a lease that still holds lets the output be stored"
    assert log.frames == b"".join(bench.told).removesuffix(b"data: [DONE]\n\n")


async def test_a_stream_that_is_stopped_and_cut_off_at_once_ends_for_the_reason_of_its_stop() -> None:
    database = MemoryDatabase()
    store = MemoryStore(database, daemon_id=uuid4())
    await store.register_process()

    async with open_request_bench(store) as bench:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.serve_stream, "each-4-pause-2")
            with trio.fail_after(WAIT_S):
                await bench.simulator.wait_until(lambda counts: counts.paused == 1)
                while TEXT.split()[1].encode() not in b"".join(bench.told):
                    await trio.lowlevel.checkpoint()
            bench.services.live.stop_all(lambda: ServerStopping("a second signal"))
            nursery.cancel_scope.cancel()
        row = database.rows[bench.response_id]

    assert row.error is not None
    assert (row.state, row.error.type) == (RowState.FAILED, ErrorType.SERVER_STOPPING)
    assert b"word0 word1 " in (row.response or b"")


async def test_a_batch_that_could_not_be_handed_over_in_time_goes_with_the_next() -> None:
    limits = Limits(upstream_total_s=0.3, event_channel_items=1)
    store = MemoryStore(MemoryDatabase(), daemon_id=uuid4(), limits=limits)
    await store.register_process()
    new = make_new("each-3-stall", stream=True)

    told = b""
    async with open_request_bench(store, limits) as bench, trio.open_nursery() as nursery:
        receive_frames = await run_inline_streaming(bench.services, new, nursery)
        with trio.fail_after(WAIT_S):
            await bench.simulator.wait_until(lambda counts: counts.aborted_by_client == 1)
        async for frames in receive_frames:
            told += frames

    stream = read_stream(told, new.request)
    assert check_stream(stream.events) is None
    assert output_text(stream.events[-1].event.response.output).startswith("word0 ")
