"""The pool: who gets which connection when, what is taken back, and how lost servers show and pass."""

import asyncio
import threading
import time

import asyncpg
import attrs
import pytest
import trio
import trio.testing
from tests.postgres.conftest import CALL_S, open_front, wait_until_nothing_runs

from dwctl_trio.domain.errors import StoreUnavailable
from dwctl_trio.postgres.embedded import EmbeddedPostgresOptions, open_embedded_postgres
from dwctl_trio.postgres.guest_loop import open_guest_loop
from dwctl_trio.postgres.pool import PoolStatistics, open_pool

TERMINATE = "SELECT pg_terminate_backend($1)"


@pytest.fixture
async def pool(guest_loop, postgres_dsn):
    async with open_pool(guest_loop, postgres_dsn, connections_max=2, wait_s=CALL_S, call_s=CALL_S) as pool:
        yield pool


async def test_the_shortcuts_return_what_a_connection_returns(pool):
    await pool.execute("CREATE TABLE t (a int)")
    assert await pool.execute("INSERT INTO t VALUES ($1)", 1) == "INSERT 0 1"
    assert [tuple(row) for row in await pool.fetch("SELECT a FROM t")] == [(1,)]
    assert tuple(await pool.fetchrow("SELECT a FROM t")) == (1,)
    assert await pool.fetchval("SELECT a FROM t") == 1
    with pytest.raises(asyncpg.UndefinedTableError):
        await pool.execute("SELECT * FROM missing")
    assert pool.statistics() == PoolStatistics(size=1, idle=1, in_use=0, waiting=0, opened_total=1, discarded_total=0)


async def test_every_way_to_use_the_pool_is_a_checkpoint(pool):
    await pool.execute("SELECT 1")
    with trio.testing.assert_checkpoints():
        await pool.execute("SELECT 1")
    with trio.testing.assert_checkpoints():
        async with pool.connection():
            pass


async def test_no_more_connections_are_opened_than_allowed_and_none_without_need(pool):
    for _ in range(5):
        await pool.execute("SELECT 1")
    assert pool.statistics().opened_total == 1
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(pool.execute, "SELECT pg_sleep(0.001)")
    assert pool.statistics().opened_total == 2


async def test_who_waits_longest_is_served_first(guest_loop, postgres_dsn):
    served = []
    one_slot = open_pool(guest_loop, postgres_dsn, connections_max=1, wait_s=CALL_S, call_s=CALL_S)
    async with one_slot as pool, trio.open_nursery() as nursery:

        async def use(number):
            async with pool.connection():
                served.append(number)

        async with pool.connection():
            for number in range(10):
                nursery.start_soon(use, number)
                await trio.testing.wait_all_tasks_blocked()
            assert pool.statistics().waiting == 10
        while len(served) < 10:
            await trio.testing.wait_all_tasks_blocked()
    assert served == list(range(10))


async def test_waiting_for_a_connection_is_bounded(guest_loop, postgres_dsn):
    async with open_pool(guest_loop, postgres_dsn, connections_max=1, wait_s=0.02, call_s=CALL_S) as pool:
        async with pool.connection() as connection:
            with pytest.raises(StoreUnavailable):
                await pool.execute("SELECT 1")
            await connection.execute("SELECT 1")
        assert await pool.fetchval("SELECT 1") == 1
        assert pool.statistics().waiting == 0


async def test_opening_a_connection_is_bounded(guest_loop, postgres_dsn):
    async with open_front(postgres_dsn) as front:
        dsn = front.dsn("postgres")
        async with open_pool(guest_loop, dsn, connections_max=1, wait_s=0.05, call_s=CALL_S) as pool:
            front.frozen = trio.Event()
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await pool.execute("SELECT 1")
            front.frozen.set()
        async with open_pool(guest_loop, dsn, connections_max=1, wait_s=CALL_S, call_s=CALL_S) as pool:
            assert await pool.fetchval("SELECT 1") == 1


async def test_each_new_connection_is_set_up_once_before_it_is_used(guest_loop, postgres_dsn):
    async def set_up(connection):
        await connection.execute("SET application_name = 'ready'")

    async with (
        open_pool(guest_loop, postgres_dsn, connections_max=2, wait_s=CALL_S, call_s=CALL_S, setup=set_up) as pool,
        pool.connection() as first,
        pool.connection() as second,
    ):
        assert await first.fetchval("SHOW application_name") == "ready"
        assert await second.fetchval("SHOW application_name") == "ready"


