"""One connection under cancellation: at every step, at random moments, and in races with deadlines and lost servers."""

import random
from contextlib import suppress

import asyncpg
import pytest
import trio
import trio.testing
from tests.postgres.conftest import (
    CALL_S,
    CancelAtStep,
    open_connection,
    open_front,
    wait_until_nothing_runs,
    wait_until_running,
)

from dwctl_trio.domain.errors import StoreUnavailable
from dwctl_trio.postgres import trio_asyncpg
from dwctl_trio.postgres.trio_asyncpg import connect

STEPS_MAX = 500


async def test_a_cancelled_statement_is_cancelled_on_the_server_and_the_connection_lives(
    connection, guest_loop, postgres_dsn
):
    async with open_connection(guest_loop, postgres_dsn) as observer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.execute, "SELECT pg_sleep(60)")
            await wait_until_running(observer)
            nursery.cancel_scope.cancel()
        assert connection.in_use
        assert await connection.fetchval("SELECT 1") == 1
        assert connection.is_reusable()
        await wait_until_nothing_runs(observer)


async def test_a_call_in_a_cancelled_scope_sends_nothing(connection):
    with trio.CancelScope() as scope:
        scope.cancel()
        await connection.execute("CREATE TABLE t ()")
    assert scope.cancelled_caught
    assert not connection.in_use
    assert await connection.fetchval("SELECT to_regclass('t')") is None


async def test_a_shielded_write_ends_well_while_everything_around_it_is_cancelled(connection):
    await connection.execute("CREATE TABLE t (a int)")
    async with trio.open_nursery() as nursery:

        async def write_the_end():
            try:
                await connection.execute("SELECT pg_sleep(60)")
            finally:
                with trio.move_on_after(CALL_S, shield=True):
                    async with connection.transaction():
                        await connection.execute("INSERT INTO t SELECT 1 FROM pg_sleep(0.05)")

        nursery.start_soon(write_the_end)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    assert await connection.fetchval("SELECT count(*) FROM t") == 1


async def test_cancelled_is_raised_at_once_even_if_the_server_hangs(guest_loop, postgres_dsn, monkeypatch):
    monkeypatch.setattr(trio_asyncpg, "SETTLE_S_MAX", 0.1)
    async with open_front(postgres_dsn) as front:
        connection = await connect(guest_loop, front.dsn("postgres"), call_s=CALL_S)
        front.frozen = trio.Event()
        started = trio.current_time()
        with trio.move_on_after(0.01) as scope:
            await connection.fetchval("SELECT 1")
        assert scope.cancelled_caught
        assert trio.current_time() - started < 0.05
        with trio.fail_after(CALL_S):
            await connection.wait_closed()  # its state never became known
        with pytest.raises(StoreUnavailable):
            await connection.fetchval("SELECT 1")


async def test_a_transaction_that_is_cancelled_is_rolled_back(connection):
    await connection.execute("CREATE TABLE t (a int)")
    with trio.move_on_after(0.05) as scope:
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (1)")
            await connection.execute("SELECT pg_sleep(60)")
    assert scope.cancelled_caught
    assert connection.is_reusable()
    assert await connection.fetchval("SELECT count(*) FROM t") == 0


async def test_a_savepoint_that_is_cancelled_leaves_the_transaction_around_it_alone(connection):
    await connection.execute("CREATE TABLE t (a int)")
    async with connection.transaction():
        await connection.execute("INSERT INTO t VALUES (1)")
        with trio.move_on_after(0.05):
            async with connection.transaction():
                await connection.execute("INSERT INTO t VALUES (2)")
                await connection.execute("SELECT pg_sleep(60)")
        await connection.execute("INSERT INTO t VALUES (3)")
    assert [row["a"] for row in await connection.fetch("SELECT a FROM t")] == [1, 3]


async def test_a_savepoint_that_was_never_made_does_not_cost_the_connection(connection):
    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        async with connection.transaction():
            with trio.move_on_after(0.02):
                await connection.execute("SELECT pg_sleep(60)")
            with CancelAtStep(0):  # while the connection still settles, so that SAVEPOINT has not been sent
                async with connection.transaction():
                    pytest.fail("the block was entered")
            await connection.execute("SELECT 1")
    assert await connection.fetchval("SELECT 1") == 1


async def test_an_error_beside_a_cancelled_statement_arrives_alone(connection):
    async def fail():
        raise LookupError("the reason")

    with pytest.raises(ExceptionGroup) as failed:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.execute, "SELECT pg_sleep(60)")
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(fail)
    assert [repr(exc) for exc in failed.value.exceptions] == ["LookupError('the reason')"]
    assert await connection.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("method", ["executemany", "copy_records", "copy_in"])
async def test_bulk_data_is_cancelled_while_the_server_takes_nothing(guest_loop, postgres_dsn, monkeypatch, method):
    monkeypatch.setattr(trio_asyncpg, "SETTLE_S_MAX", 0.2)
    async with open_front(postgres_dsn) as front:
        connection = await connect(guest_loop, front.dsn("postgres"), call_s=CALL_S)
        await connection.execute("CREATE TEMPORARY TABLE t (a bytea)")
        front.frozen = trio.Event()
        with trio.fail_after(CALL_S), trio.move_on_after(0.05) as scope:
            match method:
                case "executemany":
                    await connection.executemany("INSERT INTO t VALUES ($1)", [(bytes(100_000),)] * 500)
                case "copy_records":
                    await connection.copy_records("t", [(bytes(100_000),)] * 500)
                case _:
                    await connection.copy_in("t", [bytes(100_000)] * 500)
        assert scope.cancelled_caught
        with trio.fail_after(CALL_S):
            await connection.wait_closed()


