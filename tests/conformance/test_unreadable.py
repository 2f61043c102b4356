"""Rows that another release of the server wrote, on both stores: they stop no other, and they end."""

from collections.abc import AsyncIterator, Callable

import attrs
import msgspec
import pytest
import trio
from tests.conformance.conftest import Lab

from dwctl_trio.daemon.producer import Daemon
from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.response import ErrorType
from dwctl_trio.domain.steps import ModelCall, Step, StepState
from dwctl_trio.engine.cancel import cancel_response
from dwctl_trio.engine.enqueue import enqueue
from dwctl_trio.engine.follow import Place, follow, wait_ended
from dwctl_trio.engine.queued import run_claimed
from dwctl_trio.engine.recalling import UNREADABLE
from dwctl_trio.engine.resume import restore
from dwctl_trio.engine.sinks import NoSink
from dwctl_trio.http.stored import cancel_stored, read_stored, show
from dwctl_trio.ports import (
    ClaimedResponse,
    ClaimedUnreadable,
    EventSegment,
    NewResponse,
    Progress,
    QueuedResponse,
    RequeuedResponse,
)
from dwctl_trio.testing.faulty_store import Fault, FaultyStore, Store
from dwctl_trio.testing.memory_rows import MemoryRow
from dwctl_trio.testing.request_bench import OWNER, RequestBench, make_new, open_request_bench

WAIT_S = 20.0
LIMITS = Limits(
    lease_s=600.0, queue_attempts=2, queue_retry_s=0.01, queue_retry_cap_s=0.02, queue_poll_s=0.02,
    segment_interval_s=0.01, cancel_wait_s=0.05,
)  # fmt: skip
ANY = ClaimDemand(rows=10, models={}, other_models=10, owner_rows=10)
NEWER_REQUEST = b'{"model":"echo-2","input":"hi","temperature":"hot"}'
NEWER_EVENT = b'id: 2\nevent: response.newer\ndata: {"type":"response.newer","output_index":0}\n\n'


@attrs.define
class _NewerRelease:
    """A queue into which requests are put that this release cannot read."""

    store: Store

    async def read_clock(self) -> float:
        return await self.store.read_clock()

    async def enqueue_response(self, queued: QueuedResponse) -> None:
        await self.store.enqueue_response(attrs.evolve(queued, request=NEWER_REQUEST))


