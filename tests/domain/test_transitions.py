"""One decision at a time: what follows from a chain, and what a turn may do.

What holds for whole loops is in ``test_loop_decisions.py``.
"""

from uuid import UUID

import attrs
import pytest
from hypothesis import given

from dwctl_trio.domain.items import CALL_TYPES, CallKind, ItemStatus
from dwctl_trio.domain.limits import DEFAULT_LIMITS
from dwctl_trio.domain.recovery import ABANDONED_CALL, ABANDONED_TURN
from dwctl_trio.domain.response import (
    Cancelled,
    Completed,
    Ending,
    ErrorCode,
    ErrorType,
    Failed,
    Incomplete,
    IncompleteReason,
    ResponseError,
)
from dwctl_trio.domain.steps import ModelCall, Step, StepState, ToolCall, ToolOutput
from dwctl_trio.domain.tools import ALL_SERVER_TOOLS, ChoiceMode, ToolChoice
from dwctl_trio.domain.transitions import (
    Action,
    AppendSteps,
    Finish,
    TurnPlan,
    callable_tools,
    calls_left,
    is_superseded,
    next_action,
    output_tokens_left,
    plan_turn,
)
from dwctl_trio.domain.turn import FinishReason, ModelTurn
from dwctl_trio.domain.usage import Usage
from dwctl_trio.testing.domain_strategies import RETRIED_TURN, runs
from dwctl_trio.testing.example_runs import opening
from dwctl_trio.testing.played_runs import OFFERED_TOOLS, Run
from dwctl_trio.testing.toy_loop import MODEL_FAILURE, Play, Scene, play

_REQUEST = opening().request
_ANSWER = Scene(reason=FinishReason.STOP)


def _decide(*chain: Step, max_tool_calls: int | None = None, tree: tuple[Step, ...] | None = None) -> Action:
    request = attrs.evolve(_REQUEST, max_tool_calls=max_tool_calls)
    return next_action(chain, request=request, limits=DEFAULT_LIMITS, tree=tree)


def _turn(
    *kinds: CallKind,
    sequence: int = 1,
    reason: FinishReason = FinishReason.TOOL_CALLS,
    status: ItemStatus = ItemStatus.IN_PROGRESS,
    tokens: int | None = None,
) -> Step:
    calls = [
        CALL_TYPES[kind](id=f"x_{place}", status=status, call_id=f"call_{place}", name="search", arguments="{}")
        for place, kind in enumerate(kinds)
    ]
    usage = None if tokens is None else Usage(input_tokens=1, output_tokens=tokens)
    turn = ModelTurn(items=tuple(calls), finish_reason=reason, usage=usage)
    state = StepState.COMPLETED
    return Step(id=UUID(int=sequence), sequence=sequence, descriptor=ModelCall(), state=state, result=turn)


def _tool(place: int, *, sequence: int, state: StepState = StepState.COMPLETED, name: str = "search") -> Step:
    return Step(
        id=UUID(int=sequence),
        sequence=sequence,
        descriptor=ToolCall(call_id=f"call_{place}", name=name, arguments="{}"),
        state=state,
        result=ToolOutput(output="found") if state is StepState.COMPLETED else None,
        error=ABANDONED_CALL if state is StepState.FAILED else None,
    )


# -- what follows


def test_an_empty_chain_asks_the_model() -> None:
    assert _decide() == AppendSteps((ModelCall(),))


@pytest.mark.parametrize(
    ("scene", "ending"),
    [
        pytest.param(_ANSWER, Completed(), id="answer"),
        pytest.param(Scene(calls=("get_weather",)), Completed(), id="client call"),
        pytest.param(Scene(calls=("search", "get_weather")), Completed(), id="server and client call"),
        pytest.param(Scene(fails=True), Failed(error=MODEL_FAILURE), id="failure"),
        pytest.param(
            Scene(calls=("search",), reason=FinishReason.LENGTH),
            Incomplete(reason=IncompleteReason.MAX_OUTPUT_TOKENS),
            id="length",
        ),
        pytest.param(
            Scene(reason=FinishReason.CONTENT_FILTER),
            Incomplete(reason=IncompleteReason.CONTENT_FILTER),
            id="filter",
        ),
    ],
)
def test_one_scene_leads_to_its_end(scene: Scene, ending: Ending) -> None:
    assert play(Play(script=(scene,)))[0] == ending


