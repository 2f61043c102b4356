"""Rows of responses: the same behaviour of the fake and of PostgreSQL."""

import attrs
import msgspec
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from tests.conformance.conftest import CALL_S, LIMITS, MemoryLab, open_postgres_lab
from tests.conformance.queued import demand, make_queued, make_queued_request, segment
from tests.conformance.responses import (
    ENDINGS,
    FAILED,
    FRAMES,
    OWNER,
    ROUTE,
    USAGE,
    answers,
    endings,
    last_step,
    make_finished,
    make_metering,
    make_new,
    make_opening,
    make_request,
    storable_texts,
    with_result,
)

from dwctl_trio.domain.assembly import assemble
from dwctl_trio.domain.errors import Conflict, LeaseLost, StoreError
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.response import Completed
from dwctl_trio.domain.steps import ModelCall, Step, StepState
from dwctl_trio.ports import Progress, RequeuedResponse, WantedPage
from dwctl_trio.protocol import json
from dwctl_trio.protocol.response_object import render_response
from dwctl_trio.testing.faulty_store import Store

by_ending = pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: type(ending).__name__)


# -- opening


async def test_an_opened_response_can_be_read_by_its_owner_at_once(lab):
    store, new = lab.open_process(), make_new()
    created_at = await store.open_response(new)
    stored = await store.read_response(new.response_id, OWNER)
    assert stored is not None
    assert (stored.response_id, stored.state, stored.created_at) == (new.response_id, RowState.PROCESSING, created_at)
    assert (stored.request, stored.body, stored.error) == (new.request, None, None)


async def test_an_opened_response_has_one_step_under_way(lab):
    store, new = lab.open_process(), make_new()
    await store.open_response(new)
    first = Step(id=new.first_step_id, sequence=1, descriptor=ModelCall(), state=StepState.PROCESSING)
    assert list(await store.read_chain(new.response_id, OWNER)) == [first]


async def test_an_opened_row_names_its_process_and_holds_a_lease(lab):
    store, new = lab.open_process(), make_new()
    await store.open_response(new)
    row = (await lab.snapshot()).rows[new.response_id]
    assert (row.daemon_id is not None, row.epoch, row.reclaims) == (True, 1, 0)
    assert row.lease_expires_at == pytest.approx(await lab.now() + LIMITS.lease_s, abs=CALL_S)


async def test_the_moment_of_creation_is_the_second_in_which_it_was_and_never_one_to_come(lab):
    store = lab.open_process()
    for _ in range(10):
        await lab.advance_clock(0.1)
        new = make_new()
        created_at = await store.open_response(new)
        stored = await store.read_response(new.response_id, OWNER)
        exactly = (await lab.snapshot()).rows[new.response_id].created_at
        assert stored is not None
        assert created_at == stored.created_at == int(exactly)
        assert exactly <= await lab.now()


async def test_an_id_is_opened_once(lab):
    store, new = lab.open_process(), make_new()
    await store.open_response(new)
    before = await lab.snapshot()
    with pytest.raises(StoreError):
        await store.open_response(new)
    assert await lab.snapshot() == before


async def test_an_opening_whose_step_exists_leaves_no_row(lab):
    store, new = lab.open_process(), make_new()
    await store.open_response(new)
    with pytest.raises(StoreError):
        await store.open_response(attrs.evolve(make_new(), first_step_id=new.first_step_id))
    assert list((await lab.snapshot()).rows) == [new.response_id]


async def test_of_two_processes_that_open_the_same_id_one_succeeds(lab):
    stores, new, outcomes = [lab.open_process(), lab.open_process()], make_new(), []

    async def open_it(store):
        try:
            await store.open_response(new)
            outcomes.append("opened")
        except StoreError:
            outcomes.append("refused")

    async with trio.open_nursery() as nursery:
        for store in stores:
            nursery.start_soon(open_it, store)
    assert sorted(outcomes) == ["opened", "refused"]
    assert len((await lab.snapshot()).steps_of(new.response_id)) == 1


# -- ending


@by_ending
async def test_a_finished_response_is_read_exactly_as_its_terminal_event_carried_it(lab, ending):
    store, new = lab.open_process(), make_new()
    await store.open_response(new)
    finished = make_finished(new, ending)
    await store.finish_response(finished)
    stored = await store.read_response(new.response_id, OWNER)
    assert stored is not None
    assert stored.body == finished.body
    assert (stored.state, stored.error) == (finished.state, finished.error)
    assert stored.request is None, "the body echoes it"


