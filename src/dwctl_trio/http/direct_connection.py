"""One connection, served without Hypercorn: from its socket to Quart's dispatch and back.

    run ── reads for as long as the connection lives
     └── serve ── one request: its nursery, in which the view, the loop and the SSE writer are

Quart's own dispatch is called, with its hooks and error handlers, where its ASGI application would call it; what an
ASGI server does around it is done here, as far as HTTP/1.1 needs it.

Rule 1: one task reads, and it alone notices that the client has left, which cancels the nursery of the request.
Rule 2: whoever serves a request writes; between requests it is the reader.
Rule 3: a fault of the connection's ends this connection only.
Rule 4: between requests, and within a head, the client has ``idle_connection_s`` in all.
"""

import math
import socket
from contextlib import nullcontext, suppress
from contextvars import copy_context
from functools import partial

import structlog
import trio
from hypercorn.utils import parse_socket_addr
from quart.wrappers import Request
from quart.wrappers import Response as HttpResponse
from quart.wrappers.request import Body
from quart_trio import QuartTrio

from dwctl_trio.domain.limits import Limits
from dwctl_trio.http.answer_writer import AnswerWriter
from dwctl_trio.http.connection import begin_request, end_request, enter_nursery
from dwctl_trio.http.direct_request import Address, make_request
from dwctl_trio.http.door import Door, refusal_headers
from dwctl_trio.http.refusals import UNREAD_BYTES_MAX, refuse_malformed, render_answer
from dwctl_trio.http.request_reader import RequestHead, RequestReader
from dwctl_trio.http.writing import ClientGoneError, ClientWriter
from dwctl_trio.protocol.error_body import HttpError, http_error

_log = structlog.get_logger(__name__)

_READ_BYTES = 64 * 1024
_BEHIND_BYTES_MAX = 64 * 1024
"""Of requests that are sent before the answer to the last one; reading goes on when that has been answered."""
_REQUESTS_MAX = 1000
"""On one connection; clients that come back are spread over all processes again."""
_GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"


class DirectConnections:
    """Makes the connections of one server.

    Args:
        app: What is served; its ASGI side is not used.
        limits: Times and sizes.
        door: Refuses what is too much.
    """

    def __init__(self, app: QuartTrio, limits: Limits, door: Door) -> None:
        self.app = app
        self.limits = limits
        self.door = door
        self.is_ending = False
        """Whether no connection is to be kept."""
        self.idle: set[DirectConnection] = set()
        """All without a request."""

    def make(self, connection: socket.socket) -> "DirectConnection":
        """A connection on a socket that was accepted."""
        return DirectConnection(connection, self)

    async def end_idle(self) -> None:
        """End the connections without a request, and each of the others behind its answer."""
        self.is_ending = True
        for connection in self.idle:
            connection.end()
        await trio.lowlevel.checkpoint()


