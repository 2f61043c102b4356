"""The time limits of one model call, in one cancel scope whose deadline moves.

Rule 1: one scope a call, not one a read: a read costs no more than setting a number.
Rule 2: while nobody reads, only the limit for the whole call runs.
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


class CallDeadline:
    """Bounds the block it surrounds; raises ``UpstreamTimeout`` on leaving it too late.

    Args:
        limits: ``upstream_first_byte_s``, ``upstream_chunk_s`` and ``upstream_total_s``.
        is_whole: The answer comes in one piece when all of it has been thought of: only the last of them holds.
    """

    def __init__(self, limits: Limits, *, is_whole: bool = False) -> None:
        self._limits = limits
        self._is_whole = is_whole
        self._scope = trio.CancelScope()
        self._total_at = 0.0
        self._first_byte_at: float | None = None
        self._expected = _TOTAL

    def __enter__(self) -> Self:
        self._total_at = trio.current_time() + self._limits.upstream_total_s
        self._scope.deadline = self._total_at
        self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        suppressed = self._scope.__exit__(kind, error, trace)
        if self._scope.cancelled_caught:
            raise UpstreamTimeout(self._expected)
        return suppressed

    def expect_first_byte(self) -> None:
        """From now until the first chunk has been read."""
        self._first_byte_at = trio.current_time() + self._limits.upstream_first_byte_s
        self._set(self._first_byte_at, _FIRST_BYTE)

    def pause(self) -> None:
        """Nobody reads: only the limit for the whole call runs."""
        self._set(self._total_at, _TOTAL)

    def lift(self) -> None:
        """Nothing is late any more: the answer is whole, and whatever else is read has bounds of its own."""
        self._total_at = math.inf
        self._set(math.inf, _TOTAL)

    @contextmanager
    def expect_chunk(self) -> Iterator[None]:
        """For one read in the block: until the first byte is due, or as long as two chunks may be apart."""
        if self._first_byte_at is not None:
            self._set(self._first_byte_at, _FIRST_BYTE)
            self._first_byte_at = None
        else:
            self._set(trio.current_time() + self._limits.upstream_chunk_s, _CHUNK)
        yield
        self.pause()

    def _set(self, at: float, expected: str) -> None:
        at = self._total_at if self._is_whole else at
        self._expected = expected if at < self._total_at else _TOTAL
        self._scope.deadline = min(at, self._total_at)
