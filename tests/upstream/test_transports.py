"""The transports on real sockets, as httpx's own client uses them: answers of every kind, whole, late, cut or wrong."""

from collections.abc import AsyncIterator
from contextlib import suppress

import attrs
import httpx
import pytest
import trio
from tests.upstream.places import USUAL, WAIT_S, open_byte_server, open_client

OK = b"HTTP/1.1 200 OK\r\n"
LARGE = b"x" * (16 * 1024 * 1024)
"""More than the sockets' buffers hold."""


async def _receive_all(stream: trio.abc.Stream) -> None:
    while await stream.receive_some(65536):
        pass


@pytest.mark.parametrize(
    ("answer", "said", "is_kept"),
    [
        (OK + b"content-length: 2\r\n\r\nok", b"ok", True),
        (OK + b"transfer-encoding: chunked\r\n\r\n1\r\no\r\n1;a=b\r\nk\r\n0\r\nx-a: b\r\n\r\n", b"ok", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 2\r\n\r\nok", b"ok", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (OK + b"content-length: 0\r\n\r\n", b"", True),
        (OK + b"content-length: 2\r\nconnection: close\r\n\r\nok", b"ok", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok", False),
    ],
    ids=["sized", "chunked", "continue", "no content", "empty", "close", "1.0"],
)
async def test_an_answer_is_read_to_its_end_and_its_connection_kept_if_it_can_be(
    transport: str, answer: bytes, said: bytes, is_kept: bool
) -> None:
    async with open_byte_server(answer) as server, open_client(transport) as client:
        for _ in range(3):
            assert (await client.post(server.url, content=b"hello")).content == said
        await server.wait_open(1 if is_kept else 0)
        assert server.connections == (1 if is_kept else 3)
        assert server.requests[0].endswith(b"\r\n\r\nhello")


async def test_what_comes_behind_an_answer_is_not_taken_for_the_next() -> None:
    async with open_byte_server(OK + b"content-length: 2\r\n\r\nok" + OK) as server, open_client("direct") as client:
        for _ in range(3):
            assert (await client.post(server.url, content=b"hello")).content == b"ok"
        await server.wait_open(0)


async def test_a_body_without_a_length_ends_with_its_connection(transport: str) -> None:
    async def answer(stream: trio.abc.Stream, _: int) -> None:
        await stream.send_all(OK + b"\r\nall of it")
        await stream.aclose()

    async with open_byte_server(answer) as server, open_client(transport) as client:
        assert (await client.get(server.url)).content == b"all of it"


async def test_a_body_of_unknown_length_is_sent_in_chunks(transport: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"one", b"", b"two"):
            await trio.lowlevel.checkpoint()
            yield piece

    async with open_byte_server() as server, open_client(transport) as client:
        for _ in range(2):
            assert (await client.post(server.url, content=pieces())).content == b"ok"
        assert server.requests[0].endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
        assert server.connections == 1


async def test_what_httpx_does_beyond_a_transport_works(transport: str) -> None:
    async def answer(stream: trio.abc.Stream, number: int) -> None:
        moved = b"HTTP/1.1 307 Moved\r\nlocation: /v2\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n"
        await stream.send_all(moved if number == 0 else OK + b"content-length: 2\r\n\r\n{}")

    async with open_byte_server(answer) as server, open_client(transport) as client:
        response = await client.post(server.url, json={}, follow_redirects=True, auth=("me", "secret"))
        assert (response.json(), response.http_version, len(response.history)) == ({}, "HTTP/1.1", 1)
    assert server.requests[1].startswith(b"POST /v2 HTTP/1.1\r\n")
    assert b"cookie: a=b\r\n" in server.requests[1].lower()


# -- what is wrong


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        OK,
        OK + b"content-length: 3\r\n\r\nok",
        OK + b"transfer-encoding: chunked\r\n\r\n2\r\nok",
        OK + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\n0x2\r\nok\r\n0\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\n1\r\nok\r\n0\r\n\r\n",
        OK + b"transfer-encoding: gzip\r\n\r\nok",
        OK + b"content-length: two\r\n\r\nok",
        OK + b"a: " + b"x" * 200_000,
        b"HTTP/2 200 OK\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
async def test_an_answer_that_is_cut_or_malformed_is_a_fault_of_the_other_side_and_asked_for_once(
    transport: str, sent: bytes
) -> None:
    async def answer(stream: trio.SocketStream, _: int) -> None:
        await stream.send_all(sent)
        await stream.send_eof()

    async with open_byte_server(answer) as server, open_client(transport) as client:
        with trio.fail_after(WAIT_S), pytest.raises(httpx.RemoteProtocolError):
            await client.post(server.url, content=b"hello")
        await server.wait_open(0)
        assert len(server.requests) == 1


@pytest.mark.parametrize("sent", [b"", OK, OK + b"content-length: 3\r\n\r\nok"])
async def test_a_connection_that_is_reset_is_a_failure_to_read(transport: str, sent: bytes) -> None:
    async def answer(stream: trio.SocketStream, _: int) -> None:
        await stream.send_all(sent)
        arrived.set()
        await seen.wait()
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.aclose()

    arrived, seen = trio.Event(), trio.Event()
    async with open_byte_server(answer) as server, open_client(transport) as client, trio.open_nursery() as nursery:

        async def reset_when_read() -> None:
            await arrived.wait()
            await trio.testing.wait_all_tasks_blocked()
            seen.set()

        nursery.start_soon(reset_when_read)
        with trio.fail_after(WAIT_S), pytest.raises(httpx.ReadError):
            await client.post(server.url, content=b"hello")


async def test_who_cannot_be_reached_and_what_cannot_be_sent_are_errors_of_httpx(transport: str) -> None:
    async with open_client(transport) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("http://127.0.0.1:1/")
        with pytest.raises(httpx.ConnectError):
            await client.get("http://nobody.invalid/")
        with pytest.raises(httpx.UnsupportedProtocol):
            await client.get("ftp://127.0.0.1/")
    async with open_byte_server() as server, open_client(transport) as client:
        with pytest.raises(httpx.LocalProtocolError):
            await client.get(server.url, headers={"x-a": "b\r\nc: d"})
        await server.wait_open(0)
    assert server.requests == []


async def test_what_came_before_a_malformed_chunk_and_the_head_are_not_lost(transport: str) -> None:
    sent = b"HTTP/1.1 429 Slow Down\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\nnonsense\r\n"
    async with (
        open_byte_server(sent) as server,
        open_client(transport) as client,
        client.stream("POST", server.url, content=b"hello") as response,
    ):
        assert response.status_code == 429
        pieces = response.aiter_raw()
        assert await anext(pieces) == b"ok"
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(pieces)


# -- connections at rest


async def test_a_connection_closed_at_rest_is_noticed_before_anything_is_sent(transport: str) -> None:
    async def answer(stream: trio.SocketStream, _: int) -> None:
        await stream.send_all(OK + b"content-length: 2\r\n\r\nok")
        await stream.aclose()

    async with open_byte_server(answer) as server, open_client(transport) as client:
        for count in range(1, 4):
            assert (await client.post(server.url, content=b"hello")).content == b"ok"
            await server.wait_open(0)
            assert (len(server.requests), server.connections) == (count, count)


async def test_a_kept_connection_that_breaks_under_a_request_is_not_sent_to_again(transport: str) -> None:
    async def answer(stream: trio.SocketStream, number: int) -> None:
        if number == 1:
            await stream.aclose()
        else:
            await stream.send_all(OK + b"content-length: 2\r\n\r\nok")

    async with open_byte_server(answer) as server, open_client(transport) as client:
        await client.post(server.url, content=b"first")
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(server.url, content=b"second")
        assert (len(server.requests), server.connections) == (2, 1)
        assert (await client.post(server.url, content=b"third")).content == b"ok"


@pytest.mark.parametrize(("options", "kept"), [({}, 4), ({"idle_connections": 0}, 0), ({"idle_s": 0.0}, 0)])
async def test_of_the_connections_at_rest_only_so_many_are_kept(
    transport: str, options: dict[str, float], kept: int
) -> None:
    gate = trio.Event()

    async def answer(stream: trio.abc.Stream, _: int) -> None:
        await gate.wait()
        await stream.send_all(OK + b"content-length: 2\r\n\r\nok")

    async with open_byte_server(answer) as server:
        async with open_client(transport, attrs.evolve(USUAL, **options)) as client:
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(client.get, server.url)
                await server.wait_open(10)
                gate.set()
            if transport == "direct":
                await server.wait_open(kept)
            await client.get(server.url)
            assert server.connections == (11 if kept == 0 else 10)
        await server.wait_open(0)


async def test_connections_are_kept_apart_by_their_server(transport: str) -> None:
    async with open_byte_server() as one, open_byte_server(OK + b"content-length: 0\r\n\r\n") as other:
        async with open_client(transport) as client:
            for _ in range(3):
                assert (await client.get(one.url)).content == b"ok"
                assert (await client.get(other.url)).content == b""
        assert (one.connections, other.connections) == (1, 1)


# -- large requests


async def test_a_large_request_is_sent_whole(transport: str) -> None:
    async with open_byte_server() as server, open_client(transport) as client:
        for _ in range(2):
            assert (await client.post(server.url, content=LARGE)).content == b"ok"
        assert [len(asked.partition(b"\r\n\r\n")[2]) for asked in server.requests] == [len(LARGE)] * 2
        assert server.connections == 1


async def test_a_large_request_that_is_refused_early_is_not_sent_to_its_end() -> None:
    async def answer(stream: trio.abc.Stream, _: int) -> None:
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 7\r\n\r\nno more")
        await trio.sleep_forever()

    async with open_byte_server(answer) as server, open_client("direct") as client:
        server.reads_bodies = False
        with trio.fail_after(WAIT_S):
            response = await client.post(server.url, content=LARGE)
        assert (response.status_code, response.content) == (413, b"no more")
        assert len(server.requests[0]) < len(LARGE)
        assert client._transport._idle == type(client._transport._idle)()


async def test_a_server_that_answers_early_and_reads_on_gets_the_whole_request(transport: str) -> None:
    async def answer(stream: trio.abc.Stream, _: int) -> None:
        asked = len(server.requests[-1].partition(b"\r\n\r\n")[2])
        await stream.send_all(OK + b"transfer-encoding: chunked\r\n\r\n")
        while asked < len(LARGE):
            asked += len(await stream.receive_some(65536))
        await stream.send_all(b"2\r\nok\r\n0\r\n\r\n")

    async with open_byte_server(answer) as server, open_client(transport) as client:
        server.reads_bodies = False
        for _ in range(2):
            assert (await client.post(server.url, content=LARGE)).content == b"ok"
        assert server.connections == 1


async def test_an_answer_is_read_also_if_the_request_could_not_be_sent() -> None:
    async def answer(stream: trio.SocketStream, _: int) -> None:
        await stream.send_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno")
        await stream.aclose()  # with most of the request unread: the connection is reset

    async with open_byte_server(answer) as server, open_client("direct") as client:
        server.reads_bodies = False
        with trio.fail_after(WAIT_S):
            assert (await client.post(server.url, content=LARGE)).status_code == 401
        await server.wait_open(0)


async def test_a_malformed_answer_in_the_step_in_which_a_large_request_is_left_is_an_error_or_nothing() -> None:
    async def answer(stream: trio.abc.Stream, _: int) -> None:
        await stream.send_all(b"nonsense\r\n\r\n")  # the client may be about to read it, and is not cancelled then
        scope.cancel()

    async with open_byte_server(answer) as server, open_client("direct") as client:
        server.reads_bodies = False
        for _ in range(30):
            with trio.CancelScope() as scope, suppress(httpx.RemoteProtocolError):
                await client.post(server.url, content=LARGE)
                pytest.fail("it was neither")
