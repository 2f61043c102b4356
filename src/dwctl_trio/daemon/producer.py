"""The producer: claims as many rows as there are free workers, and starts a worker for each.

    told, or a poll ── claim_responses ── a worker for each row ── its place is free again

Rule 1: whoever claims has a worker for it: nothing waits in memory.
Rule 2: an error of a claim is logged and counted, and the next claim comes later; it never ends the producer.
Rule 3: a worker's fault ends its row's attempt, never the daemon.
Rule 4: a claim that has begun ends, also when the process does; its rows are handed back then.

The words are Oban's.
"""

import random
from collections.abc import Sequence
from typing import NoReturn

import attrs
import trio

from dwctl_trio.config.values import find_route
from dwctl_trio.domain.claiming import ClaimDemand, make_demand
from dwctl_trio.domain.errors import StoreError
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.retry import backoff_s
from dwctl_trio.engine import topics
from dwctl_trio.engine.chat import run_claimed_chat
from dwctl_trio.engine.handing_back import Unfinished, hand_back
from dwctl_trio.engine.queued import run_claimed, run_claimed_unreadable
from dwctl_trio.engine.state import Services
from dwctl_trio.engine.wakeups import wait_for
from dwctl_trio.observability.log import get_logger
from dwctl_trio.observability.queue_metrics import HandedBack
from dwctl_trio.ports import (
    Claimed,
    ClaimedChat,
    ClaimedResponse,
    ClaimedUnreadable,
    NewResponse,
    QueueStore,
    Wakeup,
)

_log = get_logger(__name__)


@attrs.define(eq=False)
class Daemon:
    """The workers of one process.

    Args:
        services: What responses are worked on with.
        routes: The models that can be served, in the configuration's order.
    """

    _services: Services
    _routes: tuple[ModelRoute, ...]
    _busy: int = 0
    _freed: trio.Event = attrs.field(factory=trio.Event)
    _claiming: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _is_idle: trio.Event = attrs.field(factory=trio.Event)

    @property
    def queue(self) -> QueueStore:
        """Where rows are claimed."""
        return self._services.queue

    def stop(self) -> None:
        """Begin no claim any more; what is worked on goes on, and what is just being claimed is handed back."""
        self._claiming.cancel()

    async def wait_idle(self) -> None:
        """Return when, after ``stop``, nothing is being claimed or worked on any more."""
        await self._is_idle.wait()

    async def run(self) -> None:
        """Claim and work until it is stopped and the last worker has ended.

        Cancellation: rows under way are handed back, each within its bounds.
        """
        try:
            with self._services.wakeups.listen(topics.QUEUE) as wakeup:
                async with trio.open_nursery() as workers:
                    with self._claiming:
                        async with trio.open_nursery() as claiming:
                            claiming.start_soon(self._claim_overdue, workers, name="overdue")
                            await self._claim_for_ever(wakeup, workers)
        finally:
            self._is_idle.set()

    async def _claim_for_ever(self, wakeup: Wakeup, workers: trio.Nursery) -> NoReturn:
        limits, failures = self._services.limits, 0
        while True:
            claimed = await self._try_to_claim()
            if claimed is None:
                failures += 1
                pause_s = backoff_s(failures, jitter=random.random(), limits=limits)  # noqa: S311
                await wait_for(wakeup, min(pause_s, limits.queue_claim_retry_cap_s))
                continue
            failures = 0
            for row in claimed:
                self._busy += 1
                workers.start_soon(self._work_and_free, row, name="worker")
            if not claimed:
                await wait_for(wakeup, limits.queue_poll_s)

    async def _claim_overdue(self, enders: trio.Nursery) -> NoReturn:
        """End what is past its deadline, for ever, also where all workers are busy or there are none."""
        limits, nothing = self._services.limits, {route.model: 0 for route in self._routes}
        demand = ClaimDemand(rows=limits.rescue_rows, models=nothing, other_models=0, owner_rows=1)
        while True:
            await trio.sleep(limits.queue_overdue_s)
            for row in await self._claim(demand) or ():
                enders.start_soon(self._work, row, name="ender")

    async def _try_to_claim(self) -> Sequence[Claimed] | None:
        """Rows for the free workers, as soon as there is one; None if they could not be claimed."""
        limits = self._services.limits
        while self._busy >= limits.queue_workers:
            await self._freed.wait()
        await trio.lowlevel.checkpoint()
        return await self._claim(make_demand(self._routes, limits, rows=limits.queue_workers - self._busy))

    async def _claim(self, demand: ClaimDemand) -> Sequence[Claimed] | None:
        """Rows as *demand* says; None if they could not be claimed.

        Cancellation: a claim that has begun is shielded and bounded, for nobody would work on its rows.
        """
        limits = self._services.limits
        try:
            with trio.move_on_after(limits.store_wait_s + limits.store_call_s, shield=True):
                return await self.queue.claim_responses(demand)
            _log.warning("claim_failed", reason="the database did not answer in time")
        except StoreError as error:
            _log.warning("claim_failed", reason=str(error))
        except Exception:  # noqa: BLE001 - supervision boundary: the producer, whose next claim may do better
            _log.exception("claim_failed")
        self._services.metrics.queue.claim_failures.inc()
        return None

    async def _work_and_free(self, claimed: Claimed) -> None:
        """Work on one row, and make room for another."""
        try:
            await self._work(claimed)
        finally:
            self._busy -= 1
            self._freed.set()
            self._freed = trio.Event()

    async def _work(self, claimed: Claimed) -> None:
        """Work on one row."""
        try:
            if self._claiming.cancel_called:
                await self._put_back(claimed)
            else:
                await self._run_claimed(claimed)
        except Exception:  # noqa: BLE001 - supervision boundary: a worker round its row
            _log.exception("worker_failed", response_id=response_id_text(claimed.row.response_id))

    async def _put_back(self, claimed: Claimed) -> None:
        """Hand back a row that came when nothing is begun any more."""
        unbegun = Unfinished(row=claimed.row, epoch=claimed.epoch, ended_steps=tuple, segments=())
        await hand_back(self._services, unbegun, HandedBack.STOPPING)

    async def _run_claimed(self, claimed: Claimed) -> None:
        self._services.metrics.queue.note_claimed(claimed.row.service_tier.value, claimed.age_s)
        match claimed:
            case ClaimedResponse(new=new):
                self._warn_of_missing_tools(new)
                # Where it goes, and at what price, is what this process is configured to, whoever enqueued it.
                route = find_route(self._routes, new.request.model) or new.route
                await run_claimed(self._services, attrs.evolve(claimed, new=attrs.evolve(new, route=route)))
            case ClaimedUnreadable():
                await run_claimed_unreadable(self._services, claimed)
            case ClaimedChat():
                route = find_route(self._routes, claimed.route.model) or claimed.route
                await run_claimed_chat(self._services, attrs.evolve(claimed, route=route))

    def _warn_of_missing_tools(self, new: NewResponse) -> None:
        """The model is told that these tools do not exist, as the configuration of this process has it."""
        offered = [tool.name for tool in new.tools if tool.kind is CallKind.SERVER]
        missing = [name for name in offered if name not in self._services.catalog]
        if missing:
            _log.warning("tools_not_configured", response_id=response_id_text(new.response_id), tools=missing)
