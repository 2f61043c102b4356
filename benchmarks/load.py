"""The load: streams over raw sockets, timed from the request to the first delta and to the end."""

import json
from collections.abc import Sequence
from urllib.parse import urlsplit

import attrs
import trio

_READ_BYTES = 65536


@attrs.frozen(kw_only=True)
class Target:
    """Something that streams."""

    name: str
    url: str
    path: str
    first_delta: bytes
    """What the first delta is recognised by."""
    body: dict[str, object]
    """But for the model."""


@attrs.frozen(kw_only=True)
class StreamTiming:
    """One stream."""

    first_delta_s: float
    total_s: float
    events: int
    is_whole: bool
    """Whether it ended with ``[DONE]`` or a completed response."""


async def time_stream(target: Target, model: str) -> StreamTiming:
    """Make one request on a connection of its own and read it to its end."""
    parts = urlsplit(target.url)
    body = json.dumps({**target.body, "model": model}).encode()
    head = (
        f"POST {target.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    async with await trio.open_tcp_stream(parts.hostname or "", parts.port or 80) as stream:
        began_at = trio.current_time()
        await stream.send_all(head.encode() + body)
        received = bytearray()
        first_delta_at: float | None = None
        while not received.endswith(b"0\r\n\r\n"):
            data = await stream.receive_some(_READ_BYTES)
            if not data:
                break
            received += data
            if first_delta_at is None and target.first_delta in received:
                first_delta_at = trio.current_time()
        ended_at = trio.current_time()
    return StreamTiming(
        first_delta_s=(first_delta_at or ended_at) - began_at,
        total_s=ended_at - began_at,
        events=received.count(b"data: {"),
        is_whole=b"[DONE]" in received or b"response.completed" in received,
    )


async def run_streams(target: Target, model: str, *, concurrent: int, count: int) -> Sequence[StreamTiming]:
    """*count* streams, *concurrent* at a time."""
    timings: list[StreamTiming] = []
    left = count

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            timings.append(await time_stream(target, model))

    async with trio.open_nursery() as nursery:
        for _ in range(concurrent):
            nursery.start_soon(work)
    return timings


def percentile(values: Sequence[float], share: float) -> float:
    """The value that *share* (0 to 1) of *values* do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
