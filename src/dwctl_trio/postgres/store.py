"""Rows of responses in PostgreSQL, and who owns them.

Rule 1: one statement, one commit, one crossing for each thing that happens to a row.
Rule 2: every change of a row that somebody works on names its owner and epoch; 0 rows means that it is lost.
Rule 3: every read and delete by a client names the client's owner.

Source: the design's page on states and leases.
"""

import os
import socket
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from importlib.metadata import version
from typing import Any
from uuid import UUID

import msgspec

from dwctl_trio.domain.errors import Conflict, IdempotencyKeyHeld, LeaseLost
from dwctl_trio.domain.idempotency import KeyHolder
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.response import ErrorCode, ErrorType, ResponseError
from dwctl_trio.domain.steps import Chain
from dwctl_trio.domain.tools import OfferedTool
from dwctl_trio.ports import FinishedResponse, NewResponse, Progress, ResumedResponse, StoredResponse
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.postgres.queries import load_query, refusals
from dwctl_trio.postgres.step_columns import (
    ended_columns,
    error_from_text,
    error_text,
    metering_columns,
    opened_columns,
    step_from_row,
    text,
)
from dwctl_trio.protocol.request_body import parse_request, render_request
from dwctl_trio.protocol.request_tools import parse_tools, render_tools
from dwctl_trio.protocol.response_object import render_response

_ABANDONED = ResponseError(
    type=ErrorType.STEP_ABANDONED,
    code=ErrorCode.SERVER_ERROR,
    message="The server process that worked on this response ended before it was done.",
)