async def test_a_set_up_that_fails_costs_its_connection_and_no_slot(guest_loop, postgres_dsn):
    connections = []

    async def set_up(connection):
        connections.append(connection)
        if len(connections) < 3:
            raise LookupError

    async with open_pool(
        guest_loop, postgres_dsn, connections_max=1, wait_s=CALL_S, call_s=CALL_S, setup=set_up
    ) as pool:
        for _ in range(2):
            with pytest.raises(LookupError):
                await pool.execute("SELECT 1")
        assert await pool.fetchval("SELECT 1") == 1
    assert all(connection.is_closed() for connection in connections)


async def test_a_connection_whose_state_is_not_at_rest_is_not_taken_back(pool):
    async with pool.connection() as connection:
        await connection.execute("BEGIN")
    async with pool.connection() as connection:
        await connection.add_listener("news", print)
    async with trio.open_nursery() as nursery, pool.connection() as connection:

        async def use_after_return():
            with pytest.raises(StoreUnavailable):
                await connection.execute("SELECT pg_sleep(60)")

        nursery.start_soon(use_after_return)
        await trio.testing.wait_all_tasks_blocked(0.01)
    statistics = pool.statistics()
    assert (statistics.idle, statistics.in_use, statistics.discarded_total) == (0, 0, 3)


async def test_a_connection_with_a_cancelled_statement_is_taken_back_once_it_has_settled(pool):
    await pool.execute("SELECT 1")
    with trio.move_on_after(0.02):
        await pool.execute("SELECT pg_sleep(60)")
    assert pool.statistics().in_use == 1
    async with pool.connection() as first, pool.connection() as second:  # both slots are there again
        assert await first.fetchval("SELECT 1") + await second.fetchval("SELECT 1") == 2
    assert pool.statistics().discarded_total == 0
    await wait_until_nothing_runs(pool)


async def test_a_connection_that_died_at_rest_is_replaced_without_a_round_trip(pool):
    async with pool.connection() as first, pool.connection() as second:
        pid = first.server_pid
        await second.fetchval(TERMINATE, pid)
        await second.fetchval("SELECT pg_sleep(0.02)")
        assert first.is_stale()
    for _ in range(4):
        assert await pool.fetchval("SELECT pg_backend_pid()") != pid
    assert pool.statistics().discarded_total == 1


async def test_a_server_that_says_goodbye_is_heard_even_before_trio_has_looked(pool, postgres_dsn):
    async def kill(pid):
        killer = await asyncpg.connect(postgres_dsn)
        await killer.fetchval(TERMINATE, pid)
        await killer.close()

    async with pool.connection() as connection:
        pid = connection.server_pid
    # Another thread, for which Trio's is blocked: no task runs between the server's last words and the next statement.
    thread = threading.Thread(target=lambda: asyncio.run(kill(pid)))
    thread.start()
    thread.join()
    assert not connection.is_closed()
    give_up = time.monotonic() + CALL_S
    while not connection.is_stale():
        assert time.monotonic() < give_up
    assert await pool.fetchval("SELECT pg_backend_pid()") != pid


