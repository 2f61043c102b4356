"""The loop's decision: a toy loop plays scripts of model turns, crashes anywhere and must come to the same end."""

from collections.abc import Sequence
from uuid import UUID

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dwctl_trio.domain.items import FunctionCall, ItemStatus, Message
from dwctl_trio.domain.limits import DEFAULT_LIMITS, Limits
from dwctl_trio.domain.response import Cancelled, Completed, Ending, ErrorType, Failed, Incomplete, IncompleteReason
from dwctl_trio.domain.steps import Chain, ModelCall, Step, StepState, ToolCall, ToolOutput
from dwctl_trio.domain.transitions import Action, AppendSteps, Finish, next_action
from dwctl_trio.domain.turn import FinishReason, ModelTurn
from dwctl_trio.testing.domain_strategies import ABANDONED, TOOL_NAMES, chains
from dwctl_trio.testing.example_runs import ERROR

_SERVER_TOOLS = frozenset({"search", "run_code"})
_OPEN = {StepState.PENDING, StepState.PROCESSING}


@attrs.frozen(kw_only=True)
class _Scene:
    """What the model does when it is asked once more, and how the tools it calls fare."""

    calls: tuple[str, ...] = ()
    reason: FinishReason = FinishReason.TOOL_CALLS
    fails: bool = False
    """The model call itself fails."""
    failing_tools: bool = False
    last_tool_first: bool = False
    """In which order parallel tools end."""


_Script = tuple[_Scene, ...]
"""Played over and over, so that only a script with an answer ends by itself."""


def _scripts() -> st.SearchStrategy[_Script]:
    calls = st.lists(st.sampled_from(TOOL_NAMES), max_size=3).map(tuple)
    scenes = st.builds(
        _Scene,
        calls=calls,
        reason=st.sampled_from(FinishReason),
        fails=st.sampled_from([False, False, False, True]),
        failing_tools=st.booleans(),
        last_tool_first=st.booleans(),
    )
    server_round = st.builds(
        _Scene, calls=st.lists(st.sampled_from(sorted(_SERVER_TOOLS)), min_size=1, max_size=3).map(tuple)
    )
    return st.lists(server_round | scenes, min_size=1, max_size=4).map(tuple)


class _Crashed(Exception):
    """The process died right after a write."""


class _ToyLoop:
    """Appends, fires and ends steps as the engine does; the chain is all that survives a crash."""

    def __init__(self, script: _Script, limits: Limits) -> None:
        self.chain: list[Step] = []
        self.writes = 0
        """Writes of the present process."""
        self._script = script
        self._limits = limits
        self._dies_after: int | None = None

    def run(self, *, dies_after: int | None = None) -> Ending:
        self.writes, self._dies_after = 0, dies_after
        while True:
            match self.decide():
                case Finish(ending):
                    return ending
                case AppendSteps(descriptors):
                    first = len(self.chain)
                    for sequence, descriptor in enumerate(descriptors, start=first + 1):
                        step = Step(
                            id=UUID(int=sequence), sequence=sequence, descriptor=descriptor, state=StepState.PENDING
                        )
                        self.chain.append(step)
                    self._wrote()
                    self._fire(range(first, len(self.chain)))

    def decide(self) -> Action:
        return next_action(tuple(self.chain), server_tools=_SERVER_TOOLS, limits=self._limits)

    def abandon_open_steps(self) -> None:
        """What a rescuer does: an open step failed, a model call keeps the part it had."""
        for place, step in enumerate(self.chain):
            if step.state in _OPEN:
                part = (Message(id=f"msg_{place}", status=ItemStatus.INCOMPLETE),)
                turn = ModelTurn(items=part, finish_reason=None, usage=None)
                result = turn if isinstance(step.descriptor, ModelCall) else None
                self.chain[place] = attrs.evolve(step, state=StepState.FAILED, error=ABANDONED, result=result)

    def _fire(self, places: Sequence[int]) -> None:
        for place in places:
            self.chain[place] = attrs.evolve(self.chain[place], state=StepState.PROCESSING)
            self._wrote()
        scene = self._scene()
        for place in reversed(places) if scene.last_tool_first else places:
            step = self.chain[place]
            self.chain[place] = (
                self._ended_model(step) if isinstance(step.descriptor, ModelCall) else _ended_tool(step, scene)
            )
            self._wrote()

    def _scene(self) -> _Scene:
        asked = len(_turns(self.chain))
        last_is_model = isinstance(self.chain[-1].descriptor, ModelCall)
        return self._script[(asked if last_is_model else asked - 1) % len(self._script)]

    def _ended_model(self, step: Step) -> Step:
        scene = self._scene()
        if scene.fails:
            return attrs.evolve(step, state=StepState.FAILED, error=ERROR)
        number = len(_turns(self.chain))
        words = Message(id=f"msg_{number}", status=ItemStatus.COMPLETED)
        calls = tuple(
            FunctionCall(
                id=f"fc_{number}_{place}",
                status=ItemStatus.COMPLETED,
                call_id=f"call_{place}",
                name=name,
                arguments="{}",
            )
            for place, name in enumerate(scene.calls)
        )
        turn = ModelTurn(items=(words, *calls), finish_reason=scene.reason, usage=None)
        return attrs.evolve(step, state=StepState.COMPLETED, result=turn)

    def _wrote(self) -> None:
        self.writes += 1
        if self.writes == self._dies_after:
            raise _Crashed


