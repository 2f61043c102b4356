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
    ItemEvent,
    McpCallCompleted,
    McpCallFailed,
    McpCallInProgress,
    OutputItemAdded,
    OutputItemDone,
    StreamEvent,
    SubAgentEvent,
)
from dwctl_trio.domain.items import (
    CALL_TYPES,
    CallKind,
    FunctionCall,
    ItemStatus,
    McpCall,
    Message,
    Reasoning,
    ReasoningPart,
    RefusalPart,
    TextPart,
)
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.protocol import json
from dwctl_trio.protocol.event_stream import (
    ARGUMENTS_TYPES,
    DELTA_TYPES,
    DONE_TYPES,
    MCP_CALL_TYPES,
    SNAPSHOT_TYPES,
    SUB_AGENT_TYPE,
    EventEncoder,
    render_event,
)
from dwctl_trio.protocol.output_items import render_item, render_part
from dwctl_trio.protocol.response_object import render_response
from dwctl_trio.protocol.sse import SseDecoder, SseFrame, encode_frame
from dwctl_trio.testing.domain_strategies import streams
from dwctl_trio.testing.played_runs import number
from dwctl_trio.testing.request_strategies import texts
from dwctl_trio.testing.wire import read_stream

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
def test_the_official_sdk_knows_every_event_but_our_own(stream: tuple[StreamEvent, ...]) -> None:
    known = [numbered.event for numbered in stream if not isinstance(numbered.event, SubAgentEvent)]
    for frame in decode(EventEncoder().encode(0, known)):
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


kinds = st.sampled_from(CallKind)
others: st.SearchStrategy[ItemEvent] = st.one_of(
    st.builds(ArgumentsDelta, kinds, places, st.just("fc_1"), all_texts),
    st.builds(ArgumentsDone, kinds, places, st.just("fc_1"), all_texts, all_texts),
    st.builds(ContentDone, st.sampled_from(ContentKind), places, st.just("msg_1"), places, all_texts),
    st.builds(McpCallInProgress, places, st.just("mcp_1")),
)
inside = st.builds(SubAgentEvent, all_texts, st.just("mcp_1"), deltas | others)