@by_ending
async def test_the_stored_chain_assembles_to_the_stored_response(lab, ending):
    store, new = lab.open_process(), make_new()
    await store.open_response(new)
    finished = make_finished(new, ending)
    await store.finish_response(finished)
    chain = await store.read_chain(new.response_id, OWNER)
    stored = await store.read_response(new.response_id, OWNER)
    assert stored is not None
    assert list(chain) == [last_step(finished)]
    told = msgspec.json.decode(finished.body)
    assembled = assemble(make_opening(new, told["created_at"]), chain, ending, ended_at=told["completed_at"] or 0)
    assert stored.body == json.encode(render_response(assembled))


@by_ending
async def test_a_finished_row_has_no_owner_and_the_next_epoch(lab, ending):
    store, new = lab.open_process(), make_new()
    await store.open_response(new)
    finished = make_finished(new, ending)
    await store.finish_response(finished)
    row = (await lab.snapshot()).rows[new.response_id]
    assert (row.daemon_id, row.lease_expires_at, row.epoch) == (None, None, 2)
    assert row.response_status == finished.response_status
    assert row.finished_at is not None and row.created_at <= row.finished_at <= await lab.now()


@by_ending
async def test_the_terminal_write_keeps_the_events_and_meters_the_call(lab, ending):
    store, new = lab.open_process(), make_new()
    await store.open_response(new)
    finished = make_finished(new, ending)
    await store.finish_response(finished)
    snapshot = await lab.snapshot()
    log, record = snapshot.events[new.response_id], snapshot.usage[new.first_step_id]
    assert (log.frames, log.last_sequence) == (FRAMES, 9)
    assert (record.response_id, record.owner, record.model) == (new.response_id, OWNER, "echo-16")
    assert (record.upstream, record.upstream_model, record.stream) == ("local", "Qwen3", True)
    assert (record.http_status, record.error_code) == (200, make_metering(ending).error_code)
    assert (record.input_tokens, record.output_tokens) == (USAGE.input_tokens, USAGE.output_tokens)
    assert (record.cached_tokens, record.reasoning_tokens) == (USAGE.cached_tokens, None)
    assert new.route.price is not None
    assert record.input_price_per_million == new.route.price.input_per_million
    assert record.currency == "USD"
    assert record.finished_at - record.started_at == pytest.approx(2.0, abs=1e-3)
    assert record.first_token_at is not None
    assert record.finished_at - record.first_token_at == pytest.approx(1.5, abs=1e-3)


@by_ending
async def test_finishing_again_after_a_lost_commit_answer_is_success_and_changes_nothing(lab, ending):
    store, new = lab.open_process(), make_new()
    await store.open_response(new)
    finished = make_finished(new, ending)
    await store.finish_response(finished)
    before = await lab.snapshot()
    await store.finish_response(finished)
    assert await lab.snapshot() == before


async def test_another_ending_of_an_ended_response_is_lost(lab):
    store, new = lab.open_process(), make_new()
    await store.open_response(new)
    await store.finish_response(make_finished(new, Completed()))
    before = await lab.snapshot()
    with pytest.raises(LeaseLost):
        await store.finish_response(make_finished(new, FAILED))
    assert await lab.snapshot() == before


async def test_a_process_that_does_not_own_the_row_writes_nothing(lab):
    owner, other, new = lab.open_process(), lab.open_process(), make_new()
    await owner.open_response(new)
    before = await lab.snapshot()
    with pytest.raises(LeaseLost):
        await other.finish_response(make_finished(new))
    after = await lab.snapshot()
    assert after == before
    assert (after.usage, after.events) == ({}, {})
    assert [step.state for step in after.steps.values()] == [StepState.PROCESSING]


@pytest.mark.parametrize("epoch", [0, 2])
async def test_a_process_with_another_epoch_writes_nothing(lab, epoch):
    store, new = lab.open_process(), make_new()
    await store.open_response(new)
    before = await lab.snapshot()
    with pytest.raises(LeaseLost):
        await store.finish_response(make_finished(new, epoch=epoch))
    assert await lab.snapshot() == before


