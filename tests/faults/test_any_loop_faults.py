"""Any script of models, tools and agents over a store that fails at random: only what is so is told."""

from collections import Counter

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.scenarios import read_told
from tests.faults.test_tool_loop_faults import WAIT_S, FaultyBench, open_faulty_bench
from tests.properties.test_stream_and_blocking import LIMITS, Parts, cast, parts

from dwctl_trio.domain.event_grammar import check_stream
from dwctl_trio.domain.lifecycle import STEP_MOVES, TERMINAL_STATES, RowState
from dwctl_trio.domain.limits import Limits
from dwctl_trio.protocol.sse import DONE
from dwctl_trio.testing.cancel_sweep import run_cancelled_after
from dwctl_trio.testing.faulty_store import Fault
from dwctl_trio.testing.wire import read_stream

QUICK = Limits(
    turns=LIMITS.turns,
    steps=LIMITS.steps,
    tool_calls=LIMITS.tool_calls,
    store_wait_s=0.05,
    store_call_s=0.05,
    terminal_write_s=0.1,
    terminal_retry_s=0.01,
)
FAULTS = st.sampled_from([None, None, None, Fault.FAIL_BEFORE, Fault.FAIL_AFTER, Fault.HANG_BEFORE, Fault.HANG_AFTER])


@pytest.mark.slow
async def test_any_loop_over_a_store_that_fails_at_random_tells_only_what_is_so() -> None:
    await _run_many(60)


@pytest.mark.long
async def test_two_thousand_loops_over_a_store_that_fails_at_random_tell_only_what_is_so() -> None:
    await _run_many(2000)


async def _run_many(examples: int) -> None:
    outcomes = Counter[str]()
    async with open_faulty_bench(QUICK) as bench:

        @settings(max_examples=examples)
        @given(parts(), st.lists(FAULTS, max_size=25), st.none() | st.integers(1, 200))
        def check(drawn: Parts, faults: list[Fault | None], cancelled_after: int | None) -> None:
            outcomes[trio.from_thread.run(_run, bench, drawn, faults, cancelled_after)] += 1

        await trio.to_thread.run_sync(check)
        bench.store.plan = ()
        bench.database.advance_clock(QUICK.lease_s + 1)
        rescued = 0
        while batch := await bench.store.rescue_expired():
            rescued += len(batch)
        by_key = bench.requests.tool_server.calls_by_key
    assert {row.state for row in bench.database.rows.values()} <= TERMINAL_STATES
    assert [step for step in bench.database.steps.values() if STEP_MOVES[step.state]] == []
    assert set(by_key.values()) <= {1}, "no call was made twice"
    print(f"any loop, failing store: {examples} runs, {dict(outcomes)}; then rescued: {rescued}; calls {len(by_key)}")


async def _run(bench: FaultyBench, drawn: Parts, faults: list[Fault | None], cancelled_after: int | None) -> str:
    requests = bench.requests
    cast(requests, drawn)
    bench.store.plan = [*[None] * len(bench.store.calls), *faults]
    with trio.fail_after(WAIT_S):
        if cancelled_after is None:
            await requests.serve_stream(drawn.top, **drawn.fields)
        else:
            await run_cancelled_after(cancelled_after, lambda: requests.serve_stream(drawn.top, **drawn.fields))
        await requests.check_nothing_left()
    row = bench.database.rows.get(requests.response_id)
    if row is None:
        assert not requests.told
        return "no row"
    told = b"".join(requests.told)
    assert requests.new is not None
    stream = read_stream(told, requests.new.request)
    assert check_stream(stream.events, prefix=True) is None
    if b"event: response.completed" in told:
        assert row.state is RowState.COMPLETED, "seen completed means stored completed"
        assert read_told(requests)
    if row.state not in TERMINAL_STATES:
        return "to be rescued"
    assert not [step for step in bench.database.steps_of(row.id) if STEP_MOVES[step.state]]
    log = bench.database.events[row.id].frames
    assert check_stream(read_stream(log, requests.new.request).events) is None
    if log.startswith(told.removesuffix(DONE)):
        return f"stored {row.state.value}"
    assert b"event: response.failed" in told, "told that it failed, as nobody knew that it was stored"
    return f"told failed, stored {row.state.value}"
