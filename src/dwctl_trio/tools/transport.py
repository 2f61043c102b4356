"""Requests over guarded connections, as a transport for httpx.

Rule 1: one connection a request: what is sent once is never lost to a connection that died at rest, and one tool's
connection is never another's.
Rule 2: leaving a request, whenever and however, closes its connection.
Rule 3: nothing of the environment counts: no proxies, no certificates named by variables.
"""

import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Self

import httpcore
import httpx
import trio

from dwctl_trio.tools.network import AddressRefused, GuardedNetwork

_CLOSE_S_MAX = 1.0
"""For closing a connection; a close of TCP never waits, one of TLS may."""
_SCHEMES = frozenset({"http", "https"})


class GuardedTransport(httpx.AsyncBaseTransport):
    """Sends each request over a connection of its own, to where *network* allows; for ``httpx.AsyncClient`` too.

    Args:
        network: What opens the connections.
        tls: Verifies the servers.
    """

    def __init__(self, network: GuardedNetwork, tls: ssl.SSLContext) -> None:
        self._network = network
        self._tls = tls

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request* and wait for the head; the response must be closed.

        Raises:
            httpx.TransportError: No answer; ``is_refused`` tells whether the guard was the reason.
        """
        if request.url.scheme not in _SCHEMES:
            raise httpx.UnsupportedProtocol("only http and https are spoken here")
        sent = _core_request(request)
        connection = httpcore.AsyncHTTPConnection(sent.url.origin, ssl_context=self._tls, network_backend=self._network)
        try:
            with _errors_of_httpx():
                response = await connection.handle_async_request(sent)
        except BaseException:
            await _close(connection)
            raise
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_ResponseBody(connection, response),
            extensions=response.extensions,
        )


def is_refused(error: httpx.TransportError) -> bool:
    """Whether *error* is the guard's refusal."""
    return isinstance(error.__cause__, AddressRefused)


class _RequestBody(httpx.AsyncByteStream):
    """A body in one piece; httpx's own is a generator, which a cancelled send leaves to the collector."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        body, self._body = self._body, None
        if body is None:
            raise StopAsyncIteration
        return body


class _ResponseBody(httpx.AsyncByteStream):
    """The body as it arrives."""

    def __init__(self, connection: httpcore.AsyncHTTPConnection, response: httpcore.Response) -> None:
        self._connection = connection
        assert isinstance(response.stream, AsyncIterable), "an asynchronous connection has asynchronous bodies"
        self._pieces: AsyncIterator[bytes] = aiter(response.stream)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        with _errors_of_httpx():
            return await anext(self._pieces)

    async def aclose(self) -> None:
        """Break off what was not read to its end, and close the connection.

        httpcore's body is a generator inside a generator, of which a close reaches the outer one only. A read under
        cancellation ends both.
        """
        with suppress(httpcore.NetworkError, httpcore.ProtocolError), trio.CancelScope(shield=True) as scope:
            scope.cancel()
            while await anext(self._pieces, None) is not None:
                pass
        await _close(self._connection)


async def _close(connection: httpcore.AsyncHTTPConnection) -> None:
    with trio.move_on_after(_CLOSE_S_MAX, shield=True):
        await connection.aclose()


def _core_request(request: httpx.Request) -> httpcore.Request:
    assert isinstance(request.stream, httpx.AsyncByteStream), "an asynchronous client sends asynchronous bodies"
    is_whole = isinstance(request.stream, httpx.ByteStream)
    return httpcore.Request(
        method=request.method,
        url=httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        ),
        headers=request.headers.raw,
        content=_RequestBody(request.content) if is_whole else request.stream,
        extensions=request.extensions,
    )


@contextmanager
def _errors_of_httpx() -> Iterator[None]:
    """What httpcore raises in the block, as the error of the same name that httpx has."""
    try:
        yield
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
        names = (kind.__name__ for kind in type(error).__mro__)
        kind: type[httpx.TransportError] = next(getattr(httpx, name) for name in names if hasattr(httpx, name))
        raise kind(str(error)) from error
