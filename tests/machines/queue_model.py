"""What the queue is to do, said once more over plain dicts: it predicts every answer and every row.

Rule 1: it is written from the design's page on states and from ``ports.py``, not from the SQL or the fake.
Rule 2: an action returns what the store must answer; a text names a refusal.
Rule 3: time is the database's as the test moves it; each action comes a microsecond after the one before.
"""

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import TypeAlias
from uuid import UUID

import attrs

from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.lifecycle import LEASED_STATES, TERMINAL_STATES, RowState
from dwctl_trio.domain.retention import RetentionKind
from dwctl_trio.domain.steps import Step, StepState
from dwctl_trio.ports import EndedStep, EventSegment, LeaseWatch, RenewedLeases

OK = "ok"
LOST = "lost"
KEY_HELD = "key held"
REFUSED = "refused"
CONFLICT = "conflict"
NOTHING = "nothing"

Holder: TypeAlias = tuple[UUID, int]
"""A process and the epoch in which it owns a row."""


@attrs.define(kw_only=True)
class ModelRow:
    """A row of ``requests`` with its steps and events; moments as the test's clock has them."""

    id: UUID
    owner: str
    model: str
    priority: int
    surface: str
    is_stored: bool
    key: str | None
    created_at: float
    deadline: float | None
    """None for a warm response."""
    state: RowState = RowState.PENDING
    daemon: UUID | None = None
    epoch: int = 0
    attempt: int = 0
    reclaims: int = 0
    take_overs: int = 0
    lease_at: float | None = None
    not_before: float | None = None
    cancel_at: float | None = None
    is_started: bool = False
    last_sequence: int | None = None
    segments: dict[int, EventSegment] = attrs.Factory(dict)
    """By the number of their first event."""
    steps: dict[UUID, Step] = attrs.Factory(dict)
    calls: int = 0
    """Model calls that have ended."""
    finished_at: float | None = None
    is_emptied: bool = False
    """Whether what was asked and answered has been pruned."""
    response_status: int | None = None
    error_type: str | None = None
    is_background: bool = False

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL_STATES

    @property
    def is_leased(self) -> bool:
        return self.state in LEASED_STATES

    @property
    def holds_key(self) -> bool:
        return self.key is not None and (
            self.is_background or self.response_status is None or self.response_status < 400
        )

    @property
    def log(self) -> tuple[EventSegment, ...]:
        return tuple(self.segments[first] for first in sorted(self.segments))

    def is_overdue(self, now: float) -> bool:
        return self.deadline is not None and self.deadline <= now

    def copy(self) -> "ModelRow":
        return attrs.evolve(self, segments=dict(self.segments), steps=dict(self.steps))


@attrs.define(kw_only=True)
class Claim:
    """What somebody is told of a row that is now his own."""

    row: ModelRow
    """As it is then."""
    told: bytes
    steps: tuple[Step, ...]


