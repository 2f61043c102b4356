"""The tables of the store in memory, with a clock that tests can move.

Rule 1: what the trigger of terminal rows refuses is refused here; the CHECK constraints are in ``memory_rows.py``.
Rule 2: time is Trio's plus what ``advance_clock`` added, so that it follows a mock clock, too.

Source: ``postgres/sql/migrations``; the suites in ``tests/conformance`` hold both to the same behaviour.
"""

from collections.abc import Sequence
from uuid import UUID

import attrs
import trio

from dwctl_trio.domain.lifecycle import TERMINAL_STATES
from dwctl_trio.ports import EventSegment
from dwctl_trio.testing.memory_rows import (
    EventLog,
    MemoryKey,
    MemoryProcess,
    MemoryRow,
    MemoryStep,
    UsageRecord,
    check_row,
    check_step,
    refusal,
)

STARTED_AT = 1_767_225_600.25
"""The first moment of a database's clock, in Unix seconds; not a whole number, as in life."""


@attrs.define(eq=False)
class MemoryDatabase:
    """What several ``MemoryStore``s share as several processes share a PostgreSQL; empty at first.

    Tests may read everything in it and change what no port can.
    """

    rows: dict[UUID, MemoryRow] = attrs.Factory(dict)
    steps: dict[UUID, MemoryStep] = attrs.Factory(dict)
    events: dict[UUID, EventLog] = attrs.Factory(dict)
    """By response."""
    usage: dict[UUID, UsageRecord] = attrs.Factory(dict)
    """By step; outlives the response."""
    processes: dict[UUID, MemoryProcess] = attrs.Factory(dict)
    keys: dict[bytes, MemoryKey] = attrs.Factory(dict)
    """By digest, oldest first."""
    _offset_s: float = 0.0
    _began_at: float | None = None

    def now(self) -> float:
        """The database's time in Unix seconds; in a Trio run only."""
        if self._began_at is None:
            self._began_at = trio.current_time()
        return STARTED_AT + trio.current_time() - self._began_at + self._offset_s

    def advance_clock(self, seconds: float) -> None:
        """Let *seconds* pass for the database and for nobody else."""
        self._offset_s += seconds

    def put_row(self, row: MemoryRow) -> None:
        """Insert or replace *row*.

        Raises:
            StoreError: A CHECK constraint or the trigger of terminal rows refuses it.
        """
        before = self.rows.get(row.id)
        if before is not None and before.state in TERMINAL_STATES:
            raise refusal("a terminal row is for ever")
        check_row(row)
        self.rows[row.id] = row

    def find_key_holder(self, owner: str, key: str) -> MemoryRow | None:
        """The one row that holds an owner's idempotency key."""
        for row in self.rows.values():
            if (row.owner, row.idempotency_key) == (owner, key) and row.holds_key:
                return row
        return None

    def put_step(self, step: MemoryStep) -> None:
        """Insert or replace *step*.

        Raises:
            StoreError: A CHECK constraint refuses it.
        """
        check_step(step)
        self.steps[step.id] = step

    def steps_of(self, response_id: UUID) -> list[MemoryStep]:
        """The steps of one response in order."""
        steps = [step for step in self.steps.values() if step.response_id == response_id]
        return sorted(steps, key=lambda step: step.sequence)

    def put_events(self, response_id: UUID, segments: Sequence[EventSegment]) -> None:
        """Add those of *segments* whose beginning is not there yet."""
        log = self.events.get(response_id)
        known = log.segments if log is not None else ()
        begun = {segment.first_sequence for segment in known}
        added = [segment for segment in segments if segment.first_sequence not in begun]
        if added:
            ordered = sorted([*known, *added], key=lambda segment: segment.first_sequence)
            self.events[response_id] = EventLog(segments=tuple(ordered))

    def remove_row(self, response_id: UUID) -> None:
        """Delete a row with what refers to it; usage records refer to nothing."""
        for step in self.steps_of(response_id):
            del self.steps[step.id]
        self.events.pop(response_id, None)
        del self.rows[response_id]
