"""Cancelling from any process: noted, heard of by the worker, or taken over and ended; the same of both stores."""

import attrs
import pytest
import trio
from tests.conformance.conftest import CALL_S, LIMITS, Lab
from tests.conformance.queued import (
    DEADLINE_S,
    OPENING,
    claim_all,
    claim_one,
    enqueue,
    make_queued_request,
    progress_of,
    recalled,
    requeued_of,
    segment,
)
from tests.conformance.responses import OWNER, ROUTE, make_finished, make_new, make_request, model_step

from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.errors import LeaseLost
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.response import Cancelled
from dwctl_trio.ports import ClaimedChat
from dwctl_trio.testing.faulty_store import Store

PATIENCE_S = 100.0


@pytest.fixture
def store(lab: Lab) -> Store:
    return lab.open_process()


async def take_over(store: Store, new):
    taken = await store.take_over(new.response_id, patience_s=PATIENCE_S)
    return taken and await recalled(store, taken)


async def test_a_cancel_is_noted_once_and_tells_the_state(lab, store):
    new = await enqueue(store)
    assert await store.request_cancel(new.response_id, OWNER) is RowState.PENDING
    noted = (await lab.snapshot()).rows[new.response_id].cancel_requested_at
    assert noted == pytest.approx(await lab.now(), abs=CALL_S)
    await lab.advance_clock(100)
    assert await store.request_cancel(new.response_id, OWNER) is RowState.PENDING
    assert (await lab.snapshot()).rows[new.response_id].cancel_requested_at == noted


async def test_only_its_owner_cancels_a_response(lab, store):
    new = await enqueue(store)
    before = await lab.snapshot()
    assert await store.request_cancel(new.response_id, "red") is None
    assert await store.request_cancel(make_new().response_id, OWNER) is None
    assert await lab.snapshot() == before


async def test_a_response_at_work_stays_its_workers_when_its_cancel_is_noted(lab, store):
    new = await enqueue(store)
    claimed = await claim_one(store)
    assert await lab.open_process().request_cancel(new.response_id, OWNER) is RowState.CLAIMED
    assert (await store.watch_leases({new.response_id})).cancel_requested == {new.response_id}
    await store.advance_response(progress_of(claimed, opened=(model_step(claimed.new, 1),)))
    assert await store.request_cancel(new.response_id, OWNER) is RowState.PROCESSING
    await store.finish_response(make_finished(claimed.new, Cancelled()))
    assert await store.request_cancel(new.response_id, OWNER) is RowState.CANCELED


async def test_who_claims_a_response_that_is_to_be_cancelled_is_told(store):
    new = await enqueue(store)
    await store.request_cancel(new.response_id, OWNER)
    assert (await claim_one(store)).is_cancel_requested


async def test_a_cancel_outlives_a_retry(store):
    new = await enqueue(store)
    claimed = await claim_one(store)
    await store.request_cancel(new.response_id, OWNER)
    await store.requeue_response(requeued_of(claimed))
    assert (await claim_one(store)).is_cancel_requested


# -- taking over


async def test_a_response_that_waits_is_taken_over_and_ended(lab, store):
    new = await enqueue(store)
    await store.request_cancel(new.response_id, OWNER)
    taken = await take_over(store, new)
    assert taken is not None
    expected = attrs.evolve(new, route=attrs.evolve(ROUTE, price=None), first_step_id=taken.new.first_step_id)
    assert taken.new == expected
    assert (taken.epoch, taken.attempt, taken.is_cancel_requested) == (1, 1, True)
    assert (taken.steps, taken.told, taken.last_sequence) == ((), b"", OPENING.last_sequence)
    assert taken.deadline_in_s == pytest.approx(DEADLINE_S, abs=CALL_S)
    assert await claim_all(lab.open_process()) == []
    finished = attrs.evolve(make_finished(taken.new, Cancelled()), ended=(), segments=(segment(2, 3),))
    await store.finish_response(finished)
    row = (await lab.snapshot()).rows[new.response_id]
    assert (row.state, row.last_sequence, row.started_at) == (RowState.CANCELED, 3, None)


