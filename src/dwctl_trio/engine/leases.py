"""The responses this process is working on, and the proof that it still may.

Rule 1: a lease is renewed by one statement a process, in a task of its own, also while draining.
Rule 2: an attempt whose lease is lost, or could not be renewed in time, is stopped; the process never is.
Rule 3: clean-up code is an optimisation; the rescuer is the guarantee.

Source: the design's page on states and leases; invariants I18, I20 and I21.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn
from uuid import UUID

import attrs
import structlog
import trio

from dwctl_trio.domain.errors import DeadlineExceeded, DwctlError, LeaseLost, ResponseCancelled, StoreError
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.limits import Limits
from dwctl_trio.engine import topics
from dwctl_trio.engine.wakeups import wait_for
from dwctl_trio.observability.metrics import Metrics
from dwctl_trio.ports import LeaseStore, RenewedLeases, Wakeups

_log = structlog.get_logger(__name__)

_RETRY_S = 1.0
"""Between two tries to renew while the store is down."""


@attrs.define(eq=False)
class Attempt:
    """One response being worked on; its work can be stopped from outside, with a reason."""

    opened: bool = False
    """Whether its row is known to exist, so that a renewal must find it."""
    working: bool = True
    """False once the terminal write is all that is left: the row may then be terminal at any moment."""
    stopped_by: DwctlError | None = None
    over: trio.Event = attrs.field(factory=trio.Event)
    """Set when this process will write nothing more of it."""
    _scope: trio.CancelScope | None = None

    @contextmanager
    def work(self, deadline: float = math.inf) -> Iterator[None]:
        """The part that can be stopped, and that ends at *deadline* by Trio's clock.

        Raises:
            DwctlError: The reason it was stopped for.
        """
        scope = self._scope = trio.CancelScope(deadline=deadline)
        if self.stopped_by is not None:
            scope.cancel()
        try:
            with scope:
                yield
        finally:
            self.working = False
        if scope.cancelled_caught:
            raise self.stopped_by or DeadlineExceeded("The response took longer than a response may on this server.")

    def stop(self, reason: DwctlError) -> None:
        """Cancel the work; the first reason stays."""
        if self.stopped_by is None:
            self.stopped_by = reason
        if self._scope is not None:
            self._scope.cancel()


class LiveResponses:
    """All attempts of this process."""

    def __init__(self) -> None:
        self._attempts: dict[UUID, Attempt] = {}
        """The latest at each response."""
        self._count = 0
        self._idle = trio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return self._count

    @contextmanager
    def attempt(self, response_id: UUID) -> Iterator[Attempt]:
        """An attempt for the time of the block, whose lease is renewed as long.

        An earlier one at the same response, which has lost its row without knowing it yet, is stopped.
        """
        self.stop(response_id, LeaseLost("the row was claimed anew, by this very process"))
        attempt = self._attempts[response_id] = Attempt()
        self._count += 1
        if self._idle.is_set():
            self._idle = trio.Event()
        try:
            yield attempt
        finally:
            if self._attempts.get(response_id) is attempt:
                del self._attempts[response_id]
            attempt.over.set()
            self._count -= 1
            if not self._count:
                self._idle.set()

    async def wait_idle(self) -> None:
        """Return when nothing is being worked on."""
        await self._idle.wait()

    async def wait_over(self, response_id: UUID) -> None:
        """Return when this response is not being worked on here, or not any more."""
        attempt = self._attempts.get(response_id)
        if attempt is not None:
            await attempt.over.wait()

    def note_opened(self, response_id: UUID) -> None:
        """The row of this response exists now."""
        attempt = self._attempts.get(response_id)
        if attempt is not None:
            attempt.opened = True

    def opened(self) -> frozenset[UUID]:
        """The responses whose rows a renewal that begins now must find."""
        return frozenset(response_id for response_id, attempt in self._attempts.items() if attempt.opened)

    def stop(self, response_id: UUID, reason: DwctlError) -> None:
        """Stop one attempt; nothing happens if it is over or about to be."""
        attempt = self._attempts.get(response_id)
        if attempt is not None and attempt.working:
            attempt.stop(reason)

    def stop_all(self, make_reason: Callable[[], DwctlError]) -> None:
        """Stop every attempt."""
        for response_id in list(self._attempts):
            self.stop(response_id, make_reason())


async def run_lease_renewal(
    store: LeaseStore, live: LiveResponses, limits: Limits, metrics: Metrics | None = None
) -> NoReturn:
    """Renew the leases of this process for ever, and stop attempts whose lease is gone.

    Args:
        store: Where they are renewed.
        live: Whose leases they are.
        limits: How often, and when to give up.
        metrics: Where failures are counted; None: nowhere.
    """
    failures = (metrics or Metrics()).lease_renewal_failures
    renewed_at = trio.current_time()
    while True:
        expected, begun_at = live.opened(), trio.current_time()
        give_up_at = renewed_at + limits.lease_give_up_s
        leases: RenewedLeases | None = None
        with trio.move_on_at(max(give_up_at, begun_at + limits.lease_renewal_s)) as patience:
            leases = await _try_to_renew(store, expected)
        if patience.cancelled_caught:
            _log.warning("lease_renewal_failed", reason="the database did not answer in time")
        if leases is not None:
            renewed_at = begun_at
            _stop_lost(live, expected, leases)
            with trio.move_on_after(limits.lease_renewal_s):
                await _renew_skipped(store, live, limits, leases.skipped)
                await trio.sleep_forever()
            continue
        failures.inc()
        if trio.current_time() >= give_up_at:
            for response_id in live.opened():  # the others hold no lease yet, and hear of the database themselves
                live.stop(response_id, LeaseLost("the leases of this process could not be renewed in time"))
        await trio.sleep(min(_RETRY_S, limits.lease_renewal_s))


async def _renew_skipped(store: LeaseStore, live: LiveResponses, limits: Limits, skipped: frozenset[UUID]) -> None:
    """Renew the leases of rows that were locked, as soon as they are not.

    Rows that stream are locked ten times a second: one that waited for the next renewal of all might be locked again.
    """
    while skipped:
        await trio.sleep(limits.lease_retry_s)
        expected = skipped & live.opened()
        leases = await _try_to_renew(store, expected) if expected else RenewedLeases()
        if leases is None:
            await trio.sleep(_RETRY_S)
            continue
        _stop_lost(live, expected, leases)
        skipped = leases.skipped


def _stop_lost(live: LiveResponses, expected: frozenset[UUID], leases: RenewedLeases) -> None:
    for response_id in expected - leases.renewed - leases.skipped:
        live.stop(response_id, LeaseLost("the row is no longer this process's"))


async def _try_to_renew(store: LeaseStore, response_ids: frozenset[UUID]) -> RenewedLeases | None:
    """What became of the leases of *response_ids*; None if the store cannot renew any now."""
    try:
        return await store.renew_leases(response_ids)
    except StoreError as error:
        _log.warning("lease_renewal_failed", reason=str(error))
    except Exception:  # noqa: BLE001 - supervision boundary: the renewal, without which every stream of the process would end
        _log.exception("lease_renewal_failed")
    return None


async def run_lease_watch(store: LeaseStore, live: LiveResponses, limits: Limits, wakeups: Wakeups) -> NoReturn:
    """Stop attempts that are no longer this process's, or that somebody wants cancelled, for ever.

    Args:
        store: Where that is seen.
        live: The attempts.
        limits: How often to look.
        wakeups: Where it is heard of sooner.
    """
    with wakeups.listen(topics.CANCEL) as wakeup:
        while True:
            await wait_for(wakeup, limits.lease_watch_s)
            watched = live.opened()
            if not watched:
                continue
            try:
                seen = await store.watch_leases(watched)
            except StoreError:
                continue  # the renewal says so, and gives up in time
            except Exception:  # noqa: BLE001 - supervision boundary: the watch, whose next look may do better
                _log.exception("lease_watch_failed")
                continue
            for response_id in watched - seen.owned:
                live.stop(response_id, LeaseLost("the row is no longer this process's"))
            for response_id in seen.cancel_requested:
                live.stop(response_id, ResponseCancelled("it was cancelled"))


async def run_rescuer(store: LeaseStore, limits: Limits, metrics: Metrics | None = None) -> NoReturn:
    """Free rows of processes that died, for ever; the first sweep is at once.

    Args:
        store: Where they are.
        limits: How often, and how many at a time.
        metrics: Where rescues and failures are counted; None: nowhere.
    """
    metrics = metrics or Metrics()
    while True:
        try:
            rescued = await store.rescue_expired()
        except StoreError as error:
            _log.warning("rescue_failed", reason=str(error))
            metrics.rescue_failures.inc()
            rescued = ()
        except Exception:  # noqa: BLE001 - supervision boundary: the rescuer, whose next sweep may do better
            _log.exception("rescue_failed")
            metrics.rescue_failures.inc()
            rescued = ()
        for response_id in rescued:
            _log.warning("response_rescued", response_id=response_id_text(response_id))
        metrics.rescued_responses.inc(len(rescued))
        if len(rescued) < limits.rescue_rows:
            await trio.sleep(limits.rescue_interval_s)