def _ended_tool(step: Step, scene: _Scene) -> Step:
    if scene.failing_tools:
        return attrs.evolve(step, state=StepState.FAILED, error=ERROR)
    return attrs.evolve(step, state=StepState.COMPLETED, result=ToolOutput(output="found"))


def _turns(chain: Chain) -> list[ModelTurn]:
    return [step.result for step in chain if isinstance(step.result, ModelTurn) and step.state is StepState.COMPLETED]


def _conversation(chain: Chain) -> list[tuple[ModelTurn, list[str]]]:
    """Each whole turn with the calls that the server answered after it, in order of their ids."""
    conversation: list[tuple[ModelTurn, list[str]]] = []
    for step in chain:
        if isinstance(step.descriptor, ToolCall):
            if step.state not in _OPEN:
                conversation[-1][1].append(step.descriptor.call_id)
        elif step.state is StepState.COMPLETED and isinstance(step.result, ModelTurn):
            conversation.append((step.result, []))
    return [(turn, sorted(answered)) for turn, answered in conversation]


def _run_with_crashes(
    script: _Script, limits: Limits, crashes: Sequence[int], *, rescued: bool
) -> tuple[Ending, _ToyLoop]:
    loop = _ToyLoop(script, limits)
    for dies_after in crashes:
        try:
            return loop.run(dies_after=dies_after), loop
        except _Crashed:
            if rescued:
                loop.abandon_open_steps()
    return loop.run(), loop


def _limits() -> st.SearchStrategy[Limits]:
    return st.integers(1, 4).map(lambda turns: attrs.evolve(DEFAULT_LIMITS, turns=turns))


_ANSWER = _Scene(reason=FinishReason.STOP)


# -- resume


@given(script=_scripts(), limits=_limits())
@example(script=(_Scene(calls=("search", "run_code")), _ANSWER), limits=DEFAULT_LIMITS)
@example(script=(_Scene(calls=("search", "get_weather"), last_tool_first=True),), limits=DEFAULT_LIMITS)
def test_a_crash_after_any_write_leads_to_the_same_end(script: _Script, limits: Limits) -> None:
    ending, undisturbed = _run_with_crashes(script, limits, [], rescued=False)
    for dies_after in range(1, undisturbed.writes + 1):
        for rescued in (False, True):
            again, loop = _run_with_crashes(script, limits, [dies_after], rescued=rescued)

            assert again == ending
            assert _conversation(loop.chain) == _conversation(undisturbed.chain)


@given(script=_scripts(), limits=_limits(), crashes=st.lists(st.integers(1, 12), max_size=8), rescued=st.booleans())
def test_any_number_of_crashes_leads_to_the_same_end(
    script: _Script, limits: Limits, crashes: list[int], rescued: bool
) -> None:
    ending, undisturbed = _run_with_crashes(script, limits, [], rescued=rescued)

    again, loop = _run_with_crashes(script, limits, crashes, rescued=rescued)

    assert again == ending
    assert _conversation(loop.chain) == _conversation(undisturbed.chain)


