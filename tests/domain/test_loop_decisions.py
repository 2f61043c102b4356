"""The loop's decisions as a whole: a toy loop plays scripts, dies anywhere and must come to the same end."""

from collections.abc import Iterator
from contextlib import suppress
from uuid import UUID

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dwctl_trio.domain.items import ItemStatus, McpCall
from dwctl_trio.domain.limits import DEFAULT_LIMITS
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.domain.response import Completed, ErrorType, Failed, Incomplete, IncompleteReason
from dwctl_trio.domain.steps import Chain, ModelCall, Step, StepState, ToolCall
from dwctl_trio.domain.tools import ChoiceMode, ToolChoice, may_fire_again
from dwctl_trio.domain.transitions import AppendSteps, Finish, calls_left, output_tokens_left
from dwctl_trio.domain.turn import FinishReason, ModelTurn
from dwctl_trio.testing.played_runs import CATALOG
from dwctl_trio.testing.toy_loop import Crashed, Play, Scene, Script, ToyLoop, chain_under, play

_ANSWER = Scene(reason=FinishReason.STOP)
_ROUND = Scene(calls=("search", "lookup"))
_HELLO = Play(script=(_ANSWER,)).request
_AGENTS = Play(script=(Scene(calls=("researcher", "search", "researcher")), _ANSWER), agents=(_ROUND, _ANSWER))
_MIXED = Play(script=(Scene(calls=("get_weather", "search", "run_code", "lookup")),))


def _scenes(names: tuple[str, ...], *, most_calls: int = 3) -> st.SearchStrategy[Scene]:
    return st.builds(
        Scene,
        calls=st.lists(st.sampled_from(names), max_size=most_calls).map(tuple),
        reason=st.sampled_from([FinishReason.TOOL_CALLS, FinishReason.TOOL_CALLS, *FinishReason]),
        fails=st.sampled_from([False, False, False, True]),
        failing_tools=st.booleans(),
        output_tokens=st.none() | st.integers(0, 20),
    )


_NAMES = ("search", "lookup", "unheard_of", "get_weather", "run_code")
_ROUNDS = st.lists(st.sampled_from(_NAMES[:3]), min_size=1, max_size=3).map(tuple).map(lambda calls: Scene(calls=calls))
_PLAIN: st.SearchStrategy[Script] = st.lists(_ROUNDS | _scenes(_NAMES), min_size=1, max_size=4).map(tuple)
_WITH_AGENTS: st.SearchStrategy[Script] = st.lists(
    _ROUNDS | _scenes(("researcher", "researcher", *_NAMES)), min_size=1, max_size=3
).map(tuple)
_AGENT_SCRIPTS: st.SearchStrategy[Script] = st.lists(
    _scenes(("researcher", "search", "lookup"), most_calls=2), min_size=0, max_size=1
).map(lambda scenes: (*scenes, _ANSWER))
_SCHEDULES = st.lists(st.integers(0, 2), max_size=6).map(tuple)
_CRASHES = st.lists(st.integers(1, 20), max_size=8)

_TURNS = st.integers(1, 4).map(lambda turns: attrs.evolve(DEFAULT_LIMITS, turns=turns, depth=1))
_BOUNDS = st.builds(
    attrs.evolve,
    st.just(DEFAULT_LIMITS),
    turns=st.integers(1, 4),
    steps=st.integers(1, 30),
    tool_calls=st.integers(0, 12),
    depth=st.integers(0, 2),
)
_BOUNDED_REQUESTS: st.SearchStrategy[ResponseRequest] = st.builds(
    attrs.evolve,
    st.just(_HELLO),
    max_tool_calls=st.none() | st.integers(1, 6),
    max_output_tokens=st.none() | st.integers(16, 60),
)
_PLAYS = st.builds(Play, script=_PLAIN, limits=_TURNS, schedule=_SCHEDULES)
_PLAYS_WITH_AGENTS = st.builds(Play, script=_WITH_AGENTS, agents=_AGENT_SCRIPTS, limits=_TURNS, schedule=_SCHEDULES)
_BOUNDED_PLAYS = st.builds(
    Play,
    script=_WITH_AGENTS,
    agents=_AGENT_SCRIPTS | _WITH_AGENTS,
    request=_BOUNDED_REQUESTS,
    limits=_BOUNDS,
    schedule=_SCHEDULES,
)


def _turns(chain: Chain) -> list[ModelTurn]:
    return [step.result for step in chain if isinstance(step.result, ModelTurn)]


