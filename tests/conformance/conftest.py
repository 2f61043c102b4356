"""One database of either kind, several processes on it, and a look at all that it holds."""

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol
from uuid import UUID

import attrs
import msgspec
import pytest
import trio

from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.response import ErrorCode, ErrorType, ResponseError
from dwctl_trio.domain.steps import StepState
from dwctl_trio.ports import EventSegment
from dwctl_trio.postgres.embedded import EmbeddedPostgres
from dwctl_trio.postgres.guest_loop import open_guest_loop
from dwctl_trio.postgres.keys import PostgresKeyStore
from dwctl_trio.postgres.migrate import migrate
from dwctl_trio.postgres.pool import Pool, open_pool
from dwctl_trio.postgres.store import PostgresStore
from dwctl_trio.postgres.trio_asyncpg import Connection, connect
from dwctl_trio.testing.faulty_store import Store
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_keys import MemoryKeyStore
from dwctl_trio.testing.memory_rows import EventLog, MemoryRow, MemoryStep, UsageRecord
from dwctl_trio.testing.memory_store import MemoryStore

CALL_S = 10.0
"""Bound of each call of a store, so that no test needs another one; far more than any takes on a busy machine."""

LIMITS = Limits(lease_s=600.0)
"""A lease so long that no pause of the machine is taken for the passing of one."""

_CONNECTIONS = 4
_EMPTY = "delete from requests; delete from usage_records; delete from daemons; delete from api_keys"
_SET_CLOCK = "select set_config('dwctl.clock_offset', $1, false)"
_MOMENTS = frozenset(
    {
        *("lease_expires_at", "created_at", "started_at", "finished_at", "first_token_at"),
        *("not_before", "deadline", "cancel_requested_at"),
    }
)


@attrs.frozen(kw_only=True)
class Snapshot:
    """All that a database holds of responses."""

    rows: dict[UUID, MemoryRow]
    steps: dict[UUID, MemoryStep]
    events: dict[UUID, EventLog]
    usage: dict[UUID, UsageRecord]

    def steps_of(self, response_id: UUID) -> list[MemoryStep]:
        return [step for step in self.steps.values() if step.response_id == response_id]

    def without_moments(self) -> "Snapshot":
        """The same, but for the moments: whether there is one is kept, which it is is not."""
        tables = [{key: _without_moments(row) for key, row in table.items()} for table in self._tables()]
        return Snapshot(rows=tables[0], steps=tables[1], events=tables[2], usage=tables[3])

    def _tables(self) -> list[dict[UUID, Any]]:
        return [self.rows, self.steps, self.events, self.usage]


def _without_moments(row: Any) -> Any:
    present = {name: 0.0 for name in _MOMENTS if getattr(row, name, None) is not None}
    return attrs.evolve(row, **present)


class Lab(Protocol):
    """A database under test."""

    def open_process(self, limits: Limits = LIMITS) -> Store:
        """A process of its own, not registered yet."""

    def open_keys(self) -> Any:
        """A process's API keys."""

    async def advance_clock(self, seconds: float) -> None:
        """Let *seconds* pass for the database."""

    async def now(self) -> float:
        """The database's time."""

    async def snapshot(self) -> Snapshot:
        """All that it holds of responses."""

    async def heartbeats(self) -> list[tuple[float, float | None]]:
        """Last sign of life and orderly end of every process."""


class MemoryLab:
    """A ``MemoryDatabase``."""

    def __init__(self) -> None:
        self._database = MemoryDatabase()
        self._ids = (UUID(int=number) for number in itertools.count(1))

    def open_process(self, limits: Limits = LIMITS) -> Store:
        return MemoryStore(self._database, daemon_id=next(self._ids), limits=limits)

    def open_keys(self) -> MemoryKeyStore:
        return MemoryKeyStore(self._database)

    async def advance_clock(self, seconds: float) -> None:
        self._database.advance_clock(seconds)

    async def now(self) -> float:
        return self._database.now()

    async def snapshot(self) -> Snapshot:
        database = self._database
        return Snapshot(
            rows=dict(database.rows), steps=dict(database.steps), events=dict(database.events),
            usage=dict(database.usage),
        )  # fmt: skip

    async def heartbeats(self) -> list[tuple[float, float | None]]:
        return [(process.heartbeat_at, process.stopped_at) for process in self._database.processes.values()]


