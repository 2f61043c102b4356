"""Queued responses that are not to be stored: kept while they live, forgotten by their end (I27); both stores."""

import attrs
import pytest
from tests.conformance.conftest import LIMITS, Lab, Snapshot
from tests.conformance.queued import claim_one, enqueue, make_queued_request, progress_of, requeued_of, segment
from tests.conformance.responses import (
    ENDINGS,
    OWNER,
    TOOL_ERROR,
    ended_model,
    ended_tool,
    make_finished,
    model_step,
    tool_step,
)
from tests.conformance.test_steps import TOOLS

from dwctl_trio.ports import ClaimedResponse
from dwctl_trio.protocol import json
from dwctl_trio.protocol.request_tools import render_tools
from dwctl_trio.testing.faulty_store import Store

SECRET = "secret"
by_ending = pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: type(ending).__name__)


@pytest.fixture
def store(lab: Lab) -> Store:
    return lab.open_process()


def said(snapshot: Snapshot) -> str:
    """All but the events, as one text."""
    return repr((snapshot.rows, snapshot.steps, snapshot.usage))


async def work_on(store: Store) -> ClaimedResponse:
    """A response whose model has called three tools, of which one has answered and one has failed."""
    await enqueue(store, make_queued_request("a secret question", store=False), tools=json.encode(render_tools(TOOLS)))
    claimed = await claim_one(store)
    first = model_step(claimed.new, 1)
    tools = tuple(tool_step(claimed.new, sequence, "secret arguments") for sequence in (2, 3, 4))
    await store.advance_response(progress_of(claimed, opened=(first,)))
    await store.advance_response(progress_of(claimed, ended_model(first, "a secret thought"), opened=tools))
    await store.append_events(claimed.new.response_id, claimed.epoch, segment(2, 5))
    ended = (ended_tool(tools[0], "a secret answer"), ended_tool(tools[1], None))
    await store.advance_response(progress_of(claimed, *ended))
    return claimed


async def test_a_live_one_is_kept_whole_so_that_it_can_be_resumed(lab, store):
    claimed = await work_on(store)
    await lab.advance_clock(LIMITS.lease_s + 30)
    await store.rescue_expired()
    again = await claim_one(lab.open_process())
    assert again.new.request == claimed.new.request
    assert again.new.tools == TOOLS
    assert again.steps[0] == ended_model(model_step(claimed.new, 1), "a secret thought").step
    assert again.steps[1] == ended_tool(tool_step(claimed.new, 2, "secret arguments"), "a secret answer").step
    assert again.steps[2].error == TOOL_ERROR
    assert again.steps[3] == tool_step(claimed.new, 4, "secret arguments")
    assert again.told.endswith(segment(2, 5).frames)


async def test_one_that_is_handed_back_is_kept_whole(lab, store):
    claimed = await work_on(store)
    third = ended_tool(tool_step(claimed.new, 4, "secret arguments"), "another secret answer")
    await store.requeue_response(requeued_of(claimed, third))
    assert (await claim_one(store)).steps[3] == third.step


@by_ending
async def test_its_end_forgets_what_was_said_in_row_and_steps(lab, store, ending):
    claimed = await work_on(store)
    assert SECRET in said(await lab.snapshot())
    last = ended_tool(tool_step(claimed.new, 4, "secret arguments"), "the last secret")
    finished = attrs.evolve(make_finished(claimed.new, ending), ended=(last,), segments=(segment(6, 9),))
    finished = attrs.evolve(finished, body=b'{"output":"a secret answer"}')
    await store.finish_response(finished)
    snapshot = await lab.snapshot()
    row = snapshot.rows[claimed.new.response_id]
    assert SECRET not in said(snapshot)
    assert (row.request, row.tools, row.response, row.state) == (None, None, None, finished.state)
    assert {(step.request, step.result) for step in snapshot.steps.values()} == {(None, None)}
    failed = [step.error for step in snapshot.steps.values() if step.error is not None]
    assert failed == [attrs.evolve(TOOL_ERROR, message="")], "that it failed is kept, why in words is not"
    assert [step.name for step in snapshot.steps.values()].count("search") == 3
    assert len(snapshot.usage) == 1


async def test_its_events_outlive_it_for_the_client_that_waits(lab, store):
    claimed = await work_on(store)
    finished = attrs.evolve(make_finished(claimed.new), segments=(segment(6, 9),))
    await store.finish_response(finished)
    page = await store.read_events(claimed.new.response_id, OWNER, 5)
    assert page is not None
    assert (page.is_stored, page.segments) == (False, (segment(6, 9),))
    assert await store.read_response(claimed.new.response_id, OWNER) is None
    assert list(await store.read_chain(claimed.new.response_id, OWNER)) == []


async def test_its_end_is_written_once_though_its_answer_was_lost(lab, store):
    claimed = await work_on(store)
    finished = attrs.evolve(make_finished(claimed.new), segments=(segment(6, 9),))
    await store.finish_response(finished)
    before = await lab.snapshot()
    await store.finish_response(finished)
    assert await lab.snapshot() == before


async def test_a_step_whose_end_is_written_a_second_time_is_forgotten_all_the_same(lab, store):
    claimed = await work_on(store)
    twice = ended_tool(tool_step(claimed.new, 2, "secret arguments"), "a secret answer")
    await store.finish_response(attrs.evolve(make_finished(claimed.new), ended=(twice,), segments=()))
    assert SECRET not in said(await lab.snapshot())


@by_ending
async def test_a_stored_one_forgets_nothing(lab, store, ending):
    await enqueue(store, make_queued_request("a question"))
    claimed = await claim_one(store)
    call = tool_step(claimed.new, 2, "arguments")
    first = ended_model(model_step(claimed.new, 1), "words")
    await store.advance_response(progress_of(claimed, opened=(model_step(claimed.new, 1),)))
    await store.advance_response(progress_of(claimed, first, opened=(call,)))
    before = (await lab.snapshot()).rows[claimed.new.response_id].request
    finished = attrs.evolve(make_finished(claimed.new, ending), ended=(ended_tool(call, None),))
    await store.finish_response(finished)
    chain = await store.read_chain(claimed.new.response_id, OWNER)
    assert list(chain) == [first.step, ended_tool(call, None).step]
    assert (await lab.snapshot()).rows[claimed.new.response_id].request == before
