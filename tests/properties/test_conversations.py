"""A conversation that is named is the conversation that is sent: whatever was said, the model is shown the same."""

from typing import Any
from uuid import UUID

import attrs
import msgspec
import pytest
from hypothesis import example, given

from dwctl_trio.domain.conversation import (
    Conversation,
    Turn,
    answer_of,
    as_input,
    history_of,
    input_items,
    items_by_id,
)
from dwctl_trio.domain.errors import DwctlError
from dwctl_trio.domain.ids import item_id, parse_item_id
from dwctl_trio.domain.items import CustomToolCall, FunctionCall, ItemStatus, Message, RefusalPart, TextPart
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.request import (
    CustomToolCallOutput,
    FunctionCallOutput,
    InputItem,
    InputMessage,
    InputPart,
    PartKind,
    Role,
)
from dwctl_trio.domain.response import Completed, Failed, Incomplete
from dwctl_trio.domain.transitions import is_superseded
from dwctl_trio.protocol import json
from dwctl_trio.protocol.chat_history import render_history
from dwctl_trio.protocol.fields import Fields
from dwctl_trio.protocol.item_list import encode_item_list
from dwctl_trio.protocol.output_items import render_item
from dwctl_trio.protocol.request_input import check_calls, parse_input, render_input
from dwctl_trio.testing.domain_strategies import runs
from dwctl_trio.testing.example_runs import (
    AGENTS,
    CANCELLED,
    EVERY_KIND,
    HANDED_OVER,
    MIXED,
    NEVER_RAN,
    SIBLINGS,
    TOOLS_CANCELLED,
    TWO_TURNS,
)
from dwctl_trio.testing.played_runs import Run

STATES = {Completed: RowState.COMPLETED, Incomplete: RowState.COMPLETED, Failed: RowState.FAILED}
NEXT_ID = UUID("0193a4d6-0000-4000-8000-000000000000")
NEXT = InputMessage(role=Role.USER, content=(InputPart(kind=PartKind.INPUT_TEXT, text="and now?"),))
EXAMPLES = (AGENTS, CANCELLED, EVERY_KIND, HANDED_OVER, MIXED, NEVER_RAN, SIBLINGS, TOOLS_CANCELLED, TWO_TURNS)


def turn_of(run: Run, *, previous_id: UUID | None = None) -> Turn:
    """*run* as it is stored."""
    return Turn(
        response_id=run.opening.id,
        previous_id=previous_id,
        state=STATES.get(type(run.ending), RowState.CANCELED),
        input=run.opening.request.input,
        steps=[step for step in run.chain if step.parent_step_id is None],
    )


def outputs_for(items: tuple[InputItem, ...]) -> tuple[InputItem, ...]:
    """What the client's tools gave for the calls among *items*."""
    made: dict[str, InputItem] = {}
    for item in items:
        if isinstance(item, FunctionCall) and item.status is not ItemStatus.INCOMPLETE:
            made[item.call_id] = FunctionCallOutput(call_id=item.call_id, output="found")
        elif isinstance(item, CustomToolCall) and item.status is not ItemStatus.INCOMPLETE:
            made[item.call_id] = CustomToolCallOutput(call_id=item.call_id, output="found")
    return tuple(made.values())


def prompt(items: tuple[InputItem, ...]) -> list[dict[str, Any]]:
    """The messages of *items* without the ids of calls; an output follows the call that it answers."""
    messages = render_history(items, (), developer_role=True)
    for message in messages:
        for call in message.get("tool_calls", ()):
            call["id"] = "a call"
        if message["role"] == "tool":
            message["tool_call_id"] = "a call"
    return messages


def examples(test: Any) -> Any:
    for run in EXAMPLES:
        test = example(run=run)(test)
    return test


@pytest.mark.slow
@given(run=runs())
@examples
def test_a_named_conversation_is_shown_as_the_same_one_that_is_sent(run: Run) -> None:
    turn = turn_of(run)
    if turn.state is not RowState.COMPLETED or any(is_superseded(step) for step in run.chain):
        return
    new = (*outputs_for(answer_of(turn)), NEXT)
    rendered = [*render_input(run.opening.request.input), *map(render_item, run.response.output), *render_input(new)]
    sent = parse_input(Fields(msgspec.json.decode(json.encode({"input": rendered})), ""))
    named = (*history_of(Conversation(turns=(turn,), stored_bytes=0)), *new)

    assert prompt(named) == prompt(sent)


