"""A conversation: stored responses that go on with one another, and what of them a model is shown.

Rule 1: a response has its own input and output only; what came before is told by those that it goes on with.
Rule 2: shown is what was finished: nothing superseded, and of a response that failed or was cancelled no half item.
Rule 3: an item of the input is known by an id that follows from its response and its place in the input; shown is
the one that it came with, if there is one, and it cannot be an item of an earlier turn.

Source: OpenAI API documentation, "Conversation state"; Open Responses specification, ``previous_response_id``.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import assert_never
from uuid import UUID

import attrs

from dwctl_trio.domain import ids
from dwctl_trio.domain.assembly import chain_output, history_output
from dwctl_trio.domain.errors import DwctlError
from dwctl_trio.domain.items import (
    CustomToolCall,
    FunctionCall,
    ItemStatus,
    McpCall,
    Message,
    OutputItem,
    Reasoning,
    RefusalPart,
)
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.request import (
    CustomToolCallOutput,
    FunctionCallOutput,
    InputItem,
    InputMessage,
    InputPart,
    InputReasoning,
    ItemReference,
    PartKind,
    Role,
)
from dwctl_trio.domain.steps import Chain
from dwctl_trio.domain.turn import ModelTurn

_FINISHED = frozenset({ItemStatus.COMPLETED, ItemStatus.FAILED})
_PREFIXES: Mapping[type, str] = {
    InputMessage: "msg",
    InputReasoning: "rs",
    FunctionCall: "fc",
    FunctionCallOutput: "fco",
    CustomToolCall: "ctc",
    CustomToolCallOutput: "ctco",
    McpCall: "mcp",
    ItemReference: "ref",
}
"""Of the ids of input items that came without; OpenAI's."""


@attrs.frozen(kw_only=True)
class Turn:
    """One stored response as a part of a conversation."""

    response_id: UUID
    previous_id: UUID | None
    """Of the response that it goes on with."""
    state: RowState
    input: tuple[InputItem, ...] | None
    """Its own; None: another release wrote its request, and this one cannot read it."""
    steps: Chain
    """Of its own loop, without those of sub-agents."""


class Gap(StrEnum):
    """Why a conversation could not be read to its beginning."""

    MISSING = "missing"
    """A response is not there any more, or what it held is not."""
    TOO_MANY_TURNS = "too_many_turns"
    TOO_MANY_ITEMS = "too_many_items"
    TOO_LARGE = "too_large"


@attrs.frozen(kw_only=True)
class Conversation:
    """A response with those before it, as far as they can be read."""

    turns: tuple[Turn, ...]
    """Oldest first; at least one."""
    stored_bytes: int
    """What they take up in their rows; log probabilities as a 64th."""
    gap: Gap | None = None
    """What lies before the oldest; None: it is the first of all."""


def item_count(turn: Turn) -> int:
    """How many items *turn* has, those included that no model is shown any more."""
    said = (len(step.result.items) for step in turn.steps if isinstance(step.result, ModelTurn))
    return len(turn.input or ()) + sum(said)


def history_of(conversation: Conversation) -> tuple[InputItem, ...]:
    """All that was asked and answered, oldest first, as the next model call is shown it.

    Raises:
        DwctlError: Another release wrote a part of it that this one cannot read.
    """
    return tuple(item for turn in conversation.turns for item in (*_input_of(turn), *answer_of(turn)))


def answer_of(turn: Turn) -> tuple[InputItem, ...]:
    """The output of *turn*, as the next model call is shown it.

    A call of the client's in a response that did not complete may be answered, but need not be.
    """
    items = history_output(turn.steps)
    if turn.state is RowState.COMPLETED:
        return tuple(as_input(item) for item in items)
    return tuple(as_input(_excused(item)) for item in items if item.status in _FINISHED)


def _excused(item: OutputItem) -> OutputItem:
    is_clients = isinstance(item, FunctionCall | CustomToolCall)
    return attrs.evolve(item, status=ItemStatus.INCOMPLETE) if is_clients else item


def as_input(item: OutputItem) -> InputItem:
    """*item*, an output, as a client would bring it back."""
    match item:
        case Message():
            parts = tuple(
                InputPart(kind=PartKind.REFUSAL, text=part.refusal)
                if isinstance(part, RefusalPart)
                else InputPart(kind=PartKind.OUTPUT_TEXT, text=part.text, annotations=_listed(part.annotations))
                for part in item.content
            )
            return InputMessage(role=Role.ASSISTANT, content=parts, id=item.id)
        case Reasoning():
            return InputReasoning(id=item.id, content=tuple(part.text for part in item.content), status=item.status)
        case FunctionCall() | CustomToolCall() | McpCall():
            return item
        case _ as never:
            assert_never(never)


def _listed(annotations: Sequence[bytes]) -> bytes | None:
    """*annotations*, each a JSON text, as a request's part keeps them."""
    return b"[" + b",".join(annotations) + b"]" if annotations else None


def input_items(conversation: Conversation) -> tuple[InputItem, ...]:
    """What the last response of *conversation* was generated from, oldest first, each item with an id of its own.

    Raises:
        DwctlError: Another release wrote a part of it that this one cannot read.
    """
    (*earlier, last) = conversation.turns
    seen: set[str] = set()
    items: list[InputItem] = []
    for turn in earlier:
        items += (*_named_input(turn, seen), *answer_of(turn))
    return (*items, *_named_input(last, seen))


def items_by_id(turn: Turn) -> dict[str, tuple[InputItem, ...]]:
    """What a reference to each item of *turn* stands for: the item, or nothing if no model is to be shown it.

    Raises:
        DwctlError: Another release wrote its input, and this one cannot read it.
    """
    found: dict[str, tuple[InputItem, ...]] = {item.id: () for item in chain_output(turn.steps)}
    found |= {item.id or "": (item,) for item in answer_of(turn)}
    placed = [attrs.evolve(item, id=_place_id(turn, place, item)) for place, item in enumerate(_input_of(turn))]
    return found | {item.id or "": (item,) for item in (*placed, *_named_input(turn, set()))}


def _named_input(turn: Turn, seen: set[str]) -> list[InputItem]:
    """The input of *turn*, each item under an id that is not in *seen*, which grows by them.

    What goes on with another response may bring items of that one along. They are shown twice, so they are known by
    their place here, whether or not the other one is still there.
    """
    named: list[InputItem] = []
    for place, item in enumerate(_input_of(turn)):
        name = item.id
        may_be_earlier = turn.previous_id is not None and ids.parse_item_id(name or "") is not None
        if not name or name in seen or may_be_earlier:
            name = _place_id(turn, place, item)
        seen.add(name)
        named.append(attrs.evolve(item, id=name))
    return named


def _place_id(turn: Turn, place: int, item: InputItem) -> str:
    """What *item* is known by besides, or instead of, an id that it came with."""
    return ids.item_id(_PREFIXES[type(item)], turn.response_id, place)


def _input_of(turn: Turn) -> Sequence[InputItem]:
    if turn.input is None:
        raise DwctlError(
            "This release of the server cannot read an earlier response of the conversation: another one wrote it. "
            "Try again later."
        )
    return turn.input