def _loops(tree: Chain) -> Iterator[list[Step]]:
    """The chain of the response and those of all sub-agents."""
    for parent in [None, *(step.id for step in tree if isinstance(step.descriptor, ToolCall))]:
        chain = chain_under(tree, parent)
        if chain or parent is None:
            yield chain


def _rounds(chain: Chain) -> list[tuple[ModelTurn, list[Step]]]:
    """Each turn with the tool steps that follow it."""
    rounds: list[tuple[ModelTurn, list[Step]]] = []
    for step in chain:
        if isinstance(step.descriptor, ToolCall):
            rounds[-1][1].append(step)
        elif isinstance(step.result, ModelTurn):
            rounds.append((step.result, []))
    return rounds


def _conversation(tree: Chain, parent: UUID | None = None) -> list[object]:
    """The turns and the calls that were answered, sub-agents' too; what a crash may change is left out."""
    return [
        (turn.items, [(step.descriptor, _conversation(tree, step.id)) for step in steps])
        for turn, steps in _rounds(chain_under(tree, parent))
    ]


def _to_run(turn: ModelTurn) -> list[str]:
    return [item.call_id for item in turn.items if isinstance(item, McpCall) and item.status is ItemStatus.IN_PROGRESS]


# -- resume


@pytest.mark.slow
@given(part=_PLAYS)
@example(part=Play(script=(_ROUND, _ANSWER), schedule=(1, 0)))
@example(part=_AGENTS)
@example(part=_MIXED)
def test_a_crash_at_any_moment_leads_to_the_same_end(part: Play) -> None:
    ending, undisturbed = play(part)
    for dies_at in range(1, undisturbed.moments + 1):
        again, loop = play(part, [dies_at])

        assert again == ending
        assert _conversation(loop.rows) == _conversation(undisturbed.rows)


@given(part=_PLAYS_WITH_AGENTS, crashes=_CRASHES)
@example(part=_AGENTS, crashes=[7, 3, 9])
def test_any_number_of_crashes_leads_to_the_same_end(part: Play, crashes: list[int]) -> None:
    ending, undisturbed = play(part)

    again, loop = play(part, crashes)

    assert again == ending
    assert _conversation(loop.rows) == _conversation(undisturbed.rows)


@given(part=_BOUNDED_PLAYS, crashes=_CRASHES)
@example(part=_AGENTS, crashes=[7, 3, 9])
def test_a_step_that_has_ended_stays_as_it_is_and_is_not_made_again(part: Play, crashes: list[int]) -> None:
    loop = ToyLoop(part)
    for dies_at in [*crashes, None]:
        before, fired = loop.rows, loop.fired.copy()
        _run(loop, dies_at)

        ended = [step for step in before if not step.is_open]
        after = {step.id: step for step in loop.rows}
        assert [after[step.id] for step in ended] == ended
        assert all(loop.fired[step.id] == fired[step.id] for step in ended)


def _run(loop: ToyLoop, dies_at: int | None) -> None:
    with suppress(Crashed):
        loop.run(dies_at=dies_at)


@pytest.mark.slow
@given(part=_BOUNDED_PLAYS, crashes=_CRASHES)
def test_only_tools_that_allow_it_are_called_again_after_a_crash(part: Play, crashes: list[int]) -> None:
    _, loop = play(part, crashes)

    for step in loop.rows:
        may_again = isinstance(step.descriptor, ToolCall) and may_fire_again(CATALOG.get(step.descriptor.name))
        assert loop.fired[step.id] <= 1 or may_again


# -- every call


@pytest.mark.slow
@given(part=_BOUNDED_PLAYS, crashes=_CRASHES)
@example(part=_AGENTS, crashes=[])
@example(part=_MIXED, crashes=[])
def test_each_call_has_one_step_in_order_before_the_model_is_asked_again(part: Play, crashes: list[int]) -> None:
    _, loop = play(part, crashes)

    for chain in _loops(loop.rows):
        rounds = _rounds(chain)
        for number, (turn, steps) in enumerate(rounds, start=1):
            answered = [step.descriptor.call_id for step in steps if isinstance(step.descriptor, ToolCall)]
            assert answered == _to_run(turn)[: len(answered)]
            if len(answered) < len(_to_run(turn)) and number < len(rounds):
                assert calls_left(loop.rows, part.request) == 0