async def test_a_copy_from_the_server_cancelled_at_some_moment_leaves_the_connection_usable(connection):
    chance, sizes = random.Random(13), []
    for _ in range(20):
        with trio.move_on_after(chance.uniform(0, 0.03)):
            query = "SELECT repeat('x', 1000) FROM generate_series(1, 20000)"
            await connection.copy_out(query, write=lambda chunk: sizes.append(len(chunk)))
        assert await connection.fetchval("SELECT 1") == 1
    assert sizes


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.005, 0.02])
async def test_a_bulk_insert_cancelled_at_some_moment_is_all_or_nothing(connection, guest_loop, postgres_dsn, seconds):
    async with open_connection(guest_loop, postgres_dsn) as victim:
        await connection.execute("CREATE TABLE t (a bytea)")
        with trio.move_on_after(seconds):
            await victim.executemany("INSERT INTO t VALUES ($1)", [(bytes(20_000),)] * 500)
        with suppress(StoreUnavailable):  # it may have been closed, but then soon
            assert await victim.fetchval("SELECT 1") == 1
        await wait_until_nothing_runs(connection)
        assert await connection.fetchval("SELECT count(*) FROM t") in {0, 500}


async def test_connecting_cancelled_at_any_step_leaves_no_session(connection, guest_loop, postgres_dsn):
    for step in range(STEPS_MAX):
        opened = None
        with CancelAtStep(step) as cancel:
            opened = await connect(guest_loop, postgres_dsn, call_s=CALL_S)
        if opened is not None:
            await opened.aclose()
        if not cancel.fired:
            break
    assert 2 < step < STEPS_MAX - 1
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with trio.fail_after(CALL_S):
        while await connection.fetchval(query):
            await connection.execute("SELECT pg_sleep(0.005)")


async def test_a_transaction_cancelled_at_any_step_happens_wholly_or_not_at_all(connection, guest_loop, postgres_dsn):
    await connection.execute("CREATE TABLE t (step int, part text)")
    victim = await connect(guest_loop, postgres_dsn, call_s=CALL_S)
    reopened = 0
    for step in range(STEPS_MAX):
        if victim.is_closed():
            reopened += 1
            victim = await connect(guest_loop, postgres_dsn, call_s=CALL_S)
        with CancelAtStep(step) as cancel:
            async with victim.transaction():
                await victim.execute("INSERT INTO t VALUES ($1, 'first')", step)
                async with victim.transaction():
                    await victim.execute("INSERT INTO t VALUES ($1, 'second')", step)
        if not cancel.fired:
            break
    await victim.aclose()
    assert 4 < step < STEPS_MAX - 1
    parts = await connection.fetch("SELECT step, count(*) FROM t GROUP BY step ORDER BY step")
    assert {row["count"] for row in parts} == {2}
    assert parts[-1]["step"] == step
    assert reopened == 0


async def test_deadline_cancellation_and_lost_connection_may_meet_in_any_order(connection, guest_loop, postgres_dsn):
    chance = random.Random(7)
    outcomes = set()
    victim = None
    for _ in range(60):
        if victim is None or victim.is_closed():
            victim = await connect(guest_loop, postgres_dsn, call_s=0.02)
        moments = [chance.uniform(0.015, 0.025) for _ in range(2)]

        async def kill(pid, after_s):
            await connection.fetchval("SELECT pg_terminate_backend($1) FROM pg_sleep($2)", pid, after_s)

        async with trio.open_nursery() as nursery:
            if chance.random() < 0.5:
                nursery.start_soon(kill, victim.server_pid, moments[0])
            with trio.move_on_after(moments[1]) as scope:
                try:
                    await victim.execute("SELECT pg_sleep(0.02)")
                    outcomes.add("answered")
                except StoreUnavailable as exc:
                    outcomes.add("lost" if exc.__cause__ else "deadline")
            if scope.cancelled_caught:
                outcomes.add("cancelled")
        try:
            assert await victim.fetchval("SELECT 1") == 1
        except StoreUnavailable:
            outcomes.add("closed" if victim.is_closed() else "late")
    assert outcomes >= {"lost", "cancelled"}
    victim.terminate()
    await wait_until_nothing_runs(connection)


async def test_statements_of_the_next_user_are_never_hit_by_an_earlier_cancellation(connection):
    chance = random.Random(11)
    for number in range(150):
        with trio.move_on_after(chance.uniform(0, 0.003)):
            await connection.fetchval("SELECT pg_sleep(0.0005), $1::int", number)
        assert await connection.fetchval("SELECT $1::int FROM pg_sleep(0.0005)", number) == number
    with pytest.raises(asyncpg.UndefinedTableError):
        await connection.execute("SELECT * FROM missing")
