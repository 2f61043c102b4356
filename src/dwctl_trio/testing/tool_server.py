"""A server of scripted tools on real sockets, for tests and demonstrations.

Rule 1: without a script a tool answers with the arguments it was given.
Rule 2: every wait can be ended from outside (``resume_all``), every change can be waited for (``wait_until``).
Rule 3: a client that leaves is noticed at once, also while nothing is being sent to it.
Rule 4: every call is counted by its idempotency key, however it ended.

    async with open_tool_server() as server:
        server.script("/weather", ToolReply(status=503), ToolReply(body=b'{"celsius": 21}'))
        url = server.url("/weather")
"""

import socket
import struct
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeAlias

import attrs
import msgspec
import trio

from dwctl_trio.testing.simulator_http import (
    LAST_CHUNK,
    BadRequest,
    HttpRequest,
    RequestReader,
    chunk,
    response_head,
)

CALLS_KEPT = 10_000
"""The newest calls that are remembered; all are counted."""

_BACKLOG = 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_PIECE_BYTES = 64 * 1024

_End: TypeAlias = Literal["answered", "left", "cut"]
"""How a call ended: with a whole answer, without its client, or by the script's closing the connection."""
Place: TypeAlias = Literal["head", "body"]
"""Before the head of the answer, or in the middle of its body."""


@attrs.frozen(kw_only=True)
class ToolReply:
    """What a tool answers one call with."""

    status: int = 200
    body: bytes | None = None
    """None: the arguments, as they came."""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0
    """Seconds before the head."""
    pauses_at: Place | None = None
    """Waits there until it is resumed."""
    cuts_at: Place | None = None
    """Closes the connection there."""
    resets: bool = False
    """Whether a cut is a reset instead of an end."""
    is_chunked: bool = False
    """Whether the body comes in chunks, without a length."""


@attrs.frozen(kw_only=True)
class ReceivedCall:
    """One call, as it came."""

    method: str
    path: str
    headers: dict[str, str]
    """By lower-case name."""
    raw_body: bytes

    @property
    def arguments(self) -> Any:
        """The body as JSON value."""
        return msgspec.json.decode(self.raw_body)

    @property
    def idempotency_key(self) -> str | None:
        """What tells that two calls are one."""
        return self.headers.get("idempotency-key")