@given(part=_PLAYS_WITH_AGENTS, crashes=_CRASHES)
def test_a_response_without_bounds_answers_every_call_of_a_turn_it_goes_on_from(part: Play, crashes: list[int]) -> None:
    ending, loop = play(part, crashes)

    for chain in _loops(loop.rows):
        for turn, steps in _rounds(chain)[:-1]:
            assert len(steps) == len(_to_run(turn))
    last_turn, last_steps = (_rounds(chain_under(loop.rows, None)) or [(None, [])])[-1]
    if ending == Completed() and last_turn is not None:
        assert len(last_steps) == len(_to_run(last_turn))


# -- bounds


@pytest.mark.slow
@given(part=_BOUNDED_PLAYS, crashes=_CRASHES)
def test_no_bound_is_exceeded_by_all_loops_together_however_often_it_crashes(part: Play, crashes: list[int]) -> None:
    _, loop = play(part, crashes)

    tool_steps = [step for step in loop.rows if isinstance(step.descriptor, ToolCall)]
    assert len(loop.rows) <= part.limits.steps
    assert len(tool_steps) <= part.limits.tool_calls
    assert part.request.max_tool_calls is None or len(tool_steps) <= part.request.max_tool_calls
    assert all(len(_turns(chain)) <= part.limits.turns for chain in _loops(loop.rows))


_USED_UP_BETWEEN_DECISION_AND_CALL = Play(
    script=(Scene(calls=("researcher", "researcher")), _ANSWER),
    agents=(Scene(calls=("search",), output_tokens=8), _ANSWER),
    request=attrs.evolve(_HELLO, max_output_tokens=16),
    schedule=(0, 0, 0, 1, 0, 0, 1, 1),
)


@given(part=_BOUNDED_PLAYS, crashes=_CRASHES)
@example(part=_USED_UP_BETWEEN_DECISION_AND_CALL, crashes=[])
def test_no_model_is_asked_when_the_tokens_are_used_up(part: Play, crashes: list[int]) -> None:
    _, loop = play(part, crashes)

    most = part.request.max_output_tokens
    for plan in loop.plans:
        assert (plan.max_output_tokens is None) is (most is None)
        assert most is None or 1 <= (plan.max_output_tokens or 0) <= most


@given(part=_PLAYS, most=st.integers(1, 6))
@example(part=Play(script=(_ROUND,)), most=3)
def test_exactly_so_many_calls_are_made_as_were_allowed(part: Play, most: int) -> None:
    _, undisturbed = play(part)
    wanted = sum(len(_to_run(turn)) for turn in _turns(undisturbed.rows))

    ending, loop = play(attrs.evolve(part, request=attrs.evolve(_HELLO, max_tool_calls=most)))

    made = sum(isinstance(step.descriptor, ToolCall) for step in loop.rows)
    answered = sum(isinstance(step.descriptor, ToolCall) for step in undisturbed.rows)
    assert made <= min(most, wanted)
    assert made == min(most, answered) or isinstance(ending, Failed)


@given(part=_PLAYS, steps=st.integers(1, 12))
def test_even_endless_crashes_end_at_the_limit_of_steps(part: Play, steps: int) -> None:
    limits = attrs.evolve(DEFAULT_LIMITS, steps=steps)

    _, loop = play(attrs.evolve(part, limits=limits), [2] * (steps + 1))

    assert len(loop.rows) <= steps


def test_used_up_tokens_end_the_response_as_incomplete_when_the_model_would_be_asked_again() -> None:
    scene = attrs.evolve(_ROUND, output_tokens=10)
    request = attrs.evolve(_HELLO, max_output_tokens=20)

    ending, loop = play(Play(script=(scene,), request=request))

    assert ending == Incomplete(reason=IncompleteReason.MAX_OUTPUT_TOKENS)
    assert [plan.max_output_tokens for plan in loop.plans] == [20, 10]
    assert output_tokens_left(loop.rows, request) == 0
    assert [len(steps) for _, steps in _rounds(loop.rows)] == [2, 2]  # its calls were asked for within the bound


def test_an_answer_with_the_last_token_is_complete() -> None:
    request = attrs.evolve(_HELLO, max_output_tokens=20)

    ending, _ = play(Play(script=(attrs.evolve(_ANSWER, output_tokens=20),), request=request))

    assert ending == Completed()


def test_the_tokens_of_sub_agents_count() -> None:
    request = attrs.evolve(_HELLO, max_output_tokens=20)
    script = (Scene(calls=("researcher",)), _ANSWER)

    ending, loop = play(Play(script=script, agents=(attrs.evolve(_ANSWER, output_tokens=20),), request=request))

    assert ending == Incomplete(reason=IncompleteReason.MAX_OUTPUT_TOKENS)
    assert len(_turns(loop.rows)) == 2


