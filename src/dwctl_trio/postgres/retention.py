"""What is kept for some time only, in PostgreSQL.

Rule 1: an ended row passes each kind once, in the order of the ends; where a kind has come to is its mark, so that a
sweep costs what has come of age since the last one, not what there is.
Rule 2: whoever holds a kind's mark prunes it, nobody else.
Rule 3: what a mark has missed, as when the clock was set back, goes with its row, which no mark decides about.
"""

from collections.abc import Mapping

from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.retention import RetentionKind, retention_s
from dwctl_trio.ports import PrunedBatch
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.postgres.queries import load_query, refusals

_QUERIES: Mapping[RetentionKind, str] = {
    RetentionKind.UNSTORED_EVENTS: "prune_unstored_events",
    RetentionKind.EVENTS: "prune_events",
    RetentionKind.BODIES: "prune_bodies",
    RetentionKind.ROWS: "prune_rows",
    RetentionKind.USAGE: "prune_usage",
    RetentionKind.PROCESSES: "prune_processes",
}


class PostgresRetention:
    """Keeps ``RetentionStore``.

    Args:
        pool: Connections to a migrated database.
        limits: How long what is kept.
    """

    def __init__(self, pool: Pool, limits: Limits) -> None:
        self._pool = pool
        self._limits = limits

    async def prune(self, kind: RetentionKind, rows: int) -> PrunedBatch:
        """See ``ports.RetentionStore``."""
        query = load_query(_QUERIES[kind])
        arguments = query.arguments({"age_s": retention_s(kind, self._limits), "rows": rows})
        with refusals(query.name):
            batch = await self._pool.fetchrow(query.text, *arguments, retry=True)
        return PrunedBatch(count=batch["pruned"], is_full=batch["passed"] >= rows)
