"""Response events as SSE frames.

Rule 1: ``event:`` equals the ``type`` in the data, ``id:`` equals its ``sequence_number``.
Rule 2: a frame's data is one line; nothing in it can begin another field.
Rule 3: a delta costs a template: only the number and the text change from one to the next of the same part.

Source: OpenAI Responses API reference, "Streaming events"; WHATWG HTML, "Server-sent events".
"""

from collections.abc import Iterable, Mapping
from typing import Final, assert_never

import msgspec

from dwctl_trio.domain.events import (
    AnnotationAdded,
    ArgumentsDelta,
    ArgumentsDone,
    ContentDelta,
    ContentDone,
    ContentKind,
    ContentPartAdded,
    ContentPartDone,
    Event,
    McpCallCompleted,
    McpCallFailed,
    McpCallInProgress,
    OutputItemAdded,
    OutputItemDone,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseQueued,
    SnapshotEvent,
    SubAgentEvent,
)
from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.response import Response
from dwctl_trio.protocol import json
from dwctl_trio.protocol.logprobs import render_event_logprobs
from dwctl_trio.protocol.output_items import render_item, render_part
from dwctl_trio.protocol.response_object import ResponseEncoder, render_response
from dwctl_trio.protocol.sse import encode_frame

DELTA_TYPES: Final = {
    ContentKind.TEXT: "response.output_text.delta",
    ContentKind.REFUSAL: "response.refusal.delta",
    ContentKind.REASONING: "response.reasoning_text.delta",
}
DONE_TYPES: Final = {
    ContentKind.TEXT: "response.output_text.done",
    ContentKind.REFUSAL: "response.refusal.done",
    ContentKind.REASONING: "response.reasoning_text.done",
}
ANNOTATION_TYPE: Final = "response.output_text.annotation.added"
ARGUMENTS_TYPES: Final = {
    CallKind.FUNCTION: "response.function_call_arguments",
    CallKind.CUSTOM: "response.custom_tool_call_input",
    CallKind.SERVER: "response.mcp_call_arguments",
}
"""To be followed by ``.delta`` or ``.done``."""
MCP_CALL_TYPES: Final[Mapping[type[McpCallInProgress | McpCallCompleted | McpCallFailed], str]] = {
    McpCallInProgress: "response.mcp_call.in_progress",
    McpCallCompleted: "response.mcp_call.completed",
    McpCallFailed: "response.mcp_call.failed",
}
SUB_AGENT_TYPE: Final = "dwctl:sub_agent"
"""Ours, not OpenAI's: one event of a sub-agent inside."""
SNAPSHOT_TYPES: Final[Mapping[type[SnapshotEvent], str]] = {
    ResponseCreated: "response.created",
    ResponseQueued: "response.queued",
    ResponseInProgress: "response.in_progress",
    ResponseCompleted: "response.completed",
    ResponseIncomplete: "response.incomplete",
    ResponseFailed: "response.failed",
}
_NUMBER_PLACE, _TEXT_PLACE = msgspec.Raw(b"\x00number"), msgspec.Raw(b"\x00text")
"""What no JSON holds."""


class EventEncoder:
    """Turns the numbered events of one response into frames; keeps the template of what is growing."""

    def __init__(self) -> None:
        self._template_of: tuple[ContentKind | CallKind, str, int, int | None] | None = None
        self._template = b""
        self._responses = ResponseEncoder()

    def encode(self, first_sequence_number: int, events: Iterable[Event]) -> bytes:
        """The frames of *events*, numbered from *first_sequence_number* on, in one buffer."""
        frames = []
        for number, event in enumerate(events, first_sequence_number):
            if type(event) is ContentDelta and not event.logprobs:
                frames.append(self._encode_delta(number, event, event.content_index))
            elif type(event) is ArgumentsDelta:
                frames.append(self._encode_delta(number, event, None))
            else:
                kind, fields = self._render(event)
                data = json.encode_unescaped({"type": kind, "sequence_number": number, **fields})
                frames.append(encode_frame(kind, data, number))
        return json.escape_line_ends(b"".join(frames))

    def encode_response(self, response: Response) -> bytes:
        """As ``response_object.encode_response``; what an event told of it already is not encoded again."""
        return self._responses.encode(response)

    def _render(self, event: Event) -> tuple[str, dict[str, object]]:
        if isinstance(event, SnapshotEvent):
            return SNAPSHOT_TYPES[type(event)], {"response": msgspec.Raw(self._responses.encode(event.response))}
        return render_event(event)

    def _encode_delta(self, number: int, event: ContentDelta | ArgumentsDelta, content_index: int | None) -> bytes:
        part = (event.kind, event.item_id, event.output_index, content_index)
        if part != self._template_of:
            self._template_of, self._template = part, _delta_template(event)
        return self._template % (number, number, json.encode_unescaped(event.delta))