async def test_a_response_that_was_never_opened_cannot_be_finished(lab):
    store = lab.open_process()
    with pytest.raises(LeaseLost):
        await store.finish_response(make_finished(make_new()))
    assert (await lab.snapshot()).usage == {}


async def test_a_terminal_write_that_breaks_a_constraint_writes_nothing(lab):
    store, new = lab.open_process(), make_new()
    await store.open_response(new)
    before = await lab.snapshot()
    failed_without_error = attrs.evolve(make_finished(new), state=RowState.FAILED)
    with pytest.raises(StoreError) as refused:
        await store.finish_response(failed_without_error)
    assert not isinstance(refused.value, LeaseLost)
    assert await lab.snapshot() == before


async def test_counts_that_no_table_can_hold_are_a_store_error(lab):
    store, new = lab.open_process(), make_new()
    await store.open_response(new)
    finished = make_finished(new)
    turn = last_step(finished).result
    beyond = attrs.evolve(turn, usage=attrs.evolve(USAGE, input_tokens=2**63))
    with pytest.raises(StoreError):
        await store.finish_response(with_result(finished, beyond))
    stored = await store.read_response(new.response_id, OWNER)
    assert stored is not None and stored.state is RowState.PROCESSING


# -- what others may see


@by_ending
async def test_another_owner_finds_nothing_and_deletes_nothing(lab, ending):
    store, new = lab.open_process(), make_new()
    await store.open_response(new)
    await store.finish_response(make_finished(new, ending))
    before = await lab.snapshot()
    assert await store.read_response(new.response_id, "red") is None
    assert list(await store.read_chain(new.response_id, "red")) == []
    assert await store.delete_response(new.response_id, "red") is False
    assert await lab.snapshot() == before


async def test_another_owner_does_not_learn_that_a_response_is_running(lab):
    store, new = lab.open_process(), make_new()
    await store.open_response(new)
    assert await store.delete_response(new.response_id, "red") is False


async def test_another_process_reads_the_same(lab):
    store, other, new = lab.open_process(), lab.open_process(), make_new()
    await store.open_response(new)
    await store.finish_response(make_finished(new))
    assert await other.read_response(new.response_id, OWNER) == await store.read_response(new.response_id, OWNER)
    assert await other.read_chain(new.response_id, OWNER) == await store.read_chain(new.response_id, OWNER)


async def test_an_unknown_id_is_nothing_at_all(lab):
    store, unknown = lab.open_process(), make_new().response_id
    assert await store.read_response(unknown, OWNER) is None
    assert list(await store.read_chain(unknown, OWNER)) == []
    assert await store.delete_response(unknown, OWNER) is False


# -- deleting


async def test_a_running_response_cannot_be_deleted(lab):
    store, new = lab.open_process(), make_new()
    await store.open_response(new)
    before = await lab.snapshot()
    with pytest.raises(Conflict):
        await store.delete_response(new.response_id, OWNER)
    assert await lab.snapshot() == before


@by_ending
async def test_a_deleted_response_is_gone_but_for_its_usage(lab, ending):
    store, new, other = lab.open_process(), make_new(), make_new()
    for each in (new, other):
        await store.open_response(each)
        await store.finish_response(make_finished(each, ending))
    before = await lab.snapshot()
    assert await store.delete_response(new.response_id, OWNER) is True
    after = await lab.snapshot()
    assert set(after.rows) == set(after.events) == {other.response_id}
    assert set(after.steps) == {other.first_step_id}
    assert after.usage == before.usage
    assert await store.read_response(new.response_id, OWNER) is None
    assert await store.delete_response(new.response_id, OWNER) is False


async def test_finishing_a_deleted_response_again_is_lost(lab):
    store, new = lab.open_process(), make_new()
    await store.open_response(new)
    await store.finish_response(make_finished(new))
    await store.delete_response(new.response_id, OWNER)
    with pytest.raises(LeaseLost):
        await store.finish_response(make_finished(new))


# -- store: false


