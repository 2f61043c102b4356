"""Responses that wait for a worker: enqueued, claimed, handed back; the same of the fake and of PostgreSQL."""

import attrs
import pytest
from tests.conformance.conftest import CALL_S, LIMITS, Lab
from tests.conformance.queued import (
    DEADLINE_S,
    OPENING,
    claim_all,
    claim_one,
    enqueue,
    id_of,
    make_queued_request,
    progress_of,
    requeued_of,
    segment,
)
from tests.conformance.responses import (
    ENDINGS,
    FAILED,
    OWNER,
    ROUTE,
    ended_model,
    ended_tool,
    make_finished,
    make_key,
    make_new,
    model_step,
    tool_step,
)
from tests.conformance.test_steps import TOOLS

from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.errors import Conflict, IdempotencyKeyHeld, LeaseLost, StoreError
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.response import Completed
from dwctl_trio.domain.steps import StepState
from dwctl_trio.ports import ClaimedChat, ClaimedResponse, Progress, RenewedLeases
from dwctl_trio.protocol import json
from dwctl_trio.protocol.request_tools import render_tools
from dwctl_trio.testing.faulty_store import Store


@pytest.fixture
def store(lab: Lab) -> Store:
    return lab.open_process()


# -- enqueueing


async def test_an_enqueued_response_waits_and_its_owner_can_read_it(lab, store):
    new = await enqueue(store)
    stored = await store.read_response(new.response_id, OWNER)
    row = (await lab.snapshot()).rows[new.response_id]
    assert stored is not None
    assert (stored.state, stored.request, stored.body) == (RowState.PENDING, new.request, None)
    assert (row.daemon_id, row.lease_expires_at, row.started_at, row.epoch, row.attempt) == (None, None, None, 0, 0)
    assert row.deadline == pytest.approx(row.created_at + DEADLINE_S, abs=1e-3)


async def test_a_response_is_created_when_its_first_event_says_so(lab, store):
    now = await store.read_clock()
    new = await enqueue(store, created_at=now - 10)
    stored = await store.read_response(new.response_id, OWNER)
    assert now == pytest.approx(await lab.now(), abs=CALL_S)
    assert stored is not None
    assert stored.created_at == int(now - 10)


async def test_an_enqueued_response_has_its_first_events_and_no_step(lab, store):
    new = await enqueue(store)
    snapshot = await lab.snapshot()
    assert snapshot.events[new.response_id].segments == (OPENING,)
    assert snapshot.rows[new.response_id].last_sequence == OPENING.last_sequence
    assert snapshot.steps == {}


@pytest.mark.parametrize("key", [None, make_key()], ids=["no key", "key"])
async def test_an_id_that_is_enqueued_again_is_left_as_it_is(lab, store, key):
    new = await enqueue(store, key=key)
    before = await lab.snapshot()
    await enqueue(store, response_id=new.response_id, key=key)
    assert await lab.snapshot() == before
    await claim_one(store)
    before = await lab.snapshot()
    await enqueue(store, make_queued_request("another"), response_id=new.response_id, key=key)
    assert await lab.snapshot() == before


async def test_a_waiting_row_holds_its_idempotency_key_and_has_told_nothing_yet(lab, store):
    new = await enqueue(store, key=make_key())
    before = await lab.snapshot()
    with pytest.raises(IdempotencyKeyHeld):
        await enqueue(store, key=make_key())
    with pytest.raises(IdempotencyKeyHeld):
        await store.open_response(make_new(key=make_key()))
    assert await lab.snapshot() == before
    holder = await store.find_key_holder(OWNER, "k")
    assert holder is not None
    assert (holder.response_id, holder.state, holder.told) == (new.response_id, RowState.PENDING, None)


async def test_a_waiting_response_cannot_be_deleted(lab, store):
    new = await enqueue(store)
    with pytest.raises(Conflict):
        await store.delete_response(new.response_id, OWNER)


# -- claiming


async def test_a_claimed_response_is_its_workers_alone(lab, store):
    new = await enqueue(store)
    claimed = await claim_one(store)
    row = (await lab.snapshot()).rows[new.response_id]
    assert (row.state, row.epoch, row.attempt) == (RowState.CLAIMED, 1, 1)
    assert row.lease_expires_at == pytest.approx(await lab.now() + LIMITS.lease_s, abs=CALL_S)
    assert (await store.renew_leases({new.response_id})).renewed == {new.response_id}
    assert await claim_all(store) == []
    assert await lab.open_process().renew_leases({new.response_id}) == RenewedLeases()
    assert claimed.epoch == 1


