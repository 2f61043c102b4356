"""How the events of a queued response get into the store: soon, seldom, in order, once."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import attrs
import pytest
import trio

from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.errors import DwctlError, LeaseLost, StoreError
from dwctl_trio.domain.events import ContentDelta, ContentKind
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.steps import ModelCall, Step, StepState
from dwctl_trio.engine.emitter import Emitter
from dwctl_trio.engine.enqueue import enqueue
from dwctl_trio.engine.leases import Attempt, LiveResponses
from dwctl_trio.engine.segments import SegmentWriter
from dwctl_trio.engine.state import Services
from dwctl_trio.engine.topics import response_topic
from dwctl_trio.ports import ClaimedResponse, Progress
from dwctl_trio.testing.faulty_store import Fault, FaultyStore
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_store import MemoryStore
from dwctl_trio.testing.request_bench import make_new
from dwctl_trio.tools.http_tools import HttpToolRunner

_LIMITS = Limits(segment_bytes=4096, queued_event_bytes=1024 * 1024, lease_s=600.0)
_ANY = ClaimDemand(rows=1, models={}, other_models=1, owner_rows=1)
_APPEND = "append_events"


class _NoUpstream:
    def open_turn(self, call: object) -> object:
        raise AssertionError(call)


@attrs.define(eq=False)
class _Run:
    """A claimed response whose events come up as the test wants them."""

    database: MemoryDatabase
    store: FaultyStore
    services: Services
    claimed: ClaimedResponse
    writer: SegmentWriter
    emitter: Emitter
    attempt: Attempt
    written_at: list[float] = attrs.field(factory=list)
    """When each write of events began."""

    async def emit(self, text: str = "word ") -> None:
        await self.emitter.emit([ContentDelta(ContentKind.TEXT, 0, "msg_1", 0, text)])

    def numbers(self) -> list[int]:
        """Of the stored events."""
        frames = b"".join(one.frames for one in self.database.events[self.claimed.new.response_id].segments)
        return [int(line[4:]) for line in frames.split(b"\n") if line.startswith(b"id: ")]

    def plan(self, *faults: Fault | None) -> None:
        """What goes wrong with the next writes of events."""
        planned = iter(faults)

        def decide(call: object) -> Fault | None:
            if call.method != _APPEND:
                return None
            self.written_at.append(trio.current_time())
            return next(planned, None)

        self.store.plan = decide


@asynccontextmanager
async def _open_run(limits: Limits = _LIMITS) -> AsyncIterator[_Run]:
    database = MemoryDatabase()
    store = FaultyStore(MemoryStore(database, daemon_id=uuid4(), limits=limits))
    services = Services(
        store=store,
        conversations=store,
        queue=store,
        events=store,
        upstream=_NoUpstream(),
        chat=_NoUpstream(),
        tools=HttpToolRunner(limits),
        catalog={},
        limits=limits,
        live=LiveResponses(),
    )
    await enqueue(services, make_new("echo-1", stream=True, background=True))
    (claimed,) = await store.claim_responses(_ANY)
    first = Step(id=claimed.new.first_step_id, sequence=1, descriptor=ModelCall(), state=StepState.PROCESSING)
    await store.advance_response(Progress(row=claimed.new.row, epoch=claimed.epoch, ended=(), opened=(first,)))
    with services.live.attempt(claimed.new.response_id) as attempt:
        writer = SegmentWriter(services, claimed.new.response_id, claimed.epoch, attempt)
        emitter = Emitter(writer, log_bytes_max=math.inf, first_number=claimed.last_sequence + 1)
        run = _Run(database, store, services, claimed, writer, emitter, attempt)
        run.plan()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run, emitter)
            yield run
            nursery.cancel_scope.cancel()


async def test_the_first_event_is_stored_at_once_and_then_ten_writes_a_second_at_the_most(autojump_clock) -> None:
    async with _open_run() as run:
        begun_at = trio.current_time()
        for _ in range(600):
            await run.emit()
            await trio.sleep(0.005)
        await trio.sleep(_LIMITS.segment_interval_s)

        assert run.written_at[0] == begun_at
        gaps = [after - before for before, after in zip(run.written_at, run.written_at[1:], strict=False)]
        assert min(gaps) == pytest.approx(_LIMITS.segment_interval_s)
        assert 29 <= len(run.written_at) <= 31
        assert run.numbers() == list(range(602))


async def test_whoever_listens_is_told_of_a_segment_once_it_is_stored(autojump_clock) -> None:
    async with _open_run() as run:
        with run.services.wakeups.listen(response_topic(run.claimed.new.response_id)) as wakeup:
            await run.emit()
            await wakeup.wait()

            assert run.numbers() == [0, 1, 2]


@pytest.mark.parametrize("fault", [Fault.FAIL_BEFORE, Fault.FAIL_AFTER, Fault.HANG_BEFORE, Fault.HANG_AFTER])
async def test_a_segment_whose_commit_is_unknown_is_written_again_before_any_other(fault, autojump_clock) -> None:
    async with _open_run() as run:
        run.plan(fault, fault, None)
        await run.emit()
        await trio.sleep(0.01)
        await run.emit()
        await trio.sleep(_LIMITS.store_wait_s + _LIMITS.store_call_s + 1)
        await run.emit()
        await trio.sleep(_LIMITS.store_wait_s + _LIMITS.store_call_s + 1)

        assert run.numbers() == [0, 1, 2, 3, 4]
        assert run.emitter.unstored() == ()


async def test_what_is_not_known_to_be_stored_is_there_for_the_last_write(autojump_clock) -> None:
    async with _open_run() as run:
        run.plan(Fault.HANG_BEFORE)
        await run.emit()
        await trio.sleep(0.01)
        await run.emit()

    assert [(one.first_sequence, one.last_sequence) for one in run.emitter.unstored()] == [(2, 2), (3, 3)]


async def test_the_run_waits_while_too_much_is_not_stored(autojump_clock) -> None:
    async with _open_run() as run:
        run.plan(*[Fault.FAIL_BEFORE] * 40)
        sent = 0
        with trio.move_on_after(2.0):
            while True:
                await run.emit("x" * 100)
                sent += 1

        assert run.emitter.unstored_bytes < 2 * _LIMITS.segment_bytes
        await trio.sleep(60)
        await run.emit()
        await trio.sleep(_LIMITS.segment_interval_s * 2)
        assert run.numbers() == list(range(sent + 4))  # the one that waited is numbered as well


async def test_a_worker_that_has_lost_its_row_stores_nothing_and_is_stopped(autojump_clock) -> None:
    async with _open_run() as run:
        run.database.advance_clock(_LIMITS.lease_s + 1)
        await run.store.rescue_expired()
        with pytest.raises(LeaseLost), run.attempt.work():
            await run.emit()
            await trio.sleep_forever()

        assert run.numbers() == [0, 1]


async def test_tasks_that_emit_side_by_side_do_not_wait_for_what_is_stored_already(autojump_clock) -> None:
    async with _open_run() as run:
        with trio.fail_after(60):
            async with trio.open_nursery() as tools:
                for _ in range(5):
                    tools.start_soon(run.emit, "x" * (_LIMITS.segment_bytes + 1))
            await run.emit()
            await trio.sleep(1)

        assert run.numbers() == list(range(8))


async def test_a_refused_segment_stops_the_worker_which_still_has_its_row(autojump_clock) -> None:
    async with _open_run() as run:
        with pytest.raises(StoreError), run.attempt.work():
            run.store.plan = _refuse
            await run.emit()
            await trio.sleep_forever()

        assert not isinstance(run.attempt.stopped_by, LeaseLost)


def _refuse(call: object) -> None:
    if call.method == _APPEND:
        raise StoreError("PostgreSQL refused the statement")


async def test_a_response_with_more_events_than_are_kept_fails(autojump_clock) -> None:
    async with _open_run(attrs.evolve(_LIMITS, queued_event_bytes=2048)) as run:
        with pytest.raises(DwctlError, match="more events than this server keeps"):
            for _ in range(20):
                await run.emit()
                await trio.sleep(1)
