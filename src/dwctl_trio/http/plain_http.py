"""HTTP/1.1 on one connection: hypercorn's protocol without what else it speaks, and with the door before it."""

from collections.abc import Awaitable, Callable
from typing import cast

import h11
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import EndBody
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream

from dwctl_trio.http.connection import entering
from dwctl_trio.http.door import Door, refusal_headers
from dwctl_trio.http.refusals import UNREAD_BYTES_MAX, refuse_malformed
from dwctl_trio.protocol.error_body import HttpError
from dwctl_trio.protocol.linear_h11 import mend_h11

mend_h11()

_HTTP_2 = b"2.0"
_END = h11.EndOfMessage()


class PlainHttpProtocol(H11Protocol):
    """HTTP/1.1 and nothing else (hypercorn 0.18 leaves it for HTTP/2 and WebSockets, whatever ``alpn_protocols`` says).

    What the door refuses does not reach the application.
    An ``Upgrade`` is ignored, as RFC 9110, section 7.8, allows; what is not HTTP gets OpenAI's error body.
    """

    door: Door

    async def handle(self, event: Event) -> None:
        """Take what the connection has brought; a request that is whole is refused without being parsed."""
        is_fresh = self.stream is None and not self.connection.trailing_data[0]
        if isinstance(event, RawData) and event.data and is_fresh:
            refusal = self.door.refuse_raw(event.data, closes=False)
            if refusal is not None:
                await self.send(RawData(data=refusal))
                return
        await super().handle(event)

    async def _check_protocol(self, event: h11.Request) -> None:
        """Refuse HTTP/2 with prior knowledge, whose preface looks like a request."""
        if event.http_version == _HTTP_2:
            await self._send_error_response(505)
            raise h11.RemoteProtocolError("HTTP/2 is not spoken here")
        size = len(event.target) + sum(len(name) + len(value) for name, value in event.headers)
        if size > self.config.h11_max_incomplete_size:  # h11 bounds a head only while it is incomplete
            await self._send_error_response(431)
            raise h11.RemoteProtocolError("the head is too large")

    async def _create_stream(self, request: h11.Request) -> None:
        """Begin a request without its wish to leave HTTP/1.1, unless it is refused."""
        refusal = self.door.refuse(request.method, request.target)
        if refusal is not None:
            await self._refuse(request, refusal)
            return
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
        if len(headers) < len(request.headers):
            request = h11.Request(
                method=request.method, target=request.target, headers=headers, http_version=request.http_version
            )
        with entering(self.door.let_in(request.method, request.target)):
            await super()._create_stream(request)

    async def _refuse(self, request: h11.Request, refusal: HttpError) -> None:
        """Answer at once; the connection is kept for the next request if not much of this one is left to be read.

        A client that waits for a word may leave the body out, so that nobody knows where the next request begins.
        """
        sent = dict(request.headers)
        headers = refusal_headers(refusal, sent.get(b"x-request-id", b""))
        is_short = 0 <= int(sent.get(b"content-length", b"-1")) <= UNREAD_BYTES_MAX
        keeps = is_short and not self.connection.they_are_waiting_for_100_continue
        if not keeps:
            headers.append((b"connection", b"close"))
        await self._send_whole(refusal.status, headers, refusal.body)
        if keeps:
            self.stream = cast("HTTPStream", _Unread(self._maybe_recycle))
            await self.send(Updated(idle=True))  # nobody else would end the wait for the rest of it
        else:
            await self.send(Closed())

    async def _send_error_response(self, status_code: int) -> None:
        """Answer what is not a request that could be handed on, in one piece: the application may answer meanwhile."""
        headers, body = refuse_malformed(status_code, self.config.h11_max_incomplete_size)
        await self._send_whole(status_code, headers, body)

    async def _send_whole(self, status_code: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send an answer in one piece."""
        head = h11.Response(status_code=status_code, headers=[*headers, *self.config.response_headers("h11")])
        try:
            data = b"".join(self.connection.send(event) or b"" for event in (head, h11.Data(data=body), _END))
        except h11.LocalProtocolError:  # the application's answer has begun
            if self.connection.their_state is not h11.ERROR:
                raise
        else:
            await self.send(RawData(data=data))


class _Unread:
    """In the place of hypercorn's stream: what is left of a request that was answered already.

    Args:
        recycle: Makes the connection ready for the next request.
    """

    idle = False

    def __init__(self, recycle: Callable[[], Awaitable[None]]) -> None:
        self._recycle = recycle

    async def handle(self, event: StreamEvent) -> None:
        """Take the next piece, of which only the end matters."""
        if isinstance(event, EndBody):
            await self._recycle()
