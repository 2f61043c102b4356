"""Hypercorn on Trio, with the faults mended that a stranger could reach.

Each class says which fault it mends and how to know that upstream has mended it.
"""

import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import NoReturn

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
from dwctl_trio.http.door import PEEK_BYTES, Door
from dwctl_trio.http.plain_http import PlainHttpProtocol

_log = structlog.get_logger(__name__)

_WRITE_BYTES = 64 * 1024
"""A write is cut into pieces of this size, so that the deadline is one on progress and not on the whole."""

_TELL_S = 5.0
"""For telling the terminal events after the last terminal writes."""
_BREAK_OFF_S = 0.5
"""After the end of that, for connections that can still end by themselves."""

_ACCEPTS_A_TURN = 64
"""Connections accepted before anything else has its turn; to refuse so many takes 4 ms."""
_NO_CAPACITY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_NO_CAPACITY_S = 0.1
"""Until the next try to accept, when the process has no descriptor or memory left for it."""
_NOTHING_TO_ACCEPT = frozenset({errno.EAGAIN, errno.EINTR, errno.ECONNABORTED, errno.EPROTO, errno.EPERM})

_BIND_ADVICE = {
    errno.EADDRINUSE: "stop the program that has it, or choose another with --port",
    errno.EACCES: "choose a port from 1024 with --port",
    errno.EADDRNOTAVAIL: "choose an address of this machine with --host",
}


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
       (hypercorn issues 203 and 225). Here a connection's fault ends this connection only. Mended upstream when
       ``tests/http/test_attacks.py`` passes without ``run``.
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

    write_progress_s: float
    connections: set["GuardedTCPServer"]
    """All that are open."""
    _at_end = False
    _pause: _WatchedPause

    async def run(self) -> None:
        """Serve one connection to its end; never raises but for what ends the process."""
        self.connections.add(self)
        try:
            await super().run()
        except Exception as error:  # noqa: BLE001 - supervision boundary: the connection guard
            _log_fault(error)
        except BaseExceptionGroup as group:
            faults, fatal = group.split(Exception)
            if faults is not None:
                _log_fault(faults)
            if fatal is not None:
                raise fatal from None
        finally:
            self.connections.discard(self)
            await trio.aclose_forcefully(self.stream)  # hypercorn's own close does not come to it when it is cancelled

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
            if await self._write(event.data):
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

    async def _write(self, data: bytes) -> bool:
        """Whether the client took all of *data*, each piece in time."""
        view = memoryview(data)
        for start in range(0, len(view), _WRITE_BYTES):
            if start > 0:
                await self._end_here_if_cancelled()
            with trio.move_on_after(self.write_progress_s, shield=True) as scope:
                try:
                    await self.stream.send_all(view[start : start + _WRITE_BYTES])
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return False
                except trio.BusyResourceError:  # we hold the lock, so somebody is closing the connection
                    return False
            if scope.cancelled_caught:
                return False
        return True

    async def _end_here_if_cancelled(self) -> None:
        """Between two pieces of a write: a cancelled one is not continued, and nothing can follow half of it."""
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.Cancelled:
            await trio.aclose_forcefully(self.stream)
            raise


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


def _log_fault(error: Exception) -> None:
    """Log what ended a connection, unless it is only that the client has left."""
    names = [type(leaf).__name__ for leaf in _leaves(error) if not isinstance(leaf, OSError)]
    if names:
        _log.warning("connection_failed", errors=names)


def _leaves(error: Exception) -> Iterator[Exception]:
    """The errors in *error*, a group of groups or a single one."""
    if not isinstance(error, ExceptionGroup):
        yield error
        return
    for inner in error.exceptions:
        yield from _leaves(inner)


def open_listener(host: str, port: int, limits: Limits) -> socket.socket:
    """A listening socket on *host* and *port*; port 0 takes a free one.

    Raises:
        OSError: The address is taken, or not ours; the text says what to do.
    """
    with _bind_errors(host, port):
        listener = _bind(host, port, socket.SO_REUSEADDR)
        try:
            listener.listen(limits.connection_backlog)
        except OSError:
            listener.close()
            raise
    return listener


def open_shared_listener(host: str, port: int) -> socket.socket:
    """A socket on *host* and *port* beside others of this user's; no connection comes before its ``listen``.

    Linux spreads connections over all that listen. One that never does keeps the port.

    Raises:
        OSError: The address is taken by a socket that is not shared, or not ours; the text says what to do.
    """
    with _bind_errors(host, port):
        return _bind(host, port, socket.SO_REUSEADDR, socket.SO_REUSEPORT)