@attrs.define
class _Bench:
    lab: Lab
    store: FaultyStore
    requests: RequestBench

    async def enqueue(self, *, is_newer: bool = False, store: bool = True) -> NewResponse:
        services = self.requests.services
        if is_newer:
            services = attrs.evolve(services, queue=_NewerRelease(self.store))
        new = make_new("echo-2", stream=True, background=True, store=store)
        await enqueue(services, new)
        return new

    async def work_as_newer(self, new: NewResponse) -> None:
        """Begin the one response that waits, tell of it what this release does not know, and hand it back."""
        (claimed,) = await self.store.claim_responses(ANY)
        step = Step(id=new.first_step_id, sequence=1, descriptor=ModelCall(), state=StepState.PROCESSING)
        await self.store.advance_response(Progress(row=new.row, epoch=claimed.epoch, ended=(), opened=(step,)))
        told = EventSegment(first_sequence=2, last_sequence=2, frames=NEWER_EVENT)
        await self.store.requeue_response(
            RequeuedResponse(row=new.row, epoch=claimed.epoch, delay_s=0.0, counts=False, ended=(), segments=(told,))
        )

    async def row(self, new: NewResponse) -> MemoryRow:
        return (await self.lab.snapshot()).rows[new.response_id]

    async def work_until_ended(self, *awaited: NewResponse) -> None:
        daemon = Daemon(self.requests.services, (ModelRoute(model="*", upstream="simulator", upstream_model="*"),))
        with trio.fail_after(WAIT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(daemon.run)
                for new in awaited:
                    assert await wait_ended(self.requests.services, new.response_id, OWNER)
                nursery.cancel_scope.cancel()
        assert len(self.requests.services.live) == 0

    async def check_end(self, new: NewResponse, status: str, kind: str) -> None:
        """GET shows *status*, with what the response said when it began, and a follower hears it and then the end."""
        shown = await self.shown(new)
        assert shown["status"] == status
        assert (shown["id"], shown["model"], shown["output"]) == (f"resp_{new.response_id}", "echo-2", [])
        send_frames, receive_frames = trio.open_memory_channel[bytes](100)
        with trio.fail_after(WAIT_S), send_frames:
            assert await follow(self.requests.services, new.response_id, OWNER, Place(-1), send_frames)
        frames = b"".join(self.drain(receive_frames)).split(b"\n\n")[:-1]
        numbers = [int(frame.split(b"\n")[0].removeprefix(b"id: ")) for frame in frames]
        assert numbers == list(range(len(frames)))
        data = msgspec.json.decode(frames[-1].split(b"\ndata: ")[1])
        assert (data["type"], data["sequence_number"], data["response"]) == (kind, len(frames) - 1, shown)

    def drain(self, receive_frames: trio.MemoryReceiveChannel[bytes]) -> list[bytes]:
        count = receive_frames.statistics().current_buffer_used
        return [receive_frames.receive_nowait() for _ in range(count)]

    async def shown(self, new: NewResponse) -> dict[str, object]:
        services = self.requests.services
        stored = await read_stored(services, new.response_id, OWNER)
        return msgspec.json.decode(await show(services, stored, OWNER), type=dict)


@pytest.fixture
async def bench(lab: Lab) -> AsyncIterator[_Bench]:
    store = FaultyStore(lab.open_process(LIMITS))
    await store.register_process()
    async with open_request_bench(store, LIMITS) as requests:
        yield _Bench(lab, store, requests)


async def test_a_request_that_cannot_be_read_stops_no_other_and_fails_after_its_attempts(bench):
    poison = await bench.enqueue(is_newer=True)
    healthy = [await bench.enqueue() for _ in range(2)]
    assert (await bench.shown(poison))["status"] == "queued"
    await bench.work_until_ended(*healthy, poison)
    assert [(await bench.row(new)).state for new in healthy] == [RowState.COMPLETED] * 2
    row = await bench.row(poison)
    assert (row.state, row.attempt, row.reclaims) == (RowState.FAILED, LIMITS.queue_attempts, 0)
    assert row.error == UNREADABLE.error
    await bench.check_end(poison, "failed", "response.failed")


async def test_who_claims_it_is_told_all_that_is_needed_to_end_it(bench):
    poison = await bench.enqueue(is_newer=True)
    (claimed,) = await bench.store.claim_responses(ANY)
    assert isinstance(claimed, ClaimedUnreadable)
    assert claimed.row == poison.row
    assert (claimed.epoch, claimed.attempt, claimed.reclaims, claimed.last_sequence) == (1, 1, 0, 1)
    assert claimed.deadline_in_s == pytest.approx(LIMITS.background_deadline_s, abs=WAIT_S)
    assert claimed.created_at == (await bench.shown(poison))["created_at"]


async def test_a_request_that_cannot_be_read_is_cancelled(bench):
    poison = await bench.enqueue(is_newer=True)
    await cancel_stored(bench.requests.services, poison.response_id, OWNER)
    assert (await bench.row(poison)).state is RowState.CANCELED
    await bench.check_end(poison, "cancelled", "response.incomplete")


async def test_a_request_that_cannot_be_read_and_is_to_be_cancelled_is_ended_by_who_claims_it(bench):
    poison = await bench.enqueue(is_newer=True)
    await bench.store.request_cancel(poison.response_id, OWNER)
    await bench.work_until_ended(poison)
    row = await bench.row(poison)
    assert (row.state, row.attempt) == (RowState.CANCELED, 1)
    await bench.check_end(poison, "cancelled", "response.incomplete")


async def test_a_request_that_cannot_be_read_is_not_kept_if_it_is_not_to_be_stored(bench):
    poison = await bench.enqueue(is_newer=True, store=False)
    await bench.work_until_ended(poison)
    row = await bench.row(poison)
    assert (row.state, row.request, row.response) == (RowState.FAILED, None, None)


async def test_what_was_told_and_cannot_be_read_stops_no_other_and_fails_after_its_attempts(bench):
    poison = await bench.enqueue()
    await bench.work_as_newer(poison)
    healthy = await bench.enqueue()
    await bench.work_until_ended(healthy, poison)
    row = await bench.row(poison)
    assert (row.state, row.attempt, row.reclaims) == (RowState.FAILED, LIMITS.queue_attempts, 0)
    await bench.check_end(poison, "failed", "response.failed")
    after = await bench.lab.snapshot()
    (step,) = after.steps_of(poison.response_id)
    assert (step.state, after.usage[step.id].error_code) == (StepState.FAILED, ErrorType.STEP_ABANDONED.value)


async def test_what_was_told_and_cannot_be_read_is_cancelled(bench):
    poison = await bench.enqueue()
    await bench.work_as_newer(poison)
    assert await cancel_response(bench.requests.services, poison.response_id, OWNER)
    assert (await bench.row(poison)).state is RowState.CANCELED
    await bench.check_end(poison, "cancelled", "response.incomplete")


@pytest.mark.parametrize("method", ["read_claimed_steps", "read_told"])
async def test_a_database_that_fails_while_the_past_is_read_costs_one_attempt_and_no_lease(bench, method):
    new = await bench.enqueue()
    (claimed,) = await bench.store.claim_responses(ANY)
    told = EventSegment(first_sequence=2, last_sequence=2, frames=_in_progress(await bench.shown(new)))
    requeued = RequeuedResponse(row=new.row, epoch=claimed.epoch, delay_s=0.0, counts=False, ended=(), segments=(told,))
    await bench.store.requeue_response(requeued)
    (again,) = await bench.store.claim_responses(ANY)
    assert isinstance(again, ClaimedResponse)
    bench.store.plan = once(method)
    await run_claimed(bench.requests.services, again)
    row = await bench.row(new)
    assert (row.state, row.attempt, row.reclaims) == (RowState.PENDING, 1, 0)
    await bench.work_until_ended(new)
    assert (await bench.row(new)).state is RowState.COMPLETED


def _in_progress(response: dict[str, object]) -> bytes:
    data = {"type": "response.in_progress", "sequence_number": 2, "response": {**response, "status": "in_progress"}}
    return b"id: 2\nevent: response.in_progress\ndata: " + msgspec.json.encode(data) + b"\n\n"


def once(method: str) -> Callable[..., Fault | None]:
    """A plan by which the first call of *method* fails."""
    failed: set[str] = set()

    def decide(call) -> Fault | None:
        if call.method != method or failed:
            return None
        failed.add(method)
        return Fault.FAIL_BEFORE

    return decide


async def test_others_have_their_turn_while_much_is_read(bench):
    new = await bench.enqueue()
    (claimed,) = await bench.store.claim_responses(ANY)
    assert isinstance(claimed, ClaimedResponse)
    frame = _in_progress(await bench.shown(new))
    many = attrs.evolve(claimed, was_started=True, told=frame * (4 * 1024 * 1024 // len(frame)))
    turns = await _turns_while_restored(bench, many)
    print(f"{len(many.told)} bytes of events were read in {turns} turns")
    assert turns >= 32


async def _turns_while_restored(bench: _Bench, claimed: ClaimedResponse) -> int:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await restore(bench.requests.services, claimed, NoSink())
        nursery.cancel_scope.cancel()
    return turns
