"""Hypothesis strategies for values of the domain: fragments, turns, chains, requests, and whole runs with their events.

Rule 1: what is drawn could have happened; a test of the impossible spoils a value by itself.
Rule 2: sizes are small (a run has at most four turns), so that exhaustive tests over one value stay cheap.

A ``Run`` is made by the code under test (``TurnOutput``, ``assemble``); ``event_grammar`` and ``fold`` check it.
"""

from collections.abc import Sequence
from typing import TypeAlias, TypeVar
from uuid import UUID

import attrs
from hypothesis import strategies as st

from dwctl_trio.domain.assembly import assemble, terminal_event
from dwctl_trio.domain.events import Event, ResponseCreated, ResponseInProgress, ResponseQueued, StreamEvent
from dwctl_trio.domain.items import FunctionCall
from dwctl_trio.domain.request import (
    InputMessage,
    InputPart,
    JsonObject,
    JsonSchema,
    PartKind,
    PlainText,
    ReasoningOptions,
    ResponseRequest,
    Role,
    ServiceTier,
)
from dwctl_trio.domain.response import (
    Cancelled,
    Completed,
    Ending,
    ErrorCode,
    ErrorType,
    Failed,
    Incomplete,
    IncompleteReason,
    Response,
    ResponseError,
    ResponseStatus,
)
from dwctl_trio.domain.steps import Chain, ModelCall, Step, StepState, ToolCall, ToolOutput
from dwctl_trio.domain.turn import (
    ContentFragment,
    FinishReason,
    ModelTurn,
    ReasoningFragment,
    RefusalFragment,
    TextFragment,
    ToolCallFragment,
)
from dwctl_trio.domain.turn_output import TurnOutput
from dwctl_trio.domain.usage import Usage

TOOL_NAMES = ("get_weather", "search", "run_code")
"""The functions that drawn calls call."""

ABANDONED = ResponseError(type=ErrorType.STEP_ABANDONED, code=ErrorCode.SERVER_ERROR, message="Its process died.")
"""The error of a step whose process died."""

_Element = TypeVar("_Element")
_Slot: TypeAlias = tuple[int, str]
"""A piece of arguments for one of the calls of a turn; the first slot met is position 0, and so on."""


@attrs.frozen(kw_only=True)
class PlayedTurn:
    """What one model call does, before anybody looks at it."""

    fragments: tuple[ContentFragment, ...]
    finish_reason: FinishReason | None
    """None when it is cut short."""
    usage: Usage | None = None
    state: StepState = StepState.COMPLETED
    """How its step ends."""
    error: ResponseError | None = None
    """Of a failed step."""


@attrs.frozen(kw_only=True)
class Run:
    """One response from its opening to its end, in all three forms."""

    opening: Response
    chain: Chain
    ending: Ending
    ended_at: int
    """Unix seconds."""
    response: Response
    """What the chain assembles to."""
    events: tuple[StreamEvent, ...]
    """The whole stream."""


def texts() -> st.SearchStrategy[str]:
    """Text of a model, never empty; a small alphabet, so that equal and prefixing pieces are common."""
    return st.text(alphabet="ab é\n{😀", min_size=1, max_size=4)


def usages() -> st.SearchStrategy[Usage]:
    """Token counts as an upstream reports them."""
    counts = st.integers(min_value=0, max_value=10**9)
    return st.builds(
        Usage,
        input_tokens=counts,
        output_tokens=counts,
        cached_tokens=st.none() | counts,
        reasoning_tokens=st.none() | counts,
    )


def requests() -> st.SearchStrategy[ResponseRequest]:
    """Validated requests of every path."""
    parts = st.builds(InputPart, kind=st.sampled_from(PartKind), text=texts())
    messages = st.builds(InputMessage, role=st.sampled_from(Role), content=_tuples(parts, min_size=1))
    schemas = st.builds(JsonSchema, name=st.just("answer"), schema=st.just(b"{}"), strict=st.none() | st.booleans())
    reasoning = st.builds(ReasoningOptions, effort=st.sampled_from([None, "low", "high"]))
    return st.builds(
        ResponseRequest,
        model=st.sampled_from(["echo-16", "gpt-oss"]),
        input=_tuples(messages, min_size=1),
        instructions=st.none() | texts(),
        stream=st.booleans(),
        background=st.booleans(),
        store=st.booleans(),
        service_tier=st.sampled_from(ServiceTier),
        temperature=st.none() | st.floats(min_value=0, max_value=2),
        max_output_tokens=st.none() | st.integers(min_value=16, max_value=100_000),
        text_format=st.just(PlainText()) | st.just(JsonObject()) | schemas,
        reasoning=st.none() | reasoning,
        metadata=_tuples(st.tuples(texts(), texts())),
    )


