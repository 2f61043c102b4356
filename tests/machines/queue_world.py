"""A database of either kind with processes that die and come back, and one look at all that it holds.

Each process has a connection of its own, and so has the observer: what one of them has not committed no other sees.
"""

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol
from uuid import UUID

import attrs
import trio
from tests.conformance.conftest import CALL_S, Clock

from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.steps import StepState
from dwctl_trio.ports import EventSegment, RetentionStore
from dwctl_trio.postgres.guest_loop import open_guest_loop
from dwctl_trio.postgres.pool import Pool, open_pool
from dwctl_trio.postgres.retention import PostgresRetention
from dwctl_trio.postgres.store import PostgresStore
from dwctl_trio.testing.faulty_store import Store
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_store import MemoryStore

PROCESSES = 3
LIMITS = Limits(
    lease_s=600.0,
    rescue_rows=3,
    follow_segments=4,
    queue_attempts=3,
    queue_reclaims=2,
    unstored_event_s=130.0,
    event_retention_s=380.0,
    body_retention_s=1130.0,
    row_retention_s=2130.0,
)
"""Batches so small that they are full at times; ages so short that what has ended comes of them."""

_EMPTY = """
truncate requests, response_steps, response_events, usage_records, daemons;
update retention_marks set pruned_until = default, pruned_id = default
"""
_PRUNED = frozenset({"request", "response", "tools", "last_sequence", "steps", "events"})
_SNAPSHOT = """
select r.*,
    array(
        select (s.id, s.state, s.result is not null)::text from response_steps as s
        where s.response_id = r.id order by s.sequence
    ) as steps,
    array(
        select (e.first_sequence, e.last_sequence, convert_from(e.frames, 'utf8'))::text from response_events as e
        where e.response_id = r.id order by e.first_sequence
    ) as events,
    (select count(*) from usage_records as u where u.response_id = r.id) as calls
from requests as r
"""


@attrs.frozen(kw_only=True)
class SeenRow:
    """A row with all that belongs to it, as it is stored."""

    id: UUID
    owner: str
    model: str
    state: RowState
    daemon: UUID | None
    epoch: int
    attempt: int
    reclaims: int
    lease_at: float | None
    not_before: float | None
    deadline: float | None
    is_cancel_requested: bool
    is_started: bool
    last_sequence: int | None
    segments: tuple[EventSegment, ...]
    steps: tuple[tuple[UUID, StepState, bool], ...]
    """In order, with whether there is a result."""
    calls: int
    """Usage records."""
    response_status: int | None
    error_type: str | None
    keeps_request: bool
    keeps_response: bool
    finished_at: float | None
    whole: Any
    """Every column, to be compared."""
    lasting: Any
    """Those of them that retention leaves alone."""


Seen = dict[UUID, SeenRow]


class QueueWorld(Protocol):
    """A database under test."""

    is_real: bool

    async def empty(self) -> float:
        """Empty it, set its clock right; return the time."""

    def open_process(self, place: int) -> tuple[UUID, Store]:
        """A new process on the connection *place*."""

    def open_retention(self, place: int) -> RetentionStore:
        """The pruner of the process on the connection *place*; of a real database only."""

    async def advance_clock(self, seconds: float) -> None:
        """Let *seconds* pass for the database."""

    async def look(self) -> Seen:
        """All that it holds."""


class MemoryWorld:
    """Over lists."""

    is_real = False

    def __init__(self, make: Callable[..., Store] = MemoryStore) -> None:
        self._make = make
        self._database = MemoryDatabase()

    async def empty(self) -> float:
        self._database = MemoryDatabase()
        self._ids = (UUID(int=number) for number in itertools.count(1))
        return self._database.now()

    def open_process(self, place: int) -> tuple[UUID, Store]:
        daemon_id = next(self._ids)
        return daemon_id, self._make(self._database, daemon_id=daemon_id, limits=LIMITS)

    def open_retention(self, place: int) -> RetentionStore:
        raise NotImplementedError("nothing is pruned in memory")

    async def advance_clock(self, seconds: float) -> None:
        self._database.advance_clock(seconds)

    async def look(self) -> Seen:
        return {row_id: self._seen(row) for row_id, row in self._database.rows.items()}

    def _seen(self, row: Any) -> SeenRow:
        database = self._database
        log, steps = database.events.get(row.id), database.steps_of(row.id)
        return SeenRow(
            id=row.id,
            owner=row.owner,
            model=row.model,
            state=row.state,
            daemon=row.daemon_id,
            epoch=row.epoch,
            attempt=row.attempt,
            reclaims=row.reclaims,
            lease_at=row.lease_expires_at,
            not_before=row.not_before,
            deadline=row.deadline,
            is_cancel_requested=row.cancel_requested_at is not None,
            is_started=row.started_at is not None,
            last_sequence=row.last_sequence,
            segments=log.segments if log else (),
            steps=tuple((step.id, step.state, step.result is not None) for step in steps),
            calls=sum(1 for record in database.usage.values() if record.response_id == row.id),
            response_status=row.response_status,
            error_type=row.error.type.value if row.error else None,
            keeps_request=row.request is not None,
            keeps_response=row.response is not None,
            finished_at=row.finished_at,
            whole=(row, log, steps),
            lasting=row,
        )


