"""Bytes to requests: what the quick way reads, h11 reads alike, and how the bytes are cut makes no difference."""

from itertools import pairwise

import attrs
import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.http.attacks import ATTACKS

from dwctl_trio.http.request_reader import RequestHead, RequestReader, read_plain_head

HEAD_BYTES_MAX = 16384
HOST = b"Host: t\r\n"
NAMES = st.sampled_from(
    [b"Host", b"content-length", b"Connection", b"X-A", b"Transfer-Encoding", b"expect", b"Upgrade", b"bad name", b""]
)
VALUES = st.sampled_from(
    [b"t", b"2", b"0", b"00", b"+2", b"2, 2", b" 3 ", b"close", b"keep-alive, Close", b"chunked", b"100-continue", b""]
) | st.binary(max_size=8)
LINES = st.tuples(NAMES, st.sampled_from([b":", b": ", b":\t", b" :"]), VALUES, st.sampled_from([b"", b" ", b"\t "]))
HEADS = st.builds(
    lambda method, target, version, lines, end: (
        b" ".join([method, target, version]) + b"\r\n" + b"".join(b"".join(line) + b"\r\n" for line in lines) + end
    ),
    st.sampled_from([b"GET", b"POST", b"DELETE", b"PUT", b"CONNECT", b"get"]),
    st.sampled_from([b"/v1/responses", b"/?a=b%00", b"*", b"http://x/y", b"/\xff", b""]),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.11"]),
    st.lists(LINES, max_size=4).map(lambda lines: [(b"Host", b":", b"t", b""), *lines]) | st.lists(LINES, max_size=4),
    st.sampled_from([b"\r\n", b"\n", b""]),
)
POST = b"POST /v1/responses HTTP/1.1\r\nHost: t\r\n"
REQUESTS = {
    "plain": (POST + b"Content-Length: 4\r\n\r\nbody", b"body"),
    "without a body": (b"GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n", b""),
    "chunked": (POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n", b"body"),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", b""),
    "asking first": (POST + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\nbody", b"body"),
    "an upgrade": (b"GET / HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", b""),
}


def read_with_h11(data: bytes) -> tuple[RequestHead, bytes] | None:
    """The head at the beginning of *data* as h11 understands it, and all that follows; None if it is no request."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
    reader = RequestReader(HEAD_BYTES_MAX)
    parser.receive_data(data)
    try:
        event = parser.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(event, h11.Request):
        return None
    reader._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
    reader.feed(data)
    return (reader.head, parser.trailing_data[0]) if reader.head is not None else None


@given(HEADS, st.binary(max_size=6))
@example(b"GET / HTTP/1.1\r\nHost: t\r\nX: a\rb\r\n\r\n", b"")
@example(b"GET / HTTP/1.1\r\nHost: t\r\nX: a\x0bb\r\n\r\n", b"")
@example(b"GET / HTTP/1.1\r\nHost: t\r\nX:\r\n\r\n", b"")
@example(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n", b"hello")
def test_what_is_read_quickly_is_read_by_h11_alike(head: bytes, behind: bytes) -> None:
    plain = read_plain_head(head + behind)

    if plain is not None:
        read, body_at = plain
        known = read_with_h11(head + behind)
        assert known is not None
        assert known == (read, (head + behind)[body_at:])


def test_an_ordinary_request_is_read_quickly() -> None:
    plain = read_plain_head(REQUESTS["plain"][0])

    assert plain is not None
    assert plain[0].body_bytes == 4
    assert plain[0].headers == [(b"host", b"t"), (b"content-length", b"4")]


@pytest.mark.parametrize("length", [b"", b"Content-Length: 4\r\n"])
def test_a_request_with_chunks_and_a_length_is_the_last_on_its_connection(length: bytes) -> None:
    data, body = REQUESTS["chunked"]

    reading = read_all([data.replace(b"\r\n\r\n2", b"\r\n" + length + b"\r\n2")])

    ((head, read),) = reading.requests
    assert read == body
    assert head.closes == bool(length)


@attrs.define
class Reading:
    """Whatever a reader has told."""

    requests: list[tuple[RequestHead, bytes]] = attrs.Factory(list)
    fault: int | None = None


def read_all(pieces: list[bytes]) -> Reading:
    """All requests in *pieces*, each answered as soon as it is whole."""
    reader, reading = RequestReader(HEAD_BYTES_MAX), Reading()
    body = b""
    for piece in pieces:
        reader.feed(piece)
        body += reader.take_body()
        while reader.head is not None and reader.is_whole and reader.fault is None:
            reading.requests.append((reader.head, body))
            reader.go_on()
            body = reader.take_body()
    reader.feed_end()
    reading.fault = reader.fault
    return reading


@given(st.lists(st.sampled_from(sorted(REQUESTS)), min_size=1, max_size=3), st.lists(st.integers(0, 400), max_size=6))
def test_how_requests_are_cut_into_reads_makes_no_difference(names: list[str], cuts: list[int]) -> None:
    data = b"".join(REQUESTS[name][0] for name in names)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})

    reading = read_all([data[start:end] for start, end in pairwise(places)])

    assert reading.fault is None
    assert [body for _, body in reading.requests] == [REQUESTS[name][1] for name in names]
    bytewise = read_all([data[place : place + 1] for place in range(len(data))])
    # of a client that waits for a word, what matters is only whether its body has come
    assert [attrs.evolve(head, asks_to_go_on=False) for head, _ in reading.requests] == [
        attrs.evolve(head, asks_to_go_on=False) for head, _ in bytewise.requests
    ]


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_what_breaks_the_rules_is_the_same_fault_at_once_and_byte_by_byte(name: str) -> None:
    data = ATTACKS[name][:20_000]

    at_once, bytewise = read_all([data]), read_all([data[place : place + 1] for place in range(len(data))])

    assert at_once.fault == bytewise.fault
    assert [body for _, body in at_once.requests] == [body for _, body in bytewise.requests]


@given(st.binary(max_size=300), st.integers(0, 60))
def test_no_bytes_whatsoever_make_it_fail(data: bytes, cut: int) -> None:
    reading = read_all([POST[:cut] + data, data])

    assert reading.fault in {None, 400, 431, 501, 505}
