"""Any script of models, tools and agents, cancelled anywhere: what the sweeps check of three, of many."""

from collections import Counter

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cancellation.benches import SweepBench, open_memory_bench
from tests.cancellation.test_tool_loops import check_run
from tests.engine.scenarios import OVERRIDES
from tests.properties.test_stream_and_blocking import Parts, cast, parts

from dwctl_trio.testing.cancel_sweep import run_cancelled_after

WAIT_S = 10.0
STEPS = st.integers(1, 200)


@pytest.mark.slow
async def test_any_loop_may_be_cancelled_anywhere() -> None:
    await _cancel_many(150)


@pytest.mark.long
async def test_five_thousand_loops_may_be_cancelled_anywhere() -> None:
    await _cancel_many(5000)


async def _cancel_many(examples: int) -> None:
    rows = Counter[str]()
    async with open_memory_bench(OVERRIDES) as bench:

        @settings(max_examples=examples)
        @given(parts(), STEPS, st.booleans())
        def check(drawn: Parts, step: int, stream: bool) -> None:
            rows[trio.from_thread.run(_cancel, bench, drawn, step, stream)] += 1

        await trio.to_thread.run_sync(check)
    print(f"any loop, cancelled anywhere: {examples} runs, rows {dict(rows)}")
    assert min(rows["canceled"], rows["completed"]) > 0


async def _cancel(bench: SweepBench, drawn: Parts, step: int, stream: bool) -> str:
    requests = bench.requests
    cast(requests, drawn)
    serve = requests.serve_stream if stream else requests.serve_blocking
    before = requests.simulator.statistics().total
    with trio.fail_after(WAIT_S):
        await run_cancelled_after(step, lambda: serve(drawn.top, **drawn.fields))
        stored = await check_run(bench, stream=stream, model_calls_before=before)
    return stored.state.value if stored else "no row"