class ToolServer:
    """The server: what it saw, and the means to steer it. ``open_tool_server`` makes one that serves."""

    def __init__(self) -> None:
        self.origin = ""
        """Scheme, host and port."""
        self.observers: list[Callable[[ReceivedCall], None]] = []
        """Called with each call as it arrives; ``calls`` forgets the oldest."""
        self.calls_by_key: Counter[str] = Counter()
        """How often each idempotency key came."""
        self.connections = self.accepted = self.open = self.paused = self.answered = self.left = self.cut = 0
        """Connections now and ever; calls under way, and of these paused; calls by how they ended."""
        self._calls: deque[ReceivedCall] = deque(maxlen=CALLS_KEPT)
        self._scripts: dict[str, tuple[ToolReply, ...]] = {}
        self._played: defaultdict[str, int] = defaultdict(int)
        self._resumed: set[trio.Event] = set()
        self._changes = trio.lowlevel.ParkingLot()

    @property
    def calls(self) -> tuple[ReceivedCall, ...]:
        """The newest calls, oldest first."""
        return tuple(self._calls)

    def url(self, path: str) -> str:
        """Where the tool at *path*, which begins with a slash, is called."""
        return self.origin + path

    def script(self, path: str, *replies: ToolReply) -> None:
        """Have the tool at *path* answer its next calls with *replies*, one after the other; the last one repeats."""
        self._scripts[path] = replies
        self._played[path] = 0

    def script_redirects(self, path: str, *, hops: int, status: int = 307) -> None:
        """Have *path* redirect through as many *hops*, each with *status*, to a tool that echoes its arguments."""
        for hop in range(hops):
            here = path if hop == 0 else f"{path}/{hop}"
            location = ("location", f"{path}/{hop + 1}")
            self.script(here, ToolReply(status=status, body=b"", headers=(location,)))

    def resume_all(self) -> int:
        """Let every call that is paused go on; returns how many those were."""
        resumed = list(self._resumed)
        for event in resumed:
            event.set()
        return len(resumed)

    async def wait_until(self, predicate: Callable[["ToolServer"], bool]) -> None:
        """Wait until what the server counts fulfils a predicate."""
        await trio.lowlevel.checkpoint()
        while not predicate(self):
            await self._changes.park()

    async def wait_idle(self) -> None:
        """Wait until no call is under way and no connection open."""
        await self.wait_until(lambda server: server.open == server.connections == 0)

    async def run(self, host: str, port: int, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started with ``origin`` once connections are accepted."""
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=_BACKLOG)
        bound_port = listeners[0].socket.getsockname()[1]
        self.origin = f"http://[{host}]:{bound_port}" if ":" in host else f"http://{host}:{bound_port}"
        task_status.started(self.origin)
        await trio.serve_listeners(self._serve_connection, listeners)

    def _note(self, **changes: int) -> None:
        for name, change in changes.items():
            setattr(self, name, getattr(self, name) + change)
        self._changes.unpark_all()

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        reader = RequestReader(stream)
        self._note(connections=1, accepted=1)
        try:
            while (request := await reader.read_request()) and await self._serve_call(stream, reader, request):
                pass
        except (BadRequest, trio.BrokenResourceError):
            pass  # a client that left, or is none
        finally:
            await trio.aclose_forcefully(stream)
            self._note(connections=-1)

    async def _serve_call(self, stream: trio.SocketStream, reader: RequestReader, request: HttpRequest) -> bool:
        """Answer one call; False when the connection is to be closed."""
        call = ReceivedCall(method=request.method, path=request.path, headers=request.headers, raw_body=request.body)
        self._calls.append(call)
        for observe in self.observers:
            observe(call)
        self.calls_by_key[call.idempotency_key or ""] += 1
        self._note(open=1)
        end: _End = "cut"  # if the server itself is stopped meanwhile
        try:
            end = await self._play_watched(stream, reader, self._choose_reply(request.path), request.body)
        finally:
            self._note(open=-1, **{end: 1})
        return end == "answered" and request.keep_alive

    def _choose_reply(self, path: str) -> ToolReply:
        replies = self._scripts.get(path) or (ToolReply(),)
        played = self._played[path]
        self._played[path] += 1
        return replies[min(played, len(replies) - 1)]

    async def _play_watched(
        self, stream: trio.SocketStream, reader: RequestReader, reply: ToolReply, arguments: bytes
    ) -> _End:
        """Play a reply while watching for the client to leave."""
        end: _End = "left"
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await reader.wait_client_left()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch, name="tool server: watch the client")
            end = await self._play(stream, reply, arguments)
            nursery.cancel_scope.cancel()
        return end

    async def _play(self, stream: trio.SocketStream, reply: ToolReply, arguments: bytes) -> _End:
        body = arguments if reply.body is None else reply.body
        length = None if reply.is_chunked else len(body)
        head = response_head(reply.status, reply.content_type, body_bytes=length, more=reply.headers)
        await trio.sleep(reply.delay_s)
        middle = len(body) // 2
        try:
            for place, data in (("head", b""), ("body", head + _framed(body[:middle], reply))):
                await stream.send_all(data)
                if reply.pauses_at == place:
                    await self._pause()
                if reply.cuts_at == place:
                    if reply.resets:
                        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                    return "cut"
            await stream.send_all(_framed(body[middle:], reply) + (LAST_CHUNK if reply.is_chunked else b""))
        except trio.BrokenResourceError:
            return "left"
        return "answered"

    async def _pause(self) -> None:
        resumed = trio.Event()
        self._resumed.add(resumed)
        self._note(paused=1)
        try:
            await resumed.wait()
        finally:
            self._resumed.discard(resumed)
            self._note(paused=-1)


@asynccontextmanager
async def open_tool_server(*, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[ToolServer]:
    """A server of tools that serves in this process until the block ends.

    Args:
        host: Address to listen on.
        port: TCP port; 0 takes a free one.
    """
    async with trio.open_nursery() as nursery:
        server = ToolServer()
        await nursery.start(server.run, host, port, name="tool_server")
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()


def _framed(data: bytes, reply: ToolReply) -> bytes:
    if not reply.is_chunked:
        return data
    pieces = (data[start : start + _PIECE_BYTES] for start in range(0, len(data), _PIECE_BYTES))
    return b"".join(map(chunk, pieces))
