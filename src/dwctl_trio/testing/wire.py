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
    OutputItemAdded,
    OutputItemDone,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseQueued,
    StreamEvent,
)
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.domain.response import (
    ErrorCode,
    ErrorType,
    IncompleteReason,
    Response,
    ResponseError,
    ResponseStatus,
)
from dwctl_trio.domain.usage import Usage
from dwctl_trio.protocol.event_stream import DELTA_TYPES, DONE_TYPES
from dwctl_trio.protocol.response_object import parse_item, parse_items, parse_part
from dwctl_trio.protocol.sse import SseDecoder

_EVENT_BYTES_MAX = 64 * 1024 * 1024
_DELTAS = {name: kind for kind, name in DELTA_TYPES.items()}
_DONES = {name: kind for kind, name in DONE_TYPES.items()}
_SNAPSHOTS: Mapping[str, Callable[[Response], Event]] = {
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
        events.append(StreamEvent(fields["sequence_number"], parse_event(fields, request)))
    return ReadStream(events=tuple(events), data=tuple(data), is_done=is_done)


def parse_event(fields: Mapping[str, Any], request: ResponseRequest) -> Event:
    """The event whose data are *fields*.

    Raises:
        KeyError: A field is missing.
    """
    kind = fields["type"]
    if kind in _SNAPSHOTS:
        return _SNAPSHOTS[kind](parse_response(fields["response"], request))
    index = fields["output_index"]
    if kind in _DELTAS:
        return ContentDelta(_DELTAS[kind], index, fields["item_id"], fields["content_index"], fields["delta"])
    if kind in _DONES:
        text = fields["refusal"] if kind == "response.refusal.done" else fields["text"]
        return ContentDone(_DONES[kind], index, fields["item_id"], fields["content_index"], text)
    match kind:
        case "response.output_item.added":
            return OutputItemAdded(index, parse_item(fields["item"]))
        case "response.output_item.done":
            return OutputItemDone(index, parse_item(fields["item"]))
        case "response.content_part.added":
            return ContentPartAdded(index, fields["item_id"], fields["content_index"], parse_part(fields["part"]))
        case "response.content_part.done":
            return ContentPartDone(index, fields["item_id"], fields["content_index"], parse_part(fields["part"]))
        case "response.function_call_arguments.delta":
            return ArgumentsDelta(index, fields["item_id"], fields["delta"])
        case "response.function_call_arguments.done":
            return ArgumentsDone(index, fields["item_id"], fields["name"], fields["arguments"])
        case _:
            raise AssertionError(f"no such event: {kind}")


def parse_response(body: Mapping[str, Any], request: ResponseRequest) -> Response:
    """The response that *body*, a response object, shows; the error's type is not on the wire."""
    response_id = ids.parse_response_id(body["id"])
    assert response_id is not None, "an id of ours"
    usage, error, details = body["usage"], body["error"], body["incomplete_details"]
    return Response(
        id=response_id,
        created_at=body["created_at"],
        completed_at=body["completed_at"],
        request=request,
        status=ResponseStatus(body["status"]),
        output=parse_items(body["output"]),
        usage=None if usage is None else _parse_usage(usage),
        error=None if error is None else _parse_error(error),
        incomplete_reason=None if details is None else IncompleteReason(details["reason"]),
    )


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
