"""From the bytes of a response stream back to events, as a strict client would read them."""

from collections.abc import Mapping
from typing import Any

import attrs
import msgspec

from dwctl_trio.domain import ids
from dwctl_trio.domain.events import Event, StreamEvent
from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.domain.response import (
    ErrorCode,
    ErrorType,
    IncompleteReason,
    Response,
    ResponseError,
    ResponseStatus,
)
from dwctl_trio.domain.tools import Namespace, OfferedTool, put_into
from dwctl_trio.domain.usage import Usage
from dwctl_trio.protocol.event_reading import EventReader
from dwctl_trio.protocol.offered_tools import as_bytes
from dwctl_trio.protocol.output_items import SERVER_LABEL, parse_items
from dwctl_trio.protocol.sse import SseDecoder

_EVENT_BYTES_MAX = 64 * 1024 * 1024


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
    reader = EventReader()
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
        events.append(StreamEvent(fields["sequence_number"], _read_event(reader, fields, request)))
    return ReadStream(events=tuple(events), data=tuple(data), is_done=is_done)


def _read_event(reader: EventReader, fields: Mapping[str, Any], request: ResponseRequest) -> Event:
    """The event whose data are *fields*, a snapshot with its response."""
    assert "sequence_number" not in fields.get("event", {}), "what is inside has no number of its own"
    event = reader.read(fields)
    return event(parse_response(fields["response"], request)) if isinstance(event, type) else event


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
    if echoed["type"] == "namespace":
        namespace = Namespace(name=echoed["name"], description=echoed["description"])
        members = [tool for member in echoed["tools"] for tool in _parse_tools(member)]
        return [put_into(namespace, tool) for tool in members]
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
        cache_write_tokens=usage["input_tokens_details"]["cache_write_tokens"],
    )


def _parse_error(error: Mapping[str, Any]) -> ResponseError:
    return ResponseError(type=ErrorType.LOOP_ERROR, code=ErrorCode(error["code"]), message=error["message"])
