"""One socket of the guest loop: asyncio's transport interface on top of Trio's waits.

Rule 1: the socket is closed in one place, ``_lose``, exactly once, and always tells the protocol.
Rule 2: ``_lose`` runs as a queued callback, never inside a call of the protocol, which would meet itself half-way.
Rule 3: after every wait the state is looked at anew: the socket may have been closed in the same step as it woke.

It does not know what the bytes mean.

Source: Python's documentation, "Transports and Protocols"; the behaviour of asyncio's selector transports.
"""

import asyncio
import select
import socket
from contextlib import suppress
from typing import Any, Protocol

import trio

READ_BYTES = 64 * 1024
"""For one read: larger ones make the allocator ask the kernel for memory each time."""
BUFFER_BYTES_HIGH = 64 * 1024
"""Unsent bytes above which the protocol is asked to pause, asyncio's number."""
BUFFER_BYTES_LOW = 16 * 1024
"""Unsent bytes below which the protocol may go on, asyncio's number."""
KEEPALIVE_IDLE_S = 30
"""Silence on a TCP connection before the kernel asks whether the peer still lives."""
UNIX_RETRY_S = 0.005
"""Between two tries while the server's queue of new connections is full."""


class Loop(Protocol):
    """What a transport needs of the guest loop."""

    def enter(self, callback: Any, *args: Any) -> Any:
        """Run a function as guest code."""

    def spawn(self, function: Any, *args: Any) -> None:
        """Start a system task."""

    def call_soon(self, callback: Any, *args: Any) -> Any:
        """Queue a callback."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Log an exception."""

    def forget(self, transport: "GuestTransport") -> None:
        """Take note that the transport's socket is closed."""


