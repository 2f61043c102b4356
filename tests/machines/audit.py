"""What must hold of a response, however often its process died: read from the rows, the upstream and the tools."""

from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec
from tests.machines.world import HTTP_TOOLS, Life, Played, is_open

from dwctl_trio.domain.assembly import assemble, chain_items, fold
from dwctl_trio.domain.event_grammar import check_stream
from dwctl_trio.domain.events import OutputItemDone, SubAgentEvent
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.items import ItemStatus, McpCall, output_text
from dwctl_trio.domain.lifecycle import TERMINAL_STATES, RowState
from dwctl_trio.domain.response import (
    Completed,
    Ending,
    ErrorType,
    Failed,
    Incomplete,
    Response,
    ResponseStatus,
)
from dwctl_trio.domain.steps import ModelCall, Step, StepState, ToolCall, ToolOutput
from dwctl_trio.domain.transitions import Finish, is_superseded, next_action
from dwctl_trio.domain.turn import ModelTurn
from dwctl_trio.protocol.json import encode
from dwctl_trio.protocol.response_object import render_response
from dwctl_trio.testing.faulty_store import Fault
from dwctl_trio.testing.wire import parse_response, read_stream

_SAMPLING = ("model", "temperature", "top_p", "user", "stream", "stream_options")
_HANGS = {Fault.HANG_BEFORE, Fault.HANG_AFTER}


def check_played(played: Played) -> str:
    """How the response ended; ``no row`` if it was never opened.

    Raises:
        AssertionError: Something does not hold.
    """
    if played.row is None:
        assert not played.steps
        assert not played.tool_calls
        return "no row"
    assert played.row.state in TERMINAL_STATES
    _check_rows(played)
    _check_firing(played)
    _check_interrupted(played)
    _check_prompts(played)
    _check_bounds(played)
    return _check_told(played)


def faults_of(played: Played) -> set[Fault]:
    """Which faults happened."""
    return {fault for life in played.lives for fault in life.faults}


def _check_rows(played: Played) -> None:
    places = {step.id: step.sequence for step in played.steps}
    assert not [step for step in played.steps if is_open(step)], "no step is left open"
    numbers = sorted(places.values())
    if faults_of(played) & _HANGS:  # a step may be lost with the write that was to open it
        assert len(set(numbers)) == len(numbers)
    else:
        assert numbers == list(range(1, len(numbers) + 1))
    for step in played.steps:
        assert step.parent_step_id is None or places[step.parent_step_id] < step.sequence, "parents come first"
    fired = {step_id for life in played.lives for step_id in life.fired}
    for step in played.steps:  # a call that was cancelled before it was made is none
        was_made = step.call_id is None and (step.id in fired or step.state is not StepState.CANCELED)
        assert (step.id in played.metered) is was_made, "every model call is recorded"
    assert played.metered <= set(places)


def _check_firing(played: Played) -> None:
    """A step is stored before it is fired, is fired once in a process, and never again once it has ended."""
    fired: Counter[UUID] = Counter()
    for life in played.lives:
        assert len(set(life.fired)) == len(life.fired)
        for step_id in life.fired:
            assert step_id in life.steps_after or step_id == played.new.first_step_id, "stored before it is fired"
            before = life.steps_before.get(step_id)
            assert before is None or is_open(before), "what has ended is never fired again"
        fired.update(life.fired)
    assert set(fired) <= {step.id for step in played.steps}
    sent = {step_id: len(bodies) for step_id, bodies in played.bodies.items()}
    calls = dict(played.tool_calls)
    for step in played.chain:
        made = sent.pop(step.id, 0) if isinstance(step.descriptor, ModelCall) else calls.pop(_key(played, step.id), 0)
        assert made <= fired[step.id]
        if isinstance(step.descriptor, ModelCall) or not _is_idempotent(step):
            assert fired[step.id] <= 1
        if step.state is StepState.COMPLETED and not _is_agent(played, step):
            assert made >= 1
            assert any(
                step.id in life.fired and (not is_open(life.steps_after[step.id]) or step.id in _outcomes(played, life))
                for life in played.lives
            ), "it ended in a process that had fired it, or that told how it ended"
    assert not sent, "the upstream hears of no other step"
    assert not calls, "the tools hear of no other step"


