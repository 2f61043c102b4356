"""What a process wants of the queue, and in which order responses leave it.

Rule 1: the order is that of ``sql/migrations/0003_queue.sql``; ``testing/memory_claims.py`` says the same over lists.
Rule 2: a bound counts what all processes have under way, not this one.

The words are Oban's: priority 0 is the most urgent.
"""

from collections.abc import Mapping
from enum import StrEnum

import attrs

from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.request import ServiceTier

_PRIORITIES: Mapping[ServiceTier, int] = {
    ServiceTier.PRIORITY: 0,
    ServiceTier.AUTO: 1,
    ServiceTier.DEFAULT: 1,
    ServiceTier.FLEX: 2,
}


class Surface(StrEnum):
    """Which API a row was asked for through."""

    RESPONSES = "responses"
    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"


@attrs.frozen(kw_only=True)
class ClaimDemand:
    """What one process would work on now."""

    rows: int
    """At the most."""
    models: Mapping[str, int]
    """How many responses of each model may be under way in all processes together, by the name clients use."""
    other_models: int
    """The same for each model without an entry; 0: this process cannot serve them."""
    owner_rows: int
    """How many of one owner may be under way in all processes together."""


def priority_of(tier: ServiceTier) -> int:
    """How urgent a response of *tier* is; 0 is the most."""
    return _PRIORITIES[tier]


def deadline_of(tier: ServiceTier, limits: Limits) -> float:
    """Seconds after its creation at which a response of *tier* fails if it has not ended."""
    return limits.flex_deadline_s if tier is ServiceTier.FLEX else limits.background_deadline_s


def make_demand(routes: tuple[ModelRoute, ...], limits: Limits, *, rows: int) -> ClaimDemand:
    """What a process with *routes* and *rows* free workers would work on.

    Args:
        routes: In the configuration's order; one named ``*`` serves any other name.
        limits: The bounds where a route has none of its own.
        rows: At least 1.
    """
    bounds = {route.model: route.queue_concurrency or limits.queue_model_concurrency for route in reversed(routes)}
    other = bounds.pop("*", 0)
    return ClaimDemand(rows=rows, models=bounds, other_models=other, owner_rows=limits.queue_owner_concurrency)
