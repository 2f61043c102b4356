"""Connections served by Hypercorn on Trio, with the faults mended that a stranger could reach.

Each class says which fault it mends and how to know that upstream has mended it.
This is the plain way; ``direct_connection`` is the other one, and both pass the same tests.
"""

import logging
import socket

import hypercorn.protocol
import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import EventWrapper, WorkerContext
from quart_trio import QuartTrio

from dwctl_trio.domain.limits import Limits
from dwctl_trio.http.door import Door
from dwctl_trio.http.plain_http import PlainHttpProtocol
from dwctl_trio.http.writing import write_in_time

_log = structlog.get_logger(__name__)


class _WatchedPause(EventWrapper):
    """Hypercorn's wait, with more of the client's bytes at hand, until the answer under way is sent.

    Args:
        connection: The client's socket.
    """

    def __init__(self, connection: trio.socket.SocketType) -> None:
        super().__init__()
        self._socket = connection
        self._is_over = False

    async def wait(self) -> None:
        """Wait for the end of the pause.

        Raises:
            OSError: The client has left, or the connection is closed, which ends it.
        """
        if not self._is_over:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, name="watch_paused_client")
                await super().wait()
                nursery.cancel_scope.cancel()
        if self._is_over:
            raise ConnectionAbortedError

    async def give_up(self) -> None:
        """End this pause and all later ones: the connection is closed."""
        self._is_over = True
        await self.set()

    async def _watch(self) -> None:
        """Raise when the client leaves; should it send still more, then nothing behind that can be seen."""
        if not await self._socket.recv(1, socket.MSG_PEEK):
            raise ConnectionAbortedError


class GuardedTCPServer(TCPServer):
    """Hypercorn's connection handler, with five faults mended (hypercorn 0.18).

    1. An exception that leaves a handler ends ``serve()`` and the process; malformed chunked framing is enough
       (hypercorn issues 203 and 225). Here a connection's fault ends this connection only, which is ``server``'s work.
       Mended upstream when ``tests/http/test_attacks.py`` passes without it.
    2. ``send_all`` is shielded without a deadline, so that one client that does not read blocks shutdown for ever.
       Here every 64 KiB must be taken within ``write_progress_s``. Mended upstream when its test passes without
       ``protocol_send``.
    3. A connection that its client has closed lives on until the idle timeout. Here it ends with its last request.
       Mended upstream when its test passes without ``_read_data``.
    4. A client that sends bytes behind its request, and then leaves, is not noticed before the next write to it.
       Here the connection is watched. Mended upstream when the test of pipelining clients that leave passes without
       ``_WatchedPause``.
    5. Such a client's handler waits for ever when the server closes the connection. Here the wait ends with it.
       Mended upstream when the test of a client that sends on and breaks off passes without ``give_up``.
    """

    stream: trio.SocketStream  # type: ignore[assignment]  # hypercorn names the type that it has with TLS
    write_progress_s: float
    _at_end = False
    _pause: _WatchedPause

    async def protocol_send(self, event: Event) -> None:
        """Write within the deadline; a client that takes nothing counts as gone."""
        if isinstance(event, Updated) and self._at_end:
            return
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            if isinstance(event, Closed):
                await self._pause.give_up()
            return
        async with self.send_lock:
            if await write_in_time(self.stream, event.data, self.write_progress_s):
                return
        await trio.aclose_forcefully(self.stream)  # wakes the reader, too
        await self.protocol.handle(Closed())
        await self._pause.give_up()

    async def _read_data(self) -> None:
        """Read until the client has closed; nothing is waited for then but the request under way."""
        protocol = self.protocol.protocol
        assert isinstance(protocol, PlainHttpProtocol), "nothing else is spoken"
        protocol.can_read = self._pause = _WatchedPause(self.stream.socket)
        await super()._read_data()
        self._at_end = True
        await self.idle_task.stop()


class _ToStructlog(logging.Handler):
    """What hypercorn logs is a fault of ours or its own; it goes where our logs go."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass *record* on."""
        _log.error("server_fault", message=record.getMessage(), exc_info=record.exc_info)


def _error_logger() -> logging.Logger:
    logger = logging.getLogger("dwctl_trio.hypercorn")
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    logger.handlers = [_ToStructlog()]
    return logger


def _config_of(limits: Limits) -> HypercornConfig:
    config = HypercornConfig()
    config.accesslog = None
    config.errorlog = _error_logger()
    config.include_server_header = False
    config.keep_alive_timeout = limits.idle_connection_s
    config.h11_max_incomplete_size = limits.request_header_bytes
    return config


class HypercornConnections:
    """Makes the connections of one server.

    Args:
        app: What is served, as an ASGI application.
        limits: Times and sizes.
        door: Refuses what is too much.
    """

    def __init__(self, app: QuartTrio, limits: Limits, door: Door) -> None:
        self._app = ASGIWrapper(app)
        self._config = _config_of(limits)
        self._context = WorkerContext(None)
        self._server = type("Server", (GuardedTCPServer,), {"write_progress_s": limits.write_progress_s})
        protocol = type("Protocol", (PlainHttpProtocol,), {"door": door})
        setattr(hypercorn.protocol, "H11Protocol", protocol)  # noqa: B010 - hypercorn offers no other way in

    def make(self, connection: socket.socket) -> GuardedTCPServer:
        """A connection on a socket that was accepted."""
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
        server: GuardedTCPServer = self._server(self._app, self._config, self._context, {}, stream)
        return server

    async def end_idle(self) -> None:
        """End the connections without a request, and each of the others behind its answer."""
        await self._context.terminated.set()
