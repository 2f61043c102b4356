"""A stream that goes on after a crash: nothing is said twice, nothing is missing, and it folds to the chain."""

from collections.abc import Sequence

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.domain.successor import Crash, Successor, as_queued, as_told, crashes_of, item_of

from dwctl_trio.domain.assembly import chain_output, fold, running_calls
from dwctl_trio.domain.event_grammar import check_stream
from dwctl_trio.domain.items import ItemStatus
from dwctl_trio.domain.response import Completed, ErrorCode, ErrorType, Failed, ResponseError
from dwctl_trio.domain.steps import StepState, ToolCall
from dwctl_trio.domain.told import told_by
from dwctl_trio.domain.turn import ContentFragment, FinishReason, TextFragment
from dwctl_trio.protocol.event_reading import read_events
from dwctl_trio.protocol.event_stream import EventEncoder
from dwctl_trio.testing.domain_strategies import RETRIED_TURN, answers, runs
from dwctl_trio.testing.example_runs import AGENTS, EVERY_KIND, EXAMPLE_RUNS, call, cut_short, turn
from dwctl_trio.testing.example_runs import run as example_run
from dwctl_trio.testing.played_runs import AGENT_NAME, PlayedCall, PlayedTurn, Run, number

_CREATED = 2
"""Events that are stored with the row."""
_PLACES = st.integers(0, 10**6)


def _pick(run: Run, moment: int, said: int) -> tuple[Crash, int]:
    """One of the crashes of *run*, and how many of its events were stored by then."""
    crashes = crashes_of(as_queued(run))
    crash = crashes[moment % len(crashes)]
    return crash, _CREATED + said % (len(crash.events) - _CREATED + 1)


def _check(crash: Crash, said: int, answer: Sequence[ContentFragment]) -> None:
    successor = Successor(crash, crash.events[:said])
    _check_retold(crash, successor)
    _check_sub_agents(successor)
    response = successor.go_on(answer)
    assert check_stream(number(successor.events)) is None
    assert fold(successor.events) == response

    cancelled = Successor(crash, crash.events[:said])
    response = cancelled.cancel()
    assert check_stream(number(cancelled.events)) is None
    assert fold(cancelled.events) == response


def _check_retold(crash: Crash, successor: Successor) -> None:
    assert check_stream(number(successor.events), prefix=True) is None
    told = told_by(as_told(successor.events))
    running = {index for index, _ in running_calls(successor.top).values()}
    assert {index for index, item in enumerate(told.items) if not item.is_whole} == running
    assert len(told.items) == len(chain_output(successor.top))
    for heard in range(len(successor.retold) + 1):  # the successor may die at once
        again = Successor(crash, [*successor.said, *successor.retold[:heard]])
        assert again.steps == successor.steps
        assert again.retold == successor.retold[heard:]


def _check_sub_agents(successor: Successor) -> None:
    """Those that still run have been shown whole."""
    told = told_by(as_told(successor.events))
    for step in successor.shown:
        if step.is_open and isinstance(step.descriptor, ToolCall):
            inside = [one for one in successor.steps if one.parent_step_id == step.id]
            shown = told.agents.get(item_of(step, successor.steps), ())
            running = {index for index, _ in running_calls(inside).values()}
            assert [item.item.id for item in shown] == [item.id for item in chain_output(inside)]
            assert {index for index, item in enumerate(shown) if not item.is_whole} == running


@pytest.mark.slow
@given(run=runs(max_fragments=5), moment=_PLACES, said=_PLACES, answer=answers(max_size=3))
def test_whoever_followed_a_dead_process_hears_each_thing_once(
    run: Run, moment: int, said: int, answer: Sequence[ContentFragment]
) -> None:
    _check(*_pick(run, moment, said), answer)


