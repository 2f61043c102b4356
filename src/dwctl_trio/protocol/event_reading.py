"""From the frames of a response stream, as we have stored them, back to its events.

Rule 1: what ``protocol/event_stream.py`` wrote, this reads; anything else is an error.
Rule 2: of a snapshot only its kind is read; whoever needs its response has it from elsewhere.
Rule 3: the model's own ids of the server's calls are not on the wire; the items' ids stand for them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from dwctl_trio.domain.events import (
    AnnotationAdded,
    ArgumentsDelta,
    ArgumentsDone,
    ContentDelta,
    ContentDone,
    ContentPartAdded,
    ContentPartDone,
    ItemEvent,
    McpCallCompleted,
    McpCallFailed,
    McpCallInProgress,
    OutputItemAdded,
    OutputItemDone,
    SnapshotEvent,
    SubAgentEvent,
)
from dwctl_trio.domain.items import CallKind, ToolCallItem
from dwctl_trio.domain.told import ToldEvent
from dwctl_trio.protocol.annotations import parse_annotation
from dwctl_trio.protocol.event_stream import (
    ANNOTATION_TYPE,
    ARGUMENTS_TYPES,
    DELTA_TYPES,
    DONE_TYPES,
    MCP_CALL_TYPES,
    SNAPSHOT_TYPES,
    SUB_AGENT_TYPE,
)
from dwctl_trio.protocol.logprobs import parse_logprobs
from dwctl_trio.protocol.output_items import parse_item, parse_part
from dwctl_trio.protocol.sse import SseDecoder

_DELTAS = {name: kind for kind, name in DELTA_TYPES.items()}
_DONES = {name: kind for kind, name in DONE_TYPES.items()}
_ARGUMENTS = {name: kind for kind, name in ARGUMENTS_TYPES.items()}
_MCP_CALLS: Mapping[str, type[McpCallInProgress | McpCallCompleted | McpCallFailed]] = {
    name: kind for kind, name in MCP_CALL_TYPES.items()
}
_SNAPSHOTS: Mapping[str, type[SnapshotEvent]] = {name: kind for kind, name in SNAPSHOT_TYPES.items()}
_NUMBER_AT = len(b"id: ")
_PIECE_BYTES = 1 << 16
"""Read at a time: some milliseconds' work."""


def frames_after(frames: bytes, sequence_number: int) -> bytes:
    """Of *frames*, whole ones in order, those with a greater number than *sequence_number*."""
    start = 0
    while start < len(frames):
        line_end = frames.index(b"\n", start)
        if int(frames[start + _NUMBER_AT : line_end]) > sequence_number:
            break
        start = frames.index(b"\n\n", line_end) + 2
    return frames[start:]


def read_events(segments: Iterable[bytes]) -> Iterator[ToldEvent]:
    """The events of a stream from its beginning.

    Args:
        segments: Whole frames each, in order.

    Raises:
        KeyError: A field is missing.
        ValueError: It is no event of ours, or not JSON.
    """
    reader = EventReader()
    for frames in segments:
        for frame in SseDecoder(event_bytes_max=len(frames)).feed(frames):
            yield reader.read(msgspec.json.decode(frame.data))


def read_pieces(frames: bytes) -> Iterator[list[ToldEvent]]:
    """The events of *frames*, a stream from its beginning, some at a time, so that others may have their turn between.

    Raises:
        KeyError: A field is missing.
        ValueError: It is no event of ours, or not JSON.
    """
    reader, decoder = EventReader(), SseDecoder(event_bytes_max=len(frames))
    for start in range(0, len(frames), _PIECE_BYTES):
        piece = decoder.feed(frames[start : start + _PIECE_BYTES])
        yield [reader.read(msgspec.json.decode(frame.data)) for frame in piece]


class EventReader:
    """Events out of the data of one stream; it remembers the names of calls, which not every event repeats."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def read(self, fields: Mapping[str, Any]) -> ToldEvent:
        """The event whose data are *fields*; of a snapshot its class.

        Raises:
            KeyError: A field is missing.
            ValueError: It is no event of ours.
        """
        kind = fields["type"]
        if kind in _SNAPSHOTS:
            return _SNAPSHOTS[kind]
        if kind == SUB_AGENT_TYPE:
            return SubAgentEvent(fields["agent"]["agent_name"], fields["item_id"], self._read_inside(fields["event"]))
        return self._read_inside(fields)

    def _read_inside(self, fields: Mapping[str, Any]) -> ItemEvent:
        kind, index = fields["type"], fields["output_index"]
        if kind in _DELTAS:
            logprobs = parse_logprobs(fields["logprobs"]) if fields.get("logprobs") else ()
            place, delta = fields["content_index"], fields["delta"]
            return ContentDelta(_DELTAS[kind], index, fields["item_id"], place, delta, logprobs)
        if kind in _DONES:
            text = fields["refusal"] if kind == "response.refusal.done" else fields["text"]
            logprobs = parse_logprobs(fields.get("logprobs"))
            return ContentDone(_DONES[kind], index, fields["item_id"], fields["content_index"], text, logprobs)
        if kind == ANNOTATION_TYPE:
            annotation, place = parse_annotation(fields["annotation"]), fields["content_index"]
            return AnnotationAdded(index, fields["item_id"], place, fields["annotation_index"], annotation)
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
                raise ValueError(f"no such event: {kind}")

    def _read_arguments(self, kind: CallKind, index: int, fields: Mapping[str, Any]) -> ArgumentsDone:
        item_id = fields["item_id"]
        name = fields["name"] if kind is CallKind.FUNCTION else self._names[item_id]
        arguments = fields["input"] if kind is CallKind.CUSTOM else fields["arguments"]
        return ArgumentsDone(kind, index, item_id, name, arguments)
