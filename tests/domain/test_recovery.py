"""What becomes of the steps that a dead process left open."""

from uuid import UUID

import attrs
import pytest

from dwctl_trio.domain.items import FunctionCall, ItemStatus, McpCall, Message, OutputItem, TextPart
from dwctl_trio.domain.recovery import ABANDONED_CALL, ABANDONED_TURN, recover_chain
from dwctl_trio.domain.response import ErrorType
from dwctl_trio.domain.steps import Chain, ModelCall, Step, StepState, ToolCall, ToolOutput
from dwctl_trio.domain.told import NOTHING_TOLD, Told, ToldItem
from dwctl_trio.domain.turn import FinishReason, ModelTurn
from dwctl_trio.testing.played_runs import CATALOG

_MESSAGE = Message(id="msg_1", status=ItemStatus.IN_PROGRESS, content=(TextPart(text="a"),))
_OPEN_TURN = Step(id=UUID(int=9), sequence=9, descriptor=ModelCall(), state=StepState.PROCESSING)


def _call(name: str, place: int = 0, *, item_id: str = "") -> McpCall:
    status = ItemStatus.IN_PROGRESS
    return McpCall(id=item_id or f"mcp_{name}", status=status, call_id=f"call_{place}", name=name, arguments="{}")


def _turn(*items: OutputItem, sequence: int = 1, parent: Step | None = None) -> Step:
    return Step(
        id=UUID(int=sequence),
        sequence=sequence,
        descriptor=ModelCall(),
        state=StepState.COMPLETED,
        parent_step_id=parent.id if parent else None,
        result=ModelTurn(items=items, finish_reason=FinishReason.TOOL_CALLS, usage=None),
    )


def _tool(name: str, *, sequence: int = 2, place: int = 0, parent: Step | None = None) -> Step:
    return Step(
        id=UUID(int=sequence),
        sequence=sequence,
        descriptor=ToolCall(call_id=f"call_{place}", name=name, arguments="{}"),
        state=StepState.PROCESSING,
        parent_step_id=parent.id if parent else None,
    )


def _heard(*items: OutputItem) -> tuple[ToldItem, ...]:
    return tuple(ToldItem(item=item, events=2, text="") for item in items)


def _recover(*steps: Step, told: Told = NOTHING_TOLD) -> Chain:
    recovered = recover_chain(steps, told, CATALOG)
    assert [step.id for step in recovered] == [step.id for step in steps]
    assert recover_chain(recovered, told, CATALOG) == recovered
    return recovered


def test_what_has_ended_stays_as_it_is() -> None:
    ended = attrs.evolve(_tool("search"), state=StepState.FAILED, error=ABANDONED_CALL)
    steps = (_turn(_call("search")), ended, attrs.evolve(_OPEN_TURN, state=StepState.CANCELED))

    assert _recover(*steps, told=Told(items=_heard(_MESSAGE, _MESSAGE))) == steps


@pytest.mark.parametrize("state", [StepState.PENDING, StepState.PROCESSING])
def test_an_interrupted_turn_is_abandoned_and_without_a_result_if_nothing_was_told_of_it(state: StepState) -> None:
    step = attrs.evolve(_OPEN_TURN, state=state)
    abandoned = attrs.evolve(step, state=StepState.FAILED, error=ABANDONED_TURN)

    assert _recover(step) == (abandoned,)
    assert _recover(_turn(_MESSAGE), step, told=Told(items=_heard(_MESSAGE)))[-1] == abandoned


def test_what_was_told_of_an_interrupted_turn_is_its_result_closed() -> None:
    done = attrs.evolve(_MESSAGE, status=ItemStatus.COMPLETED)
    function = FunctionCall(id="fc_1", status=ItemStatus.IN_PROGRESS, call_id="call_0", name="f", arguments="{")
    told = Told(items=_heard(done, done, _MESSAGE, function, _call("search")))

    (_, abandoned) = _recover(_turn(done), _OPEN_TURN, told=told)

    assert (abandoned.state, abandoned.error) == (StepState.FAILED, ABANDONED_TURN)
    closed = [attrs.evolve(item, status=ItemStatus.INCOMPLETE) for item in (_MESSAGE, function, _call("search"))]
    assert abandoned.result == ModelTurn(items=(done, *closed), finish_reason=None, usage=None)


