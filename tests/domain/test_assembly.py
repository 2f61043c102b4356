"""The flagship property: what was streamed is what GET returns."""

from uuid import UUID

import attrs
import pytest
from hypothesis import example, given

from dwctl_trio.domain.assembly import assemble, fold, terminal_event
from dwctl_trio.domain.events import ResponseCompleted, ResponseFailed, ResponseIncomplete
from dwctl_trio.domain.items import ItemStatus, TextPart
from dwctl_trio.domain.response import (
    TERMINAL_STATUSES,
    Cancelled,
    Completed,
    Failed,
    Incomplete,
    Response,
    ResponseStatus,
)
from dwctl_trio.domain.steps import ModelCall, Step, StepState
from dwctl_trio.domain.turn import FinishReason, ModelTurn, TextFragment
from dwctl_trio.domain.usage import Usage
from dwctl_trio.testing.domain_strategies import Run, runs
from dwctl_trio.testing.example_runs import (
    CANCELLED,
    ERROR,
    EVERY_KIND,
    HANDED_OVER,
    NEVER_RAN,
    TWO_TURNS,
    call,
    opening,
    run,
    turn,
)


@given(run=runs())
@example(run=EVERY_KIND)
@example(run=TWO_TURNS)
@example(run=HANDED_OVER)
@example(run=NEVER_RAN)
def test_the_fold_of_the_events_is_the_assembly_of_the_chain(run: Run) -> None:
    assert fold(numbered.event for numbered in run.events) == assemble(
        run.opening, run.chain, run.ending, ended_at=run.ended_at
    )


@given(run=runs())
def test_the_fold_takes_output_from_item_events_never_from_a_snapshot(run: Run) -> None:
    *before, last = [numbered.event for numbered in run.events]
    assert isinstance(last, ResponseCompleted | ResponseIncomplete | ResponseFailed)
    emptied = attrs.evolve(last, response=attrs.evolve(last.response, output=()))

    assert fold([*before, emptied]).output == run.response.output


@given(run=runs())
def test_assembling_changes_the_outcome_and_nothing_else(run: Run) -> None:
    outcome = {"status", "output", "usage", "error", "incomplete_reason", "completed_at"}
    kept = [field.name for field in attrs.fields(Response) if field.name not in outcome]

    assert [getattr(run.response, name) for name in kept] == [getattr(run.opening, name) for name in kept]


@given(run=runs())
def test_the_ending_decides_the_outcome(run: Run) -> None:
    response = run.response
    outcome = (response.status, response.error, response.incomplete_reason, response.completed_at)

    match run.ending:
        case Completed():
            assert outcome == (ResponseStatus.COMPLETED, None, None, run.ended_at)
        case Incomplete(reason=reason):
            assert outcome == (ResponseStatus.INCOMPLETE, None, reason, None)
        case Failed(error=error):
            assert outcome == (ResponseStatus.FAILED, error, None, None)
        case Cancelled():
            assert outcome == (ResponseStatus.CANCELLED, None, None, None)


def test_what_a_cut_short_call_had_said_stays_in_the_output() -> None:
    (message,) = CANCELLED.response.output

    assert message.content == (TextPart(text="a"),)
    assert message.status is ItemStatus.INCOMPLETE


def test_the_part_of_a_dead_attempt_stays_before_the_answer_of_the_next() -> None:
    assert [item.content for item in HANDED_OVER.response.output] == [
        (TextPart(text="ha"),),
        (TextPart(text="hallo"),),
    ]


def test_usage_is_summed_over_the_turns_that_report_it() -> None:
    counted = Usage(input_tokens=3, output_tokens=5)

    rounds = [turn(call(0, ""), usage=usage, reason=FinishReason.TOOL_CALLS) for usage in (counted, None, counted)]

    assert run(Completed(), *rounds).response.usage == Usage(input_tokens=6, output_tokens=10)


def test_usage_that_nobody_reports_is_unknown_and_not_zero() -> None:
    assert run(Completed(), turn(TextFragment("a"))).response.usage is None


def test_the_usage_of_a_failed_call_counts() -> None:
    counted = Usage(input_tokens=3, output_tokens=0)
    part = ModelTurn(items=(), finish_reason=None, usage=counted)
    step = Step(id=UUID(int=1), sequence=1, descriptor=ModelCall(), state=StepState.FAILED, result=part, error=ERROR)

    assert assemble(opening(), [step], Failed(error=ERROR), ended_at=101).usage == counted


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (ResponseStatus.COMPLETED, ResponseCompleted),
        (ResponseStatus.INCOMPLETE, ResponseIncomplete),
        (ResponseStatus.CANCELLED, ResponseIncomplete),
        (ResponseStatus.FAILED, ResponseFailed),
    ],
)
def test_each_terminal_status_has_its_event(status: ResponseStatus, kind: type) -> None:
    response = opening(status)
    assert terminal_event(response) == kind(response)


@pytest.mark.parametrize("status", sorted(set(ResponseStatus) - TERMINAL_STATUSES))
def test_a_response_that_goes_on_has_no_terminal_event(status: ResponseStatus) -> None:
    with pytest.raises(AssertionError, match=status):
        terminal_event(opening(status))
