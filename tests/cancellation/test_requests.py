"""Cancelling a request at every one of its task steps: nothing is lost, nothing is left."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest
from tests.cancellation.benches import SweepBench, open_memory_bench, open_postgres_bench

from dwctl_trio.domain.lifecycle import TERMINAL_STATES, RowState
from dwctl_trio.testing.cancel_sweep import sweep_cancellation

MODELS = ["each-4", "reasoning-2-2", "error-500", "cut-2", "midstream-2", "json-3"]
"""An answer in several reads, one of two kinds of items, a refusal, two failures under way, and a plain answer."""


async def _sweep(bench: SweepBench, serve: Callable[[str], Awaitable[None]], what: str) -> None:
    runs, ended = 0, {state.value: 0 for state in TERMINAL_STATES}
    for model in MODELS:
        async with aclosing(sweep_cancellation(lambda model=model: serve(model))) as sweep:
            async for run in sweep:
                state = await _check_run(bench)
                runs += 1
                if state is not None:
                    ended[state.value] += 1
                assert run.was_cancelled or state is not None
    print(f"cancel sweep, {what}: {runs} runs over {len(MODELS)} requests, one a task step; rows ended {ended}")
    assert min(ended.values()) > 0


async def _check_run(bench: SweepBench) -> RowState | None:
    """The state of the request's row, after all that could be left has been looked for."""
    await bench.requests.check_nothing_left()
    bench.check_store()
    stored = await bench.read(bench.requests.response_id)
    if stored is None:
        assert not bench.requests.told, "an id went out, so its row is there"
        return None
    assert stored.state in TERMINAL_STATES
    return stored.state


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["direct", "httpx"])
async def test_a_streamed_request_may_be_cancelled_at_every_step_in_memory(transport: str) -> None:
    async with open_memory_bench({"upstreams": {"simulator": {"transport": transport}}}) as bench:
        await _sweep(bench, bench.requests.serve_stream, f"streamed, memory store, {transport}")


@pytest.mark.slow
async def test_a_streamed_request_may_be_cancelled_at_every_step_on_postgresql(postgres_dsn: str) -> None:
    async with open_postgres_bench(postgres_dsn) as bench:
        await _sweep(bench, bench.requests.serve_stream, "streamed, PostgreSQL")


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["direct", "httpx"])
async def test_a_blocking_request_may_be_cancelled_at_every_step_in_memory(transport: str) -> None:
    async with open_memory_bench({"upstreams": {"simulator": {"transport": transport}}}) as bench:
        await _sweep(bench, bench.requests.serve_blocking, f"blocking, memory store, {transport}")


@pytest.mark.slow
async def test_a_blocking_request_may_be_cancelled_at_every_step_on_postgresql(postgres_dsn: str) -> None:
    async with open_postgres_bench(postgres_dsn) as bench:
        await _sweep(bench, bench.requests.serve_blocking, "blocking, PostgreSQL")


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "blocking"])
async def test_a_request_with_a_key_may_be_cancelled_at_every_step_in_memory(stream: bool) -> None:
    async with open_memory_bench() as bench:
        bench.requests.is_keyed = True
        serve = bench.requests.serve_stream if stream else bench.requests.serve_blocking
        await _sweep(bench, serve, f"{'streamed' if stream else 'blocking'} with a key, memory store")
