"""The leases of rows that somebody has locked: they are renewed once the lock is gone, and the others at their time."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import trio
from tests.conformance.responses import make_new

from dwctl_trio.config import Config
from dwctl_trio.domain.limits import Limits
from dwctl_trio.engine.leases import LiveResponses, run_lease_renewal
from dwctl_trio.ports import RenewedLeases
from dwctl_trio.postgres.database import open_database
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.postgres.store import PostgresStore

LIMITS = Limits(lease_renewal_s=100.0, lease_give_up_s=200.0, lease_s=600.0)
"""The next renewal of all is far beyond the test."""
WAIT_S = 20.0
SOON_S = 1.0
ROWS = 3


@asynccontextmanager
async def open_rows(dsn: str) -> AsyncIterator[tuple[Pool, PostgresStore, list[UUID]]]:
    """A database with some rows of one process, whose leases are about to expire."""
    async with open_database(Config(database_url=dsn), migrating=True) as pool:
        store = PostgresStore(pool, limits=LIMITS, daemon_id=uuid4())
        news = [make_new() for _ in range(ROWS)]
        for new in news:
            await store.open_response(new)
        await pool.execute("update requests set lease_expires_at = dwctl_now()")
        yield pool, store, [new.response_id for new in news]


@asynccontextmanager
async def locking(pool: Pool, response_id: UUID) -> AsyncIterator[None]:
    """Its row is locked by another connection for the block."""
    async with pool.connection() as connection:
        await connection.execute("begin")
        await connection.fetch("select from requests where id = $1 for update", response_id)
        yield
        await connection.execute("rollback")


async def wait_renewed(pool: Pool, ids: Sequence[UUID]) -> None:
    with trio.fail_after(WAIT_S):
        while not set(ids) <= await renewed(pool):
            pass


async def renewed(pool: Pool) -> set[UUID]:
    """The rows whose leases do not expire soon."""
    later = "select id from requests where lease_expires_at > dwctl_now() + interval '1 minute'"
    return {row["id"] for row in await pool.fetch(later)}


async def test_a_row_that_is_locked_is_skipped_and_not_lost(postgres_dsn):
    async with open_rows(postgres_dsn) as (pool, store, ids):
        async with locking(pool, ids[0]):
            leases = await store.renew_leases(frozenset(ids))
            assert leases == RenewedLeases(renewed=frozenset(ids[1:]), skipped=frozenset(ids[:1]))
            assert await renewed(pool) == set(ids[1:])
        assert await store.renew_leases(leases.skipped) == RenewedLeases(renewed=leases.skipped)
        assert await renewed(pool) == set(ids)


async def test_a_row_that_was_locked_at_its_renewal_is_renewed_soon_after_its_release(postgres_dsn):
    live = LiveResponses()
    async with open_rows(postgres_dsn) as (pool, store, ids), trio.open_nursery() as nursery:
        with live.attempt(ids[0]) as locked, live.attempt(ids[1]), live.attempt(ids[2]):
            for response_id in ids:
                live.note_opened(response_id)
            async with locking(pool, ids[0]):
                nursery.start_soon(run_lease_renewal, store, live, LIMITS)
                await wait_renewed(pool, ids[1:])
                assert await renewed(pool) == set(ids[1:])
            released_at = trio.current_time()
            await wait_renewed(pool, ids)
            seconds = trio.current_time() - released_at
            assert locked.stopped_by is None
        nursery.cancel_scope.cancel()
    assert seconds < SOON_S
    print(f"renewed {seconds * 1000:.0f} ms after its release")
