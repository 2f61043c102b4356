"""The machine's engine: does an action to the store, has the model predict it, looks, and compares.

Rule 1: after every action everything stored is compared with the model, and every invariant is checked.
Rule 2: actions that run at once must answer as they would in one order or another.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import trio
from hypothesis.stateful import RuleBasedStateMachine
from tests.machines import queue_actions as actions
from tests.machines.queue_actions import Action, Process, Ticket
from tests.machines.queue_invariants import (
    SLIP_S,
    History,
    check_all,
    i1_everything_has_ended,
    i17_who_wrote_was_the_owner,
    i21_a_rescue_touches_only_what_has_expired,
)
from tests.machines.queue_model import Model, ModelRow
from tests.machines.queue_world import LIMITS, PROCESSES, QueueWorld, Seen, SeenRow

from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.retention import RetentionKind, retention_s
from dwctl_trio.domain.retry import find_exhaustion

PRUNED = (RetentionKind.UNSTORED_EVENTS, RetentionKind.EVENTS, RetentionKind.BODIES, RetentionKind.ROWS)
EVERYTHING = ClaimDemand(rows=5, models={}, other_models=100, owner_rows=100)


class QueueMachineBase(RuleBasedStateMachine):
    """Three processes on one database; subclasses say which world, and where to count."""

    world: ClassVar[QueueWorld]
    counts: ClassVar[Counter[str]]
    failures: ClassVar[list[str]]
    """What did not hold."""

    def __init__(self) -> None:
        super().__init__()
        began_at = trio.from_thread.run(self.world.empty)
        self.counts["examples"] += 1
        self.model = Model(lease_s=LIMITS.lease_s, rescue_rows=LIMITS.rescue_rows, now=float(int(began_at)))
        self.history = History()
        self.seen: Seen = {}
        self.processes = [self._open_process(place) for place in range(PROCESSES)]
        self.late: list[Ticket] = []
        """Of processes that died, and of rows that were lost."""
        self.known: list[ModelRow] = []
        """Every row that was ever accepted, as it was then."""
        self.serials = itertools.count(1)
        self.is_broken = False

    def _open_process(self, place: int) -> Process:
        daemon, store = self.world.open_process(place)
        return Process(place=place, daemon=daemon, store=store)

    # -- one action, or several at once

    def do(self, action: Action) -> Any:
        """The answer of *action*, which is as predicted."""
        before = self.seen
        answer = trio.from_thread.run(self._perform, action)
        expected = action.predict(self.model)
        self.counts[f"{action.name}: {_label(answer)}"] += 1
        if answer != expected:
            raise self.failure(f"{action.name} answered {answer}, not {expected}")
        i17_who_wrote_was_the_owner(action, answer, before, self.history)
        if action.name == "rescue":
            i21_a_rescue_touches_only_what_has_expired(before, self.seen, self.model)
        self.compare(before, action)
        return answer

    def do_at_once(self, *together: Action) -> list[Any]:
        """The answers of actions that run at once, which are those of one order or another."""
        before = self.seen
        answers = trio.from_thread.run(self._perform_all, together)
        self.counts["at once: " + " + ".join(sorted(action.name for action in together))] += 1
        reasons = []
        for order in itertools.permutations(range(len(together))):
            model = self.model.copy()
            expected = {place: together[place].predict(model) for place in order}
            wrong = [place for place in order if expected[place] != answers[place]]
            difference = _difference(model, self.seen)
            if not wrong and difference is None:
                self.model = model
                self.compare(before, *together)
                return answers
            reasons.append((order, [(answers[place], expected[place]) for place in wrong], difference))
        raise self.failure(f"no order of {[action.name for action in together]} explains it: {reasons}")

    def compare(self, before: Seen, *actions: Action) -> None:
        """What is stored with the model and with the invariants."""
        difference = _difference(self.model, self.seen)
        if difference is not None:
            raise self.failure(difference)
        for row in self.model.rows.values():  # so that both have them in the same order
            row.lease_at, row.finished_at = self.seen[row.id].lease_at, self.seen[row.id].finished_at
        try:
            check_all(before, self.seen, self.model, self.history, actions=actions)
        except AssertionError as broken:
            raise self.failure(str(broken)) from broken

    def failure(self, reason: str) -> AssertionError:
        """What to raise; *reason* is noted, as it may be another one when Hypothesis plays the same once more."""
        self.is_broken = True
        self.failures.append(reason)
        return AssertionError(reason)

    async def _perform(self, action: Action) -> Any:
        answer = await action.answer()
        self.seen = await self.world.look()
        return answer

    async def _perform_all(self, together: Sequence[Action]) -> list[Any]:
        answers: list[Any] = [None] * len(together)

        async def perform(place: int) -> None:
            answers[place] = await together[place].answer()

        async with trio.open_nursery() as nursery:
            for place in range(len(together)):
                nursery.start_soon(perform, place)
        self.seen = await self.world.look()
        return answers

    async def _advance_clock(self, seconds: float) -> None:
        await self.world.advance_clock(seconds)
        self.seen = await self.world.look()

    def let_pass(self, seconds: float) -> None:
        """Time for the database; nothing else happens."""
        before = self.seen
        trio.from_thread.run(self._advance_clock, seconds)
        self.model.now += seconds
        self.compare(before)

    # -- what processes do with what they claimed

    def take(self, tickets: Sequence[Ticket]) -> None:
        """Give *tickets* to their processes; what is exhausted or too late is ended at once, as workers do."""
        for ticket in tickets:
            row = self.model.rows[ticket.row_id]
            exhausted = find_exhaustion(attempt=row.attempt, reclaims=row.reclaims, limits=LIMITS)
            if exhausted is None and not row.is_overdue(self.model.now):
                ticket.process.tickets.append(ticket)
                continue
            self.counts["given up"] += 1
            self.do(actions.finish(ticket, RowState.FAILED, ()))

    def drop(self, ticket: Ticket) -> None:
        """Its process stops: it was told that the row is lost, or it is done with it."""
        if ticket in ticket.process.tickets:
            ticket.process.tickets.remove(ticket)
            self.late.append(ticket)

    # -- the end

    def teardown(self) -> None:
        """One lease and one sweep later a single process ends everything that was accepted."""
        if self.is_broken or not self.history.accepted:
            return
        process = self._open_process(0)
        self.let_pass(750.0)
        while self.do(actions.rescue(process)):
            pass
        for _ in range(len(self.seen) + 1):
            tickets: list[Ticket] = []
            if not self.do(actions.claim(process, EVERYTHING, tickets)):
                break
            self.take(tickets)
            for ticket in process.tickets:
                self.do(actions.advance(ticket, opens=not ticket.steps))
                segments = (ticket.next_segment(2),) if ticket.last_sequence >= 0 else ()
                self.do(actions.finish(ticket, RowState.COMPLETED, segments))
            process.tickets.clear()
        i1_everything_has_ended(self.seen, self.history)
        self.counts.update(f"ended: {row.state}" for row in self.seen.values())
        if self.world.is_real:
            self._prune_everything(process)

    def _prune_everything(self, process: Process) -> None:
        """Kind by kind; nothing is left."""
        for kind in PRUNED:
            self.let_pass(retention_s(kind, LIMITS) + 120.0)
            while self.prune(process, kind, rows=100):
                pass
        assert not self.seen, "what is old enough is gone"

    def prune(self, process: Process, kind: RetentionKind, rows: int) -> bool:
        """Whether there may be more."""
        retention = self.world.open_retention(process.place)
        pruned, is_full = self.do(actions.prune(retention, kind, rows))
        self.counts[f"pruned: {kind}"] += pruned
        return bool(is_full)


def _label(answer: Any) -> str:
    if isinstance(answer, str):
        return str(answer)
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    return "some" if answer else "none"


def _difference(model: Model, seen: Seen) -> str | None:
    """What is stored otherwise than the model has it; None if it is the same."""
    if model.rows.keys() != seen.keys():
        return f"rows {set(model.rows)} are predicted, {set(seen)} are stored"
    for row in model.rows.values():
        stored, predicted = _of_seen(seen[row.id]), _of_model(row)
        for name, value in predicted.items():
            if stored[name] != value and not _is_near(stored[name], value, _SLIPS.get(name, 0.0)):
                return f"{name} of {row.id} is {stored[name]}, not {value}"
    return None


def _is_near(one: Any, other: Any, slip_s: float) -> bool:
    return isinstance(one, float) and isinstance(other, float) and abs(one - other) < slip_s


def _of_seen(row: SeenRow) -> dict[str, Any]:
    return {
        **{name: getattr(row, name) for name in _SAME},
        "is_cancel_requested": row.is_cancel_requested,
        "segments": row.segments,
        "steps": row.steps,
        "calls": row.calls,
        "keeps_request": row.keeps_request,
        "keeps_response": row.keeps_response,
    }


_SAME = (
    *("owner", "model", "state", "daemon", "epoch", "attempt", "reclaims", "lease_at", "not_before", "deadline"),
    *("finished_at", "is_started", "last_sequence", "response_status", "error_type"),
)

_SLIPS = {"lease_at": SLIP_S, "not_before": SLIP_S, "finished_at": SLIP_S, "deadline": 1e-5}
"""Seconds: what the database's clock sets; the deadline is the test's, and rounded."""


def _of_model(row: ModelRow) -> dict[str, Any]:
    forgets = row.is_terminal and not row.is_stored
    steps = tuple(
        (step.id, step.state, step.result is not None and not forgets) for step in row.steps.values()
    )  # fmt: skip
    return {
        **{name: getattr(row, name) for name in _SAME},
        "is_cancel_requested": row.cancel_at is not None,
        "segments": row.log,
        "steps": steps,
        "calls": row.calls,
        "keeps_request": not forgets and not row.is_emptied,
        "keeps_response": row.is_terminal
        and row.is_stored
        and row.error_type != "step_abandoned"
        and not row.is_emptied,
    }
