"""The items of a response's output: messages, reasoning and tool calls.

Rule 1: an item never changes; a later state of it is a new value with the same id.
Rule 2: ``completed``, ``incomplete`` and ``failed`` are final.
Rule 3: the type of a call says who runs it: ``McpCall`` the server, the others the client.

Source: OpenAI Responses API reference, "Response object", ``output``.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeAlias, assert_never

import attrs


class ItemStatus(StrEnum):
    """How far an item has come."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    """Only of a call that the server ran."""


@attrs.frozen(kw_only=True)
class TextPart:
    """A run of the model's visible text."""

    text: str
    annotations: tuple[bytes, ...] = ()
    """What the text refers to, in order of arrival; each encoded, in OpenAI's shape."""
    logprobs: tuple[bytes, ...] = ()
    """The log probabilities of its tokens, each encoded, in OpenAI's shape; empty where they were not asked for."""


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
    """A call of one of the client's functions."""

    id: str
    status: ItemStatus
    call_id: str
    """The model's own id for the call, which its output must carry; never invented twice."""
    name: str
    arguments: str = ""
    """JSON text exactly as the model wrote it, which may be invalid."""
    namespace: str | None = None
    """The group of functions that it is of, where the client gave them in groups."""


@attrs.frozen(kw_only=True)
class CustomToolCall:
    """A call of one of the client's custom tools, which take text as it comes."""

    id: str
    status: ItemStatus
    call_id: str
    """As in ``FunctionCall``."""
    name: str
    arguments: str = ""
    """The input, plain text."""
    namespace: str | None = None
    """As in ``FunctionCall``."""


@attrs.frozen(kw_only=True)
class McpCall:
    """A call of one of the server's tools, with what became of it: invocation and outcome in one receipt."""

    id: str
    status: ItemStatus
    """``in_progress`` until the tool has ended; ``incomplete`` if it never did."""
    call_id: str
    """As in ``FunctionCall``; for the model only, clients know the item by its id."""
    name: str
    arguments: str = ""
    """As in ``FunctionCall``."""
    output: str | None = None
    """What the tool gave back; only when ``completed``."""
    error: str | None = None
    """Why there is no output; only when ``failed``."""


ToolCallItem: TypeAlias = FunctionCall | CustomToolCall | McpCall
OutputItem: TypeAlias = Message | Reasoning | ToolCallItem


class CallKind(StrEnum):
    """Which of the three kinds of call an item or event belongs to."""

    FUNCTION = "function"
    CUSTOM = "custom"
    SERVER = "server"


CALL_TYPES: Mapping[CallKind, type[ToolCallItem]] = {
    CallKind.FUNCTION: FunctionCall,
    CallKind.CUSTOM: CustomToolCall,
    CallKind.SERVER: McpCall,
}


def full_name(namespace: str | None, name: str) -> str:
    """What the model calls the function *name* of *namespace*: chat completions know no groups."""
    return name if namespace is None else f"{namespace}__{name}"


def call_kind(item: ToolCallItem) -> CallKind:
    """The kind of *item*."""
    match item:
        case FunctionCall():
            return CallKind.FUNCTION
        case CustomToolCall():
            return CallKind.CUSTOM
        case McpCall():
            return CallKind.SERVER
        case _ as never:
            assert_never(never)


def output_text(items: tuple[OutputItem, ...]) -> str:
    """All visible text of *items*, joined."""
    return "".join(
        part.text for item in items if isinstance(item, Message) for part in item.content if isinstance(part, TextPart)
    )