class DirectConnection:
    """A client's connection.

    Args:
        connection: The socket; closed by whoever runs this.
        server: What is shared with the others.
    """

    def __init__(self, connection: socket.socket, server: DirectConnections) -> None:
        limits = server.limits
        self._socket = connection
        self._server = server
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
        """The same socket, for Trio."""
        self._client = ClientWriter(connection, self.stream, limits.write_progress_s)
        self._requests = RequestReader(limits.request_header_bytes)
        self._reading = trio.CancelScope()
        """Around the reading; its deadline is for a client without a request."""
        self._room = trio.Event()
        """Set when more may be read."""
        self._exchange: trio.CancelScope | None = None
        """Around the request under way, once there is something to cancel."""
        self._body: Body | _Unread | None = None
        """Who takes the body of the request under way, once there is somebody."""
        self._is_busy = False
        """Whether a request is under way."""
        self._is_over = False
        """Whether nothing more is to be read."""
        self._context = copy_context()
        self._served = 0
        self._address: Address = None
        self._own_address: Address = None

    async def run(self) -> None:
        """Serve until one side has had enough.

        Raises:
            OSError: The client had left before.
        """
        self._address = parse_socket_addr(self._socket.family, self._socket.getpeername())
        self._own_address = parse_socket_addr(self._socket.family, self._socket.getsockname())
        async with trio.open_nursery() as nursery:
            self._wait_for_request()
            while not self._is_over:
                deadline = math.inf if self._is_busy else self._idle_until()
                with trio.CancelScope(deadline=deadline) as self._reading:
                    await self._read(nursery)
                self._is_over |= not self._is_busy  # a request may have come in the very turn in which time was up
            if isinstance(self._body, _Unread):
                self._body.set_complete()  # nobody reads the rest of it
        self._server.idle.discard(self)
        with suppress(OSError):  # the client has left
            self._socket.shutdown(socket.SHUT_WR)

    def end(self) -> None:
        """Read nothing more; a request under way, if there is one, is answered."""
        self._is_over = True
        self._reading.cancel()
        self._room.set()

    def _wait_for_request(self) -> None:
        """Begin to be idle."""
        self._is_busy = False
        self._server.idle.add(self)
        self._reading.deadline = self._idle_until()
        if self._server.is_ending:
            self.end()

    def _idle_until(self) -> float:
        return trio.current_time() + self._server.limits.idle_connection_s

    async def _read(self, nursery: trio.Nursery) -> None:
        """Take what comes until the client has left; its requests are served in *nursery*."""
        while not self._is_over and self._socket.fileno() >= 0:  # whoever writes has closed it
            try:
                await trio.lowlevel.wait_readable(self._socket)
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                continue
            except (OSError, trio.ClosedResourceError):
                break
            if not data:
                self._requests.feed_end()
                if not self._is_busy:
                    await self._begin(nursery)
                break
            await self._take(data, nursery)
            while self._requests.bytes_behind > _BEHIND_BYTES_MAX and not self._is_over:
                self._room = trio.Event()
                await self._room.wait()
        self._is_over = True
        if self._exchange is not None:
            self._exchange.cancel()

    async def _take(self, data: bytes, nursery: trio.Nursery) -> None:
        """What has come; a request that is whole is refused without being parsed."""
        if not self._is_busy and self._requests.is_fresh:
            refusal = self._server.door.refuse_raw(data, closes=False)
            if refusal is not None:
                self._reading.deadline = self._idle_until()
                with suppress(ClientGoneError):
                    await self._client.write(refusal)
                return
        self._requests.feed(data)
        if self._is_busy:
            self._deliver()
        else:
            await self._begin(nursery)

    def _deliver(self) -> None:
        """Hand on what has come for the request under way, to whoever takes it by now."""
        if self._requests.fault is not None and self._exchange is not None:
            self._exchange.cancel()
        elif self._body is not None:
            self._body.append(self._requests.take_body())
            if self._requests.is_whole:
                self._body.set_complete()

    async def _begin(self, nursery: trio.Nursery) -> None:
        """Begin the next request, if its head is there."""
        if self._is_over:  # since this very turn: what has come is behind the last request, or is that one still
            return
        if self._requests.head is not None:
            self._is_busy = True
            self._server.idle.discard(self)
            self._reading.deadline = math.inf
            begin = partial(nursery.start_soon, self._serve, self._requests.head, nursery, name="request")
            self._context.run(begin)  # so that it does not inherit what the last one has bound
        elif self._requests.fault is not None:
            await self._refuse_malformed()
            self.end()

    async def _serve(self, head: RequestHead, nursery: trio.Nursery) -> None:
        """Serve one request, and begin the next one if it is there already."""
        keeps = False
        try:
            keeps = await self._exchange_one(head) and not self._is_over
        except ClientGoneError:
            pass  # and the socket is closed
        finally:
            self._exchange = self._body = None
            if not keeps:
                self._is_busy = False
                self.end()
        if keeps:
            self._wait_for_request()
            self._requests.go_on()
            self._room.set()
            await self._begin(nursery)

    async def _exchange_one(self, head: RequestHead) -> bool:
        """Answer one request; whether the connection is good for another one.

        Raises:
            ClientGoneError: The client did not take it.
        """
        server, requests = self._server, self._requests
        refusal = server.door.refuse(head.method, head.target)
        if refusal is not None:
            return await self._refuse(head, refusal)
        if head.asks_to_go_on and not requests.is_whole:
            await self._client.write(_GO_ON)
        self._served += 1
        writer = AnswerWriter(self._client, head)
        endings = begin_request(server.door.let_in(head.method, head.target))
        try:
            request = make_request(server.app, head, client=self._address, server=self._own_address)
            self._body = request.body
            self._deliver()
            async with trio.open_nursery() as nursery:
                enter_nursery(nursery)
                self._exchange = nursery.cancel_scope
                if self._is_over or requests.fault is not None:  # before there was anything to cancel
                    nursery.cancel_scope.cancel()
                await self._answer(request, writer, head)
                if nursery.child_tasks:  # to cancel nobody costs as much as to cancel somebody
                    nursery.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - supervision boundary: a request, whose fault ends its connection
            _log.error("server_fault", message="a request has failed", exc_info=error)
            if not writer.has_begun:
                await self._write_error(http_error(error))
        finally:
            end_request(endings)
        if not writer.has_begun:
            await self._refuse_malformed()
        return writer.is_complete and writer.keeps and requests.is_whole

    async def _answer(self, request: Request, writer: AnswerWriter, head: RequestHead) -> None:
        """Have the application answer *request*, and write what it says."""
        answer = await self._server.app.handle_request(request)
        may_stay = self._requests.is_whole and not self._server.is_ending
        writer.keeps = may_stay and not head.closes and self._served < _REQUESTS_MAX
        timeout = self._server.app.config["RESPONSE_TIMEOUT"]
        if isinstance(answer, HttpResponse) and answer.timeout != Ellipsis:
            timeout = answer.timeout
        with suppress(ClientGoneError), nullcontext() if timeout is None else trio.move_on_after(timeout):
            await writer.send(answer)

    async def _refuse(self, head: RequestHead, refusal: HttpError) -> bool:
        """Answer at once; the connection is kept if not much of the request is left to be read.

        A client that waits for a word may leave the body out, so that nobody knows where the next request begins.
        """
        is_short = head.body_bytes is not None and head.body_bytes <= UNREAD_BYTES_MAX
        keeps = is_short and not head.closes and not head.asks_to_go_on and not self._server.is_ending
        await self._write_error(refusal, dict(head.headers).get(b"x-request-id", b""), keeps=keeps)
        if keeps:
            self._body = unread = _Unread()
            self._server.idle.add(self)  # it has its answer, so that it may be ended
            with trio.move_on_after(self._server.limits.idle_connection_s) as self._exchange:
                self._deliver()
                await unread.complete.wait()
        return keeps and self._requests.is_whole

    async def _write_error(self, error: HttpError, sent_id: bytes = b"", *, keeps: bool = False) -> None:
        headers = refusal_headers(error, sent_id)
        if not keeps:
            headers.append((b"connection", b"close"))
        await self._client.write(render_answer(error.status, headers, error.body))

    async def _refuse_malformed(self) -> None:
        """Answer what is no request, if it is none; the connection ends then."""
        if self._requests.fault is None:
            return
        headers, body = refuse_malformed(self._requests.fault, self._server.limits.request_header_bytes)
        with suppress(ClientGoneError):
            await self._client.write(render_answer(self._requests.fault, headers, body))


class _Unread:
    """In the place of a body: what is left of a request that was answered already."""

    def __init__(self) -> None:
        self.complete = trio.Event()

    def append(self, data: bytes) -> None:
        """Take the next piece, which nobody wants."""

    def set_complete(self) -> None:
        """It was the last one."""
        self.complete.set()
