"""The timers of the guest loop: a heap, and the wait for its first.

Rule 1: a timer is waited for by Trio's clock, so tests with a mock clock move it too.
Rule 2: cancelled timers stay in the heap until they are most of it: asyncpg cancels nearly all that it starts.

It does not know what a timer does.
"""

import asyncio
import heapq
import math

import trio

STALE_MIN = 64
"""Cancelled timers kept before the heap is rebuilt; below that it costs less to leave them."""


class GuestTimers:
    """Timers in the order of their times."""

    def __init__(self) -> None:
        self._heap: list[asyncio.TimerHandle] = []
        self._stale = 0
        self._changed = trio.Event()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, timer: asyncio.TimerHandle) -> None:
        """Keep *timer* until it is due."""
        heapq.heappush(self._heap, timer)
        if self._heap[0] is timer:
            self._changed.set()

    def count_cancelled(self) -> None:
        """Take note that one of them was cancelled."""
        self._stale += 1
        if self._stale > max(STALE_MIN, len(self._heap) // 2):
            self._heap = [timer for timer in self._heap if not timer.cancelled()]
            heapq.heapify(self._heap)
            self._stale = 0

    async def wait_due(self) -> None:
        """Wait until the first timer is due; may return before."""
        with trio.move_on_at(self._heap[0].when() if self._heap else math.inf):
            await self._changed.wait()
        self._changed = trio.Event()

    def pop_due(self) -> list[asyncio.TimerHandle]:
        """Take out the timers whose time has come, in its order."""
        now, due = trio.current_time(), []
        while self._heap and (self._heap[0].cancelled() or self._heap[0].when() <= now):
            timer = heapq.heappop(self._heap)
            if not timer.cancelled():
                due.append(timer)
        return due

    def clear(self) -> None:
        """Forget all of them, and let ``wait_due`` return."""
        self._heap.clear()
        self._changed.set()