@pytest.mark.slow
@given(run=runs())
@examples
def test_every_response_can_be_gone_on_with_and_nothing_half_is_shown_of_one_that_broke_off(run: Run) -> None:
    turn = turn_of(run)
    answer = answer_of(turn)

    check_calls([*(item for item in answer), *outputs_for(answer), NEXT])
    superseded = {step.id for step in run.chain if is_superseded(step)}
    assert {parse_item_id(item.id or "") for item in answer}.isdisjoint(superseded)
    if turn.state is not RowState.COMPLETED:
        finished = {item.id for item in run.response.output if item.status in {ItemStatus.COMPLETED, ItemStatus.FAILED}}
        assert {item.id for item in answer} <= finished
        assert outputs_for(answer) == (), "no call has to be answered"


@pytest.mark.slow
@given(run=runs())
@examples
def test_every_item_that_is_shown_can_be_referred_to(run: Run) -> None:
    turn = turn_of(run)
    brought = (*run.opening.request.input, *answer_of(turn), *answer_of(turn), NEXT)
    second = Turn(response_id=NEXT_ID, previous_id=turn.response_id, state=turn.state, input=brought, steps=())
    known = items_by_id(turn) | items_by_id(second)

    for item in run.response.output:
        assert known[item.id] == () or [one.id for one in known[item.id]] == [item.id]
        assert parse_item_id(item.id) in {step.id for step in turn.steps}
    shown = input_items(Conversation(turns=(turn, second), stored_bytes=0))
    left = input_items(Conversation(turns=(second,), stored_bytes=0))
    for item in (*input_items(Conversation(turns=(turn,), stored_bytes=0)), *shown, *left):
        assert known[item.id or ""] == (item,)
    assert len({item.id for item in shown}) == len(shown)
    own = [item for item in shown if parse_item_id(item.id or "") == NEXT_ID]
    assert [item for item in left if item in own] == own, "what is before it may be gone"


@pytest.mark.parametrize("state", [RowState.FAILED, RowState.CANCELED])
def test_of_a_turn_that_broke_off_the_same_is_referred_to_and_shown(state: RowState) -> None:
    turn = attrs.evolve(turn_of(MIXED), state=state)

    known, shown = items_by_id(turn), answer_of(turn)

    assert any(isinstance(item, FunctionCall | CustomToolCall) for item in shown)
    assert [known[item.id or ""] for item in shown] == [(item,) for item in shown]


def test_what_an_answer_cites_is_shown_where_it_is_gone_on_with() -> None:
    citations = [{"type": "file_path", "file_id": name, "index": 0} for name in "ab"]
    parts = (
        TextPart(text="x", annotations=tuple(json.encode(one) for one in citations)),
        TextPart(text="y"),
        RefusalPart(refusal="z"),
    )
    message = Message(id="msg_1", status=ItemStatus.COMPLETED, content=parts)

    (shown,) = msgspec.json.decode(encode_item_list((as_input(message),), has_more=False))["data"]

    assert shown == msgspec.json.decode(json.encode(render_item(message)))
    assert [part.get("annotations") for part in shown["content"]] == [citations, [], None]


def test_items_without_an_id_and_items_that_were_there_before_get_one_of_their_own() -> None:
    message = InputMessage(role=Role.USER, content=())
    mine = attrs.evolve(message, id="msg_mine")
    first, second = UUID(int=1), UUID(int=2)
    turns = (
        Turn(response_id=first, previous_id=None, state=RowState.COMPLETED, input=(message, mine, mine), steps=()),
        Turn(response_id=second, previous_id=first, state=RowState.COMPLETED, input=(mine, message), steps=()),
    )

    names = [item.id for item in input_items(Conversation(turns=turns, stored_bytes=0))]

    assert names == [
        *(item_id("msg", first, 0), "msg_mine", item_id("msg", first, 2)),
        *(item_id("msg", second, 0), item_id("msg", second, 1)),
    ]
    assert [parse_item_id(name or "") for name in names] == [first, None, first, second, second]


def test_a_turn_that_another_release_wrote_is_an_error_and_no_gap() -> None:
    turn = Turn(response_id=UUID(int=1), previous_id=None, state=RowState.COMPLETED, input=None, steps=())
    for read in (history_of, input_items):
        with pytest.raises(DwctlError, match="another one wrote it"):
            read(Conversation(turns=(turn,), stored_bytes=0))
    with pytest.raises(DwctlError, match="another one wrote it"):
        items_by_id(turn)
