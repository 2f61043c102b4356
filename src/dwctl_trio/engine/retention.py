"""The pruner: what is old enough goes, a little at a time.

Rule 1: a batch is ``retention_rows`` rows at the most; one that fails, as it may for being too slow, is followed by
one of half as many, from which it grows again by eighths.
Rule 2: kinds take turns while there is more, so that none waits for the backlog of another; a sweep has an end.
Rule 3: nothing that goes wrong ends it: what was not pruned is only older at the next sweep.
"""

from collections.abc import Sequence
from typing import NoReturn

import structlog
import trio

from dwctl_trio.domain.errors import StoreError
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.retention import RetentionKind
from dwctl_trio.observability.metrics import Metrics
from dwctl_trio.ports import PrunedBatch, RetentionStore

_log = structlog.get_logger(__name__)


async def run_pruner(store: RetentionStore, limits: Limits, metrics: Metrics | None = None) -> NoReturn:
    """Prune for ever; the first sweep is at once.

    Args:
        store: What is pruned; it knows the ages.
        limits: How often, and how much at a time.
        metrics: Where what was pruned and failures are counted; None: nowhere.
    """
    pruner = _Pruner(store, limits, metrics or Metrics())
    while True:
        kinds: Sequence[RetentionKind] = tuple(RetentionKind)
        for _ in range(limits.retention_batches):
            kinds = [kind for kind in kinds if await pruner.prune(kind)]
        await trio.sleep(limits.retention_interval_s)


class _Pruner:
    """Batches, as large as they succeed."""

    def __init__(self, store: RetentionStore, limits: Limits, metrics: Metrics) -> None:
        self._store = store
        self._rows_max = limits.retention_rows
        self._rows = dict.fromkeys(RetentionKind, limits.retention_rows)
        self._counters = metrics.pruning

    async def prune(self, kind: RetentionKind) -> bool:
        """Prune one batch of *kind*; whether there may be more at once."""
        batch = await self._try_to_prune(kind, self._rows[kind])
        if batch is None:
            self._counters.note_failure(kind)
            self._rows[kind] = max(1, self._rows[kind] // 2)
            return False
        self._rows[kind] = min(self._rows_max, self._rows[kind] + self._rows[kind] // 8 + 1)
        if batch.count:
            _log.info("pruned", kind=kind.value, count=batch.count)
            self._counters.note_batch(kind, batch.count)
        return batch.is_full

    async def _try_to_prune(self, kind: RetentionKind, rows: int) -> PrunedBatch | None:
        """What the batch came to; None if the store cannot do it now."""
        try:
            return await self._store.prune(kind, rows)
        except StoreError as error:
            _log.warning("prune_failed", kind=kind.value, rows=rows, reason=str(error))
        except Exception:  # noqa: BLE001 - supervision boundary: the pruner, whose next sweep may do better
            _log.exception("prune_failed", kind=kind.value, rows=rows)
        return None
