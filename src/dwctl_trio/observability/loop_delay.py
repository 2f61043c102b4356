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
Rule 5: a batch shorter than ``SHORT_S`` counts for nothing and costs next to nothing, as most are; the kernel is asked
for processor time where a batch was long, or has not been asked of late.

It does not know what anybody does about it. ``loop_lag`` is the other figure: the worst of late, for people.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

SPAN_S = 0.04
"""What was a tenth of a second ago counts for a third; a processor that is full is noticed about as fast."""
SHORT_S = 0.0005
"""The figure is too small by half of it at the most, an eighth of what admission allows."""
ASKED_S = 0.001
"""Between two looks at the processor time: so much of other batches may be taken for work of one that was kept waiting.
A look is a system call, the wall clock is none."""


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
        self._begun_at = 0.0
        self._worked_before_s = 0.0
        self._asked_at = 0.0
        self._is_measured = False

    @property
    def seconds(self) -> float:
        """The wait that a task should expect, asked from within a batch; 0.0 while nobody measures."""
        return self._after_batch(self._clock(), self._worked_s()) if self._is_measured else 0.0

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measure the event loop of the caller for the time of the block."""
        self._average_s, self._worked_before_s = 0.0, self._worked_s()
        self._changed_at = self._begun_at = self._asked_at = self._clock()
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
        if now - self._begun_at >= SHORT_S:
            worked_s = self._worked_s()
            self._average_s = self._after_batch(now, worked_s)
            self._changed_at = self._asked_at = now
            self._worked_before_s = worked_s

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - Trio's signature
        """A batch begins."""
        now = self._begun_at = self._clock()
        if now - self._asked_at >= ASKED_S:
            self._asked_at, self._worked_before_s = now, self._worked_s()

    def _after_batch(self, now: float, worked_s: float) -> float:
        """The average if the batch under way ended now."""
        length_s = now - self._begun_at
        wait_s = min(worked_s - self._worked_before_s, length_s) / 2
        faded = math.exp((self._changed_at - now) / SPAN_S)
        return faded * self._average_s + (1 - math.exp(-length_s / SPAN_S)) * wait_s
