"""The time limits of model calls: one cancel scope a call, and one task that looks after all of them.

Rule 1: a read sets a number, and nothing else: no scope, no entry in Trio's list of deadlines.
Rule 2: while nobody reads, only the limit for the whole call runs.

A call whose numbers are left behind is cancelled by the ``CallClock``. It sleeps until the first of them can be due
and looks at all when it wakes. Most have moved on by then: a stream is looked at once in the time that two of its
chunks may be apart, however many there were.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import trio

from dwctl_trio.domain.errors import UpstreamTimeout
from dwctl_trio.domain.limits import Limits

_FIRST_BYTE = "The model's server did not begin to answer in time."
_CHUNK = "The model's server stopped in the middle of its answer."
_TOTAL = "The model's server took too long for the whole answer."


class CallClock:
    """Cancels the calls that are late."""

    def __init__(self) -> None:
        self._calls: set[CallDeadline] = set()
        self._sleep = trio.CancelScope()

    def add(self, call: "CallDeadline") -> None:
        """Look after *call* from now on."""
        self._calls.add(call)
        looks_at = call.check(trio.current_time())
        self._sleep.deadline = min(self._sleep.deadline, looks_at)

    def discard(self, call: "CallDeadline") -> None:
        """Forget *call*; that nobody sleeps for it any more is noticed at the next look."""
        self._calls.discard(call)

    async def run(self) -> None:
        """Look after the calls, for ever."""
        while True:
            with self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            looks_at = min((call.check(now) for call in self._calls), default=math.inf)
            self._sleep = trio.CancelScope(deadline=looks_at)


@contextmanager
def open_call_clock() -> Iterator[CallClock]:
    """A clock that goes for the time of the block, as a system task: it is nobody's work, and cannot fail."""
    clock, scope = CallClock(), trio.CancelScope()

    async def run() -> None:
        with scope:
            await clock.run()

    trio.lowlevel.spawn_system_task(run, name="call_clock")
    try:
        yield clock
    finally:
        scope.cancel()


class CallDeadline:
    """Bounds the block it surrounds; raises ``UpstreamTimeout`` on leaving it too late.

    Args:
        clock: Cancels it when it is late.
        limits: ``upstream_first_byte_s``, ``upstream_chunk_s`` and ``upstream_total_s``.
        is_whole: The answer comes in one piece when all of it has been thought of: only the last of them holds.
    """

    def __init__(self, clock: CallClock, limits: Limits, *, is_whole: bool = False) -> None:
        self._clock = clock
        self._limits = limits
        self._is_whole = is_whole
        self._scope = trio.CancelScope()
        self._due_at = math.inf
        """When what is waited for now is late."""
        self._expected = _FIRST_BYTE
        """What to say then."""
        self._first_byte_at: float | None = None
        """When the first byte is late, as long as no chunk was waited for."""
        self._late = _TOTAL
        """What to say if it is cancelled."""

    def __enter__(self) -> Self:
        self._scope = trio.CancelScope(deadline=trio.current_time() + self._limits.upstream_total_s)
        self._scope.__enter__()
        if not self._is_whole:
            self._clock.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._clock.discard(self)
        suppressed = self._scope.__exit__(kind, error, trace)
        if self._scope.cancelled_caught:
            raise UpstreamTimeout(self._late)
        return suppressed

    def expect_first_byte(self) -> None:
        """From now until the first chunk has been read."""
        self._due_at = self._first_byte_at = trio.current_time() + self._limits.upstream_first_byte_s

    def expect_chunk(self) -> None:
        """From now until ``pause``: until the first byte is due, or as long as two chunks may be apart."""
        now = trio.current_time()
        if self._first_byte_at is None:
            self._due_at = now + self._limits.upstream_chunk_s
            self._expected = _CHUNK
        else:
            self._due_at, self._first_byte_at = self._first_byte_at, None
            if self._due_at <= now and not self._is_whole:
                self.check(now)

    def pause(self) -> None:
        """Nobody reads: only the limit for the whole call runs."""
        self._due_at = math.inf

    def lift(self) -> None:
        """Nothing is late any more: the answer is whole, and whatever else is read has bounds of its own."""
        self._due_at = self._scope.deadline = math.inf

    def check(self, now: float) -> float:
        """Cancel the call if it is late by *now*.

        Returns:
            When it can be late at the earliest, whatever it does until then.
        """
        if self._due_at <= now:
            self._late = self._expected
            self._scope.cancel()
            return math.inf
        first_byte_at = self._first_byte_at
        if first_byte_at is None or first_byte_at <= now:
            first_byte_at = math.inf
        patience_s = min(self._limits.upstream_first_byte_s, self._limits.upstream_chunk_s)
        return min(self._due_at, first_byte_at, now + patience_s)
