"""Ownership of rows: the same behaviour of the fake and of PostgreSQL."""

from uuid import UUID

import attrs
import pytest
import trio
from tests.conformance.conftest import LIMITS
from tests.conformance.queued import claim_one, enqueue, progress_of, segment
from tests.conformance.responses import ENDINGS, FAILED, OWNER, make_finished, make_new, make_request, model_step

from dwctl_trio.domain.errors import LeaseLost, StoreError
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.response import ErrorCode, ErrorType
from dwctl_trio.domain.steps import StepState
from dwctl_trio.ports import RenewedLeases

JUST_BEFORE_S = LIMITS.lease_s - 60
JUST_AFTER_S = LIMITS.lease_s + 1


async def open_new(store, /, **fields):
    new = make_new(make_request(**fields))
    await store.open_response(new)
    return new


# -- renewal


async def test_renewal_returns_the_rows_that_are_still_owned(lab):
    store = lab.open_process()
    first, second = await open_new(store), await open_new(store)
    both = frozenset({first.response_id, second.response_id})
    assert await store.renew_leases(both) == RenewedLeases(renewed=both)


async def test_a_renewed_lease_runs_from_the_renewal(lab):
    store = lab.open_process()
    new = await open_new(store)
    await lab.advance_clock(JUST_BEFORE_S)
    await store.renew_leases({new.response_id})
    row = (await lab.snapshot()).rows[new.response_id]
    assert row.lease_expires_at == pytest.approx(await lab.now() + LIMITS.lease_s, abs=10)
    assert row.epoch == 1


async def test_renewal_leaves_rows_that_were_not_named_alone(lab):
    store = lab.open_process()
    named, other = await open_new(store), await open_new(store)
    before = (await lab.snapshot()).rows[other.response_id]
    await lab.advance_clock(1)
    assert (await store.renew_leases({named.response_id})).renewed == {named.response_id}
    assert (await lab.snapshot()).rows[other.response_id] == before


async def test_rows_of_another_process_are_not_renewed(lab):
    owner, other = lab.open_process(), lab.open_process()
    new = await open_new(owner)
    before = await lab.snapshot()
    await lab.advance_clock(1)
    assert await other.renew_leases({new.response_id}) == RenewedLeases()
    assert await lab.snapshot() == before


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: type(ending).__name__)
async def test_an_ended_row_is_not_renewed(lab, ending):
    store = lab.open_process()
    new = await open_new(store)
    await store.finish_response(make_finished(new, ending))
    before = await lab.snapshot()
    assert await store.renew_leases({new.response_id}) == RenewedLeases()
    assert await lab.snapshot() == before


async def test_unknown_and_deleted_rows_are_not_renewed(lab):
    store = lab.open_process()
    deleted, unknown = await open_new(store), make_new()
    await store.finish_response(make_finished(deleted))
    await store.delete_response(deleted.response_id, OWNER)
    assert await store.renew_leases({deleted.response_id, unknown.response_id}) == RenewedLeases()


async def test_renewal_of_nothing_is_a_heartbeat(lab):
    store = lab.open_process()
    await store.register_process()
    await lab.advance_clock(100)
    assert await store.renew_leases(frozenset()) == RenewedLeases()
    ((heartbeat_at, stopped_at),) = await lab.heartbeats()
    assert heartbeat_at == pytest.approx(await lab.now(), abs=10)
    assert stopped_at is None


# -- processes


async def test_a_process_is_registered_once(lab):
    store = lab.open_process()
    await store.register_process()
    with pytest.raises(StoreError):
        await store.register_process()
    assert len(await lab.heartbeats()) == 1


async def test_an_orderly_end_is_noted_once(lab):
    store = lab.open_process()
    await store.register_process()
    await store.stop_process()
    ((_, first),) = await lab.heartbeats()
    await lab.advance_clock(100)
    await store.stop_process()
    ((_, second),) = await lab.heartbeats()
    assert first is not None
    assert second == first


async def test_the_end_of_a_process_that_nobody_knows_is_no_error(lab):
    await lab.open_process().stop_process()
    assert await lab.heartbeats() == []


async def test_a_database_that_is_there_answers_a_ping(lab):
    assert await lab.open_process().ping() is None


# -- rescue


async def test_an_expired_row_is_ended_as_abandoned_with_its_step_and_metered(lab):
    dead, rescuer = lab.open_process(), lab.open_process()
    new = await open_new(dead)
    await lab.advance_clock(JUST_AFTER_S)
    assert list(await rescuer.rescue_expired()) == [new.response_id]
    snapshot = await lab.snapshot()
    row, step = snapshot.rows[new.response_id], snapshot.steps[new.first_step_id]
    assert (row.state, row.epoch, row.reclaims, row.response_status) == (RowState.FAILED, 2, 1, 500)
    assert (row.daemon_id, row.lease_expires_at) == (None, None)
    assert row.error is not None and row.error.type is ErrorType.STEP_ABANDONED
    assert (step.state, step.error, step.result) == (StepState.FAILED, row.error, None)
    assert row.finished_at == step.finished_at == pytest.approx(await lab.now(), abs=10)
    record = snapshot.usage[new.first_step_id]
    assert (record.response_id, record.owner, record.error_code) == (new.response_id, OWNER, "step_abandoned")
    assert (record.input_tokens, record.http_status, record.first_token_at) == (None, None, None)
    assert record.started_at == row.started_at
    assert snapshot.events == {}