class PostgresLab:
    """A real database; its clock is moved in every connection of its pool."""

    def __init__(self, pool: Pool, clock: "Clock") -> None:
        self.pool = pool
        self._clock = clock
        self._ids = (UUID(int=number) for number in itertools.count(1))

    def open_process(self, limits: Limits = LIMITS) -> Store:
        return PostgresStore(self.pool, limits=limits, daemon_id=next(self._ids))

    def open_keys(self) -> PostgresKeyStore:
        return PostgresKeyStore(self.pool)

    async def advance_clock(self, seconds: float) -> None:
        self._clock.offset_s += seconds
        await self._clock.set_all(self.pool)

    async def now(self) -> float:
        return float(await self.pool.fetchval("select extract(epoch from dwctl_now())::float8"))

    async def snapshot(self) -> Snapshot:
        async with self.pool.connection() as connection:
            return Snapshot(
                rows={row["id"]: _row(row) for row in await connection.fetch(_columns(MemoryRow, "requests"))},
                steps={row["id"]: _step(row) for row in await connection.fetch(_columns(MemoryStep, "response_steps"))},
                events=_logs(await connection.fetch("select * from response_events order by response_id, 2")),
                usage={
                    row["step_id"]: UsageRecord(**row)
                    for row in await connection.fetch(_columns(UsageRecord, "usage_records"))
                },
            )

    async def heartbeats(self) -> list[tuple[float, float | None]]:
        moments = "extract(epoch from heartbeat_at)::float8 as a, extract(epoch from stopped_at)::float8 as b"
        return [(row["a"], row["b"]) for row in await self.pool.fetch(f"select {moments} from daemons")]


@attrs.define
class Clock:
    """How far a database's clock is moved, told to each of its connections."""

    offset_s: float = 0.0

    async def set(self, connection: Connection) -> None:
        await connection.fetchval(_SET_CLOCK, f"{self.offset_s} seconds")

    async def set_all(self, pool: Pool) -> None:
        """Hold every connection that is open, set it, and give all back."""
        async with trio.open_nursery() as nursery:
            everyone_holds_one, waiting = trio.Event(), pool.statistics().size

            async def set_one() -> None:
                nonlocal waiting
                async with pool.connection() as connection:
                    waiting -= 1
                    if waiting == 0:
                        everyone_holds_one.set()
                    await everyone_holds_one.wait()
                    await self.set(connection)

            for _ in range(waiting):
                nursery.start_soon(set_one)


def _columns(value: type, table: str) -> str:
    names = [
        f"extract(epoch from {field.name})::float8 as {field.name}" if field.name in _MOMENTS else field.name
        for field in attrs.fields(value)
    ]
    return f"select {', '.join(names)} from {table} order by 1"


def _row(stored: Any) -> MemoryRow:
    row = MemoryRow(**stored)
    return attrs.evolve(
        row,
        state=RowState(row.state),
        request=_bytes(stored["request"]),
        tools=_bytes(stored["tools"]),
        response=_bytes(stored["response"]),
        error=_error(stored["error"]),
    )


def _step(stored: Any) -> MemoryStep:
    step = MemoryStep(**stored)
    request, result = _bytes(stored["request"]), _bytes(stored["result"])
    return attrs.evolve(
        step, state=StepState(step.state), request=request, result=result, error=_error(stored["error"])
    )


def _logs(rows: Sequence[Any]) -> dict[UUID, EventLog]:
    logs: dict[UUID, EventLog] = {}
    for row in rows:
        segment = EventSegment(
            first_sequence=row["first_sequence"], last_sequence=row["last_sequence"], frames=row["frames"]
        )
        known = logs.get(row["response_id"])
        logs[row["response_id"]] = EventLog(segments=(*(known.segments if known else ()), segment))
    return logs


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _error(text: str | None) -> ResponseError | None:
    if text is None:
        return None
    fields = msgspec.json.decode(text)
    return ResponseError(type=ErrorType(fields["type"]), code=ErrorCode(fields["code"]), message=fields["message"])


@asynccontextmanager
async def open_postgres_lab(dsn: str) -> AsyncIterator[PostgresLab]:
    """The database *dsn*, emptied, for the block."""
    clock = Clock()
    async with open_guest_loop() as loop:
        pool = open_pool(loop, dsn, connections_max=_CONNECTIONS, wait_s=CALL_S, call_s=CALL_S, setup=clock.set)
        async with pool as connections:
            await connections.execute(_EMPTY)
            yield PostgresLab(connections, clock)


def create_database(server: EmbeddedPostgres, name: str) -> str:
    """A new, migrated database; it goes with its server."""
    dsn = server.dsn.replace("/postgres?", f"/{name}?")

    async def create() -> None:
        async with open_guest_loop() as loop:
            connection = await connect(loop, server.dsn, call_s=CALL_S)
            await connection.execute(f"create database {name} template template0")
            connection = await connect(loop, dsn, call_s=CALL_S)
            await migrate(connection)

    trio.run(create)
    return dsn


@pytest.fixture(scope="session")
def conformance_dsn(postgres_server: EmbeddedPostgres) -> str:
    """A migrated database; every test empties it first."""
    return create_database(postgres_server, "conformance")


@pytest.fixture(params=["memory", "postgres"])
def lab_dsn(request: pytest.FixtureRequest) -> str | None:
    """Each kind of database in turn; None is the one in memory."""
    return None if request.param == "memory" else request.getfixturevalue("conformance_dsn")


@pytest.fixture
async def lab(lab_dsn: str | None) -> AsyncIterator[Lab]:
    """An empty database of each kind in turn."""
    if lab_dsn is None:
        yield MemoryLab()
        return
    async with open_postgres_lab(lab_dsn) as opened:
        yield opened
