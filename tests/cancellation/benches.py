"""A request bench over each store, and what may be looked at from outside after every run."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import attrs

from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.steps import StepState
from dwctl_trio.postgres.database import open_database
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.postgres.store import PostgresStore
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_store import MemoryStore
from dwctl_trio.testing.request_bench import RequestBench, open_request_bench
from dwctl_trio.testing.service import make_config


@attrs.frozen(kw_only=True)
class StoredStep:
    """A row of ``response_steps``."""

    id: UUID
    state: StepState
    is_model_call: bool


@attrs.frozen(kw_only=True)
class Stored:
    """What the database has of one response."""

    state: RowState
    steps: tuple[StoredStep, ...]
    metered: frozenset[UUID]
    """The steps with a usage record."""
    log: bytes | None


@attrs.frozen
class SweepBench:
    """A bench, and how its store is looked at from outside."""

    requests: RequestBench
    read: Callable[[UUID], Awaitable[Stored | None]]
    check_store: Callable[[], None]


@asynccontextmanager
async def open_memory_bench(overrides: Mapping[str, Any] | None = None) -> AsyncIterator[SweepBench]:
    database = MemoryDatabase()
    store = MemoryStore(database, daemon_id=uuid4())
    await store.register_process()

    async def read(response_id: UUID) -> Stored | None:
        row = database.rows.get(response_id)
        log = database.events.get(response_id)
        return row and Stored(
            state=row.state,
            steps=tuple(
                StoredStep(id=step.id, state=step.state, is_model_call=step.call_id is None)
                for step in database.steps_of(response_id)
            ),
            metered=frozenset(
                record.step_id for record in database.usage.values() if record.response_id == response_id
            ),
            log=log and log.frames,
        )

    async with open_request_bench(store, overrides=overrides) as requests:
        yield SweepBench(requests, read, lambda: None)


@asynccontextmanager
async def open_postgres_bench(dsn: str, overrides: Mapping[str, Any] | None = None) -> AsyncIterator[SweepBench]:
    config = make_config(dsn, "http://127.0.0.1:1/v1")
    async with open_database(config, migrating=True) as pool:
        store = PostgresStore(pool, limits=config.limits, daemon_id=uuid4())
        await store.register_process()

        async def read(response_id: UUID) -> Stored | None:
            row = await pool.fetchrow("select state from requests where id = $1", response_id)
            steps = await pool.fetch(
                "select id, state, kind from response_steps where response_id = $1 order by sequence", response_id
            )
            metered = await pool.fetch("select step_id from usage_records where response_id = $1", response_id)
            log = await pool.fetchval("select frames from response_events where response_id = $1", response_id)
            return row and Stored(
                state=RowState(row["state"]),
                steps=tuple(
                    StoredStep(
                        id=step["id"], state=StepState(step["state"]), is_model_call=step["kind"] == "model_call"
                    )
                    for step in steps
                ),
                metered=frozenset(record["step_id"] for record in metered),
                log=log,
            )

        async with open_request_bench(store, overrides=overrides) as requests:
            yield SweepBench(requests, read, lambda: check_pool(pool))


def check_pool(pool: Pool) -> None:
    """Nobody has a connection, and nobody waits for one."""
    statistics = pool.statistics()
    assert statistics.in_use == 0
    assert statistics.waiting == 0