@by_ending
async def test_what_is_not_to_be_stored_is_in_no_table_at_any_time(lab, ending):
    store, new = lab.open_process(), make_new(make_request("a secret", store=False))
    await store.open_response(new)
    opened = await lab.snapshot()
    await store.finish_response(make_finished(new, ending))
    finished = await lab.snapshot()
    for snapshot in (opened, finished):
        row = snapshot.rows[new.response_id]
        assert (row.request, row.response) == (None, None)
        assert [step.result for step in snapshot.steps.values()] == [None]
        assert snapshot.events == {}
        assert "secret" not in repr(snapshot)
        assert "Hello" not in repr(snapshot)
    assert finished.usage[new.first_step_id].input_tokens == USAGE.input_tokens


@by_ending
async def test_what_is_not_stored_cannot_be_found(lab, ending):
    store, new = lab.open_process(), make_new(make_request(store=False))
    await store.open_response(new)
    assert await store.delete_response(new.response_id, OWNER) is False
    await store.finish_response(make_finished(new, ending))
    assert await store.read_response(new.response_id, OWNER) is None
    assert list(await store.read_chain(new.response_id, OWNER)) == []
    assert await store.delete_response(new.response_id, OWNER) is False
    await store.finish_response(make_finished(new, ending))  # the commit's answer was lost: still success


# -- colour


async def test_every_method_of_the_fake_is_a_checkpoint():
    store, new = MemoryLab().open_process(), make_new()
    queued = attrs.evolve(make_new(make_queued_request()), route=attrs.evolve(ROUTE, price=None))
    calls = {
        "read_clock": store.read_clock,
        "enqueue_response": lambda: store.enqueue_response(make_queued(queued, created_at=0.0)),
        "request_cancel": lambda: store.request_cancel(queued.response_id, OWNER),
        "take_over": lambda: store.take_over(queued.response_id, patience_s=0.0),
        "append_events": lambda: store.append_events(queued.response_id, 1, segment(2, 3)),
        "requeue_response": lambda: store.requeue_response(
            RequeuedResponse(row=queued.row, epoch=1, delay_s=0.0, counts=True, ended=(), segments=())
        ),
        "claim_responses": lambda: store.claim_responses(demand()),
        "read_events": lambda: store.read_events(queued.response_id, OWNER, -1),
        "read_told": lambda: store.read_told(queued.response_id),
        "read_claimed_steps": lambda: store.read_claimed_steps(queued.response_id),
        "open_response": lambda: store.open_response(new),
        "find_key_holder": lambda: store.find_key_holder(OWNER, "k"),
        "read_conversation": lambda: store.read_conversation(new.response_id, OWNER),
        "find_turns": lambda: store.find_turns([new.response_id], OWNER),
        "list_responses": lambda: store.list_responses(WantedPage(limit=1), OWNER),
        "read_response": lambda: store.read_response(new.response_id, OWNER),
        "read_chain": lambda: store.read_chain(new.response_id, OWNER),
        "advance_response": lambda: store.advance_response(Progress(row=new.row, epoch=1, ended=(), opened=())),
        "finish_response": lambda: store.finish_response(make_finished(new)),
        "delete_response": lambda: store.delete_response(new.response_id, OWNER),
        "register_process": store.register_process,
        "renew_leases": lambda: store.renew_leases(frozenset()),
        "watch_leases": lambda: store.watch_leases(frozenset()),
        "rescue_expired": store.rescue_expired,
        "stop_process": store.stop_process,
        "ping": store.ping,
    }
    assert calls.keys() == {name for name in dir(Store) if not name.startswith("_")}
    for call in calls.values():
        with trio.testing.assert_checkpoints():
            await call()


# -- any text


@pytest.mark.slow
@given(text=storable_texts(), answer=answers(), ending=endings())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_back_as_it_went_in(conformance_dsn, text, answer, ending):
    async def check(lab):
        store, new = lab.open_process(), make_new(make_request(text))
        await store.open_response(new)
        running = await store.read_response(new.response_id, OWNER)
        finished = make_finished(new, ending, answer=answer)
        await store.finish_response(finished)
        stored = await store.read_response(new.response_id, OWNER)
        assert running is not None
        assert running.request == new.request
        assert stored is not None
        assert stored.body == finished.body
        assert stored.error == finished.error
        assert list(await store.read_chain(new.response_id, OWNER)) == [last_step(finished)]

    async def run():
        with trio.fail_after(3 * CALL_S):
            await check(MemoryLab())
            async with open_postgres_lab(conformance_dsn) as lab:
                await check(lab)

    trio.run(run)