@given(script=_scripts(), limits=_limits(), crashes=st.lists(st.integers(1, 12), max_size=8), rescued=st.booleans())
def test_every_call_of_the_server_is_answered_once_before_the_model_is_asked_again(
    script: _Script, limits: Limits, crashes: list[int], rescued: bool
) -> None:
    ending, loop = _run_with_crashes(script, limits, crashes, rescued=rescued)

    conversation = _conversation(loop.chain)
    for number, (turn, answered) in enumerate(conversation, start=1):
        calls = [item for item in turn.items if isinstance(item, FunctionCall) and item.name in _SERVER_TOOLS]
        over = number == len(conversation) and isinstance(ending, Incomplete)
        assert answered == ([] if over else [call.call_id for call in calls])


# -- bounds


@given(script=_scripts(), limits=_limits(), crashes=st.lists(st.integers(1, 12), max_size=8), rescued=st.booleans())
def test_the_model_has_at_most_its_turns_however_often_it_was_interrupted(
    script: _Script, limits: Limits, crashes: list[int], rescued: bool
) -> None:
    _, loop = _run_with_crashes(script, limits, crashes, rescued=rescued)
    assert len(_turns(loop.chain)) <= limits.turns


@given(script=_scripts(), steps=st.integers(1, 12), rescued=st.booleans())
def test_even_endless_crashes_end_at_the_limit_of_steps(script: _Script, steps: int, rescued: bool) -> None:
    limits = attrs.evolve(DEFAULT_LIMITS, steps=steps)

    _, loop = _run_with_crashes(script, limits, [1] * (steps + 1), rescued=rescued)

    assert len(loop.chain) <= steps


def test_the_answer_in_the_last_turn_is_still_given() -> None:
    script = (_Scene(calls=("search",)), _ANSWER)

    ending, _ = _run_with_crashes(script, attrs.evolve(DEFAULT_LIMITS, turns=2), [], rescued=False)

    assert ending == Completed()


@pytest.mark.parametrize(("steps", "answers"), [(3, True), (2, False)])
def test_the_last_step_that_is_allowed_is_taken(steps: int, answers: bool) -> None:
    script = (_Scene(calls=("search",)), _ANSWER)

    ending, loop = _run_with_crashes(script, attrs.evolve(DEFAULT_LIMITS, steps=steps), [], rescued=False)

    assert (ending == Completed()) is answers
    assert len(loop.chain) == steps


def test_a_turn_too_many_is_refused() -> None:
    script = (_Scene(calls=("search",)), _ANSWER)

    ending, loop = _run_with_crashes(script, attrs.evolve(DEFAULT_LIMITS, turns=1), [], rescued=False)

    assert isinstance(ending, Failed)
    assert ending.error.type is ErrorType.MAX_ITERATIONS_EXCEEDED
    assert len(loop.chain) == 2


# -- any chain at all


@given(chain=chains(), steps=st.integers(1, 12), turns=st.integers(1, 4))
def test_every_chain_is_decided_alike_each_time_and_within_bounds(chain: Chain, steps: int, turns: int) -> None:
    limits = attrs.evolve(DEFAULT_LIMITS, steps=steps, turns=turns)

    action = next_action(chain, server_tools=_SERVER_TOOLS, limits=limits)

    assert action == next_action(tuple(chain), server_tools=set(_SERVER_TOOLS), limits=limits)
    if isinstance(action, AppendSteps):
        assert action.descriptors
        assert len(chain) + len(action.descriptors) <= steps
        assert action.descriptors == (ModelCall(),) or all(
            isinstance(descriptor, ToolCall) and descriptor.name in _SERVER_TOOLS for descriptor in action.descriptors
        )


