"""The SSE codec against a slow, literal reading of the standard, and against itself."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dwctl_trio.protocol.json import encode
from dwctl_trio.protocol.sse import DONE, KEEP_ALIVE, SseDecoder, SseEventTooLarge, SseFrame, encode_frame
from dwctl_trio.testing.strategies import byte_splits, model_texts

NO_LIMIT = 1 << 20

stream_pieces = st.sampled_from(
    [
        *(
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b"data:",
            b"data: ",
            b"data",
            b"event: ",
            b"event",
            b"id: ",
            b"id",
            b"retry: 5",
        ),
        *(b": ", b"a", b"data: a\n\n", b"\0", b"\xef\xbb\xbf", "é😀".encode(), b"\xff", b" ", b"id: 1\n", b"x: y\n"),
    ]
)
streams = st.lists(stream_pieces, max_size=25).map(b"".join)


def decode(pieces: list[bytes], *, event_bytes_max: int = NO_LIMIT) -> tuple[list[SseFrame], bool]:
    """All frames, and whether the stream ended in an event that is too large."""
    decoder = SseDecoder(event_bytes_max=event_bytes_max)
    frames: list[SseFrame] = []
    try:
        for piece in pieces:
            frames += decoder.feed(piece)
        frames += decoder.close()
    except SseEventTooLarge as too_large:
        return frames + too_large.frames, True
    return frames, False


def decode_by_the_standard(stream: bytes) -> list[SseFrame]:
    """Section 9.2.6, sentence by sentence; the last event counts without its blank line too, as ``close`` says."""
    stream = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    frames, lines, event, last_id = [], [], b"", b""
    for line in [*stream.split(b"\n"), b""]:
        if not line:
            if lines:
                name, id_ = event.decode(errors="replace") or None, last_id.decode(errors="replace") or None
                frames.append(SseFrame(name, b"\n".join(lines), id_))
            lines, event = [], b""
            continue
        field, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if field == b"data":
            lines.append(value)
        elif field == b"event":
            event = value
        elif field == b"id" and b"\0" not in value:
            last_id = value
    return frames


@given(stream=streams, splits=st.data())
def test_any_stream_split_anywhere_is_read_as_the_standard_says(stream, splits):
    frames, is_too_large = decode(splits.draw(byte_splits(stream)))
    assert frames == decode_by_the_standard(stream)
    assert not is_too_large


@given(stream=streams | st.binary(), event_bytes_max=st.integers(1, 30), splits=st.data())
@example(stream=b"data: a\n\ndata: " + b"b" * 30, event_bytes_max=20, splits=None)
@example(stream=b"data: 1\ndata: 2\n\n", event_bytes_max=13, splits=None)
@example(stream=b": " + b"c" * 30 + b"\ndata: a\n\n", event_bytes_max=20, splits=None)
def test_what_is_too_large_does_not_depend_on_the_split_either(stream, event_bytes_max, splits):
    pieces = splits.draw(byte_splits(stream)) if splits else [stream[at : at + 1] for at in range(len(stream))]
    assert decode(pieces, event_bytes_max=event_bytes_max) == decode([stream], event_bytes_max=event_bytes_max)


@given(pieces=st.lists(st.binary(max_size=20)), event_bytes_max=st.integers(1, 30))
def test_arbitrary_bytes_raise_nothing_but_too_large(pieces, event_bytes_max):
    frames, _ = decode(pieces, event_bytes_max=event_bytes_max)
    assert all(isinstance(frame.text, str) for frame in frames)
    assert all(len(frame.data) <= event_bytes_max for frame in frames)


@given(
    events=st.lists(st.tuples(st.sampled_from(["response.created", "ü"]), model_texts())),
    with_id=st.booleans(),
    splits=st.data(),
)
def test_what_was_encoded_is_decoded_again_with_keep_alives_anywhere_between(events, with_id, splits):
    texts = [text.replace("\ud83d", "?") for _, text in events]
    stream = b"".join(
        encode_frame(event, encode(text), number if with_id else None) + KEEP_ALIVE
        for number, ((event, _), text) in enumerate(zip(events, texts, strict=True))
    )
    frames, _ = decode(splits.draw(byte_splits(stream + DONE)))
    assert [(frame.event, frame.data) for frame in frames] == [
        *((event, encode(text)) for (event, _), text in zip(events, texts, strict=True)),
        (None, b"[DONE]"),
    ]
    if with_id and events:
        assert [frame.id for frame in frames] == [*map(str, range(len(events))), str(len(events) - 1)]


@pytest.mark.parametrize("data", [b"a\nb", b"a\rb"])
def test_data_with_a_line_break_is_never_encoded(data):
    with pytest.raises(AssertionError):
        encode_frame("e", data)


def test_a_frame_is_id_event_and_data_in_this_order():
    assert encode_frame("response.created", b"{}", 0) == b"id: 0\nevent: response.created\ndata: {}\n\n"


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"data\n\n", [b""]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"event: only\n\n", []),
        (b"data: a\r\rdata: b\r\n\r\n", [b"a", b"b"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b" data: a\n\n", []),
        (b"data: no blank line", [b"no blank line"]),
        (b"\xef\xbb", []),
        (b"", []),
    ],
)
def test_the_corners_of_the_standard(stream, data):
    assert [frame.data for frame in decode([stream])[0]] == data


def test_a_line_end_split_over_two_reads_is_one():
    assert [frame.data for frame in decode([b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n"])[0]] == [b"a\nb"]


def test_an_event_goes_on_in_the_next_read():
    assert [frame.data for frame in decode([b"data: a\n", b"data: b\n\n"])[0]] == [b"a\nb"]


def test_an_event_is_out_as_soon_as_its_blank_line_has_begun():
    decoder = SseDecoder(event_bytes_max=NO_LIMIT)
    assert decoder.feed(b"data: a\r\n\r") == [SseFrame(None, b"a", None)]
    assert decoder.feed(b"\n") == []


def test_an_id_holds_until_the_next_one_and_an_empty_one_resets_it():
    frames, _ = decode([b"id: 1\ndata: a\n\ndata: b\n\nid: \0\ndata: c\n\nid\ndata: d\n\n"])
    assert [frame.id for frame in frames] == ["1", "1", "1", None]


def test_an_event_may_have_exactly_its_limit_and_one_read_any_number_of_them():
    event = b"data: " + b"x" * 14 + b"\n\n"
    assert len(decode([event * 1000], event_bytes_max=20)[0]) == 1000
    assert decode([event], event_bytes_max=19) == ([], True)


def test_the_lines_of_an_event_are_counted_together_and_a_comment_only_while_it_is_read():
    assert decode([b": 2345\ndata: 1\n" + b": 2345\n" * 10 + b"\n"], event_bytes_max=13)[1] is False
    assert decode([b"data: 1\n: 23456\n\n"], event_bytes_max=13) == ([], True)
    assert decode([b"data: 1\ndata: 2\n\n"], event_bytes_max=13) == ([], True)


def test_after_an_event_that_was_too_large_nothing_is_read_any_more():
    decoder = SseDecoder(event_bytes_max=10)
    for _ in range(2):
        with pytest.raises(SseEventTooLarge) as caught:
            decoder.feed(b"data: 12345678\n\ndata: a\n\n")
        assert caught.value.frames == []
    with pytest.raises(SseEventTooLarge):
        decoder.close()


def test_a_large_event_that_dribbles_in_costs_no_more_than_its_length():
    decoder = SseDecoder(event_bytes_max=NO_LIMIT)
    frames = decoder.feed(b"data: ")
    for _ in range(100_000):
        frames += decoder.feed(b"x")
    assert decoder.feed(b"\n\n") == [SseFrame(None, b"x" * 100_000, None)]
