"""The queue as a state machine of Hypothesis: whatever clients, workers, rescuers and clocks do, in any order.

Rule 1: the durations are such that no two moments that are compared come near to each other, so that a slow machine
cannot tip the balance: the clock moves by 250 s, and nothing else is a multiple of that.
Rule 2: nobody is ever woken here; that work is found shows that wake-ups are hints.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import attrs
import trio
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from tests.machines import queue_actions as actions
from tests.machines.queue_actions import Action, Process, Ticket
from tests.machines.queue_base import EVERYTHING, PRUNED, QueueMachineBase
from tests.machines.queue_invariants import (
    Follower,
    capacities_are_kept,
    i20_renewed_leases_are_whole,
    i22_nothing_has_changed,
    i23_its_events_came_with_it,
)
from tests.machines.queue_model import LOST, NOTHING, OK, REFUSED, ModelRow
from tests.machines.queue_world import LIMITS, PROCESSES

from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.retention import RetentionKind
from dwctl_trio.ports import EventSegment

CLOCK_STEP_S = 250.0
DEADLINES_S = (1040.0, 100_040.0)
DELAYS_S = (0.0, 330.0)
PATIENCES_S = (0.0, 120.0)

picks = st.integers(min_value=0, max_value=11)
"""One of those that there are, whatever their number."""
places = st.integers(min_value=0, max_value=PROCESSES - 1)
_oddities = st.integers(min_value=0, max_value=9)
_kinds = st.sampled_from(["background", "flex", "flex", "forgotten", "chat"])
_bounds = st.integers(min_value=0, max_value=3)
demands = st.builds(
    ClaimDemand,
    rows=st.integers(min_value=1, max_value=4),
    models=st.dictionaries(st.sampled_from(["a", "b"]), _bounds, max_size=2),
    other_models=_bounds,
    owner_rows=st.integers(min_value=1, max_value=4),
)
endings = st.sampled_from([RowState.COMPLETED, RowState.FAILED, RowState.CANCELED])
rows = st.fixed_dictionaries(
    {
        "kind": _kinds,
        "owner": st.sampled_from(["blue", "green", "red"]),
        "model": st.sampled_from(["a", "b", "c"]),
        "priority": st.integers(min_value=0, max_value=1),
        "key": st.sampled_from([None, None, None, "k", "l"]),
        "age_s": st.integers(min_value=0, max_value=2),
        "deadline_s": st.sampled_from(DEADLINES_S),
        "rank": st.integers(min_value=0, max_value=255),
    }
)


class QueueRules(QueueMachineBase):
    """The rules."""

    # -- clients

    @initialize(rows=st.lists(rows, min_size=2, max_size=5), place=places)
    def begin_with(self, rows: list[dict[str, Any]], place: int) -> None:
        for fields in rows:
            self._enqueue(self.processes[place], fields)

    @rule(fields=rows, place=places, oddity=_oddities)
    def enqueue(self, fields: dict[str, Any], place: int, oddity: int) -> None:
        process = self.processes[place]
        queued = [row for row in self.known if row.id in self.model.rows and row.deadline is not None]
        if oddity == 8 and self.world.is_real:  # I23: the row goes with its first events, which the schema refuses
            row = self.new_row({**fields, "kind": "flex", "key": None})
            assert self.do(actions.enqueue(process, row, background=False, is_broken=True)) == REFUSED
        elif oddity == 9 and queued:
            again = attrs.evolve(queued[0], key=None)
            assert self.do(actions.enqueue(process, again, background=False)) == OK
        else:
            self._enqueue(process, fields)

    @rule(place=places, rank=st.integers(min_value=0, max_value=255))
    def open_warm(self, place: int, rank: int) -> None:
        row = ModelRow(
            id=self._new_id(rank),
            owner="blue",
            model="echo-16",
            priority=0,
            surface="responses",
            is_stored=True,
            key=None,
            created_at=self.model.now,
            deadline=None,
        )
        action, ticket = actions.open_warm(self.processes[place], row)
        self.do(action)
        self.known.append(row)
        self.take([ticket])

    @rule(pick=picks, place=places, is_stranger=st.integers(min_value=0, max_value=4))
    def cancel(self, pick: int, place: int, is_stranger: int) -> None:
        row, process = self._row(pick, lambda row: not row.is_terminal), self.processes[place]
        self.do(actions.request_cancel(process, row.id, "nobody" if is_stranger == 4 else row.owner))
        holders = [known for known in self.processes if row.id in {ticket.row_id for ticket in known.tickets}]
        for known in holders:
            self.do(actions.watch(known, frozenset(ticket.row_id for ticket in known.tickets)))

    @rule(pick=picks, place=places, is_stranger=st.integers(min_value=0, max_value=4))
    def delete(self, pick: int, place: int, is_stranger: int) -> None:
        row = self._row(pick, lambda row: row.is_terminal)
        self.do(actions.delete(self.processes[place], row.id, "nobody" if is_stranger == 4 else row.owner))

    @rule(pick=picks, place=places, number=st.integers(min_value=0, max_value=1))
    def follow(self, pick: int, place: int, number: int) -> None:
        row = self._row(pick, lambda row: bool(row.segments))
        follower = Follower(row.id, number)
        told = self.history.told.setdefault(follower, b"")
        seen = told.count(b"\n")
        for segment in self._read(self.processes[place], row, seen - 1):
            lines = segment.frames.splitlines(keepends=True)
            told += b"".join(lines[max(0, seen - segment.first_sequence) :])
            seen = max(seen, segment.last_sequence + 1)
        self.history.told[follower] = told

    @rule(pick=picks, place=places, after=st.integers(min_value=-1, max_value=12))
    def read_again(self, pick: int, place: int, after: int) -> None:
        """I8: what comes after any number is what was told after it."""
        row = self._row(pick, lambda row: len(row.segments) > 1)
        segments = self._read(self.processes[place], row, after)
        told = self.history.told.get(Follower(row.id, 0), b"").splitlines(keepends=True)
        if segments:
            lines = b"".join(segment.frames for segment in segments).splitlines(keepends=True)
            lines = lines[after + 1 - segments[0].first_sequence :]
            assert all(one == other for one, other in zip(told[after + 1 :], lines, strict=False)), "I8: another log"

    # -- workers

    @rule(place=places, demand=demands)
    def claim(self, place: int, demand: ClaimDemand) -> None:
        self._claim(self.processes[place], demand)

    @rule(pick=picks, is_repeated=st.booleans())
    def advance(self, pick: int, is_repeated: bool) -> None:
        ticket = self.held(pick)
        if ticket is None:
            return
        self._write(ticket, actions.advance(ticket), is_repeated=is_repeated)

    @rule(pick=picks, events=st.integers(min_value=1, max_value=4), is_repeated=st.booleans(), oddity=_oddities)
    def emit(self, pick: int, events: int, is_repeated: bool, oddity: int) -> None:
        ticket = self.held(pick)
        if ticket is None or ticket.is_warm:
            return
        if oddity < 9:
            self._write(ticket, actions.append(ticket, ticket.next_segment(events)), is_repeated=is_repeated)
            return
        ahead = attrs.evolve(ticket, last_sequence=ticket.last_sequence + events)  # a worker that lost count
        assert self.do(actions.append(ahead, ahead.next_segment(1))) == LOST
        self.drop(ticket)

    @rule(pick=picks, state=endings, events=st.integers(min_value=0, max_value=3), is_repeated=st.booleans())
    def finish(self, pick: int, state: RowState, events: int, is_repeated: bool) -> None:
        ticket = self.held(pick)
        if ticket is None:
            return
        action = actions.finish(ticket, self._possible(ticket, state), self._last_segments(ticket, events))
        self._write(ticket, action, is_repeated=is_repeated)
        self.drop(ticket)

    @rule(pick=picks, events=st.integers(min_value=0, max_value=2), delay_s=st.sampled_from(DELAYS_S))
    def retry(self, pick: int, events: int, delay_s: float) -> None:
        """A drain puts nothing off."""
        ticket = self.held(pick)
        if ticket is None:
            return
        segments = self._last_segments(ticket, events)
        counts = pick % 2 == 0
        self.do(actions.requeue(ticket, segments, delay_s=delay_s if counts else 0.0, counts=counts))
        if not ticket.is_warm:
            self.drop(ticket)
        if pick % 3 == 0:  # whoever hands a row back may well be the next to claim it
            self._claim(ticket.process, EVERYTHING)

    @rule(pick=picks, place=places, patience_s=st.sampled_from(PATIENCES_S), is_asked=st.booleans(), dies=st.booleans())
    def take_over(self, pick: int, place: int, patience_s: float, is_asked: bool, dies: bool) -> None:
        """Whoever takes over ends it, or dies."""
        row = self._row(pick, lambda row: (row.cancel_at is not None or is_asked) and not row.is_terminal)
        process, tickets = self.processes[place], list[Ticket]()
        if is_asked:
            self.do(actions.request_cancel(process, row.id, row.owner))
        if self.do(actions.take_over(process, row.id, patience_s, tickets)) == NOTHING:
            return
        (ticket,) = tickets
        if dies:
            self.late.append(ticket)
        else:
            self.do(actions.finish(ticket, RowState.CANCELED, self._last_segments(ticket, 1)))

    # -- leases and time

    @rule(place=places, is_confused=st.booleans())
    def renew(self, place: int, is_confused: bool) -> None:
        """*is_confused*: it asks for everybody's rows."""
        process = self.processes[place]
        ids = {ticket.row_id for ticket in process.tickets}
        owned = self.do(actions.renew(process, frozenset(self.model.rows if is_confused else ids))).renewed
        i20_renewed_leases_are_whole(owned, self.seen, self.model)
        for ticket in [ticket for ticket in process.tickets if ticket.row_id not in owned]:
            self.drop(ticket)

    @rule(steps=st.integers(min_value=1, max_value=3))
    def expire(self, steps: int) -> None:
        self.let_pass(steps * CLOCK_STEP_S)

    @rule(place=places)
    def rescue(self, place: int) -> None:
        self.do(actions.rescue(self.processes[place]))

    @precondition(lambda self: self.world.is_real)
    @rule(place=places, kind=st.sampled_from(PRUNED), rows=st.integers(min_value=1, max_value=3), is_late=st.booleans())
    def prune_some(self, place: int, kind: RetentionKind, rows: int, is_late: bool) -> None:
        if is_late:
            self.let_pass(9 * CLOCK_STEP_S)
        self.prune(self.processes[place], kind, rows)

    @precondition(lambda self: self.world.is_real)
    @rule(seconds=st.sampled_from([1.0, 3600.0, 864_000.0]))
    def jump(self, seconds: float) -> None:
        """I22: the process's own clock jumps."""
        before = self.seen
        trio.from_thread.run(self._jump, seconds)
        i22_nothing_has_changed(before, self.seen)

    async def _jump(self, seconds: float) -> None:
        self.clock.jump(seconds)
        self.seen = await self.world.look()

    # -- deaths

    @rule(place=places)
    def crash(self, place: int) -> None:
        """The process forgets everything, and another one takes its place; what it was about to write comes late."""
        died = self.processes[place]
        self.late.extend(died.tickets)
        self.processes[place] = self._open_process(place)
        self.counts["crashes"] += 1

    @rule(pick=picks, kind=st.sampled_from(["advance", "append", "again", "finish", "requeue", "drain"]), state=endings)
    def write_late(self, pick: int, kind: str, state: RowState) -> None:
        """Of a process that was stopped: lost as soon as anybody else has had the row."""
        ticket = self.some_late(pick)
        if ticket is None:
            return
        action = self.late_action(ticket, kind, state)
        row = self.model.rows.get(ticket.row_id)
        is_owner = row is not None and (row.daemon, row.epoch) == ticket.holder
        is_ended = row is not None and row.is_terminal
        answer = self.do(action)
        self.counts["late: lost" if answer == LOST else "late: taken"] += 1
        assert answer == LOST or is_owner or (kind == "finish" and is_ended), "I17: a late write was taken"

    # -- helpers

    def _claim(self, process: Process, demand: ClaimDemand) -> None:
        before, tickets = self.seen, list[Ticket]()
        ids = [entry[0] for entry in self.do(actions.claim(process, demand, tickets))]
        capacities_are_kept(ids, demand, before, self.seen, self.model.now)
        self.take(tickets)

    def _enqueue(self, process: Process, fields: dict[str, Any]) -> None:
        row, before = self.new_row(fields), self.seen
        if self.do(actions.enqueue(process, row, background=fields["kind"] == "background")) == OK:
            self.known.append(row)
            i23_its_events_came_with_it(before, self.seen, row.id, has_events=row.surface == "responses")

    def new_row(self, fields: dict[str, Any]) -> ModelRow:
        row_id, kind = self._new_id(fields["rank"]), fields["kind"]
        created_at = float(int(self.model.now)) - fields["age_s"]
        if fields["deadline_s"] == DEADLINES_S[0]:  # no order is promised among those that are too late at once
            created_at += (row_id.int >> 8 & 0xFFFF) / 1000
        return ModelRow(
            id=row_id,
            owner=fields["owner"],
            model=fields["model"],
            priority=fields["priority"] if kind == "background" else 2,
            surface="chat" if kind == "chat" else "responses",
            is_background=kind == "background",
            is_stored=kind in {"background", "flex"},
            key=fields["key"],
            created_at=created_at,
            deadline=created_at + fields["deadline_s"],
        )

    def _new_id(self, rank: int) -> UUID:
        """In any order."""
        return UUID(int=rank << 64 | next(self.serials) << 8)

    def _row(self, pick: int, is_wanted: Callable[[ModelRow], bool]) -> ModelRow:
        """Mostly one that is wanted, if there is one; else any that ever was."""
        wanted = [row for row in self.known if row.id in self.model.rows and is_wanted(self.model.rows[row.id])]
        rows = wanted if wanted and pick else self.known
        return rows[pick % len(rows)]

    def held(self, pick: int) -> Ticket | None:
        """What somebody works on; he claims it first if nobody works on anything."""
        if not any(process.tickets for process in self.processes):
            self._claim(self.processes[pick % PROCESSES], EVERYTHING)
        held = [ticket for process in self.processes for ticket in process.tickets]
        return held[pick % len(held)] if held else None

    def _read(self, process: Process, row: ModelRow, after: int) -> tuple[EventSegment, ...]:
        page = self.do(actions.read(process, row.id, row.owner, after, LIMITS.follow_segments))
        return () if page == NOTHING else page[-1]

    def _write(self, ticket: Ticket, action: Action, *, is_repeated: bool) -> None:
        """Do *action*; twice if its answer is lost on the way. A process that is told of a loss stops."""
        answer = self.do(action)
        if is_repeated:
            assert self.do(action) == answer, "a second try finds the first one done"
        if answer == LOST:
            self.drop(ticket)

    def _possible(self, ticket: Ticket, state: RowState) -> RowState:
        """No process completes what was never begun."""
        row = self.model.rows.get(ticket.row_id)
        is_begun = ticket.is_started or (row is not None and row.is_started)
        return RowState.FAILED if state is RowState.COMPLETED and not is_begun else state

    def _last_segments(self, ticket: Ticket, events: int) -> tuple[EventSegment, ...]:
        """What was sent last, as its answer may have been lost, and what is new."""
        if not events or ticket.is_warm:
            return ()
        sent = (ticket.stored,) if ticket.stored and events > 1 else ()
        return (*sent, ticket.next_segment(events))

    def some_late(self, pick: int) -> Ticket | None:
        """Mostly of a row that the same process has claimed again: only the epoch tells them apart."""
        owners = {row.id: row.daemon for row in self.model.rows.values()}
        rivals = [ticket for ticket in self.late if owners.get(ticket.row_id) == ticket.process.daemon]
        late = rivals if rivals and pick % 4 else self.late
        return late[pick % len(late)] if late else None

    def late_action(self, ticket: Ticket, kind: str, state: RowState) -> Action:
        if kind == "append" and not ticket.is_warm:
            return actions.append(ticket, ticket.next_segment(2))
        if kind == "again" and ticket.stored:
            return actions.append(ticket, ticket.stored)
        if kind == "finish":
            return actions.finish(ticket, self._possible(ticket, state), self._last_segments(ticket, 2))
        if kind in {"requeue", "drain"}:
            return actions.requeue(ticket, (), delay_s=0.0, counts=kind == "requeue")
        return actions.advance(ticket)