async def test_who_claims_is_told_what_was_asked_and_nothing_else_of_a_fresh_response(lab, store):
    request = make_queued_request("hello")
    new = await enqueue(store, request, tools=None)
    claimed = await claim_one(lab.open_process())
    assert claimed.new.response_id == new.response_id
    route = attrs.evolve(ROUTE, price=None)
    expected = attrs.evolve(new, route=route, first_step_id=claimed.new.first_step_id)
    assert claimed.new == expected
    assert claimed.new.first_step_id != new.first_step_id
    assert claimed.deadline_in_s == pytest.approx(DEADLINE_S, abs=CALL_S)
    assert claimed.age_s == pytest.approx(0.0, abs=CALL_S)
    assert (claimed.attempt, claimed.reclaims, claimed.is_cancel_requested) == (1, 0, False)
    assert (claimed.steps, claimed.told, claimed.last_sequence) == ((), b"", OPENING.last_sequence)


async def test_who_claims_is_told_of_the_tools(store):
    await enqueue(store, tools=json.encode(render_tools(TOOLS)))
    assert (await claim_one(store)).new.tools == TOOLS


async def test_a_claimed_chat_completion_is_its_body(store):
    await enqueue(store, surface=Surface.CHAT, request=b'{"model":"m","messages":[]}', opening=None)
    (claimed,) = await claim_all(store)
    assert isinstance(claimed, ClaimedChat)
    assert claimed.request == b'{"model":"m","messages":[]}'
    assert (claimed.row.owner, claimed.row.is_queued, claimed.last_sequence) == (OWNER, True, -1)
    assert claimed.route == attrs.evolve(ROUTE, price=None)
    assert claimed.deadline_in_s == pytest.approx(DEADLINE_S, abs=CALL_S)


async def test_a_demand_gets_no_more_than_it_asks_for(store):
    for _ in range(5):
        await enqueue(store)
    sizes = [len(await claim_all(store, rows=2)) for _ in range(4)]
    assert sizes == [2, 2, 1, 0]


# -- at work


async def test_the_first_step_makes_a_claimed_response_one_at_work(lab, store):
    await enqueue(store)
    claimed = await claim_one(store)
    await lab.advance_clock(LIMITS.lease_s / 2)
    await store.advance_response(progress_of(claimed, opened=(model_step(claimed.new, 1),)))
    (row,) = (await lab.snapshot()).rows.values()
    now = await lab.now()
    assert (row.state, row.epoch) == (RowState.PROCESSING, 1)
    assert row.started_at == pytest.approx(now, abs=CALL_S)
    assert row.lease_expires_at == pytest.approx(now + LIMITS.lease_s, abs=CALL_S)
    assert list(await store.read_chain(row.id, OWNER)) == [model_step(claimed.new, 1)]


async def work_on(store: Store, claimed: ClaimedResponse) -> None:
    """One turn that calls a tool, told up to event 5; the tool is under way."""
    first, tool = model_step(claimed.new, 1), tool_step(claimed.new, 2, "secret arguments")
    await store.advance_response(progress_of(claimed, opened=(first,)))
    await store.append_events(claimed.new.response_id, claimed.epoch, segment(2, 3))
    await store.advance_response(progress_of(claimed, ended_model(first, "secret words"), opened=(tool,)))
    await store.append_events(claimed.new.response_id, claimed.epoch, segment(4, 5))


async def test_who_goes_on_with_a_response_is_told_all_of_its_steps_and_events(lab, store):
    new = await enqueue(store)
    claimed = await claim_one(store)
    await work_on(store, claimed)
    chain = await store.read_chain(new.response_id, OWNER)
    await lab.advance_clock(LIMITS.lease_s + 30)
    await store.rescue_expired()
    heir = lab.open_process()
    again = await claim_one(heir)
    assert again.steps == tuple(chain)
    assert again.steps[1].is_open
    assert again.told == OPENING.frames + segment(2, 3).frames + segment(4, 5).frames
    assert (again.last_sequence, again.attempt, again.reclaims) == (5, 2, 1)
    assert again.new.first_step_id not in {step.id for step in again.steps}
    await heir.append_events(new.response_id, again.epoch, segment(6, 6))
    await heir.advance_response(progress_of(again, ended_tool(again.steps[1], "found")))


async def test_who_claims_several_is_told_of_each_its_own(lab, store):
    fresh = await enqueue(store, deadline_s=3000.0)
    worked_on = [await enqueue(store, deadline_s=1000.0 + number) for number in range(2)]
    for _ in worked_on:
        (claimed,) = await claim_all(store, rows=1)
        await store.advance_response(progress_of(claimed, opened=(model_step(claimed.new, 1),)))
        await store.append_events(claimed.new.response_id, claimed.epoch, segment(2, 3))
    for row in (await lab.snapshot()).rows.values():
        if row.daemon_id is not None:
            await store.requeue_response(
                requeued_of(attrs.evolve(claimed, new=attrs.evolve(fresh, response_id=row.id)))
            )
    again = await claim_all(store)
    assert [id_of(one) for one in again] == [one.response_id for one in (*worked_on, fresh)]
    assert [len(one.steps) for one in again] == [1, 1, 0]
    assert [one.told for one in again] == [OPENING.frames + segment(2, 3).frames] * 2 + [b""]
    assert [one.last_sequence for one in again] == [3, 3, 1]


