"""The one allocator of sequence numbers: numbers, encodes, logs and hands over the events of one response.

Rule 1: what is numbered is logged, and goes to the consumer in the same order, whole batches at a time: what could
not be handed over goes with the next batch, so that a consumer who is still there misses nothing.
Rule 2: a batch is all that one upstream read produced, in one buffer.
Rule 3: several tasks may emit; one sends at a time, and the others wait with it for the consumer.
Rule 4: it waits for a consumer that is behind and for nothing else, and is no checkpoint otherwise: who emits in a loop
reads from the upstream in it, which is one.
Rule 5: the terminal event is prepared before it is durable and sent after.
Rule 6: the log holds what is not known to be stored. Of a warm response that is all, of a queued one the end of it.
"""

from collections.abc import Sequence

import trio

from dwctl_trio.domain.events import Event
from dwctl_trio.domain.response import Response
from dwctl_trio.domain.values import hot_value
from dwctl_trio.ports import EventSegment, EventSink
from dwctl_trio.protocol.event_stream import EventEncoder


@hot_value
class PreparedEvents:
    """Numbered and encoded, not yet in the log and not yet sent."""

    frames: bytes
    count: int


class Emitter:
    """The events of one response on their way to its consumer.

    Args:
        sink: The consumer.
        log_bytes_max: Frames kept for the terminal write, at the most; a longer stream keeps none of them.
        first_number: Of the first event; the ones before it are stored.
    """

    def __init__(self, sink: EventSink, *, log_bytes_max: float, first_number: int = 0) -> None:
        self._sink = sink
        self._encoder = EventEncoder()
        self._log: list[bytes] | None = []
        self._log_bytes_max = log_bytes_max
        self._log_begins = self._next_number = first_number
        self.logged_bytes = 0
        """Of all frames numbered here, stored or not."""
        self._taken: EventSegment | None = None
        """Taken out of the log, and perhaps stored."""
        self._sending = trio.Lock()
        self._unsent: list[bytes] = []
        """Numbered, but not handed over yet: what was noted, or whose sending was cancelled."""

    async def emit(self, events: Sequence[Event]) -> None:
        """Number, log and send *events*; a checkpoint only while the consumer is behind.

        Cancellation: the events are numbered and logged; if the consumer did not get them, the next send brings them.

        Raises:
            trio.BrokenResourceError: The consumer has left.
        """
        self._append(self._encoder.encode(self._next_number, events), len(events))
        if not self._hand_over_nowait():
            await self._hand_over()

    def note(self, events: Sequence[Event]) -> None:
        """Number and log *events* without waiting for the consumer; the next send brings them."""
        self._append(self._encoder.encode(self._next_number, events), len(events))

    def prepare(self, events: Sequence[Event]) -> PreparedEvents:
        """Encode *events* with the next numbers without using these up."""
        return PreparedEvents(frames=self._encoder.encode(self._next_number, events), count=len(events))

    def encode_response(self, response: Response) -> bytes:
        """*response* as JSON text, as its events show it."""
        return self._encoder.encode_response(response)

    async def send(self, prepared: PreparedEvents) -> None:
        """Log and send what was prepared last; see ``emit``."""
        self._append(prepared.frames, prepared.count)
        if not self._hand_over_nowait():
            await self._hand_over()

    def take_segment(self) -> EventSegment | None:
        """All that is in the log, to be stored, or once more what was taken and not confirmed; None if it is empty."""
        if self._taken is None:
            self._taken = self._cut_log(b"", 0)
            self._log, self._log_begins = [], self._next_number
        return self._taken

    def confirm_segment(self) -> None:
        """What was taken last is stored."""
        self._taken = None

    @property
    def unstored_bytes(self) -> int:
        """How much there is that is not known to be stored."""
        taken = len(self._taken.frames) if self._taken is not None else 0
        return taken + sum(map(len, self._log or ()))

    def unstored(self, prepared: PreparedEvents | None = None) -> tuple[EventSegment, ...]:
        """All events that are not known to be stored, as if *prepared* had been sent; nothing if none are kept."""
        rest = self._cut_log(prepared.frames, prepared.count) if prepared else self._cut_log(b"", 0)
        return tuple(segment for segment in (self._taken, rest) if segment is not None)

    def _cut_log(self, frames: bytes, count: int) -> EventSegment | None:
        last = self._next_number + count - 1
        if self._log is None or self.logged_bytes + len(frames) > self._log_bytes_max or last < self._log_begins:
            return None
        return EventSegment(first_sequence=self._log_begins, last_sequence=last, frames=b"".join([*self._log, frames]))

    def _append(self, frames: bytes, count: int) -> None:
        """Take numbered events into the log, and for what is to be handed over."""
        self._unsent.append(frames)
        self._next_number += count
        self.logged_bytes += len(frames)
        if self._log is not None:
            self._log.append(frames)
            if self.logged_bytes > self._log_bytes_max:
                self._log = None

    def _hand_over_nowait(self) -> bool:
        """Give the consumer all it has not got yet; False if it must be waited for, or others wait for it."""
        if self._sending.locked():
            return False
        try:
            self._sink.send_nowait(b"".join(self._unsent))
        except trio.WouldBlock:
            return False
        self._unsent.clear()
        return True

    async def _hand_over(self) -> None:
        async with self._sending:
            if self._unsent:  # else another task's sending has brought them
                count = len(self._unsent)
                await self._sink.send(b"".join(self._unsent))
                del self._unsent[:count]
