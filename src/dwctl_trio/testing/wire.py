"""From the bytes of a response stream back to events, as a strict client would read them."""

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import msgspec

from dwctl_trio.domain import ids
from dwctl_trio.domain.events import (
    ArgumentsDelta,
    ArgumentsDone,
    ContentDelta,
    ContentDone,
    ContentPartAdded,
    ContentPartDone,
    Event,
    ItemEvent,
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
    StreamEvent,
    SubAgentEvent,
)
from dwctl_trio.domain.items import CallKind, ToolCallItem
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.domain.response import (
    ErrorCode,
    ErrorType,
    IncompleteReason,
    Response,
    ResponseError,
    ResponseStatus,
)
from dwctl_trio.domain.tools import OfferedTool
from dwctl_trio.domain.usage import Usage
from dwctl_trio.protocol.event_stream import ARGUMENTS_TYPES, DELTA_TYPES, DONE_TYPES, MCP_CALL_TYPES, SUB_AGENT_TYPE
from dwctl_trio.protocol.offered_tools import as_bytes
from dwctl_trio.protocol.output_items import SERVER_LABEL, parse_item, parse_items, parse_part
from dwctl_trio.protocol.sse import SseDecoder

_EVENT_BYTES_MAX = 64 * 1024 * 1024
_DELTAS = {name: kind for kind, name in DELTA_TYPES.items()}
_DONES = {name: kind for kind, name in DONE_TYPES.items()}
_ARGUMENTS = {name: kind for kind, name in ARGUMENTS_TYPES.items()}
_MCP_CALLS: Mapping[str, type[McpCallInProgress | McpCallCompleted | McpCallFailed]] = {
    name: kind for kind, name in MCP_CALL_TYPES.items()
}
_SNAPSHOTS: Mapping[str, Callable[[Response], SnapshotEvent]] = {
    "response.created": ResponseCreated,
    "response.queued": ResponseQueued,
    "response.in_progress": ResponseInProgress,
    "response.completed": ResponseCompleted,
    "response.incomplete": ResponseIncomplete,
    "response.failed": ResponseFailed,
}


@attrs.frozen(kw_only=True)
class ReadStream:
    """A stream as a client saw it."""

    events: tuple[StreamEvent, ...]
    data: tuple[Mapping[str, Any], ...]
    """The decoded data of each event."""
    is_done: bool
    """Whether ``[DONE]`` came last."""


def read_stream(body: bytes, request: ResponseRequest) -> ReadStream:
    """The events in *body*.

    Args:
        body: What came over the connection, whole or broken off.
        request: What was asked; the wire does not carry all of it back.

    Raises:
        AssertionError: A frame's ``event`` or ``id`` differs from its data, or something follows ``[DONE]``.
    """
    decoder = SseDecoder(event_bytes_max=_EVENT_BYTES_MAX)
    reader = EventReader(request)
    events, data, is_done = [], [], False
    for frame in decoder.feed(body):
        assert not is_done, "nothing may follow [DONE]"
        if frame.data == b"[DONE]":
            is_done = True
            continue
        fields = msgspec.json.decode(frame.data)
        assert frame.event == fields["type"], "event: equals the type in the data"
        assert frame.id == str(fields["sequence_number"]), "id: equals the sequence_number in the data"
        data.append(fields)
        events.append(StreamEvent(fields["sequence_number"], reader.read(fields)))
    return ReadStream(events=tuple(events), data=tuple(data), is_done=is_done)