async def test_the_owner_of_a_rescued_response_reads_why_it_failed(lab):
    store = lab.open_process()
    new = await open_new(store)
    await lab.advance_clock(JUST_AFTER_S)
    await store.rescue_expired()
    stored = await store.read_response(new.response_id, OWNER)
    assert stored is not None and stored.error is not None
    assert (stored.state, stored.body, stored.request) == (RowState.FAILED, None, new.request)
    assert (stored.error.code, stored.error.type) == (ErrorCode.SERVER_ERROR, ErrorType.STEP_ABANDONED)
    assert stored.error.message == (
        "The server process that worked on this response ended before it was done."
    )  # fmt: skip
    (step,) = await store.read_chain(new.response_id, OWNER)
    assert step.error == stored.error


async def test_a_rescued_response_can_be_deleted(lab):
    store = lab.open_process()
    new = await open_new(store)
    await lab.advance_clock(JUST_AFTER_S)
    await store.rescue_expired()
    assert await store.delete_response(new.response_id, OWNER) is True
    snapshot = await lab.snapshot()
    assert (snapshot.rows, snapshot.steps) == ({}, {})
    assert set(snapshot.usage) == {new.first_step_id}


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: type(ending).__name__)
async def test_finishing_after_a_rescue_is_lost_and_writes_nothing(lab, ending):
    slow, rescuer = lab.open_process(), lab.open_process()
    new = await open_new(slow)
    await lab.advance_clock(JUST_AFTER_S)
    await rescuer.rescue_expired()
    before = await lab.snapshot()
    for epoch in (1, 2):
        with pytest.raises(LeaseLost):
            await slow.finish_response(make_finished(new, ending, epoch=epoch))
    assert await lab.snapshot() == before


async def test_renewing_after_a_rescue_tells_that_the_row_is_lost(lab):
    slow, rescuer = lab.open_process(), lab.open_process()
    new = await open_new(slow)
    await lab.advance_clock(JUST_AFTER_S)
    await rescuer.rescue_expired()
    assert await slow.renew_leases({new.response_id}) == RenewedLeases()


async def test_a_rescued_row_is_not_rescued_again(lab):
    store = lab.open_process()
    await open_new(store)
    await lab.advance_clock(JUST_AFTER_S)
    assert len(await store.rescue_expired()) == 1
    before = await lab.snapshot()
    await lab.advance_clock(JUST_AFTER_S)
    assert list(await store.rescue_expired()) == []
    assert await lab.snapshot() == before


async def test_two_rescuers_at_once_rescue_each_row_once(lab):
    dead, rescuers = lab.open_process(), [lab.open_process() for _ in range(4)]
    opened = {(await open_new(dead)).response_id for _ in range(20)}
    await lab.advance_clock(JUST_AFTER_S)
    rescued: list[UUID] = []

    async def rescue(store):
        rescued.extend(await store.rescue_expired())

    async with trio.open_nursery() as nursery:
        for store in rescuers:
            nursery.start_soon(rescue, store)
    assert sorted(rescued) == sorted(opened)
    snapshot = await lab.snapshot()
    assert {row.reclaims for row in snapshot.rows.values()} == {1}
    assert len(snapshot.usage) == 20


async def test_a_rescue_and_a_late_finish_at_once_leave_one_ending(lab):
    slow, rescuer = lab.open_process(), lab.open_process()
    for _ in range(10):
        new = await open_new(slow)
        await lab.advance_clock(JUST_AFTER_S)
        outcome = []

        async def finish(new=new, outcome=outcome):
            try:
                await slow.finish_response(make_finished(new))
                outcome.append(RowState.COMPLETED)
            except LeaseLost:
                outcome.append(RowState.FAILED)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(finish)
            nursery.start_soon(rescuer.rescue_expired)
        snapshot = await lab.snapshot()
        row = snapshot.rows[new.response_id]
        assert (row.state, row.epoch) == (outcome[0], 2)
        assert (snapshot.usage[new.first_step_id].error_code is None) == (row.state is RowState.COMPLETED)
        assert (new.response_id in snapshot.events) == (row.state is RowState.COMPLETED)


async def test_a_live_lease_is_not_rescued(lab):
    store = lab.open_process()
    await open_new(store)
    await lab.advance_clock(JUST_BEFORE_S)
    before = await lab.snapshot()
    assert list(await store.rescue_expired()) == []
    assert await lab.snapshot() == before


async def test_a_lease_that_was_renewed_in_time_is_not_rescued(lab):
    store = lab.open_process()
    new, forgotten = await open_new(store), await open_new(store)
    await lab.advance_clock(JUST_BEFORE_S)
    await store.renew_leases({new.response_id})
    await lab.advance_clock(JUST_BEFORE_S)
    assert list(await store.rescue_expired()) == [forgotten.response_id]


