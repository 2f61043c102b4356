"""What is counted of pruning."""

from prometheus_client import CollectorRegistry, Counter

from dwctl_trio.domain.retention import RetentionKind


class PruneCounters:
    """The counters of one process.

    Args:
        registry: Where they are shown.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._pruned = Counter("dwctl_pruned_rows", "What was old enough and is gone.", ("kind",), registry=registry)
        self._failures = Counter("dwctl_prune_failures", "Batches that failed.", ("kind",), registry=registry)
        for kind in RetentionKind:  # a count that is not there before it is 1 cannot be alerted on
            self._pruned.labels(kind.value)
            self._failures.labels(kind.value)

    def note_batch(self, kind: RetentionKind, count: int) -> None:
        """*count* of *kind* were pruned."""
        self._pruned.labels(kind.value).inc(count)

    def note_failure(self, kind: RetentionKind) -> None:
        """A batch of *kind* was not pruned."""
        self._failures.labels(kind.value).inc()
