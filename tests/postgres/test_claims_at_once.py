"""Several processes that claim at once, on a real PostgreSQL: no capacity is overshot, and nobody waits for a lock."""

import random
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
import trio
from tests.conformance.conftest import CALL_S, LIMITS, PostgresLab, create_database, open_postgres_lab
from tests.conformance.queued import claim_all, claim_one, enqueue, id_of, requeued_of
from tests.conformance.responses import Cancelled, make_finished
from tests.postgres.conftest import open_connection

from dwctl_trio.ports import ClaimedResponse
from dwctl_trio.postgres.guest_loop import open_guest_loop
from dwctl_trio.postgres.store import PostgresStore

CAPACITY = 8
PROCESSES = 4
RESPONSES = 120
UNDER_WAY = "select count(*) from requests where state in ('claimed', 'processing')"

SOMEBODY_WAITS = "select exists (select from pg_locks where locktype = 'advisory' and not granted)"


@pytest.fixture(scope="module")
def claims_dsn(postgres_server) -> str:
    return create_database(postgres_server, "claims_at_once")


@pytest.fixture
async def lab(claims_dsn: str) -> AsyncIterator[PostgresLab]:
    async with open_postgres_lab(claims_dsn) as lab:
        yield lab


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [{"other": CAPACITY}, {"owner_rows": CAPACITY}], ids=["model", "owner"])
async def test_processes_that_claim_at_once_never_overshoot_a_capacity(lab, bounds):
    seed = random.Random(8)
    stores = [lab.open_process() for _ in range(PROCESSES)]
    enqueued = RESPONSES // 2
    for number in range(enqueued):
        await enqueue(stores[0], deadline_s=90_000.0 - number)
    claims: list[tuple[UUID, int]] = []
    ended: set[UUID] = set()
    highest = 0

    async def work(store: PostgresStore) -> None:
        nonlocal highest, enqueued
        while len(ended) < enqueued or enqueued < RESPONSES:
            if enqueued < RESPONSES:  # something more urgent than all that wait, so that the front is never the same
                enqueued += 1
                await enqueue(store, deadline_s=90_000.0 - enqueued)
            claimed = await claim_all(store, rows=3, **bounds)
            highest = max(highest, await lab.pool.fetchval(UNDER_WAY))
            claims.extend((id_of(one), one.epoch) for one in claimed)
            for one in claimed:
                assert isinstance(one, ClaimedResponse)
                if seed.random() < 0.3:
                    await store.requeue_response(requeued_of(one))
                else:
                    await store.finish_response(make_finished(one.new, Cancelled(), epoch=one.epoch))
                    ended.add(one.new.response_id)

    with trio.fail_after(6 * CALL_S):
        async with trio.open_nursery() as nursery:
            for store in stores:
                nursery.start_soon(work, store)
    print(f"{len(claims)} claims by {PROCESSES} processes, at most {highest} of {CAPACITY} under way")
    assert len(claims) == len(set(claims)) > RESPONSES, "nothing was claimed twice for one attempt"
    assert CAPACITY / 2 < highest <= CAPACITY


async def test_who_claims_counts_what_another_one_is_about_to_claim(lab, claims_dsn):
    store = lab.open_process()
    patient = await enqueue(store, deadline_s=2000)
    async with (
        open_guest_loop() as loop,
        open_connection(loop, claims_dsn) as other,
        trio.open_nursery() as nursery,
    ):
        await other.execute("begin")
        first = await other.fetchval("select id from dwctl_claim($1, 30, 1, '{}', '{}', 1, 9)", uuid4())
        await enqueue(store, deadline_s=1000)
        second: list[object] = []

        async def claim() -> None:
            second.append(await claim_all(store, other=1))

        nursery.start_soon(claim)
        with trio.fail_after(CALL_S):
            while not await lab.pool.fetchval(SOMEBODY_WAITS):
                await trio.lowlevel.checkpoint()
        assert second == []
        await other.execute("commit")
    assert first == patient.response_id
    assert second == [[]], "there is room for one, and somebody has it"


async def test_a_claim_does_not_wait_for_a_row_that_somebody_has_locked(lab, claims_dsn):
    store = lab.open_process()
    first = await enqueue(store, deadline_s=1000)
    second = await enqueue(store, deadline_s=2000)
    async with open_guest_loop() as loop, open_connection(loop, claims_dsn) as other:
        await other.execute("begin")
        await other.fetchval("select id from requests where id = $1 for update", first.response_id)
        assert [id_of(one) for one in await claim_all(store)] == [second.response_id]
        assert await claim_all(store) == []
        await other.execute("rollback")
    assert [id_of(one) for one in await claim_all(store)] == [first.response_id]


async def test_a_row_whose_cancel_is_noted_meanwhile_is_claimed_with_it_or_taken_over(lab):
    """The claim and the take-over of one row at once: one of them has it."""
    for _ in range(20):
        worker, canceller = lab.open_process(), lab.open_process()
        new = await enqueue(worker)
        await canceller.request_cancel(new.response_id, new.owner)
        had: list[str] = []

        async def claim(worker=worker, had=had) -> None:
            had.extend("worker" for _ in await claim_all(worker))

        async def take_over(canceller=canceller, new=new, had=had) -> None:
            if await canceller.take_over(new.response_id, patience_s=LIMITS.cancel_wait_s) is not None:
                had.append("canceller")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(claim)
            nursery.start_soon(take_over)
        assert len(had) == 1
        assert await lab.pool.fetchval("select epoch from requests where id = $1", new.response_id) == 1
        await lab.pool.execute("delete from requests")


async def test_a_process_that_is_cut_off_while_it_claims_keeps_nobody_else_from_it(lab, claims_dsn):
    store = lab.open_process()
    await enqueue(store)
    async with open_guest_loop() as loop, open_connection(loop, claims_dsn) as other:
        await other.execute("begin")
        await other.fetchval("select count(*) from dwctl_claim($1, 30, 0, '{}', '{}', 9, 9)", uuid4())
        async with trio.open_nursery() as nursery:
            claimed: list[ClaimedResponse] = []

            async def claim() -> None:
                claimed.append(await claim_one(store))

            nursery.start_soon(claim)
            other.terminate()
    assert len(claimed) == 1


async def test_a_look_at_an_empty_queue_waits_for_nobody(lab, claims_dsn):
    store = lab.open_process()
    async with open_guest_loop() as loop, open_connection(loop, claims_dsn) as other:
        await other.execute("begin")
        await other.fetchval("select count(*) from dwctl_claim($1, 30, 1, '{}', '{}', 9, 9)", uuid4())
        await other.fetchval("select pg_advisory_xact_lock(7236518040291004)")
        assert await claim_all(store) == []
        await other.execute("rollback")
