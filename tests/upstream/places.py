"""A server that answers as it is told, byte by byte, for what neither the simulator nor any library would send."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import httpx
import trio

from dwctl_trio.upstream.direct import DirectTransport
from dwctl_trio.upstream.plain import PlainTransport
from dwctl_trio.upstream.transport import TransportOptions

WAIT_S = 10.0
"""Bound of the tests' waits: far more than any needs on a busy machine, far less than a hung run."""
USUAL = TransportOptions(connect_s=5.0, idle_connections=4, idle_s=60.0)

Answer = Callable[[trio.abc.Stream, int], Awaitable[None]]
"""Answers one request, given how many came before it; leaving with the stream closed ends the connection."""


@attrs.define(eq=False)
class ByteServer:
    """What the server was asked, and by how many connections."""

    answer: Answer | bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    reads_bodies: bool = True
    requests: list[bytes] = attrs.field(factory=list)
    connections: int = 0
    open: int = 0
    port: int = 0
    changed: trio.Event = attrs.field(factory=trio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def wait_open(self, count: int) -> None:
        """Wait until so many connections are open."""
        with trio.fail_after(WAIT_S):
            while self.open != count:
                await self.changed.wait()

    def note(self, opened: int) -> None:
        self.open += opened
        self.connections += opened > 0
        self.changed.set()
        self.changed = trio.Event()

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.note(1)
        try:
            while (asked := await self._read_request(stream)) is not None:
                self.requests.append(asked)
                if isinstance(self.answer, bytes):
                    await stream.send_all(self.answer)
                else:
                    await self.answer(stream, len(self.requests) - 1)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has left, or the answer closed the connection
        finally:
            await trio.aclose_forcefully(stream)
            self.note(-1)

    async def _read_request(self, stream: trio.abc.Stream) -> bytes | None:
        """One request, head and body; None if the client has left."""
        asked = bytearray()
        while (end := asked.find(b"\r\n\r\n") + 4) < 4 or not self._is_whole(asked, end):
            received = await stream.receive_some(65536)
            if not received:
                return None
            asked += received
        return bytes(asked)

    def _is_whole(self, asked: bytearray, end: int) -> bool:
        """Whether *asked*, whose head ends at *end*, has all of its body, or as much as is read."""
        head = bytes(asked[:end]).lower()
        if not self.reads_bodies:
            return True
        if b"transfer-encoding: chunked" in head:
            return asked.endswith(b"0\r\n\r\n")
        _, _, length = head.partition(b"content-length: ")
        return len(asked) - end >= int(length.partition(b"\r\n")[0] or 0)


@asynccontextmanager
async def open_byte_server(
    answer: Answer | bytes | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ByteServer]:
    """The server, on a free port of this machine, for the time of the block."""
    server = ByteServer() if answer is None else ByteServer(answer=answer)
    async with trio.open_nursery() as nursery:
        if tls is None:
            (listener, *_) = await nursery.start(trio.serve_tcp, server.serve, 0)
        else:
            (listener, *_) = await nursery.start(trio.serve_ssl_over_tcp, server.serve, 0, tls)
            listener = listener.transport_listener
        server.port = listener.socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_client(
    transport: str, options: TransportOptions = USUAL, tls: ssl.SSLContext | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """httpx's own client over a transport."""
    kind = {"direct": DirectTransport, "httpx": PlainTransport}[transport]
    async with httpx.AsyncClient(transport=kind(tls or ssl.create_default_context(), options)) as client:
        yield client
