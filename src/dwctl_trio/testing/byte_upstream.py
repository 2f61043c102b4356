"""An upstream that answers with given bytes, split exactly as given: for what no script of the simulator says."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import h11
import trio

_READ_BYTES = 65536


@attrs.define(eq=False)
class ByteUpstream:
    """What the next calls are answered with."""

    base_url: str = ""
    pieces: Sequence[bytes] = ()
    """The body; each piece is an HTTP chunk of its own, so that the split survives TCP."""
    content_type: str = "text/event-stream"
    is_cut: bool = False
    """Whether the connection is closed after the last piece instead of ending the body."""


@asynccontextmanager
async def open_byte_upstream() -> AsyncIterator[ByteUpstream]:
    """The upstream, on a free port of this machine, for the time of the block."""
    upstream = ByteUpstream()

    async def serve(stream: trio.SocketStream) -> None:
        try:
            await _serve_connection(stream, upstream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            pass  # the client left
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        upstream.base_url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1"
        yield upstream
        nursery.cancel_scope.cancel()


async def _serve_connection(stream: trio.SocketStream, upstream: ByteUpstream) -> None:
    while True:
        connection = h11.Connection(h11.SERVER)
        if not await _read_request(stream, connection):
            return
        head = h11.Response(status_code=200, headers=[("content-type", upstream.content_type)])
        data = connection.send(head) or b""
        for piece in upstream.pieces:
            data += connection.send(h11.Data(data=piece)) or b"" if piece else b""
        if upstream.is_cut:
            await stream.send_all(data)
            return
        await stream.send_all(data + (connection.send(h11.EndOfMessage()) or b""))


async def _read_request(stream: trio.SocketStream, connection: h11.Connection) -> bool:
    """Read one request to its end; False if the client has left."""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(_READ_BYTES))
        elif isinstance(event, h11.ConnectionClosed):
            return False
        elif isinstance(event, h11.EndOfMessage):
            return True
