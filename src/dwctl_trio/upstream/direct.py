"""A transport for httpx on Trio's sockets: HTTP/1.1, a pool of idle connections, and nothing else.

Rule 1: leaving a request or its answer closes the connection at once, unless the answer was read to its end.
Rule 2: a request is sent once. A connection that breaks before the answer is an error, for the server may have begun
to work; one that had closed at rest is noticed before anything is sent, and another one is taken.
Rule 3: the only time limit is the one to connect; all others are its caller's cancel scopes.

It knows no redirects, cookies, proxies, compression and no HTTP/2; ``httpx.AsyncClient`` adds some of them if it is
given this transport.
"""

import math
import ssl
from collections import deque

import attrs
import httpx
import trio

from dwctl_trio.protocol.http1 import AnswerHead, MalformedHttp, UnsendableHttp
from dwctl_trio.upstream.exchange import exchange_heads
from dwctl_trio.upstream.transport import AnswerStream, TransportOptions
from dwctl_trio.upstream.wire import ALPN_PROTOCOLS, Wire, open_wire

_PORTS = {"http": 80, "https": 443}
_ERRORS = (OSError, MalformedHttp, UnsendableHttp)

_Origin = tuple[str, str, int]


@attrs.define(eq=False)
class _Connection:
    wire: Wire
    origin: _Origin
    idle_until: float = math.inf


class DirectTransport(httpx.AsyncBaseTransport):
    """Sends requests, also for ``httpx.AsyncClient``; of a request's extensions it reads none.

    Args:
        tls: Verifies the servers; it is told that only HTTP/1.1 is spoken.
        options: The bounds.
    """

    def __init__(self, tls: ssl.SSLContext, options: TransportOptions) -> None:
        tls.set_alpn_protocols(ALPN_PROTOCOLS)
        self._tls = tls
        self._options = options
        self._idle: deque[_Connection] = deque()
        """The longest at rest first."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request* and wait for the head of its answer; close the response, or lose its connection.

        Cancellation: closes the connection.

        Raises:
            httpx.TransportError: Of httpx's own kinds, as httpx itself would.
        """
        origin = _origin_of(request.url)
        connection = self._take(origin) or await self._open(origin)
        try:
            head = await exchange_heads(connection.wire, request)
        except _ERRORS as error:
            connection.wire.close()
            raise _error_of_httpx(error) from error
        except BaseException:
            connection.wire.close()
            raise
        return httpx.Response(
            head.status,
            headers=head.headers,
            stream=DirectBody(self, connection, head),
            extensions={"http_version": head.http_version},
        )

    async def aclose(self) -> None:
        """Close what is at rest."""
        while self._idle:
            self._idle.pop().wire.close()

    def put_back(self, connection: _Connection) -> None:
        """Keep *connection*, on which nothing is under way any more, for another request, if there is room."""
        now = trio.current_time()
        connection.idle_until = now + self._options.idle_s
        self._idle.append(connection)
        while self._idle and (len(self._idle) > self._options.idle_connections or self._idle[0].idle_until <= now):
            self._idle.popleft().wire.close()

    def _take(self, origin: _Origin) -> _Connection | None:
        """The connection to *origin* that has been at rest for the shortest time; None if there is none that lives."""
        now = trio.current_time()
        while connection := next((one for one in reversed(self._idle) if one.origin == origin), None):
            self._idle.remove(connection)
            if connection.idle_until > now and not connection.wire.is_readable():
                return connection
            connection.wire.close()
        return None

    async def _open(self, origin: _Origin) -> _Connection:
        scheme, host, port = origin
        try:
            with trio.fail_after(self._options.connect_s):
                wire = await open_wire(host, port, self._tls if scheme == "https" else None)
        except trio.TooSlowError as error:
            raise httpx.ConnectTimeout("the server did not accept a connection in time") from error
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError("the server could not be reached") from error
        return _Connection(wire, origin)


class DirectBody(AnswerStream):
    """The body of an answer as it arrives, a piece for each network read that brought any.

    Args:
        transport: Gets the connection back when the body has ended.
        connection: Where the body comes from.
        head: What came before it.
    """

    def __init__(self, transport: DirectTransport, connection: _Connection, head: AnswerHead) -> None:
        self._transport = transport
        self._connection: _Connection | None = connection
        self._frames = head.body
        self._is_last = head.is_last
        self._rest = head.rest
        """What came with the head."""
        if self._frames.is_over and not self._rest:
            self._end(connection)

    @property
    def is_over(self) -> bool:
        """See ``AnswerStream``."""
        return self._connection is None

    async def __anext__(self) -> bytes:
        """See ``AnswerStream``.

        Cancellation: loses nothing; the next call goes on where this one was.
        """
        frames = self._frames
        try:
            while (connection := self._connection) is not None:
                if frames.failure is not None:
                    raise frames.failure
                data, self._rest = self._rest or await connection.wire.receive(), b""
                piece = frames.feed(data) if data else frames.feed_eof()
                if frames.is_over:
                    self._end(connection)
                if piece:
                    return piece
        except _ERRORS as error:
            raise _error_of_httpx(error) from error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """See ``AnswerStream``; never waits."""
        if self._connection is not None:
            self._connection.wire.close()
            self._connection = None

    def _end(self, connection: _Connection) -> None:
        self._connection = None
        if self._is_last or not self._frames.is_reusable:
            connection.wire.close()
        else:
            self._transport.put_back(connection)


def _origin_of(url: httpx.URL) -> _Origin:
    port = url.port or _PORTS.get(url.scheme)
    if port is None or not url.host:
        raise httpx.UnsupportedProtocol("only http and https are spoken here, to a host")
    return url.scheme, url.raw_host.decode("ascii"), port


def _error_of_httpx(error: BaseException) -> httpx.TransportError:
    """The kind of httpx's that *error*, one of ``_ERRORS``, is."""
    if isinstance(error, UnsendableHttp):
        return httpx.LocalProtocolError(str(error))
    if isinstance(error, MalformedHttp):
        return httpx.RemoteProtocolError(str(error))
    return httpx.ReadError("the connection broke")
