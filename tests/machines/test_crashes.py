"""Whatever models, tools and stores do, and whenever processes die: nothing is done twice, nothing is lost.

Source: the design's pages on events and storage; invariants I1, I2, I7, I9 and I24.
"""

from collections import Counter

import pytest
import trio
from hypothesis import HealthCheck, given, seed, settings
from tests.machines.audit import check_played
from tests.machines.plans import plans
from tests.machines.world import LoopWorld, Plan

EXAMPLES = 250
EXAMPLES_LONG = 3000
SEED = 41
"""Of all random plans, so that the same ones are played every time."""


@pytest.mark.slow
async def test_a_response_is_worked_on_once_however_often_its_process_dies(world: LoopWorld) -> None:
    await check_plans(world, EXAMPLES)


@pytest.mark.long
async def test_a_response_is_worked_on_once_however_often_its_process_dies_for_long(world: LoopWorld) -> None:
    await check_plans(world, EXAMPLES_LONG)


async def check_plans(world: LoopWorld, examples: int) -> None:
    """Play random plans and print the figures."""
    counts: Counter[str] = Counter()
    endings: Counter[str] = Counter()

    @seed(SEED)
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), database=None)
    @given(plans())
    def check(plan: Plan) -> None:
        played = trio.from_thread.run(world.play, plan)
        endings[check_played(played)] += 1
        counts.update(
            examples=1,
            crashes=played.crashes,
            store_calls=sum(len(life.calls) for life in played.lives),
            steps=len(played.steps),
            agent_steps=sum(1 for step in played.steps if step.parent_step_id is not None),
            model_calls=sum(len(bodies) for bodies in played.bodies.values()),
            tool_calls=played.tool_calls.total(),
            fired_again=sum(1 for count in played.tool_calls.values() if count > 1),
        )

    await trio.to_thread.run_sync(check)
    print(f"crashes: {dict(counts)}, endings: {dict(endings)}")
    assert {"completed", "failed"} <= set(endings)
    assert counts["crashes"] > examples // 4
    assert counts["fired_again"] > 0