def _bind(host: str, port: int, *options: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        for option in options:
            bound.setsockopt(socket.SOL_SOCKET, option, 1)
        bound.bind((host, port))
        bound.setblocking(False)
    except OSError:
        bound.close()
        raise
    return bound


@contextmanager
def _bind_errors(host: str, port: int) -> Iterator[None]:
    """Tell the operator what to do about an address that cannot be had."""
    try:
        yield
    except OSError as error:
        advice = _BIND_ADVICE.get(error.errno or 0, "check host and port in the configuration, or --host and --port")
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror}; {advice}") from error


def url_of(listener: socket.socket) -> str:
    """Where clients reach *listener*, without ``/v1``."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def longest_end_s(limits: Limits) -> float:
    """Seconds that ``run_server`` takes at the most when it is to end."""
    return limits.shutdown_grace_s + 2 * limits.terminal_write_s + _TELL_S + _BREAK_OFF_S


async def run_server(
    app: QuartTrio,
    listener: socket.socket,
    limits: Limits,
    *,
    door: Door,
    wait_stop: Callable[[], Awaitable[None]],
) -> None:
    """Serve *app* on *listener* until *wait_stop* returns and the requests under way have ended.

    Args:
        app: The application.
        listener: From ``open_listener``; closed at the end.
        limits: Times and sizes of connections.
        door: Refuses what is too much.
        wait_stop: Returns when no more connections are to be accepted.
    """
    connections: set[GuardedTCPServer] = set()
    fields = {"write_progress_s": limits.write_progress_s, "connections": connections}
    server = type("Server", (GuardedTCPServer,), fields)
    protocol = type("Protocol", (PlainHttpProtocol,), {"door": door})
    setattr(hypercorn.protocol, "H11Protocol", protocol)  # noqa: B010 - hypercorn offers no other way in
    config, context = _hypercorn_config(limits), WorkerContext(None)
    make_connection = partial(server, ASGIWrapper(app), config, context, {})
    grace_s = longest_end_s(limits) - _BREAK_OFF_S

    async def break_off() -> None:
        """Close what is still open when the time is over, or at once when the server is cancelled.

        A write is shielded, so that no cancellation leaves half a frame; the end of the process does not wait for it.
        """
        try:
            await wait_stop()
            await trio.sleep(grace_s + _BREAK_OFF_S)
        finally:
            for connection in connections:
                connection.stream.socket.close()

    async with trio.open_nursery() as breaking:
        breaking.start_soon(break_off, name="break_off")
        async with trio.open_nursery() as serving:
            with listener:
                async with trio.open_nursery() as accepting:
                    accepting.start_soon(_run_accept, listener, make_connection, door, serving, name="accept")
                    await wait_stop()
                    accepting.cancel_scope.cancel()
            await context.terminated.set()
            serving.cancel_scope.deadline = trio.current_time() + grace_s
        breaking.cancel_scope.cancel()


async def _run_accept(
    listener: socket.socket,
    make_connection: Callable[[trio.SocketStream], GuardedTCPServer],
    door: Door,
    serving: trio.Nursery,
) -> NoReturn:
    """Begin a connection in *serving* for each that comes; all that wait in one turn.

    ``trio.serve_listeners`` takes one a turn. A server that is late has long turns, so that connections wait for
    seconds in the kernel, where nobody can refuse them.
    """
    while True:
        await trio.lowlevel.wait_readable(listener)
        try:
            for _ in range(_ACCEPTS_A_TURN):
                connection, _ = listener.accept()
                if _turn_away(connection, door):
                    continue
                server = make_connection(trio.SocketStream(trio.socket.from_stdlib_socket(connection)))
                serving.start_soon(server.run, name="connection")
        except OSError as error:
            if error.errno in _NO_CAPACITY:
                _log.warning("connection_not_accepted", reason=str(error))
                await trio.sleep(_NO_CAPACITY_S)
            elif error.errno not in _NOTHING_TO_ACCEPT:
                raise


def _peek(connection: socket.socket) -> bytes:
    """What the client has sent already, still to be read; nothing also if it has left."""
    try:
        return connection.recv(PEEK_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return b""


def _turn_away(connection: socket.socket, door: Door) -> bool:
    """Whether *connection* was refused and closed, here and now: a turn later would be another turn late."""
    sent = _peek(connection)
    try:
        refusal = door.refuse_raw(sent, closes=True) if sent else None
    except Exception as error:  # noqa: BLE001 - supervision boundary: the door, whose fault must not end the accepting
        _log_fault(error)
        return False
    if refusal is None:
        return False
    with connection, suppress(OSError):  # the client has left
        connection.recv(len(sent), socket.MSG_DONTWAIT)  # what is left unread makes a reset of the close
        connection.send(refusal, socket.MSG_DONTWAIT)
    return True


def _hypercorn_config(limits: Limits) -> HypercornConfig:
    config = HypercornConfig()
    config.accesslog = None
    config.errorlog = _error_logger()
    config.include_server_header = False
    config.keep_alive_timeout = limits.idle_connection_s
    config.h11_max_incomplete_size = limits.request_header_bytes
    return config
