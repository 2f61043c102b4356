"""httpx's own transport, in the form that the client of an upstream can use: the plain path beside ``direct``.

Rule 1: leaving an answer before its end breaks its connection off.
Rule 2: a close is shielded and has a deadline.
"""

import ssl
from contextlib import suppress

import httpx
import trio

from dwctl_trio.upstream.transport import AnswerStream, TransportOptions

_CLOSE_S_MAX = 1.0
"""For closing a connection; a close of TCP never waits, one of TLS may."""


class PlainTransport(httpx.AsyncBaseTransport):
    """Sends requests through httpx and httpcore; its only time limit is the one to connect.

    Args:
        tls: Verifies the servers.
        options: The bounds.
    """

    def __init__(self, tls: ssl.SSLContext, options: TransportOptions) -> None:
        self._timeouts = httpx.Timeout(None, connect=options.connect_s).as_dict()
        self._http = httpx.AsyncHTTPTransport(
            verify=tls,
            trust_env=False,
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=options.idle_connections,
                keepalive_expiry=options.idle_s,
            ),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request* and wait for the head of its answer; close the response, or lose its connection.

        Raises:
            httpx.TransportError: As httpx does.
        """
        request.extensions = {**request.extensions, "timeout": self._timeouts}
        response = await self._http.handle_async_request(request)
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=PlainBody(response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()


class PlainBody(AnswerStream):
    """The body of an answer as it arrives.

    Args:
        response: As httpx's transport gives it.
    """

    is_over = False

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._pieces = response.aiter_raw()

    async def __anext__(self) -> bytes:
        """See ``AnswerStream``."""
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """See ``AnswerStream``.

        httpx hands out generators inside generators and closes only the outermost. A read under cancellation ends
        them all: each unwinds from the innermost outwards.
        """
        with suppress(httpx.TransportError), trio.CancelScope() as scope:
            scope.cancel()
            while await anext(self._pieces, None) is not None:
                pass
        with trio.move_on_after(_CLOSE_S_MAX, shield=True):
            await self._response.aclose()