class PostgresWorld:
    """A real database."""

    is_real = True

    def __init__(self, pools: Sequence[Pool], clock: Clock, make: Callable[..., Store] = PostgresStore) -> None:
        self.observer, *self._pools = pools
        self._clock = clock
        self._make = make

    async def empty(self) -> float:
        await self.observer.execute(_EMPTY)
        self._clock.offset_s = 0.0
        await self._set_clock()
        self._ids = (UUID(int=number) for number in itertools.count(1))
        return float(await self.observer.fetchval("select extract(epoch from dwctl_now())::float8"))

    def open_process(self, place: int) -> tuple[UUID, Store]:
        daemon_id = next(self._ids)
        return daemon_id, self._make(self._pools[place], limits=LIMITS, daemon_id=daemon_id)

    def open_retention(self, place: int) -> RetentionStore:
        return PostgresRetention(self._pools[place], LIMITS)

    async def advance_clock(self, seconds: float) -> None:
        self._clock.offset_s += seconds
        await self._set_clock()

    async def look(self) -> Seen:
        return {row["id"]: _seen(row) for row in await self.observer.fetch(_SNAPSHOT)}

    async def _set_clock(self) -> None:
        async with trio.open_nursery() as nursery:
            for pool in (self.observer, *self._pools):
                nursery.start_soon(self._clock.set_all, pool)


def _seen(row: Any) -> SeenRow:
    lease, not_before, deadline = row["lease_expires_at"], row["not_before"], row["deadline"]
    error, finished = row["error"], row["finished_at"]
    return SeenRow(
        id=row["id"],
        owner=row["owner"],
        model=row["model"],
        state=RowState(row["state"]),
        daemon=row["daemon_id"],
        epoch=row["epoch"],
        attempt=row["attempt"],
        reclaims=row["reclaims"],
        lease_at=lease and lease.timestamp(),
        not_before=not_before and not_before.timestamp(),
        deadline=deadline and deadline.timestamp(),
        is_cancel_requested=row["cancel_requested_at"] is not None,
        is_started=row["started_at"] is not None,
        last_sequence=row["last_sequence"],
        segments=tuple(_segment(text) for text in row["events"]),
        steps=tuple(_step(text) for text in row["steps"]),
        calls=row["calls"],
        response_status=row["response_status"],
        error_type=error and error.partition('"type": "')[2].partition('"')[0],
        keeps_request=row["request"] is not None,
        keeps_response=row["response"] is not None,
        finished_at=finished and finished.timestamp(),
        whole=tuple(row.values()),
        lasting=tuple(value for name, value in row.items() if name not in _PRUNED),
    )


def _segment(text: str) -> EventSegment:
    """From a composite's text: ``(0,1,"…")``; frames hold no quotes and no commas."""
    first, last, frames = text[1:-1].split(",")
    return EventSegment(first_sequence=int(first), last_sequence=int(last), frames=frames.strip('"').encode())


def _step(text: str) -> tuple[UUID, StepState, bool]:
    step_id, state, has_result = text[1:-1].split(",")
    return UUID(step_id), StepState(state), has_result == "t"


@asynccontextmanager
async def open_postgres_world(dsn: str, make: Callable[..., Store] = PostgresStore) -> AsyncIterator[PostgresWorld]:
    """The database *dsn* for the block."""
    clock = Clock()
    async with open_guest_loop() as loop, AsyncExitStack() as stack:
        pools = [
            await stack.enter_async_context(
                open_pool(loop, dsn, connections_max=1, wait_s=CALL_S, call_s=CALL_S, setup=clock.set)
            )
            for _ in range(PROCESSES + 1)
        ]
        yield PostgresWorld(pools, clock, make)
