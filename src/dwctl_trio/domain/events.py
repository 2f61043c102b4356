"""The events of a response stream, as values.

Rule 1: an event says what happened; its number is given by the one allocator in ``engine/emitter.py``.
Rule 2: which order is allowed is not said here but in ``domain/event_grammar.py``.

Source: OpenAI Responses API reference, "Streaming events".
"""

from enum import StrEnum
from typing import TypeAlias

import attrs

from dwctl_trio.domain.items import CallKind, ContentPart, OutputItem
from dwctl_trio.domain.response import Response
from dwctl_trio.domain.values import hot_value


class ContentKind(StrEnum):
    """Which of the three kinds of content a delta belongs to."""

    TEXT = "text"
    REFUSAL = "refusal"
    REASONING = "reasoning"


@attrs.frozen
class ResponseCreated:
    """The response exists and is durable; always the first event."""

    response: Response


@attrs.frozen
class ResponseQueued:
    """The response waits for a daemon."""

    response: Response


@attrs.frozen
class ResponseInProgress:
    """The response is being worked on."""

    response: Response


@attrs.frozen
class OutputItemAdded:
    """A new item begins; its id, and the name and call id of a call, are final."""

    output_index: int
    """The item's place in the response's output, from 0."""
    item: OutputItem
    """``in_progress`` and still empty."""


@attrs.frozen
class ContentPartAdded:
    """A new part of a message or reasoning item begins."""

    output_index: int
    item_id: str
    content_index: int
    """The part's place in the item, from 0."""
    part: ContentPart
    """Still empty."""


@hot_value
class ContentDelta:
    """More of one part; the bulk of every stream."""

    kind: ContentKind
    output_index: int
    item_id: str
    content_index: int
    delta: str
    """Never empty."""
    logprobs: tuple[bytes, ...] = ()
    """Of the delta's tokens, as ``TextPart`` has them; only of text."""


@attrs.frozen
class AnnotationAdded:
    """The text of a part refers to something."""

    output_index: int
    item_id: str
    content_index: int
    annotation_index: int
    """The annotation's place in the part, from 0."""
    annotation: bytes
    """As ``TextPart`` has it."""


@attrs.frozen
class ContentDone:
    """A part's text is whole: the concatenation of its deltas."""

    kind: ContentKind
    output_index: int
    item_id: str
    content_index: int
    text: str
    logprobs: tuple[bytes, ...] = ()
    """All those of its deltas."""


@attrs.frozen
class ContentPartDone:
    """A part is closed."""

    output_index: int
    item_id: str
    content_index: int
    part: ContentPart


@hot_value
class ArgumentsDelta:
    """More of a call's arguments."""

    kind: CallKind
    output_index: int
    item_id: str
    delta: str
    """Never empty."""


@attrs.frozen
class ArgumentsDone:
    """A call's arguments are whole: the concatenation of its deltas."""

    kind: CallKind
    output_index: int
    item_id: str
    name: str
    arguments: str


@attrs.frozen
class McpCallInProgress:
    """The model has begun a call that the server will run."""

    output_index: int
    item_id: str


@attrs.frozen
class McpCallCompleted:
    """The server's tool gave an output, which the item's end carries."""

    output_index: int
    item_id: str


@attrs.frozen
class McpCallFailed:
    """The server's tool gave none; the item's end says why."""

    output_index: int
    item_id: str


@attrs.frozen
class OutputItemDone:
    """An item is closed, in a final status."""

    output_index: int
    item: OutputItem


@attrs.frozen
class ResponseCompleted:
    """Terminal: the response is stored as completed."""

    response: Response


@attrs.frozen
class ResponseIncomplete:
    """Terminal: ended early by a limit or a filter, or cancelled."""

    response: Response


@attrs.frozen
class ResponseFailed:
    """Terminal: the response carries its error and what output it had."""

    response: Response


ItemEvent: TypeAlias = (
    OutputItemAdded
    | ContentPartAdded
    | ContentDelta
    | AnnotationAdded
    | ContentDone
    | ContentPartDone
    | ArgumentsDelta
    | ArgumentsDone
    | McpCallInProgress
    | McpCallCompleted
    | McpCallFailed
    | OutputItemDone
)


@attrs.frozen
class SubAgentEvent:
    """What a sub-agent does, for clients that ask to see it; the response's own output is whole without it."""

    agent_name: str
    item_id: str
    """The ``mcp_call`` that the sub-agent works on, be it of the response or of another sub-agent."""
    event: ItemEvent
    """Its indexes count the sub-agent's own items."""


TerminalEvent: TypeAlias = ResponseCompleted | ResponseIncomplete | ResponseFailed
SnapshotEvent: TypeAlias = ResponseCreated | ResponseQueued | ResponseInProgress | TerminalEvent
Event: TypeAlias = SnapshotEvent | ItemEvent | SubAgentEvent


@attrs.frozen
class StreamEvent:
    """An event with its place in the stream."""

    sequence_number: int
    """0, 1, 2, … without gaps over the life of the response, resumes included."""
    event: Event
