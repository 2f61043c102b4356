"""What the engine counts when the store fails: writes, openings, leases and rescues."""

from uuid import uuid4

import pytest
import trio
import trio.testing
from tests.conformance.responses import make_new
from tests.observability.scrapes import Scrape

from dwctl_trio.domain.errors import StoreError
from dwctl_trio.domain.limits import DEFAULT_LIMITS, Limits
from dwctl_trio.engine.leases import LiveResponses, run_lease_renewal, run_rescuer
from dwctl_trio.observability.metrics import Metrics
from dwctl_trio.testing.faulty_store import Fault, FaultyStore, StoreCall
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_store import MemoryStore
from dwctl_trio.testing.request_bench import open_request_bench

QUICK = Limits(store_wait_s=0.05, store_call_s=0.05, terminal_write_s=0.2, terminal_retry_s=0.01, head_hold_s=0.05)
LABELS = ("model", "upstream", "status", "error_type")


def make_store(database: MemoryDatabase | None = None) -> FaultyStore:
    return FaultyStore(MemoryStore(database or MemoryDatabase(), daemon_id=uuid4(), limits=DEFAULT_LIMITS))


def fail_times(method: str, times: int, fault: Fault = Fault.FAIL_BEFORE):
    """A plan: so many calls of *method* fail, then no more."""
    left = [times]

    def decide(call: StoreCall) -> Fault | None:
        if call.method != method or left[0] == 0:
            return None
        left[0] -= 1
        return fault

    return decide


async def run(plan, model: str = "echo-2") -> Scrape:
    """What one streamed response leaves in the metrics, over a store that fails as planned."""
    database = MemoryDatabase()
    store = make_store(database)
    await store.register_process()
    store.plan = plan
    async with open_request_bench(store, QUICK) as bench:
        await bench.serve_stream(model)
        return Scrape(bench.services.metrics.render().decode())


def given_up(seen: Scrape) -> dict[str, float]:
    rows = seen.rows("dwctl_terminal_writes_given_up_total", "reason")
    return {reason: count for (reason,), count in rows.items() if count}


async def test_a_response_without_trouble_counts_no_failure() -> None:
    seen = await run(())

    assert seen.rows("dwctl_responses_total", *LABELS) == {("*", "simulator", "completed", ""): 1}
    assert seen.value("dwctl_terminal_write_failures_total") == 0
    assert seen.value("dwctl_opening_failures_total") == 0
    assert given_up(seen) == {}


async def test_a_terminal_write_that_succeeds_at_the_third_try_counts_two_failures_and_nothing_given_up() -> None:
    seen = await run(fail_times("finish_response", 2))

    assert seen.value("dwctl_terminal_write_failures_total") == 2
    assert given_up(seen) == {}
    assert seen.rows("dwctl_responses_total", *LABELS) == {("*", "simulator", "completed", ""): 1}


@pytest.mark.parametrize("fault", [Fault.FAIL_BEFORE, Fault.HANG_BEFORE])
async def test_a_terminal_write_that_never_succeeds_is_given_up_and_the_response_counts_as_failed(fault) -> None:
    seen = await run(fail_times("finish_response", 10_000, fault))

    assert given_up(seen) == {"timeout": 1}
    assert seen.rows("dwctl_responses_total", *LABELS) == {("*", "simulator", "failed", "persist_failed"): 1}


async def test_a_row_that_cannot_be_opened_is_counted() -> None:
    seen = await run(fail_times("open_response", 1))

    assert seen.value("dwctl_opening_failures_total") == 1
    assert given_up(seen) == {}
    assert seen.rows("dwctl_responses_total", *LABELS) == {("*", "simulator", "failed", "persist_failed"): 1}


async def test_a_terminal_write_whose_row_is_somebody_elses_is_counted_as_a_lost_lease() -> None:
    database = MemoryDatabase()
    store = make_store(database)
    await store.register_process()
    async with open_request_bench(store, QUICK) as bench, trio.open_nursery() as nursery:
        nursery.start_soon(bench.serve_stream, "pause-1-2")
        await bench.simulator.wait_until(lambda counts: counts.paused == 1)
        database.advance_clock(DEFAULT_LIMITS.lease_s + 1)
        assert len(await make_store(database).rescue_expired()) == 1
        bench.simulator.resume_all()
        await bench.services.live.wait_idle()
        seen = Scrape(bench.services.metrics.render().decode())

    assert given_up(seen) == {"lease_lost": 1}
    assert seen.rows("dwctl_responses_total", *LABELS) == {("*", "simulator", "failed", "persist_failed"): 1}


async def test_a_terminal_write_that_the_store_will_never_take_is_counted_as_refused() -> None:
    def refuse(call: StoreCall) -> None:
        if call.method == "finish_response":
            raise StoreError("a constraint, as the test planned")

    seen = await run(refuse)

    assert given_up(seen) == {"refused": 1}
    assert seen.value("dwctl_terminal_write_failures_total") == 0


@pytest.mark.parametrize("fault", [Fault.FAIL_BEFORE, Fault.HANG_BEFORE])
async def test_every_try_to_renew_that_fails_is_counted_also_one_that_hangs(fault, autojump_clock) -> None:
    store, metrics = make_store(), Metrics()
    store.plan = fail_times("renew_leases", 3, fault)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_lease_renewal, store, LiveResponses(), DEFAULT_LIMITS, metrics)
        await trio.sleep(10 * DEFAULT_LIMITS.lease_renewal_s)
        nursery.cancel_scope.cancel()

    assert Scrape(metrics.render().decode()).value("dwctl_lease_renewal_failures_total") == 3


async def test_rescued_responses_and_failed_sweeps_are_counted(autojump_clock) -> None:
    database, metrics = MemoryDatabase(), Metrics()
    dead, rescuer = make_store(database), make_store(database)
    for _ in range(3):
        await dead.open_response(make_new())
    rescuer.plan = fail_times("rescue_expired", 2)
    await trio.sleep(DEFAULT_LIMITS.lease_s + 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_rescuer, rescuer, DEFAULT_LIMITS, metrics)
        await trio.sleep(3.5 * DEFAULT_LIMITS.rescue_interval_s)
        nursery.cancel_scope.cancel()

    seen = Scrape(metrics.render().decode())
    assert seen.value("dwctl_rescued_responses_total") == 3
    assert seen.value("dwctl_rescue_failures_total") == 2
