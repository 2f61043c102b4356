"""Connections to a server, plain and over TLS, with no more between them and the socket than they need.

Rule 1: one task reads and at most one other writes; whoever has a connection closes it.
Rule 2: a close never waits, so that it needs no shield.
Rule 3: each read waits for the socket first: an answer's next bytes are hardly ever there yet, and a read that waits
is a checkpoint.
"""

import socket
import ssl
from abc import ABC, abstractmethod

import trio

ALPN_PROTOCOLS = ("http/1.1",)
_READ_BYTES = 64 * 1024
"""What one read takes at most."""
_SENT_BLINDLY_BYTES = 64 * 1024
"""What a connection over TLS sends before anybody looks for an answer; the sockets' buffers hold as much."""


class Wire(ABC):
    """A connection; every method but ``close`` raises ``OSError`` or ``trio.BrokenResourceError`` if it is broken."""

    @abstractmethod
    async def send_first(self, data: bytes) -> memoryview:
        """Send as much of *data* as goes without an answer; return what is left."""

    @abstractmethod
    async def send_all(self, data: bytes | memoryview) -> None:
        """Send *data*."""

    @abstractmethod
    async def receive(self) -> bytes:
        """The next bytes; none at the end."""

    @abstractmethod
    def is_readable(self) -> bool:
        """Whether something has come or the other side has closed."""

    @abstractmethod
    def close(self) -> None:
        """Close it at once; any number of times."""


class PlainWire(Wire):
    """A connection without TLS.

    Args:
        connected: Becomes this object's own.
    """

    def __init__(self, connected: trio.SocketStream) -> None:
        self._socket = socket.socket(fileno=connected.socket.detach())
        self._socket.setblocking(False)

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

    def is_readable(self) -> bool:
        """See ``Wire``."""
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        """See ``Wire``."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0


class TlsWire(Wire):
    """A connection over TLS.

    Args:
        connected: Becomes this object's own.
        tls: Verifies the server.
        host: The server's name, in its certificate and for its choice of one.
    """

    def __init__(self, connected: trio.SocketStream, tls: ssl.SSLContext, host: str) -> None:
        self._socket = connected.socket
        self._stream = trio.SSLStream(connected, tls, server_hostname=host, https_compatible=True)

    async def do_handshake(self) -> None:
        """Agree on keys, and verify the server."""
        await self._stream.do_handshake()

    async def send_first(self, data: bytes) -> memoryview:
        """See ``Wire``."""
        view = memoryview(data)
        await self._stream.send_all(view[:_SENT_BLINDLY_BYTES])
        return view[_SENT_BLINDLY_BYTES:]

    async def send_all(self, data: bytes | memoryview) -> None:
        """See ``Wire``."""
        await self._stream.send_all(data)

    async def receive(self) -> bytes:
        """See ``Wire``."""
        return bytes(await self._stream.receive_some(_READ_BYTES))

    def is_readable(self) -> bool:
        """See ``Wire``."""
        return self._socket.is_readable()

    def close(self) -> None:
        """See ``Wire``; TLS is not told, as HTTP allows for an end that its frames tell."""
        self._socket.close()


async def open_wire(host: str, port: int, tls: ssl.SSLContext | None) -> Wire:
    """A connection to *host*, over *tls* unless that is None.

    Cancellation: closes whatever was opened.

    Raises:
        OSError: There is no such host, or none of its addresses accepts a connection.
        trio.BrokenResourceError: TLS was not agreed upon.
    """
    connected = await trio.open_tcp_stream(host, port)
    if tls is None:
        return PlainWire(connected)
    wire = TlsWire(connected, tls, host)
    try:
        await wire.do_handshake()
    except BaseException:
        wire.close()
        raise
    return wire