def _check_interrupted(played: Played) -> None:
    """What a crash interrupted is abandoned or fired once more, as its kind is."""
    ended = {step.id: step for step in played.chain}
    for number, life in enumerate(played.lives[:-1]):
        for step_id in life.fired:
            if not is_open(life.steps_after[step_id]):
                continue
            step, later = ended[step_id], played.lives[number + 1 :]
            if step_id in _outcomes(played, life):
                assert not any(step_id in other.fired for other in later), "its outcome was told"
            elif isinstance(step.descriptor, ToolCall) and _is_idempotent(step):
                assert step.state is not StepState.COMPLETED or any(step_id in other.fired for other in later)
                assert not _is_abandoned(step)
            else:
                assert step.error is not None
                assert step.error.type is ErrorType.STEP_ABANDONED


def _outcomes(played: Played, life: Life) -> set[UUID]:
    """The tool calls of which it was told, when *life* ended, how they had ended."""
    events = [numbered.event for numbered in read_stream(life.log_after, played.new.request).events]
    of_items = [event.event if isinstance(event, SubAgentEvent) else event for event in events]
    told = {
        event.item.id
        for event in of_items
        if isinstance(event, OutputItemDone) and event.item.status in {ItemStatus.COMPLETED, ItemStatus.FAILED}
    }
    loops: dict[UUID | None, list[Step]] = {}
    for step in played.chain:
        loops.setdefault(step.parent_step_id, []).append(step)
    return {
        step.id for chain in loops.values() for item, step in chain_items(chain) if step is not None and item.id in told
    }


def _check_bounds(played: Played) -> None:
    limits, request = played.plan.limits, played.new.request
    calls = [step for step in played.chain if isinstance(step.descriptor, ToolCall)]
    assert len(played.chain) <= limits.steps
    assert len(calls) <= limits.tool_calls
    assert request.max_tool_calls is None or len(calls) <= request.max_tool_calls
    by_id = {step.id: step for step in played.chain}
    for parent_id, chain in _loops(played).items():
        asked = [step for step in chain if isinstance(step.descriptor, ModelCall) and not is_superseded(step)]
        assert len(asked) <= limits.turns
        depth, above = 0, parent_id
        while above is not None:
            depth, above = depth + 1, by_id[above].parent_step_id
        assert depth <= limits.depth


def _check_prompts(played: Played) -> None:
    """Every turn is told all of the earlier ones, each call with its one answer, and is asked in the same way."""
    request = played.new.request
    for parent_id, chain in _loops(played).items():
        expected: list[dict[str, Any]] = []
        asked: list[Any] = []
        for place, step in enumerate(chain):
            if not isinstance(step.descriptor, ModelCall):
                continue
            for body in played.bodies.get(step.id, ()):
                _check_conversation(body["messages"], expected, is_agent=parent_id is not None)
                asked.append({name: body.get(name) for name in _SAMPLING})
                if request.max_tool_calls is None:
                    asked[-1] |= {name: body.get(name) for name in ("tools", "parallel_tool_calls")}
                assert body.get("max_tokens", 1) >= 1
            if isinstance(step.result, ModelTurn) and not is_superseded(step):
                expected += _messages_of(step.result, chain[place + 1 :])
        assert all(one == asked[0] for one in asked), "every turn is asked in the same way"
        if asked and parent_id is None:
            assert asked[0]["temperature"] == request.temperature
            assert asked[0]["user"] == request.user
            assert request.max_tool_calls is not None or played.plan.tools == tuple(
                tool["function"]["name"] for tool in asked[0]["tools"] or ()
            )


def _check_conversation(messages: Sequence[Any], expected: Sequence[Any], *, is_agent: bool) -> None:
    opening = ["system", "user"] if is_agent else ["user"]
    assert [message["role"] for message in messages[: len(opening)]] == opening
    said = messages[len(opening) :]
    assert len(said) == len(expected), (said, expected)
    for message, wanted in zip(said, expected, strict=True):
        assert message["role"] == wanted["role"]
        if message["role"] == "tool":
            assert message["tool_call_id"] == wanted["tool_call_id"]
            assert wanted["content"] in message["content"]
            continue
        assert (message["content"] or "") == wanted["content"]
        calls = message.get("tool_calls", [])
        assert [(call["id"], call["function"]["name"]) for call in calls] == wanted["calls"]
        assert all(isinstance(msgspec.json.decode(call["function"]["arguments"]), dict) for call in calls)


