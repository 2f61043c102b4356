"""Cancelling a response at every task step of its loop of tools and agents: all is marked, nothing is left."""

from collections import Counter
from itertools import count

import pytest
from tests.cancellation.benches import Stored, SweepBench, open_memory_bench, open_postgres_bench
from tests.engine.scenarios import OVERRIDES, SCENARIOS, Scenario

from dwctl_trio.domain.assembly import fold
from dwctl_trio.domain.event_grammar import check_stream
from dwctl_trio.domain.lifecycle import STEP_MOVES, TERMINAL_STATES, RowState
from dwctl_trio.domain.response import ResponseStatus
from dwctl_trio.domain.steps import StepState
from dwctl_trio.protocol.sse import DONE
from dwctl_trio.testing.cancel_sweep import STEPS_MAX, run_cancelled_after
from dwctl_trio.testing.wire import read_stream

STREAMED = pytest.mark.parametrize("stream", [True, False], ids=["stream", "blocking"])
OF_SCENARIOS = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name.replace(" ", "-"))
_STATUSES = {
    RowState.COMPLETED: {ResponseStatus.COMPLETED, ResponseStatus.INCOMPLETE},
    RowState.CANCELED: {ResponseStatus.CANCELLED},
    RowState.FAILED: {ResponseStatus.FAILED},
}


async def _sweep(bench: SweepBench, scenario: Scenario, *, stream: bool, where: str) -> None:
    """Cancel the request of *scenario* after every step of its tasks."""
    requests = bench.requests
    serve = requests.serve_stream if stream else requests.serve_blocking
    rows, steps = Counter[str](), Counter[str]()
    for step in count(1):
        assert step < STEPS_MAX
        tools_before = sum(requests.tool_server.calls_by_key.values())
        models_before = requests.simulator.statistics().total
        run = await run_cancelled_after(step, lambda: serve(scenario.model, **scenario.fields))
        stored = await check_run(bench, stream=stream, model_calls_before=models_before)
        steps.update(entry.state.value for entry in (stored.steps if stored else ()))
        rows[stored.state.value if stored else "no row"] += 1
        if not run.was_cancelled:
            break
    called = sum(requests.tool_server.calls_by_key.values()) - tools_before
    print(
        f"cancel sweep, {scenario.name}, {'streamed' if stream else 'blocking'}, {where}: {step} runs,"
        f" one a task step; rows {dict(rows)}, steps {dict(steps)}"
    )
    assert stored is not None, "the last run was not cancelled"
    assert stored.state is RowState.COMPLETED
    assert len(stored.steps) == scenario.steps
    assert len(stored.metered) == scenario.model_calls
    assert called == scenario.tool_calls
    assert set(requests.tool_server.calls_by_key.values()) == {1}, "no call is made twice"
    assert min(rows["canceled"], steps["canceled"], steps["completed"]) > 0


async def check_run(bench: SweepBench, *, stream: bool, model_calls_before: int) -> Stored | None:
    """What the database has of the last request, once all that could be left of it has been looked for."""
    requests = bench.requests
    await requests.check_nothing_left()
    bench.check_store()
    assert requests.services.tools._places.value == requests.services.limits.tool_connections
    stored = await bench.read(requests.response_id)
    if stored is None:
        assert not requests.told, "an id went out, so its row is there"
        return None
    _check_steps(stored, model_calls=requests.simulator.statistics().total - model_calls_before)
    _check_told(bench, stored, stream=stream)
    return stored


def _check_steps(stored: Stored, *, model_calls: int) -> None:
    """Every step has ended, and every call that the upstream got has its usage record."""
    assert stored.state in TERMINAL_STATES
    assert [step for step in stored.steps if STEP_MOVES[step.state]] == []
    asking = {step.id: step for step in stored.steps if step.is_model_call}
    assert stored.metered <= asking.keys()
    assert len(stored.metered) >= model_calls
    not_made = [asking[step_id].state for step_id in asking.keys() - stored.metered]
    assert not_made in ([], [StepState.CANCELED]), "stored, and then not even begun"


def _check_told(bench: SweepBench, stored: Stored, *, stream: bool) -> None:
    """What the client got is the beginning of the log, which is whole and keeps the grammar."""
    requests = bench.requests
    assert stored.log is not None
    assert requests.new is not None
    log = read_stream(stored.log, requests.new.request)
    assert check_stream(log.events) is None
    told_response = fold(numbered.event for numbered in log.events)
    assert told_response.status in _STATUSES[stored.state]
    assert told_response == log.events[-1].event.response
    if stream:
        told = b"".join(requests.told)
        assert stored.log.startswith(told.removesuffix(DONE))
        assert check_stream(read_stream(told, requests.new.request).events, prefix=True) is None


@pytest.mark.slow
@STREAMED
@OF_SCENARIOS
async def test_a_loop_may_be_cancelled_at_every_step_in_memory(scenario: Scenario, stream: bool) -> None:
    async with open_memory_bench(OVERRIDES) as bench:
        await _sweep(bench, scenario, stream=stream, where="memory store")


@pytest.mark.slow
@STREAMED
@OF_SCENARIOS
async def test_a_loop_may_be_cancelled_at_every_step_on_postgresql(
    postgres_dsn: str, scenario: Scenario, stream: bool
) -> None:
    async with open_postgres_bench(postgres_dsn, OVERRIDES) as bench:
        await _sweep(bench, scenario, stream=stream, where="PostgreSQL")
