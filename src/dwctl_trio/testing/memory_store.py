"""The store in memory: a verified fake with PostgreSQL's rules, for tests on a mock clock.

Rule 1: a method does its whole change between two checkpoints, so that a cancellation leaves it done or not done.
Rule 2: guards and errors are those of ``postgres/store.py``; ``tests/conformance`` runs one suite on both.
Rule 3: what is kept is encoded, so that what comes back has been through the same JSON.

It never fails by itself; ``faulty_store.py`` makes it.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from uuid import UUID

import attrs
import msgspec
import trio

from dwctl_trio.domain.errors import Conflict, IdempotencyKeyHeld, LeaseLost
from dwctl_trio.domain.idempotency import KeyHolder
from dwctl_trio.domain.lifecycle import LEASED_STATES, TERMINAL_STATES, RowState
from dwctl_trio.domain.limits import DEFAULT_LIMITS, Limits
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.request import ServiceTier
from dwctl_trio.domain.steps import Chain, StepState
from dwctl_trio.domain.tools import OfferedTool
from dwctl_trio.ports import EndedStep, FinishedResponse, NewResponse, Progress, ResumedResponse, StoredResponse
from dwctl_trio.protocol import json
from dwctl_trio.protocol.request_body import parse_request, render_request
from dwctl_trio.protocol.request_tools import parse_tools, render_tools
from dwctl_trio.protocol.response_object import render_response
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_rows import (
    ABANDONED,
    EventLog,
    MemoryProcess,
    MemoryRow,
    MemoryStep,
    abandoned_record,
    check_row,
    check_step,
    check_usage,
    ended_step,
    opened_step,
    refusal,
    step_value,
    usage_record,
)

_ABANDONED_STATUS = 500
_OPEN_STEPS = frozenset({StepState.PENDING, StepState.PROCESSING})


class MemoryStore:
    """Keeps ``ResponseStore`` and ``LeaseStore`` for one process.

    Args:
        database: What the process shares with others.
        limits: The lease's length and the rescuer's batch.
        daemon_id: This process's identity as an owner of rows.
    """

    def __init__(self, database: MemoryDatabase, *, daemon_id: UUID, limits: Limits = DEFAULT_LIMITS) -> None:
        self.database = database
        self._limits = limits
        self._daemon_id = daemon_id

    async def open_response(self, new: NewResponse) -> int:
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
        log = self.database.events.get(row.id) if row.stream else None
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

    async def register_process(self) -> None:
        """See ``ports.LeaseStore``."""
        await trio.lowlevel.checkpoint()
        if self._daemon_id in self.database.processes:
            raise refusal("the process is known already")
        self.database.processes[self._daemon_id] = MemoryProcess(heartbeat_at=self.database.now())
        await trio.lowlevel.checkpoint()

    async def renew_leases(self, response_ids: AbstractSet[UUID]) -> frozenset[UUID]:
        """See ``ports.LeaseStore``."""
        await trio.lowlevel.checkpoint()
        renewed = self._renew(response_ids)
        await trio.lowlevel.checkpoint()
        return renewed

    async def rescue_expired(self) -> Sequence[UUID]:
        """See ``ports.LeaseStore``."""
        await trio.lowlevel.checkpoint()
        rescued = self._rescue()
        await trio.lowlevel.checkpoint()
        return rescued

    async def take_over(self, response_id: UUID) -> ResumedResponse | None:
        """See ``ports.LeaseStore``."""
        await trio.lowlevel.checkpoint()
        resumed = self._take_over(response_id)
        await trio.lowlevel.checkpoint()
        return resumed

    async def stop_process(self) -> None:
        """See ``ports.LeaseStore``."""
        await trio.lowlevel.checkpoint()
        process = self.database.processes.get(self._daemon_id)
        if process is not None and process.stopped_at is None:
            stopped = attrs.evolve(process, stopped_at=self.database.now())
            self.database.processes[self._daemon_id] = stopped
        await trio.lowlevel.checkpoint()

    async def ping(self) -> None:
        """See ``ports.LeaseStore``."""
        await trio.lowlevel.checkpoint()

    # -- the changes, each at once

    def _open(self, new: NewResponse) -> float:
        database, request, key = self.database, new.request, new.idempotency
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
            store=request.store,
            request=json.encode(render_request(request)) if request.store else None,
            tools=json.encode(render_tools(new.tools)) if request.store and new.tools else None,
            state=RowState.PROCESSING,
            daemon_id=self._daemon_id,
            epoch=1,
            lease_expires_at=now + self._limits.lease_s,
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
        row = database.rows.get(finished.new.response_id)
        guard = (RowState.PROCESSING, self._daemon_id, finished.epoch)
        if row is None or (row.state, row.daemon_id, row.epoch) != guard:
            return False
        now, store = database.now(), row.store
        ended = attrs.evolve(
            row,
            state=finished.state,
            daemon_id=None,
            lease_expires_at=None,
            epoch=row.epoch + 1,
            response_status=finished.response_status,
            response=json.encode(render_response(finished.response)) if store else None,
            error=finished.response.error,
            finished_at=now,
        )
        check_row(ended)
        self._end_steps(finished.new, finished.ended, now)
        database.put_row(ended)
        if store and finished.event_log is not None:
            log = EventLog(last_sequence=finished.last_sequence_number, frames=finished.event_log)
            database.events[row.id] = log
        return True

    def _advance(self, progress: Progress) -> bool:
        """Write what has happened if the row is ours; whether it is."""
        database, new = self.database, progress.new
        row = database.rows.get(new.response_id)
        guard = (RowState.PROCESSING, self._daemon_id, progress.epoch)
        if row is None or (row.state, row.daemon_id, row.epoch) != guard:
            return False
        now = database.now()
        self._end_steps(new, progress.ended, now)
        for step in progress.opened:
            if step.id not in database.steps:
                database.put_step(opened_step(row.id, step, now, store=row.store))
        database.put_row(attrs.evolve(row, lease_expires_at=now + self._limits.lease_s))
        return True

    def _end_steps(self, new: NewResponse, ended: Sequence[EndedStep], now: float) -> None:
        """End those steps that are open, and record the calls that are not recorded: all or nothing."""
        database, store = self.database, new.request.store
        found = [(database.steps.get(entry.step.id), entry.step) for entry in ended]
        rows = [
            ended_step(row, step, now, store=store)
            for row, step in found
            if row is not None and row.state in _OPEN_STEPS
        ]
        records = [usage_record(new, entry.step, entry.metering, now) for entry in ended if entry.metering is not None]
        for ended_row in rows:
            check_step(ended_row)
        for record in records:
            check_usage(record)
        for ended_row in rows:
            database.put_step(ended_row)
        for record in records:
            database.usage.setdefault(record.step_id, record)

    def _take_over(self, response_id: UUID) -> ResumedResponse | None:
        database = self.database
        row, now = database.rows.get(response_id), database.now()
        if row is None or row.state is not RowState.PROCESSING or not row.store or row.request is None:
            return None
        if row.lease_expires_at is None or row.lease_expires_at >= now:
            return None
        taken = attrs.evolve(
            row,
            daemon_id=self._daemon_id,
            epoch=row.epoch + 1,
            reclaims=row.reclaims + 1,
            lease_expires_at=now + self._limits.lease_s,
        )
        database.put_row(taken)
        request = parse_request(msgspec.json.decode(row.request))
        steps = tuple(step_value(step) for step in database.steps_of(response_id))
        new = NewResponse(
            response_id=response_id,
            owner=row.owner,
            key_prefix=row.key_prefix,
            request=request,
            route=ModelRoute(model=request.model, upstream=row.upstream, upstream_model=row.upstream_model),
            first_step_id=steps[0].id,
            tools=_parse_tools(row.tools),
        )
        age_s = now - (row.started_at or now)
        return ResumedResponse(new=new, epoch=taken.epoch, created_at=int(row.created_at), age_s=age_s, steps=steps)

    def _ended_like(self, finished: FinishedResponse) -> bool:
        """Whether the row already carries this ending: the commit of an earlier try whose answer was lost."""
        row = self.database.rows.get(finished.new.response_id)
        error = finished.response.error
        return row is not None and (row.state, row.epoch, row.error and row.error.type) == (
            finished.state,
            finished.epoch + 1,
            error and error.type,
        )

    def _renew(self, response_ids: AbstractSet[UUID]) -> frozenset[UUID]:
        database, now = self.database, self.database.now()
        process = database.processes.get(self._daemon_id)
        if process is not None:
            database.processes[self._daemon_id] = attrs.evolve(process, heartbeat_at=now)
        renewed = set()
        for row in [database.rows[row_id] for row_id in response_ids if row_id in database.rows]:
            if row.daemon_id == self._daemon_id and row.state in LEASED_STATES:
                database.put_row(attrs.evolve(row, lease_expires_at=now + self._limits.lease_s))
                renewed.add(row.id)
        return frozenset(renewed)

    def _rescue(self) -> Sequence[UUID]:
        database, now = self.database, self.database.now()
        expired = sorted(
            (row.lease_expires_at, row.id)
            for row in database.rows.values()
            if row.lease_expires_at is not None and row.lease_expires_at < now
            and not row.background and row.service_tier != ServiceTier.FLEX.value
        )  # fmt: skip
        rescued = [row_id for _, row_id in expired[: self._limits.rescue_rows]]
        for row_id in rescued:
            self._abandon(database.rows[row_id], now)
        return rescued

    def _abandon(self, row: MemoryRow, now: float) -> None:
        database = self.database
        database.put_row(
            attrs.evolve(
                row,
                state=RowState.FAILED,
                daemon_id=None,
                lease_expires_at=None,
                epoch=row.epoch + 1,
                reclaims=row.reclaims + 1,
                response_status=_ABANDONED_STATUS,
                error=ABANDONED,
                finished_at=now,
            )
        )
        for step in database.steps_of(row.id):
            if step.state in _OPEN_STEPS:
                database.put_step(attrs.evolve(step, state=StepState.FAILED, error=ABANDONED, finished_at=now))
                if step.call_id is None:
                    database.usage.setdefault(step.id, abandoned_record(row, step, now))

    # -- reading

    def _find(self, response_id: UUID, owner: str) -> MemoryRow | None:
        """The row as far as *owner* may see it."""
        row = self.database.rows.get(response_id)
        return row if row is not None and row.store and row.owner == owner else None

    def _read(self, response_id: UUID, owner: str) -> StoredResponse | None:
        row = self._find(response_id, owner)
        if row is None:
            return None
        if row.response is None and row.request is None:
            return None
        shown = row.request if row.response is None else None
        return StoredResponse(
            response_id=row.id,
            state=row.state,
            created_at=int(row.created_at),
            request=parse_request(msgspec.json.decode(shown)) if shown is not None else None,
            tools=_parse_tools(row.tools if row.response is None else None),
            body=row.response,
            error=row.error,
        )


def _parse_tools(stored: bytes | None) -> tuple[OfferedTool, ...]:
    return () if stored is None else parse_tools(msgspec.json.decode(stored))
