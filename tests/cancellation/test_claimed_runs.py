"""A worker cancelled at every one of its task steps: the row goes back, and whoever claims it next loses nothing."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any
from uuid import UUID

import attrs
import msgspec
import pytest
import trio
from tests.cancellation.benches import SweepBench, open_memory_bench, open_postgres_bench

from dwctl_trio.domain.assembly import fold
from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.event_grammar import check_stream
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.engine.cancel import cancel_response
from dwctl_trio.engine.enqueue import enqueue
from dwctl_trio.engine.queued import run_claimed
from dwctl_trio.ports import ClaimedResponse
from dwctl_trio.testing.cancel_sweep import sweep_cancellation
from dwctl_trio.testing.request_bench import OWNER, make_new
from dwctl_trio.testing.wire import parse_response, read_stream

PLANS = {
    "an answer in several reads": "each-4",
    "a tool, and an answer": "tools-1-then-echo-2",
    "a failure that may pass": "error-500",
    "a failure for good": "error-400",
}
TOOLS = [{"name": "read", "url": "/read", "parameters": {"type": "object"}, "idempotent": True}]
_ANY = ClaimDemand(rows=1, models={}, other_models=10_000, owner_rows=10_000)
_AGAIN_S_MAX = 30.0


@attrs.define(eq=False)
class _Worker:
    """One response after the other, each worked on once by somebody who may be cancelled."""

    bench: SweepBench
    response_id: UUID | None = None
    request: ResponseRequest | None = None

    async def enqueue(self, model: str) -> None:
        services = self.bench.requests.services
        new = make_new(model, stream=True, catalog=services.catalog, background=True)
        self.response_id, self.request = new.response_id, new.request
        await enqueue(services, new)

    async def work(self) -> bool:
        """Work on what waits; whether anything did."""
        services = self.bench.requests.services
        waiting = await services.queue.claim_responses(_ANY)
        for claimed in waiting:
            assert isinstance(claimed, ClaimedResponse)
            await run_claimed(services, claimed)
        return bool(waiting)

    async def state(self) -> RowState:
        assert self.response_id is not None
        page = await self.bench.requests.services.events.read_events(self.response_id, OWNER, -1)
        assert page is not None
        return page.state

    async def finish(self) -> str:
        """Work until the response has ended; how it did."""
        assert self.response_id is not None
        services = self.bench.requests.services
        has_worked = False
        with trio.fail_after(_AGAIN_S_MAX):
            while (state := await self.state()) in {RowState.PENDING, RowState.PROCESSING}:
                has_worked = await self.work()
                await trio.lowlevel.checkpoint()
        if state is RowState.CLAIMED and not has_worked:
            return "claimed"  # the cancelled claim was committed after all
        page = await services.events.read_events(self.response_id, OWNER, -1)
        stored = await services.store.read_response(self.response_id, OWNER)
        assert page is not None
        assert stored is not None
        assert stored.body is not None
        assert self.request is not None
        stream = read_stream(b"".join(segment.frames for segment in page.segments), self.request)
        assert check_stream(stream.events) is None
        assert fold([numbered.event for numbered in stream.events]) == parse_response(
            msgspec.json.decode(stored.body), self.request
        )
        return str(msgspec.json.decode(stored.body)["status"])


@asynccontextmanager
async def _open_bench(dsn: str | None) -> AsyncIterator[SweepBench]:
    overrides: dict[str, Any] = {"tools": TOOLS}
    opening = open_memory_bench(overrides) if dsn is None else open_postgres_bench(dsn, overrides)
    async with opening as bench:
        limits = attrs.evolve(
            bench.requests.services.limits, queue_retry_s=0.01, queue_retry_cap_s=0.02, segment_interval_s=0.01,
            queue_attempts=3, follow_segments=1000,
        )  # fmt: skip
        bench.requests.services = attrs.evolve(bench.requests.services, limits=limits)
        yield bench


async def _sweep(dsn: str | None) -> None:
    runs, ends = 0, dict[str, int]()
    async with _open_bench(dsn) as bench:
        worker = _Worker(bench)
        for model in PLANS.values():
            await worker.enqueue(model)
            async with aclosing(sweep_cancellation(worker.work)) as sweep:
                async for _ in sweep:
                    assert len(bench.requests.services.live) == 0
                    state = await worker.state()
                    # Cancelled between the claim and its worker it is the rescuer's.
                    status = "claimed" if state is RowState.CLAIMED else await worker.finish()
                    ends[status] = ends.get(status, 0) + 1
                    await bench.requests.check_nothing_left()
                    runs += 1
                    await worker.enqueue(model)
            await cancel_response(bench.requests.services, worker.response_id, OWNER)  # type: ignore[arg-type]
    print(f"cancel sweep, claimed runs, {'memory' if dsn is None else 'PostgreSQL'}: {runs} runs, ended {ends}")
    assert ends["completed"] > 10
    assert ends["failed"] > 10


@pytest.mark.slow
async def test_a_worker_may_be_cancelled_at_every_step_in_memory() -> None:
    await _sweep(None)


@pytest.mark.slow
async def test_a_worker_may_be_cancelled_at_every_step_on_postgresql(postgres_dsn: str) -> None:
    await _sweep(postgres_dsn)