async def test_a_response_whose_events_were_told_was_worked_on_though_no_step_was_begun(lab, store):
    new = await enqueue(store)
    claimed = await claim_one(store)
    await store.append_events(new.response_id, claimed.epoch, segment(2, 2))
    await store.requeue_response(requeued_of(claimed))
    again = await claim_one(store)
    assert (again.told, again.last_sequence) == (OPENING.frames + segment(2, 2).frames, 2)


# -- endings


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: type(ending).__name__)
async def test_a_queued_response_ends_with_its_last_events(lab, store, ending):
    new = await enqueue(store)
    claimed = await claim_one(store)
    await work_on(store, claimed)
    finished = attrs.evolve(make_finished(claimed.new, ending), segments=(segment(6, 7), segment(8, 9)))
    await store.finish_response(finished)
    snapshot = await lab.snapshot()
    row = snapshot.rows[new.response_id]
    assert (row.state, row.epoch, row.last_sequence, row.daemon_id) == (finished.state, 2, 9, None)
    assert snapshot.events[new.response_id].segments == (
        OPENING, segment(2, 3), segment(4, 5), segment(6, 7), segment(8, 9)
    )  # fmt: skip
    stored = await store.read_response(new.response_id, OWNER)
    assert stored is not None
    assert stored.body == finished.body


async def test_segments_that_are_stored_already_are_not_stored_again_by_the_end(lab, store):
    new = await enqueue(store)
    claimed = await claim_one(store)
    await work_on(store, claimed)
    finished = attrs.evolve(make_finished(claimed.new), segments=(segment(4, 5), segment(6, 9)))
    await store.finish_response(finished)
    before = await lab.snapshot()
    await store.finish_response(finished)
    assert await lab.snapshot() == before
    assert [kept.last_sequence for kept in before.events[new.response_id].segments] == [1, 3, 5, 9]


async def test_an_end_without_further_events_leaves_those_there_are(lab, store):
    new = await enqueue(store)
    claimed = await claim_one(store)
    await store.finish_response(attrs.evolve(make_finished(claimed.new, FAILED), segments=()))
    snapshot = await lab.snapshot()
    assert snapshot.rows[new.response_id].last_sequence == 1
    assert snapshot.events[new.response_id].segments == (OPENING,)


async def test_a_response_that_fails_before_its_first_step_ends_as_claimed(lab, store):
    new = await enqueue(store)
    claimed = await claim_one(store)
    await store.finish_response(attrs.evolve(make_finished(claimed.new, FAILED), ended=()))
    row = (await lab.snapshot()).rows[new.response_id]
    assert (row.state, row.started_at) == (RowState.FAILED, None)


async def test_a_response_that_was_never_begun_cannot_be_complete(lab, store):
    await enqueue(store)
    claimed = await claim_one(store)
    before = await lab.snapshot()
    with pytest.raises(StoreError):
        await store.finish_response(make_finished(claimed.new, Completed()))
    assert await lab.snapshot() == before


async def test_a_response_whose_ending_alone_is_missing_is_completed_by_who_claims_it(lab, store):
    new = await enqueue(store)
    await work_on(store, await claim_one(store))
    await lab.advance_clock(LIMITS.lease_s + 30)
    await store.rescue_expired()
    again = await claim_one(store)
    await store.finish_response(make_finished(again.new, Completed(), epoch=again.epoch))
    assert (await lab.snapshot()).rows[new.response_id].state is RowState.COMPLETED


# -- handing back


async def test_a_response_that_is_handed_back_waits_with_all_it_has(lab, store):
    new = await enqueue(store)
    claimed = await claim_one(store)
    await work_on(store, claimed)
    failed_tool = ended_tool(tool_step(claimed.new, 2), None)
    await store.requeue_response(requeued_of(claimed, failed_tool, segments=(segment(6, 8),), delay_s=100.0))
    snapshot = await lab.snapshot()
    row = snapshot.rows[new.response_id]
    assert (row.state, row.epoch, row.attempt, row.reclaims) == (RowState.PENDING, 2, 1, 0)
    assert (row.daemon_id, row.lease_expires_at, row.last_sequence) == (None, None, 8)
    assert row.not_before == pytest.approx(await lab.now() + 100.0, abs=CALL_S)
    assert [step.state for step in snapshot.steps.values()].count(StepState.FAILED) == 1
    assert snapshot.events[new.response_id].last_sequence == 8
    assert len(snapshot.usage) == 1


