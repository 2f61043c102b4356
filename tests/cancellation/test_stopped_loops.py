"""Stopping a response from outside at every task step of its loop: its client is still there, and misses nothing."""

from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count

import pytest
import trio
from tests.cancellation.benches import SweepBench, open_memory_bench
from tests.engine.scenarios import OVERRIDES, SCENARIOS, Scenario, read_told

from dwctl_trio.domain.assembly import fold
from dwctl_trio.domain.errors import ServerStopping
from dwctl_trio.domain.items import ItemStatus
from dwctl_trio.domain.lifecycle import STEP_MOVES, RowState
from dwctl_trio.protocol.sse import DONE


class _CallAfterStep(trio.abc.Instrument):
    """Calls a function after the given number of steps of all tasks."""

    def __init__(self, step: int, function: Callable[[], object]) -> None:
        self._left = step
        self._function = function

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._function()

    @property
    def fired(self) -> bool:
        return self._left <= 0


async def _stop_after(bench: SweepBench, step: int, serve: Callable[[], Awaitable[None]]) -> bool:
    """Serve, stopped after *step* steps; whether it came to that."""
    live = bench.requests.services.live
    instrument = _CallAfterStep(step, lambda: live.stop_all(lambda: ServerStopping("the end")))
    trio.lowlevel.add_instrument(instrument)
    try:
        await serve()
    finally:
        trio.lowlevel.remove_instrument(instrument)
    return instrument.fired


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name.replace(" ", "-"))
async def test_a_loop_that_is_stopped_at_any_step_tells_its_client_all_there_is(scenario: Scenario) -> None:
    async with open_memory_bench(OVERRIDES) as bench:
        ends = Counter[str]()
        for step in count(1):
            fired = await _stop_after(
                bench, step, lambda: bench.requests.serve_stream(scenario.model, **scenario.fields)
            )
            ends[await _check_end(bench)] += 1
            if not fired:
                break
    print(f"stopped at every step, {scenario.name}: {step} runs, {dict(ends)}")
    assert min(ends["failed"], ends["completed"]) > 0


async def _check_end(bench: SweepBench) -> str:
    """How the client's stream ended, which is what is stored, with every step and every item ended."""
    requests = bench.requests
    await requests.check_nothing_left()
    stored = await bench.read(requests.response_id)
    assert stored is not None
    assert [step for step in stored.steps if STEP_MOVES[step.state]] == []
    asking = {step.id for step in stored.steps if step.is_model_call}
    assert len(asking - stored.metered) <= 1
    if requests.refused is not None:
        assert stored.state is RowState.FAILED
        return "refused"
    stream = read_told(requests)
    assert stored.log is not None
    assert stored.log + DONE == b"".join(requests.told)
    told = fold(numbered.event for numbered in stream.events)
    assert told == stream.events[-1].event.response
    assert all(item.status is not ItemStatus.IN_PROGRESS for item in told.output)
    assert stored.state is RowState(told.status.value)
    return told.status.value
