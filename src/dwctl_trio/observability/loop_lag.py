"""How late the event loop runs: the one figure that tells an overloaded process from a busy one.

Rule 1: measured by what it is about: a short timer, and how long after its time the loop came to it.
Rule 2: the figure is a maximum that fades, so that a reader who looks seldom does not miss a peak.
Rule 3: a timer that is overdue counts already; nobody who runs before it after a long pause is told that all is well.

It does not know what anybody does about it.
"""

from collections.abc import Callable
from typing import NoReturn

import attrs
import trio

INTERVAL_S = 0.1
"""Between two measurements: ten a second catch each pause that a person would feel, for 0.5 % of an idle core."""

HALF_LIFE_S = 1.0
"""In which a peak loses half: after a pause of a second, 100 ms are reached in 3.3 s, within the 5 s of a recovery."""


@attrs.define(eq=False)
class LoopLag:
    """The lag of one event loop.

    Args:
        clock: Seconds on a clock that goes on while the loop is blocked, and by which timers run.
    """

    _clock: Callable[[], float] = trio.current_time
    _due_at: float | None = attrs.field(default=None, init=False)
    """When the timer under way should fire; None while nothing is measured."""
    _peak_s: float = attrs.field(default=0.0, init=False)
    _peak_at: float = attrs.field(default=0.0, init=False)

    @property
    def seconds(self) -> float:
        """How late the loop has been of late; 0.0 while nobody measures."""
        if self._due_at is None:
            return 0.0
        now = self._clock()
        return max(self._faded(now), now - self._due_at, 0.0)

    def expect(self, due_at: float) -> None:
        """A timer is set that should fire at *due_at*."""
        self._due_at = due_at

    def note_fired(self) -> float:
        """The timer has fired; return how late it was, in seconds."""
        now = self._clock()
        assert self._due_at is not None, "only a timer that was set can fire"
        late_s = max(now - self._due_at, 0.0)
        if late_s >= self._faded(now):
            self._peak_s, self._peak_at = late_s, now
        return late_s

    def stop(self) -> None:
        """Nobody measures any more."""
        self._due_at, self._peak_s = None, 0.0

    def now(self) -> float:
        """The time on the clock of this figure."""
        return self._clock()

    def _faded(self, now: float) -> float:
        """What is left of the last peak; a clock that was set back makes it no larger."""
        age_s = max(now - self._peak_at, 0.0)
        return float(self._peak_s * 0.5 ** (age_s / HALF_LIFE_S))


async def run_loop_lag(lag: LoopLag, note_s: Callable[[float], None]) -> NoReturn:
    """Measure for ever.

    Args:
        lag: What is kept up to date.
        note_s: Told each single measurement, in seconds.

    Cancellation: *lag* is 0.0 from then on.
    """
    try:
        while True:
            lag.expect(lag.now() + INTERVAL_S)
            await trio.sleep(INTERVAL_S)
            note_s(lag.note_fired())
    finally:
        lag.stop()
