"""More rules: what several processes do at the same moment, each on a connection of its own.

Rule: only what is promised to answer as in one order or another. A sweep and a renewal leave a locked row alone, and a
claim may find at its end what was enqueued since it began; none of them is raced against what shows it.
"""

from typing import Any

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import rule
from tests.machines import queue_actions as actions
from tests.machines.queue_actions import Action, Ticket
from tests.machines.queue_invariants import capacities_are_kept
from tests.machines.queue_model import LOST, OK
from tests.machines.queue_rules import QueueRules, demands, endings, picks, places, rows
from tests.machines.queue_world import LIMITS, PROCESSES

from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.lifecycle import RowState

_rivals = st.sampled_from(
    [
        ClaimDemand(rows=2, models={"a": 3}, other_models=0, owner_rows=1),
        ClaimDemand(rows=2, models={"a": 0}, other_models=3, owner_rows=1),
    ]
)
"""Processes that serve other models, and still have an owner's capacity to share."""
_writes = st.sampled_from(["advance", "append", "finish", "requeue"])


class QueueMachine(QueueRules):
    """All rules."""

    @rule(wanted=st.lists(demands | _rivals, min_size=2, max_size=PROCESSES))
    def claim_at_once(self, wanted: list[ClaimDemand]) -> None:
        """Nothing is claimed twice, and no capacity is overshot by the sum of them."""
        before, tickets = self.seen, list[Ticket]()
        pairs = zip(self.processes, wanted, strict=False)
        claims = [actions.claim(process, demand, tickets) for process, demand in pairs]
        ids = [entry[0] for claimed in self.do_at_once(*claims) for entry in claimed]
        assert len(set(ids)) == len(ids), "I17: a row was claimed twice"
        if all(demand == wanted[0] for demand in wanted):
            whole = attrs.evolve(wanted[0], rows=wanted[0].rows * len(wanted))
            capacities_are_kept(ids, whole, before, self.seen, self.model.now)
        self.take(tickets)

    @rule(fields=rows, place=places)
    def enqueue_at_once(self, fields: dict[str, Any], place: int) -> None:
        """With the same idempotency key, if any: one of them gets it."""
        others = [process for process in self.processes if process.place != place]
        both = [self.new_row(fields), self.new_row(fields)]
        is_background = fields["kind"] == "background"
        pairs = zip(others, both, strict=True)
        answers = self.do_at_once(*(actions.enqueue(process, row, background=is_background) for process, row in pairs))
        self.known.extend(row for row, answer in zip(both, answers, strict=True) if answer == OK)

    @rule(pick=picks, place=places, kind=st.sampled_from(["advance", "finish", "requeue"]), state=endings)
    def write_while_it_is_rescued(self, pick: int, place: int, kind: str, state: RowState) -> None:
        ticket = self.held(pick)
        if ticket is None:
            return
        self._race(ticket, kind, state, actions.rescue(self.processes[place]))

    @rule(pick=picks, place=places, kind=_writes, state=endings, is_asked=st.booleans())
    def write_while_it_is_taken_over(self, pick: int, place: int, kind: str, state: RowState, is_asked: bool) -> None:
        ticket, tickets = self.held(pick), list[Ticket]()
        process = self.processes[place]
        if ticket is None:
            return
        if is_asked:
            self.do(actions.request_cancel(process, ticket.row_id, ticket.row.owner))
        self._race(ticket, kind, state, actions.take_over(process, ticket.row_id, 0.0, tickets))
        for taken in tickets:
            self.do(actions.finish(taken, RowState.CANCELED, ()))

    @rule(pick=picks, place=places, kind=_writes, state=endings)
    def write_while_it_is_read(self, pick: int, place: int, kind: str, state: RowState) -> None:
        ticket = self.held(pick)
        row = self.model.rows.get(ticket.row_id) if ticket is not None else None
        if ticket is not None and row is not None:
            after = -1 if row.last_sequence is None else row.last_sequence - pick % 2
            read = actions.read(self.processes[place], row.id, row.owner, after, LIMITS.follow_segments)
            self._race(ticket, kind, state, read)

    @rule(pick=picks, kind=_writes, late_kind=_writes, state=endings)
    def write_while_another_writes_late(self, pick: int, kind: str, late_kind: str, state: RowState) -> None:
        """I17: never two for the same row in one epoch; mostly for a row that both believe their own."""
        ticket = self.held(pick)
        if ticket is None or not self.late:
            return
        rivals = [late for late in self.late if late.row_id == ticket.row_id] or self.late
        late = rivals[pick % len(rivals)]
        self._race(ticket, kind, state, self.late_action(late, late_kind, RowState.FAILED))

    def _race(self, ticket: Ticket, kind: str, state: RowState, other: Action) -> None:
        """A write of a live process against something else."""
        action = self.late_action(ticket, kind, state)
        answer, _ = self.do_at_once(action, other)
        if answer == LOST or (kind in {"finish", "requeue"} and not (ticket.is_warm and kind == "requeue")):
            self.drop(ticket)