def errors() -> st.SearchStrategy[ResponseError]:
    """Why a response or a model step failed; never that its process died."""
    types = st.sampled_from([ErrorType.UPSTREAM_ERROR, ErrorType.RATE_LIMITED, ErrorType.PERSIST_FAILED])
    return st.builds(ResponseError, type=types, code=st.sampled_from(ErrorCode), message=texts())


def endings() -> st.SearchStrategy[Ending]:
    """Every way in which a response can end."""
    return st.one_of(
        st.just(Completed()),
        st.builds(Incomplete, reason=st.sampled_from(IncompleteReason)),
        st.builds(Failed, error=errors()),
        st.just(Cancelled()),
    )


def fragments(*, max_size: int = 8) -> st.SearchStrategy[tuple[ContentFragment, ...]]:
    """The content of a turn as it arrives: kinds in any order, calls interleaved, positions in order of appearance."""
    slots = st.tuples(st.integers(min_value=0, max_value=2), st.just("") | texts())
    piece: st.SearchStrategy[ContentFragment | _Slot] = st.one_of(
        texts().map(TextFragment), texts().map(RefusalFragment), texts().map(ReasoningFragment), slots
    )
    return st.lists(piece, max_size=max_size).map(_place_calls)


def model_turns() -> st.SearchStrategy[ModelTurn]:
    """Turns as a step's result holds them, whole and cut short."""
    reasons = st.none() | st.sampled_from(FinishReason)
    played = st.builds(PlayedTurn, fragments=fragments(), finish_reason=reasons, usage=st.none() | usages())
    return played.map(lambda turn: _play_turn(turn, step_id=UUID(int=1), first_output_index=0)[0])


@st.composite
def chains(draw: st.DrawFn, *, max_size: int = 8) -> Chain:
    """Chains of steps in any states, each step in itself consistent; not only those that a loop would build."""
    states = (
        list(StepState) if draw(st.booleans()) else [state for state in StepState if state is not StepState.CANCELED]
    )
    length = draw(st.integers(min_value=0, max_value=max_size))
    return tuple(draw(_steps(sequence, draw(st.sampled_from(states)))) for sequence in range(1, length + 1))


@st.composite
def openings(draw: st.DrawFn, *, queued: bool | None = None) -> Response:
    """Responses as they are created.

    Args:
        draw: Hypothesis's own.
        queued: Whether they wait in the queue; None draws it.
    """
    waits = draw(st.booleans()) if queued is None else queued
    return Response(
        id=draw(st.uuids()),
        created_at=draw(st.integers(min_value=0, max_value=2**40)),
        request=draw(requests()),
        status=ResponseStatus.QUEUED if waits else ResponseStatus.IN_PROGRESS,
    )


@st.composite
def runs(draw: st.DrawFn, *, max_fragments: int = 8) -> Run:
    """Whole runs: up to three turns with tool calls or dead attempts (if queued), then the end.

    Args:
        draw: Hypothesis's own.
        max_fragments: The most fragments in one turn.
    """
    opening = draw(openings())
    queued = opening.status is ResponseStatus.QUEUED
    ending = draw(endings())
    never_ran = queued and isinstance(ending, Failed | Cancelled) and draw(st.booleans())
    turns: list[PlayedTurn] = []
    if not never_ran:
        earlier = draw(st.lists(st.booleans(), max_size=3))
        contents = [draw(fragments(max_size=max_fragments)) for _ in range(len(earlier) + 1)]
        counts = [draw(st.none() | usages()) for _ in contents]
        for content, usage, handed_over in zip(contents, counts, [*earlier, None], strict=True):
            turns.append(attrs.evolve(_shape(draw, ending, queued, handed_over), fragments=content, usage=usage))
    return play_run(opening, turns, ending, ended_at=opening.created_at + draw(st.integers(0, 3600)))


def streams(*, max_fragments: int = 8) -> st.SearchStrategy[tuple[StreamEvent, ...]]:
    """Whole valid streams of events."""
    return runs(max_fragments=max_fragments).map(lambda run: run.events)


def play_run(opening: Response, turns: Sequence[PlayedTurn], ending: Ending, *, ended_at: int) -> Run:
    """Run *turns* as the engine does: each model call's fragments through a ``TurnOutput``, tools answered in between.

    Args:
        opening: With status ``queued`` or ``in_progress``.
        turns: None at all means that the response ended in the queue.
        ending: How the response ends; must fit the last turn.
        ended_at: Unix seconds.
    """
    queued = opening.status is ResponseStatus.QUEUED
    events: list[Event] = [ResponseCreated(opening)]
    if queued:
        events.append(ResponseQueued(opening))
    if turns or not queued:
        events.append(ResponseInProgress(attrs.evolve(opening, status=ResponseStatus.IN_PROGRESS)))
    chain: list[Step] = []
    output_index = 0
    for played in turns:
        step_id = UUID(int=len(chain) + 1)
        turn, item_events = _play_turn(played, step_id=step_id, first_output_index=output_index)
        step = Step(id=step_id, sequence=len(chain) + 1, descriptor=ModelCall(), state=played.state)
        chain.append(attrs.evolve(step, result=turn, error=played.error))
        events += item_events
        output_index += len(turn.items)
        if played.finish_reason is FinishReason.TOOL_CALLS and played is not turns[-1]:
            chain += _answers(turn, first_sequence=len(chain) + 1)
    response = assemble(opening, chain, ending, ended_at=ended_at)
    events.append(terminal_event(response))
    return Run(
        opening=opening,
        chain=tuple(chain),
        ending=ending,
        ended_at=ended_at,
        response=response,
        events=number(events),
    )


