"""Responses that wait for a worker, and the events of those at work, in PostgreSQL.

Rule 1: who leaves the queue when is said in one place, the function ``dwctl_claim`` of the schema.
Rule 2: as in ``responses.py``: one statement for each thing that happens to a row, guarded by owner and epoch.
Rule 3: what is told of a response is stored before; a segment is stored once, however often it is sent.
"""

from collections.abc import Sequence
from uuid import UUID

from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.errors import IdempotencyKeyHeld, LeaseLost
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.steps import Chain
from dwctl_trio.ports import (
    Claimed,
    EventPage,
    EventSegment,
    QueuedResponse,
    RequeuedResponse,
)
from dwctl_trio.postgres.row_columns import claimed_from_row, identity_columns, segment_columns, write_columns
from dwctl_trio.postgres.statements import Statements
from dwctl_trio.postgres.step_columns import error_from_text, step_from_row


class PostgresQueue(Statements):
    """Keeps ``ports.QueueStore`` and ``ports.EventStore``."""

    async def read_clock(self) -> float:
        """See ``ports.QueueStore``."""
        row = await self._fetchrow("read_clock", {})
        return float(row["now"])

    async def enqueue_response(self, queued: QueuedResponse) -> None:
        """See ``ports.QueueStore``."""
        key, opening = queued.idempotency, queued.opening
        values: dict[str, object] = {
            **identity_columns(queued.row),
            "store": queued.row.store,
            "previous_response_id": queued.previous_id,
            "key_prefix": queued.key_prefix,
            "surface": queued.surface.value,
            "model": queued.route.model,
            "upstream": queued.route.upstream,
            "upstream_model": queued.route.upstream_model,
            "background": queued.background,
            "request": queued.request.decode(),
            "tools": queued.tools.decode() if queued.tools is not None else None,
            "idempotency_key": key.text if key else None,
            "idempotency_digest": key.body_digest if key else None,
            "priority": queued.priority,
            "created_at": queued.created_at,
            "deadline_s": queued.deadline_s,
            "first_sequence": opening.first_sequence if opening else None,
            "last_sequence": opening.last_sequence if opening else None,
            "frames": opening.frames if opening else None,
        }
        if await self._write("enqueue_response", values) is not None:
            return
        # A statement of its own: the first try may have been committed only while this one waited for it.
        if await self._fetchrow("read_row_ending", {"response_id": queued.row.response_id}) is None:
            raise IdempotencyKeyHeld("another row holds the idempotency key")

    async def claim_responses(self, demand: ClaimDemand) -> Sequence[Claimed]:
        """See ``ports.QueueStore``."""
        values: dict[str, object] = {
            "daemon_id": self._daemon_id,
            "lease_s": self._limits.lease_s,
            "rows": demand.rows,
            "models": list(demand.models),
            "models_max": list(demand.models.values()),
            "other_models_max": demand.other_models,
            "owner_max": demand.owner_rows,
        }
        return [claimed_from_row(row) for row in await self._fetch("claim_responses", values, retry=False)]

    async def append_events(self, response_id: UUID, epoch: int, segment: EventSegment) -> None:
        """See ``ports.QueueStore``."""
        values: dict[str, object] = {
            "response_id": response_id,
            "daemon_id": self._daemon_id,
            "epoch": epoch,
            "first_sequence": segment.first_sequence,
            "last_sequence": segment.last_sequence,
            "frames": segment.frames,
        }
        if await self._write("append_events", values) is None:
            raise LeaseLost("the row is no longer this process's")

    async def requeue_response(self, requeued: RequeuedResponse) -> None:
        """See ``ports.QueueStore``."""
        values: dict[str, object] = {
            **write_columns(requeued.row, requeued.ended),
            "daemon_id": self._daemon_id,
            "epoch": requeued.epoch,
            "delay_s": requeued.delay_s,
            "counts": requeued.counts,
            **segment_columns(requeued.segments),
        }
        if await self._write("requeue_response", values) is None:
            raise LeaseLost("the row is no longer this process's")

    async def request_cancel(self, response_id: UUID, owner: str) -> RowState | None:
        """See ``ports.QueueStore``."""
        row = await self._fetchrow("request_cancel", {"response_id": response_id, "owner": owner})
        return RowState(row["state"]) if row is not None else None

    async def take_over(self, response_id: UUID, *, patience_s: float) -> Claimed | None:
        """See ``ports.QueueStore``."""
        values: dict[str, object] = {
            "response_id": response_id,
            "daemon_id": self._daemon_id,
            "lease_s": self._limits.lease_s,
            "patience_s": patience_s,
        }
        for row in await self._fetch("take_over_response", values, retry=False):
            return claimed_from_row(row)
        return None

    async def read_events(self, response_id: UUID, owner: str, after: int) -> EventPage | None:
        """See ``ports.EventStore``."""
        values = {
            "response_id": response_id,
            "owner": owner,
            "after": after,
            "segments": self._limits.follow_segments,
        }
        rows = await self._fetch("read_events", values)
        if not rows:
            return None
        return EventPage(
            state=RowState(rows[0]["state"]),
            is_queued=rows[0]["is_queued"],
            is_stored=rows[0]["store"],
            response_status=rows[0]["response_status"],
            error=error_from_text(rows[0]["error"]),
            last_sequence=rows[0]["last_sequence"],
            segments=tuple(
                EventSegment(
                    first_sequence=row["segment_first"], last_sequence=row["segment_last"], frames=row["frames"]
                )
                for row in rows
                if row["frames"] is not None
            ),
        )

    async def read_told(self, response_id: UUID) -> bytes:
        """See ``ports.EventStore``."""
        row = await self._fetchrow("read_told", {"response_id": response_id})
        return row["frames"] or b""

    async def read_claimed_steps(self, response_id: UUID) -> Chain:
        """See ``ports.EventStore``."""
        return [step_from_row(row) for row in await self._fetch("read_claimed_steps", {"response_id": response_id})]
