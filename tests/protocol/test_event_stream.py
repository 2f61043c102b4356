"""Every event is one SSE block that says the same thing three times: in its name, in its id and in its data."""

from typing import Any
from uuid import UUID

import attrs
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from dwctl_trio.domain.events import (
    ArgumentsDelta,
    ArgumentsDone,
    ContentDelta,
    ContentDone,
    ContentKind,
    ContentPartAdded,
    ContentPartDone,
    Event,
    OutputItemAdded,
    OutputItemDone,
    StreamEvent,
)
from dwctl_trio.domain.items import FunctionCall, ItemStatus, Message, Reasoning, ReasoningPart, RefusalPart, TextPart
from dwctl_trio.protocol import json
from dwctl_trio.protocol.event_stream import DELTA_TYPES, DONE_TYPES, SNAPSHOT_TYPES, EventEncoder, render_event
from dwctl_trio.protocol.response_object import render_item, render_part, render_response
from dwctl_trio.protocol.sse import SseDecoder, SseFrame, encode_frame
from dwctl_trio.testing.domain_strategies import number, streams
from dwctl_trio.testing.request_strategies import texts

LINE_ENDS = ["\r", "\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]
SDK_EVENTS = TypeAdapter[Any](ResponseStreamEvent)

any_text = texts(min_size=1, max_size=30)
all_texts = any_text | st.text('\x01\x1f\x7f\x0b\x1c\u2028\u2029\u0085"\\\r\n: 😀', min_size=1)


def encode_plainly(sequence_number: int, event: Event) -> bytes:
    """A frame without any template."""
    kind, fields = render_event(event)
    return encode_frame(
        kind, json.encode({"type": kind, "sequence_number": sequence_number, **fields}), sequence_number
    )


def decode(frames: bytes) -> list[SseFrame]:
    return SseDecoder(event_bytes_max=1 << 30).feed(frames)


def assert_is_one_block(frame: bytes, sequence_number: int, event: Event) -> None:
    """The block is an id, an event and one data line, the three agree, and no reader sees another line in it."""
    assert frame.endswith(b"\n\n")
    id_line, event_line, data_line = frame[:-2].split(b"\n")
    data = msgspec.json.decode(data_line.removeprefix(b"data: "))
    kind, fields = render_event(event)
    assert id_line == b"id: %d" % sequence_number
    assert event_line == b"event: " + kind.encode()
    assert data_line.startswith(b"data: {")
    assert data == msgspec.json.decode(json.encode({"type": kind, "sequence_number": sequence_number, **fields}))
    text = data_line.decode()
    assert not any(end in text for end in LINE_ENDS)
    assert text.splitlines() == [text]


def split(frames: bytes) -> list[bytes]:
    return [block + b"\n\n" for block in frames.split(b"\n\n")[:-1]]


@given(stream=streams())
def test_every_event_of_a_stream_is_one_block_whose_parts_agree(stream: tuple[StreamEvent, ...]) -> None:
    blocks = split(EventEncoder().encode(0, [numbered.event for numbered in stream]))

    assert len(blocks) == len(stream)
    for block, numbered in zip(blocks, stream, strict=True):
        assert_is_one_block(block, numbered.sequence_number, numbered.event)


@given(stream=streams(max_fragments=4), data=st.data())
def test_how_events_are_batched_changes_no_byte(stream: tuple[StreamEvent, ...], data: st.DataObject) -> None:
    events = [numbered.event for numbered in stream]
    cut = data.draw(st.integers(0, len(events)), label="cut")
    encoder = EventEncoder()

    batched = encoder.encode(0, events[:cut]) + encoder.encode(cut, events[cut:])

    assert batched == EventEncoder().encode(0, events)


@given(stream=streams(max_fragments=4))
def test_our_own_decoder_reads_what_the_encoder_writes(stream: tuple[StreamEvent, ...]) -> None:
    frames = decode(EventEncoder().encode(0, [numbered.event for numbered in stream]))

    for frame, numbered in zip(frames, stream, strict=True):
        data = msgspec.json.decode(frame.data)
        assert frame.event == data["type"]
        assert frame.id == str(data["sequence_number"]) == str(numbered.sequence_number)


@given(stream=streams(max_fragments=4))
def test_the_official_sdk_knows_every_event(stream: tuple[StreamEvent, ...]) -> None:
    for frame in decode(EventEncoder().encode(0, [numbered.event for numbered in stream])):
        parsed = SDK_EVENTS.validate_json(frame.data)

        assert parsed.type == frame.event
        assert parsed.sequence_number == int(frame.id or "")


places = st.integers(0, 3)
deltas = st.builds(
    lambda kind, index, part, text: ContentDelta(kind, index, f"msg_{index}", part, text),
    st.sampled_from(ContentKind),
    places,
    places,
    all_texts,
)


@given(events=st.lists(deltas, min_size=1, max_size=12), first=st.integers(0, 2**40))
@example(events=[ContentDelta(ContentKind.TEXT, 0, "msg_0", 0, '"}\n\nevent: x\ndata: {\u2028\u2029\u0085')], first=0)
def test_a_delta_from_the_template_is_the_delta_encoded_plainly(events: list[ContentDelta], first: int) -> None:
    blocks = split(EventEncoder().encode(first, events))

    for sequence_number, (block, event) in enumerate(zip(blocks, events, strict=True), start=first):
        (frame,), (plain,) = decode(block), decode(encode_plainly(sequence_number, event))
        assert (frame.event, frame.id) == (plain.event, plain.id)
        assert msgspec.json.decode(frame.data) == msgspec.json.decode(plain.data)
        assert_is_one_block(block, sequence_number, event)


others = st.one_of(
    st.builds(ArgumentsDelta, places, st.just("fc_1"), all_texts),
    st.builds(ArgumentsDone, places, st.just("fc_1"), all_texts, all_texts),
    st.builds(ContentDone, st.sampled_from(ContentKind), places, st.just("msg_1"), places, all_texts),
)


@given(events=st.lists(deltas | others, max_size=12))
def test_other_events_between_deltas_leave_the_template_right(events: list[Event]) -> None:
    blocks = split(EventEncoder().encode(0, events))

    for block, numbered in zip(blocks, number(events), strict=True):
        assert_is_one_block(block, numbered.sequence_number, numbered.event)


def test_a_text_cannot_begin_another_field() -> None:
    text = "\n\nevent: response.completed\ndata: {}\n\n\r\rid: 7\r\ndata: x"

    (frame,) = decode(EventEncoder().encode(3, [ContentDelta(ContentKind.TEXT, 0, "msg_1", 0, text)]))

    assert (frame.event, frame.id) == ("response.output_text.delta", "3")
    assert msgspec.json.decode(frame.data)["delta"] == text


MESSAGE = Message(id="msg_1", status=ItemStatus.COMPLETED, content=(TextPart(text="a"),))
CALL = FunctionCall(id="fc_1", status=ItemStatus.IN_PROGRESS, call_id="call_1", name="f")
THOUGHT = Reasoning(id="rs_1", status=ItemStatus.COMPLETED, content=(ReasoningPart(text="a"),))


@pytest.mark.parametrize(
    ("event", "kind", "fields"),
    [
        (OutputItemAdded(2, CALL), "response.output_item.added", {"output_index": 2, "item": render_item(CALL)}),
        (OutputItemDone(0, MESSAGE), "response.output_item.done", {"output_index": 0, "item": render_item(MESSAGE)}),
        (
            ContentPartAdded(0, "msg_1", 1, RefusalPart(refusal="")),
            "response.content_part.added",
            {"item_id": "msg_1", "output_index": 0, "content_index": 1, "part": {"type": "refusal", "refusal": ""}},
        ),
        (
            ContentPartDone(0, "rs_1", 0, THOUGHT.content[0]),
            "response.content_part.done",
            {"item_id": "rs_1", "output_index": 0, "content_index": 0, "part": render_part(ReasoningPart(text="a"))},
        ),
        (
            ContentDelta(ContentKind.TEXT, 0, "msg_1", 0, "a"),
            "response.output_text.delta",
            {"item_id": "msg_1", "output_index": 0, "content_index": 0, "delta": "a", "logprobs": []},
        ),
        (
            ContentDelta(ContentKind.REASONING, 0, "rs_1", 0, "a"),
            "response.reasoning_text.delta",
            {"item_id": "rs_1", "output_index": 0, "content_index": 0, "delta": "a"},
        ),
        (
            ContentDone(ContentKind.TEXT, 0, "msg_1", 0, "a"),
            "response.output_text.done",
            {"item_id": "msg_1", "output_index": 0, "content_index": 0, "text": "a", "logprobs": []},
        ),
        (
            ContentDone(ContentKind.REFUSAL, 0, "msg_1", 0, "a"),
            "response.refusal.done",
            {"item_id": "msg_1", "output_index": 0, "content_index": 0, "refusal": "a"},
        ),
        (
            ArgumentsDelta(1, "fc_1", "{"),
            "response.function_call_arguments.delta",
            {"item_id": "fc_1", "output_index": 1, "delta": "{"},
        ),
        (
            ArgumentsDone(1, "fc_1", "f", "{}"),
            "response.function_call_arguments.done",
            {"item_id": "fc_1", "output_index": 1, "name": "f", "arguments": "{}"},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_event_has_the_fields_that_openai_documents(event: Event, kind: str, fields: dict[str, Any]) -> None:
    assert render_event(event) == (kind, fields)


@given(stream=streams(max_fragments=2))
def test_a_snapshot_carries_the_response_as_get_returns_it(stream: tuple[StreamEvent, ...]) -> None:
    first, last = stream[0].event, stream[-1].event

    for event in (first, last):
        kind, fields = render_event(event)
        assert kind == SNAPSHOT_TYPES[type(event)]  # type: ignore[index]
        response = event.response  # type: ignore[union-attr]
        assert json.encode(fields) == json.encode({"response": render_response(response)})
        assert isinstance(response.id, UUID)


def test_every_kind_of_content_has_its_own_names() -> None:
    named = [*DELTA_TYPES.values(), *DONE_TYPES.values(), *SNAPSHOT_TYPES.values()]

    assert set(DELTA_TYPES) == set(DONE_TYPES) == set(ContentKind)
    assert len(set(named)) == len(named)


def test_a_part_of_the_same_place_in_another_item_gets_its_own_template() -> None:
    first = ContentDelta(ContentKind.TEXT, 0, "msg_a", 0, "1")
    second = attrs.evolve(first, output_index=1, item_id="msg_b")

    frames = decode(EventEncoder().encode(0, [first, second, first]))

    assert [msgspec.json.decode(frame.data)["item_id"] for frame in frames] == ["msg_a", "msg_b", "msg_a"]
    assert [msgspec.json.decode(frame.data)["output_index"] for frame in frames] == [0, 1, 0]
