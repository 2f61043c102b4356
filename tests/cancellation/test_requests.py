"""Cancelling a request at every one of its task steps: nothing is lost, nothing is left."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from uuid import UUID, uuid4

import attrs
import pytest

from dwctl_trio.domain.lifecycle import TERMINAL_STATES, RowState
from dwctl_trio.postgres.database import open_database
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.postgres.store import PostgresStore
from dwctl_trio.testing.cancel_sweep import sweep_cancellation
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_store import MemoryStore
from dwctl_trio.testing.request_bench import RequestBench, open_request_bench
from dwctl_trio.testing.service import make_config

MODELS = ["each-4", "reasoning-2-2", "error-500", "cut-2", "midstream-2", "json-3"]
"""An answer in several reads, one of two kinds of items, a refusal, two failures under way, and a plain answer."""


@attrs.frozen
class SweepBench:
    """A bench, and how its store is looked at from outside."""

    requests: RequestBench
    read_states: Callable[[UUID], Awaitable[list[RowState]]]
    check_store: Callable[[], None]


@asynccontextmanager
async def open_memory_bench() -> AsyncIterator[SweepBench]:
    database = MemoryDatabase()
    store = MemoryStore(database, daemon_id=uuid4())
    await store.register_process()

    async def read_states(response_id: UUID) -> list[RowState]:
        row = database.rows.get(response_id)
        return [] if row is None else [row.state]

    async with open_request_bench(store) as requests:
        yield SweepBench(requests, read_states, lambda: None)


@asynccontextmanager
async def open_postgres_bench(dsn: str) -> AsyncIterator[SweepBench]:
    config = make_config(dsn, "http://127.0.0.1:1/v1")
    async with open_database(config, migrating=True) as pool:
        store = PostgresStore(pool, limits=config.limits, daemon_id=uuid4())
        await store.register_process()

        async def read_states(response_id: UUID) -> list[RowState]:
            rows = await pool.fetch("select state from requests where id = $1", response_id)
            return [RowState(row["state"]) for row in rows]

        async with open_request_bench(store) as requests:
            yield SweepBench(requests, read_states, lambda: _check_pool(pool))


def _check_pool(pool: Pool) -> None:
    statistics = pool.statistics()
    assert statistics.in_use == 0
    assert statistics.waiting == 0


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
    states = await bench.read_states(bench.requests.response_id)
    assert len(states) <= 1
    assert all(state in TERMINAL_STATES for state in states)
    if bench.requests.told:
        assert len(states) == 1, "an id went out, so its row is there"
    return states[0] if states else None


@pytest.mark.slow
async def test_a_streamed_request_may_be_cancelled_at_every_step_in_memory() -> None:
    async with open_memory_bench() as bench:
        await _sweep(bench, bench.requests.serve_stream, "streamed, memory store")


@pytest.mark.slow
async def test_a_streamed_request_may_be_cancelled_at_every_step_on_postgresql(postgres_dsn: str) -> None:
    async with open_postgres_bench(postgres_dsn) as bench:
        await _sweep(bench, bench.requests.serve_stream, "streamed, PostgreSQL")


@pytest.mark.slow
async def test_a_blocking_request_may_be_cancelled_at_every_step_in_memory() -> None:
    async with open_memory_bench() as bench:
        await _sweep(bench, bench.requests.serve_blocking, "blocking, memory store")


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