_LATE = ResponseError(type=ErrorType.TOOL_TIMEOUT, code=ErrorCode.SERVER_ERROR, message="Too late.")
_TIMED_OUT = example_run(
    Completed(),
    turn(
        call(0, "{}", name=AGENT_NAME),
        call(1, "{}", name="lookup"),
        reason=FinishReason.TOOL_CALLS,
        calls=(PlayedCall(agent=(cut_short(TextFragment("i")),), error=_LATE),),
    ),
    turn(TextFragment("a")),
)
"""An agent that runs out of time while it speaks: nobody closes what it said."""


@pytest.mark.slow
@pytest.mark.parametrize("run", [*EXAMPLE_RUNS, _TIMED_OUT])
def test_each_thing_is_heard_once_wherever_an_example_died_and_whatever_was_stored(run: Run) -> None:
    for crash in crashes_of(as_queued(run)):
        for said in range(_CREATED, len(crash.events) + 1):
            _check(crash, said, [TextFragment("again")])


@pytest.mark.slow
@given(run=runs(max_fragments=5), moment=_PLACES, said=_PLACES, split=_PLACES)
@example(run=AGENTS, moment=3, said=40, split=7)
@example(run=EVERY_KIND, moment=0, said=20, split=11)
def test_what_is_read_from_stored_frames_is_gone_on_with_in_the_same_frames(
    run: Run, moment: int, said: int, split: int
) -> None:
    crash, count = _pick(run, moment, said)
    frames = EventEncoder().encode(0, crash.events[:count])
    ends = [place + 2 for place in range(len(frames)) if frames.startswith(b"\n\n", place)]
    cut = ends[split % len(ends)]
    from_memory = Successor(crash, crash.events[:count])
    from_frames = Successor(crash, crash.events[:count], told_by(read_events([frames[:cut], frames[cut:]])))

    assert [item.events for item in from_frames.told.items] == [item.events for item in from_memory.told.items]
    assert from_frames.told.agents.keys() == from_memory.told.agents.keys()
    encode = EventEncoder().encode
    assert encode(count, from_frames.retold) == EventEncoder().encode(count, from_memory.retold)


_CALLS = (TextFragment("a"), call(0, "{}", name="search"), call(1, "{", name="lookup"), call(2, "{}"))


@pytest.mark.parametrize("reason", [None, FinishReason.TOOL_CALLS])
def test_a_turn_that_is_asked_for_again_stays_in_the_output(reason: FinishReason | None) -> None:
    failed = PlayedTurn(fragments=_CALLS, finish_reason=reason, state=StepState.FAILED, error=RETRIED_TURN)
    earlier = turn(*_CALLS[:2], reason=FinishReason.TOOL_CALLS)
    crash = crashes_of(as_queued(example_run(Failed(error=RETRIED_TURN), earlier, failed)))[-1]
    assert crash.steps[-1].error == RETRIED_TURN

    for said in range(_CREATED, len(crash.events) + 1):
        _check(crash, said, [TextFragment("again")])

    response = Successor(crash, crash.events).go_on([TextFragment("again")])
    assert [item.status.value for item in response.output] == [
        *("completed", "completed"),
        *(["incomplete"] * 4 if reason is None else ["completed", "incomplete", "incomplete", "completed"]),
        "completed",
    ]


def test_items_of_a_dead_turn_are_closed_as_incomplete_and_stay() -> None:
    (crash, *_) = crashes_of(as_queued(EVERY_KIND))
    for said in range(_CREATED, len(crash.events) + 1):
        successor = Successor(crash, crash.events[:said])
        whole = [item for item in successor.told.items if item.is_whole]
        told = [item for item in successor.told.items if not item.is_whole]
        response = successor.go_on([TextFragment("again")])

        kept, (answer,) = response.output[: len(whole) + len(told)], response.output[len(whole) + len(told) :]
        assert answer.status is ItemStatus.COMPLETED
        assert [item for item in kept if item.status is ItemStatus.INCOMPLETE] == [
            attrs.evolve(item.item, status=ItemStatus.INCOMPLETE) for item in told
        ]