async def test_a_lease_that_was_renewed_too_late_but_before_the_rescue_is_kept(lab):
    store = lab.open_process()
    new = await open_new(store)
    await lab.advance_clock(JUST_AFTER_S)
    assert (await store.renew_leases({new.response_id})).renewed == {new.response_id}
    assert list(await store.rescue_expired()) == []


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: type(ending).__name__)
async def test_an_ended_row_is_not_rescued(lab, ending):
    store = lab.open_process()
    new = await open_new(store)
    await store.finish_response(make_finished(new, ending))
    before = await lab.snapshot()
    await lab.advance_clock(JUST_AFTER_S)
    assert list(await store.rescue_expired()) == []
    assert await lab.snapshot() == before


async def test_queued_work_waits_again_with_its_steps_and_events(lab):
    store = lab.open_process()
    new = await enqueue(store)
    claimed = await claim_one(store)
    await store.advance_response(progress_of(claimed, opened=(model_step(claimed.new, 1),)))
    await store.append_events(new.response_id, claimed.epoch, segment(2, 5))
    before = await lab.snapshot()
    await lab.advance_clock(JUST_AFTER_S)
    assert list(await store.rescue_expired()) == [new.response_id]
    after = await lab.snapshot()
    row = after.rows[new.response_id]
    assert (row.state, row.daemon_id, row.lease_expires_at) == (RowState.PENDING, None, None)
    assert (row.epoch, row.attempt, row.reclaims, row.last_sequence) == (2, 1, 1, 5)
    assert (row.error, row.not_before) == (None, None)
    assert (after.steps, after.events, after.usage) == (before.steps, before.events, {})
    again = await claim_one(store)
    assert (again.epoch, again.attempt, again.reclaims) == (3, 2, 1)
    with pytest.raises(LeaseLost):
        await store.advance_response(progress_of(claimed, opened=(model_step(claimed.new, 2),)))


async def test_a_row_whose_worker_died_before_its_first_step_waits_again(lab):
    store = lab.open_process()
    await enqueue(store)
    await claim_one(store)
    await lab.advance_clock(JUST_AFTER_S)
    assert len(await store.rescue_expired()) == 1
    again = await claim_one(store)
    assert (again.steps, again.told, again.attempt, again.reclaims) == ((), b"", 2, 1)


async def test_a_sweep_frees_queued_and_warm_rows_alike_within_one_bound(lab):
    store = lab.open_process(attrs.evolve(LIMITS, rescue_rows=3))
    for _ in range(2):
        await open_new(store)
        await enqueue(store)
        await claim_one(store)
    await lab.advance_clock(JUST_AFTER_S)
    assert [len(await store.rescue_expired()) for _ in range(3)] == [3, 1, 0]
    states = [row.state for row in (await lab.snapshot()).rows.values()]
    assert sorted(states) == [RowState.FAILED] * 2 + [RowState.PENDING] * 2


# -- watching


async def test_who_watches_learns_what_is_still_its_own_and_what_is_wanted_cancelled(lab):
    store, other = lab.open_process(), lab.open_process()
    kept, unwanted, ended, unknown = [await open_new(store) for _ in range(3)] + [make_new()]
    theirs = await open_new(other)
    for new in (unwanted, ended, theirs):
        await store.request_cancel(new.response_id, OWNER)
    await store.finish_response(make_finished(ended))
    before = await lab.snapshot()
    watched = await store.watch_leases({new.response_id for new in (kept, unwanted, ended, unknown, theirs)})
    assert watched.owned == {kept.response_id, unwanted.response_id}
    assert watched.cancel_requested == {unwanted.response_id}
    assert await lab.snapshot() == before


async def test_a_sweep_rescues_a_bounded_number_and_the_oldest_leases_first(lab):
    store = lab.open_process(attrs.evolve(LIMITS, rescue_rows=2))
    opened = []
    for _ in range(5):
        opened.append((await open_new(store)).response_id)
        await lab.advance_clock(1)
    await lab.advance_clock(JUST_AFTER_S)
    sweeps = [set(await store.rescue_expired()) for _ in range(4)]
    assert sweeps == [set(opened[:2]), set(opened[2:4]), set(opened[4:]), set()]


async def test_a_rescued_row_that_is_not_stored_holds_nothing_of_what_was_said(lab):
    store = lab.open_process()
    new = await open_new(store, text="a secret", store=False)
    await lab.advance_clock(JUST_AFTER_S)
    assert list(await store.rescue_expired()) == [new.response_id]
    snapshot = await lab.snapshot()
    row = snapshot.rows[new.response_id]
    assert (row.state, row.request, row.response) == (RowState.FAILED, None, None)
    assert "secret" not in repr(snapshot)
    assert await store.read_response(new.response_id, OWNER) is None


async def test_a_rescued_row_is_not_taken_for_a_failed_ending_whose_commit_was_lost(lab):
    store = lab.open_process()
    new = await open_new(store)
    await lab.advance_clock(JUST_AFTER_S)
    await store.rescue_expired()
    with pytest.raises(LeaseLost):
        await store.finish_response(make_finished(new, FAILED))
