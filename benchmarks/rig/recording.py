"""A stream as raw bytes with the times at which they arrived, and what it turns out to be once it has ended.

Rule 1: while a stream runs, nothing is done but keeping what comes; it is taken apart after its end.
Rule 2: the tokens say who is missing, the grammar says what is wrong: neither is believed without the other.

The tokens are those of ``rig/clock.py``.
"""

import re
import time
from bisect import bisect_left
from contextlib import suppress

import attrs
import trio

from benchmarks.rig.load import Target
from dwctl_trio.domain.event_grammar import check_stream
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.testing.wire import read_stream

_READ_BYTES = 65536
_END = b"0\r\n\r\n"
_TOKEN = re.compile(rb'"delta":"(\d+):(\d+) "')
_ERROR = re.compile(rb'"error":{[^}]*}|"incomplete_details":{[^}]*}')
_COMPLETED = b"event: response.completed\n"


@attrs.define(eq=False)
class Recording:
    """What has come over a connection."""

    raw: bytearray = attrs.field(factory=bytearray)
    """Head and chunks."""
    ends: list[int] = attrs.field(factory=list)
    """The length of ``raw`` after each read."""
    arrived_us: list[int] = attrs.field(factory=list)
    """When each read was done, by ``time.monotonic_ns``."""

    def add(self, data: bytes, at_us: int) -> None:
        """Keep *data*, which has come at *at_us*."""
        self.raw += data
        self.ends.append(len(self.raw))
        self.arrived_us.append(at_us)


@attrs.frozen(kw_only=True)
class Findings:
    """What a stream was."""

    events: int = 0
    lost: int = 0
    """Tokens of which there is none."""
    doubled: int = 0
    """Tokens too many."""
    violation: str | None = None
    """Of the grammar or of the form of its frames."""
    failure: str | None = None
    """Why it is not a response that was completed; then nothing of the above is counted."""
    delays_us: list[int] = attrs.field(factory=list)
    """Of each token, from when the upstream sent it until it was here."""


async def record(target: Target, request: bytes, wait_s: float) -> Recording:
    """One stream, to its end or as far as it came in *wait_s*; a broken one as far as it came, too."""
    recording = Recording()
    with trio.move_on_after(wait_s), suppress(OSError, trio.BrokenResourceError):
        async with await target.connect() as stream:
            await stream.send_all(request)
            while not recording.raw.endswith(_END):
                data = await stream.receive_some(_READ_BYTES)
                if not data:
                    break
                recording.add(data, time.monotonic_ns() // 1000)
    return recording


def examine(recording: Recording, request: ResponseRequest, tokens: int) -> Findings:
    """Take a stream apart that was to have so many *tokens*."""
    raw = bytes(recording.raw)
    head, _, chunks = raw.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        return Findings(failure=raw[:500].decode(errors="replace"))
    if not raw.endswith(_END):
        return Findings(failure=f"it broke off after {raw[-500:]!r}")
    if _COMPLETED not in raw:
        error = _ERROR.search(raw)
        return Findings(failure=f"it did not complete: {error[0] if error else raw[-500:]!r}")
    body = unchunked(chunks)
    numbers = [int(found[1]) for found in _TOKEN.finditer(body)]
    told = set(numbers)
    return Findings(
        events=body.count(b"data: {"),
        lost=len(set(range(tokens)) - told),
        doubled=len(numbers) - len(told),
        violation=_violation(body, request),
        delays_us=_delays_us(recording, raw),
    )


def _violation(body: bytes, request: ResponseRequest) -> str | None:
    try:
        stream = read_stream(body, request)
    except AssertionError as error:
        return str(error)
    violation = check_stream(stream.events)
    return None if violation is None else str(violation)


def _delays_us(recording: Recording, raw: bytes) -> list[int]:
    delays = []
    for found in _TOKEN.finditer(raw):
        read = bisect_left(recording.ends, found.end())
        delays.append(recording.arrived_us[read] - int(found[2]))
    return delays


def unchunked(data: bytes) -> bytes:
    """The body whose chunks *data* are."""
    body: list[bytes] = []
    start = 0
    while True:
        line_end = data.index(b"\r\n", start)
        size = int(data[start:line_end], 16)
        if not size:
            return b"".join(body)
        body.append(data[line_end + 2 : line_end + 2 + size])
        start = line_end + 2 + size + 2
