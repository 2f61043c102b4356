"""Conversations, what is referred to, and lists: the same behaviour of the fake and of PostgreSQL."""

from uuid import UUID, uuid4

import attrs
import pytest
from tests.conformance.conftest import LIMITS
from tests.conformance.queued import claim_one, enqueue, make_queued_request, progress_of
from tests.conformance.responses import (
    ENDINGS,
    OWNER,
    ended_model,
    ended_tool,
    make_finished,
    make_new,
    make_request,
    model_step,
    tool_step,
)

from dwctl_trio.domain.conversation import Gap, item_count
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.items import Message, TextPart
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.turn import ModelTurn
from dwctl_trio.ports import FinishedResponse, NewResponse, Progress, WantedPage
from dwctl_trio.protocol.logprobs import read_logprobs
from dwctl_trio.testing.faulty_store import Store

by_ending = pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: type(ending).__name__)


def asking(text: str = "hello", after: UUID | None = None, *, owner: str = OWNER, is_kept: bool = True) -> NewResponse:
    """A response that says *text*, and goes on with the one *after*."""
    previous = None if after is None else response_id_text(after)
    request = attrs.evolve(make_request(text, store=is_kept), previous_response_id=previous)
    return make_new(request, owner=owner)


async def say(store: Store, text: str = "hello", after: UUID | None = None, **fields: object) -> FinishedResponse:
    """Such a response, ended."""
    new = asking(text, after, **fields)
    await store.open_response(new)
    finished = make_finished(new)
    await store.finish_response(finished)
    return finished


async def talk(store: Store, turns: int) -> list[FinishedResponse]:
    """A conversation, oldest first."""
    said: list[FinishedResponse] = []
    for turn in range(turns):
        said.append(await say(store, f"turn {turn}", said[-1].row.response_id if said else None))
    return said


def ids_of(said: list[FinishedResponse]) -> list[UUID]:
    return [finished.row.response_id for finished in said]


# -- a conversation


async def test_a_conversation_is_read_oldest_first_with_what_was_asked_and_what_came_of_it(lab):
    store = lab.open_process()
    said = await talk(store, 4)
    found = await store.read_conversation(said[-1].row.response_id, OWNER)
    assert found is not None
    assert found.gap is None
    assert [turn.response_id for turn in found.turns] == ids_of(said)
    assert [turn.previous_id for turn in found.turns] == [None, *ids_of(said[:-1])]
    assert {turn.state for turn in found.turns} == {RowState.COMPLETED}
    assert [turn.input for turn in found.turns] == [make_request(f"turn {turn}").input for turn in range(4)]
    assert [list(turn.steps) for turn in found.turns] == [[ended.step for ended in one.ended] for one in said]


async def test_a_conversation_ends_with_the_response_that_is_named(lab):
    store = lab.open_process()
    said = await talk(store, 3)
    found = await store.read_conversation(said[1].row.response_id, OWNER)
    assert found is not None
    assert [turn.response_id for turn in found.turns] == ids_of(said[:2])


@by_ending
async def test_a_response_is_a_turn_however_it_ended(lab, ending):
    store, new = lab.open_process(), asking()
    await store.open_response(new)
    finished = make_finished(new, ending)
    await store.finish_response(finished)
    found = await store.read_conversation(new.response_id, OWNER)
    assert found is not None
    assert [turn.state for turn in found.turns] == [finished.state]


async def test_a_response_under_way_and_one_that_waits_are_turns_that_have_not_ended(lab):
    store, new = lab.open_process(), asking()
    await store.open_response(new)
    waiting = await enqueue(store)
    states = []
    for response_id in (new.response_id, waiting.response_id):
        found = await store.read_conversation(response_id, OWNER)
        assert found is not None
        states.append((found.turns[0].state, len(found.turns[0].steps)))
    assert states == [(RowState.PROCESSING, 1), (RowState.PENDING, 0)]


