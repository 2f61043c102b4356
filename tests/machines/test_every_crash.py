"""The process dies at every call of the store, before it and after it: the response ends as if nothing had been."""

from collections import Counter

import attrs
import pytest
from tests.machines.audit import check_played
from tests.machines.world import APPEND, AgentPlan, LoopWorld, Plan

from dwctl_trio.testing.faulty_store import Fault

PLANS = {
    "a plain answer": Plan(model="echo-3"),
    "two rounds of three tools": Plan(
        model="tools-3-then-tools-3-then-echo-2", tools=("read", "write", "slow"), replies={"write": ("unavailable",)}
    ),
    "an agent with two tools": Plan(
        model="tools-1-then-echo-2",
        tools=("boss",),
        agents={"boss": AgentPlan(model="tools-2-then-echo-1", tools=("read", "write"))},
    ),
    "an agent in an agent, shown": Plan(
        model="tools-2-then-echo-2",
        tools=("boss", "write"),
        agents={
            "boss": AgentPlan(model="tools-2-then-echo-1", tools=("aide", "read")),
            "aide": AgentPlan(model="tools-1-then-echo-1", tools=("write",)),
        },
        body={"include": ["dwctl:sub_agents"]},
    ),
    "more calls than are allowed": Plan(
        model="tools-3-then-echo-2", tools=("read", "write"), body={"max_tool_calls": 1}
    ),
}
DEATHS = (Fault.DIE_BEFORE, Fault.DIE_AFTER)


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
async def test_a_response_survives_a_crash_at_every_call_of_the_store(world: LoopWorld, plan: Plan) -> None:
    whole = await world.play(plan)
    assert check_played(whole) == "completed"
    (life,) = whole.lives
    methods = [call.method for call in life.calls if call.method != APPEND]
    assert methods[:4] == ["read_clock", "enqueue_response", "rescue_expired", "claim_responses"]
    assert methods[-1] == "finish_response"
    endings: Counter[str] = Counter()

    for number, method in enumerate(methods):
        for death in DEATHS:
            played = await world.play(attrs.evolve(plan, lives=({number: death},)))
            endings[check_played(played)] += 1
            is_whole = (method == "finish_response" and death is Fault.DIE_AFTER) or played.row is None
            assert played.crashes == (0 if is_whole else 1)
    for death in DEATHS:
        endings[check_played(await world.play(attrs.evolve(plan, append_faults=(death,))))] += 1

    print(f"every crash: {len(methods)} calls of the store, {endings.total()} deaths, 0 violations: {dict(endings)}")
    assert endings == {"completed": 2 * len(methods) - 1, "no row": 3}