def test_items_of_superseded_turns_before_it_are_not_its_own() -> None:
    before = attrs.evolve(_turn(_MESSAGE, _MESSAGE), state=StepState.FAILED, error=ABANDONED_TURN)
    second = attrs.evolve(_MESSAGE, id="msg_2")

    (_, abandoned) = _recover(before, _OPEN_TURN, told=Told(items=_heard(_MESSAGE, _MESSAGE, second)))

    assert isinstance(abandoned.result, ModelTurn)
    assert [item.id for item in abandoned.result.items] == ["msg_2"]


@pytest.mark.parametrize("name", ["lookup", "researcher"])
def test_a_call_that_may_be_made_again_stays_open(name: str) -> None:
    steps = (_turn(_call(name)), _tool(name))
    assert _recover(*steps) == steps


@pytest.mark.parametrize("name", ["search", "gone_from_the_configuration"])
def test_any_other_interrupted_call_fails_and_the_model_is_told(name: str) -> None:
    turn, call = _turn(_call(name)), _tool(name)
    assert _recover(turn, call) == (turn, attrs.evolve(call, state=StepState.FAILED, error=ABANDONED_CALL))


@pytest.mark.parametrize("name", ["search", "write"])
def test_a_call_whose_outcome_was_told_has_that_outcome_and_is_not_made_again(name: str) -> None:
    completed = attrs.evolve(_call(name), status=ItemStatus.COMPLETED, output="found")
    failed = attrs.evolve(_call(name), status=ItemStatus.FAILED, error="status 503")

    (_, found) = _recover(_turn(_call(name)), _tool(name), told=Told(items=_heard(completed)))
    (_, lost) = _recover(_turn(_call(name)), _tool(name), told=Told(items=_heard(failed)))

    assert (found.state, found.result) == (StepState.COMPLETED, ToolOutput(output="found"))
    assert lost.state is StepState.FAILED
    assert lost.error is not None
    assert lost.error.message == "status 503"


def test_what_was_told_of_a_sub_agent_is_kept_for_its_own_turn() -> None:
    agents = (_turn(_call("researcher", 0, item_id="mcp_0"), _call("researcher", 1, item_id="mcp_1")),)
    calls = (_tool("researcher"), _tool("researcher", sequence=3, place=1))
    inside = _turn(_call("researcher", item_id="mcp_2"), sequence=4, parent=calls[1])
    deeper = _tool("researcher", sequence=5, parent=calls[1])
    open_turns = [
        attrs.evolve(_OPEN_TURN, id=UUID(int=number), sequence=number, parent_step_id=parent.id)
        for number, parent in ((6, calls[0]), (7, deeper))
    ]
    own = {name: attrs.evolve(_MESSAGE, id=f"msg_{name}") for name in ("mcp_0", "mcp_1", "mcp_2")}
    told = Told(items=_heard(*own.values()), agents={name: _heard(item) for name, item in own.items()})

    recovered = _recover(*agents, *calls, inside, deeper, *open_turns, told=told)

    assert [step.is_open for step in recovered] == [False, True, True, False, True, False, False]
    results = [step.result for step in recovered[-2:]]
    assert [[item.id for item in result.items] for result in results if isinstance(result, ModelTurn)] == [
        ["msg_mcp_0"],
        ["msg_mcp_2"],
    ]


def test_nothing_goes_on_under_an_agent_that_is_gone() -> None:
    turn, agent = _turn(_call("gone")), _tool("gone")
    steps = (turn, agent, _turn(_call("lookup"), sequence=3, parent=agent), _tool("lookup", sequence=4, parent=agent))

    recovered = _recover(*steps)

    assert [step.error for step in recovered if step.state is StepState.FAILED] == [ABANDONED_CALL] * 2
    assert not any(step.is_open for step in recovered)


def test_the_model_and_the_client_are_told_what_an_abandoned_call_means() -> None:
    assert ABANDONED_CALL.type is ABANDONED_TURN.type is ErrorType.STEP_ABANDONED
    assert ABANDONED_CALL.message == (
        "The call was abandoned: the server stopped while the tool ran. It may or may not have had an effect."
    )
    assert ABANDONED_TURN.message == "The server stopped while the model answered; it was asked again."
