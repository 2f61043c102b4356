"""What the stores in memory of one process share: who it is, and which rows are its own."""

from collections.abc import Sequence
from uuid import UUID

from dwctl_trio.domain.lifecycle import LEASED_STATES
from dwctl_trio.domain.limits import DEFAULT_LIMITS, Limits
from dwctl_trio.domain.steps import StepState
from dwctl_trio.ports import EndedStep, ResponseRow
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_rows import (
    MemoryRow,
    check_step,
    check_usage,
    ended_step,
    forgotten_step,
    usage_record,
)

OPEN_STEPS = frozenset({StepState.PENDING, StepState.PROCESSING})


class MemoryStoreOfProcess:
    """One process on a database in memory.

    Args:
        database: What the process shares with others.
        limits: The lease's length, the rescuer's batch, and a follower's.
        daemon_id: This process's identity as an owner of rows.
    """

    def __init__(self, database: MemoryDatabase, *, daemon_id: UUID, limits: Limits = DEFAULT_LIMITS) -> None:
        self.database = database
        self.limits = limits
        self.daemon_id = daemon_id

    def owned(self, response_id: UUID, epoch: int) -> MemoryRow | None:
        """The row if it is this process's, and has not changed hands since."""
        row = self.database.rows.get(response_id)
        if row is None or row.state not in LEASED_STATES or (row.daemon_id, row.epoch) != (self.daemon_id, epoch):
            return None
        return row

    def end_steps(self, row: ResponseRow, ended: Sequence[EndedStep], now: float, *, store: bool) -> None:
        """End those steps that are open, and record the calls that are not recorded: all or nothing."""
        database = self.database
        found = [(database.steps.get(entry.step.id), entry.step) for entry in ended]
        steps = [
            ended_step(known, step, now, store=store)
            for known, step in found
            if known is not None and known.state in OPEN_STEPS
        ]
        records = [usage_record(row, entry.step, entry.metering, now) for entry in ended if entry.metering is not None]
        for step_row in steps:
            check_step(step_row)
        for record in records:
            check_usage(record)
        for step_row in steps:
            database.put_step(step_row)
        for record in records:
            database.usage.setdefault(record.step_id, record)

    def forget_steps(self, response_id: UUID) -> None:
        """Leave nothing of what was said in the steps of a response."""
        for step in self.database.steps_of(response_id):
            self.database.put_step(forgotten_step(step))
