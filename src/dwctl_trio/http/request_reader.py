"""Bytes to requests, one after the other, without any I/O.

Rule 1: a head that is plain and comes in one piece is read by one regular expression. It reads less than h11 does, and
nothing that h11 reads differently; whatever it does not know goes to h11, chunked bodies and faults among them.
Rule 2: the next request is not looked at before the one under way has been answered.
"""

import re

import attrs
import h11

from dwctl_trio.protocol.linear_h11 import mend_h11

mend_h11()

_PLAIN_HEAD = re.compile(
    rb"(GET|POST|DELETE) ([\x21-\x7e]++) HTTP/1\.1\r\n"
    rb"((?:[-!#$%&'*+.^_`|~0-9A-Za-z]++:[^\x00\n\r\x0b\x0c]*+\r\n)++)\r\n"
)
"""It never tries a second way: there would be exponentially many, and a stranger would find them."""
_PLAIN_LENGTH = re.compile(rb"[0-9]{1,18}")
_NOT_PLAIN = frozenset({b"transfer-encoding", b"expect", b"upgrade"})
"""Headers that h11 is to understand."""
_HTTP_2 = b"2.0"


@attrs.frozen
class RequestHead:
    """The first line and the headers of a request."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    """Names in lower case."""
    version: bytes
    """As in ``HTTP/version``."""
    closes: bool
    """Whether the client wants nothing more on its connection."""
    asks_to_go_on: bool = False
    """Whether the client waits for a word before it sends the body."""
    body_bytes: int | None = 0
    """How long the body is; None if only its end will tell."""


class RequestReader:
    """The requests of one connection.

    Args:
        head_bytes_max: Of the first line and the headers together.
    """

    def __init__(self, head_bytes_max: int) -> None:
        self._head_bytes_max = head_bytes_max
        self.head: RequestHead | None = None
        """Of the request under way; None before it has come."""
        self.is_whole = False
        """Whether all of the request under way has come."""
        self.fault: int | None = None
        """The status that answers what has come and is no request; nothing is read after it."""
        self._body = b""
        """Of the request under way, and not taken yet."""
        self._left = 0
        """Bytes of a plain request's body that have not come yet."""
        self._behind = b""
        """What has come, and is not looked at yet."""
        self._parser: h11.Connection | None = None
        """Reads the request under way if it is not a plain one."""

    @property
    def is_fresh(self) -> bool:
        """Whether nothing has come since the last request."""
        return self.head is None and self._parser is None and not self._behind

    @property
    def bytes_behind(self) -> int:
        """How much has come that is behind the request under way."""
        return len(self._behind)

    def feed(self, data: bytes) -> None:
        """Take what has arrived."""
        if self.head is None or self.is_whole:
            self._behind += data
            if self.head is None:
                self._read_head()
        elif self._parser is not None:
            self._feed_parser(self._parser, data)
        else:
            self._feed_plain(data)

    def feed_end(self) -> None:
        """Nothing more will arrive; within a request that is a fault."""
        if self._parser is not None:
            self._feed_parser(self._parser, b"")
        elif self.head is not None and not self.is_whole:
            self.fault = 400

    def take_body(self) -> bytes:
        """What has come of the body since the last time."""
        taken, self._body = self._body, b""
        return taken

    def go_on(self) -> None:
        """The request under way, which is whole, has been answered; the next one is read as far as it has come."""
        self.head, self.is_whole, self._body = None, False, b""
        self._read_head()

    def _read_head(self) -> None:
        """Read what has come behind the last request, in which a head begins."""
        data, self._behind = self._behind, b""
        if not data or self.fault is not None:
            return
        if self._parser is None:
            plain = read_plain_head(data)
            if plain is not None:
                head, body_at = plain
                self._begin(head)
                self._left = head.body_bytes or 0
                self._feed_plain(data[body_at:])
                return
            self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=self._head_bytes_max)
        self._feed_parser(self._parser, data)

    def _begin(self, head: RequestHead) -> None:
        if head.version == _HTTP_2:  # its preface looks like a request
            self.fault = 505
        size = len(head.target) + sum([len(name) + len(value) for name, value in head.headers])
        if size > self._head_bytes_max:  # h11 bounds a head only while it is incomplete
            self.fault = 431
        if self.fault is None:
            self.head = head

    def _feed_plain(self, data: bytes) -> None:
        self._body += data[: self._left]
        self._behind = data[self._left :]
        self._left -= len(data) - len(self._behind)
        self.is_whole = self._left == 0

    def _feed_parser(self, parser: h11.Connection, data: bytes) -> None:
        try:
            parser.receive_data(data)
            while self.fault is None and not self.is_whole:
                event = parser.next_event()
                if isinstance(event, h11.Request):
                    self._begin(_head_of(event, asks_to_go_on=parser.they_are_waiting_for_100_continue))
                elif isinstance(event, h11.Data):
                    self._body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    self.is_whole = True
                    self._behind, self._parser = parser.trailing_data[0], None
                else:
                    break
        except h11.RemoteProtocolError as error:
            self.fault = error.error_status_hint


def read_plain_head(data: bytes) -> tuple[RequestHead, int] | None:
    """The head at the beginning of *data*, and where the body begins; None for one that h11 must read."""
    found = _PLAIN_HEAD.match(data)
    if found is None:
        return None
    headers, length, closes, hosts = [], 0, False, 0
    for line in found[3].split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name in _NOT_PLAIN:
            return None
        if name == b"content-length":
            if length or not _PLAIN_LENGTH.fullmatch(value):
                return None
            length = int(value) or -1  # a second one is noticed also behind a zero
        elif name == b"connection":
            closes = closes or any(token.strip(b" \t") == b"close" for token in value.lower().split(b","))
        elif name == b"host":
            hosts += 1
        headers.append((name, value))
    if hosts != 1:
        return None
    head = RequestHead(found[1], found[2], headers, b"1.1", closes, body_bytes=max(length, 0))
    return head, found.end()


def _head_of(request: h11.Request, *, asks_to_go_on: bool) -> RequestHead:
    """What h11 has read; that it wishes to leave HTTP/1.1 is ignored, as RFC 9110, section 7.8, allows."""
    headers = list(request.headers)
    named = dict(headers)
    tokens = [token.strip() for name, value in headers if name == b"connection" for token in value.lower().split(b",")]
    length: int | None = int(named.get(b"content-length", b"0"))
    closes = b"close" in tokens or request.http_version < b"1.1"
    if b"transfer-encoding" in named:  # it counts; of another length somebody in front may make another request
        length, closes = None, closes or b"content-length" in named  # RFC 9112, section 6.1
    return RequestHead(
        request.method, request.target, headers, request.http_version, closes, asks_to_go_on, body_bytes=length
    )
