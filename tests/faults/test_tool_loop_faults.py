"""The store fails while tools and agents are at work: nobody is told what is not so, and no tool runs twice."""

import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import attrs
import pytest
import trio
from tests.engine.scenarios import FAN_OUT, OVERRIDES, SCENARIOS, Scenario, read_told

from dwctl_trio.domain.items import McpCall
from dwctl_trio.domain.lifecycle import STEP_MOVES, TERMINAL_STATES, RowState
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.response import ErrorType, Response
from dwctl_trio.domain.steps import StepState
from dwctl_trio.testing.faulty_store import Fault, FaultyStore, StoreCall
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_store import MemoryStore
from dwctl_trio.testing.request_bench import RequestBench, open_request_bench
from dwctl_trio.testing.tool_server import ToolReply

LIMITS = Limits(store_wait_s=0.05, store_call_s=0.05, terminal_write_s=0.25, terminal_retry_s=0.01, head_hold_s=0.05)
FOR_EVER = 10_000
WAIT_S = 10.0
HANGING = {Fault.HANG_BEFORE, Fault.HANG_AFTER}
PASSING = [fault for fault in Fault if fault.is_passing]


@attrs.frozen(kw_only=True)
class FaultyBench:
    """A request bench whose store fails as told."""

    requests: RequestBench
    store: FaultyStore
    database: MemoryDatabase

    def step_states(self) -> Counter[str]:
        """How the steps of the last response ended."""
        return Counter(step.state.value for step in self.database.steps_of(self.requests.response_id))

    def told(self) -> Response | None:
        """How the client's stream ended, which kept the grammar; None: it was refused."""
        if self.requests.refused is not None:
            assert not self.requests.told
            return None
        return read_told(self.requests).events[-1].event.response


@asynccontextmanager
async def open_faulty_bench(limits: Limits = LIMITS) -> AsyncIterator[FaultyBench]:
    database = MemoryDatabase()
    store = FaultyStore(MemoryStore(database, daemon_id=uuid4(), limits=limits))
    await store.register_process()
    async with open_request_bench(store, limits, OVERRIDES) as requests:
        yield FaultyBench(requests=requests, store=store, database=database)


def fail(method: str, fault: Fault, *, first: int, times: int) -> object:
    """A plan: calls number *first* to *first* + *times* - 1 of *method* fail, counted from 1."""
    numbers = itertools.count(1)

    def decide(call: StoreCall) -> Fault | None:
        return fault if call.method == method and first <= next(numbers) < first + times else None

    return decide


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name.replace(" ", "-"))
async def test_a_store_that_fails_at_any_call_of_a_loop_costs_no_truth_and_repeats_no_tool(scenario: Scenario) -> None:
    outcomes = Counter[str]()
    async with open_faulty_bench() as bench:
        await bench.requests.serve_stream(scenario.model, **scenario.fields)
        calls = Counter(call.method for call in bench.store.calls if call.method != "register_process")
        places = [(method, number) for method in calls for number in range(1, calls[method] + 1)]
        for (method, first), fault, times in itertools.product(places, PASSING, [1, FOR_EVER]):
            if times > 1 and fault in HANGING and first != 2:
                continue  # each takes all the time there is for a write, and failing at once does the same
            bench.store.plan = fail(method, fault, first=first, times=times)
            await bench.requests.serve_stream(scenario.model, **scenario.fields)
            bench.store.plan = ()
            passes = times == 1 and (method == "advance_response" or fault not in HANGING)
            outcomes[await _check_outcome(bench, scenario, method, passes=passes)] += 1
        bench.database.advance_clock(LIMITS.lease_s + 1)
        rescued = len(await bench.store.rescue_expired())
        assert set(bench.requests.tool_server.calls_by_key.values()) == {1}, "no call was made twice"
    assert {row.state for row in bench.database.rows.values()} <= TERMINAL_STATES
    assert [step for step in bench.database.steps.values() if STEP_MOVES[step.state]] == []
    print(f"store faults, {scenario.name}: {outcomes.total()} cases, {dict(outcomes)}; then rescued: {rescued}")
    assert outcomes["told completed, stored completed"] > 0
    assert outcomes["told failed, stored failed"] > 0
    assert rescued == outcomes["told failed, stored processing"] + outcomes["refused, stored processing"] > 0


async def _check_outcome(bench: FaultyBench, scenario: Scenario, method: str, *, passes: bool) -> str:
    await bench.requests.check_nothing_left()
    told, row = bench.told(), bench.database.rows.get(bench.requests.response_id)
    stored = "no row" if row is None else row.state.value
    if told is None:
        return f"refused, stored {stored}"
    assert row is not None
    if told.status.value == "completed":
        assert row.state is RowState.COMPLETED, "seen completed means stored completed"
        assert bench.step_states() == {"completed": scenario.steps}
        metered = [record for record in bench.database.usage.values() if record.response_id == row.id]
        assert len(metered) == scenario.model_calls
    if passes and method != "open_response":
        assert told.status.value == "completed", "a passing fault loses nothing"
    if row.state in TERMINAL_STATES:
        open_steps = bench.step_states().keys() & {"pending", "processing"}
        assert not open_steps
    return f"told {told.status.value}, stored {stored}"


async def test_a_store_that_fails_in_a_fan_out_cancels_the_siblings_and_marks_them() -> None:
    async with open_faulty_bench() as bench:
        requests, tools = bench.requests, bench.requests.tool_server
        tools.script("/note", ToolReply(pauses_at="head"))
        bench.store.plan = fail("advance_response", Fault.FAIL_BEFORE, first=2, times=FOR_EVER)
        with trio.fail_after(WAIT_S):
            await requests.serve_stream(FAN_OUT.model, **FAN_OUT.fields)
            await requests.check_nothing_left()
        told, row = bench.told(), bench.database.rows[requests.response_id]

    assert told is not None
    assert row.error is not None
    assert (told.status.value, row.state, row.error.type) == ("failed", RowState.FAILED, ErrorType.PERSIST_FAILED)
    steps = {step.name: step.state for step in bench.database.steps_of(requests.response_id)}
    assert steps == {None: StepState.COMPLETED, "look": StepState.COMPLETED, "note": StepState.CANCELED}
    shown = {call.name: call.status.value for call in told.output if isinstance(call, McpCall)}
    assert shown == {"look": "completed", "note": "incomplete"}
    assert (tools.answered, tools.left) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name.replace(" ", "-"))
async def test_an_outage_shorter_than_the_terminal_write_loses_nothing_wherever_it_begins(scenario: Scenario) -> None:
    limits, refusals = attrs.evolve(LIMITS, terminal_write_s=5.0), 20
    async with open_faulty_bench(limits) as bench:
        await bench.requests.serve_stream(scenario.model, **scenario.fields)
        calls = len(bench.store.calls) - 2  # without the registration and the opening, which is not tried again
        for skipped in range(calls):
            faults = iter([None] * (skipped + 1) + [Fault.FAIL_BEFORE] * refusals)
            bench.store.plan = lambda _, faults=faults: next(faults, None)
            await bench.requests.serve_stream(scenario.model, **scenario.fields)
            await bench.requests.check_nothing_left()
            assert next(faults, "used up") == "used up"
            told = bench.told()
            assert told is not None
            assert told.status.value == "completed"
            assert bench.step_states() == {"completed": scenario.steps}
        by_key = bench.requests.tool_server.calls_by_key
    print(f"outages of {refusals} failed writes, {scenario.name}: {calls} places, nothing lost")
    assert by_key.total() == len(by_key) == scenario.tool_calls * (calls + 1)
