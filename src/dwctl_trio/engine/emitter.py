"""The one allocator of sequence numbers: numbers, encodes, logs and hands over the events of one response.

Rule 1: what is numbered is logged, and goes to the consumer in the same order, whole batches at a time: what could
not be handed over goes with the next batch, so that a consumer who is still there misses nothing.
Rule 2: a batch is all that one upstream read produced, in one buffer.
Rule 3: several tasks may emit; one sends at a time, and the others wait with it for the consumer.
Rule 4: the terminal event is prepared before it is durable and sent after.
"""

from collections.abc import Sequence

import attrs
import trio

from dwctl_trio.domain.events import Event
from dwctl_trio.ports import EventSink
from dwctl_trio.protocol.event_stream import EventEncoder


@attrs.frozen(kw_only=True)
class PreparedEvents:
    """Numbered and encoded, not yet in the log and not yet sent."""

    frames: bytes
    count: int


class Emitter:
    """The events of one response on their way to its consumer.

    Args:
        sink: The consumer.
        log_bytes_max: Frames kept for the terminal write, at the most; a longer stream keeps none of them.
    """

    def __init__(self, sink: EventSink, *, log_bytes_max: int) -> None:
        self._sink = sink
        self._encoder = EventEncoder()
        self._log: list[bytes] | None = []
        self._log_bytes_left = log_bytes_max
        self._next_number = 0
        self._sending = trio.Lock()
        self._unsent: list[bytes] = []
        """Numbered, but not handed over yet: what was noted, or whose sending was cancelled."""

    async def emit(self, events: Sequence[Event]) -> None:
        """Number, log and send *events*.

        Cancellation: the events are numbered and logged; if the consumer did not get them, the next send brings them.

        Raises:
            trio.BrokenResourceError: The consumer has left.
        """
        await self.send(self.prepare(events))

    def note(self, events: Sequence[Event]) -> None:
        """Number and log *events* without waiting for the consumer; the next send brings them."""
        self._append(self.prepare(events))

    def prepare(self, events: Sequence[Event]) -> PreparedEvents:
        """Encode *events* with the next numbers without using these up."""
        return PreparedEvents(frames=self._encoder.encode(self._next_number, events), count=len(events))

    async def send(self, prepared: PreparedEvents) -> None:
        """Log and send what was prepared last; see ``emit``."""
        self._append(prepared)
        try:
            self._sending.acquire_nowait()  # without a checkpoint, where nobody else sends
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            if self._unsent:  # else another task's sending has brought them
                count = len(self._unsent)
                await self._sink.send(b"".join(self._unsent))
                del self._unsent[:count]
        finally:
            self._sending.release()

    def log_with(self, prepared: PreparedEvents) -> tuple[bytes | None, int]:
        """The whole log as if *prepared* had been sent, None if none is kept, and the last number in it."""
        fits = self._log is not None and len(prepared.frames) <= self._log_bytes_left
        log = b"".join([*self._log, prepared.frames]) if self._log is not None and fits else None
        return log, self._next_number + prepared.count - 1

    def _append(self, prepared: PreparedEvents) -> None:
        self._unsent.append(prepared.frames)
        self._log_bytes_left -= len(prepared.frames)
        if self._log_bytes_left < 0:
            self._log = None
        if self._log is not None:
            self._log.append(prepared.frames)
        self._next_number += prepared.count