async def test_a_model_call_that_ended_with_the_attempt_is_metered(lab, store):
    await enqueue(store)
    claimed = await claim_one(store)
    first = model_step(claimed.new, 1)
    await store.advance_response(progress_of(claimed, opened=(first,)))
    await store.requeue_response(requeued_of(claimed, ended_model(first, "half")))
    snapshot = await lab.snapshot()
    assert set(snapshot.usage) == {first.id}
    assert snapshot.usage[first.id].service_tier == "flex"


async def test_an_attempt_that_does_not_count_is_given_back(lab, store):
    await enqueue(store)
    for _ in range(3):
        claimed = await claim_one(store)
        assert claimed.attempt == 1
        await store.requeue_response(requeued_of(claimed, counts=False))
    await store.requeue_response(requeued_of(await claim_one(store)))
    assert (await claim_one(store)).attempt == 2


async def test_who_does_not_own_a_response_hands_nothing_back(lab, store):
    await enqueue(store)
    claimed = await claim_one(store)
    other, before = lab.open_process(), await lab.snapshot()
    with pytest.raises(LeaseLost):
        await other.requeue_response(requeued_of(claimed))
    for epoch in (0, 2):
        with pytest.raises(LeaseLost):
            await store.requeue_response(requeued_of(attrs.evolve(claimed, epoch=epoch)))
    assert await lab.snapshot() == before


async def test_a_second_try_to_hand_back_is_lost_and_changes_nothing(lab, store):
    await enqueue(store)
    claimed = await claim_one(store)
    await store.requeue_response(requeued_of(claimed))
    before = await lab.snapshot()
    with pytest.raises(LeaseLost):
        await store.requeue_response(requeued_of(claimed))
    assert await lab.snapshot() == before


async def test_a_warm_response_is_never_handed_back(lab, store):
    new = make_new()
    await store.open_response(new)
    claimed = ClaimedResponse(new=new, epoch=1, created_at=0, age_s=0.0, deadline_in_s=None)
    before = await lab.snapshot()
    with pytest.raises(LeaseLost):
        await store.requeue_response(requeued_of(claimed))
    assert await lab.snapshot() == before


# -- the end is for ever


async def test_nothing_changes_a_response_that_has_ended(lab, store):
    new = await enqueue(store)
    claimed = await claim_one(store)
    await work_on(store, claimed)
    await store.finish_response(attrs.evolve(make_finished(claimed.new), segments=(segment(6, 9),)))
    before = await lab.snapshot()
    for epoch in (claimed.epoch, claimed.epoch + 1):
        late = attrs.evolve(claimed, epoch=epoch)
        for verb in (
            lambda late=late: store.advance_response(progress_of(late, opened=(model_step(new, 7),))),
            lambda late=late: store.append_events(new.response_id, late.epoch, segment(10, 11)),
            lambda late=late: store.requeue_response(requeued_of(late)),
            lambda late=late: store.finish_response(make_finished(late.new, FAILED, epoch=late.epoch)),
        ):
            with pytest.raises(LeaseLost):
                await verb()
    assert await store.request_cancel(new.response_id, OWNER) is RowState.COMPLETED
    assert await store.take_over(new.response_id, patience_s=0.0) is None
    assert await claim_all(store) == []
    await lab.advance_clock(LIMITS.lease_s + 30)
    assert list(await store.rescue_expired()) == []
    assert await lab.snapshot() == before
    assert await store.delete_response(new.response_id, OWNER) is True
    assert (await lab.snapshot()).events == {}


async def test_a_chat_completion_is_worked_on_like_a_response(lab, store):
    new = await enqueue(store, surface=Surface.CHAT, request=b"{}", opening=None)
    (claimed,) = await claim_all(store)
    row, step = claimed.row, model_step(new, 1)
    await store.advance_response(Progress(row=row, epoch=claimed.epoch, ended=(), opened=(step,)))
    await store.append_events(row.response_id, claimed.epoch, segment(0, 3))
    await lab.advance_clock(LIMITS.lease_s + 30)
    await store.rescue_expired()
    (again,) = await claim_all(store)
    assert isinstance(again, ClaimedChat)
    assert (again.steps, again.last_sequence, again.attempt) == ((step,), 3, 2)
    finished = attrs.evolve(make_finished(new, epoch=again.epoch), row=again.row, segments=())
    await store.finish_response(finished)
    assert await store.read_response(new.response_id, OWNER) is None, "it is no response"
