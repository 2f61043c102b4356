"""Who owns which rows, in PostgreSQL.

Rule 1: time is the database's alone.
Rule 2: a row that somebody has locked is never waited for.

Source: the design's page on states and leases.
"""

import os
import socket
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from importlib.metadata import version
from uuid import UUID

from dwctl_trio.domain.response import ErrorCode, ErrorType, ResponseError
from dwctl_trio.ports import LeaseWatch, RenewedLeases
from dwctl_trio.postgres.statements import Statements
from dwctl_trio.postgres.step_columns import error_text

_ABANDONED = ResponseError(
    type=ErrorType.STEP_ABANDONED,
    code=ErrorCode.SERVER_ERROR,
    message="The server process that worked on this response ended before it was done.",
)


class PostgresLeases(Statements):
    """Keeps ``ports.LeaseStore``."""

    async def register_process(self) -> None:
        """See ``ports.LeaseStore``."""
        values = {
            "daemon_id": self._daemon_id,
            "kind": self._kind,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": version("dwctl-trio"),
        }
        await self._write("register_daemon", values)

    async def renew_leases(self, response_ids: AbstractSet[UUID]) -> RenewedLeases:
        """See ``ports.LeaseStore``."""
        values = {"daemon_id": self._daemon_id, "lease_s": self._limits.lease_s, "response_ids": list(response_ids)}
        rows = await self._fetch("renew_leases", values)
        return RenewedLeases(
            renewed=frozenset(row["id"] for row in rows if row["is_renewed"]),
            skipped=frozenset(row["id"] for row in rows if not row["is_renewed"]),
        )

    async def rescue_expired(self) -> Sequence[UUID]:
        """See ``ports.LeaseStore``."""
        values = {"rows": self._limits.rescue_rows, "error": error_text(_ABANDONED)}
        return [row["id"] for row in await self._fetch("rescue_expired", values)]

    async def watch_leases(self, response_ids: AbstractSet[UUID]) -> LeaseWatch:
        """See ``ports.LeaseStore``."""
        values = {"daemon_id": self._daemon_id, "response_ids": list(response_ids)}
        rows = await self._fetch("watch_leases", values)
        return LeaseWatch(
            owned=frozenset(row["id"] for row in rows),
            cancel_requested=frozenset(row["id"] for row in rows if row["is_cancel_requested"]),
        )

    async def stop_process(self) -> None:
        """See ``ports.LeaseStore``."""
        await self._fetchrow("stop_daemon", {"daemon_id": self._daemon_id})

    async def ping(self) -> None:
        """See ``ports.LeaseStore``."""
        await self._fetchrow("ping", {})
