"""What a claim costs: by the index alone, whatever is known of the table, and the same however many rows wait."""

import statistics
import time
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from tests.conformance.conftest import CALL_S, create_database

from dwctl_trio.postgres.guest_loop import open_guest_loop
from dwctl_trio.postgres.queries import load_query
from dwctl_trio.postgres.trio_asyncpg import Connection, connect

FEW, MANY = 100, 10_000
OWNERS, MODELS = 5, 3
ROWS = 10
ROUNDS = 31
COST_RATIO_MAX = 1.5
GROUPS = 30
"""Of priority, model and owner."""
ROWS_READ_MAX = GROUPS * (ROWS + 2) + 10 * ROWS
"""The first ones of each group, the way to the next group, and what it takes to lock, change and return a row."""
WORK = "select seq_scan, idx_tup_fetch from pg_stat_xact_user_tables where relname = 'requests'"
FILL = f"""
    insert into requests (
        id, owner, surface, model, upstream, upstream_model, service_tier, request, state, priority, deadline
    )
    select
        gen_random_uuid(), 'owner-' || i % {OWNERS}, 'responses', 'model-' || i % {MODELS}, 'u', 'm', 'flex',
        json_build_object('input', repeat('word ', 100)), 'pending', i % 2 + 1, dwctl_now() + i * interval '1 s' + '1 h'
    from generate_series(1, $1::integer) as i
"""


def values(daemon_id: UUID) -> dict[str, object]:
    return {
        "daemon_id": daemon_id, "lease_s": 30.0, "rows": ROWS, "models": ["model-0"], "models_max": [1000],
        "other_models_max": 1000, "owner_max": 1000,
    }  # fmt: skip


@pytest.fixture(scope="module")
def queue_dsns(postgres_server) -> dict[int, str]:
    return {count: create_database(postgres_server, f"claims_{count}") for count in (FEW, MANY)}


@pytest.fixture
async def queues(queue_dsns: dict[int, str]) -> AsyncIterator[dict[int, Connection]]:
    """A connection to a queue of each length, of which no statistics are known and that was empty at first."""
    async with open_guest_loop() as loop:
        connections = {count: await connect(loop, dsn, call_s=3 * CALL_S) for count, dsn in queue_dsns.items()}
        for count, connection in connections.items():
            await connection.execute("alter table requests set (autovacuum_enabled = false)")
            await connection.execute("begin")
            query = load_query("claim_responses")
            for waiting in (0, 1):  # now all is planned, for next to nothing
                await connection.execute(FILL, waiting)
                assert len(await connection.fetch(query.text, *query.arguments(values(uuid4())))) == waiting
            await connection.execute(FILL, count)
        yield connections
        for connection in connections.values():
            await connection.execute("rollback")


async def claim(connection: Connection) -> float:
    """Claim some rows and put them back; the seconds that the claim took."""
    query = load_query("claim_responses")
    await connection.execute("savepoint before")
    began = time.perf_counter()
    rows = await connection.fetch(query.text, *query.arguments(values(uuid4())))
    took = time.perf_counter() - began
    assert len({row["id"] for row in rows}) == ROWS
    await connection.execute("rollback to before")
    return took


@pytest.mark.slow
async def test_a_claimed_row_costs_the_same_however_many_wait(queues):
    for connection in queues.values():
        for _ in range(3):
            await claim(connection)
    times: dict[int, list[float]] = {FEW: [], MANY: []}
    for _ in range(ROUNDS):
        for count, connection in queues.items():
            times[count].append(await claim(connection))
    medians = {count: statistics.median(taken) for count, taken in times.items()}
    ratio = medians[MANY] / medians[FEW]
    shown = ", ".join(f"{count} waiting: {1e6 * taken / ROWS:.0f} µs" for count, taken in medians.items())
    print(f"a claimed row with {shown}; ratio {ratio:.2f}")
    assert ratio <= COST_RATIO_MAX


async def test_a_claim_reads_by_the_indexes_and_only_the_first_rows_of_each_group(queues):
    read: dict[int, int] = {}
    for count, connection in queues.items():
        before = await connection.fetchrow(WORK)
        await claim(connection)
        after = await connection.fetchrow(WORK)
        assert after["seq_scan"] == before["seq_scan"]
        read[count] = after["idx_tup_fetch"] - before["idx_tup_fetch"]
    print(f"rows read for {ROWS} claimed: {read}")
    assert read[MANY] <= ROWS_READ_MAX


async def test_a_claim_from_an_empty_queue_reads_nothing_from_end_to_end(queues):
    connection = queues[FEW]
    await connection.execute(
        "savepoint before; update requests set state = 'canceled', response_status = 499, finished_at = dwctl_now(),"
        " daemon_id = null, lease_expires_at = null"
    )
    before = await connection.fetchrow(WORK)
    query = load_query("claim_responses")
    assert await connection.fetch(query.text, *query.arguments(values(uuid4()))) == []
    after = await connection.fetchrow(WORK)
    await connection.execute("rollback to before")
    assert after["seq_scan"] == before["seq_scan"]


async def test_storing_events_changes_no_index(queues):
    """A heap-only update: else each of the ten writes a second would be one of every index of the row, too."""
    connection = queues[FEW]
    await connection.execute("savepoint before")
    claimed, daemon_id = load_query("claim_responses"), uuid4()
    row = (await connection.fetch(claimed.text, *claimed.arguments(values(daemon_id))))[0]
    append = load_query("append_events")
    updates = "select n_tup_upd, n_tup_hot_upd from pg_stat_xact_user_tables where relname = 'requests'"
    made = []
    for number in range(20):
        before = await connection.fetchrow(updates)
        event = {
            "response_id": row["id"], "daemon_id": daemon_id, "epoch": row["epoch"],
            "first_sequence": number, "last_sequence": number, "frames": b"x",
        }  # fmt: skip
        assert await connection.fetchval(append.text, *append.arguments(event)) == row["id"]
        after = await connection.fetchrow(updates)
        made.append((after["n_tup_upd"] - before["n_tup_upd"], after["n_tup_hot_upd"] - before["n_tup_hot_upd"]))
    await connection.execute("rollback to before")
    print(f"heap-only updates among {len(made)}: {sum(hot for _, hot in made)}")
    assert {total for total, _ in made} == {1}
    assert sum(hot for _, hot in made) >= 0.8 * len(made), "but for those for which a page has no room"