async def test_a_queued_response_goes_on_with_another_one_too(lab):
    store = lab.open_process()
    first = await say(store)
    asked = attrs.evolve(make_queued_request(), previous_response_id=response_id_text(first.row.response_id))
    new = await enqueue(store, asked, previous_id=first.row.response_id)
    found = await store.read_conversation(new.response_id, OWNER)
    assert found is not None
    assert [turn.response_id for turn in found.turns] == [first.row.response_id, new.response_id]


async def test_nobody_elses_and_nothing_that_is_not_stored_is_a_conversation(lab):
    store = lab.open_process()
    foreign = await say(store, owner="red")
    unstored = await say(store, is_kept=False)
    for response_id in (foreign.row.response_id, unstored.row.response_id, uuid4()):
        assert await store.read_conversation(response_id, OWNER) is None


async def test_a_conversation_with_an_ancestor_that_is_not_there_has_a_gap(lab):
    store = lab.open_process()
    first, second, third = await talk(store, 3)
    assert await store.delete_response(second.row.response_id, OWNER)
    foreign, unstored = await say(store, owner="red"), await say(store, is_kept=False)
    for response_id in (
        third.row.response_id,
        (await say(store, after=foreign.row.response_id)).row.response_id,
        (await say(store, after=unstored.row.response_id)).row.response_id,
        (await say(store, after=uuid4())).row.response_id,
    ):
        found = await store.read_conversation(response_id, OWNER)
        assert found is not None
        assert (found.gap, [turn.response_id for turn in found.turns]) == (Gap.MISSING, [response_id])
    assert await store.read_conversation(first.row.response_id, OWNER) is not None


async def test_a_response_that_is_not_stored_names_no_other(lab):
    store = lab.open_process()
    first = await say(store)
    new = asking(after=first.row.response_id, is_kept=False)
    await store.open_response(new)
    assert (await lab.snapshot()).rows[new.response_id].previous_response_id is None


async def test_steps_of_sub_agents_are_no_part_of_a_conversation(lab):
    store, new = lab.open_process(), asking()
    await store.open_response(new)
    call = tool_step(new, 2)
    await store.advance_response(Progress(row=new.row, epoch=1, ended=(), opened=(call,)))
    inner = model_step(new, 3, parent=call)
    await store.advance_response(Progress(row=new.row, epoch=1, ended=(), opened=(inner,)))
    finished = make_finished(new)
    ended = (ended_model(inner, "inside"), ended_tool(call, "outside"), *finished.ended)
    await store.finish_response(attrs.evolve(finished, ended=ended))
    found = await store.read_conversation(new.response_id, OWNER)
    assert found is not None
    assert [step.sequence for step in found.turns[0].steps] == [1, 2]
    assert await store.find_turns([inner.id], OWNER) is None


async def test_what_was_asked_comes_with_a_response_that_has_several_steps(lab):
    store = lab.open_process()
    asked = make_queued_request("a question")
    await enqueue(store, asked)
    claimed = await claim_one(store)
    for sequence in (1, 2, 3):
        await store.advance_response(progress_of(claimed, opened=(model_step(claimed.new, sequence),)))
    found = await store.read_conversation(claimed.new.response_id, OWNER)
    assert found is not None
    assert (len(found.turns), found.turns[0].input, len(found.turns[0].steps)) == (1, asked.input, 3)


@pytest.mark.parametrize("bound", [1, 2, 3, 4, 5])
async def test_a_conversation_is_read_as_far_as_its_turns_are_bounded(lab, bound):
    store = lab.open_process(attrs.evolve(LIMITS, conversation_turns=bound))
    said = await talk(store, 4)
    found = await store.read_conversation(said[-1].row.response_id, OWNER)
    assert found is not None
    assert [turn.response_id for turn in found.turns] == ids_of(said[-bound:])
    assert found.gap == (Gap.TOO_MANY_TURNS if bound < 4 else None)


async def test_a_conversation_is_read_as_far_as_its_bytes_are_bounded(lab):
    store = lab.open_process(attrs.evolve(LIMITS, conversation_bytes=3000))
    said: list[FinishedResponse] = []
    for _ in range(4):
        said.append(await say(store, "x" * 600, said[-1].row.response_id if said else None))
    found = await store.read_conversation(said[-1].row.response_id, OWNER)
    assert found is not None
    assert found.gap is Gap.TOO_LARGE
    count = len(found.turns)
    assert 1 <= count < 4
    assert count * 1200 < found.stored_bytes <= 3000, "600 characters that were asked, twice that with JSON and answer"
    assert [turn.response_id for turn in found.turns] == ids_of(said[-count:])