def test_the_answer_in_the_last_turn_is_still_given() -> None:
    script = (Scene(calls=("search",)), _ANSWER)

    assert play(Play(script=script, limits=attrs.evolve(DEFAULT_LIMITS, turns=2)))[0] == Completed()


@pytest.mark.parametrize(("bound", "enough"), [("turns", 2), ("steps", 3), ("tool_calls", 1)])
def test_what_a_bound_allows_is_done_and_one_more_is_refused(bound: str, enough: int) -> None:
    script = (Scene(calls=("search",)), _ANSWER)

    ending, _ = play(Play(script=script, limits=attrs.evolve(DEFAULT_LIMITS, **{bound: enough})))
    refused, _ = play(Play(script=script, limits=attrs.evolve(DEFAULT_LIMITS, **{bound: enough - 1})))

    assert ending == Completed()
    assert refused == Failed(
        error=ResponseError(
            type=ErrorType.MAX_ITERATIONS_EXCEEDED,
            code=ErrorCode.SERVER_ERROR,
            message="The response needs more model turns or steps than this server allows."
            " Ask for less in one response.",
        )
    )


def test_calls_are_made_side_by_side_and_with_their_arguments_as_written() -> None:
    assert _decide(_turn(CallKind.SERVER, CallKind.FUNCTION, CallKind.SERVER)) == AppendSteps(
        (
            ToolCall(call_id="call_0", name="search", arguments="{}"),
            ToolCall(call_id="call_2", name="search", arguments="{}"),
        )
    )


@pytest.mark.parametrize("state", [StepState.COMPLETED, StepState.FAILED])
def test_a_failed_call_is_an_answer_like_any_other(state: StepState) -> None:
    assert _decide(_turn(CallKind.SERVER), _tool(0, sequence=2, state=state)) == AppendSteps((ModelCall(),))


def test_a_call_that_has_no_step_yet_is_made_after_its_siblings() -> None:
    action = _decide(_turn(CallKind.SERVER, CallKind.SERVER), _tool(0, sequence=2))

    assert action == AppendSteps((ToolCall(call_id="call_1", name="search", arguments="{}"),))


def test_an_answer_to_an_earlier_call_of_the_same_id_does_not_count() -> None:
    again = _turn(CallKind.SERVER, sequence=3)

    action = _decide(_turn(CallKind.SERVER), _tool(0, sequence=2), again)

    assert action == AppendSteps((ToolCall(call_id="call_0", name="search", arguments="{}"),))


def test_calls_of_the_server_are_made_even_if_the_model_says_that_it_has_stopped() -> None:
    assert isinstance(_decide(_turn(CallKind.SERVER, reason=FinishReason.STOP)), AppendSteps)


@pytest.mark.parametrize("kind", CallKind)
def test_an_incomplete_call_is_not_made(kind: CallKind) -> None:
    assert _decide(_turn(kind, status=ItemStatus.INCOMPLETE)) == Finish(Completed())


def test_calls_beyond_the_allowed_number_are_not_made_and_the_model_goes_on() -> None:
    turn = _turn(CallKind.SERVER, CallKind.SERVER)

    assert _decide(turn, max_tool_calls=1) == AppendSteps((ToolCall(call_id="call_0", name="search", arguments="{}"),))
    assert _decide(turn, _tool(0, sequence=2), max_tool_calls=1) == AppendSteps((ModelCall(),))


def test_a_mixed_turn_is_handed_over_even_if_no_more_calls_are_allowed() -> None:
    before = (_turn(CallKind.SERVER), _tool(0, sequence=2))

    action = _decide(*before, _turn(CallKind.SERVER, CallKind.FUNCTION, sequence=3), max_tool_calls=1)

    assert action == Finish(Completed())


