"""Leases in time: renewed while there is work, given up before others may take them, and swept when they are over."""

from collections.abc import AsyncIterator, Callable
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import attrs
import pytest
import trio
import trio.testing
from tests.conformance.responses import make_finished, make_new

from dwctl_trio.domain.errors import DwctlError, LeaseLost, ServerStopping, StoreUnavailable
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.limits import DEFAULT_LIMITS
from dwctl_trio.engine.leases import LiveResponses, run_lease_renewal, run_rescuer
from dwctl_trio.ports import LeaseStore, NewResponse, RenewedLeases
from dwctl_trio.testing.faulty_store import Fault, FaultyStore, StoreCall
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_store import MemoryStore

LIMITS = DEFAULT_LIMITS
FOREVER_S = 1000.0


@attrs.define(eq=False)
class Process:
    """A process without anything but its leases."""

    database: MemoryDatabase
    live: LiveResponses = attrs.Factory(LiveResponses)
    store: MemoryStore = attrs.field(init=False)
    faulty: FaultyStore = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.store = MemoryStore(self.database, daemon_id=uuid4(), limits=LIMITS)
        self.faulty = FaultyStore(self.store)

    @asynccontextmanager
    async def renewing(self, store: LeaseStore | None = None) -> AsyncIterator[None]:
        """With its lease renewal running for the block."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_lease_renewal, store or self.faulty, self.live, LIMITS)
            yield
            nursery.cancel_scope.cancel()

    async def open_new(self) -> NewResponse:
        new = make_new()
        await self.store.open_response(new)
        return new

    async def work_on(self, new: NewResponse, seconds: float) -> DwctlError | None:
        """Work on an opened response for so long; why it was stopped, None if it was not."""
        with self.live.attempt(new.response_id) as attempt:
            self.live.note_opened(new.response_id)
            try:
                with attempt.work():
                    await trio.sleep(seconds)
            except DwctlError as error:
                return error
            return None

    def state_of(self, new: NewResponse) -> RowState:
        return self.database.rows[new.response_id].state


def failing(
    method: str, until: Callable[[], bool], fault: Fault = Fault.FAIL_BEFORE
) -> Callable[[StoreCall], Fault | None]:
    """A plan: *method* fails as long as *until* is not true."""
    return lambda call: fault if call.method == method and not until() else None


def before(moment_s: float) -> Callable[[], bool]:
    begun_at = trio.current_time()
    return lambda: trio.current_time() - begun_at >= moment_s


@pytest.fixture
def process() -> Process:
    return Process(MemoryDatabase())


@pytest.fixture
def other(process: Process) -> Process:
    """Another process on the same database."""
    return Process(process.database)


# -- renewal


async def test_a_response_that_takes_longer_than_a_lease_keeps_it(process, other, autojump_clock):
    new = await process.open_new()
    async with process.renewing(), trio.open_nursery() as sweeping:
        sweeping.start_soon(run_rescuer, other.store, LIMITS)
        stopped_by = await process.work_on(new, 10 * LIMITS.lease_s)
        sweeping.cancel_scope.cancel()
    assert stopped_by is None
    assert process.state_of(new) is RowState.PROCESSING


async def test_leases_are_renewed_at_once_and_then_at_the_interval(process, autojump_clock):
    async with process.renewing():
        await trio.sleep(3.5 * LIMITS.lease_renewal_s)
    assert [call.method for call in process.faulty.calls] == ["renew_leases"] * 4


async def test_without_renewal_the_same_response_is_lost(process, other, autojump_clock):
    new = await process.open_new()
    async with trio.open_nursery() as sweeping:
        sweeping.start_soon(run_rescuer, other.store, LIMITS)
        await process.work_on(new, LIMITS.lease_s + LIMITS.rescue_interval_s + 1)
        sweeping.cancel_scope.cancel()
    assert process.state_of(new) is RowState.FAILED


async def test_an_attempt_whose_row_was_taken_is_stopped_at_the_next_renewal_and_no_other(
    process, other, autojump_clock
):
    lost, kept = await process.open_new(), await process.open_new()
    outcomes: dict[UUID, tuple[DwctlError | None, float]] = {}

    async def work(new: NewResponse) -> None:
        stopped_by = await process.work_on(new, 5 * LIMITS.lease_renewal_s)
        outcomes[new.response_id] = (stopped_by, trio.current_time() - begun_at)

    begun_at = trio.current_time()
    async with process.renewing(), trio.open_nursery() as working:
        working.start_soon(work, lost)
        working.start_soon(work, kept)
        await trio.sleep(1.5 * LIMITS.lease_renewal_s)
        expired = attrs.evolve(process.database.rows[lost.response_id], lease_expires_at=0.0)
        process.database.put_row(expired)
        assert list(await other.store.rescue_expired()) == [lost.response_id]
    stopped_by, stopped_after_s = outcomes[lost.response_id]
    assert isinstance(stopped_by, LeaseLost)
    assert stopped_after_s == pytest.approx(2 * LIMITS.lease_renewal_s)
    assert outcomes[kept.response_id] == (None, pytest.approx(5 * LIMITS.lease_renewal_s))


async def test_a_process_that_was_frozen_past_its_lease_stops_at_its_next_renewal(process, other, autojump_clock):
    new = await process.open_new()
    async with process.renewing():
        async with trio.open_nursery() as working:
            results = []
            working.start_soon(lambda: _note(results, process.work_on(new, FOREVER_S)))
            await trio.sleep(1)
            process.database.advance_clock(LIMITS.lease_s)
            await other.store.rescue_expired()
        assert isinstance(results[0], LeaseLost)


async def _note(results, awaitable):
    results.append(await awaitable)


# -- when PostgreSQL is away


@pytest.mark.parametrize("fault", [Fault.FAIL_BEFORE, Fault.HANG_BEFORE])
async def test_when_nothing_can_be_renewed_all_attempts_stop_before_anybody_may_rescue_them(
    process, other, fault, autojump_clock
):
    news = [await process.open_new() for _ in range(3)]
    results: list[DwctlError | None] = []
    begun_at = trio.current_time()
    async with process.renewing():
        process.faulty.plan = [None] + [fault] * 1000
        async with trio.open_nursery() as working:
            for new in news:
                working.start_soon(_note, results, process.work_on(new, FOREVER_S))
    assert [type(result) for result in results] == [LeaseLost] * 3
    assert LIMITS.lease_give_up_s <= trio.current_time() - begun_at < LIMITS.lease_s
    assert list(await other.store.rescue_expired()) == []


async def test_the_process_itself_goes_on_and_renews_again(process, autojump_clock):
    first = await process.open_new()
    async with process.renewing():
        process.faulty.plan = failing("renew_leases", before(2 * LIMITS.lease_give_up_s))
        assert isinstance(await process.work_on(first, FOREVER_S), LeaseLost)
        await trio.sleep(LIMITS.lease_give_up_s + LIMITS.lease_renewal_s)
        second = await process.open_new()
        assert await process.work_on(second, 5 * LIMITS.lease_s) is None


async def test_a_short_outage_stops_nothing(process, other, autojump_clock):
    new = await process.open_new()
    async with process.renewing(), trio.open_nursery() as sweeping:
        sweeping.start_soon(run_rescuer, other.store, LIMITS)
        await trio.sleep(1)
        process.faulty.plan = failing("renew_leases", before(LIMITS.lease_give_up_s - 2))
        assert await process.work_on(new, 3 * LIMITS.lease_s) is None
        sweeping.cancel_scope.cancel()
    assert process.state_of(new) is RowState.PROCESSING


async def test_a_renewal_whose_answer_was_lost_counts_as_none_and_harms_nothing(process, autojump_clock):
    new = await process.open_new()
    async with process.renewing():
        process.faulty.plan = [None, Fault.FAIL_AFTER, None, Fault.FAIL_AFTER]
        assert await process.work_on(new, 3 * LIMITS.lease_s) is None


async def test_an_outage_without_attempts_stops_nothing_that_begins_after_it(process, autojump_clock):
    process.faulty.plan = failing("renew_leases", before(10 * LIMITS.lease_s))
    async with process.renewing():
        await trio.sleep(10 * LIMITS.lease_s + 2)
        new = await process.open_new()
        assert await process.work_on(new, 2 * LIMITS.lease_s) is None


# -- what a renewal cannot know


@attrs.define(eq=False)
class SlowRenewal:
    """A store whose renewals begin and end when the test wants."""

    store: MemoryStore
    asked: list[frozenset[UUID]] = attrs.Factory(list)
    begun: trio.Event = attrs.Factory(trio.Event)
    may_end: trio.Event = attrs.Factory(trio.Event)

    async def renew_leases(self, response_ids: AbstractSet[UUID]) -> RenewedLeases:
        self.asked.append(frozenset(response_ids))
        renewed = await self.store.renew_leases(response_ids)
        self.begun.set()
        await self.may_end.wait()
        return renewed


async def test_a_response_that_was_opened_during_a_renewal_is_not_taken_for_lost(process, autojump_clock):
    slow = SlowRenewal(process.store)
    async with process.renewing(slow):
        await slow.begun.wait()
        new = await process.open_new()
        async with trio.open_nursery() as working:
            results = []
            working.start_soon(_note, results, process.work_on(new, 3))
            await trio.testing.wait_all_tasks_blocked()
            slow.may_end.set()
        assert results == [None]
    assert slow.asked == [frozenset()]


async def test_a_response_that_is_not_opened_yet_is_not_asked_for(process, autojump_clock):
    slow = SlowRenewal(process.store)
    slow.may_end.set()
    with process.live.attempt(uuid4()) as attempt:
        async with process.renewing(slow):
            with attempt.work():
                await trio.sleep(2 * LIMITS.lease_renewal_s + 1)
    assert slow.asked == [frozenset()] * 3
    assert attempt.stopped_by is None


async def test_a_response_in_its_terminal_write_is_not_taken_for_lost(process, autojump_clock):
    new = await process.open_new()
    async with process.renewing():
        with process.live.attempt(new.response_id) as attempt:
            process.live.note_opened(new.response_id)
            with attempt.work():
                await trio.sleep(1)
            await process.store.finish_response(make_finished(new))
            await trio.sleep(2 * LIMITS.lease_renewal_s)
    assert attempt.stopped_by is None


async def test_the_lease_is_renewed_for_as_long_as_the_terminal_write_takes(process, other, autojump_clock):
    new = await process.open_new()
    async with process.renewing():
        with process.live.attempt(new.response_id) as attempt:
            process.live.note_opened(new.response_id)
            with attempt.work():
                await trio.sleep(1)
            await trio.sleep(2 * LIMITS.lease_s)
            assert list(await other.store.rescue_expired()) == []
    await trio.sleep(2 * LIMITS.lease_s)
    assert list(await other.store.rescue_expired()) == [new.response_id]


# -- attempts


async def test_an_attempt_is_stopped_once_and_for_its_first_reason(process, autojump_clock):
    new = await process.open_new()
    with process.live.attempt(new.response_id) as attempt:
        process.live.stop(new.response_id, ServerStopping("first"))
        process.live.stop(new.response_id, LeaseLost("second"))
        with pytest.raises(ServerStopping, match="first"), attempt.work():
            await trio.sleep_forever()
    assert len(process.live) == 0


async def test_stopping_what_is_over_or_unknown_does_nothing(process, autojump_clock):
    new = await process.open_new()
    assert await process.work_on(new, 1) is None
    process.live.stop(new.response_id, LeaseLost("too late"))
    process.live.note_opened(uuid4())
    assert process.live.opened() == frozenset()


async def test_the_process_is_idle_when_its_last_attempt_is_over(process, autojump_clock):
    with trio.fail_after(1):
        await process.live.wait_idle()
    new = await process.open_new()
    async with trio.open_nursery() as working:
        working.start_soon(process.work_on, new, 5)
        await trio.testing.wait_all_tasks_blocked()
        begun_at = trio.current_time()
        await process.live.wait_idle()
    assert trio.current_time() - begun_at == pytest.approx(5)


# -- rescuer


async def test_the_first_sweep_is_at_once_and_the_next_after_the_interval(process, other, autojump_clock):
    first = await process.open_new()
    await trio.sleep(LIMITS.lease_s + 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_rescuer, other.faulty, LIMITS)
        await trio.testing.wait_all_tasks_blocked()
        assert process.state_of(first) is RowState.FAILED
        assert len(other.faulty.calls) == 1
        await trio.sleep(LIMITS.rescue_interval_s + 1)
        assert len(other.faulty.calls) == 2
        nursery.cancel_scope.cancel()


async def test_a_dead_process_leaves_nothing_under_way_after_its_lease_and_one_sweep(process, other, autojump_clock):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_rescuer, other.store, LIMITS)
        await trio.sleep(0.7 * LIMITS.rescue_interval_s)
        news = [await process.open_new() for _ in range(5)]
        await trio.sleep(LIMITS.lease_s + LIMITS.rescue_interval_s + 1)
        nursery.cancel_scope.cancel()
    assert {process.state_of(new) for new in news} == {RowState.FAILED}
    assert LIMITS.lease_s + LIMITS.rescue_interval_s <= 60


async def test_a_full_sweep_is_followed_by_another_at_once(process, autojump_clock):
    few = attrs.evolve(LIMITS, rescue_rows=2)
    rescuer = FaultyStore(MemoryStore(process.database, daemon_id=uuid4(), limits=few))
    news = [await process.open_new() for _ in range(5)]
    await trio.sleep(LIMITS.lease_s + 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_rescuer, rescuer, few)
        await trio.testing.wait_all_tasks_blocked()
        assert {process.state_of(new) for new in news} == {RowState.FAILED}
        assert len(rescuer.calls) == 3
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("fault", [Fault.FAIL_BEFORE, Fault.FAIL_AFTER])
async def test_the_rescuer_outlives_an_outage(process, other, fault, autojump_clock):
    other.faulty.plan = [fault] * 3
    new = await process.open_new()
    await trio.sleep(LIMITS.lease_s + 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_rescuer, other.faulty, LIMITS)
        await trio.sleep(3.5 * LIMITS.rescue_interval_s)
        nursery.cancel_scope.cancel()
    assert process.state_of(new) is RowState.FAILED
    assert len(other.faulty.calls) == 4


# -- the fault injection itself


async def test_a_planned_fault_is_before_or_after_the_change(process, autojump_clock):
    process.faulty.plan = [Fault.FAIL_BEFORE, Fault.FAIL_AFTER]
    never, done = make_new(), make_new()
    for new in (never, done):
        with pytest.raises(StoreUnavailable):
            await process.faulty.open_response(new)
    assert set(process.database.rows) == {done.response_id}


async def test_a_planned_hang_ends_by_cancellation_only_and_is_before_or_after_the_change(process, autojump_clock):
    process.faulty.plan = [Fault.HANG_BEFORE, Fault.HANG_AFTER]
    never, done = make_new(), make_new()
    for new in (never, done):
        with trio.move_on_after(FOREVER_S) as scope:
            await process.faulty.open_response(new)
        assert scope.cancelled_caught
    assert set(process.database.rows) == {done.response_id}


async def test_a_response_that_comes_back_to_the_same_process_ends_its_earlier_attempt() -> None:
    live, response_id = LiveResponses(), uuid4()

    with live.attempt(response_id) as earlier:
        with live.attempt(response_id) as later:
            with pytest.raises(LeaseLost), earlier.work():
                await trio.sleep_forever()
            assert later.stopped_by is None
            assert len(live) == 2
        with trio.move_on_after(0) as waiting:
            await live.wait_idle()
        assert waiting.cancelled_caught
    await live.wait_idle()


# -- rows that are locked at the moment


@attrs.define(eq=False)
class LockedRows:
    """A store in which somebody has some rows locked, as far as renewals go."""

    store: MemoryStore
    locked: frozenset[UUID]
    asked: list[tuple[float, frozenset[UUID]]] = attrs.Factory(list)

    async def renew_leases(self, response_ids: AbstractSet[UUID]) -> RenewedLeases:
        self.asked.append((trio.current_time(), frozenset(response_ids)))
        leases = await self.store.renew_leases(response_ids - self.locked)
        return attrs.evolve(leases, skipped=self.locked & response_ids)


async def test_only_what_was_locked_is_tried_again_and_all_are_renewed_at_their_time(process, autojump_clock):
    free, locked = await process.open_new(), await process.open_new()
    store = LockedRows(process.store, frozenset({locked.response_id}))
    both, begun_at, stopped_by = {free.response_id, locked.response_id}, trio.current_time(), []
    async with trio.open_nursery() as working:
        for new in (free, locked):
            working.start_soon(_note, stopped_by, process.work_on(new, 2.5 * LIMITS.lease_renewal_s))
        await trio.testing.wait_all_tasks_blocked()
        async with process.renewing(store):
            await trio.sleep(1.5 * LIMITS.lease_renewal_s)
            store.locked = frozenset()
            await trio.sleep(1.2 * LIMITS.lease_renewal_s)
    times = [at - begun_at for at, ids in store.asked if ids == both]
    assert times == pytest.approx([0.0, LIMITS.lease_renewal_s, 2 * LIMITS.lease_renewal_s])
    again = [at - begun_at for at, ids in store.asked if ids == {locked.response_id}]
    assert len(again) == pytest.approx(1.5 * LIMITS.lease_renewal_s / LIMITS.lease_retry_s, abs=3)
    assert again[-1] == pytest.approx(1.5 * LIMITS.lease_renewal_s, abs=2 * LIMITS.lease_retry_s)
    assert stopped_by == [None, None]


async def test_what_is_lost_while_it_is_tried_again_is_stopped(process, other, autojump_clock):
    new = await process.open_new()
    store = LockedRows(process.store, frozenset({new.response_id}))
    stopped_by = []
    async with trio.open_nursery() as working, process.renewing(store):
        working.start_soon(_note, stopped_by, process.work_on(new, FOREVER_S))
        await trio.sleep(LIMITS.lease_s + 1)
        assert await other.store.rescue_expired() == [new.response_id]
        store.locked = frozenset()
        await trio.sleep(2 * LIMITS.lease_retry_s)
        assert isinstance(stopped_by[0], LeaseLost)