def _delta_template(event: ContentDelta | ArgumentsDelta) -> bytes:
    """The frame of *event*, to be filled with its number, once more with it, and with its text as JSON."""
    kind, fields = render_event(event)
    data = json.encode({"type": kind, "sequence_number": _NUMBER_PLACE, **fields, "delta": _TEXT_PLACE})
    frame = b"id: %b\n%b" % (_NUMBER_PLACE, encode_frame(kind, data))
    return frame.replace(b"%", b"%%").replace(_NUMBER_PLACE, b"%d").replace(_TEXT_PLACE, b"%b")


def render_event(event: Event) -> tuple[str, dict[str, object]]:
    """The ``type`` of *event* and its fields but for the number."""
    match event:
        case OutputItemAdded(index, item):
            return "response.output_item.added", {"output_index": index, "item": render_item(item)}
        case OutputItemDone(index, item):
            return "response.output_item.done", {"output_index": index, "item": render_item(item)}
        case ContentPartAdded(index, item_id, content_index, part):
            return "response.content_part.added", _place(index, item_id, content_index) | {"part": render_part(part)}
        case ContentPartDone(index, item_id, content_index, part):
            return "response.content_part.done", _place(index, item_id, content_index) | {"part": render_part(part)}
        case ContentDelta(kind, index, item_id, content_index, delta):
            return DELTA_TYPES[kind], _place(index, item_id, content_index) | {"delta": delta} | _logprobs(event)
        case AnnotationAdded(index, item_id, content_index, annotation_index, annotation):
            added = {"annotation_index": annotation_index, "annotation": msgspec.Raw(annotation)}
            return ANNOTATION_TYPE, _place(index, item_id, content_index) | added
        case ContentDone(kind, index, item_id, content_index, text):
            name = "refusal" if kind is ContentKind.REFUSAL else "text"
            return DONE_TYPES[kind], _place(index, item_id, content_index) | {name: text} | _logprobs(event)
        case ArgumentsDelta(call_kind, index, item_id, delta):
            return f"{ARGUMENTS_TYPES[call_kind]}.delta", _item_place(index, item_id) | {"delta": delta}
        case ArgumentsDone(call_kind, index, item_id, name, arguments):
            return f"{ARGUMENTS_TYPES[call_kind]}.done", _item_place(index, item_id) | _whole(
                call_kind, name, arguments
            )
        case McpCallInProgress(index, item_id) | McpCallCompleted(index, item_id) | McpCallFailed(index, item_id):
            return MCP_CALL_TYPES[type(event)], _item_place(index, item_id)
        case SubAgentEvent(agent_name, item_id, inner):
            inner_kind, fields = render_event(inner)
            inside = {"type": inner_kind, **fields}
            return SUB_AGENT_TYPE, {"agent": {"agent_name": agent_name}, "item_id": item_id, "event": inside}
        case (
            ResponseCreated(response)
            | ResponseQueued(response)
            | ResponseInProgress(response)
            | ResponseCompleted(response)
            | ResponseIncomplete(response)
            | ResponseFailed(response)
        ):
            return SNAPSHOT_TYPES[type(event)], {"response": render_response(response)}
        case _ as never:
            assert_never(never)


def _whole(kind: CallKind, name: str, arguments: str) -> dict[str, object]:
    """What the end of a call's arguments says beyond its place; OpenAI documents the name for functions only."""
    if kind is CallKind.CUSTOM:
        return {"input": arguments}
    return {"name": name, "arguments": arguments} if kind is CallKind.FUNCTION else {"arguments": arguments}


def _item_place(output_index: int, item_id: str) -> dict[str, object]:
    return {"item_id": item_id, "output_index": output_index}


def _place(output_index: int, item_id: str, content_index: int) -> dict[str, object]:
    return {"item_id": item_id, "output_index": output_index, "content_index": content_index}


def _logprobs(event: ContentDelta | ContentDone) -> dict[str, object]:
    """The SDK's types require the field on text, and only there."""
    return {"logprobs": render_event_logprobs(event.logprobs)} if event.kind is ContentKind.TEXT else {}
