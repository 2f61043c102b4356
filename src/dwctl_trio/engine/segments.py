"""The consumer of a queued response's events: they are stored, and only then told.

    loop ── emitter's log ── SegmentWriter ── append_events ── wake-up ── followers, in whatever process

Rule 1: whatever has come up since the last write goes into one segment; there are at most ten writes a second.
Rule 2: the first events go at once: what waits is the next write, not this one.
Rule 3: a segment whose commit answer was lost is written again, the same, before any other.
Rule 4: the run waits while too much is not yet stored; a database that is gone stops it, and loses nothing.
"""

from contextlib import suppress
from typing import NoReturn, Protocol
from uuid import UUID

import trio

from dwctl_trio.domain.errors import DwctlError, StoreError, StoreUnavailable
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.engine.leases import Attempt
from dwctl_trio.engine.state import Services
from dwctl_trio.engine.topics import response_topic
from dwctl_trio.observability.log import get_logger
from dwctl_trio.ports import EventSegment

_log = get_logger(__name__)


class EventLog(Protocol):
    """The events of one response that are not known to be stored."""

    def take_segment(self) -> EventSegment | None:
        """All there are, or once more what was taken and not confirmed; None if there are none."""

    def confirm_segment(self) -> None:
        """What was taken last is stored."""

    @property
    def unstored_bytes(self) -> int:
        """How much there is."""

    @property
    def logged_bytes(self) -> int:
        """How much there has been so far, stored or not."""


class SegmentWriter:
    """Stores the events of one claimed response.

    Args:
        services: The store, the bounds, and who is told.
        response_id: Whose events they are.
        epoch: The row's, as this process last saw it.
        attempt: What is stopped when they cannot be stored any more.
        stored_bytes: Of the events that are stored already.
    """

    def __init__(
        self, services: Services, response_id: UUID, epoch: int, attempt: Attempt, *, stored_bytes: int = 0
    ) -> None:
        self._services = services
        self._response_id = response_id
        self._epoch = epoch
        self._attempt = attempt
        self._topic = response_topic(response_id)
        self._bytes_max = services.limits.queued_event_bytes - stored_bytes
        self._log: EventLog | None = None
        self._ready = trio.Event()
        self._stored = trio.Event()

    def send_nowait(self, frames: bytes) -> None:  # noqa: ARG002 - the port's signature
        """Have *frames*, which are in the log, stored with the next write.

        Another task's sending may have had them stored already: the log alone knows.

        Raises:
            trio.WouldBlock: Too many are not stored yet.
            DwctlError: The response has more events than are kept of one.
        """
        self._ready.set()
        if self._log is None or self._log.unstored_bytes > self._services.limits.segment_bytes:
            raise trio.WouldBlock
        if self._log.logged_bytes > self._bytes_max:
            raise DwctlError("The response has more events than this server keeps of one. Ask for less at once.")

    async def send(self, frames: bytes) -> None:
        """The same, waiting while too many are not stored yet."""
        while True:
            with suppress(trio.WouldBlock):
                return self.send_nowait(frames)
            if self._log is None:  # the writer is about to begin
                await trio.lowlevel.checkpoint()
            else:
                await self._stored.wait()

    async def run(self, log: EventLog) -> NoReturn:
        """Write what comes up in *log*, until the response is no longer ours to write.

        Cancellation: what was taken and is not known to be stored is still in the log.
        """
        self._log, limits, failures = log, self._services.limits, 0
        while True:
            await self._ready.wait()
            self._ready = trio.Event()
            begun_at = trio.current_time()
            segment = log.take_segment()
            if segment is None:
                continue
            try:
                with trio.fail_after(limits.store_wait_s + limits.store_call_s):
                    await self._services.queue.append_events(self._response_id, self._epoch, segment)
            except (StoreUnavailable, trio.TooSlowError) as error:
                if not failures:
                    _log.warning(
                        "events_not_stored", response_id=response_id_text(self._response_id), reason=str(error)
                    )
                failures += 1
                self._services.metrics.queue.event_write_failures.inc()
                self._ready.set()
                await trio.sleep(limits.terminal_retry_s)
                continue
            except StoreError as error:
                if self._attempt.working:
                    self._attempt.stop(error)
                await trio.sleep_forever()
            log.confirm_segment()
            failures = 0
            if log.unstored_bytes:  # it came up while an earlier segment was tried again
                self._ready.set()
            self._stored.set()
            self._stored = trio.Event()
            self._services.wakeups.tell(self._topic)
            await trio.sleep_until(begun_at + limits.segment_interval_s)
