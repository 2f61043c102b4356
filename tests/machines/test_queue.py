"""The queue, whatever is done to it in whatever order: what the model says, and the invariants of the design.

Source: the design's page on states; invariants I1, I2, I7, I8, I17 to I23 and, of what ends, I27.
"""

import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test
from tests.machines.queue_faults import (
    MEMORY_FAULTS,
    MORE_SQL_FAULTS,
    SQL_FAULTS,
    SqlFault,
    make_claim_function,
    make_faulty,
)
from tests.machines.queue_races import QueueMachine
from tests.machines.queue_world import MemoryWorld, QueueWorld, open_postgres_world
from trio.testing import MockClock

from dwctl_trio import postgres
from dwctl_trio.domain.errors import StoreError
from dwctl_trio.testing.memory_store import MemoryStore

EXAMPLES = 100
EXAMPLES_LONG = 2000
EXAMPLES_FAULTY = 200
"""Within so many a fault is found."""
STEPS = 40
HOST_CLOCK = re.compile(r"^(import|from) (time|datetime|trio)\b", re.MULTILINE)
OTHER_CLOCK = re.compile(r"(?<!dwctl_)\bnow\(|clock_timestamp|current_timestamp|localtimestamp", re.IGNORECASE)


@pytest.fixture
async def queue_world(world_dsn: str | None) -> AsyncIterator[QueueWorld]:
    """A database of each kind in turn."""
    if world_dsn is None:
        yield MemoryWorld()
        return
    async with open_postgres_world(world_dsn) as opened:
        yield opened


@pytest.mark.slow
async def test_the_queue_does_what_its_model_says(queue_world: QueueWorld, mock_clock: MockClock) -> None:
    await check_queue(queue_world, mock_clock, EXAMPLES)


@pytest.mark.long
async def test_the_queue_does_what_its_model_says_for_long(queue_world: QueueWorld, mock_clock: MockClock) -> None:
    await check_queue(queue_world, mock_clock, EXAMPLES_LONG)


@pytest.mark.slow
@pytest.mark.parametrize("store", MEMORY_FAULTS.values(), ids=MEMORY_FAULTS.keys())
async def test_a_wrong_fake_is_found(store: type[MemoryStore], mock_clock: MockClock) -> None:
    await find_fault(MemoryWorld(store), mock_clock)


@pytest.mark.slow
@pytest.mark.parametrize("fault", SQL_FAULTS.values(), ids=SQL_FAULTS.keys())
async def test_a_wrong_statement_is_found(fault: SqlFault, machines_dsn: str, mock_clock: MockClock) -> None:
    await find_sql_fault(fault, machines_dsn, mock_clock)


@pytest.mark.long
@pytest.mark.parametrize("fault", MORE_SQL_FAULTS.values(), ids=MORE_SQL_FAULTS.keys())
async def test_any_wrong_statement_is_found(fault: SqlFault, machines_dsn: str, mock_clock: MockClock) -> None:
    await find_sql_fault(fault, machines_dsn, mock_clock)


def test_no_statement_is_told_what_time_it_is_for_its_process() -> None:
    """I22: time is the database's, in every statement and in what is handed to it."""
    adapter = Path(postgres.__file__).parent
    for name in ("leases", "queue", "responses", "retention", "row_columns", "statements", "step_columns"):
        source = (adapter / f"{name}.py").read_text(encoding="utf-8")
        assert not HOST_CLOCK.search(source), name
    for path in (adapter / "sql").rglob("*.sql"):
        if path.parent.name != "migrations":
            assert not OTHER_CLOCK.search(path.read_text(encoding="utf-8")), path.name


async def find_sql_fault(fault: SqlFault, dsn: str, clock: MockClock) -> None:
    """Play random examples on a wrong statement until one is wrong."""
    async with open_postgres_world(dsn, make_faulty(fault)) as world:
        if fault.query == "dwctl_claim":
            await make_claim_function(world.observer, fault)
        await find_fault(world, clock)


async def find_fault(world: QueueWorld, clock: MockClock) -> None:
    """Play random examples until one is wrong."""
    counts: Counter[str] = Counter()
    with pytest.raises((AssertionError, StoreError)) as found:
        await play(world, clock, counts, settings(max_examples=EXAMPLES_FAULTY, phases=[Phase.generate]))
    print(f"found in example {counts['examples']}: {str(found.value).splitlines()[0][:100]}")


async def check_queue(world: QueueWorld, clock: MockClock, examples: int) -> None:
    """Play random examples and print the figures."""
    counts: Counter[str] = Counter()
    await play(world, clock, counts, settings(max_examples=examples, phases=[Phase.generate, Phase.shrink]))
    print(f"the queue: {dict(sorted(counts.items()))}")
    assert {f"ended: {state}" for state in ("completed", "failed", "canceled")} <= set(counts)
    assert counts["late: lost"] > 0
    assert counts["finish: lost"] > 0
    assert counts["rescue: some"] > examples // 4


async def play(world: QueueWorld, clock: MockClock, counts: Counter[str], how: settings) -> None:
    """Random examples in *world*."""
    clock.rate = 1.0
    failures: list[str] = []
    parts = {"world": world, "counts": counts, "clock": clock, "failures": failures}
    machine = type("Queue", (QueueMachine,), parts)
    bounds = settings(
        how,
        stateful_step_count=STEPS,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
        deadline=None,
        report_multiple_bugs=False,
    )
    try:
        await trio.to_thread.run_sync(lambda: run_state_machine_as_test(machine, settings=bounds))
    except Flaky as flaky:  # after a race it went well the second time
        raise AssertionError(failures) from flaky
