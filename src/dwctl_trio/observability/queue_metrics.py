"""What one application counts of the queue, and of those who follow; see ``metrics.py`` for the rules."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

QUEUE_WAIT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0)
"""From what a claim takes when nothing else waits to the longest that anybody would wait for."""
TIERS = ("auto", "default", "flex", "priority")


class HandedBack(StrEnum):
    """Why a worker puts a response back into the queue."""

    RETRY = "retry"
    """It failed in a way that may pass."""
    BUSY = "busy"
    """The model's server has no room for it now; that is no attempt."""
    STOPPING = "stopping"
    """The server stops."""
    FAULT = "fault"
    """The database, or the worker itself, failed."""


class QueueMetrics:
    """The queue's part of ``Metrics``.

    Args:
        registry: The application's.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._enqueued = Counter(
            "dwctl_enqueued_responses", "Responses put into the queue.", ("service_tier",), registry=registry
        )
        self._wait = Histogram(
            "dwctl_queue_wait_seconds",
            "Time from a response's creation to each claim of it.",
            ("service_tier",),
            buckets=QUEUE_WAIT_BUCKETS_S,
            registry=registry,
        )
        self.claim_failures = Counter("dwctl_claim_failures", "Claims that failed.", registry=registry)
        self._handed_back = Counter(
            "dwctl_handed_back_responses", "Responses put back into the queue.", ("reason",), registry=registry
        )
        self.event_write_failures = Counter(
            "dwctl_event_write_failures", "Writes of a queued response's events that failed.", registry=registry
        )
        self._followers = Gauge("dwctl_followers", "Streams that follow stored events.", registry=registry)
        for tier in TIERS:  # a count that is not there before it is 1 cannot be alerted on
            self._enqueued.labels(tier)
            self._wait.labels(tier)
        for reason in HandedBack:
            self._handed_back.labels(reason.value)

    def note_enqueued(self, tier: str) -> None:
        """A response of *tier* was put into the queue."""
        self._enqueued.labels(tier).inc()

    def note_claimed(self, tier: str, wait_s: float) -> None:
        """A response of *tier* was claimed, *wait_s* after its creation."""
        self._wait.labels(tier).observe(wait_s)

    def note_handed_back(self, reason: HandedBack) -> None:
        """A response was put back."""
        self._handed_back.labels(reason.value).inc()

    @contextmanager
    def following(self) -> Iterator[None]:
        """Somebody follows for the time of the block."""
        with self._followers.track_inprogress():
            yield
