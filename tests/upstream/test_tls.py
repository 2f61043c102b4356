"""The transports over TLS, with a server whose certificate a test authority has signed."""

import ssl

import attrs
import httpx
import pytest
import trio
import trustme
from tests.upstream.places import USUAL, WAIT_S, open_byte_server, open_client

OK = b"HTTP/1.1 200 OK\r\n"
LARGE = b"x" * (8 * 1024 * 1024)
"""More than the sockets' buffers hold."""
LONG = LARGE[: 1024 * 1024]
"""More than is sent before anybody looks for an answer."""


@attrs.frozen
class Trust:
    """Both ends of TLS."""

    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture
def trust() -> Trust:
    authority, client = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(client)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.set_alpn_protocols(["h2", "http/1.1"])
    authority.issue_cert("localhost").configure_cert(server)
    return Trust(server, client)


async def test_a_server_is_verified_asked_for_by_name_and_kept(transport: str, trust: Trust) -> None:
    async def answer(stream: trio.SSLStream[trio.SocketStream], _: int) -> None:
        protocols.append(stream.selected_alpn_protocol())
        await stream.send_all(OK + b"content-length: 2\r\n\r\nok")

    names: list[str] = []
    protocols: list[str | None] = []
    trust.server.sni_callback = lambda _stream, name, _context: names.append(name)
    async with open_byte_server(answer, trust.server) as server, open_client(transport, tls=trust.client) as client:
        for _ in range(3):
            assert (await client.post(f"https://localhost:{server.port}/", content=b"hello")).content == b"ok"
        assert (server.connections, names, protocols) == (1, ["localhost"], ["http/1.1"] * 3)


async def test_a_server_that_is_not_who_it_should_be_gets_no_request(transport: str, trust: Trust) -> None:
    async with open_byte_server(tls=trust.server) as server:
        async with open_client(transport, tls=trust.client) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(f"https://127.0.0.1:{server.port}/")
        async with open_client(transport) as client:  # knows other authorities
            with pytest.raises(httpx.ConnectError):
                await client.get(f"https://localhost:{server.port}/")
        assert server.requests == []


async def test_a_server_that_does_not_speak_tls_is_given_up_in_time(transport: str) -> None:
    options = attrs.evolve(USUAL, connect_s=0.1)
    async with open_byte_server() as server, open_client(transport, options) as client:
        with trio.fail_after(WAIT_S), pytest.raises(httpx.ConnectTimeout):
            await client.get(f"https://127.0.0.1:{server.port}/")
        if transport == "direct":
            await server.wait_open(0)


async def test_large_requests_and_answers_are_whole(transport: str, trust: Trust) -> None:
    answer = OK + b"content-length: %d\r\n\r\n" % len(LONG) + LONG
    async with open_byte_server(answer, trust.server) as server, open_client(transport, tls=trust.client) as client:
        for _ in range(2):
            assert (await client.post(f"https://localhost:{server.port}/", content=LONG)).content == LONG
        assert server.connections == 1
        assert server.requests[1].endswith(b"\r\n\r\n" + LONG)


@pytest.mark.parametrize("sent", [b"", OK, OK + b"content-length: 3\r\n\r\nok"])
async def test_an_end_in_the_middle_is_an_error(transport: str, trust: Trust, sent: bytes) -> None:
    async def answer(stream: trio.SSLStream[trio.SocketStream], _: int) -> None:
        if sent:
            await stream.send_all(sent)
        await stream.transport_stream.aclose()

    async with open_byte_server(answer, trust.server) as server, open_client(transport, tls=trust.client) as client:
        for _ in range(2):
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(f"https://localhost:{server.port}/")
        assert len(server.requests) == 2


async def test_a_connection_closed_at_rest_is_noticed(transport: str, trust: Trust) -> None:
    async def answer(stream: trio.SSLStream[trio.SocketStream], _: int) -> None:
        await stream.send_all(OK + b"content-length: 2\r\n\r\nok")
        await stream.aclose()

    async with open_byte_server(answer, trust.server) as server, open_client(transport, tls=trust.client) as client:
        for count in range(1, 4):
            assert (await client.get(f"https://localhost:{server.port}/")).content == b"ok"
            await server.wait_open(0)
            assert (len(server.requests), server.connections) == (count, count)


async def test_a_large_request_that_is_refused_early_is_not_sent_to_its_end(trust: Trust) -> None:
    async def answer(stream: trio.abc.Stream, _: int) -> None:
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 7\r\n\r\nno more")
        await trio.sleep_forever()

    async with open_byte_server(answer, trust.server) as server, open_client("direct", tls=trust.client) as client:
        server.reads_bodies = False
        with trio.fail_after(WAIT_S):
            response = await client.post(f"https://localhost:{server.port}/", content=LARGE)
        assert (response.status_code, response.content) == (413, b"no more")
        assert len(server.requests[0]) < len(LARGE)


# -- what only the transport on Trio's sockets keeps


async def test_a_large_request_that_is_refused_early_is_told_why(trust: Trust) -> None:
    async def answer(stream: trio.SSLStream[trio.SocketStream], _: int) -> None:
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 7\r\n\r\n")
        await stream.send_all(b"no more")  # a record of its own: it is read after the sending was given up
        await trio.sleep_forever()

    async with open_byte_server(answer, trust.server) as server, open_client("direct", tls=trust.client) as client:
        server.reads_bodies = False
        with trio.fail_after(WAIT_S):
            response = await client.post(f"https://localhost:{server.port}/", content=LARGE)
        assert (response.status_code, response.content) == (413, b"no more")


@attrs.define(eq=False)
class OnePacket(trio.abc.Stream):
    """Keeps what TLS sends, and sends all of it when TLS closes it; the socket stays open."""

    below: trio.SocketStream
    kept: bytearray = attrs.field(factory=bytearray)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.kept += data

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.below.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.below.send_all(self.kept)


@pytest.mark.parametrize("rest", [OK + b"content-length: 3\r\n\r\nbad", b""])
async def test_what_comes_in_one_packet_with_the_end_of_an_answer_ends_the_connection(
    trust: Trust, rest: bytes
) -> None:
    """Another answer that nobody asked for, or only TLS's goodbye, without the socket's."""

    async def answer(stream: trio.SSLStream[trio.abc.Stream], _: int) -> None:
        below = stream.transport_stream
        assert isinstance(below, trio.SocketStream)
        with below.socket:
            stream.transport_stream = OnePacket(below)
            await stream.send_all(OK + b"content-length: 2\r\n\r\nok")
            if rest:
                await stream.send_all(rest)
            await stream.aclose()
            await trio.sleep_forever()

    async with open_byte_server(answer, trust.server) as server, open_client("direct", tls=trust.client) as client:
        for _ in range(2):
            with trio.fail_after(WAIT_S):
                assert (await client.get(f"https://localhost:{server.port}/")).content == b"ok"
        assert server.connections == 2
