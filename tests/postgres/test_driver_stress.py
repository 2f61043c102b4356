"""The driver under everything at once: random cancellations, killed backends, a restarted server, TLS, large values.

The line it prints (``pytest -s``) is the evidence for the promise: no connection unusable, nothing left on the server.
"""

import asyncio
import itertools
import os
import random
import signal
import ssl

import attrs
import pytest
import trio
import trustme
from tests.postgres.conftest import CALL_S, open_connection, open_front, wait_until_nothing_runs

from dwctl_trio.domain.errors import StoreUnavailable
from dwctl_trio.postgres.embedded import EmbeddedPostgresOptions, open_embedded_postgres
from dwctl_trio.postgres.guest_loop import open_guest_loop
from dwctl_trio.postgres.pool import open_pool

SLOTS = 6
WORKERS = 12
CANCELS = 1000
LARGE_BYTES = 20_000_000
NOT_DURABLE = EmbeddedPostgresOptions(durable=False)


@attrs.define
class Load:
    """What the workers did, and what they were told."""

    chance: random.Random
    ids: "itertools.count[int]" = attrs.field(factory=itertools.count)
    answered: int = 0
    cancelled: int = 0
    unavailable: int = 0
    killed: int = 0
    acknowledged: set[int] = attrs.field(factory=set)

    async def sleep(self, pool):
        await pool.execute("SELECT pg_sleep(0.003)")

    async def echo(self, pool):
        value = self.chance.randbytes(300_000)
        assert await pool.fetchval("SELECT $1::bytea", value) == value

    async def write_pair(self, pool):
        number = next(self.ids)
        async with pool.connection() as connection, connection.transaction():
            await connection.execute("INSERT INTO pairs VALUES ($1)", number)
            await connection.execute("INSERT INTO pairs VALUES ($1)", number)
        self.acknowledged.add(number)

    async def read_cursor(self, pool):
        async with pool.connection() as connection, connection.transaction():
            cursor = connection.cursor("SELECT generate_series(1, 300)")
            assert [row[0] async for row in cursor] == list(range(1, 301))

    async def copy(self, pool):
        async with pool.connection() as connection:
            await connection.copy_records("bulk", [(0,)] * 2000)

    async def write_bulk(self, pool):
        async with pool.connection() as connection:
            await connection.executemany("INSERT INTO bulk VALUES ($1)", [(1,)] * 500)

    async def die(self, pool):
        self.killed += 1
        await pool.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    async def work(self, pool, cancels):
        """Do one thing after another, each for a random time, until that many were cancelled in time."""
        ways = [self.sleep, self.echo, self.write_pair, self.read_cursor, self.copy, self.write_bulk, self.die]
        while self.cancelled < cancels:
            (way,) = self.chance.choices(ways, [40, 20, 40, 20, 10, 1, 1])
            with trio.move_on_after(self.chance.expovariate(1 / 0.02)) as scope:
                try:
                    await way(pool)
                    self.answered += 1
                except StoreUnavailable:
                    self.unavailable += 1
            self.cancelled += scope.cancelled_caught


async def run_workers(load, pool, cancels):
    async with trio.open_nursery() as nursery:
        for _ in range(WORKERS):
            nursery.start_soon(load.work, pool, cancels)


async def count_unusable(pool):
    """How many of the pool's slots yield no connection that answers; all of them are taken at the same time."""
    usable = 0
    everybody_ready = trio.Event()

    async def use():
        nonlocal usable
        async with pool.connection() as connection:
            answer = await connection.fetchval("SELECT 1")
            usable += answer
            if usable == SLOTS:
                everybody_ready.set()
            await everybody_ready.wait()

    with trio.move_on_after(CALL_S):
        async with trio.open_nursery() as nursery:
            for _ in range(SLOTS):
                nursery.start_soon(use)
    return SLOTS - usable


async def count_left_over(observer):
    """Sessions of others that run a statement or sit in a transaction, once the cancelled ones had time to end."""
    await wait_until_nothing_runs(observer)
    return await observer.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        " AND pid <> pg_backend_pid() AND state <> 'idle'"
    )