def _messages_of(turn: ModelTurn, following: Sequence[Step]) -> list[dict[str, Any]]:
    """What later turns must be told of *turn*."""
    calls = [item for item in turn.items if isinstance(item, McpCall)]
    assert len({call.call_id for call in calls}) == len(calls)
    messages: list[dict[str, Any]] = [
        {
            "role": "assistant",
            "content": output_text(turn.items),
            "calls": [(call.call_id, call.name) for call in calls],
        }
    ]
    for call in calls:
        step = next((step for step in following if _answers(step, call)), None)
        content = ""
        if step is not None and isinstance(step.result, ToolOutput):
            content = step.result.output
        elif step is not None and step.error is not None:
            content = msgspec.json.encode(step.error.message).decode().strip('"')
        messages.append({"role": "tool", "tool_call_id": call.call_id, "content": content})
    return messages if calls or messages[0]["content"] else []


def _answers(step: Step, call: McpCall) -> bool:
    return isinstance(step.descriptor, ToolCall) and step.descriptor.call_id == call.call_id


def _check_told(played: Played) -> str:
    """The log, the row, the chain and GET say the same; returns how it ended."""
    row, request = played.row, played.new.request
    assert row is not None
    assert row.response is not None
    assert played.shown is not None
    assert played.shown.body == row.response
    body = msgspec.json.decode(row.response)
    stored = parse_response(body, request)
    ending = _ending_of(stored, row.error)
    assert row.state is (RowState.FAILED if isinstance(ending, Failed) else RowState.COMPLETED)
    opening = Response(
        id=stored.id,
        created_at=stored.created_at,
        request=request,
        status=ResponseStatus.IN_PROGRESS,
        tools=played.new.tools,
    )
    assembled = assemble(opening, played.chain, ending, ended_at=stored.completed_at or 0)
    assert msgspec.json.decode(encode(render_response(assembled))) == body, "the chain amounts to it"
    is_late = isinstance(ending, Failed) and ending.error.type is ErrorType.DEADLINE_EXCEEDED
    assert not is_late or "background_deadline_s" in played.plan.bounds
    is_given_up = isinstance(ending, Failed) and ending.error.type is ErrorType.STEP_ABANDONED
    assert not is_given_up or {"queue_attempts", "queue_reclaims"} & set(played.plan.bounds)
    if not is_late and not is_given_up and not faults_of(played) & _HANGS:
        top = [step for step in played.chain if step.parent_step_id is None]
        assert next_action(top, request=request, limits=played.plan.limits, tree=played.chain) == Finish(ending)

    stream = read_stream(played.log, request)
    violation = check_stream(stream.events)
    assert violation is None, violation
    events = [numbered.event for numbered in stream.events]
    assert fold(events) == stored
    assert stream.events[-1].sequence_number == row.last_sequence
    for life in played.lives:
        assert played.log.startswith(life.log_after), "what was stored stays as it is"
    return stored.status.value


def _ending_of(stored: Response, error: Any) -> Ending:
    match stored.status:
        case ResponseStatus.COMPLETED:
            return Completed()
        case ResponseStatus.INCOMPLETE:
            assert stored.incomplete_reason is not None
            return Incomplete(reason=stored.incomplete_reason)
        case ResponseStatus.FAILED:
            return Failed(error=error)
        case _:
            raise AssertionError(f"nobody cancelled it, but it is {stored.status}")


def _loops(played: Played) -> dict[UUID | None, list[Step]]:
    loops: dict[UUID | None, list[Step]] = {}
    for step in played.chain:
        loops.setdefault(step.parent_step_id, []).append(step)
    return loops


def _key(played: Played, step_id: UUID) -> str:
    return f"{response_id_text(played.new.response_id)}-{step_id}"


def _is_idempotent(step: Step) -> bool:
    return isinstance(step.descriptor, ToolCall) and HTTP_TOOLS.get(step.descriptor.name, False)


def _is_agent(played: Played, step: Step) -> bool:
    return isinstance(step.descriptor, ToolCall) and step.descriptor.name in played.plan.agents


def _is_abandoned(step: Step) -> bool:
    return step.error is not None and step.error.type is ErrorType.STEP_ABANDONED