@given(events=st.lists(deltas | others | inside, max_size=12))
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
            ArgumentsDelta(CallKind.FUNCTION, 1, "fc_1", "{"),
            "response.function_call_arguments.delta",
            {"item_id": "fc_1", "output_index": 1, "delta": "{"},
        ),
        (
            ArgumentsDone(CallKind.FUNCTION, 1, "fc_1", "f", "{}"),
            "response.function_call_arguments.done",
            {"item_id": "fc_1", "output_index": 1, "name": "f", "arguments": "{}"},
        ),
        (
            ArgumentsDelta(CallKind.CUSTOM, 1, "ctc_1", "a"),
            "response.custom_tool_call_input.delta",
            {"item_id": "ctc_1", "output_index": 1, "delta": "a"},
        ),
        (
            ArgumentsDone(CallKind.CUSTOM, 1, "ctc_1", "c", "ab"),
            "response.custom_tool_call_input.done",
            {"item_id": "ctc_1", "output_index": 1, "input": "ab"},
        ),
        (
            ArgumentsDelta(CallKind.SERVER, 1, "mcp_1", "{"),
            "response.mcp_call_arguments.delta",
            {"item_id": "mcp_1", "output_index": 1, "delta": "{"},
        ),
        (
            ArgumentsDone(CallKind.SERVER, 1, "mcp_1", "s", "{}"),
            "response.mcp_call_arguments.done",
            {"item_id": "mcp_1", "output_index": 1, "arguments": "{}"},
        ),
        (McpCallInProgress(1, "mcp_1"), "response.mcp_call.in_progress", {"item_id": "mcp_1", "output_index": 1}),
        (McpCallCompleted(1, "mcp_1"), "response.mcp_call.completed", {"item_id": "mcp_1", "output_index": 1}),
        (McpCallFailed(1, "mcp_1"), "response.mcp_call.failed", {"item_id": "mcp_1", "output_index": 1}),
        (
            SubAgentEvent("researcher", "mcp_1", McpCallFailed(0, "mcp_2")),
            "dwctl:sub_agent",
            {
                "agent": {"agent_name": "researcher"},
                "item_id": "mcp_1",
                "event": {"type": "response.mcp_call.failed", "item_id": "mcp_2", "output_index": 0},
            },
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_event_has_the_fields_that_openai_documents(event: Event, kind: str, fields: dict[str, Any]) -> None:
    assert render_event(event) == (kind, fields)


DONE_CALL = McpCall(id="mcp_1", status=ItemStatus.COMPLETED, call_id="mcp_1", name="s", arguments="{}", output="out")
FAILED_CALL = McpCall(id="mcp_1", status=ItemStatus.FAILED, call_id="mcp_1", name="s", arguments="{}", error="why")
OPEN_MESSAGE = Message(id="msg_1", status=ItemStatus.IN_PROGRESS)
EVERY_ITEM_EVENT: list[ItemEvent] = [
    OutputItemAdded(0, OPEN_MESSAGE),
    *(ContentPartAdded(0, "msg_1", 0, part) for part in (TextPart(text=""), RefusalPart(refusal=""))),
    *(ContentDelta(kind, 0, "msg_1", 0, "a") for kind in ContentKind),
    *(ContentDone(kind, 0, "msg_1", 0, "a") for kind in ContentKind),
    ContentPartDone(0, "rs_1", 0, ReasoningPart(text="a")),
    *(
        event
        for kind, make in CALL_TYPES.items()
        for event in (
            OutputItemAdded(1, make(id=kind.value, status=ItemStatus.IN_PROGRESS, call_id=kind.value, name="f")),
            ArgumentsDelta(kind, 1, kind.value, "{}"),
            ArgumentsDone(kind, 1, kind.value, "f", "{}"),
            OutputItemDone(
                1, make(id=kind.value, status=ItemStatus.INCOMPLETE, call_id=kind.value, name="f", arguments="{}")
            ),
        )
    ),
    *(make(1, "mcp_1") for make in MCP_CALL_TYPES),
    OutputItemDone(1, DONE_CALL),
    OutputItemDone(1, FAILED_CALL),
]


@pytest.mark.parametrize("event", EVERY_ITEM_EVENT, ids=lambda event: render_event(event)[0])
def test_the_official_sdks_strict_types_accept_every_kind_of_event(event: ItemEvent) -> None:
    (frame,) = decode(EventEncoder().encode(7, [event]))

    parsed = SDK_EVENTS.validate_json(frame.data, strict=True)

    assert (parsed.type, parsed.sequence_number) == (frame.event, 7)


def test_every_kind_of_event_is_read_back_alone_and_inside_a_sub_agents() -> None:
    tagged = [SubAgentEvent("researcher", "mcp_0", event) for event in EVERY_ITEM_EVENT]
    asked = ResponseRequest(model="m", input=())
    events: list[Event] = [*EVERY_ITEM_EVENT, *tagged]

    read = read_stream(EventEncoder().encode(0, events), asked)

    assert [numbered.event for numbered in read.events] == events
    assert [numbered.sequence_number for numbered in read.events] == list(range(len(events)))


def test_what_is_inside_a_sub_agents_event_has_no_number_of_its_own() -> None:
    (frame,) = decode(EventEncoder().encode(3, [SubAgentEvent("researcher", "mcp_0", EVERY_ITEM_EVENT[3])]))
    data = msgspec.json.decode(frame.data)

    assert data["sequence_number"] == 3
    assert data["event"]["type"] == "response.output_text.delta"
    assert "sequence_number" not in data["event"]


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
    named = [*DELTA_TYPES.values(), *DONE_TYPES.values(), *SNAPSHOT_TYPES.values(), SUB_AGENT_TYPE]
    named += [*ARGUMENTS_TYPES.values(), *MCP_CALL_TYPES.values()]

    assert set(DELTA_TYPES) == set(DONE_TYPES) == set(ContentKind)
    assert set(ARGUMENTS_TYPES) == set(CallKind)
    assert len(set(named)) == len(named)


def test_a_part_of_the_same_place_in_another_item_gets_its_own_template() -> None:
    first = ContentDelta(ContentKind.TEXT, 0, "msg_a", 0, "1")
    second = attrs.evolve(first, output_index=1, item_id="msg_b")

    frames = decode(EventEncoder().encode(0, [first, second, first]))

    assert [msgspec.json.decode(frame.data)["item_id"] for frame in frames] == ["msg_a", "msg_b", "msg_a"]
    assert [msgspec.json.decode(frame.data)["output_index"] for frame in frames] == [0, 1, 0]
