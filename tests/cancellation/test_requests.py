"""Cancelling a request at every one of its task steps: nothing is lost, nothing is left.

The request is all that runs in its nursery on the server's side: view, opening, loop and SSE writer, with the real
upstream client against the simulator; the store is the memory one, and PostgreSQL.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from uuid import UUID, uuid4

import attrs
import pytest
import trio

from dwctl_trio.app import open_database
from dwctl_trio.domain.lifecycle import TERMINAL_STATES, RowState
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.engine.leases import LiveResponses
from dwctl_trio.engine.scope import ResponseRefused, run_inline_blocking, run_inline_streaming
from dwctl_trio.engine.state import Services
from dwctl_trio.http.event_body import EventBody
from dwctl_trio.ports import NewResponse, ResponseStore
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.postgres.store import PostgresStore
from dwctl_trio.protocol.request_body import parse_request
from dwctl_trio.testing.cancel_sweep import sweep_cancellation
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_store import MemoryStore
from dwctl_trio.testing.service import make_config
from dwctl_trio.testing.simulator import Simulator, open_simulator
from dwctl_trio.upstream.client import Upstreams, open_upstreams

MODELS = ["each-4", "reasoning-2-2", "error-500", "cut-2", "midstream-2", "json-3"]
"""An answer in several reads, one of two kinds of items, a refusal, two failures under way, and a plain answer."""


@attrs.define(eq=False)
class Bench:
    """What the requests run on, and how it is looked at afterwards."""

    services: Services
    simulator: Simulator
    upstreams: Upstreams
    read_states: Callable[[UUID], object]
    check_store: Callable[[], None]
    told: list[bytes] = attrs.field(factory=list)
    channels: list[trio.MemoryReceiveChannel[bytes]] = attrs.field(factory=list)
    response_id: UUID = attrs.field(factory=uuid4)

    def make_new(self, model: str, *, stream: bool) -> NewResponse:
        self.response_id = uuid4()
        self.told.clear()
        self.channels.clear()
        return NewResponse(
            response_id=self.response_id,
            owner="somebody",
            key_prefix=None,
            request=parse_request({"model": model, "input": "hello", "stream": stream}),
            route=ModelRoute(model=model, upstream="simulator", upstream_model=model),
            first_step_id=uuid4(),
        )

    async def serve_stream(self, model: str) -> None:
        new = self.make_new(model, stream=True)
        async with trio.open_nursery() as nursery:
            try:
                receive_frames = await run_inline_streaming(self.services, new, nursery)
            except ResponseRefused:
                return
            self.channels.append(receive_frames)
            async with EventBody(receive_frames, keep_alive_s=15) as body:
                async for frames in body:
                    self.told.append(frames)

    async def serve_blocking(self, model: str) -> None:
        new = self.make_new(model, stream=False)
        async with trio.open_nursery() as nursery:
            try:
                response = await run_inline_blocking(self.services, new, nursery)
            except ResponseRefused:
                return
            self.told.append(str(response.id).encode())


@asynccontextmanager
async def open_memory_bench() -> AsyncIterator[Bench]:
    database = MemoryDatabase()
    store = MemoryStore(database, daemon_id=uuid4())
    await store.register_process()

    async def read_states(response_id: UUID) -> list[RowState]:
        row = database.rows.get(response_id)
        return [] if row is None else [row.state]

    async with _open_bench(store, read_states, lambda: None, "postgresql://nowhere") as bench:
        yield bench


@asynccontextmanager
async def open_postgres_bench(dsn: str) -> AsyncIterator[Bench]:
    config = make_config(dsn, "http://127.0.0.1:1/v1")
    async with open_database(config, migrating=True) as pool:
        store = PostgresStore(pool, limits=config.limits, daemon_id=uuid4())
        await store.register_process()

        async def read_states(response_id: UUID) -> list[RowState]:
            rows = await pool.fetch("select state from requests where id = $1", response_id)
            return [RowState(row["state"]) for row in rows]

        async with _open_bench(store, read_states, lambda: _check_pool(pool), dsn) as bench:
            yield bench


@asynccontextmanager
async def _open_bench(
    store: ResponseStore, read_states: Callable[[UUID], object], check_store: Callable[[], None], dsn: str
) -> AsyncIterator[Bench]:
    async with open_simulator() as simulator:
        config = make_config(dsn, simulator.base_url)
        async with open_upstreams(config.upstreams, config.limits) as upstreams:
            live = LiveResponses()
            services = Services(store=store, upstream=upstreams, limits=config.limits, live=live)
            yield Bench(services, simulator, upstreams, read_states, check_store)


def _check_pool(pool: Pool) -> None:
    statistics = pool.statistics()
    assert statistics.in_use == 0
    assert statistics.waiting == 0


async def _check_nothing_left(bench: Bench) -> RowState | None:
    """The state of the request's row, after all that could be left has been looked for."""
    states = await bench.read_states(bench.response_id)
    assert len(states) <= 1
    assert all(state in TERMINAL_STATES for state in states)
    if bench.told:
        assert len(states) == 1, "an id went out, so its row is there"
    assert len(bench.services.live) == 0
    with trio.fail_after(5):
        await bench.simulator.wait_until(lambda counts: counts.open == 0)
    assert bench.upstreams.free_places("simulator") == 256
    for channel in bench.channels:
        statistics = channel.statistics()
        assert statistics.open_send_channels == 0
        assert statistics.open_receive_channels == 0
    bench.check_store()
    return states[0] if states else None


async def _sweep(bench: Bench, serve: Callable[[str], object], what: str) -> None:
    steps, ended = 0, dict.fromkeys(["none", *(state.value for state in TERMINAL_STATES)], 0)
    for model in MODELS:
        async with aclosing(sweep_cancellation(lambda model=model: serve(model))) as runs:
            async for run in runs:
                state = await _check_nothing_left(bench)
                ended["none" if state is None else state.value] += 1
                steps += 1
                assert run.was_cancelled or state is not None
    print(f"cancel sweep, {what}: {steps} runs over {len(MODELS)} requests, one a task step; rows ended {ended}")
    assert ended["canceled"] > 0
    assert ended["completed"] > 0
    assert ended["failed"] > 0


@pytest.mark.slow
async def test_a_streamed_request_may_be_cancelled_at_every_step_in_memory() -> None:
    async with open_memory_bench() as bench:
        await _sweep(bench, bench.serve_stream, "streamed, memory store")


@pytest.mark.slow
async def test_a_streamed_request_may_be_cancelled_at_every_step_on_postgresql(postgres_dsn: str) -> None:
    async with open_postgres_bench(postgres_dsn) as bench:
        await _sweep(bench, bench.serve_stream, "streamed, PostgreSQL")


@pytest.mark.slow
async def test_a_blocking_request_may_be_cancelled_at_every_step_in_memory() -> None:
    async with open_memory_bench() as bench:
        await _sweep(bench, bench.serve_blocking, "blocking, memory store")


@pytest.mark.slow
async def test_a_blocking_request_may_be_cancelled_at_every_step_on_postgresql(postgres_dsn: str) -> None:
    async with open_postgres_bench(postgres_dsn) as bench:
        await _sweep(bench, bench.serve_blocking, "blocking, PostgreSQL")
