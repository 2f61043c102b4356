"""HTTP/1.1 as a client speaks it: the heads of a request and its answer, and the frames of the answer's body.

Rule 1: the head of an answer is h11's to read; of its body the frames are read here, a network read at a time.
Rule 2: what is malformed, too large or cut off is an error, never guessed at.
Rule 3: nothing but a body that ended where its frames say leaves a connection fit for another request.

Source: RFC 9112, sections 6 (message body), 7.1 (chunked) and 9.3 (persistence); RFC 9110, section 15.2 (1xx).
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import attrs
import h11

from dwctl_trio.protocol.linear_h11 import mend_h11

mend_h11()

HEAD_BYTES_MAX: Final = 64 * 1024
"""Of an answer's head with the 1xx before it; providers' are below 4 kB."""
_CHUNK_LINE_BYTES_MAX: Final = 1024
"""A size and its extensions; nobody sends extensions."""
_TRAILER_BYTES_MAX: Final = 4 * 1024
"""All trailers together; they are read over."""
_SWITCHING_PROTOCOLS: Final = 101
_BODILESS: Final = frozenset({204, 304})
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")
_FIELD: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*"
_TRAILER: Final = re.compile(rb"(?:%b)?\r\n" % _FIELD)
_REQUEST_HEAD: Final = re.compile(rb"[A-Z]+ [!-~]+ HTTP/1\.1\r\n(?:%b\r\n)*\r\n" % _FIELD)
_ANY_REQUEST: Final = h11.Request(method="GET", target="/", headers=[("host", "any")])


class MalformedHttp(Exception):
    """It is not HTTP as the other side has to speak it, or it ends too early."""


class UnsendableHttp(Exception):
    """A request that HTTP/1.1 cannot carry."""


class AnswerBody(ABC):
    """The frames of a body, taken off as it arrives.

    Attributes:
        is_over: Whether the body has ended.
        failure: What was wrong behind the last that ``feed`` has returned; nothing may be fed any more.
        is_reusable: Whether the connection has nothing but this body on it, and an end.
    """

    is_over = False
    is_reusable = True
    failure: MalformedHttp | None = None

    @abstractmethod
    def feed(self, data: bytes) -> bytes:
        """What of *data* belongs to the body; may be nothing.

        Raises:
            MalformedHttp: The frames are not.
        """

    def feed_eof(self) -> bytes:
        """No more comes; returns nothing, like a ``feed`` that brings none of the body.

        Raises:
            MalformedHttp: The body has not ended.
        """
        raise MalformedHttp("the connection was closed before the end of the answer's body")


class SizedBody(AnswerBody):
    """A body whose length is known.

    Args:
        size: In bytes.
    """

    def __init__(self, size: int) -> None:
        self._left = size
        self.is_over = not size

    def feed(self, data: bytes) -> bytes:
        """See ``AnswerBody``."""
        self._left -= len(data)
        if self._left > 0:
            return data
        self.is_over = True
        if self._left == 0:
            return data
        self.is_reusable = False
        body, self._left = data[: self._left], 0
        return body


class OpenBody(AnswerBody):
    """A body that ends with its connection."""

    is_reusable = False

    def feed(self, data: bytes) -> bytes:
        """See ``AnswerBody``."""
        return data

    def feed_eof(self) -> bytes:
        """The body has ended."""
        self.is_over = True
        return b""


class ChunkedBody(AnswerBody):
    """A body in chunks; trailers are read over."""

    def __init__(self) -> None:
        self._left = 0
        """Bytes that are to come of the chunk under way."""
        self._is_after_chunk = False
        """A chunk's end of line is to come."""
        self._is_after_last = False
        """The trailers are to come, and the empty line behind them."""
        self._trailer_bytes = 0
        self._unread = b""
        """The beginning of a line whose end is to come."""

    def feed(self, data: bytes) -> bytes:
        """See ``AnswerBody``."""
        if self._unread:
            data, self._unread = self._unread + data, b""
        pieces: list[bytes] = []
        try:
            self._read(data, pieces)
        except MalformedHttp as failure:
            if not pieces:
                raise
            self.failure = failure
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read(self, data: bytes, pieces: list[bytes]) -> None:
        """Add to *pieces* what *data* has of the body."""
        at, end = 0, len(data)
        while at < end and not self.is_over:
            if self._left:
                pieces.append(data[at : at + self._left])
                read = len(pieces[-1])
                self._left -= read
                self._is_after_chunk = not self._left
            elif self._is_after_chunk:
                read = self._read_end_of_chunk(data, at)
            elif self._is_after_last:
                read = self._read_trailer(data, at)
            else:
                read = self._read_chunk(data, at, pieces)
            if not read:
                self._unread = data[at:]
                break
            at += read
        if self.is_over:
            self.is_reusable = at == end

    def _read_chunk(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Read the line before a chunk, and the chunk if all of it is there; like the others.

        Returns:
            How much was read; 0 if the end of the line is to come.
        """
        begin = _find_line_end(data, at, _CHUNK_LINE_BYTES_MAX)
        if not begin:
            return 0
        line = _CHUNK_LINE.fullmatch(data, at, begin)
        if line is None:
            raise MalformedHttp("a chunk of the answer has no size")
        size = int(line[1], 16)
        end = begin + size
        if size and data.startswith(b"\r\n", end):
            pieces.append(data[begin:end])
            return end + 2 - at
        self._left = size
        self._is_after_last = not size
        return begin - at

    def _read_end_of_chunk(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            self._is_after_chunk = False
            return 2
        if data[at:] == b"\r":
            return 0
        raise MalformedHttp("a chunk of the answer is longer than it says")

    def _read_trailer(self, data: bytes, at: int) -> int:
        """Read a trailer, or the empty line behind them."""
        end = _find_line_end(data, at, _TRAILER_BYTES_MAX - self._trailer_bytes)
        if not end:
            return 0
        if _TRAILER.fullmatch(data, at, end) is None:
            raise MalformedHttp("a trailer of the answer is malformed")
        self._trailer_bytes += end - at
        self.is_over = end - at == len(b"\r\n")
        return end - at


class HeadReader:
    """Reads the head of an answer.

    Args:
        method: Of the request.
    """

    def __init__(self, method: str) -> None:
        self._h11 = h11.Connection(h11.CLIENT, HEAD_BYTES_MAX)
        self._h11.send(_ANY_REQUEST)  # h11 expects an answer after that
        self._is_head = method == "HEAD"
        self._fed = 0

    def feed(self, data: bytes) -> "AnswerHead | None":
        """The answer's head, once *data* brings its end; what is sent before it (1xx) is read over.

        Args:
            data: Not empty.

        Raises:
            MalformedHttp: It is not a head, or too large.
        """
        self._fed += len(data)
        try:
            self._h11.receive_data(data)
            event = self._h11.next_event()
            while isinstance(event, h11.InformationalResponse):
                if event.status_code == _SWITCHING_PROTOCOLS:
                    raise MalformedHttp("the answer changes to a protocol that nobody asked for")
                event = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise MalformedHttp(str(error)) from error
        if isinstance(event, h11.Response):
            rest, _ = self._h11.trailing_data
            if self._fed - len(rest) <= HEAD_BYTES_MAX:
                return self._read_head(event, rest)
        elif self._fed <= HEAD_BYTES_MAX:
            return None
        raise MalformedHttp("the head of the answer is too large")

    def feed_eof(self) -> None:
        """No more comes.

        Raises:
            MalformedHttp: Always, for the head is not whole.
        """
        said = "in the middle of its head" if self._fed else "without an answer"
        raise MalformedHttp(f"the connection was closed {said}")

    def _read_head(self, response: h11.Response, rest: bytes) -> "AnswerHead":
        length, is_chunked, is_last = None, False, response.http_version != b"1.1"
        for name, value in response.headers:
            match name:
                case b"content-length":
                    length = int(value)
                case b"transfer-encoding":
                    is_chunked = True  # h11 lets no other through
                case b"connection":
                    is_last = is_last or b"close" in {token.strip() for token in value.lower().split(b",")}
        body: AnswerBody
        if self._is_head or response.status_code in _BODILESS:
            body = SizedBody(0)
        elif is_chunked:
            body = ChunkedBody()
        else:
            body = OpenBody() if length is None else SizedBody(length)
        return AnswerHead(
            status=response.status_code,
            headers=response.headers.raw_items(),
            http_version=b"HTTP/" + response.http_version,
            body=body,
            rest=rest,
            is_last=is_last,
        )


@attrs.frozen(kw_only=True)
class AnswerHead:
    """What an answer says before its body."""

    status: int
    headers: list[tuple[bytes, bytes]]
    """As they were sent, in order."""
    http_version: bytes
    """Such as ``HTTP/1.1``."""
    body: AnswerBody
    """What reads the body."""
    rest: bytes
    """What came with the head of the bytes behind it."""
    is_last: bool
    """The connection carries no other answer."""


def render_head(method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The head of a request.

    Raises:
        UnsendableHttp: A header, the method or the target cannot stand in one.
    """
    lines = [b"%b %b HTTP/1.1" % (method, target)]
    lines += [b"%b: %b" % header for header in headers]
    rendered = b"\r\n".join(lines) + b"\r\n\r\n"
    if _REQUEST_HEAD.fullmatch(rendered) is None or rendered.count(b"\n") != len(headers) + 2:
        raise UnsendableHttp("the request's method, target or a header has characters that cannot be sent")
    return rendered


def render_chunk(data: bytes) -> bytes:
    """*data* as a chunk of a request's body; without any it is the last."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _find_line_end(data: bytes, at: int, bytes_max: int) -> int:
    """Where the line of *data* that begins at *at* ends; 0 if its end is to come."""
    end = data.find(b"\n", at) + 1
    if (end or len(data)) - at > bytes_max:
        raise MalformedHttp("a line between or behind the chunks of the answer is too long")
    return end
