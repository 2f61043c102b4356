"""Heads and frames of HTTP/1.1: the same in whatever pieces they come, and nothing malformed gets through."""

import itertools
from collections.abc import Sequence

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dwctl_trio.protocol.http1 import (
    HEAD_BYTES_MAX,
    AnswerBody,
    AnswerHead,
    ChunkedBody,
    HeadReader,
    MalformedHttp,
    OpenBody,
    SizedBody,
    UnsendableHttp,
    render_chunk,
    render_head,
)

OK = b"HTTP/1.1 200 OK\r\n"
HOST = (b"host", b"upstream.example")

contents = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
extensions = st.sampled_from([b"", b";a", b' ;a="b c"', b"\t", b"; a=b;c"])
trailers = st.sampled_from([b"", b"x-a: 1\r\n", b"x-a:\r\nx-b: \xe4\t\r\n"])


def _split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def _read(body: AnswerBody, pieces: Sequence[bytes]) -> bytes:
    return b"".join(body.feed(piece) for piece in pieces)


def _answer_by_h11(framed: bytes) -> bytes | None:
    """What h11 makes of *framed* as a chunked body; None if it refuses it, or the body does not end with it."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[HOST]))
    connection.receive_data(OK + b"transfer-encoding: chunked\r\n\r\n" + framed)
    said = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Data):
                said += event.data
            elif isinstance(event, h11.EndOfMessage):
                return said if not connection.trailing_data[0] else None
            elif not isinstance(event, h11.Response):
                return None
    except h11.RemoteProtocolError:
        return None


# -- bodies


@given(contents, st.lists(extensions, min_size=7, max_size=7), trailers, st.lists(st.integers(0, 400)))
def test_chunks_are_read_alike_in_whatever_pieces_they_come(
    chunks: list[bytes], written: list[bytes], trailer: bytes, cuts: list[int]
) -> None:
    framed = b"".join(b"%X%b\r\n%b\r\n" % (len(c), e, c) for c, e in zip(chunks, written, strict=False))
    body = ChunkedBody()

    said = _read(body, _split(framed + b"000" + written[-1] + b"\r\n" + trailer + b"\r\n", cuts))

    assert (said, body.is_over, body.is_reusable) == (b"".join(chunks), True, True)


@given(contents, st.lists(st.integers(0, 400)))
def test_what_is_rendered_as_chunks_is_read_as_chunks(chunks: list[bytes], cuts: list[int]) -> None:
    body = ChunkedBody()

    said = _read(body, _split(b"".join(map(render_chunk, [*chunks, b""])), cuts))

    assert (said, body.is_over) == (b"".join(chunks), True)


@given(
    st.lists(st.sampled_from([b"5", b"0", b"\r\n", b"\n", b"\r", b"hello", b"a: b", b";x", b" ", b"0x"]), max_size=14)
)
@example([b"0", b"\r\n", b"\r\n"])
@example([b"5", b"\r\n", b"hello", b"\r\n", b"0", b";x", b"\r\n", b"a: b", b"\r\n", b"\r\n"])
def test_what_is_taken_for_a_body_h11_reads_the_same(parts: list[bytes]) -> None:
    framed, body = b"".join(parts), ChunkedBody()
    try:
        said = body.feed(framed)
    except MalformedHttp:
        return
    if body.is_over and body.is_reusable and body.failure is None:
        assert _answer_by_h11(framed) == said


@pytest.mark.parametrize(
    "framed",
    [
        *(b"0x5\r\n", b"+5\r\n", b"-1\r\n", b" 5\r\n", b"5 5\r\n", b"g\r\n", b"\r\n", b"5\nhello", b"5_0\r\n"),
        *(b"5\r\nhelloX\r\n", b"5\r\nhello\n0", b"5\r\nhello\rX", b"1" * 16 + b"\r\n", b"5;\x00\r\n", b"5;a\rb\r\n"),
        *(b"1" * 2000, b"5;" + b"x" * 2000, b"0\r\n: a\r\n\r\n", b"0\r\nb c: a\r\n\r\n", b"0\r\na\r\n\r\n"),
        *(b"0\r\na: b\n\r\n", b"0\r\n" + b"a: " + b"x" * 20_000, b"0\r\n" + b"a: bbbbbb\r\n" * 2000),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100_000])
def test_malformed_chunks_are_refused_in_whatever_pieces_they_come(framed: bytes, size: int) -> None:
    body = ChunkedBody()
    with pytest.raises(MalformedHttp):
        for at in range(0, len(framed), size):
            body.feed(framed[at : at + size])
            if body.failure is not None:
                raise body.failure


def test_what_is_whole_before_a_malformed_chunk_is_given_out_first() -> None:
    body = ChunkedBody()
    assert body.feed(b"1\r\na\r\n1\r\nb\r\nnonsense\r\n") == b"ab"
    assert isinstance(body.failure, MalformedHttp)


@given(st.binary(max_size=200), st.lists(st.integers(0, 400)), st.binary(max_size=3))
def test_a_body_of_known_length_ends_where_it_says(content: bytes, cuts: list[int], behind: bytes) -> None:
    body = SizedBody(len(content))

    said = _read(body, _split(content + behind, cuts))

    assert (said, body.is_over, body.is_reusable) == (content, True, not behind)


@pytest.mark.parametrize("body", [SizedBody(3), ChunkedBody()])
def test_a_body_that_is_cut_off_is_an_error(body: AnswerBody) -> None:
    assert body.feed(b"1\r") in {b"1\r", b""}
    with pytest.raises(MalformedHttp):
        body.feed_eof()


def test_a_body_that_ends_with_its_connection_has_no_other_end() -> None:
    body = OpenBody()
    assert (body.feed(b"0\r\n\r\n"), body.is_over) == (b"0\r\n\r\n", False)
    body.feed_eof()
    assert (body.is_over, body.is_reusable) == (True, False)


def test_what_comes_behind_the_last_chunk_spoils_the_connection() -> None:
    body = ChunkedBody()
    assert (body.feed(b"0\r\n\r\nHTTP/1.1"), body.is_over, body.is_reusable) == (b"", True, False)


# -- heads


def _head(sent: bytes, method: str = "POST") -> AnswerHead:
    head = HeadReader(method).feed(sent)
    assert head is not None
    return head


def test_the_head_of_a_request_is_what_it_was_given() -> None:
    rendered = render_head(b"POST", b"/v1?a=b", [HOST, (b"content-length", b"5")])
    assert rendered == b"POST /v1?a=b HTTP/1.1\r\nhost: upstream.example\r\ncontent-length: 5\r\n\r\n"


@given(st.lists(st.tuples(st.binary(max_size=4), st.binary(max_size=6)), max_size=3))
@example([(b"x", b"a\r\nb: c")])
@example([(b"x", b"a\xe4\tb")])
def test_what_is_rendered_h11_reads_as_what_it_was_given(headers: list[tuple[bytes, bytes]]) -> None:
    try:
        rendered = render_head(b"POST", b"/v1", [HOST, *headers])
    except UnsendableHttp:
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(rendered)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert event.headers.raw_items() == [HOST, *((name, value.strip(b" \t")) for name, value in headers)]


@pytest.mark.parametrize("header", [(b"x", b"a\r\nb: c"), (b"x\n", b"a"), (b"x y", b"a"), (b"x", b"\x00"), (b"", b"a")])
def test_a_header_that_would_be_two_is_not_sent(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(UnsendableHttp):
        render_head(b"POST", b"/", [HOST, header])


@pytest.mark.parametrize(("method", "target"), [(b"POST ", b"/"), (b"POST", b"/ a"), (b"POST", b"/\r\n"), (b"", b"/")])
def test_a_method_or_target_that_would_be_more_is_not_sent(method: bytes, target: bytes) -> None:
    with pytest.raises(UnsendableHttp):
        render_head(method, target, [HOST])


@given(st.lists(st.integers(0, 400)))
def test_a_head_is_read_alike_in_whatever_pieces_it_comes(cuts: list[int]) -> None:
    sent = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: a\r\n\r\n"
        + OK
        + b"A: b\r\nContent-Length: 9\r\n\r\n"
    )
    reader = HeadReader("POST")

    heads = [reader.feed(piece) for piece in _split(sent, cuts)]

    assert heads[:-1] == [None] * (len(heads) - 1)
    head = heads[-1]
    assert head is not None
    assert (head.status, head.headers, head.rest) == (200, [(b"A", b"b"), (b"Content-Length", b"9")], b"")


@pytest.mark.parametrize(
    ("method", "sent", "kind", "is_last"),
    [
        ("POST", OK + b"content-length: 3", SizedBody, False),
        ("POST", OK + b"transfer-encoding: chunked", ChunkedBody, False),
        ("POST", OK + b"transfer-encoding: chunked\r\ncontent-length: 3", ChunkedBody, False),
        ("POST", OK + b"content-length: 3\r\nconnection: Keep-Alive, Close", SizedBody, True),
        ("POST", OK + b"a: b", OpenBody, False),
        ("POST", b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\nconnection: keep-alive", SizedBody, True),
        ("POST", b"HTTP/1.1 204 No Content\r\na: b", SizedBody, False),
        ("HEAD", OK + b"content-length: 3", SizedBody, False),
    ],
)
def test_the_head_says_how_the_body_ends(method: str, sent: bytes, kind: type, is_last: bool) -> None:
    head = _head(sent + b"\r\n\r\n", method)
    assert (type(head.body), head.is_last) == (kind, is_last)


@pytest.mark.parametrize(
    "sent",
    [
        *(b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00", b"HTTP/2 200 OK\r\n\r\n", b"HTTP/1.1 20 OK\r\n\r\n"),
        *(OK + b"a b: c\r\n\r\n", OK + b"content-length: -1\r\n\r\n", OK + b"content-length: 1, 2\r\n\r\n"),
        OK + b"transfer-encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n\r\n",
        OK + b"a: " + b"x" * HEAD_BYTES_MAX + b"\r\n\r\n",
        OK + b"a: b\r\n" * (HEAD_BYTES_MAX // 5),
        b"HTTP/1.1 100 Continue\r\n\r\n" * (HEAD_BYTES_MAX // 20),
    ],
)
@pytest.mark.parametrize("size", [1000, 10_000_000])
def test_what_is_no_head_or_too_large_is_refused(sent: bytes, size: int) -> None:
    reader = HeadReader("POST")
    with pytest.raises(MalformedHttp):
        for at in range(0, len(sent), size):
            reader.feed(sent[at : at + size])


@pytest.mark.parametrize("sent", [b"", OK])
def test_an_end_before_the_end_of_the_head_is_an_error(sent: bytes) -> None:
    reader = HeadReader("POST")
    assert not sent or reader.feed(sent) is None
    with pytest.raises(MalformedHttp):
        reader.feed_eof()
