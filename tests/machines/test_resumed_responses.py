"""What the random crashes have found, each alone."""

import attrs
from tests.machines.audit import check_played
from tests.machines.world import AgentPlan, LoopWorld, Plan, Played

from dwctl_trio.domain.events import OutputItemDone, SubAgentEvent
from dwctl_trio.domain.items import ItemStatus, McpCall
from dwctl_trio.testing.faulty_store import Fault
from dwctl_trio.testing.wire import read_stream


async def test_a_model_call_that_a_crash_interrupted_has_a_usage_record(world: LoopWorld) -> None:
    played = await world.play(Plan(model="echo-2", lives=({5: Fault.DIE_BEFORE},)))

    assert check_played(played) == "completed"
    assert [step.state.value for step in played.steps] == ["failed", "completed"]
    assert played.metered == {step.id for step in played.steps}


async def test_calls_that_a_bound_forbids_end_also_when_the_response_was_resumed(world: LoopWorld) -> None:
    plan = Plan(model="tools-3-then-echo-2", tools=("read",), body={"max_tool_calls": 1})

    for deaths in ({5: Fault.DIE_AFTER}, {6: Fault.DIE_BEFORE}, {6: Fault.DIE_AFTER}):
        played = await world.play(attrs.evolve(plan, lives=(deaths,)))

        assert check_played(played) == "completed"
        (*_, last) = read_stream(played.log, played.new.request).events
        calls = [item for item in last.event.response.output if isinstance(item, McpCall)]
        assert [call.status for call in calls] == [ItemStatus.COMPLETED, ItemStatus.INCOMPLETE, ItemStatus.INCOMPLETE]


async def test_a_sub_agent_that_is_shown_is_told_again_from_its_beginning(world: LoopWorld) -> None:
    plan = Plan(
        model="tools-1-then-echo-2",
        tools=("boss",),
        agents={"boss": AgentPlan(model="tools-1-then-echo-3", tools=("read",))},
        body={"include": ["dwctl:sub_agents"]},
    )
    whole = _items_of_agents(await world.play(plan))

    for number in (7, 8, 9):
        played = await world.play(attrs.evolve(plan, lives=({number: Fault.DIE_BEFORE},)))

        assert check_played(played) == "completed"
        # A message may have been told before its turn was lost: the next turn's is one more.
        assert list(dict.fromkeys(_items_of_agents(played))) == whole


async def test_a_response_that_goes_on_with_another_does_so_in_every_life(world: LoopWorld) -> None:
    plan = Plan(model="tools-1-then-echo-2", tools=("read",), earlier="what was said before")
    before = [("user", "what was said before"), ("assistant", "Hello there"), ("user", "hello")]
    calls = len((await world.play(plan)).lives[0].calls)

    for number in range(3, calls):
        for fault in (Fault.DIE_BEFORE, Fault.DIE_AFTER):
            played = await world.play(attrs.evolve(plan, lives=({number: fault},)))

            assert played.row is not None
            assert played.row.state.value == "completed"
            for body in (body for bodies in played.bodies.values() for body in bodies):
                assert [(one["role"], one["content"]) for one in body["messages"]][:3] == before


def _items_of_agents(played: Played) -> list[str]:
    """The kinds of the items that sub-agents were shown to have made."""
    events = [numbered.event for numbered in read_stream(played.log, played.new.request).events]
    inside = [event.event for event in events if isinstance(event, SubAgentEvent)]
    return [type(event.item).__name__ for event in inside if isinstance(event, OutputItemDone)]
