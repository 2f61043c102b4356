"""The little HTTP/1.1 that the simulator needs: requests off a stream, heads and chunks onto it.

Rule 1: what belongs to the next request stays in the reader's buffer, also while watching for the client to leave.
Rule 2: a header block or body above its bound is refused, never buffered.

It does not know paths, scripts or JSON. Hand-written, because the simulator's own CPU shows in every benchmark.

Source: RFC 9112, sections 2, 6 and 7.1; RFC 9110, section 10.1.1 (Expect).
"""

from functools import lru_cache
from http import HTTPStatus
from urllib.parse import parse_qs

import attrs
import trio

_HEADER_BYTES_MAX = 64 * 1024
_BODY_BYTES_MAX = 64 * 1024 * 1024
_PIPELINED_BYTES_MAX = 1024 * 1024
_READ_BYTES = 64 * 1024


class BadRequest(Exception):
    """What came over the connection is not an HTTP request that this server reads."""


@attrs.frozen(kw_only=True)
class HttpRequest:
    """One request, whole."""

    method: str
    path: str
    """Without the query."""
    query: str
    headers: dict[str, str]
    """By lower-case name; of a repeated header, the last."""
    body: bytes
    keep_alive: bool

    def query_value(self, name: str) -> str | None:
        """The first value of a query parameter, None if it is absent."""
        values = parse_qs(self.query).get(name)
        return values[0] if values else None


class RequestReader:
    """The requests of one connection, one after the other.

    Args:
        stream: The connection; the reader is the only one to receive from it.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def read_request(self) -> HttpRequest | None:
        """The next request; None when the client closed the connection between two of them.

        Raises:
            BadRequest: It is malformed, too large or cut off.
            trio.BrokenResourceError: The connection was reset.
        """
        head = await self._read_head()
        if head is None:
            return None
        method, target, version, headers = _parse_head(head)
        if headers.get("expect", "").lower() == "100-continue":
            await self._stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in headers.get("transfer-encoding", "").lower():
            body = await self._read_chunks()
        else:
            body = await self._read_exactly(_size(headers.get("content-length", "0"), base=10))
        path, _, query = target.partition("?")
        connection = headers.get("connection", "").lower()
        keep_alive = connection != "close" and (version == "HTTP/1.1" or connection == "keep-alive")
        return HttpRequest(method=method, path=path, query=query, headers=headers, body=body, keep_alive=keep_alive)

    async def wait_client_left(self) -> None:
        """Return when the client closes or resets the connection, at once and while nothing is sent.

        Cancellation: nothing received is lost; it stays for ``read_request``.
        """
        while len(self._buffer) < _PIPELINED_BYTES_MAX:
            try:
                received = await self._stream.receive_some(_READ_BYTES)
            except trio.BrokenResourceError:
                return
            if not received:
                return
            self._buffer += received
        await trio.sleep_forever()

    async def _receive(self) -> bool:
        received = await self._stream.receive_some(_READ_BYTES)
        self._buffer += received
        return bool(received)

    async def _read_head(self) -> bytes | None:
        searched = 0
        while (end := self._buffer.find(b"\r\n\r\n", searched)) < 0:
            searched = max(0, len(self._buffer) - 3)
            if len(self._buffer) > _HEADER_BYTES_MAX:
                raise BadRequest("the headers are too large")
            if not await self._receive():
                if self._buffer:
                    raise BadRequest("the request ends within its headers")
                return None
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        return head

    async def _read_exactly(self, size: int) -> bytes:
        if size > _BODY_BYTES_MAX:
            raise BadRequest("the body is too large")
        while len(self._buffer) < size:
            if not await self._receive():
                raise BadRequest("the request ends within its body")
        body = bytes(self._buffer[:size])
        del self._buffer[:size]
        return body

    async def _read_line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > _HEADER_BYTES_MAX or not await self._receive():
                raise BadRequest("the chunked body is malformed")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    async def _read_chunks(self) -> bytes:
        body = bytearray()
        while size := _size((await self._read_line()).partition(b";")[0].decode("latin-1"), base=16):
            body += await self._read_exactly(size)
            await self._read_line()
            if len(body) > _BODY_BYTES_MAX:
                raise BadRequest("the body is too large")
        while await self._read_line():  # trailers
            pass
        return bytes(body)


@lru_cache(maxsize=256)
def response_head(
    status: int, content_type: str, *, body_bytes: int | None = None, more: tuple[tuple[str, str], ...] = ()
) -> bytes:
    """The head of a response.

    Args:
        status: HTTP status.
        content_type: As it is sent.
        body_bytes: Length of the body; None for a chunked one.
        more: Further headers.
    """
    phrase = HTTPStatus(status).phrase if status in HTTPStatus.__members__.values() else "Unknown"
    framing = ("transfer-encoding", "chunked") if body_bytes is None else ("content-length", str(body_bytes))
    headers = (("content-type", content_type), ("cache-control", "no-cache"), framing, *more)
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


LAST_CHUNK = b"0\r\n\r\n"
"""The clean end of a chunked body."""


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; *data* must not be empty, for that is the end."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _parse_head(head: bytes) -> tuple[str, str, str, dict[str, str]]:
    request_line, *lines = head.decode("latin-1").lstrip("\r\n").split("\r\n")
    words = request_line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):  # noqa: PLR2004 - method, target, version
        raise BadRequest("this is not an HTTP/1.1 request line")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequest("a header has no colon")
        headers[name.lower()] = value.strip()
    return words[0], words[1], words[2], headers


def _size(text: str, *, base: int) -> int:
    try:
        size = int(text, base)
    except ValueError:
        raise BadRequest("a length is not a number") from None
    if size < 0:
        raise BadRequest("a length is negative")
    return size
