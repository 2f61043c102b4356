"""The pool under cancellation: whatever is cancelled when, no slot is lost and nobody is served out of turn."""

import random

import pytest
import trio
import trio.testing
from tests.postgres.conftest import CALL_S, CancelAtStep, wait_until_nothing_runs

from dwctl_trio.domain.errors import StoreUnavailable
from dwctl_trio.postgres.pool import open_pool

STEPS_MAX = 500


async def use_shortcut(pool):
    await pool.fetchval("SELECT pg_sleep(0.001)")


async def use_connection(pool):
    async with pool.connection() as connection:
        await connection.fetchval("SELECT pg_sleep(0.001)")


async def use_transaction(pool):
    async with pool.connection() as connection, connection.transaction():
        await connection.execute("INSERT INTO t VALUES (1)")


async def use_after_waiting(pool):
    """Two users of one slot: one of them waits for the other."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(use_connection, pool)
        nursery.start_soon(use_shortcut, pool)


async def use_new_connection(pool):
    """The idle connection has died, so that this one opens another."""
    async with pool.connection() as connection:
        connection.terminate()
    await use_shortcut(pool)


async def use_retry(pool):
    """The connection dies at its first statement, and the second is made on another."""
    with pytest.raises(StoreUnavailable):
        await pool.execute("SELECT pg_terminate_backend(pg_backend_pid())", retry=True)


@pytest.mark.parametrize(
    "use", [use_shortcut, use_connection, use_transaction, use_after_waiting, use_new_connection, use_retry]
)
async def test_cancelled_at_any_step_no_slot_is_lost(guest_loop, postgres_dsn, use):
    async with open_pool(guest_loop, postgres_dsn, connections_max=1, wait_s=CALL_S, call_s=CALL_S) as pool:
        await pool.execute("CREATE TABLE t (a int)")
        for step in range(STEPS_MAX):
            with CancelAtStep(step) as cancel:
                await use(pool)
            assert await pool.fetchval("SELECT $1::int", step) == step
            statistics = pool.statistics()
            assert (statistics.size, statistics.idle, statistics.in_use, statistics.waiting) == (1, 1, 0, 0)
            if not cancel.fired:
                break
        assert 0 < step < STEPS_MAX - 1
        await wait_until_nothing_runs(pool)


async def test_many_tasks_cancelled_at_random_leave_a_pool_as_good_as_new(guest_loop, postgres_dsn):
    chance = random.Random(3)
    answered = cancelled = 0

    async def use(number, deadline_s):
        nonlocal answered, cancelled
        with trio.move_on_after(deadline_s) as scope:
            if number % 3:
                assert await pool.fetchval("SELECT $1::int FROM pg_sleep(0.002)", number) == number
            else:
                async with pool.connection() as connection, connection.transaction():
                    assert await connection.fetchval("SELECT $1::int", number) == number
            answered += 1
        cancelled += scope.cancelled_caught

    async with open_pool(guest_loop, postgres_dsn, connections_max=4, wait_s=CALL_S, call_s=CALL_S) as pool:
        for _ in range(10):
            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(use, number, chance.uniform(0, 0.06))
        assert answered + cancelled == 400
        assert min(answered, cancelled) > 20
        async with pool.connection(), pool.connection(), pool.connection(), pool.connection():
            assert pool.statistics().in_use == 4
        await wait_until_nothing_runs(pool)
        assert pool.statistics().discarded_total == 0


async def test_a_waiter_that_is_cancelled_does_not_take_the_turn_of_the_next(guest_loop, postgres_dsn):
    served = []

    async def use(pool, number, task_status):
        with trio.CancelScope() as scope:
            task_status.started(scope)
            async with pool.connection():
                served.append(number)

    async with open_pool(guest_loop, postgres_dsn, connections_max=1, wait_s=CALL_S, call_s=CALL_S) as pool:
        async with trio.open_nursery() as nursery:

            async def start(number):
                scope = await nursery.start(lambda task_status: use(pool, number, task_status))
                await trio.testing.wait_all_tasks_blocked()
                return scope

            async with pool.connection():
                scopes = [await start(number) for number in range(6)]
                for number in (0, 2, 5):
                    scopes[number].cancel()
        assert served == [1, 3, 4]
        assert pool.statistics().in_use == 0


async def test_a_waiter_cancelled_in_the_step_in_which_it_is_served_gives_its_slot_back(guest_loop, postgres_dsn):
    async with open_pool(guest_loop, postgres_dsn, connections_max=1, wait_s=CALL_S, call_s=CALL_S) as pool:
        await pool.execute("SELECT 1")
        async with trio.open_nursery() as nursery:
            async with pool.connection():
                nursery.start_soon(use_connection, pool)
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()  # the slot has been handed over, and the waiter has not run yet
        assert await pool.fetchval("SELECT 1") == 1
