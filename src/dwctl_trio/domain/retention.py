"""What is kept for some time only, and for how long.

Rule: nothing is pruned before it has ended, and nothing goes before what it holds.
"""

from enum import StrEnum
from typing import assert_never

from dwctl_trio.domain.limits import Limits


class RetentionKind(StrEnum):
    """One kind of what is pruned, each at its own age."""

    UNSTORED_EVENTS = "unstored_events"
    """The events of ended ``store: false`` responses."""
    EVENTS = "events"
    """The events of ended responses."""
    BODIES = "bodies"
    """What ended responses were asked and have answered: request, tools, body, steps, and events if any are left."""
    ROWS = "rows"
    """What is left of ended responses."""
    USAGE = "usage"
    """Usage records."""
    PROCESSES = "processes"
    """Processes that are no more."""


def retention_s(kind: RetentionKind, limits: Limits) -> float:
    """The age in seconds at which *kind* is pruned: since its end, or a process's last sign of life."""
    match kind:
        case RetentionKind.UNSTORED_EVENTS:
            return limits.unstored_event_s
        case RetentionKind.EVENTS:
            return limits.event_retention_s
        case RetentionKind.BODIES:
            return limits.body_retention_s
        case RetentionKind.ROWS:
            return limits.row_retention_s
        case RetentionKind.USAGE:
            return limits.usage_retention_s
        case RetentionKind.PROCESSES:
            return limits.process_retention_s
        case _ as never:
            assert_never(never)