async def test_a_response_that_is_put_off_is_taken_over_at_once(lab, store):
    new = await enqueue(store)
    await store.requeue_response(requeued_of(await claim_one(store), delay_s=500.0))
    await store.request_cancel(new.response_id, OWNER)
    taken = await take_over(store, new)
    assert taken is not None
    assert (await lab.snapshot()).rows[new.response_id].not_before is None


async def test_a_response_that_nobody_wants_cancelled_is_not_taken_over(lab, store):
    new = await enqueue(store)
    await lab.advance_clock(2 * PATIENCE_S)
    before = await lab.snapshot()
    assert await take_over(store, new) is None
    assert await take_over(store, make_new()) is None
    assert await lab.snapshot() == before


async def test_a_worker_has_time_to_end_it_itself_and_no_more(lab, store):
    new = await enqueue(store)
    claimed = await claim_one(store)
    await store.advance_response(progress_of(claimed, opened=(model_step(claimed.new, 1),)))
    await store.append_events(new.response_id, claimed.epoch, segment(2, 4))
    canceller = lab.open_process()
    await canceller.request_cancel(new.response_id, OWNER)
    before = await lab.snapshot()
    assert await take_over(canceller, new) is None
    await lab.advance_clock(PATIENCE_S / 2)
    assert await take_over(canceller, new) is None
    assert await lab.snapshot() == before
    await lab.advance_clock(PATIENCE_S / 2 + 1)
    taken = await take_over(canceller, new)
    assert taken is not None
    assert (taken.epoch, taken.attempt, taken.reclaims, taken.last_sequence) == (2, 1, 0, 4)
    assert taken.told == OPENING.frames + segment(2, 4).frames
    assert taken.steps == (model_step(claimed.new, 1),)
    assert (await lab.snapshot()).rows[new.response_id].state is RowState.PROCESSING
    assert (await store.watch_leases({new.response_id})).owned == frozenset()
    with pytest.raises(LeaseLost):
        await store.append_events(new.response_id, claimed.epoch, segment(5, 5))


async def test_a_response_whose_worker_died_is_taken_over_at_once(lab, store):
    new = await enqueue(store)
    await claim_one(store)
    await lab.advance_clock(LIMITS.lease_s + 30)
    canceller = lab.open_process()
    await canceller.request_cancel(new.response_id, OWNER)
    taken = await take_over(canceller, new)
    assert taken is not None
    assert taken.epoch == 2
    assert list(await canceller.rescue_expired()) == []


async def test_a_warm_response_is_taken_over_like_any_other_if_it_is_stored(lab, store):
    new, unstored = make_new(), make_new(make_request(store=False))
    canceller = lab.open_process()
    for each in (new, unstored):
        await store.open_response(each)
        await canceller.request_cancel(each.response_id, OWNER)
    await lab.advance_clock(PATIENCE_S + 1)
    taken = await take_over(canceller, new)
    assert taken is not None
    assert (taken.deadline_in_s, taken.last_sequence, len(taken.steps)) == (None, -1, 1)
    assert await take_over(canceller, unstored) is None, "nobody knows what was asked"


async def test_a_response_that_is_not_stored_can_be_cancelled(store):
    new = await enqueue(store, make_queued_request(store=False))
    assert await store.request_cancel(new.response_id, OWNER) is RowState.PENDING
    assert await take_over(store, new) is not None


async def test_a_chat_completion_is_taken_over_like_a_response(store):
    new = await enqueue(store, surface=Surface.CHAT, request=b"{}", opening=None)
    await store.request_cancel(new.response_id, OWNER)
    taken = await take_over(store, new)
    assert isinstance(taken, ClaimedChat)
    assert taken.is_cancel_requested
    assert not await claim_all(store)


async def test_of_many_that_take_over_at_once_one_has_it(lab, store):
    new = await enqueue(store)
    await store.request_cancel(new.response_id, OWNER)
    had = []

    async def try_it(canceller: Store) -> None:
        if await take_over(canceller, new) is not None:
            had.append(canceller)

    with trio.fail_after(3 * CALL_S):
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(try_it, lab.open_process())
    assert len(had) == 1
