"""The load: requests over raw sockets, as cheap as they can be, timed from the request to the end of its answer.

A stream has a connection of its own, upon every target; blocking requests share one until it has served
``CONNECTION_REQUESTS`` of them, upon every target.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import urlsplit

import attrs
import trio

from benchmarks.rig.processes import Process

CONNECTION_REQUESTS = 500
"""Fewer than after which any target closes a connection by itself."""

_READ_BYTES = 65536
_END = b"0\r\n\r\n"


@attrs.frozen(kw_only=True)
class Target:
    """Something that answers."""

    process: Process
    path: str
    body: Mapping[str, object]
    """What its dialect needs, but for the model and for whether to stream."""
    delta_sign: bytes
    """What a text delta is recognised by."""

    def request(self, model: str, *, stream: bool, **more: object) -> bytes:
        """A request of *model* as it goes over the wire."""
        options = {"stream_options": {"include_usage": True}} if stream and "messages" in self.body else {}
        body = json.dumps({**self.body, **options, "model": model, "stream": stream, **more}).encode()
        return self._head("POST", self.path, len(body)) + body

    def get(self, path: str) -> bytes:
        """A request for what is at *path*."""
        return self._head("GET", path, 0)

    def _head(self, method: str, path: str, size: int) -> bytes:
        return (
            f"{method} {path} HTTP/1.1\r\nhost: {urlsplit(self.process.url).netloc}\r\n"
            f"content-type: application/json\r\ncontent-length: {size}\r\n\r\n"
        ).encode()

    async def connect(self) -> trio.SocketStream:
        """A new connection."""
        parts = urlsplit(self.process.url)
        return await trio.open_tcp_stream(parts.hostname or "", parts.port or 80)


@attrs.frozen(kw_only=True)
class Answer:
    """One answer."""

    first_delta_s: float
    """From the request; of a blocking request, to the end."""
    total_s: float
    events: int
    """0 for a blocking request."""


async def run_stream(target: Target, request: bytes, *, observe: Callable[[bytes], None] | None = None) -> Answer:
    """Make one request on a connection of its own and read its events to the end.

    Args:
        target: Whom to ask.
        request: As ``Target.request`` makes it.
        observe: Called with whatever a read brings, at once.

    Raises:
        RuntimeError: The stream did not end as a whole one does.
    """
    async with await target.connect() as stream:
        began_at = trio.current_time()
        await stream.send_all(request)
        received = bytearray()
        first_delta_at: float | None = None
        while not received.endswith(_END):
            data = await stream.receive_some(_READ_BYTES)
            if not data:
                break
            received += data
            if observe is not None:
                observe(data)
            if first_delta_at is None and target.delta_sign in received:
                first_delta_at = trio.current_time()
        ended_at = trio.current_time()
    if not (b"[DONE]" in received or b"event: response.completed" in received):
        raise RuntimeError(f"a stream of {target.path} broke off or failed:\n{bytes(received[-2000:])!r}")
    return Answer(
        first_delta_s=(first_delta_at or ended_at) - began_at,
        total_s=ended_at - began_at,
        events=received.count(b"data: {"),
    )


async def run_blocking(stream: trio.SocketStream, request: bytes) -> bytes:
    """Make one request on *stream* and return the body of its answer.

    Raises:
        RuntimeError: Its status was not 200.
    """
    await stream.send_all(request)
    received = b""
    while b"\r\n\r\n" not in received:
        received += await _receive(stream)
    head, _, body = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"a request was refused:\n{received.decode(errors='replace')}")
    size = _content_length(head)
    while len(body) < size:
        body += await _receive(stream)
    return body


async def _receive(stream: trio.SocketStream) -> bytes:
    data = await stream.receive_some(_READ_BYTES)
    if not data:
        raise RuntimeError("a connection was closed before the answer was whole")
    return bytes(data)


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise RuntimeError(f"an answer has no length:\n{head.decode(errors='replace')}")


async def run_streams(target: Target, request: bytes, *, concurrent: int, count: int) -> list[Answer]:
    """*count* streams, *concurrent* at a time."""
    answers: list[Answer] = []

    async def make_one() -> None:
        answers.append(await run_stream(target, request))

    await repeat(make_one, concurrent=concurrent, count=count)
    return answers


async def run_blockings(target: Target, request: bytes, *, concurrent: int, count: int) -> list[Answer]:
    """*count* blocking requests, *concurrent* at a time."""
    answers: list[Answer] = []
    left = count

    async def work() -> None:
        nonlocal left
        while left > 0:
            async with await target.connect() as stream:
                for _ in range(CONNECTION_REQUESTS):
                    if left <= 0:
                        break
                    left -= 1
                    began_at = trio.current_time()
                    await run_blocking(stream, request)
                    total_s = trio.current_time() - began_at
                    answers.append(Answer(first_delta_s=total_s, total_s=total_s, events=0))

    async with trio.open_nursery() as nursery:
        for _ in range(concurrent):
            nursery.start_soon(work)
    return answers


async def repeat(make_one: Callable[[], Awaitable[None]], *, concurrent: int, count: int) -> None:
    """Do *make_one* *count* times, *concurrent* at a time."""
    left = count

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await make_one()

    async with trio.open_nursery() as nursery:
        for _ in range(concurrent):
            nursery.start_soon(work)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that *share* (0 to 1) of *values* do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
