"""What is old enough goes and nothing else: at its age, in batches, once, and at no more cost than what goes.

Clocks are moved for one session each; within a transaction they stand still, so that an age is exact.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import attrs
import pytest
import trio
from tests.conformance.conftest import CALL_S, Clock, create_database

from dwctl_trio.domain.lifecycle import TERMINAL_STATES, RowState
from dwctl_trio.domain.limits import DEFAULT_LIMITS
from dwctl_trio.domain.retention import RetentionKind, retention_s
from dwctl_trio.ports import PrunedBatch
from dwctl_trio.postgres.guest_loop import GuestLoop
from dwctl_trio.postgres.pool import Pool, open_pool
from dwctl_trio.postgres.queries import load_query
from dwctl_trio.postgres.retention import _QUERIES, PostgresRetention
from dwctl_trio.postgres.store import PostgresStore
from dwctl_trio.postgres.trio_asyncpg import Connection, connect

EMPTY = (
    "delete from requests; delete from usage_records; delete from daemons;"
    " update retention_marks set pruned_until = default, pruned_id = default"
)
INSERT_ROWS = """
insert into requests (
    id, owner, surface, model, upstream, upstream_model, service_tier, store, state, request, tools, response,
    response_status, error, started_at, finished_at, last_sequence
)
select
    gen_random_uuid(), 'blue', 'responses', 'm', 'u', 'm', 'flex', $3, $2,
    case when $3 then '{"asked": true}'::json end, case when $3 then '[]'::json end,
    case when $3 then '{"answered": true}'::json end, 200,
    case when $2 = 'failed' then '{"type": "t", "code": "c", "message": "m"}'::jsonb end,
    dwctl_now(), dwctl_now(), 9
from generate_series(1, $1) returning id
"""
INSERT_LIVE = """
insert into requests (
    id, owner, surface, model, upstream, upstream_model, service_tier, store, state, request,
    deadline, daemon_id, lease_expires_at, started_at, last_sequence
)
select
    gen_random_uuid(), 'blue', 'responses', 'm', 'u', 'm', 'flex', $2, $1, '{"asked": true}', dwctl_now(),
    case when $1 <> 'pending' then $3::uuid end, case when $1 <> 'pending' then dwctl_now() end,
    case when $1 = 'processing' then dwctl_now() end, 9
returning id
"""
INSERT_STEPS = """
insert into response_steps (id, response_id, parent_step_id, sequence, kind, state, call_id, name, request, result,
    started_at, finished_at)
select
    gen_random_uuid(), id, null, n, 'tool_call', 'completed', 'call', 'search', '"a"'::json, '"b"'::json,
    dwctl_now(), dwctl_now()
