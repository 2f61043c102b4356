"""The server: a socket that listens, the connections that it accepts, and their end.

Rule 1: a connection's fault ends this connection only.
Rule 2: what is too much is refused before a task begins for it.
Rule 3: it does not know how a connection is served; there are two ways, which do the same.
"""

import errno
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NoReturn, Protocol

import structlog
import trio
from quart_trio import QuartTrio

from dwctl_trio.domain.limits import Limits
from dwctl_trio.http.direct_connection import DirectConnections
from dwctl_trio.http.door import PEEK_BYTES, Door
from dwctl_trio.http.hypercorn_connection import HypercornConnections

_log = structlog.get_logger(__name__)

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


class Connection(Protocol):
    """A client's connection."""

    stream: trio.SocketStream

    async def run(self) -> None:
        """Serve until one side has had enough; whoever calls closes the stream."""


class Connections(Protocol):
    """A way to serve connections."""

    def make(self, connection: socket.socket) -> Connection:
        """A connection on a socket that was accepted."""

    async def end_idle(self) -> None:
        """End the connections without a request, and each of the others behind its answer."""


WAYS: Mapping[str, Callable[[QuartTrio, Limits, Door], Connections]] = {
    "direct": DirectConnections,
    "hypercorn": HypercornConnections,
}
"""By the name that the configuration has for it."""


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
    with tell_bind_errors(host, port):
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
    with tell_bind_errors(host, port):
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
def tell_bind_errors(host: str, port: int) -> Iterator[None]:
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
    connections: Connections,
    listener: socket.socket,
    limits: Limits,
    *,
    door: Door,
    wait_stop: Callable[[], Awaitable[None]],
) -> None:
    """Serve on *listener* until *wait_stop* returns and the requests under way have ended.

    Args:
        connections: How they are served.
        listener: From ``open_listener``; closed at the end.
        limits: Times and sizes of connections.
        door: Refuses what is too much.
        wait_stop: Returns when no more connections are to be accepted.
    """
    alive: set[Connection] = set()
    grace_s = longest_end_s(limits) - _BREAK_OFF_S

    async def break_off() -> None:
        """Close what is still open when the time is over, or at once when the server is cancelled.

        A write is shielded, so that no cancellation leaves half a frame; the end of the process does not wait for it.
        """
        try:
            await wait_stop()
            await trio.sleep(grace_s + _BREAK_OFF_S)
        finally:
            for connection in alive:
                connection.stream.socket.close()

    async with trio.open_nursery() as breaking:
        breaking.start_soon(break_off, name="break_off")
        async with trio.open_nursery() as serving:

            def start(accepted: socket.socket) -> None:
                serving.start_soon(_run_connection, connections.make(accepted), alive, name="connection")

            with listener:
                async with trio.open_nursery() as accepting:
                    accepting.start_soon(_run_accept, listener, start, door, name="accept")
                    await wait_stop()
                    accepting.cancel_scope.cancel()
            await connections.end_idle()
            serving.cancel_scope.deadline = trio.current_time() + grace_s
        breaking.cancel_scope.cancel()


async def _run_connection(connection: Connection, alive: set[Connection]) -> None:
    """Serve one connection to its end, in *alive* as long; never raises but for what ends the process."""
    alive.add(connection)
    try:
        await connection.run()
    except Exception as error:  # noqa: BLE001 - supervision boundary: the connection guard
        _log_fault(error)
    except BaseExceptionGroup as group:
        faults, fatal = group.split(Exception)
        if faults is not None:
            _log_fault(faults)
        if fatal is not None:
            raise fatal from None
    finally:
        alive.discard(connection)
        await trio.aclose_forcefully(connection.stream)


async def _run_accept(listener: socket.socket, start: Callable[[socket.socket], None], door: Door) -> NoReturn:
    """Call *start* for each connection that comes; all that wait in one turn.

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
                start(connection)
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
