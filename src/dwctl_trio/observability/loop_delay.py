"""How long a task that is ready waits for its turn: the figure by which an overloaded process is told from a busy one.

Trio runs all tasks that are ready, one after the other, before it looks for new ones. A task that becomes ready at any
moment of such a batch waits for the rest of it, half a batch on average. An answer takes a dozen turns or more, so
that batches of 20 ms already make a small request last a second, at a processor that is merely full.

Rule 1: a batch counts by its length, for that is how probable it is to come into it; between batches nobody waits.
Rule 2: the figure is an average over the last ``SPAN_S``, so that one long batch (a large body, a collection of
garbage) is forgotten after a moment, and a queue that stands is not.
Rule 3: the batch under way counts already.
Rule 4: the wait is told in processor time: what other processes take away makes all of it longer, and letting nobody
in would not change that.

It does not know what anybody does about it. ``loop_lag`` is the other figure: the worst of late, for people.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

SPAN_S = 0.04
"""What was a tenth of a second ago counts for a third; a processor that is full is noticed about as fast."""


class LoopDelay(trio.abc.Instrument):
    """The delay of one event loop, told by its instrument.

    Args:
        clock: Seconds on a clock that goes on while the loop waits.
        worked_s: The processor time that the loop's thread has used.
    """

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, worked_s: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock = clock
        self._worked_s = worked_s
        self._average_s = 0.0
        self._changed_at = 0.0
        self._worked_before_s = 0.0
        self._is_measured = False

    @property
    def seconds(self) -> float:
        """The wait that a task should expect, asked from within a batch; 0.0 while nobody measures."""
        return self._after_batch(self._clock()) if self._is_measured else 0.0

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measure the event loop of the caller for the time of the block."""
        self._average_s, self._changed_at, self._worked_before_s = 0.0, self._clock(), self._worked_s()
        self._is_measured = True
        trio.lowlevel.add_instrument(self)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(self)
            self._is_measured = False

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - Trio's signature
        """A batch has ended."""
        now = self._clock()
        self._average_s, self._changed_at = self._after_batch(now), now

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - Trio's signature
        """A batch begins."""
        now = self._clock()
        self._average_s *= math.exp((self._changed_at - now) / SPAN_S)
        self._changed_at, self._worked_before_s = now, self._worked_s()

    def _after_batch(self, now: float) -> float:
        """The average if the batch under way ended now."""
        kept = math.exp((self._changed_at - now) / SPAN_S)
        return kept * self._average_s + (1 - kept) * (self._worked_s() - self._worked_before_s) / 2