class EventReader:
    """Events out of their data; it remembers the names of calls, which not every event repeats.

    Args:
        request: What was asked; the wire does not carry all of it back.
    """

    def __init__(self, request: ResponseRequest) -> None:
        self._request = request
        self._names: dict[str, str] = {}

    def read(self, fields: Mapping[str, Any]) -> Event:
        """The event whose data are *fields*.

        Raises:
            KeyError: A field is missing.
        """
        kind = fields["type"]
        if kind in _SNAPSHOTS:
            return _SNAPSHOTS[kind](parse_response(fields["response"], self._request))
        if kind == SUB_AGENT_TYPE:
            assert "sequence_number" not in fields["event"], "what is inside has no number of its own"
            return SubAgentEvent(fields["agent"]["agent_name"], fields["item_id"], self._read_inside(fields["event"]))
        return self._read_inside(fields)

    def _read_inside(self, fields: Mapping[str, Any]) -> ItemEvent:
        kind, index = fields["type"], fields["output_index"]
        if kind in _DELTAS:
            return ContentDelta(_DELTAS[kind], index, fields["item_id"], fields["content_index"], fields["delta"])
        if kind in _DONES:
            text = fields["refusal"] if kind == "response.refusal.done" else fields["text"]
            return ContentDone(_DONES[kind], index, fields["item_id"], fields["content_index"], text)
        if kind in _MCP_CALLS:
            return _MCP_CALLS[kind](index, fields["item_id"])
        match kind.rpartition("."):
            case (call, _, "delta") if call in _ARGUMENTS:
                return ArgumentsDelta(_ARGUMENTS[call], index, fields["item_id"], fields["delta"])
            case (call, _, "done") if call in _ARGUMENTS:
                return self._read_arguments(_ARGUMENTS[call], index, fields)
        match kind:
            case "response.output_item.added":
                item = parse_item(fields["item"])
                if isinstance(item, ToolCallItem):
                    self._names[item.id] = item.name
                return OutputItemAdded(index, item)
            case "response.output_item.done":
                return OutputItemDone(index, parse_item(fields["item"]))
            case "response.content_part.added":
                return ContentPartAdded(index, fields["item_id"], fields["content_index"], parse_part(fields["part"]))
            case "response.content_part.done":
                return ContentPartDone(index, fields["item_id"], fields["content_index"], parse_part(fields["part"]))
            case _:
                raise AssertionError(f"no such event: {kind}")

    def _read_arguments(self, kind: CallKind, index: int, fields: Mapping[str, Any]) -> ArgumentsDone:
        item_id = fields["item_id"]
        name = fields["name"] if kind is CallKind.FUNCTION else self._names[item_id]
        arguments = fields["input"] if kind is CallKind.CUSTOM else fields["arguments"]
        return ArgumentsDone(kind, index, item_id, name, arguments)


def parse_response(body: Mapping[str, Any], request: ResponseRequest) -> Response:
    """The response that *body*, a response object, shows.

    Not on the wire: the error's type, the models' own ids of the server's calls, and of its tools all but the names.
    """
    response_id = ids.parse_response_id(body["id"])
    assert response_id is not None, "an id of ours"
    usage, error, details = body["usage"], body["error"], body["incomplete_details"]
    return Response(
        id=response_id,
        created_at=body["created_at"],
        completed_at=body["completed_at"],
        request=request,
        status=ResponseStatus(body["status"]),
        tools=tuple(tool for echoed in body["tools"] for tool in _parse_tools(echoed)),
        output=parse_items(body["output"]),
        usage=None if usage is None else _parse_usage(usage),
        error=None if error is None else _parse_error(error),
        incomplete_reason=None if details is None else IncompleteReason(details["reason"]),
    )


def _parse_tools(echoed: Mapping[str, Any]) -> list[OfferedTool]:
    """The tools that one entry of ``tools`` echoes."""
    if echoed["type"] == "mcp":
        assert echoed["server_label"] == SERVER_LABEL, "there are no other servers"
        return [OfferedTool(kind=CallKind.SERVER, name=name) for name in echoed["allowed_tools"]]
    tool = OfferedTool(
        kind=CallKind(echoed["type"]),
        name=echoed["name"],
        description=echoed["description"],
        parameters=as_bytes(echoed.get("parameters")),
        strict=echoed.get("strict"),
        format=as_bytes(echoed.get("format")),
    )
    return [tool]


def _parse_usage(usage: Mapping[str, Any]) -> Usage:
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    return Usage(
        input_tokens=usage["input_tokens"],
        output_tokens=usage["output_tokens"],
        cached_tokens=usage["input_tokens_details"]["cached_tokens"],
        reasoning_tokens=usage["output_tokens_details"]["reasoning_tokens"],
    )


def _parse_error(error: Mapping[str, Any]) -> ResponseError:
    return ResponseError(type=ErrorType.LOOP_ERROR, code=ErrorCode(error["code"]), message=error["message"])