@attrs.define
class Model:
    """All rows of one database."""

    lease_s: float
    rescue_rows: int
    now: float
    rows: dict[UUID, ModelRow] = attrs.Factory(dict)
    marks: dict[RetentionKind, tuple[float, UUID]] = attrs.Factory(dict)
    """How far each kind has been pruned."""

    def copy(self) -> "Model":
        return attrs.evolve(self, rows={row.id: row.copy() for row in self.rows.values()}, marks=dict(self.marks))

    def tick(self) -> float:
        """The moment of the next action."""
        self.now += 1e-6
        return self.now

    # -- in

    def enqueue(self, row: ModelRow, opening: EventSegment | None) -> str:
        self.tick()
        if row.id in self.rows:
            return OK
        if row.key is not None and self._is_held(row.owner, row.key):
            return KEY_HELD
        new = row.copy()
        if opening is not None:
            _tell(new, (opening,))
        self.rows[row.id] = new
        return OK

    def open_warm(self, row: ModelRow, holder: UUID, first: Step) -> str:
        now = self.tick()
        new = attrs.evolve(row, state=RowState.PROCESSING, daemon=holder, epoch=1, attempt=1, is_started=True)
        new.lease_at, new.steps = now + self.lease_s, {first.id: first}
        self.rows[row.id] = new
        return OK

    # -- out

    def claim(self, daemon: UUID, demand: ClaimDemand) -> list[Claim]:
        now = self.tick()
        for row in self.rows.values():
            if row.not_before is not None and row.not_before <= now:
                row.not_before = None
        return [self._own(row, daemon, now) for row in self.choose(demand, now)]

    def choose(self, demand: ClaimDemand, now: float) -> list[ModelRow]:
        """The overdue ones; then by priority, in each of which the owners take turns while there is anything."""
        waiting = sorted((row for row in self.rows.values() if row.state is RowState.PENDING), key=_urgency)
        chosen = [row for row in waiting if row.is_overdue(now)][: demand.rows]
        ready = [row for row in waiting if not row.is_overdue(now) and row.not_before is None]
        for priority in sorted({row.priority for row in ready}):
            round_of: list[ModelRow] | None = None
            while round_of != []:
                left = [row for row in ready if row.priority == priority and row not in chosen]
                round_of = self._round(left, chosen, demand)
                chosen.extend(round_of)
        return chosen

    def _round(self, ready: Sequence[ModelRow], chosen: Sequence[ModelRow], demand: ClaimDemand) -> list[ModelRow]:
        """Of each model and owner as many as there is room for; their owners' turns; then each model's room."""
        rows_left = demand.rows - len(chosen)
        working = [row for row in self.rows.values() if row.is_leased and row.deadline is not None]
        of_model = Counter(row.model for row in (*working, *chosen))
        of_owner = Counter(row.owner for row in (*working, *chosen))
        model_room = {
            row.model: demand.models.get(row.model, demand.other_models) - of_model[row.model] for row in ready
        }
        owner_room = {row.owner: demand.owner_rows - of_owner[row.owner] for row in ready}
        seen, places, queue = Counter[object](), Counter[str](), []
        for row in ready:
            group = (row.model, row.owner)
            if seen[group] < min(rows_left, model_room[row.model], owner_room[row.owner]):
                seen[group] += 1
                places[row.owner] += 1
                if places[row.owner] <= owner_room[row.owner]:
                    queue.append(((of_owner[row.owner] + places[row.owner], *_urgency(row)), row))
        found = []
        for _, row in sorted(queue, key=lambda entry: entry[0]):
            if model_room[row.model] > 0:
                model_room[row.model] -= 1
                found.append(row)
        return found[:rows_left]

    def take_over(self, daemon: UUID, row_id: UUID, patience_s: float) -> Claim | str:
        now, row = self.tick(), self.rows.get(row_id)
        if row is None or row.is_terminal or row.cancel_at is None:
            return NOTHING
        is_free = row.lease_at is None or row.lease_at < now
        if not is_free and row.cancel_at > now - patience_s:
            return NOTHING
        row.take_overs += 1
        return self._own(row, daemon, now)

    # -- at work

    def advance(self, row_id: UUID, holder: Holder, ended: Sequence[EndedStep], opened: Sequence[Step]) -> str:
        now, row = self.tick(), self._owned(row_id, holder)
        if row is None:
            return LOST
        _end_steps(row, ended)
        for step in opened:
            row.steps.setdefault(step.id, step)
        row.state, row.is_started, row.lease_at = RowState.PROCESSING, True, now + self.lease_s
        return OK

    def append(self, row_id: UUID, holder: Holder, segment: EventSegment) -> str:
        self.tick()
        row = self._owned(row_id, holder)
        if row is None:
            return LOST
        last = -1 if row.last_sequence is None else row.last_sequence
        if last not in {segment.first_sequence - 1, segment.last_sequence}:
            return LOST
        row.is_started = True
        _tell(row, (segment,))
        return OK

    def finish(  # noqa: PLR0913 - what an ending is
        self,
        row_id: UUID,
        holder: Holder,
        ended: Sequence[EndedStep],
        segments: Sequence[EventSegment],
        *,
        state: RowState,
        status: int,
        error_type: str | None,
    ) -> str:
        self.tick()
        row = self._owned(row_id, holder)
        if row is None:
            known = self.rows.get(row_id)
            is_this = known is not None and (known.state, known.epoch, known.error_type) == (
                state, holder[1] + 1, error_type,
            )  # fmt: skip
            return OK if is_this else LOST
        _end_steps(row, ended)
        _release(row, state)
        row.response_status, row.error_type, row.finished_at = status, error_type, self.now
        _tell(row, segments)
        return OK

    def requeue(
        self, row_id: UUID, holder: Holder, segments: Sequence[EventSegment], *, delay_s: float, counts: bool
    ) -> str:
        now, row = self.tick(), self._owned(row_id, holder)
        if row is None or row.deadline is None:
            return LOST
        _release(row, RowState.PENDING)
        row.attempt -= 0 if counts else 1
        row.not_before = now + delay_s if delay_s else None
        row.is_started = row.is_started or bool(segments)
        _tell(row, segments)
        return OK

    def renew(self, daemon: UUID, row_ids: AbstractSet[UUID]) -> RenewedLeases:
        now, owned = self.tick(), self._owned_by(daemon, row_ids)
        for row in owned:
            row.lease_at = now + self.lease_s
        return RenewedLeases(renewed=frozenset(row.id for row in owned))

    def watch(self, daemon: UUID, row_ids: AbstractSet[UUID]) -> LeaseWatch:
        self.tick()
        owned = self._owned_by(daemon, row_ids)
        cancelled = frozenset(row.id for row in owned if row.cancel_at is not None)
        return LeaseWatch(owned=frozenset(row.id for row in owned), cancel_requested=cancelled)

    # -- from outside

    def rescue(self) -> list[UUID]:
        now = self.tick()
        expired = sorted(
            (row.lease_at, row.id) for row in self.rows.values() if row.lease_at is not None and row.lease_at < now
        )
        rescued = [row_id for _, row_id in expired[: self.rescue_rows]]
        for row in (self.rows[row_id] for row_id in rescued):
            row.reclaims += 1
            if row.deadline is not None:
                _release(row, RowState.PENDING)
                continue
            _release(row, RowState.FAILED)
            row.response_status, row.error_type, row.finished_at = 500, "step_abandoned", now
            for step in row.steps.values():
                if step.is_open:
                    row.calls += 1
                    row.steps[step.id] = attrs.evolve(step, state=StepState.FAILED)
        return sorted(rescued)

    def request_cancel(self, row_id: UUID, owner: str) -> RowState | None:
        now, row = self.tick(), self.rows.get(row_id)
        if row is None or row.owner != owner:
            return None
        if not row.is_terminal and row.cancel_at is None:
            row.cancel_at = now
        return row.state

    def delete(self, row_id: UUID, owner: str) -> bool | str:
        self.tick()
        row = self.rows.get(row_id)
        if row is None or row.owner != owner or not row.is_stored:
            return False
        if not row.is_terminal:
            return CONFLICT
        del self.rows[row_id]
        return True

    def prune(self, kind: RetentionKind, age_s: float, rows_max: int) -> tuple[int, bool]:
        now = self.tick()
        ended = sorted(
            (row.finished_at, row.id)
            for row in self.rows.values()
            if row.finished_at is not None and row.finished_at <= now - age_s
        )
        passed = [end for end in ended if kind not in self.marks or end > self.marks[kind]][:rows_max]
        pruned = sum(self._prune_row(kind, self.rows[row_id]) for _, row_id in passed)
        if passed and kind is not RetentionKind.ROWS:
            self.marks[kind] = passed[-1]
        return pruned, len(passed) == rows_max

    def _prune_row(self, kind: RetentionKind, row: ModelRow) -> bool:
        """Whether there was anything to prune."""
        if kind is RetentionKind.ROWS:
            del self.rows[row.id]
            return True
        if kind is RetentionKind.UNSTORED_EVENTS and row.is_stored:
            return False
        had_any = bool(row.segments)
        row.segments, row.last_sequence = {}, None
        if kind is RetentionKind.BODIES:
            had_any = had_any or (row.is_stored and not row.is_emptied)
            row.is_emptied, row.steps = True, {}
        return had_any

    # -- what they share

    def _own(self, row: ModelRow, daemon: UUID, now: float) -> Claim:
        if row.state is RowState.PENDING:
            row.state = RowState.CLAIMED
            row.attempt += 1
        row.daemon, row.lease_at, row.not_before = daemon, now + self.lease_s, None
        row.epoch += 1
        told = b"".join(segment.frames for segment in row.log) if row.is_started and row.surface != "chat" else b""
        return Claim(row=row.copy(), told=told, steps=tuple(row.steps.values()) if row.is_started else ())

    def _owned(self, row_id: UUID, holder: Holder) -> ModelRow | None:
        row = self.rows.get(row_id)
        return row if row is not None and row.is_leased and (row.daemon, row.epoch) == holder else None

    def _owned_by(self, daemon: UUID, row_ids: AbstractSet[UUID]) -> list[ModelRow]:
        return [row for row in self.rows.values() if row.id in row_ids and row.is_leased and row.daemon == daemon]

    def _is_held(self, owner: str, key: str) -> bool:
        return any((row.owner, row.key) == (owner, key) and row.holds_key for row in self.rows.values())


def _urgency(row: ModelRow) -> tuple[float, UUID]:
    assert row.deadline is not None
    return row.deadline, row.id


def _release(row: ModelRow, state: RowState) -> None:
    row.state, row.daemon, row.lease_at = state, None, None
    row.epoch += 1


def _tell(row: ModelRow, segments: Sequence[EventSegment]) -> None:
    for segment in segments:
        row.segments.setdefault(segment.first_sequence, segment)
        row.last_sequence = segment.last_sequence


def _end_steps(row: ModelRow, ended: Sequence[EndedStep]) -> None:
    for entry in ended:
        known = row.steps.get(entry.step.id)
        if known is not None and known.is_open:
            row.steps[known.id] = entry.step
            row.calls += 1
