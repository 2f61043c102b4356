"""Who may begin: bounds on what is under way at once, and on rates, checked before a body is read.

Rule 1: what is over a bound is refused at once with a time to try again; there is no queue here.
Rule 2: a place is held until the request's nursery has ended, terminal write included.
Rule 3: the process's own bounds answer 503, an owner's 429.
"""

import random
from collections.abc import Callable, Mapping

import attrs
import trio

from dwctl_trio.domain.errors import LimitExceeded, Overloaded
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.rates import Bucket, OwnerRates

ANY_OWNER = "*"
"""The entry of the configuration for owners that have none of their own."""

_RETRY_AFTER_S = (1.0, 5.0)
_OWNER_RETRY_AFTER_S = 1.0
"""When to try again with too many requests of one's own under way."""

_TRUST_S = 2.0
"""In which what may be under way doubles after the process was too busy. Without it each moment of calm lets in all
that comes, and what they cost is felt only when it is too late."""
_DOUBLINGS_MAX = 20.0
"""More is no bound at all."""


@attrs.define(eq=False)
class _Owner:
    """One owner's use."""

    under_way: int = 0
    requests: Bucket | None = None
    tokens: Bucket | None = None


class Admission:
    """The doorkeeper of one process.

    Args:
        limits: ``live_responses``, ``calm_responses``, ``loop_delay_s`` and ``owner_responses``.
        rates: By owner; ``*`` for all that have none of their own.
        loop_delay_s: How long a task waits for its turn at the moment, in seconds.
    """

    def __init__(
        self,
        limits: Limits,
        rates: Mapping[str, OwnerRates],
        loop_delay_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._limits = limits
        self._rates = rates
        self._loop_delay_s = loop_delay_s
        self._owners: dict[str, _Owner] = {}
        self._under_way = 0
        self._inside = 0
        """Requests between the door and their end, also those that have not asked for a place yet, or get none."""
        self._borne = limits.live_responses
        """What was under way when the process was too busy last, and could bear no more."""
        self._borne_at = 0.0

    @property
    def under_way(self) -> int:
        """Requests that hold a place."""
        return self._under_way

    @property
    def owners_known(self) -> int:
        """Owners of whom something is remembered."""
        return len(self._owners)

    def enter(self) -> Callable[[], None]:
        """Count a request that was let in, whoever it is; return what is to be called when it has ended."""
        self._inside += 1
        is_inside = True

        def leave() -> None:
            nonlocal is_inside
            self._inside -= is_inside
            is_inside = False

        return leave

    def find_overload(self) -> Overloaded | None:
        """Why nobody may begin at the moment, whoever it is; None if somebody may. It learns from being asked."""
        limits, under_way = self._limits, max(self._under_way, self._inside)
        if under_way >= limits.live_responses:
            return self._full()
        if under_way < limits.calm_responses:
            return None
        now = trio.current_time()
        if self._loop_delay_s() > limits.loop_delay_s:
            self._borne, self._borne_at = max(under_way, 1), now
        elif under_way < self._borne * 2 ** min((now - self._borne_at) / _TRUST_S, _DOUBLINGS_MAX):
            return None
        return Overloaded("The server is too busy at the moment.", retry_after_s=spread_retry_s())

    def admit(self, name: str) -> Callable[[], None]:
        """Take a place for a request of owner *name*; return what gives it back.

        Raises:
            Overloaded: The process has too much under way. That it is too busy is said at the door, or not at all: who
                was let in there has cost something already.
            LimitExceeded: The owner has, or is over a rate.
        """
        limits = self._limits
        if self._under_way >= limits.live_responses:
            raise self._full()
        owner = self._find(name)
        if owner.under_way >= limits.owner_responses:
            raise LimitExceeded(
                f"You have {owner.under_way} requests under way, as many as are allowed at once.",
                retry_after_s=_OWNER_RETRY_AFTER_S,
            )
        for bucket, unit in ((owner.requests, "requests"), (owner.tokens, "tokens")):
            if bucket is not None and not bucket.may_take:
                raise LimitExceeded(
                    f"You are over your rate of {bucket.per_minute} {unit} per minute.", retry_after_s=bucket.ready_in_s
                )
        if owner.requests is not None:
            owner.requests = owner.requests.take(1)
        owner.under_way += 1
        self._under_way += 1

        def release() -> None:
            owner.under_way -= 1
            self._under_way -= 1
            self._forget_idle(name, owner)

        return release

    @staticmethod
    def _full() -> Overloaded:
        return Overloaded("The server is handling as many requests as it can.", retry_after_s=spread_retry_s())

    def note_tokens(self, name: str, tokens: int) -> None:
        """Take what a model call of owner *name* has used from its rate."""
        owner = self._find(name)
        if owner.tokens is not None:
            owner.tokens = owner.tokens.take(tokens)
        self._forget_idle(name, owner)

    def headers(self, name: str) -> dict[str, str]:
        """OpenAI's rate-limit headers for owner *name*; none where it has no rates."""
        owner = self._find(name)
        headers = {}
        for bucket, unit in ((owner.requests, "requests"), (owner.tokens, "tokens")):
            if bucket is not None:
                headers[f"x-ratelimit-limit-{unit}"] = str(bucket.per_minute)
                headers[f"x-ratelimit-remaining-{unit}"] = str(bucket.remaining)
                headers[f"x-ratelimit-reset-{unit}"] = f"{bucket.full_in_s:.3f}s"
        self._forget_idle(name, owner)
        return headers

    def _find(self, name: str) -> _Owner:
        """The use of owner *name*, its buckets as of now."""
        now_s = trio.current_time()
        owner = self._owners.get(name)
        if owner is None:
            rates = self._rates.get(name) or self._rates.get(ANY_OWNER) or OwnerRates()
            owner = self._owners[name] = _Owner(
                requests=_full(rates.requests_per_minute, now_s), tokens=_full(rates.tokens_per_minute, now_s)
            )
            return owner
        owner.requests = owner.requests.at(now_s) if owner.requests is not None else None
        owner.tokens = owner.tokens.at(now_s) if owner.tokens is not None else None
        return owner

    def _forget_idle(self, name: str, owner: _Owner) -> None:
        """Keep nothing of an owner about whom there is nothing to know."""
        buckets = (owner.requests, owner.tokens)
        if owner.under_way == 0 and all(bucket is None or bucket.full_in_s == 0 for bucket in buckets):
            self._owners.pop(name, None)


def _full(per_minute: int | None, now_s: float) -> Bucket | None:
    return None if per_minute is None else Bucket.full(per_minute, now_s)


def spread_retry_s() -> float:
    """When to try an overloaded server again; spread, so that the refused do not all come back at once."""
    return random.uniform(*_RETRY_AFTER_S)  # noqa: S311 - spreads load, guards nothing
