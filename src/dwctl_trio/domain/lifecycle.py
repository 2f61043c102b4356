"""The states of a request row and of a step, as tables.

Rule 1: every allowed move is in this file; the SQL and its CHECK constraints follow it and a test compares them.
Rule 2: terminal states absorb: nothing leaves them but deletion and retention.

Who may make a move, and what its statement must guard: the design's page on states and leases.
"""

from collections.abc import Mapping
from enum import StrEnum

from dwctl_trio.domain.response import Cancelled, Completed, Ending, Failed, Incomplete, ResponseStatus
from dwctl_trio.domain.steps import StepState


class RowState(StrEnum):
    """The state of a row in ``requests``."""

    PENDING = "pending"
    CLAIMED = "claimed"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"


class Change(StrEnum):
    """What may happen to a row."""

    CLAIM = "claim"
    """A daemon takes it."""
    START = "start"
    """Its worker fires the first step of the attempt."""
    COMPLETE = "complete"
    """Its worker has the final response, complete or incomplete; at once if only the ending was left to be written."""
    FAIL = "fail"
    """Its worker gives up."""
    RETRY = "retry"
    """Its worker hands it back: a retryable failure, or a drain."""
    RESCUE = "rescue"
    """Its lease has expired and it may run again."""
    ABANDON = "abandon"
    """Its lease has expired and it may not run again."""
    CANCEL = "cancel"
    """Somebody with the right to it wants it to end."""


ROW_MOVES: Mapping[RowState, Mapping[Change, RowState]] = {
    RowState.PENDING: {
        Change.CLAIM: RowState.CLAIMED,
        Change.FAIL: RowState.FAILED,
        Change.CANCEL: RowState.CANCELED,
    },
    RowState.CLAIMED: {
        Change.START: RowState.PROCESSING,
        Change.COMPLETE: RowState.COMPLETED,
        Change.FAIL: RowState.FAILED,
        Change.RETRY: RowState.PENDING,
        Change.RESCUE: RowState.PENDING,
        Change.ABANDON: RowState.FAILED,
        Change.CANCEL: RowState.CANCELED,
    },
    RowState.PROCESSING: {
        Change.COMPLETE: RowState.COMPLETED,
        Change.FAIL: RowState.FAILED,
        Change.RETRY: RowState.PENDING,
        Change.RESCUE: RowState.PENDING,
        Change.ABANDON: RowState.FAILED,
        Change.CANCEL: RowState.CANCELED,
    },
    RowState.COMPLETED: {},
    RowState.FAILED: {},
    RowState.CANCELED: {},
}

STEP_MOVES: Mapping[StepState, frozenset[StepState]] = {
    StepState.PENDING: frozenset({StepState.PROCESSING, StepState.FAILED, StepState.CANCELED}),
    StepState.PROCESSING: frozenset({StepState.COMPLETED, StepState.FAILED, StepState.CANCELED}),
    StepState.COMPLETED: frozenset(),
    StepState.FAILED: frozenset(),
    StepState.CANCELED: frozenset(),
}

LEASED_STATES = frozenset({RowState.CLAIMED, RowState.PROCESSING})
"""States in which a row has an owner and a lease; in all others it has neither."""

TERMINAL_STATES = frozenset(state for state, moves in ROW_MOVES.items() if not moves)

REQUIRED_COLUMNS: Mapping[RowState, frozenset[str]] = {
    RowState.PENDING: frozenset({"deadline"}),
    RowState.CLAIMED: frozenset({"daemon_id", "lease_expires_at", "deadline"}),
    RowState.PROCESSING: frozenset({"daemon_id", "lease_expires_at", "started_at"}),
    RowState.COMPLETED: frozenset({"started_at", "finished_at", "response_status"}),
    RowState.FAILED: frozenset({"finished_at", "response_status", "error"}),
    RowState.CANCELED: frozenset({"finished_at", "response_status"}),
}
"""Columns that a row in a state cannot be without; the CHECK constraints say the same."""

_WIRE_STATUS: Mapping[RowState, ResponseStatus] = {
    RowState.PENDING: ResponseStatus.QUEUED,
    RowState.CLAIMED: ResponseStatus.IN_PROGRESS,
    RowState.PROCESSING: ResponseStatus.IN_PROGRESS,
    RowState.COMPLETED: ResponseStatus.COMPLETED,
    RowState.FAILED: ResponseStatus.FAILED,
    RowState.CANCELED: ResponseStatus.CANCELLED,
}


def apply(state: RowState, change: Change) -> RowState | None:
    """The state after *change*, or None where the table does not allow it."""
    return ROW_MOVES[state].get(change)


def wire_status(state: RowState) -> ResponseStatus:
    """What clients see of a row without a final response; a ``completed`` row may also be ``incomplete``."""
    return _WIRE_STATUS[state]


def ending_change(ending: Ending) -> Change:
    """The change that a response's ending is for its row."""
    match ending:
        case Completed() | Incomplete():
            return Change.COMPLETE
        case Failed():
            return Change.FAIL
        case Cancelled():
            return Change.CANCEL