def number(events: Sequence[Event]) -> tuple[StreamEvent, ...]:
    """*events* with the numbers of a whole stream, from 0."""
    return tuple(StreamEvent(index, event) for index, event in enumerate(events))


def _place_calls(pieces: list[ContentFragment | _Slot]) -> tuple[ContentFragment, ...]:
    positions: dict[int, int] = {}
    placed: list[ContentFragment] = []
    for piece in pieces:
        if isinstance(piece, tuple):
            slot, arguments = piece
            position = positions.setdefault(slot, len(positions))
            name = TOOL_NAMES[slot]
            placed.append(
                ToolCallFragment(position=position, call_id=f"call_{position}", name=name, arguments=arguments)
            )
        else:
            placed.append(piece)
    return tuple(placed)


def _play_turn(played: PlayedTurn, *, step_id: UUID, first_output_index: int) -> tuple[ModelTurn, list[Event]]:
    output = TurnOutput(step_id=step_id, first_output_index=first_output_index)
    events: list[Event] = [event for fragment in played.fragments for event in output.feed(fragment)]
    events += output.close(played.finish_reason)
    return ModelTurn(items=output.items(), finish_reason=played.finish_reason, usage=played.usage), events


def _shape(draw: st.DrawFn, ending: Ending, queued: bool, handed_over: bool | None) -> PlayedTurn:
    """A turn without content: the last one if *handed_over* is None, else one that another turn follows."""
    empty = PlayedTurn(fragments=(), finish_reason=None)
    if handed_over is not None:
        if handed_over and queued:
            return attrs.evolve(empty, state=StepState.FAILED, error=ABANDONED)
        return attrs.evolve(empty, finish_reason=FinishReason.TOOL_CALLS)
    match ending:
        case Completed():
            return attrs.evolve(
                empty, finish_reason=draw(st.sampled_from([FinishReason.STOP, FinishReason.TOOL_CALLS]))
            )
        case Incomplete(reason=IncompleteReason.MAX_OUTPUT_TOKENS):
            return attrs.evolve(empty, finish_reason=FinishReason.LENGTH)
        case Incomplete():
            return attrs.evolve(empty, finish_reason=FinishReason.CONTENT_FILTER)
        case Failed() | Cancelled() if draw(st.booleans()):  # between two turns
            return attrs.evolve(empty, finish_reason=FinishReason.TOOL_CALLS)
        case Failed(error=error):
            return attrs.evolve(empty, state=StepState.FAILED, error=error)
        case _:
            return attrs.evolve(empty, state=StepState.CANCELED)


def _answers(turn: ModelTurn, *, first_sequence: int) -> list[Step]:
    calls = [item for item in turn.items if isinstance(item, FunctionCall)]
    return [
        Step(
            id=UUID(int=sequence),
            sequence=sequence,
            descriptor=ToolCall(call_id=call.call_id, name=call.name, arguments=call.arguments),
            state=StepState.COMPLETED,
            result=ToolOutput(output="done"),
        )
        for sequence, call in enumerate(calls, start=first_sequence)
    ]


@st.composite
def _steps(draw: st.DrawFn, sequence: int, state: StepState) -> Step:
    error = draw(errors() | st.just(ABANDONED)) if state is StepState.FAILED else None
    step = Step(id=UUID(int=sequence), sequence=sequence, descriptor=ModelCall(), state=state, error=error)
    if draw(st.booleans()):
        name = draw(st.sampled_from(TOOL_NAMES))
        call = ToolCall(call_id=f"call_{draw(st.integers(0, 2))}", name=name, arguments="{}")
        result = ToolOutput(output="done") if state is StepState.COMPLETED else None
        return attrs.evolve(step, descriptor=call, result=result)
    partial = state in {StepState.FAILED, StepState.CANCELED} and draw(st.booleans())
    has_result = state is StepState.COMPLETED or partial
    return attrs.evolve(step, result=draw(model_turns()) if has_result else None)


def _tuples(elements: st.SearchStrategy[_Element], *, min_size: int = 0) -> st.SearchStrategy[tuple[_Element, ...]]:
    return st.lists(elements, min_size=min_size, max_size=2).map(tuple)
