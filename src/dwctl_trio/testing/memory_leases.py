"""Who owns which rows, in memory: the verified fake of ``postgres/leases.py``."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from uuid import UUID

import attrs
import trio

from dwctl_trio.domain.lifecycle import LEASED_STATES, RowState
from dwctl_trio.domain.steps import StepState
from dwctl_trio.ports import LeaseWatch, RenewedLeases
from dwctl_trio.testing.memory_process import OPEN_STEPS, MemoryStoreOfProcess
from dwctl_trio.testing.memory_rows import ABANDONED, MemoryProcess, MemoryRow, abandoned_record, refusal

_ABANDONED_STATUS = 500


class MemoryLeases(MemoryStoreOfProcess):
    """Keeps ``ports.LeaseStore``."""

    async def register_process(self) -> None:
        """See ``ports.LeaseStore``."""
        await trio.lowlevel.checkpoint()
        if self.daemon_id in self.database.processes:
            raise refusal("the process is known already")
        self.database.processes[self.daemon_id] = MemoryProcess(heartbeat_at=self.database.now())
        await trio.lowlevel.checkpoint()

    async def renew_leases(self, response_ids: AbstractSet[UUID]) -> RenewedLeases:
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

    async def watch_leases(self, response_ids: AbstractSet[UUID]) -> LeaseWatch:
        """See ``ports.LeaseStore``."""
        await trio.lowlevel.checkpoint()
        owned = self._owned_of(response_ids)
        return LeaseWatch(
            owned=frozenset(row.id for row in owned),
            cancel_requested=frozenset(row.id for row in owned if row.cancel_requested_at is not None),
        )

    async def stop_process(self) -> None:
        """See ``ports.LeaseStore``."""
        await trio.lowlevel.checkpoint()
        process = self.database.processes.get(self.daemon_id)
        if process is not None and process.stopped_at is None:
            stopped = attrs.evolve(process, stopped_at=self.database.now())
            self.database.processes[self.daemon_id] = stopped
        await trio.lowlevel.checkpoint()

    async def ping(self) -> None:
        """See ``ports.LeaseStore``."""
        await trio.lowlevel.checkpoint()

    # -- the changes, each at once

    def _owned_of(self, response_ids: AbstractSet[UUID]) -> Sequence[MemoryRow]:
        rows = [self.database.rows[row_id] for row_id in response_ids if row_id in self.database.rows]
        return [row for row in rows if row.daemon_id == self.daemon_id and row.state in LEASED_STATES]

    def _renew(self, response_ids: AbstractSet[UUID]) -> RenewedLeases:
        database, now = self.database, self.database.now()
        process = database.processes.get(self.daemon_id)
        if process is not None:
            database.processes[self.daemon_id] = attrs.evolve(process, heartbeat_at=now)
        owned = self._owned_of(response_ids)
        for row in owned:
            database.put_row(attrs.evolve(row, lease_expires_at=now + self.limits.lease_s))
        return RenewedLeases(renewed=frozenset(row.id for row in owned))  # nobody locks anything here

    def _rescue(self) -> Sequence[UUID]:
        database, now = self.database, self.database.now()
        expired = sorted(
            (row.lease_expires_at, row.id)
            for row in database.rows.values()
            if row.lease_expires_at is not None and row.lease_expires_at < now
        )
        rescued = [row_id for _, row_id in expired[: self.limits.rescue_rows]]
        for row in [database.rows[row_id] for row_id in rescued]:
            if row.is_queued:
                waiting = attrs.evolve(row, state=RowState.PENDING, epoch=row.epoch + 1, reclaims=row.reclaims + 1)
                database.put_row(attrs.evolve(waiting, daemon_id=None, lease_expires_at=None))
            else:
                self._abandon(row, now)
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
                request=row.request if row.store else None,
                error=ABANDONED,
                finished_at=now,
            )
        )
        for step in database.steps_of(row.id):
            if step.state in OPEN_STEPS:
                database.put_step(attrs.evolve(step, state=StepState.FAILED, error=ABANDONED, finished_at=now))
                if step.call_id is None:
                    database.usage.setdefault(step.id, abandoned_record(row, step, now))