def test_calls_of_sub_agents_count_and_those_that_are_too_many_are_not_made() -> None:
    request = attrs.evolve(_HELLO, max_tool_calls=2)
    script = (Scene(calls=("researcher",)), _ROUND, _ANSWER)

    ending, loop = play(Play(script=script, agents=(_ROUND, _ANSWER), request=request))

    made = [step.descriptor.name for step in loop.rows if isinstance(step.descriptor, ToolCall)]
    assert ending == Completed()
    assert made == ["researcher", "search"]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_agents_call_agents_only_so_deep(depth: int) -> None:
    limits = attrs.evolve(DEFAULT_LIMITS, depth=depth)
    scene = Scene(calls=("researcher",))

    ending, loop = play(Play(script=(scene, _ANSWER), agents=(scene, _ANSWER), limits=limits))

    assert ending == Completed()
    assert len(list(_loops(loop.rows))) == depth + 1
    failures = [step.error.type for step in loop.rows if step.error]
    assert failures == [ErrorType.MAX_DEPTH_EXCEEDED]


# -- what is to be called


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        (ToolChoice(mode=ChoiceMode.REQUIRED), ["get_weather"]),
        (ToolChoice(mode=ChoiceMode.REQUIRED, name="search"), ["search"]),
        (ToolChoice(mode=ChoiceMode.REQUIRED, name="researcher"), ["researcher"]),
        (ToolChoice(mode=ChoiceMode.REQUIRED, allowed=("lookup", "search")), ["search"]),
        (ToolChoice(mode=ChoiceMode.NONE), []),
        (ToolChoice(), []),
    ],
)
def test_a_demand_is_met_once_and_then_the_model_answers(choice: ToolChoice, called: list[str]) -> None:
    part = Play(script=(_ANSWER,), request=attrs.evolve(_HELLO, tool_choice=choice), obeys=True)

    ending, loop = play(part)

    shown = [item.name for turn in _turns(loop.rows[:1]) for item in turn.items if item.id[:3] != "msg"]
    assert ending == Completed()
    assert shown == called
    assert len(_turns(chain_under(loop.rows, None))) == (2 if called and called != ["get_weather"] else 1)


@given(part=_BOUNDED_PLAYS, crashes=_CRASHES, mode=st.sampled_from(ChoiceMode))
def test_obedient_models_under_any_demand_come_to_an_end_within_all_bounds(
    part: Play, crashes: list[int], mode: ChoiceMode
) -> None:
    request = attrs.evolve(part.request, tool_choice=ToolChoice(mode=mode))

    ending, loop = play(attrs.evolve(part, request=request, obeys=True), crashes)

    assert len(loop.rows) <= part.limits.steps
    for plan in loop.plans:
        assert plan.tools or plan.tool_choice.mode is not ChoiceMode.REQUIRED
    assert not any(step.is_open for step in loop.rows) or isinstance(ending, Failed)


# -- mixed turns


def test_the_servers_own_calls_are_answered_before_the_clients_are_handed_over() -> None:
    ending, loop = play(_MIXED)

    ((turn, steps),) = _rounds(loop.rows)
    assert ending == Completed()
    assert [step.descriptor.name for step in steps] == ["search", "lookup"]
    assert all(step.state is StepState.COMPLETED for step in steps)
    assert [item.name for item in turn.items if item.status is ItemStatus.COMPLETED and item.id[:3] != "msg"] == [
        "get_weather",
        "run_code",
    ]


# -- where it ends


@given(part=_PLAYS_WITH_AGENTS)
@example(part=_AGENTS)
@example(part=_MIXED)
def test_the_loop_ends_at_its_first_finish_and_nowhere_before(part: Play) -> None:
    ending, loop = play(part)
    whole = chain_under(loop.rows, None)

    assert loop.decide(whole, loop.rows) == loop.decide(tuple(whole), loop.rows) == Finish(ending)
    length = 0
    while length < len(whole):
        chain = whole[:length]
        action = loop.decide(chain, chain)
        assert isinstance(action, AppendSteps)
        following = whole[length : length + len(action.descriptors)]
        assert action.descriptors == tuple(step.descriptor for step in following)
        assert action.descriptors == (ModelCall(),) or all(isinstance(one, ToolCall) for one in action.descriptors)
        length += len(following)