async def cancel_large_values(pool, load):
    """Values of 20 MB, some of them cancelled on their way."""
    value = os.urandom(LARGE_BYTES)
    for _ in range(6):
        with trio.move_on_after(load.chance.uniform(0, 0.25)) as scope:
            assert await pool.fetchval("SELECT $1::bytea", value) == value
        load.cancelled += scope.cancelled_caught
    assert await pool.fetchval("SELECT $1::bytea", value) == value


async def hear_a_notification(loop, dsn):
    send_payload, payload = trio.open_memory_channel(1)
    async with open_connection(loop, dsn) as listener, open_connection(loop, dsn) as speaker:
        await listener.add_listener("news", send_payload.send_nowait)
        await speaker.execute("NOTIFY news, 'heard'")
        with trio.fail_after(CALL_S):
            assert await payload.receive() == "heard"


async def run_over_tls(loop, dsn, load, cancels):
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    async with open_front(dsn, tls=context) as front:
        tls_dsn = front.dsn("postgres", "sslmode=require")
        async with open_pool(loop, tls_dsn, connections_max=SLOTS, wait_s=CALL_S, call_s=CALL_S) as pool:
            await run_workers(load, pool, load.cancelled + cancels)
            await cancel_large_values(pool, load)
            return await count_unusable(pool)


async def kill_a_backend(pool):
    """A killed server process makes PostgreSQL end all others and recover."""
    async with pool.connection() as connection:
        os.kill(connection.server_pid, signal.SIGKILL)
    with trio.fail_after(CALL_S):
        while True:
            try:
                return await pool.fetchval("SELECT 1")
            except StoreUnavailable:
                await trio.lowlevel.checkpoint()


async def count_broken_promises(dsn, loop, load):
    """Transactions that are there in part, and acknowledged ones that are not there at all."""
    async with open_connection(loop, dsn) as observer:
        parts = {row["id"]: row["count"] for row in await observer.fetch("SELECT id, count(*) FROM pairs GROUP BY id")}
    return sum(count != 2 for count in parts.values()) + len(load.acknowledged - parts.keys())


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.long)])
async def test_after_everything_at_once_no_connection_is_unusable_and_nothing_runs(server_dir, rounds):
    load, started = Load(chance=random.Random(5)), trio.current_time()
    unusable = left_over = broken_promises = 0
    async with open_guest_loop() as loop:
        async with (
            open_embedded_postgres(server_dir, NOT_DURABLE) as server,
            open_connection(loop, server.dsn) as connection,
        ):
            await connection.execute("CREATE TABLE pairs (id int); CREATE TABLE bulk (a int)")
        async with open_pool(loop, server.dsn, connections_max=SLOTS, wait_s=CALL_S, call_s=CALL_S) as pool:
            for _ in range(rounds):
                async with trio.open_nursery() as nursery:
                    async with open_embedded_postgres(server_dir, NOT_DURABLE):
                        await run_workers(load, pool, load.cancelled + CANCELS * 6 // 10)
                        nursery.start_soon(run_workers, load, pool, load.cancelled + CANCELS * 2 // 10)
                        await pool.execute("SELECT pg_sleep(0.1)")
                    # The server has stopped under the workers, and starts again under them.
                    async with open_embedded_postgres(server_dir, NOT_DURABLE):
                        while nursery.child_tasks:
                            await trio.lowlevel.checkpoint()
                        broken_promises += await count_broken_promises(server.dsn, loop, load)
                        load.acknowledged.clear()
                        await kill_a_backend(pool)
                        unusable += await run_over_tls(loop, server.dsn, load, CANCELS * 2 // 10)
                        await cancel_large_values(pool, load)
                        await hear_a_notification(loop, server.dsn)
                        unusable += await count_unusable(pool)
                        async with open_connection(loop, server.dsn) as observer:
                            left_over += await count_left_over(observer)
        tasks_left = len(asyncio.all_tasks(loop))
    print(
        f"\ndriver stress: {load.cancelled} cancels, {load.killed} ended and {rounds} killed backends, "
        f"{rounds} server restarts, {load.answered} answered, {load.unavailable} told unavailable, "
        f"{unusable} unusable, {left_over} active, {broken_promises} transactions in part or lost, "
        f"{tasks_left} guest tasks left, {trio.current_time() - started:.1f} s"
    )
    assert (unusable, left_over, broken_promises, tasks_left) == (0, 0, 0, 0)
    assert load.cancelled >= rounds * CANCELS
