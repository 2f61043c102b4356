"""What must hold of the queue after every action, by the numbers of the design's page on invariants.

Rule 1: each reads what is stored before and after, and who did it; the model is asked for nothing but the time.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from uuid import UUID

import attrs
from tests.machines.queue_actions import Action
from tests.machines.queue_model import OK, Model
from tests.machines.queue_world import LIMITS, Seen, SeenRow

from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.lifecycle import LEASED_STATES, ROW_MOVES, TERMINAL_STATES, RowState

SLIP_S = 30.0
"""What a slow machine may take; no two of the test's moments come as near to each other, but those that are equal."""


@attrs.define
class History:
    """What has been seen of the rows so far."""

    accepted: set[UUID] = attrs.Factory(set)
    """All that were ever there."""
    endings: Counter[UUID] = attrs.Factory(Counter)
    holders: dict[tuple[UUID, int], UUID] = attrs.Factory(dict)
    """By row and epoch."""
    writers: dict[tuple[UUID, int], UUID] = attrs.Factory(dict)
    """Whose write was accepted, by row and epoch."""
    told: dict["Follower", bytes] = attrs.Factory(dict)


@attrs.frozen
class Follower:
    """Somebody who reads the events of one response, in order."""

    row_id: UUID
    number: int


def check_all(before: Seen, after: Seen, model: Model, history: History, *, actions: Sequence[Action] = ()) -> None:
    """All that needs no more than two looks, with *actions* between them; none: time has passed.

    Raises:
        AssertionError: One does not hold.
    """
    for row in after.values():
        was = before.get(row.id)
        i1_it_ends_once(was, row, history)
        if was is not None:
            i2_terminal_is_for_ever(was, row, actions)
        i7_its_events_are_numbered_without_gap(row)
        i17_an_epoch_has_one_owner(was, row, history)
        i18_somebody_can_take_it(row, model)
        i19_attempts_are_bounded(row, model)
        i27_what_is_not_to_be_stored_is_gone(row, model)
    for row in before.values():
        assert row.id in after or row.state in TERMINAL_STATES, "I2: what is deleted has ended"
    i8_what_was_read_stays(after, history)


def i1_it_ends_once(was: SeenRow | None, row: SeenRow, history: History) -> None:
    history.accepted.add(row.id)
    if row.state in TERMINAL_STATES and (was is None or was.state not in TERMINAL_STATES):
        history.endings[row.id] += 1
    assert history.endings[row.id] <= 1, "I1: it ends once"


def i1_everything_has_ended(after: Seen, history: History) -> None:
    """After one lease and one sweep, with a process that lives."""
    waiting = [(row.id, row.state) for row in after.values() if row.state not in TERMINAL_STATES]
    assert not waiting, f"I1, I18: not ended: {waiting}"
    assert all(history.endings[row_id] == 1 for row_id in history.accepted), "I1: each has ended once"


def i2_terminal_is_for_ever(was: SeenRow, row: SeenRow, actions: Sequence[Action]) -> None:
    if was.state in TERMINAL_STATES and any(action.name == "prune" for action in actions):
        assert row.lasting == was.lasting, "I2: retention has changed what it leaves alone"
        assert row.segments in {was.segments, ()}, "I2: retention took some of the events"
        assert row.steps in {was.steps, ()}, "I2: retention took some of the steps"
    elif was.state in TERMINAL_STATES:
        assert row.whole == was.whole, "I2: a terminal row has changed"
    allowed = {was.state}
    for _ in actions:
        allowed |= {state for known in allowed for state in ROW_MOVES[known].values()}
    assert row.state in allowed, f"I2: {was.state} became {row.state}"


def i7_its_events_are_numbered_without_gap(row: SeenRow) -> None:
    numbers = [
        number for segment in row.segments for number in range(segment.first_sequence, segment.last_sequence + 1)
    ]
    assert numbers == list(range(len(numbers))), f"I7: numbers {numbers}"
    assert row.last_sequence == (numbers[-1] if numbers else None), "I7: the highest number is another"
    lines = b"".join(segment.frames for segment in row.segments).splitlines()
    assert [int(line.partition(b":")[0]) for line in lines] == numbers, "I7: the events are others"


def i8_what_was_read_stays(after: Seen, history: History) -> None:
    for follower, told in history.told.items():
        row = after.get(follower.row_id)
        if row is not None and not (row.last_sequence is None and row.state in TERMINAL_STATES):
            log = b"".join(segment.frames for segment in row.segments)
            assert log.startswith(told), "I8: what was read is no prefix of the log"


