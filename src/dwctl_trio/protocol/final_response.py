"""Response objects as they were told: the last one of a stream, and an end for one that cannot be read otherwise."""

from collections.abc import Mapping
from typing import Any

import msgspec

from dwctl_trio.domain.response import ResponseError, ResponseStatus
from dwctl_trio.protocol import json
from dwctl_trio.protocol.response_object import render_error
from dwctl_trio.protocol.sse import SseDecoder, encode_frame


class _SnapshotEvent(msgspec.Struct):
    response: msgspec.Raw


_DECODER = msgspec.json.Decoder(_SnapshotEvent)


def read_final_response(frames: bytes) -> bytes:
    """The response in the last of *frames*, whole ones that we wrote: JSON, as GET would answer it."""
    last = SseDecoder(event_bytes_max=len(frames)).feed(frames)[-1]
    return bytes(_DECODER.decode(last.data).response)


def read_opening(frames: bytes) -> dict[str, Any]:
    """The response object in the first of *frames*, whichever release wrote it.

    Raises:
        ValueError: It is none.
    """
    first = frames[: frames.index(b"\n\n") + 2]
    fields: dict[str, Any] = msgspec.json.decode(read_final_response(first), type=dict[str, Any])
    return fields


def with_status(opening: Mapping[str, Any], status: ResponseStatus, error: ResponseError | None) -> dict[str, Any]:
    """The response object *opening* in another status."""
    return {**opening, "status": status.value, "error": render_error(error)}


def encode_object(fields: Mapping[str, Any]) -> bytes:
    """A response object as it goes over the wire."""
    return json.encode(fields)


def encode_ending(number: int, fields: Mapping[str, Any]) -> bytes:
    """The frame of the terminal event, numbered *number*, of a response that has failed or was cancelled."""
    kind = "response.failed" if fields["status"] == ResponseStatus.FAILED.value else "response.incomplete"
    return encode_frame(kind, json.encode({"type": kind, "sequence_number": number, "response": fields}), number)
