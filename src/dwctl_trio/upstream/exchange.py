"""One request on a connection: it goes out, and the head of its answer comes in.

Rule 1: whoever sends a body that the sockets' buffers do not hold reads at the same time, for the answer may come
before its end: a server that refuses a large request says so and reads no further.
Rule 2: a connection that breaks under the request may still hold the answer, so it is read to its end.
"""

from collections.abc import Sequence

import attrs
import httpx
import trio

from dwctl_trio.protocol.http1 import AnswerHead, HeadReader, UnsendableHttp, render_chunk, render_head
from dwctl_trio.upstream.request_body import WholeBody
from dwctl_trio.upstream.wire import Wire

_REFUSED_FROM = 400
"""Statuses that make the rest of a request's body pointless."""


async def exchange_heads(wire: Wire, request: httpx.Request) -> AnswerHead:
    """Send *request* over *wire* and read the head of its answer.

    Returns:
        The head; it is the last on this connection if the request was not sent to its end.

    Raises:
        OSError: The connection broke.
        MalformedHttp: The answer has no head, or none of HTTP's.
        UnsendableHttp: The request is not one.
    """
    headers = request.headers.raw
    rendered = render_head(request.method.encode("ascii"), request.url.raw_path, headers)
    reader, upload = HeadReader(request.method), _Upload(wire, request.stream, headers)
    await upload.begin(rendered)
    if upload.is_under_way:
        head = await _read_head_early(wire, reader, upload)
    else:
        head = await _read_head(wire, reader)
    return head if upload.is_whole else attrs.evolve(head, is_last=True)


async def _read_head(wire: Wire, reader: HeadReader) -> AnswerHead:
    while True:
        data = await wire.receive()
        if not data:
            reader.feed_eof()
        head = reader.feed(data)
        if head is not None:
            return head


async def _read_head_early(wire: Wire, reader: HeadReader, upload: "_Upload") -> AnswerHead:
    """Read the head while *upload* goes on; wait for the end of that, too, unless it was refused."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload.finish, name="upload")
            head = await _read_head(wire, reader)
            if head.status >= _REFUSED_FROM:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        cancelled, _ = group.split(trio.Cancelled)
        if cancelled is not None:  # an error beside it would come out of the scope that was left
            raise cancelled from None
        raise group.exceptions[0] from group
    return head


class _Upload:
    """The body of a request on its way."""

    def __init__(self, wire: Wire, stream: object, headers: Sequence[tuple[bytes, bytes]]) -> None:
        if isinstance(stream, httpx.ByteStream):  # a generator, if it is read asynchronously
            stream = WholeBody(b"".join(stream))
        assert isinstance(stream, httpx.AsyncByteStream), "an asynchronous transport sends asynchronous bodies"
        self._wire = wire
        self._pieces = aiter(stream)
        self._is_chunked = False
        self._left = 0
        """Bytes that the stream still has to give, if its length is known."""
        for name, value in headers:
            match name.lower():
                case b"transfer-encoding":
                    self._is_chunked = True
                case b"content-length" if value.isdigit():
                    self._left = int(value)
                case b"content-length":
                    raise UnsendableHttp("the content-length of the request is not a number")
        self._is_given = not (self._is_chunked or self._left)
        """Whether the stream has given all that it has."""
        self._unsent = memoryview(b"")
        self._is_broken = False

    @property
    def is_whole(self) -> bool:
        """Whether all of it was sent."""
        return self._is_given and not self._unsent and not self._is_broken

    @property
    def is_under_way(self) -> bool:
        """Whether there is more to be sent, and somebody to send it to."""
        return not (self.is_whole or self._is_broken)

    async def begin(self, head: bytes) -> None:
        """Send *head* and as much as goes without an answer."""
        data = head + await self._next()
        try:
            self._unsent = await self._wire.send_first(data)
        except OSError:
            self._is_broken = True

    async def finish(self) -> None:
        """Send what is left."""
        try:
            while not self.is_whole:
                await self._wire.send_all(self._unsent)
                self._unsent = memoryview(await self._next())
        except OSError:
            self._is_broken = True

    async def _next(self) -> bytes:
        """What is to be sent next; nothing at the end."""
        if self._is_given:
            return b""
        piece = await self._next_piece()
        if self._is_chunked:
            self._is_given = not piece
            return render_chunk(piece)
        self._left -= len(piece)
        self._is_given = not self._left
        if self._left < 0 or not piece or (self._is_given and await self._next_piece()):
            raise UnsendableHttp("the body of the request is not as long as its head says")
        return piece

    async def _next_piece(self) -> bytes:
        """What the stream gives next; nothing at its end."""
        async for piece in self._pieces:
            if piece:
                return piece
        return b""
