"""Every stream that differs from a given one in one event: deleted, doubled, moved, swapped or altered.

Rule 1: exhaustive, not random; the caller decides how many streams it can afford.
Rule 2: a mutant is never equal to the stream it was made from.

It does not know which mutants are wrong: that is what ``event_grammar`` and ``fold`` are tested for.
"""

import itertools
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any, TypeAlias
from uuid import UUID

import attrs

from dwctl_trio.domain.events import (
    ArgumentsDelta,
    ArgumentsDone,
    ContentDelta,
    ContentDone,
    Event,
    McpCallCompleted,
    McpCallFailed,
    McpCallInProgress,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseQueued,
    SubAgentEvent,
)
from dwctl_trio.domain.items import (
    CustomToolCall,
    FunctionCall,
    McpCall,
    Message,
    Reasoning,
    ReasoningPart,
    RefusalPart,
    TextPart,
)
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.domain.response import ErrorCode, ErrorType, IncompleteReason, Response, ResponseError
from dwctl_trio.domain.tools import OfferedTool
from dwctl_trio.domain.usage import Usage


class MutantKind(StrEnum):
    """How a mutant was made."""

    DELETE = "delete"
    DUPLICATE = "duplicate"
    SWAP_ADJACENT = "swap_adjacent"
    SWAP_ANY = "swap_any"
    MOVE = "move"
    ALTER = "alter"


@attrs.frozen(kw_only=True)
class Mutant:
    """A stream with one thing wrong, or with one thing said differently."""

    kind: MutantKind
    events: tuple[Event, ...]


def mutants(events: Sequence[Event]) -> Iterator[Mutant]:
    """All mutants of *events*, in no order worth relying on; duplicates among them are possible."""
    original = tuple(events)
    makers = [(kind, _MAKERS[kind]) for kind in MutantKind]
    for kind, make in makers:
        for mutant in make(original):
            if mutant != original:
                yield Mutant(kind=kind, events=mutant)


def alterations(value: Any) -> Iterator[Any]:
    """Values of the same shape as *value* that differ from it in one place, however deep."""
    match value:
        case bool():
            yield not value
        case StrEnum():
            yield from (member for member in type(value) if member is not value)
        case int():
            yield from (value + 1, value - 1)
        case str():
            yield value + "x"
            if value:
                yield value[:-1]
        case bytes():
            yield value + b"x"
        case UUID():
            yield UUID(int=value.int ^ 1)
        case tuple():
            yield from _altered_tuples(value)
        case ResponseRequest():
            yield attrs.evolve(value, model=value.model + "x")  # one field stands for all: only equality matters
        case OfferedTool():
            yield attrs.evolve(value, name=value.name + "x")  # the same
        case _ if attrs.has(type(value)):
            yield from _altered_fields(value)
            yield from _recast(value)
        case _:
            assert value is None, f"no alteration known for {type(value)}"


_Events: TypeAlias = tuple[Event, ...]


def _deletions(events: _Events) -> Iterator[_Events]:
    return (events[:index] + events[index + 1 :] for index in range(len(events)))


def _duplications(events: _Events) -> Iterator[_Events]:
    return (events[:index] + events[index - 1 :] for index in range(1, len(events) + 1))


def _adjacent_swaps(events: _Events) -> Iterator[_Events]:
    return (_swapped(events, index, index + 1) for index in range(len(events) - 1))


def _distant_swaps(events: _Events) -> Iterator[_Events]:
    pairs = itertools.combinations(range(len(events)), 2)
    return (_swapped(events, left, right) for left, right in pairs if right - left > 1)


def _moves(events: _Events) -> Iterator[_Events]:
    for source in range(len(events)):
        rest = events[:source] + events[source + 1 :]
        for target in range(len(events)):
            if abs(target - source) > 1:
                yield (*rest[:target], events[source], *rest[target:])


def _alterations(events: _Events) -> Iterator[_Events]:
    for index, event in enumerate(events):
        for altered in alterations(event):
            yield (*events[:index], altered, *events[index + 1 :])