class GuestTransport(asyncio.Transport):
    """A connected socket; ``serve_reads`` is run as a system task for as long as it lives."""

    _start_tls_compatible = True  # asyncio's own mark: the protocol may be changed at any time

    def __init__(self, loop: Loop, sock: socket.socket, protocol: Any) -> None:
        super().__init__({"socket": sock, "guest_transport": self})
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._protocol = protocol
        self._closing = False
        self._unsent = bytearray()
        self._flushing = False
        self._writing_paused = False
        self._reading_resumed: trio.Event | None = None
        self._given_back: trio.Event | None = None
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    # -- reading

    async def serve_reads(self) -> None:
        """The system task that reads; it ends when the transport closes or the peer has said its last."""
        try:
            while self._sock is not None and not self._closing:
                if self._given_back is not None:
                    await self._given_back.wait()
                    continue
                if self._reading_resumed is not None:
                    await self._reading_resumed.wait()
                    continue
                try:
                    await trio.lowlevel.wait_readable(self._sock)
                except trio.ClosedResourceError:  # it is closed, or lent
                    continue
                if self.is_reading() and self._given_back is None and not self._loop.enter(self._read):
                    return
        except BaseException:  # Cancelled: the Trio run ends and nobody would notice any more what arrives
            self._loop.enter(self.abort)
            raise

    def lend(self) -> None:
        """Leave the reading to whoever calls ``read``, until it is given back; nothing is read in between."""
        if self._given_back is None:
            self._given_back = trio.Event()
            self.wake_reader()

    def give_back(self) -> None:
        """Read by itself again; a borrower who waits is told to look."""
        if self._given_back is not None:
            self._given_back.set()
            self._given_back = None
            self.wake_reader()

    @property
    def is_lent(self) -> bool:
        """Whether the borrower is to read."""
        return self._given_back is not None and not self._closing

    async def read(self) -> None:
        """Read once, as the borrower, when there is something; may return for nothing."""
        assert self._sock is not None, "it would not be lent"
        try:
            await trio.lowlevel.wait_readable(self._sock)
        except trio.ClosedResourceError:
            return
        if self.is_lent:
            self._loop.enter(self._read)

    def wake_reader(self) -> None:
        """Have whoever waits for the socket look at the state anew."""
        if self._sock is not None:
            trio.lowlevel.notify_closing(self._sock)

    def _read(self) -> bool:
        """Read once, as guest code; False when nothing more will come."""
        protocol = self._protocol
        assert self._sock is not None
        try:
            if isinstance(protocol, asyncio.BufferedProtocol):
                count = self._sock.recv_into(protocol.get_buffer(-1))
                if count:
                    protocol.buffer_updated(count)
                    return True
            elif chunk := self._sock.recv(READ_BYTES):
                protocol.data_received(chunk)
                return True
            if not protocol.eof_received():
                self.close()
        except BlockingIOError:
            return True
        except OSError as exc:
            self._force_close(exc)
        except Exception as exc:  # noqa: BLE001 - supervision boundary: a transport round its protocol
            self._loop.call_exception_handler({"message": "protocol failed while reading", "exception": exc})
            self._force_close(exc)
        return False

    def pause_reading(self) -> None:
        """Read nothing until ``resume_reading``; the peer is held back by the kernel's buffers."""
        if self._reading_resumed is None:
            self._reading_resumed = trio.Event()

    def resume_reading(self) -> None:
        """Read again."""
        if self._reading_resumed is not None:
            self._reading_resumed.set()
            self._reading_resumed = None

    def is_reading(self) -> bool:
        """Whether data that arrives now would be read."""
        return self._reading_resumed is None and not self._closing

    def has_unread(self) -> bool:
        """Whether bytes, the peer's end or an error wait to be read, or the socket is closed; asks the kernel."""
        return self._sock is None or bool(self._poll.poll(0))

    # -- writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send *data*, now as far as the kernel takes it and the rest from a system task."""
        if self._sock is None or self._closing:
            return
        if not self._unsent:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as exc:
                self._force_close(exc)
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        self._unsent += data
        if not self._flushing:
            self._flushing = True
            self._loop.spawn(self._serve_writes)
        if len(self._unsent) > BUFFER_BYTES_HIGH and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        """Send the buffers as one."""
        self.write(b"".join(list_of_data))

    async def _serve_writes(self) -> None:
        """The system task that sends what ``write`` could not; it ends when nothing is left."""
        try:
            while self._sock is not None and self._unsent:
                with suppress(trio.ClosedResourceError):  # it is closed, or only its reader was meant
                    await trio.lowlevel.wait_writable(self._sock)
                    self._loop.enter(self._flush)
            self._flushing = False
        except BaseException:  # Cancelled too: see serve_reads
            self._loop.enter(self.abort)
            raise

    def _flush(self) -> None:
        if self._sock is None:
            return
        try:
            del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError as exc:
            self._force_close(exc)
            return
        if self._writing_paused and len(self._unsent) <= BUFFER_BYTES_LOW:
            self._writing_paused = False
            self._protocol.resume_writing()
        if self._closing and not self._unsent:
            self._force_close(None)

    def get_write_buffer_size(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return len(self._unsent)

    # -- ending

    def is_closing(self) -> bool:
        """Whether the transport is closed or about to be."""
        return self._closing

    def close(self) -> None:
        """Read no more, send what is left, then close."""
        if not self._closing:
            self._closing = True
            if not self._unsent:
                self._force_close(None)

    def abort(self) -> None:
        """Close now; what is unsent is lost."""
        self._force_close(None)

    def _force_close(self, exc: Exception | None) -> None:
        """Close now because of *exc*; the name is the one that asyncio's TLS calls."""
        self._closing = True
        self._loop.call_soon(self._lose, exc)

    def _lose(self, exc: Exception | None) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self.resume_reading()  # lets serve_reads out of its wait, as does the next
        self.give_back()
        self._unsent.clear()
        try:
            self._protocol.connection_lost(exc)
        finally:
            with suppress(RuntimeError):  # called after the end of the Trio run
                trio.lowlevel.notify_closing(sock)
            sock.close()
            self._loop.forget(self)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Give what arrives from now on to *protocol*."""
        self._protocol = protocol

    def get_protocol(self) -> Any:
        """Whom the data goes to."""
        return self._protocol


async def open_unix_socket(path: str) -> socket.socket:
    """A connected, non-blocking UNIX socket."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(path)
            except BlockingIOError:
                await trio.sleep(UNIX_RETRY_S)
            else:
                return sock
    except BaseException:
        sock.close()
        raise


async def open_tcp_socket(host: str, port: int) -> socket.socket:
    """A connected, non-blocking TCP socket; only a host that is a name is looked up, in a thread of Trio's."""
    stream = await trio.open_tcp_stream(host, port)
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # Linux; elsewhere the system's own interval holds
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    return sock
