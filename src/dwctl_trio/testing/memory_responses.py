"""Rows of responses in memory: the verified fake of ``postgres/responses.py``."""

from uuid import UUID

import attrs
import trio

from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.errors import Conflict, IdempotencyKeyHeld, LeaseLost
from dwctl_trio.domain.idempotency import KeyHolder
from dwctl_trio.domain.lifecycle import TERMINAL_STATES, RowState
from dwctl_trio.domain.steps import Chain, StepState
from dwctl_trio.ports import FinishedResponse, NewChat, NewResponse, Progress, StoredResponse
from dwctl_trio.protocol import json
from dwctl_trio.protocol.request_body import render_request
from dwctl_trio.protocol.request_tools import render_tools
from dwctl_trio.testing.memory_conversations import stored_response
from dwctl_trio.testing.memory_process import MemoryStoreOfProcess
from dwctl_trio.testing.memory_rows import MemoryRow, MemoryStep, check_row, opened_step, refusal, step_value


class MemoryResponses(MemoryStoreOfProcess):
    """Keeps ``ports.ResponseStore``."""

    async def open_response(self, new: NewResponse | NewChat) -> int:
        """See ``ports.ResponseStore``."""
        await trio.lowlevel.checkpoint()
        created_at = self._open(new)
        await trio.lowlevel.checkpoint()
        return int(created_at)

    async def find_key_holder(self, owner: str, key: str) -> KeyHolder | None:
        """See ``ports.ResponseStore``."""
        await trio.lowlevel.checkpoint()
        row = self.database.find_key_holder(owner, key)
        if row is None or row.idempotency_digest is None:
            return None
        has_told = row.stream and row.state in TERMINAL_STATES
        log = self.database.events.get(row.id) if has_told else None
        return KeyHolder(
            response_id=row.id,
            state=row.state,
            is_stored=row.store,
            body_digest=row.idempotency_digest,
            told=log.frames if log is not None else None if row.stream else row.response,
        )

    async def advance_response(self, progress: Progress) -> None:
        """See ``ports.ResponseStore``."""
        await trio.lowlevel.checkpoint()
        if not self._advance(progress):
            raise LeaseLost("the row is no longer this process's")
        await trio.lowlevel.checkpoint()

    async def finish_response(self, finished: FinishedResponse) -> None:
        """See ``ports.ResponseStore``."""
        await trio.lowlevel.checkpoint()
        if not self._finish(finished) and not self._ended_like(finished):
            raise LeaseLost("the row is no longer this process's")
        await trio.lowlevel.checkpoint()

    async def read_response(self, response_id: UUID, owner: str) -> StoredResponse | None:
        """See ``ports.ResponseStore``."""
        await trio.lowlevel.checkpoint()
        return self._read(response_id, owner)

    async def read_chain(self, response_id: UUID, owner: str) -> Chain:
        """See ``ports.ResponseStore``."""
        await trio.lowlevel.checkpoint()
        if self._find(response_id, owner) is None:
            return []
        return [step_value(step) for step in self.database.steps_of(response_id)]

    async def delete_response(self, response_id: UUID, owner: str) -> bool:
        """See ``ports.ResponseStore``."""
        await trio.lowlevel.checkpoint()
        row = self._find(response_id, owner)
        if row is not None and row.state not in TERMINAL_STATES:
            raise Conflict("The response is still being worked on. Delete it once it has ended.")
        if row is not None:
            self.database.remove_row(response_id)
        await trio.lowlevel.checkpoint()
        return row is not None

    # -- the changes, each at once

    def _open(self, new: NewResponse | NewChat) -> float:
        database, request, key = self.database, new.request, new.idempotency
        kept = new if isinstance(new, NewResponse) and request.store else None
        now = database.now()
        if key is not None and database.find_key_holder(new.owner, key.text) is not None:
            raise IdempotencyKeyHeld("another row holds the idempotency key")
        if new.response_id in database.rows or new.first_step_id in database.steps:
            raise refusal("the id is not new")
        row = MemoryRow(
            id=new.response_id,
            owner=new.owner,
            key_prefix=new.key_prefix,
            model=request.model,
            upstream=new.route.upstream,
            upstream_model=new.route.upstream_model,
            service_tier=request.service_tier.value,
            stream=request.stream,
            store=new.row.store,
            previous_response_id=kept.previous_id if kept else None,
            request=json.encode(render_request(kept.request)) if kept else None,
            tools=json.encode(render_tools(kept.tools)) if kept and kept.tools else None,
            surface=new.surface.value,
            state=RowState.PROCESSING,
            daemon_id=self.daemon_id,
            epoch=1,
            lease_expires_at=now + self.limits.lease_s,
            attempt=1,
            created_at=now,
            started_at=now,
            idempotency_key=key.text if key else None,
            idempotency_digest=key.body_digest if key else None,
        )
        database.put_row(row)
        database.put_step(
            MemoryStep(
                id=new.first_step_id,
                response_id=new.response_id,
                sequence=1,
                state=StepState.PROCESSING,
                started_at=now,
            )
        )
        return row.created_at

    def _finish(self, finished: FinishedResponse) -> bool:
        """Write the ending if the row is ours; whether it is."""
        database = self.database
        row = self.owned(finished.row.response_id, finished.epoch)
        if row is None:
            return False
        now, store = database.now(), row.store
        segments = finished.segments if finished.row.keeps_steps else ()
        ended = attrs.evolve(
            row,
            state=finished.state,
            daemon_id=None,
            lease_expires_at=None,
            epoch=row.epoch + 1,
            response_status=finished.response_status,
            response=finished.body if store else None,
            request=row.request if store else None,
            tools=row.tools if store else None,
            error=finished.error,
            last_sequence=segments[-1].last_sequence if segments else row.last_sequence,
            finished_at=now,
        )
        check_row(ended)
        self.end_steps(finished.row, finished.ended, now, store=store)
        if not store and finished.row.is_queued:
            self.forget_steps(row.id)
        database.put_row(ended)
        database.put_events(row.id, segments)
        return True

    def _advance(self, progress: Progress) -> bool:
        """Write what has happened if the row is ours; whether it is."""
        database = self.database
        row = self.owned(progress.row.response_id, progress.epoch)
        if row is None:
            return False
        now, keeps = database.now(), progress.row.keeps_steps
        self.end_steps(progress.row, progress.ended, now, store=keeps)
        for step in progress.opened:
            if step.id not in database.steps:
                database.put_step(opened_step(row.id, step, now, store=keeps))
        working = attrs.evolve(
            row,
            state=RowState.PROCESSING,
            started_at=now if row.started_at is None else row.started_at,
            lease_expires_at=now + self.limits.lease_s,
        )
        database.put_row(working)
        return True

    def _ended_like(self, finished: FinishedResponse) -> bool:
        """Whether the row already carries this ending: the commit of an earlier try whose answer was lost."""
        row = self.database.rows.get(finished.row.response_id)
        error = finished.error
        return row is not None and (row.state, row.epoch, row.error and row.error.type) == (
            finished.state,
            finished.epoch + 1,
            error and error.type,
        )

    # -- reading

    def _find(self, response_id: UUID, owner: str) -> MemoryRow | None:
        """The row as far as *owner* may see it."""
        row = self.database.rows.get(response_id)
        if row is None or row.owner != owner or not row.store or row.surface != Surface.RESPONSES.value:
            return None
        return row

    def _read(self, response_id: UUID, owner: str) -> StoredResponse | None:
        row = self._find(response_id, owner)
        if row is None:
            return None
        if row.response is None and row.request is None:
            return None
        return stored_response(row)