@pytest.mark.parametrize("error", [ABANDONED_TURN, RETRIED_TURN])
@pytest.mark.parametrize("kinds", [(), (CallKind.SERVER,)])
def test_a_superseded_turn_is_asked_for_again_and_does_not_count_as_one(
    error: ResponseError, kinds: tuple[CallKind, ...]
) -> None:
    chain = [attrs.evolve(_turn(*kinds), state=StepState.FAILED, error=error)]

    action = next_action(chain, request=_REQUEST, limits=attrs.evolve(DEFAULT_LIMITS, turns=1), tree=chain)

    assert is_superseded(*chain)
    assert action == AppendSteps((ModelCall(),))


def test_nothing_but_a_model_call_that_came_to_nothing_is_superseded() -> None:
    failed = attrs.evolve(_turn(), state=StepState.FAILED, error=MODEL_FAILURE)
    abandoned = _tool(0, sequence=2, state=StepState.FAILED)

    assert abandoned.error == ABANDONED_CALL
    assert [is_superseded(step) for step in (failed, _turn(), abandoned)] == [False] * 3


@pytest.mark.slow
@given(run=runs())
def test_a_cancelled_step_of_any_kind_ends_its_loop_as_cancelled(run: Run) -> None:
    chain = [step for step in run.chain if step.parent_step_id is None]

    action = next_action(chain, request=run.opening.request, limits=DEFAULT_LIMITS, tree=run.chain)

    assert (action == Finish(Cancelled())) is any(step.state is StepState.CANCELED for step in chain)


def test_a_sub_agent_that_is_broken_off_cancels_nothing_but_itself() -> None:
    chain = (_turn(CallKind.SERVER), _tool(0, sequence=2, state=StepState.FAILED))
    inside = attrs.evolve(_turn(sequence=3), state=StepState.CANCELED, parent_step_id=chain[1].id)

    assert _decide(*chain, tree=(*chain, inside)) == AppendSteps((ModelCall(),))


# -- what is left


def test_calls_are_counted_over_the_whole_tree() -> None:
    tree = (_turn(CallKind.SERVER), _tool(0, sequence=2), _tool(1, sequence=3, state=StepState.FAILED))

    assert calls_left(tree, _REQUEST) is None
    assert calls_left(tree, attrs.evolve(_REQUEST, max_tool_calls=3)) == 1
    assert calls_left(tree, attrs.evolve(_REQUEST, max_tool_calls=1)) == 0
    assert _decide(_turn(CallKind.SERVER), max_tool_calls=2, tree=tree) == AppendSteps((ModelCall(),))


def test_tokens_are_counted_over_all_turns_that_report_them() -> None:
    tree = (_turn(tokens=7), _turn(sequence=2), _turn(sequence=3, tokens=8))

    assert output_tokens_left(tree, _REQUEST) is None
    assert output_tokens_left(tree, attrs.evolve(_REQUEST, max_output_tokens=16)) == 1
    assert output_tokens_left(tree, attrs.evolve(_REQUEST, max_output_tokens=10)) == 0
    assert output_tokens_left(tree[1:2], attrs.evolve(_REQUEST, max_output_tokens=16)) == 16


def test_steps_are_counted_over_the_whole_tree() -> None:
    tree = (_turn(CallKind.SERVER), _tool(0, sequence=2, state=StepState.PROCESSING))

    for steps, expected in ((3, AppendSteps), (2, Finish)):
        limits = attrs.evolve(DEFAULT_LIMITS, steps=steps)
        assert isinstance(next_action((), request=_REQUEST, limits=limits, tree=tree), expected)


# -- what a turn may do

_REQUIRED = ToolChoice(mode=ChoiceMode.REQUIRED)
_CALLED = (_turn(CallKind.SERVER), _tool(0, sequence=2))


