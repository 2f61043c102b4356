"""Connections to a server, plain and over TLS, with no more between them and the socket than they need.

Rule 1: one task reads and at most one other writes; whoever has a connection closes it.
Rule 2: a close never waits, so that it needs no shield.
Rule 3: each read waits for the socket first: an answer's next bytes are hardly ever there yet, and a read that waits
is a checkpoint.
"""

import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import trio

ALPN_PROTOCOLS = ("http/1.1",)
_READ_BYTES = 64 * 1024
"""What one read takes at most."""
_SENT_BLINDLY_BYTES = 64 * 1024
"""What a connection over TLS sends before anybody looks for an answer; the sockets' buffers hold as much."""
_RECORD_BYTES = 16 * 1024
"""What TLS sends at once."""

_T = TypeVar("_T")


class Wire(ABC):
    """A connection; every method but ``close`` raises ``OSError`` if it is broken.

    Args:
        connected: Becomes this object's own.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    @abstractmethod
    async def send_first(self, data: bytes) -> memoryview:
        """Send as much of *data* as goes without an answer; return what is left."""

    @abstractmethod
    async def send_all(self, data: bytes | memoryview) -> None:
        """Send *data*."""

    @abstractmethod
    async def receive(self) -> bytes:
        """The next bytes; none at the end."""

    def is_readable(self) -> bool:
        """Whether something has come or the other side has closed."""
        try:
            socket.socket.recv(self._socket, 1, socket.MSG_PEEK)  # what TLS has not read is still in the kernel
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        """Close it at once; any number of times. TLS is not told: HTTP's frames tell where an answer ends."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


class PlainWire(Wire):
    """A connection without TLS."""

    async def send_first(self, data: bytes) -> memoryview:
        """See ``Wire``; what the kernel takes goes without waiting, so this is no checkpoint."""
        return memoryview(data)[self._send(data) :]

    async def send_all(self, data: bytes | memoryview) -> None:
        """See ``Wire``."""
        left = memoryview(data)
        while left:
            await trio.lowlevel.wait_writable(self._socket)
            left = left[self._send(left) :]

    async def receive(self) -> bytes:
        """See ``Wire``."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                pass  # the kernel thought better of it

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0


class TlsWire(Wire):
    """A connection over TLS.

    OpenSSL reads the socket itself, a record at a time: nothing of an answer waits where only TLS would find it, and a
    send that is cancelled leaves the other direction whole. ``trio.SSLStream`` keeps neither.

    Args:
        connected: Becomes this object's own.
        tls: Verifies the server.
        host: The server's name, in its certificate and for its choice of one.
    """

    _socket: ssl.SSLSocket

    def __init__(self, connected: socket.socket, tls: ssl.SSLContext, host: str) -> None:
        super().__init__(tls.wrap_socket(connected, server_hostname=host, do_handshake_on_connect=False))

    async def do_handshake(self) -> None:
        """Agree on keys, and verify the server."""
        await self._do(self._socket.do_handshake)

    async def send_first(self, data: bytes) -> memoryview:
        """See ``Wire``."""
        await self.send_all(memoryview(data)[:_SENT_BLINDLY_BYTES])
        return memoryview(data)[_SENT_BLINDLY_BYTES:]

    async def send_all(self, data: bytes | memoryview) -> None:
        """See ``Wire``."""
        for at in range(0, len(data), _RECORD_BYTES):
            await trio.lowlevel.wait_writable(self._socket)
            await self._do(partial(self._socket.send, memoryview(data)[at : at + _RECORD_BYTES]))

    async def receive(self) -> bytes:
        """See ``Wire``; a read takes the whole of a record, so that what comes next is the socket's to tell."""
        await trio.lowlevel.wait_readable(self._socket)
        return await self._do(partial(self._socket.recv, _READ_BYTES))

    async def _do(self, function: Callable[[], _T]) -> _T:
        """Do *function*, as often as TLS has to wait for the socket; with the same data, as OpenSSL demands."""
        while True:
            try:
                return function()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._socket)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._socket)


async def open_wire(host: str, port: int, tls: ssl.SSLContext | None) -> Wire:
    """A connection to *host*, over *tls* unless that is None.

    Cancellation: closes whatever was opened.

    Raises:
        OSError: There is no such host, none of its addresses accepts a connection, or TLS was not agreed upon.
    """
    stream = await trio.open_tcp_stream(host, port)
    connected = socket.socket(fileno=stream.socket.detach())
    connected.setblocking(False)
    if tls is None:
        return PlainWire(connected)
    try:
        wire = TlsWire(connected, tls, host)
    except BaseException:
        connected.close()
        raise
    try:
        await wire.do_handshake()
    except BaseException:
        wire.close()
        raise
    return wire