class PostgresStore:
    """Keeps ``ResponseStore`` and ``LeaseStore`` for one process.

    Args:
        pool: Connections to a migrated database.
        limits: The lease's length and the rescuer's batch.
        daemon_id: This process's identity as an owner of rows.
        kind: What this process is, ``api`` or ``worker``.
    """

    def __init__(self, pool: Pool, *, limits: Limits, daemon_id: UUID, kind: str = "api") -> None:
        self._pool = pool
        self._limits = limits
        self._daemon_id = daemon_id
        self._kind = kind

    async def open_response(self, new: NewResponse) -> int:
        """See ``ports.ResponseStore``."""
        request, key = new.request, new.idempotency
        values: dict[str, object] = {
            "response_id": new.response_id,
            "owner": new.owner,
            "key_prefix": new.key_prefix,
            "model": request.model,
            "upstream": new.route.upstream,
            "upstream_model": new.route.upstream_model,
            "service_tier": request.service_tier.value,
            "stream": request.stream,
            "store": request.store,
            "request": text(render_request(request)) if request.store else None,
            "tools": text(render_tools(new.tools)) if request.store and new.tools else None,
            "idempotency_key": key.text if key else None,
            "idempotency_digest": key.body_digest if key else None,
            "daemon_id": self._daemon_id,
            "lease_s": self._limits.lease_s,
            "step_id": new.first_step_id,
        }
        created_at = await self._write("open_response", values)
        if created_at is None:
            raise IdempotencyKeyHeld("another row holds the idempotency key")
        return int(created_at)

    async def find_key_holder(self, owner: str, key: str) -> KeyHolder | None:
        """See ``ports.ResponseStore``."""
        row = await self._fetchrow("find_key_holder", {"owner": owner, "key": key})
        if row is None:
            return None
        return KeyHolder(
            response_id=row["id"],
            state=RowState(row["state"]),
            is_stored=row["store"],
            body_digest=row["idempotency_digest"],
            told=row["frames"] if row["response"] is None else row["response"].encode(),
        )

    async def advance_response(self, progress: Progress) -> None:
        """See ``ports.ResponseStore``."""
        new, store = progress.new, progress.new.request.store
        values: dict[str, object] = {
            "response_id": new.response_id,
            "owner": new.owner,
            "service_tier": new.request.service_tier.value,
            "stream": new.request.stream,
            "daemon_id": self._daemon_id,
            "epoch": progress.epoch,
            "lease_s": self._limits.lease_s,
            **ended_columns(progress.ended, store=store),
            **metering_columns(progress.ended),
            **opened_columns(progress.opened, store=store),
        }
        if await self._write("advance_response", values) is None:
            raise LeaseLost("the row is no longer this process's")

    async def finish_response(self, finished: FinishedResponse) -> None:
        """See ``ports.ResponseStore``."""
        ended = await self._write("finish_response", self._finish_values(finished))
        if ended is None and not await self._ended_like(finished):
            raise LeaseLost("the row is no longer this process's")

    async def _ended_like(self, finished: FinishedResponse) -> bool:
        """Whether the row already carries this ending: the commit of an earlier try whose answer was lost."""
        row = await self._fetchrow("read_row_ending", {"response_id": finished.new.response_id})
        error = finished.response.error
        return row is not None and (row["state"], row["epoch"], row["error_type"]) == (
            finished.state.value,
            finished.epoch + 1,
            error.type.value if error else None,
        )

    def _finish_values(self, finished: FinishedResponse) -> dict[str, object]:
        new, store = finished.new, finished.new.request.store
        return {
            "response_id": new.response_id,
            "owner": new.owner,
            "service_tier": new.request.service_tier.value,
            "stream": new.request.stream,
            "daemon_id": self._daemon_id,
            "epoch": finished.epoch,
            "state": finished.state.value,
            "response_status": finished.response_status,
            "response": text(render_response(finished.response)) if store else None,
            "error": error_text(finished.response.error),
            **ended_columns(finished.ended, store=store),
            **metering_columns(finished.ended),
            "last_sequence": finished.last_sequence_number,
            "frames": finished.event_log if store else None,
        }

    async def read_response(self, response_id: UUID, owner: str) -> StoredResponse | None:
        """See ``ports.ResponseStore``."""
        row = await self._fetchrow("read_response", {"response_id": response_id, "owner": owner})
        if row is None:
            return None
        return StoredResponse(
            response_id=row["id"],
            state=RowState(row["state"]),
            created_at=row["created_at"],
            request=parse_request(msgspec.json.decode(row["request"])) if row["request"] is not None else None,
            tools=_parse_tools(row["tools"]),
            body=row["response"].encode() if row["response"] is not None else None,
            error=error_from_text(row["error"]),
        )

    async def read_chain(self, response_id: UUID, owner: str) -> Chain:
        """See ``ports.ResponseStore``."""
        rows = await self._fetch("read_steps", {"response_id": response_id, "owner": owner})
        return [step_from_row(row) for row in rows]

    async def delete_response(self, response_id: UUID, owner: str) -> bool:
        """See ``ports.ResponseStore``."""
        if await self._write("delete_response", {"response_id": response_id, "owner": owner}) is not None:
            return True
        if await self.read_response(response_id, owner) is not None:
            raise Conflict("The response is still being worked on. Delete it once it has ended.")
        return False

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

    async def renew_leases(self, response_ids: AbstractSet[UUID]) -> frozenset[UUID]:
        """See ``ports.LeaseStore``."""
        values = {"daemon_id": self._daemon_id, "lease_s": self._limits.lease_s, "response_ids": list(response_ids)}
        return frozenset(row["id"] for row in await self._fetch("renew_leases", values))

    async def rescue_expired(self) -> Sequence[UUID]:
        """See ``ports.LeaseStore``."""
        values = {"rows": self._limits.rescue_rows, "error": error_text(_ABANDONED)}
        return [row["id"] for row in await self._fetch("rescue_expired", values)]

    async def take_over(self, response_id: UUID) -> ResumedResponse | None:
        """See ``ports.LeaseStore``."""
        values = {"response_id": response_id, "daemon_id": self._daemon_id, "lease_s": self._limits.lease_s}
        query = load_query("take_over_response")
        with refusals(query.name):
            row = await self._pool.fetchrow(query.text, *query.arguments(values))
        if row is None:
            return None
        steps = await self._fetch("read_steps", {"response_id": response_id, "owner": row["owner"]})
        request = parse_request(msgspec.json.decode(row["request"]))
        new = NewResponse(
            response_id=response_id,
            owner=row["owner"],
            key_prefix=row["key_prefix"],
            request=request,
            route=ModelRoute(model=request.model, upstream=row["upstream"], upstream_model=row["upstream_model"]),
            first_step_id=steps[0]["id"],
            tools=_parse_tools(row["tools"]),
        )
        return ResumedResponse(
            new=new,
            epoch=row["epoch"],
            created_at=row["created_at"],
            age_s=row["age_s"],
            steps=tuple(step_from_row(step) for step in steps),
        )

    async def stop_process(self) -> None:
        """See ``ports.LeaseStore``."""
        await self._fetchrow("stop_daemon", {"daemon_id": self._daemon_id})

    async def ping(self) -> None:
        """See ``ports.LeaseStore``."""
        await self._fetchrow("ping", {})

    async def _fetch(self, name: str, values: Mapping[str, object]) -> Sequence[Any]:
        """All rows of a statement that may safely run twice."""
        query = load_query(name)
        with refusals(name):
            return await self._pool.fetch(query.text, *query.arguments(values), retry=True)

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


def _parse_tools(stored: str | None) -> tuple[OfferedTool, ...]:
    return () if stored is None else parse_tools(msgspec.json.decode(stored))