_MAKERS = {
    MutantKind.DELETE: _deletions,
    MutantKind.DUPLICATE: _duplications,
    MutantKind.SWAP_ADJACENT: _adjacent_swaps,
    MutantKind.SWAP_ANY: _distant_swaps,
    MutantKind.MOVE: _moves,
    MutantKind.ALTER: _alterations,
}


def _swapped(events: _Events, left: int, right: int) -> _Events:
    swapped = list(events)
    swapped[left], swapped[right] = swapped[right], swapped[left]
    return tuple(swapped)


_FILLINGS: dict[tuple[type, str], Any] = {
    (Response, "usage"): Usage(input_tokens=1, output_tokens=1),
    (Usage, "cached_tokens"): 1,
    (Usage, "reasoning_tokens"): 1,
    (Usage, "cache_write_tokens"): 1,
    (Response, "error"): ResponseError(type=ErrorType.LOOP_ERROR, code=ErrorCode.SERVER_ERROR, message="x"),
    (Response, "incomplete_reason"): IncompleteReason.CONTENT_FILTER,
    (Response, "completed_at"): 1,
    (McpCall, "output"): "x",
    (McpCall, "error"): "x",
}
"""Fields that may be None, and what else they may be."""


def _altered_fields(value: Any) -> Iterator[Any]:
    for field in attrs.fields(type(value)):
        held = getattr(value, field.name)
        others = list(alterations(held))
        filling = _FILLINGS.get((type(value), field.name))
        if filling is not None:
            others.append(filling if held is None else None)
        yield from (attrs.evolve(value, **{field.name: other}) for other in others)


def _altered_tuples(value: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if value:
        yield value[:-1]
        yield (*value, value[-1])
    for index, element in enumerate(value):
        yield from ((*value[:index], other, *value[index + 1 :]) for other in alterations(element))


_SNAPSHOTS = (
    ResponseCreated,
    ResponseQueued,
    ResponseInProgress,
    ResponseCompleted,
    ResponseIncomplete,
    ResponseFailed,
)


_CALLS = (FunctionCall, CustomToolCall, McpCall)
_PROGRESS = (McpCallInProgress, McpCallCompleted, McpCallFailed)


def _recast(value: Any) -> Iterator[Any]:
    """*value* as another class that could hold the same."""
    match value:
        case TextPart(text=text) | RefusalPart(refusal=text) | ReasoningPart(text=text):
            yield from (part for part in _parts(text) if type(part) is not type(value))
        case Message() | Reasoning():
            other: Any = Reasoning if isinstance(value, Message) else Message
            yield other(id=value.id, status=value.status, content=value.content)
        case FunctionCall() | CustomToolCall() | McpCall():
            yield from (_as_call(kind, value) for kind in _CALLS if kind is not type(value))
        case ContentDelta(kind, output_index, item_id, content_index, text):
            yield ContentDone(kind, output_index, item_id, content_index, text)
        case ContentDone(kind, output_index, item_id, content_index, text):
            yield ContentDelta(kind, output_index, item_id, content_index, text)
        case ArgumentsDone(kind, output_index, item_id, _, arguments):
            yield ArgumentsDelta(kind, output_index, item_id, arguments)
        case SubAgentEvent(_, _, event):
            yield event
        case McpCallInProgress() | McpCallCompleted() | McpCallFailed():
            yield from (said(value.output_index, value.item_id) for said in _PROGRESS if said is not type(value))
        case _ if type(value) in _SNAPSHOTS:
            yield from (snapshot(value.response) for snapshot in _SNAPSHOTS if snapshot is not type(value))


def _as_call(kind: Any, call: FunctionCall | CustomToolCall | McpCall) -> Any:
    return kind(id=call.id, status=call.status, call_id=call.call_id, name=call.name, arguments=call.arguments)


def _parts(text: str) -> tuple[TextPart, RefusalPart, ReasoningPart]:
    return TextPart(text=text), RefusalPart(refusal=text), ReasoningPart(text=text)
