"""The states of rows and steps: only the moves of the table, and terminal states absorb."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.domain import lifecycle
from dwctl_trio.domain.lifecycle import (
    LEASED_STATES,
    REQUIRED_COLUMNS,
    ROW_MOVES,
    STEP_MOVES,
    TERMINAL_STATES,
    Change,
    RowState,
    apply,
    ending_change,
    wire_status,
)
from dwctl_trio.domain.response import TERMINAL_STATUSES, Ending, ResponseStatus
from dwctl_trio.domain.steps import StepState
from dwctl_trio.testing.domain_strategies import endings

# The table of docs/explanation, written out a second time: (state, change, state after).
_MOVES = """
pending    claim    claimed
pending    fail     failed
pending    cancel   canceled
claimed    start    processing
claimed    complete completed
claimed    fail     failed
claimed    retry    pending
claimed    rescue   pending
claimed    abandon  failed
claimed    cancel   canceled
processing complete completed
processing fail     failed
processing retry    pending
processing rescue   pending
processing abandon  failed
processing cancel   canceled
"""


@pytest.mark.parametrize("state", RowState)
@pytest.mark.parametrize("change", Change)
def test_only_the_moves_of_the_table_are_allowed(state: RowState, change: Change) -> None:
    allowed = {(before, what): after for before, what, after in map(str.split, _MOVES.strip().splitlines())}
    assert apply(state, change) == allowed.get((state, change))


@given(changes=st.lists(st.sampled_from(Change)), start=st.sampled_from(RowState))
def test_terminal_states_absorb(changes: list[Change], start: RowState) -> None:
    state = start
    for change in changes:
        after = apply(state, change)
        assert after is None or state not in TERMINAL_STATES
        state = after or state
    assert state == start or start not in TERMINAL_STATES


def test_the_terminal_states_are_the_three_ways_to_end() -> None:
    assert {RowState.COMPLETED, RowState.FAILED, RowState.CANCELED} == TERMINAL_STATES


@pytest.mark.parametrize("state", RowState)
def test_every_state_leads_to_every_terminal_state_or_is_one(state: RowState) -> None:
    reached = {state}
    for _ in RowState:
        reached |= {after for before in reached for after in ROW_MOVES[before].values()}
    assert reached >= TERMINAL_STATES or (state in TERMINAL_STATES and reached == {state})


@pytest.mark.parametrize("state", sorted(set(RowState) - TERMINAL_STATES))
def test_a_row_that_goes_on_can_always_be_cancelled_and_failed(state: RowState) -> None:
    assert apply(state, Change.CANCEL) is RowState.CANCELED
    assert apply(state, Change.FAIL) is RowState.FAILED


@pytest.mark.parametrize("state", RowState)
@pytest.mark.parametrize("change", [Change.RESCUE, Change.ABANDON, Change.RETRY])
def test_only_a_leased_row_can_be_rescued_abandoned_or_handed_back(state: RowState, change: Change) -> None:
    assert (apply(state, change) is not None) is (state in LEASED_STATES)


@pytest.mark.parametrize("state", RowState)
def test_a_row_has_its_owner_and_its_lease_while_it_is_leased(state: RowState) -> None:
    owned = {"daemon_id", "lease_expires_at"} <= REQUIRED_COLUMNS[state]
    assert owned is (state in LEASED_STATES)


@pytest.mark.parametrize("state", RowState)
def test_a_row_says_when_and_how_it_ended_once_it_has(state: RowState) -> None:
    ended = {"finished_at", "response_status"} <= REQUIRED_COLUMNS[state]
    assert ended is (state in TERMINAL_STATES)


@pytest.mark.parametrize("state", [RowState.PROCESSING, RowState.COMPLETED])
def test_a_row_whose_work_began_says_since_when(state: RowState) -> None:
    assert "started_at" in REQUIRED_COLUMNS[state]


@pytest.mark.parametrize("state", RowState)
def test_a_failed_row_and_no_other_must_say_why(state: RowState) -> None:
    assert ("error" in REQUIRED_COLUMNS[state]) is (state is RowState.FAILED)


@pytest.mark.parametrize("state", RowState)
def test_clients_see_a_terminal_status_exactly_for_terminal_rows(state: RowState) -> None:
    assert (wire_status(state) in TERMINAL_STATUSES) is (state in TERMINAL_STATES)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (RowState.PENDING, ResponseStatus.QUEUED),
        (RowState.CLAIMED, ResponseStatus.IN_PROGRESS),
        (RowState.PROCESSING, ResponseStatus.IN_PROGRESS),
        (RowState.COMPLETED, ResponseStatus.COMPLETED),
        (RowState.FAILED, ResponseStatus.FAILED),
        (RowState.CANCELED, ResponseStatus.CANCELLED),
    ],
)
def test_each_row_state_has_its_status_on_the_wire(state: RowState, status: ResponseStatus) -> None:
    assert wire_status(state) is status


@given(ending=endings())
def test_every_ending_is_a_change_that_ends_a_running_row(ending: Ending) -> None:
    assert apply(RowState.PROCESSING, ending_change(ending)) in TERMINAL_STATES


@given(ending=endings())
def test_the_row_of_an_ending_shows_the_endings_own_status(ending: Ending) -> None:
    after = apply(RowState.PROCESSING, ending_change(ending))
    shown = {"Completed": "completed", "Incomplete": "completed", "Failed": "failed", "Cancelled": "cancelled"}

    assert after is not None
    assert wire_status(after) == shown[type(ending).__name__]


def test_a_step_is_fired_before_it_completes_and_then_never_changes() -> None:
    ended = {StepState.COMPLETED, StepState.FAILED, StepState.CANCELED}
    assert {
        StepState.PENDING: {StepState.PROCESSING, StepState.FAILED, StepState.CANCELED},
        StepState.PROCESSING: ended,
        **dict.fromkeys(ended, frozenset()),
    } == STEP_MOVES


@pytest.mark.parametrize("table", ["ROW_MOVES", "REQUIRED_COLUMNS", "_WIRE_STATUS"])
def test_every_table_has_a_line_for_every_row_state(table: str) -> None:
    assert set(getattr(lifecycle, table)) == set(RowState)