from unnest($1::uuid[]) as id cross join generate_series(1, 2) as n
"""
INSERT_EVENTS = """
insert into response_events (response_id, first_sequence, last_sequence, frames)
select id, n * 5, n * 5 + 4, 'x' from unnest($1::uuid[]) as id cross join generate_series(0, 1) as n
"""
INSERT_USAGE = """
insert into usage_records (
    step_id, response_id, owner, model, upstream, upstream_model, service_tier, stream, started_at, finished_at
)
select gen_random_uuid(), id, 'blue', 'm', 'u', 'm', 'flex', true, dwctl_now(), dwctl_now()
from unnest($1::uuid[]) as id
"""
INSERT_PROCESS = "insert into daemons (id, kind, host, pid, version) values ($1, 'worker', 'h', 1, 'v')"
SET_CLOCK = "select set_config('dwctl.clock_offset', $1, false)"
COUNTS = {
    RetentionKind.UNSTORED_EVENTS: "select count(distinct response_id) from response_events",
    RetentionKind.EVENTS: "select count(distinct response_id) from response_events",
    RetentionKind.BODIES: "select count(*) from requests where request is not null or response is not null",
    RetentionKind.ROWS: "select count(*) from requests",
    RetentionKind.USAGE: "select count(*) from usage_records",
    RetentionKind.PROCESSES: "select count(*) from daemons",
}
EVERYTHING = """
select array[
    (select jsonb_agg(to_jsonb(r) order by r.id) from requests as r),
    (select jsonb_agg(to_jsonb(s) order by s.id) from response_steps as s),
    (select jsonb_agg(to_jsonb(e) order by e.response_id, e.first_sequence) from response_events as e),
    (select jsonb_agg(to_jsonb(d) order by d.id) from daemons as d)
]::text
"""
AGES_S = "1000 years"
"""Past every age that can be configured."""

every_kind = pytest.mark.parametrize("kind", RetentionKind)


@attrs.frozen
class OneConnection:
    """One session in place of a pool."""

    connection: Connection

    async def fetchrow(self, query: str, *arguments: Any, retry: bool) -> Any:
        return await self.connection.fetchrow(query, *arguments)


@pytest.fixture(scope="module")
def retention_dsn(postgres_server) -> str:
    return create_database(postgres_server, "retention")


@pytest.fixture
async def database(guest_loop: GuestLoop, retention_dsn: str) -> AsyncIterator[Connection]:
    """A connection to an empty database."""
    connection = await connect(guest_loop, retention_dsn, call_s=3 * CALL_S)
    await connection.execute(EMPTY)
    yield connection
    await connection.execute(EMPTY)


def prune_on(connection: Connection) -> Callable[..., Any]:
    retention = PostgresRetention(OneConnection(connection), DEFAULT_LIMITS)  # type: ignore[arg-type]

    async def prune(kind: RetentionKind, rows: int = 1000) -> PrunedBatch:
        return await retention.prune(kind, rows)

    return prune


async def fill(
    connection: Connection, count: int = 1, *, state: RowState = RowState.COMPLETED, store: bool = True
) -> list[UUID]:
    """Ended responses with two steps, two rows of events, a usage record and a process each."""
    ids = [row["id"] for row in await connection.fetch(INSERT_ROWS, count, state.value, store)]
    for statement in (INSERT_STEPS, INSERT_EVENTS, INSERT_USAGE):
        await connection.execute(statement, ids)
    for response_id in ids:
        await connection.execute(INSERT_PROCESS, response_id)
    return ids


async def fill_for(kind: RetentionKind, connection: Connection, count: int) -> list[UUID]:
    return await fill(connection, count, store=kind is not RetentionKind.UNSTORED_EVENTS)


async def set_clock(connection: Connection, offset: str) -> None:
    await connection.fetchval(SET_CLOCK, offset)


@asynccontextmanager
async def standing_clock(connection: Connection) -> AsyncIterator[None]:
    """A block in which the clock moves only when it is told to."""
    await connection.execute("begin")
    try:
        yield
    finally:
        await connection.execute("rollback")
        await set_clock(connection, "0 s")


# -- at its age


@every_kind
async def test_what_has_its_age_goes_and_not_a_microsecond_earlier(database, kind):
    prune, age_s = prune_on(database), int(retention_s(kind, DEFAULT_LIMITS))
    async with standing_clock(database):
        await fill_for(kind, database, 3)
        await set_clock(database, f"{age_s - 1} s 999999 microseconds")
        assert (await prune(kind)).count == 0
        assert await database.fetchval(COUNTS[kind]) == 3

        await set_clock(database, f"{age_s} s")
        assert await prune(kind) == PrunedBatch(count=3, is_full=False)
        assert await database.fetchval(COUNTS[kind]) == 0


@pytest.mark.parametrize("state", sorted(TERMINAL_STATES))
@every_kind
async def test_however_a_response_has_ended_it_comes_of_age(database, kind, state):
    async with standing_clock(database):
        await fill(database, 1, state=state, store=kind is not RetentionKind.UNSTORED_EVENTS)
        await set_clock(database, AGES_S)
        assert (await prune_on(database)(kind)).count == 1


async def test_the_defaults_are_a_minute_a_day_a_month_a_quarter_and_a_year_with_a_month():
    day_s = 86400
    assert [retention_s(kind, DEFAULT_LIMITS) for kind in RetentionKind] == [
        60, day_s, 30 * day_s, 90 * day_s, 400 * day_s, 30 * day_s
    ]  # fmt: skip


async def test_only_the_events_of_what_is_not_stored_go_soon(database):
    async with standing_clock(database):
        (stored,) = await fill(database)
        await fill(database, store=False)
        await set_clock(database, f"{DEFAULT_LIMITS.unstored_event_s} s")
        assert (await prune_on(database)(RetentionKind.UNSTORED_EVENTS)).count == 1
        assert [row[0] for row in await database.fetch("select distinct response_id from response_events")] == [stored]


# -- nothing else


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("state", sorted(set(RowState) - TERMINAL_STATES))
async def test_nothing_live_is_ever_touched_with_the_process_that_owns_it(database, state, store):
    process_id = uuid4()
    await database.execute(INSERT_PROCESS, process_id)
    response_id = await database.fetchval(INSERT_LIVE, state.value, store, process_id)
    await database.execute(INSERT_STEPS, [response_id])
    await database.execute(INSERT_EVENTS, [response_id])
    if state is RowState.PENDING:
        await database.execute("delete from daemons")
    before = await database.fetchval(EVERYTHING)

    await set_clock(database, AGES_S)
    for kind in RetentionKind:
        assert await prune_on(database)(kind) == PrunedBatch(count=0, is_full=False)
    assert await database.fetchval(EVERYTHING) == before


async def emptied_columns(database: Connection, kind: RetentionKind) -> set[str]:
    """The columns of an ended row that pruning *kind* changes; each is null afterwards."""
    whole = "select to_jsonb(r)::text from requests as r"
    await fill(database)
    before = json.loads(await database.fetchval(whole))
    await set_clock(database, AGES_S)
    await prune_on(database)(kind)
    after = json.loads(await database.fetchval(whole))
    changed = {name for name in before if before[name] != after[name]}
    assert all(after[name] is None for name in changed)
    return changed


async def test_a_row_without_its_events_is_otherwise_what_it_was(database):
    assert await emptied_columns(database, RetentionKind.EVENTS) == {"last_sequence"}
    assert await database.fetchval("select count(*) from response_steps") == 2


async def test_a_row_without_its_body_keeps_who_when_and_how_and_no_word(database):
    columns = {"request", "tools", "response", "last_sequence"}
    assert await emptied_columns(database, RetentionKind.BODIES) == columns
    for table in ("response_steps", "response_events"):
        assert await database.fetchval(f"select count(*) from {table}") == 0


async def test_usage_records_outlive_their_response(database):
    await fill(database)
    await set_clock(database, f"{DEFAULT_LIMITS.row_retention_s} s")
    assert (await prune_on(database)(RetentionKind.ROWS)).count == 1
    assert await database.fetchval("select count(*) from usage_records") == 1


async def test_what_a_mark_has_missed_goes_with_its_row(database):
    async with standing_clock(database):
        prune = prune_on(database)
        await fill(database)
        await set_clock(database, f"{DEFAULT_LIMITS.body_retention_s} s")
        await prune(RetentionKind.EVENTS)
        await prune(RetentionKind.BODIES)
        await set_clock(database, "-1 s")
        (late,) = await fill(database)
        await set_clock(database, f"{DEFAULT_LIMITS.body_retention_s} s")
        assert (await prune(RetentionKind.EVENTS)).count == (await prune(RetentionKind.BODIES)).count == 0

        await set_clock(database, f"{DEFAULT_LIMITS.row_retention_s} s")
        assert (await prune(RetentionKind.ROWS)).count == 2
        assert await database.fetchval("select count(*) from response_events where response_id = $1", late) == 0


async def test_a_client_does_not_find_what_was_pruned(database, guest_loop, retention_dsn):
    (response_id,) = await fill(database)
    async with open_pool(guest_loop, retention_dsn, connections_max=1, wait_s=CALL_S, call_s=CALL_S) as pool:
        store = PostgresStore(pool, limits=DEFAULT_LIMITS, daemon_id=uuid4())
        assert await store.read_response(response_id, "blue") is not None
        page = await store.read_events(response_id, "blue", -1)
        assert page is not None
        assert [segment.last_sequence for segment in page.segments] == [4, page.last_sequence]

        await set_clock(database, f"{DEFAULT_LIMITS.body_retention_s} s")
        assert (await prune_on(database)(RetentionKind.BODIES)).count == 1

        assert await store.read_response(response_id, "blue") is None
        assert list(await store.read_chain(response_id, "blue")) == []
        page = await store.read_events(response_id, "blue", -1)
        assert page is not None
        assert (page.state, page.last_sequence, page.segments) == (RowState.COMPLETED, None, ())


# -- in batches, once


@every_kind
async def test_a_batch_is_as_large_as_allowed_and_the_next_begins_behind_it(database, kind):
    prune = prune_on(database)
    async with standing_clock(database):  # all of them ended at the very same moment
        await fill_for(kind, database, 25)
        await set_clock(database, AGES_S)
        batches = [await prune(kind, 10) for _ in range(4)]

        assert [batch.count for batch in batches] == [10, 10, 5, 0]
        assert [batch.is_full for batch in batches] == [True, True, False, False]
        assert await database.fetchval(COUNTS[kind]) == 0


async def test_rows_without_events_count_for_the_batch_and_not_as_pruned(database):
    await fill(database, 5)
    await set_clock(database, AGES_S)
    assert await prune_on(database)(RetentionKind.UNSTORED_EVENTS, 5) == PrunedBatch(count=0, is_full=True)


@every_kind
async def test_while_one_prunes_a_kind_another_one_does_nothing_and_then_the_rest(
    database, guest_loop, retention_dsn, kind
):
    other = await connect(guest_loop, retention_dsn, call_s=CALL_S)
    await fill_for(kind, database, 6)
    await set_clock(database, AGES_S)
    await set_clock(other, AGES_S)

    async with database.transaction():
        first = await prune_on(database)(kind, 4)
        meanwhile = await prune_on(other)(kind, 4)
    then = await prune_on(other)(kind, 4)

    assert (first.count, meanwhile, then.count) == (4, PrunedBatch(count=0, is_full=False), 2)


@every_kind
async def test_of_many_at_once_each_row_is_pruned_by_one(database, guest_loop, retention_dsn, kind):
    clock, counts = Clock(offset_s=500 * 86400.0), list[int]()
    await fill_for(kind, database, 120)

    async def prune_until_none_is_left(pool: Pool) -> None:
        retention = PostgresRetention(pool, DEFAULT_LIMITS)
        while sum(counts) < 120:
            counts.append((await retention.prune(kind, 7)).count)

    opened = open_pool(guest_loop, retention_dsn, connections_max=4, wait_s=CALL_S, call_s=CALL_S, setup=clock.set)
    with trio.fail_after(3 * CALL_S):
        async with opened as pool, trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(prune_until_none_is_left, pool)
    assert sum(counts) == 120
    assert await database.fetchval(COUNTS[kind]) == 0


# -- what it costs


async def test_the_steps_of_sub_agents_are_found_by_their_parent_when_it_is_deleted(database):
    statement = "explain delete from only response_steps where $1 operator(pg_catalog.=) parent_step_id"
    await database.execute("set enable_seqscan = off")
    plan = "\n".join(row[0] for row in await database.fetch(statement, uuid4()))
    assert "response_steps_by_parent" in plan


async def blocks(database: Connection, kind: RetentionKind) -> int:
    """Pages that a sweep of *kind* looks at; what it does is undone."""
    query = load_query(_QUERIES[kind])
    arguments = query.arguments({"age_s": retention_s(kind, DEFAULT_LIMITS), "rows": DEFAULT_LIMITS.retention_rows})
    await database.execute("begin")
    explained = await database.fetchval(f"explain (analyze, buffers, format json) {query.text}", *arguments)
    await database.execute("rollback")
    plan = json.loads(explained)[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.mark.slow
async def test_a_sweep_costs_no_more_with_50_000_rows_that_were_pruned_than_with_none(database):
    await database.execute("vacuum analyze requests")
    few = {kind: await blocks(database, kind) for kind in RetentionKind}
    await database.fetch(INSERT_ROWS, 50_000, "completed", False)
    await fill(database, 500)
    await database.execute("analyze requests")
    await set_clock(database, f"{DEFAULT_LIMITS.body_retention_s} s")
    prune = prune_on(database)
    for kind in RetentionKind:
        while (await prune(kind, 10_000)).is_full:
            pass

    many = {kind: await blocks(database, kind) for kind in RetentionKind}

    print({kind.value: (few[kind], many[kind]) for kind in RetentionKind})
    assert await database.fetchval(COUNTS[RetentionKind.BODIES]) == 0
    for kind in RetentionKind:
        assert many[kind] <= few[kind] + 50, kind  # a scan of all would be thousands
