"""How the rows' stores run their statements: by name, in one process's name.

Rule: a statement that may safely run twice is tried once more when its connection breaks; a write is not.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from dwctl_trio.domain.limits import Limits
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.postgres.queries import load_query, refusals


class Statements:
    """What the stores of one process share.

    Args:
        pool: Connections to a migrated database.
        limits: The lease's length, the rescuer's batch, and a follower's.
        daemon_id: This process's identity as an owner of rows.
        kind: What this process is, ``api`` or ``worker``.
    """

    def __init__(self, pool: Pool, *, limits: Limits, daemon_id: UUID, kind: str = "api") -> None:
        self._pool = pool
        self._limits = limits
        self._daemon_id = daemon_id
        self._kind = kind

    async def _fetch(self, name: str, values: Mapping[str, object], *, retry: bool = True) -> Sequence[Any]:
        """All rows; *retry* as for ``Pool.execute``."""
        query = load_query(name)
        with refusals(name):
            return await self._pool.fetch(query.text, *query.arguments(values), retry=retry)

    async def _fetchrow(self, name: str, values: Mapping[str, object]) -> Any:
        """The first row, or None, of a statement that may safely run twice."""
        query = load_query(name)
        with refusals(name):
            return await self._pool.fetchrow(query.text, *query.arguments(values), retry=True)

    async def _write(self, name: str, values: Mapping[str, object]) -> Any:
        """The first value, or None, of a statement that runs once."""
        query = load_query(name)
        with refusals(name):
            return await self._pool.fetchval(query.text, *query.arguments(values))
