"""A chain told again: the grammar holds, it folds to the chain's output, and what runs stays open."""

from collections.abc import Sequence
from uuid import UUID

import attrs
import pytest
from hypothesis import example, given

from dwctl_trio.domain.assembly import chain_output, end_call, fold, history_output, running_calls, terminal_event
from dwctl_trio.domain.event_grammar import check_stream
from dwctl_trio.domain.events import (
    Event,
    ItemEvent,
    OutputItemAdded,
    OutputItemDone,
    ResponseCreated,
    ResponseInProgress,
    ResponseQueued,
)
from dwctl_trio.domain.items import ItemStatus, McpCall
from dwctl_trio.domain.recovery import ABANDONED_CALL, ABANDONED_TURN, recover_chain
from dwctl_trio.domain.response import Response, ResponseStatus
from dwctl_trio.domain.retelling import retell
from dwctl_trio.domain.steps import Chain, ModelCall, Step, StepState, ToolCall
from dwctl_trio.domain.told import NOTHING_TOLD
from dwctl_trio.domain.turn import FinishReason, ModelTurn
from dwctl_trio.domain.turn_output import close_call
from dwctl_trio.testing.domain_strategies import RETRIED_TURN, runs
from dwctl_trio.testing.example_runs import AGENTS, EVERY_KIND, HANDED_OVER, MIXED, SIBLINGS, TOOLS_CANCELLED
from dwctl_trio.testing.played_runs import CATALOG, Run, moments_of, number


def _top(chain: Chain) -> Chain:
    return [step for step in chain if step.parent_step_id is None]


def _opening_events(opening: Response) -> list[Event]:
    queued = [ResponseQueued(opening)] if opening.status is ResponseStatus.QUEUED else []
    begun = attrs.evolve(opening, status=ResponseStatus.IN_PROGRESS)
    return [ResponseCreated(opening), *queued, ResponseInProgress(begun)]


def _broken_off(chain: Chain) -> list[ItemEvent]:
    """The events that end what runs, as if the response ended now."""
    running = running_calls(chain).values()
    return [event for index, call in running for event in close_call(index, end_call(call, None))]


def _open_items(events: Sequence[Event]) -> dict[int, str]:
    added = {event.output_index: event.item.id for event in events if isinstance(event, OutputItemAdded)}
    done = {event.output_index for event in events if isinstance(event, OutputItemDone)}
    return {index: item_id for index, item_id in added.items() if index not in done}


@pytest.mark.slow
@given(run=runs())
@example(run=EVERY_KIND)
@example(run=SIBLINGS)
@example(run=MIXED)
@example(run=AGENTS)
@example(run=HANDED_OVER)
@example(run=TOOLS_CANCELLED)
def test_a_run_that_is_told_again_is_the_same_response(run: Run) -> None:
    chain = _top(run.chain)
    told = [*_opening_events(run.opening), *retell(chain), *_broken_off(chain), terminal_event(run.response)]

    if run.turns:
        assert check_stream(number(told)) is None
    assert fold(told) == run.response


@pytest.mark.slow
@given(run=runs())
@example(run=SIBLINGS)
@example(run=AGENTS)
def test_what_a_dead_process_left_can_be_told_again_wherever_it_died(run: Run) -> None:
    for moment in moments_of(run):
        for chain in (_top(moment.steps), _top(recover_chain(moment.steps, NOTHING_TOLD, CATALOG))):
            told = [*_opening_events(run.opening), *retell(chain)]

            assert check_stream(number(told), prefix=True) is None
            assert _open_items(told) == {index: call.id for index, call in running_calls(chain).values()}
            assert fold([*told, *_broken_off(chain)]).output == chain_output(chain)


@pytest.mark.slow
@given(run=runs())
def test_what_is_told_again_after_a_crash_has_the_ids_that_were_told_before(run: Run) -> None:
    told = [event.event.item for event in run.events if isinstance(event.event, OutputItemAdded)]
    whole = [event.item for event in retell(_top(run.chain)) if isinstance(event, OutputItemAdded)]

    assert whole == told


# -- which calls run

_CALLS = tuple(
    McpCall(id=f"mcp_{place}", status=ItemStatus.IN_PROGRESS, call_id=f"call_{place}", name="search")
    for place in range(2)
)
_TURN = Step(
    id=UUID(int=1),
    sequence=1,
    descriptor=ModelCall(),
    state=StepState.COMPLETED,
    result=ModelTurn(items=_CALLS, finish_reason=FinishReason.TOOL_CALLS, usage=None),
)


def _tool(place: int, state: StepState) -> Step:
    call = ToolCall(call_id=f"call_{place}", name="search", arguments="")
    return Step(id=UUID(int=place + 2), sequence=place + 2, descriptor=call, state=state)


def test_a_chain_without_a_turn_runs_nothing() -> None:
    assert running_calls(()) == {}
    assert running_calls([Step(id=UUID(int=1), sequence=1, descriptor=ModelCall(), state=StepState.PROCESSING)]) == {}


def test_calls_run_from_the_end_of_their_turn_to_the_end_of_their_step() -> None:
    ended, running = _tool(0, StepState.CANCELED), _tool(1, StepState.PROCESSING)

    assert running_calls([_TURN]) == {"call_0": (0, _CALLS[0]), "call_1": (1, _CALLS[1])}
    assert running_calls([_TURN, ended, running]) == {"call_1": (1, _CALLS[1])}


def test_places_count_the_items_of_all_turns_before() -> None:
    again = attrs.evolve(_TURN, id=UUID(int=4), sequence=4)
    chain = [_TURN, _tool(0, StepState.CANCELED), _tool(1, StepState.CANCELED), again]

    assert [index for index, _ in running_calls(chain).values()] == [2, 3]


@pytest.mark.parametrize("state", [StepState.PENDING, StepState.PROCESSING, StepState.CANCELED, None])
def test_a_call_without_an_outcome_is_incomplete(state: StepState | None) -> None:
    step = None if state is None else _tool(0, state)
    assert end_call(_CALLS[0], step) == attrs.evolve(_CALLS[0], status=ItemStatus.INCOMPLETE)


def test_a_call_that_was_not_made_with_its_siblings_never_is() -> None:
    for state in (StepState.PROCESSING, StepState.COMPLETED):
        assert "call_1" not in running_calls([_TURN, _tool(0, state)])


def test_a_superseded_turn_runs_nothing_and_is_shown_to_no_model() -> None:
    ended = attrs.evolve(_tool(0, StepState.FAILED), error=ABANDONED_CALL)
    for error in (ABANDONED_TURN, RETRIED_TURN):
        superseded = attrs.evolve(_TURN, id=UUID(int=9), sequence=9, state=StepState.FAILED, error=error)
        chain = [_TURN, ended, superseded]

        assert running_calls(chain) == {}
        assert [item.status.value for item in chain_output(chain)] == ["failed", *["incomplete"] * 3]
        assert history_output(chain) == chain_output([_TURN, ended])
