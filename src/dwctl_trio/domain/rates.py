"""Rates per owner, as token buckets.

Rule 1: a bucket holds a minute's worth and fills evenly; what was not used for a minute is not saved up.
Rule 2: what is only known afterwards (tokens) is taken afterwards; the level may then be below zero, and the owner
waits until it is above.
"""

from typing import Self

import attrs

_MINUTE_S = 60.0


@attrs.frozen(kw_only=True)
class OwnerRates:
    """What one owner may use in a minute; None: as much as there is."""

    requests_per_minute: int | None = None
    """Requests for responses, refused ones not counted."""
    tokens_per_minute: int | None = None
    """Input and output together, as the upstream counts them."""


@attrs.frozen(kw_only=True)
class Bucket:
    """How much of a rate is left, as of some moment."""

    per_minute: int
    level: float
    """At most ``per_minute``; below 1 nothing may be taken."""
    at_s: float
    """On any clock that only goes forward."""

    @classmethod
    def full(cls, per_minute: int, now_s: float) -> Self:
        """A bucket of which nothing was used yet."""
        return cls(per_minute=per_minute, level=float(per_minute), at_s=now_s)

    def at(self, now_s: float) -> Self:
        """The same bucket at a later moment."""
        gained = max(0.0, now_s - self.at_s) * self.per_minute / _MINUTE_S
        return attrs.evolve(self, level=min(float(self.per_minute), self.level + gained), at_s=max(now_s, self.at_s))

    def take(self, amount: float) -> Self:
        """The bucket after *amount* was used, whatever was left."""
        return attrs.evolve(self, level=self.level - amount)

    @property
    def may_take(self) -> bool:
        """Whether something is left."""
        return self.level >= 1

    @property
    def remaining(self) -> int:
        """What is left, in whole units, never below zero."""
        return max(0, int(self.level))

    @property
    def ready_in_s(self) -> float:
        """Seconds until something may be taken; 0 if it may now."""
        return max(0.0, (1 - self.level) * _MINUTE_S / self.per_minute)

    @property
    def full_in_s(self) -> float:
        """Seconds until it is full again."""
        return max(0.0, (self.per_minute - self.level) * _MINUTE_S / self.per_minute)
