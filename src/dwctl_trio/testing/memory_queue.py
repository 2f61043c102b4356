"""Responses that wait for a worker, and their events, in memory: the verified fake of ``postgres/queue.py``."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import attrs
import trio

from dwctl_trio.domain.claiming import ClaimDemand, Surface
from dwctl_trio.domain.errors import IdempotencyKeyHeld, LeaseLost
from dwctl_trio.domain.lifecycle import TERMINAL_STATES, RowState
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.request import ServiceTier
from dwctl_trio.domain.steps import Chain
from dwctl_trio.ports import (
    Claimed,
    ClaimedChat,
    ClaimedResponse,
    ClaimedUnreadable,
    EventPage,
    EventSegment,
    NewResponse,
    QueuedResponse,
    RequeuedResponse,
    ResponseRow,
)
from dwctl_trio.protocol.stored_request import read_request
from dwctl_trio.testing.memory_claims import choose_rows
from dwctl_trio.testing.memory_process import MemoryStoreOfProcess
from dwctl_trio.testing.memory_rows import MemoryRow, step_value


class MemoryQueue(MemoryStoreOfProcess):
    """Keeps ``ports.QueueStore`` and ``ports.EventStore``."""

    async def read_clock(self) -> float:
        """See ``ports.QueueStore``."""
        await trio.lowlevel.checkpoint()
        return self.database.now()

    async def enqueue_response(self, queued: QueuedResponse) -> None:
        """See ``ports.QueueStore``."""
        await trio.lowlevel.checkpoint()
        self._enqueue(queued)
        await trio.lowlevel.checkpoint()

    async def claim_responses(self, demand: ClaimDemand) -> Sequence[Claimed]:
        """See ``ports.QueueStore``."""
        await trio.lowlevel.checkpoint()
        claimed = self._claim(demand)
        await trio.lowlevel.checkpoint()
        return claimed

    async def append_events(self, response_id: UUID, epoch: int, segment: EventSegment) -> None:
        """See ``ports.QueueStore``."""
        await trio.lowlevel.checkpoint()
        row = self.owned(response_id, epoch)
        last = -1 if row is None or row.last_sequence is None else row.last_sequence
        if row is None or last not in {segment.first_sequence - 1, segment.last_sequence}:
            raise LeaseLost("the row is no longer this process's")
        self._note_told(row, [segment])
        await trio.lowlevel.checkpoint()

    async def requeue_response(self, requeued: RequeuedResponse) -> None:
        """See ``ports.QueueStore``."""
        await trio.lowlevel.checkpoint()
        self._requeue(requeued)
        await trio.lowlevel.checkpoint()

    async def request_cancel(self, response_id: UUID, owner: str) -> RowState | None:
        """See ``ports.QueueStore``."""
        await trio.lowlevel.checkpoint()
        row = self.database.rows.get(response_id)
        if row is None or row.owner != owner:
            return None
        if row.state not in TERMINAL_STATES and row.cancel_requested_at is None:
            self.database.put_row(attrs.evolve(row, cancel_requested_at=self.database.now()))
        await trio.lowlevel.checkpoint()
        return row.state

    async def take_over(self, response_id: UUID, *, patience_s: float) -> Claimed | None:
        """See ``ports.QueueStore``."""
        await trio.lowlevel.checkpoint()
        taken = self._take_over(response_id, patience_s)
        await trio.lowlevel.checkpoint()
        return taken

    async def read_events(self, response_id: UUID, owner: str, after: int) -> EventPage | None:
        """See ``ports.EventStore``."""
        await trio.lowlevel.checkpoint()
        row, log = self.database.rows.get(response_id), self.database.events.get(response_id)
        if row is None or row.owner != owner:
            return None
        further = [segment for segment in (log.segments if log else ()) if segment.last_sequence > after]
        return EventPage(
            state=row.state,
            is_queued=row.is_queued,
            is_stored=row.store,
            response_status=row.response_status,
            error=row.error,
            last_sequence=row.last_sequence,
            segments=tuple(further[: self.limits.follow_segments]),
        )

    async def read_told(self, response_id: UUID) -> bytes:
        """See ``ports.EventStore``."""
        await trio.lowlevel.checkpoint()
        log = self.database.events.get(response_id)
        return log.frames if log is not None else b""

    async def read_claimed_steps(self, response_id: UUID) -> Chain:
        """See ``ports.EventStore``."""
        await trio.lowlevel.checkpoint()
        return [step_value(step) for step in self.database.steps_of(response_id)]

    # -- the changes, each at once

    def _enqueue(self, queued: QueuedResponse) -> None:
        database, key, opening = self.database, queued.idempotency, queued.opening
        if queued.row.response_id in database.rows:
            return
        if key is not None and database.find_key_holder(queued.row.owner, key.text) is not None:
            raise IdempotencyKeyHeld("another row holds the idempotency key")
        row = MemoryRow(
            id=queued.row.response_id,
            owner=queued.row.owner,
            key_prefix=queued.key_prefix,
            surface=queued.surface.value,
            model=queued.route.model,
            upstream=queued.route.upstream,
            upstream_model=queued.route.upstream_model,
            service_tier=queued.row.service_tier.value,
            background=queued.background,
            stream=queued.row.stream,
            store=queued.row.store,
            previous_response_id=queued.previous_id,
            request=queued.request,
            tools=queued.tools,
            priority=queued.priority,
            deadline=queued.created_at + queued.deadline_s,
            state=RowState.PENDING,
            daemon_id=None,
            epoch=0,
            lease_expires_at=None,
            created_at=queued.created_at,
            started_at=None,
            last_sequence=opening.last_sequence if opening else None,
            idempotency_key=key.text if key else None,
            idempotency_digest=key.body_digest if key else None,
        )
        database.put_row(row)
        database.put_events(row.id, [opening] if opening else [])

    def _claim(self, demand: ClaimDemand) -> Sequence[Claimed]:
        database, now = self.database, self.database.now()
        for row in list(database.rows.values()):
            if row.not_before is not None and row.not_before <= now:
                database.put_row(attrs.evolve(row, not_before=None))
        chosen = choose_rows(list(database.rows.values()), demand, now)
        return [self._told_of(self._own(row, now), now) for row in chosen]

    def _own(self, row: MemoryRow, now: float) -> MemoryRow:
        is_waiting = row.state is RowState.PENDING
        taken = attrs.evolve(
            row,
            state=RowState.CLAIMED if is_waiting else row.state,
            daemon_id=self.daemon_id,
            epoch=row.epoch + 1,
            attempt=row.attempt + 1 if is_waiting else row.attempt,
            lease_expires_at=now + self.limits.lease_s,
            not_before=None,
        )
        self.database.put_row(taken)
        return taken

    def _requeue(self, requeued: RequeuedResponse) -> None:
        row, now = self.owned(requeued.row.response_id, requeued.epoch), self.database.now()
        if row is None or not row.is_queued:
            raise LeaseLost("the row is no longer this process's")
        self.end_steps(requeued.row, requeued.ended, now, store=requeued.row.keeps_steps)
        waiting = attrs.evolve(
            row,
            state=RowState.PENDING,
            daemon_id=None,
            lease_expires_at=None,
            epoch=row.epoch + 1,
            attempt=row.attempt if requeued.counts else row.attempt - 1,
            not_before=now + requeued.delay_s if requeued.delay_s > 0 else None,
        )
        self._note_told(waiting, requeued.segments)

    def _note_told(self, row: MemoryRow, segments: Sequence[EventSegment]) -> None:
        """Put *row*, with further events."""
        if segments:
            started_at = self.database.now() if row.started_at is None else row.started_at
            row = attrs.evolve(row, last_sequence=segments[-1].last_sequence, started_at=started_at)
        self.database.put_row(row)
        self.database.put_events(row.id, segments)

    def _take_over(self, response_id: UUID, patience_s: float) -> Claimed | None:
        row, now = self.database.rows.get(response_id), self.database.now()
        if row is None or row.request is None:
            return None
        if row.cancel_requested_at is None or row.state in TERMINAL_STATES:
            return None
        is_expired = row.lease_expires_at is not None and row.lease_expires_at < now
        is_late = row.cancel_requested_at <= now - patience_s
        if row.state is not RowState.PENDING and not is_expired and not is_late:
            return None
        return self._told_of(self._own(row, now), now)

    def _told_of(self, row: MemoryRow, now: float) -> Claimed:
        """What who has made *row* its own is told of it."""
        assert row.request is not None, "a row that is worked on knows what was asked"
        route = ModelRoute(model=row.model, upstream=row.upstream, upstream_model=row.upstream_model)
        created_at, was_started = int(row.created_at), row.started_at is not None
        known: dict[str, Any] = {
            "epoch": row.epoch,
            "age_s": now - row.created_at,
            "deadline_in_s": None if row.deadline is None else row.deadline - now,
            "attempt": row.attempt,
            "reclaims": row.reclaims,
            "is_cancel_requested": row.cancel_requested_at is not None,
            "last_sequence": -1 if row.last_sequence is None else row.last_sequence,
        }
        is_chat = row.surface == Surface.CHAT.value
        asked = None if is_chat else read_request(row.request, row.tools)
        if asked is not None:
            new = NewResponse(
                response_id=row.id,
                owner=row.owner,
                key_prefix=row.key_prefix,
                request=asked.request,
                route=route,
                first_step_id=uuid4(),
                tools=asked.tools,
            )
            return ClaimedResponse(new=new, created_at=created_at, was_started=was_started, **known)
        identity = ResponseRow(
            response_id=row.id,
            owner=row.owner,
            service_tier=ServiceTier(row.service_tier),
            stream=row.stream,
            store=row.store,
            is_queued=row.is_queued,
        )
        if is_chat:
            return ClaimedChat(row=identity, route=route, request=row.request, was_started=was_started, **known)
        return ClaimedUnreadable(row=identity, route=route, created_at=created_at, **known)