@given(script=_scripts(), limits=_limits())
def test_the_loop_ends_at_its_first_finish_and_nowhere_before(script: _Script, limits: Limits) -> None:
    ending, loop = _run_with_crashes(script, limits, [], rescued=False)
    whole = tuple(loop.chain)

    assert loop.decide() == loop.decide() == Finish(ending)
    length = 0
    while length < len(whole):
        action = next_action(whole[:length], server_tools=_SERVER_TOOLS, limits=limits)
        assert isinstance(action, AppendSteps)
        following = whole[length : length + len(action.descriptors)]
        assert action.descriptors == tuple(step.descriptor for step in following)
        length += len(following)


_CANCELLED_TOOL = (
    Step(
        id=UUID(int=1),
        sequence=1,
        descriptor=ModelCall(),
        state=StepState.COMPLETED,
        result=ModelTurn(
            items=(FunctionCall(id="fc_1", status=ItemStatus.COMPLETED, call_id="call_0", name="search"),),
            finish_reason=FinishReason.TOOL_CALLS,
            usage=None,
        ),
    ),
    Step(
        id=UUID(int=2),
        sequence=2,
        descriptor=ToolCall(call_id="call_0", name="search", arguments=""),
        state=StepState.CANCELED,
    ),
)


@given(chain=chains())
@example(chain=_CANCELLED_TOOL)
def test_a_cancelled_step_of_any_kind_ends_the_response_as_cancelled(chain: Chain) -> None:
    action = next_action(chain, server_tools=_SERVER_TOOLS, limits=DEFAULT_LIMITS)

    assert (action == Finish(Cancelled())) is any(step.state is StepState.CANCELED for step in chain)


# -- one case each


def test_an_empty_chain_asks_the_model() -> None:
    action = next_action((), server_tools=_SERVER_TOOLS, limits=DEFAULT_LIMITS)
    assert action == AppendSteps((ModelCall(),))


@pytest.mark.parametrize(
    ("scene", "ending"),
    [
        pytest.param(_ANSWER, Completed(), id="answer"),
        pytest.param(_Scene(calls=("get_weather",)), Completed(), id="client call"),
        pytest.param(_Scene(calls=("search", "get_weather")), Completed(), id="server and client call"),
        pytest.param(_Scene(fails=True), Failed(error=ERROR), id="failure"),
        pytest.param(
            _Scene(calls=("search",), reason=FinishReason.LENGTH),
            Incomplete(reason=IncompleteReason.MAX_OUTPUT_TOKENS),
            id="length",
        ),
        pytest.param(
            _Scene(reason=FinishReason.CONTENT_FILTER),
            Incomplete(reason=IncompleteReason.CONTENT_FILTER),
            id="filter",
        ),
    ],
)
def test_one_scene_leads_to_its_end(scene: _Scene, ending: Ending) -> None:
    assert _run_with_crashes((scene,), DEFAULT_LIMITS, [], rescued=False)[0] == ending


def test_the_servers_own_calls_are_answered_before_the_clients_are_handed_over() -> None:
    _, loop = _run_with_crashes((_Scene(calls=("get_weather", "search")),), DEFAULT_LIMITS, [], rescued=False)

    assert [step.descriptor for step in loop.chain] == [
        ModelCall(),
        ToolCall(call_id="call_1", name="search", arguments="{}"),
    ]


def test_a_failed_tool_is_an_answer_that_the_model_reads() -> None:
    script = (_Scene(calls=("search",), failing_tools=True), _ANSWER)

    ending, loop = _run_with_crashes(script, DEFAULT_LIMITS, [], rescued=False)

    assert ending == Completed()
    assert len(_turns(loop.chain)) == 2


def test_an_incomplete_call_is_not_run() -> None:
    call = FunctionCall(id="fc_1", status=ItemStatus.INCOMPLETE, call_id="call_1", name="search", arguments='{"q')
    turn = ModelTurn(items=(call,), finish_reason=FinishReason.TOOL_CALLS, usage=None)
    step = Step(id=UUID(int=1), sequence=1, descriptor=ModelCall(), state=StepState.COMPLETED, result=turn)

    assert next_action((step,), server_tools=_SERVER_TOOLS, limits=DEFAULT_LIMITS) == Finish(Completed())