def _plan(choice: ToolChoice, *chain: Step, max_tool_calls: int | None = None) -> TurnPlan:
    request = attrs.evolve(_REQUEST, max_tool_calls=max_tool_calls)
    return plan_turn(chain, tools=OFFERED_TOOLS, choice=choice, request=request, tree=chain)


def test_where_any_of_the_servers_tools_is_demanded_the_model_is_offered_these_and_must_call_one() -> None:
    plan = _plan(attrs.evolve(_REQUIRED, name=ALL_SERVER_TOOLS))

    assert {tool.kind for tool in plan.tools} == {CallKind.SERVER}
    assert (plan.tool_choice.mode, plan.tool_choice.name) == (ChoiceMode.REQUIRED, None)
    assert _plan(attrs.evolve(_REQUIRED, name=ALL_SERVER_TOOLS), *_CALLED).tool_choice == ToolChoice()


@pytest.mark.parametrize("choice", [ToolChoice(), _REQUIRED, attrs.evolve(_REQUIRED, name="search")])
def test_the_first_turn_is_asked_as_the_client_asked(choice: ToolChoice) -> None:
    assert _plan(choice) == TurnPlan(tools=OFFERED_TOOLS, tool_choice=choice, max_output_tokens=None)


@pytest.mark.parametrize("name", [None, "search"])
def test_a_demand_that_was_met_is_not_made_again(name: str | None) -> None:
    assert _plan(attrs.evolve(_REQUIRED, name=name), *_CALLED).tool_choice == ToolChoice()


@pytest.mark.parametrize("name", ["get_weather", "nothing", ALL_SERVER_TOOLS])
def test_a_demand_for_one_tool_is_not_met_by_the_call_of_another(name: str) -> None:
    other = _tool(0, sequence=2, state=StepState.FAILED, name="run_code")
    demand = attrs.evolve(_REQUIRED, name=name)
    assert _plan(demand, _CALLED[0], other) == _plan(demand)


def test_where_one_tool_is_demanded_only_that_may_be_called_until_it_was() -> None:
    demand = attrs.evolve(_REQUIRED, name="search")
    turns = [_turn(CallKind.SERVER), _tool(0, sequence=2), _turn(CallKind.SERVER, sequence=3), _tool(0, sequence=4)]

    assert [tool.name for tool in _plan(demand).callable_tools] == ["search"]
    assert _plan(demand, *_CALLED).callable_tools == OFFERED_TOOLS
    for call, names in ((turns[1], ["search"]), (turns[3], [tool.name for tool in OFFERED_TOOLS])):
        allowed = callable_tools(turns, tools=OFFERED_TOOLS, choice=demand, call=call)
        assert [tool.name for tool in allowed] == names


def test_a_demand_that_a_crash_interrupted_is_made_again() -> None:
    abandoned = attrs.evolve(_turn(), state=StepState.FAILED, error=ABANDONED_TURN, result=None)
    assert _plan(_REQUIRED, abandoned).tool_choice == _REQUIRED


def test_a_ban_holds_for_every_turn() -> None:
    banned = ToolChoice(mode=ChoiceMode.NONE)
    assert _plan(banned, *_CALLED).tool_choice == banned


def test_only_what_is_allowed_is_offered_in_every_turn() -> None:
    allowed = ToolChoice(mode=ChoiceMode.REQUIRED, allowed=("search", "get_weather"))

    for chain in ((), _CALLED):
        assert [tool.name for tool in _plan(allowed, *chain).tools] == ["get_weather", "search"]
    assert _plan(allowed, *_CALLED).tool_choice == attrs.evolve(allowed, mode=ChoiceMode.AUTO)


def test_a_tool_that_is_not_offered_cannot_be_demanded() -> None:
    assert _plan(attrs.evolve(_REQUIRED, name="gone_from_the_configuration")).tool_choice == ToolChoice()


def test_only_the_clients_tools_are_offered_when_no_more_calls_are_allowed() -> None:
    assert [tool.name for tool in _plan(ToolChoice(), *_CALLED, max_tool_calls=1).tools] == ["get_weather", "run_code"]