async def test_a_statement_that_loses_its_connection_is_retried_only_if_asked(pool):
    await pool.execute("CREATE TABLE done (id int PRIMARY KEY)")
    suicide = "SELECT pg_terminate_backend(pg_backend_pid())"
    with pytest.raises(StoreUnavailable):
        await pool.execute(suicide)
    with pytest.raises(StoreUnavailable):  # the second try dies as well, and there is no third
        await pool.execute(suicide, retry=True)
    assert pool.statistics().opened_total == 3
    async with pool.connection() as killer:
        pids = []

        async def kill():
            while not (
                rows := await killer.fetch(
                    "SELECT pid FROM pg_stat_activity WHERE query LIKE '%once%'"
                    " AND state = 'active' AND pid <> pg_backend_pid()"
                )
            ):
                await killer.execute("SELECT pg_sleep(0.001)")
            pids.extend(row["pid"] for row in rows)
            await killer.execute(TERMINATE, pids[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            pid = await pool.fetchval("SELECT pg_backend_pid() AS once FROM pg_sleep(0.3)", retry=True)
    assert pids
    assert pid != pids[0]


async def test_a_statement_that_takes_too_long_is_not_retried(guest_loop, postgres_dsn):
    async with open_pool(guest_loop, postgres_dsn, connections_max=1, wait_s=CALL_S, call_s=0.05) as pool:
        with trio.fail_after(CALL_S), pytest.raises(StoreUnavailable):
            await pool.execute("SELECT pg_sleep(60)", retry=True)
        assert await pool.fetchval("SELECT 1") == 1
        assert pool.statistics().opened_total == 1


async def test_the_pool_recovers_by_itself_when_the_server_comes_back(server_dir):
    options = EmbeddedPostgresOptions(durable=False)
    async with open_guest_loop() as loop:
        async with open_embedded_postgres(server_dir, options) as server:
            dsn = server.dsn
            pool_manager = open_pool(loop, dsn, connections_max=3, wait_s=CALL_S, call_s=CALL_S)
            pool = await pool_manager.__aenter__()
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(pool.execute, "SELECT pg_sleep(0.01)")
        for _ in range(5):
            with pytest.raises(StoreUnavailable):
                await pool.execute("SELECT 1")
        async with open_embedded_postgres(server_dir, options) as server:
            assert server.dsn == dsn
            for _ in range(5):
                assert await pool.fetchval("SELECT 1") == 1
            statistics = pool.statistics()
            assert (statistics.in_use, statistics.waiting) == (0, 0)
            assert statistics.discarded_total == 3
            await pool_manager.__aexit__(None, None, None)


async def test_closing_the_pool_ends_statements_and_waiters_in_bounded_time(guest_loop, postgres_dsn):
    outcomes = []

    async def use(pool):
        try:
            await pool.execute("SELECT pg_sleep(60)")
        except StoreUnavailable as exc:
            outcomes.append(exc)

    async with open_pool(guest_loop, postgres_dsn, connections_max=1, wait_s=CALL_S, call_s=CALL_S) as observer:
        async with (
            trio.open_nursery() as nursery,
            open_pool(guest_loop, postgres_dsn, connections_max=2, wait_s=CALL_S, call_s=CALL_S) as pool,
        ):
            for _ in range(4):
                nursery.start_soon(use, pool)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert attrs.astuple(pool.statistics())[:4] == (2, 0, 2, 2)
        assert len(outcomes) == 4
        assert attrs.astuple(pool.statistics())[:4] == (0, 0, 0, 0)
        with pytest.raises(StoreUnavailable):
            await pool.execute("SELECT 1")
        await wait_until_nothing_runs(observer)


async def test_closing_the_pool_is_bounded_even_if_the_server_hangs(guest_loop, postgres_dsn, monkeypatch):
    monkeypatch.setattr("dwctl_trio.postgres.pool.CLOSE_S_MAX", 0.05)
    async with open_front(postgres_dsn) as front, trio.open_nursery() as nursery:

        async def use(pool):
            with pytest.raises(StoreUnavailable):
                await pool.execute("SELECT pg_sleep(60)")

        dsn = front.dsn("postgres")
        async with open_pool(guest_loop, dsn, connections_max=2, wait_s=CALL_S, call_s=CALL_S) as pool:
            nursery.start_soon(use, pool)
            await trio.testing.wait_all_tasks_blocked(0.02)
            front.frozen = trio.Event()
            started = trio.current_time()
        assert trio.current_time() - started < 0.5
        front.frozen.set()


async def test_a_dedicated_connection_takes_no_slot_and_is_closed_after_use(guest_loop, postgres_dsn):
    one_slot = open_pool(guest_loop, postgres_dsn, connections_max=1, wait_s=CALL_S, call_s=CALL_S)
    async with one_slot as pool, pool.connection() as shared, pool.open_dedicated() as dedicated:
        before = pool.statistics()
        assert await dedicated.fetchval("SELECT 1") == await shared.fetchval("SELECT 1") == 1
        assert pool.statistics() == before
        assert (before.size, before.in_use) == (1, 1)
    assert dedicated.is_closed()


async def test_opening_a_dedicated_connection_is_bounded(guest_loop, postgres_dsn):
    async with open_front(postgres_dsn) as front:
        dsn = front.dsn("postgres")
        async with open_pool(guest_loop, dsn, connections_max=1, wait_s=0.05, call_s=CALL_S) as pool:
            front.frozen = trio.Event()
            with pytest.raises(StoreUnavailable):
                async with pool.open_dedicated():
                    pass
            front.frozen.set()
