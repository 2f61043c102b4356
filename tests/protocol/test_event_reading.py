"""Stored frames are read back as the events that they were, and cut without reading them."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.domain.successor import as_told

from dwctl_trio.domain.events import ContentDelta, ContentKind, StreamEvent
from dwctl_trio.domain.told import told_by
from dwctl_trio.protocol.event_reading import EventReader, frames_after, read_events
from dwctl_trio.protocol.event_stream import EventEncoder
from dwctl_trio.testing.domain_strategies import streams
from dwctl_trio.testing.example_runs import AGENTS, EVERY_KIND, HANDED_OVER

_PLACES = st.integers(0, 10**6)


def _segments(events: list[StreamEvent], sizes: list[int]) -> list[bytes]:
    """The frames of *events*, so many in each segment."""
    encoder, segments, start = EventEncoder(), [], 0
    for size in [*sizes, len(events)]:
        segments.append(encoder.encode(start, [numbered.event for numbered in events[start : start + size]]))
        start = min(len(events), start + size)
    return segments


@pytest.mark.slow
@given(stream=streams(max_fragments=4), sizes=st.lists(st.integers(0, 5), max_size=8))
@example(stream=EVERY_KIND.events, sizes=[1] * 12)
@example(stream=AGENTS.events, sizes=[3, 4])
@example(stream=HANDED_OVER.events, sizes=[])
def test_what_is_read_from_segments_is_what_was_told(stream: tuple[StreamEvent, ...], sizes: list[int]) -> None:
    segments = _segments(list(stream), sizes)

    read = list(read_events(segments))

    whole = as_told([numbered.event for numbered in stream])
    assert [event for event in read if isinstance(event, type)] == [event for event in whole if isinstance(event, type)]
    assert [type(event) for event in read] == [type(event) for event in whole]
    assert [event for event in read if isinstance(event, ContentDelta)] == [
        event for event in whole if isinstance(event, ContentDelta)
    ]
    assert [(item.events, item.text) for item in told_by(read).items] == [
        (item.events, item.text) for item in told_by(whole).items
    ]


@pytest.mark.slow
@given(stream=streams(max_fragments=2), first=_PLACES, after=st.integers(-1, 60))
def test_frames_are_cut_where_their_numbers_pass_the_one_given(
    stream: tuple[StreamEvent, ...], first: int, after: int
) -> None:
    numbers = range(first, first + len(stream))
    frames = [EventEncoder().encode(number, [stream[number - first].event]) for number in numbers]

    cut = frames_after(b"".join(frames), first + after)

    assert cut == b"".join(frames[after + 1 :])


def test_frames_are_cut_by_their_numbers_and_not_by_what_they_say() -> None:
    delta = ContentDelta(ContentKind.TEXT, 0, "msg_1", 0, "\n\nid: 99\nevent: x\ndata: {}\n\n")
    frames = EventEncoder().encode(8, [delta, delta, delta])

    assert frames_after(frames, 7) == frames_after(frames, 0) == frames
    assert frames_after(frames, 8) == EventEncoder().encode(9, [delta, delta])
    assert frames_after(frames, 9) == EventEncoder().encode(10, [delta])
    assert frames_after(frames, 10) == frames_after(frames, 99) == frames_after(b"", 0) == b""


def test_an_event_that_is_not_ours_is_an_error() -> None:
    for fields in ({"type": "response.file_search_call.searching", "output_index": 0}, {"type": "", "output_index": 0}):
        with pytest.raises(ValueError, match="no such event"):
            EventReader().read(fields)
    with pytest.raises(KeyError):
        EventReader().read({"type": "response.output_text.delta", "output_index": 0})
