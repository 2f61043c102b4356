"""The items of a response's output: messages, reasoning and tool calls.

Rule 1: an item never changes; a later state of it is a new value with the same id.
Rule 2: ``completed`` and ``incomplete`` are final.

Source: OpenAI Responses API reference, "Response object", ``output``.
"""

from enum import StrEnum
from typing import TypeAlias

import attrs


class ItemStatus(StrEnum):
    """How far an item has come."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"


@attrs.frozen(kw_only=True)
class TextPart:
    """A run of the model's visible text."""

    text: str


@attrs.frozen(kw_only=True)
class RefusalPart:
    """The model's words for why it will not answer."""

    refusal: str


MessagePart: TypeAlias = TextPart | RefusalPart


@attrs.frozen(kw_only=True)
class ReasoningPart:
    """A run of the model's reasoning, as the upstream shows it."""

    text: str


ContentPart: TypeAlias = TextPart | RefusalPart | ReasoningPart


@attrs.frozen(kw_only=True)
class Message:
    """What the assistant says, in parts."""

    id: str
    status: ItemStatus
    content: tuple[MessagePart, ...] = ()


@attrs.frozen(kw_only=True)
class Reasoning:
    """What the model thought before it spoke."""

    id: str
    status: ItemStatus
    content: tuple[ReasoningPart, ...] = ()


@attrs.frozen(kw_only=True)
class FunctionCall:
    """A call the model makes of a function; the client's to run unless the name is one of the server's tools."""

    id: str
    status: ItemStatus
    call_id: str
    """The model's own id for the call, which its output must carry; never invented twice."""
    name: str
    arguments: str = ""
    """JSON text exactly as the model wrote it, which may be invalid."""


OutputItem: TypeAlias = Message | Reasoning | FunctionCall


def output_text(items: tuple[OutputItem, ...]) -> str:
    """All visible text of *items*, joined."""
    return "".join(
        part.text for item in items if isinstance(item, Message) for part in item.content if isinstance(part, TextPart)
    )