@pytest.mark.parametrize("bound", [1, 2, 3, 4, 7, 8])
async def test_what_is_read_is_bounded_by_its_items_too(lab, bound):
    store = lab.open_process(attrs.evolve(LIMITS, conversation_items=bound))
    said = await talk(store, 4)
    found = await store.read_conversation(said[-1].row.response_id, OWNER)
    assert found is not None
    assert [item_count(turn) for turn in found.turns] == [2] * max(1, bound // 2)
    assert [turn.response_id for turn in found.turns] == ids_of(said)[-len(found.turns) :]
    assert found.gap == (Gap.TOO_MANY_ITEMS if bound < 8 else None)
    referred = await store.find_turns(ids_of(said), OWNER)
    assert referred is not None
    assert (len(referred.turns), referred.gap) == (len(found.turns), found.gap)


async def test_a_response_that_is_too_large_by_itself_is_still_read(lab):
    store = lab.open_process(attrs.evolve(LIMITS, conversation_bytes=1024))
    said = await say(store, "x" * 2000)
    for found in (
        await store.read_conversation(said.row.response_id, OWNER),
        await store.find_turns([said.row.response_id], OWNER),
    ):
        assert found is not None
        assert (found.gap, found.turns[0].input) == (Gap.TOO_LARGE, make_request("x" * 2000).input)


async def say_with_logprobs(store: Store, after: UUID | None) -> FinishedResponse:
    """A response whose text has log probabilities of some 40 kB."""
    new = asking(after=after)
    await store.open_response(new)
    finished = make_finished(new)
    (ended,) = finished.ended
    turn = ended.step.result
    assert isinstance(turn, ModelTurn)
    token = {"token": 'so,"token_logprobs":[', "logprob": -0.5, "bytes": None}
    logprobs = tuple(read_logprobs({"content": [token | {"top_logprobs": [token] * 20}] * 20}))
    (message,) = turn.items
    assert isinstance(message, Message)
    said = attrs.evolve(message, content=(TextPart(text='hi,"token_logprobs":[', logprobs=logprobs),))
    step = attrs.evolve(ended.step, result=attrs.evolve(turn, items=(said,)))
    finished = attrs.evolve(finished, ended=(attrs.evolve(ended, step=step),))
    await store.finish_response(finished)
    return finished


async def test_log_probabilities_are_kept_but_are_no_part_of_a_conversation(lab):
    store = lab.open_process(attrs.evolve(LIMITS, conversation_bytes=8192))
    said: list[FinishedResponse] = []
    for _ in range(4):
        said.append(await say_with_logprobs(store, said[-1].row.response_id if said else None))
    conversation = await store.read_conversation(said[-1].row.response_id, OWNER)
    found = await store.find_turns(ids_of(said), OWNER)
    for read in (conversation, found):
        assert read is not None
        assert (read.gap, len(read.turns)) == (None, 4)
        assert 4 * 40_000 / 64 < read.stored_bytes <= 8192
        for turn in read.turns:
            (step,) = turn.steps
            assert isinstance(step.result, ModelTurn)
            assert [item.content for item in step.result.items] == [(TextPart(text='hi,"token_logprobs":['),)]
    (kept,) = await store.read_chain(said[0].row.response_id, OWNER)
    assert kept == said[0].ended[0].step


# -- what is referred to


async def test_responses_are_found_by_themselves_and_by_their_steps_each_once(lab):
    store = lab.open_process()
    first, second, _ = await talk(store, 3)
    (step,) = first.ended
    named = [first.row.response_id, step.step.id, second.ended[0].step.id, uuid4()]
    found = await store.find_turns(named, OWNER)
    assert found is not None
    assert {turn.response_id for turn in found.turns} == {first.row.response_id, second.row.response_id}
    assert len(found.turns) == 2
    assert {turn.response_id: list(turn.steps) for turn in found.turns}[first.row.response_id] == [step.step]


async def test_nobody_elses_and_nothing_that_is_not_stored_is_found(lab):
    store = lab.open_process()
    foreign, unstored = await say(store, owner="red"), await say(store, is_kept=False)
    named = [one for finished in (foreign, unstored) for one in (finished.row.response_id, finished.ended[0].step.id)]
    assert await store.find_turns([*named, uuid4()], OWNER) is None
    assert await store.find_turns([], OWNER) is None


async def test_what_is_found_is_bounded(lab):
    store = lab.open_process(attrs.evolve(LIMITS, conversation_bytes=3000))
    said = [await say(store, "x" * 600) for _ in range(4)]
    found = await store.find_turns(ids_of(said), OWNER)
    assert found is not None
    assert found.gap is Gap.TOO_LARGE
    assert 1 <= len(found.turns) < 4
    assert {turn.response_id for turn in found.turns} < set(ids_of(said))


# -- lists


async def listed(store: Store, limit: int, *, newest_first: bool) -> list[UUID]:
    """All of the owner's responses, page by page."""
    found: list[UUID] = []
    after = None
    while True:
        page = await store.list_responses(WantedPage(limit=limit, after=after, newest_first=newest_first), OWNER)
        assert page is not None
        assert len(page.responses) <= limit
        found += [stored.response_id for stored in page.responses]
        if not page.has_more:
            return found
        after = found[-1]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_an_owners_responses_are_listed_in_the_order_of_their_creation(lab, limit):
    store = lab.open_process()
    said = [await say(store) for _ in range(3)]
    await lab.advance_clock(10)
    said.append(await say(store))
    await say(store, owner="red")
    await say(store, is_kept=False)
    new, waiting = asking(), None
    await lab.advance_clock(10)
    await store.open_response(new)
    await lab.advance_clock(10)
    waiting = await enqueue(store)
    newest = await listed(store, limit, newest_first=True)
    assert newest[:3] == [waiting.response_id, new.response_id, said[3].row.response_id]
    assert set(newest[3:]) == set(ids_of(said[:3]))
    assert await listed(store, limit, newest_first=False) == newest[::-1]


async def test_a_list_shows_what_each_response_shows_by_itself(lab):
    store = lab.open_process()
    await say(store)
    await store.open_response(asking("under way"))
    page = await store.list_responses(WantedPage(limit=10), OWNER)
    assert page is not None
    assert len(page.responses) == 2
    for stored in page.responses:
        assert stored == await store.read_response(stored.response_id, OWNER)


async def test_there_is_nothing_behind_the_last_one_and_no_list_behind_one_that_is_not_there(lab):
    store = lab.open_process()
    last, foreign = await say(store), await say(store, owner="red")
    page = await store.list_responses(WantedPage(limit=10, after=last.row.response_id), OWNER)
    assert page is not None
    assert (page.responses, page.has_more) == ((), False)
    for unknown in (foreign.row.response_id, uuid4()):
        assert await store.list_responses(WantedPage(limit=10, after=unknown), OWNER) is None
    assert await store.list_responses(WantedPage(limit=10), "nobody") is not None


@pytest.mark.parametrize("newest_first", [True, False])
async def test_a_page_ends_early_where_it_would_be_too_large_but_never_without_any(lab, newest_first):
    whole = lab.open_process()
    said = [await say(whole, "x" * 2000) for _ in range(4)]
    size = len(said[0].body)
    for bytes_max, count in ((1024, 1), (size + 10, 1), (2 * size + 10, 2), (4 * size + 10, 4)):
        store = lab.open_process(attrs.evolve(LIMITS, list_bytes=max(1024, bytes_max)))
        page = await store.list_responses(WantedPage(limit=10, newest_first=newest_first), OWNER)
        assert page is not None
        assert (len(page.responses), page.has_more) == (count, count < 4)
        assert set(await listed(store, 10, newest_first=newest_first)) == set(ids_of(said))
