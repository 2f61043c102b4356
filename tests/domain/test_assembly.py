"""The flagship property: what was streamed is what GET returns."""

from uuid import UUID

import attrs
import pytest
from hypothesis import example, given

from dwctl_trio.domain.assembly import assemble, fold, terminal_event
from dwctl_trio.domain.event_grammar import check_stream
from dwctl_trio.domain.events import (
    OutputItemAdded,
    ResponseCompleted,
    ResponseFailed,
    ResponseIncomplete,
    SubAgentEvent,
)
from dwctl_trio.domain.items import ItemStatus, McpCall, Message, TextPart
from dwctl_trio.domain.recovery import ABANDONED_CALL
from dwctl_trio.domain.response import (
    TERMINAL_STATUSES,
    Cancelled,
    Completed,
    Failed,
    Incomplete,
    Response,
    ResponseError,
    ResponseStatus,
)
from dwctl_trio.domain.steps import ModelCall, Step, StepState
from dwctl_trio.domain.turn import FinishReason, ModelTurn, TextFragment
from dwctl_trio.domain.usage import Usage
from dwctl_trio.testing.domain_strategies import errors, runs
from dwctl_trio.testing.example_runs import (
    AGENTS,
    CANCELLED,
    ERROR,
    EVERY_KIND,
    HANDED_OVER,
    MIXED,
    NEVER_RAN,
    SIBLINGS,
    TOOLS_CANCELLED,
    TWO_TURNS,
    call,
    opening,
    run,
    turn,
)
from dwctl_trio.testing.played_runs import AGENT_NAME, PlayedCall, Run, cut_run


@pytest.mark.slow
@given(run=runs())
@example(run=EVERY_KIND)
@example(run=TWO_TURNS)
@example(run=SIBLINGS)
@example(run=MIXED)
@example(run=AGENTS)
@example(run=HANDED_OVER)
@example(run=NEVER_RAN)
def test_the_fold_of_the_events_is_the_assembly_of_the_chain(run: Run) -> None:
    assert fold(numbered.event for numbered in run.events) == assemble(
        run.opening, run.chain, run.ending, ended_at=run.ended_at
    )


@pytest.mark.slow
@given(run=runs(), error=errors())
@example(run=SIBLINGS, error=ERROR)
@example(run=AGENTS, error=ERROR)
def test_a_run_that_is_cut_anywhere_folds_to_its_assembly_and_keeps_what_was_shown(
    run: Run, error: ResponseError
) -> None:
    for point in range(1, run.points + 1):
        for ending in (Cancelled(), Failed(error=error)):
            cut = cut_run(run, point, ending)
            events = [numbered.event for numbered in cut.events]

            assert check_stream(cut.events) is None
            assert fold(events) == assemble(run.opening, cut.chain, ending, ended_at=run.ended_at)
            assert [item.id for item in cut.response.output] == [
                event.item.id for event in events if isinstance(event, OutputItemAdded)
            ]
            assert not any(step.is_open for step in cut.chain)


@pytest.mark.slow
@given(run=runs())
def test_the_fold_takes_output_from_item_events_never_from_a_snapshot(run: Run) -> None:
    *before, last = [numbered.event for numbered in run.events]
    assert isinstance(last, ResponseCompleted | ResponseIncomplete | ResponseFailed)
    emptied = attrs.evolve(last, response=attrs.evolve(last.response, output=()))

    assert fold([*before, emptied]).output == run.response.output


@pytest.mark.slow
@given(run=runs())
def test_assembling_changes_the_outcome_and_nothing_else(run: Run) -> None:
    outcome = {"status", "output", "usage", "error", "incomplete_reason", "completed_at"}
    kept = [field.name for field in attrs.fields(Response) if field.name not in outcome]

    assert [getattr(run.response, name) for name in kept] == [getattr(run.opening, name) for name in kept]


@pytest.mark.slow
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


def test_each_call_of_the_server_is_shown_with_what_became_of_it() -> None:
    failed, completed, not_made, _ = SIBLINGS.response.output

    assert (failed.status, failed.output, failed.error) == (ItemStatus.FAILED, None, ABANDONED_CALL.message)
    assert (completed.status, completed.output, completed.error) == (ItemStatus.COMPLETED, "x", None)
    assert (not_made.status, not_made.output, not_made.error) == (ItemStatus.INCOMPLETE, None, None)


def test_a_call_that_was_cut_off_is_incomplete() -> None:
    assert [(item.status, item.output, item.error) for item in TOOLS_CANCELLED.response.output] == [
        (ItemStatus.INCOMPLETE, None, None),
        (ItemStatus.INCOMPLETE, None, None),
    ]


def test_a_call_is_answered_by_the_step_of_its_own_turn_even_if_another_has_its_id() -> None:
    rounds = [
        turn(call(0, "{}", name="search"), calls=(PlayedCall(output=output),), reason=FinishReason.TOOL_CALLS)
        for output in ("first", "second")
    ]

    output = run(Completed(), *rounds, turn()).response.output

    assert [(item.call_id, item.output) for item in output] == [("call_0", "first"), ("call_0", "second")]


def test_what_sub_agents_say_is_not_the_responses_output() -> None:
    assert [type(item) for item in AGENTS.response.output] == [McpCall, McpCall, Message]
    assert AGENTS.response.output[0].output == "b"


def test_the_usage_of_sub_agents_counts() -> None:
    counted = Usage(input_tokens=3, output_tokens=5)
    agent = PlayedCall(agent=(turn(usage=counted),))

    tool_round = turn(call(0, "", name=AGENT_NAME), usage=counted, calls=(agent,))

    assert run(Completed(), tool_round, turn()).response.usage == Usage(input_tokens=6, output_tokens=10)


def test_sub_agents_that_nobody_asks_to_see_change_nothing_but_the_stream() -> None:
    unseen = run(Completed(), *AGENTS.turns, schedule=AGENTS.schedule, shows_sub_agents=False)

    assert unseen.response.output == AGENTS.response.output
    assert [event.event for event in unseen.events if isinstance(event.event, SubAgentEvent)] == []
    assert len(unseen.events) < len(AGENTS.events)


def test_usage_is_summed_over_the_turns_that_report_it() -> None:
    counted = Usage(input_tokens=3, output_tokens=5)

    rounds = [
        turn(call(0, "", name="search"), usage=usage, reason=FinishReason.TOOL_CALLS)
        for usage in (counted, None, counted)
    ]

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