def i17_an_epoch_has_one_owner(was: SeenRow | None, row: SeenRow, history: History) -> None:
    if was is not None:
        assert row.epoch >= was.epoch, "I17: an epoch goes back"
        assert row.daemon == was.daemon or row.epoch > was.epoch, "I17: another owner in the same epoch"
    if row.daemon is not None:
        holder = history.holders.setdefault((row.id, row.epoch), row.daemon)
        assert holder == row.daemon, "I17: two owners in one epoch"


def i17_who_wrote_was_the_owner(action: Action, answer: object, before: Seen, history: History) -> None:
    """Of a write that names an owner and an epoch."""
    ticket = action.ticket
    if ticket is None or answer != OK:
        return
    row = before.get(ticket.row_id)
    assert row is not None, "I17: a row that is not there was written"
    is_owner = (row.daemon, row.epoch) == ticket.holder
    is_repeat = row.state in TERMINAL_STATES and row.epoch == ticket.epoch + 1  # a finish whose answer was lost
    assert is_owner or is_repeat, "I17: somebody else's row was written"
    writer = history.writers.setdefault((row.id, ticket.epoch), ticket.process.daemon)
    assert writer == ticket.process.daemon, "I17: two processes wrote in one epoch"


def i18_somebody_can_take_it(row: SeenRow, model: Model) -> None:
    latest = model.now + LIMITS.lease_s + SLIP_S
    if row.state is RowState.PENDING:
        assert row.deadline is not None, "I18: no claim will ever see it"
        assert row.daemon is None
        assert row.not_before is None or row.not_before < latest, "I18: it waits for ever"
    elif row.state in LEASED_STATES:
        assert row.daemon is not None, "I18: a leased row without an owner"
        assert row.lease_at is not None, "I18: no rescuer will ever see it"
        assert row.lease_at < latest, "I18: its lease does not end"


def i19_attempts_are_bounded(row: SeenRow, model: Model) -> None:
    """A worker that finds them exhausted ends the row at once; a taker-over counts, too, and ends it."""
    taken = model.rows[row.id].take_overs
    assert row.attempt <= LIMITS.queue_attempts + 1 + taken, f"I19: attempt {row.attempt}"
    assert row.reclaims <= LIMITS.queue_reclaims + 1 + taken, f"I19: {row.reclaims} reclaims"


def i20_renewed_leases_are_whole(renewed: frozenset[UUID], after: Seen, model: Model) -> None:
    for row_id in renewed:
        lease_at = after[row_id].lease_at
        assert lease_at is not None
        assert lease_at > model.now + LIMITS.lease_s - SLIP_S, "I20: a lease was not renewed"


def i21_a_rescue_touches_only_what_has_expired(before: Seen, after: Seen, model: Model) -> None:
    for was in before.values():
        is_expired = was.lease_at is not None and was.lease_at < model.now + SLIP_S
        if not is_expired or was.state in TERMINAL_STATES:
            assert after[was.id].whole == was.whole, "I21: a row that was renewed or had ended was rescued"


def i22_nothing_has_changed(before: Seen, after: Seen) -> None:
    """Whatever clock of the process's own has jumped."""
    assert {row.id: row.whole for row in after.values()} == {row.id: row.whole for row in before.values()}, "I22"


def i23_its_events_came_with_it(before: Seen, after: Seen, row_id: UUID, *, has_events: bool) -> None:
    """The first look that shows a row shows its first events."""
    assert row_id not in before
    assert bool(after[row_id].segments) is has_events, "I23: a row and its first events are one"


def i27_what_is_not_to_be_stored_is_gone(row: SeenRow, model: Model) -> None:
    """From the statement on that ends it."""
    if row.state in TERMINAL_STATES and not model.rows[row.id].is_stored:
        kept = (row.keeps_request, row.keeps_response, *(has_result for _, _, has_result in row.steps))
        assert not any(kept), "I27: something of it is kept"


def capacities_are_kept(claimed: Sequence[UUID], demand: ClaimDemand, before: Seen, after: Seen, now: float) -> None:
    """Of what was claimed but for what is past its deadline, which is only to be ended."""
    overdue = {row_id for row_id in claimed if (before[row_id].deadline or 0.0) <= now + SLIP_S}
    bounds: list[tuple[Callable[[SeenRow], str], Callable[[str], int]]] = [
        (lambda row: row.model, lambda model: demand.models.get(model, demand.other_models)),
        (lambda row: row.owner, lambda _: demand.owner_rows),
    ]
    assert len(claimed) <= demand.rows, "more rows than were asked for"
    for name_of, bound_of in bounds:
        held = Counter(
            name_of(row)
            for row in after.values()
            if row.state in LEASED_STATES and row.deadline is not None and row.id not in overdue
        )
        for row_id in set(claimed) - overdue:
            name = name_of(after[row_id])
            assert held[name] <= bound_of(name), f"{held[name]} of {name} are under way"
