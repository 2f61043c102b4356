"""A store that fails when it is told to: before a call, after it, or never to return.

Rule 1: a fault before the call leaves the database as it was; a fault after it is a commit whose answer was lost.
Rule 2: who plans sees every call in order and decides for each one alone.
"""

from collections.abc import Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from enum import StrEnum
from typing import Protocol, TypeAlias, TypeVar
from uuid import UUID

import attrs
import trio

from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.conversation import Conversation
from dwctl_trio.domain.errors import LeaseLost, StoreUnavailable
from dwctl_trio.domain.idempotency import KeyHolder
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.steps import Chain
from dwctl_trio.ports import (
    Claimed,
    ConversationStore,
    EventPage,
    EventSegment,
    EventStore,
    FinishedResponse,
    LeaseStore,
    LeaseWatch,
    NewChat,
    NewResponse,
    Progress,
    QueuedResponse,
    QueueStore,
    RenewedLeases,
    RequeuedResponse,
    ResponsePage,
    ResponseStore,
    StoredResponse,
    WantedPage,
)

_Result = TypeVar("_Result")


class Fault(StrEnum):
    """What goes wrong with one call."""

    FAIL_BEFORE = "fail_before"
    """StoreUnavailable, and nothing was done."""
    FAIL_AFTER = "fail_after"
    """StoreUnavailable, and all was done."""
    HANG_BEFORE = "hang_before"
    """Nothing is done, and the call returns only by cancellation."""
    HANG_AFTER = "hang_after"
    """All was done, and the call returns only by cancellation."""
    DIE_BEFORE = "die_before"
    """Nothing is done by this call, nor by any later one: for the database the process is dead."""
    DIE_AFTER = "die_after"
    """All was done, and nothing is done by any later call."""

    @property
    def is_passing(self) -> bool:
        """Whether the process may go on with other calls."""
        return self not in {Fault.DIE_BEFORE, Fault.DIE_AFTER}


@attrs.frozen(kw_only=True)
class StoreCall:
    """One call, as the plan sees it."""

    number: int
    """From 0, over all methods."""
    method: str


Plan: TypeAlias = Callable[[StoreCall], Fault | None] | Sequence[Fault | None]
"""A fault for each call, or a list of them by number; calls beyond the list succeed."""


class Store(ResponseStore, ConversationStore, LeaseStore, QueueStore, EventStore, Protocol):
    """All ports of one process."""


class FaultyStore:
    """Keeps the five ports of ``Store`` as far as *plan* lets it.

    Args:
        store: What does the work.
        plan: What goes wrong; may be replaced at any time through ``plan``.
    """

    def __init__(self, store: Store, plan: Plan = ()) -> None:
        self._store = store
        self.plan = plan
        self.calls: list[StoreCall] = []
        """All calls so far, also those that failed."""
        self.is_dead = False

    async def open_response(self, new: NewResponse | NewChat) -> int:
        """See ``ports.ResponseStore``."""
        return await self._call("open_response", lambda: self._store.open_response(new))

    async def find_key_holder(self, owner: str, key: str) -> KeyHolder | None:
        """See ``ports.ResponseStore``."""
        return await self._call("find_key_holder", lambda: self._store.find_key_holder(owner, key))

    async def advance_response(self, progress: Progress) -> None:
        """See ``ports.ResponseStore``."""
        await self._call("advance_response", lambda: self._store.advance_response(progress))

    async def finish_response(self, finished: FinishedResponse) -> None:
        """See ``ports.ResponseStore``."""
        await self._call("finish_response", lambda: self._store.finish_response(finished))

    async def read_response(self, response_id: UUID, owner: str) -> StoredResponse | None:
        """See ``ports.ResponseStore``."""
        return await self._call("read_response", lambda: self._store.read_response(response_id, owner))

    async def read_chain(self, response_id: UUID, owner: str) -> Chain:
        """See ``ports.ResponseStore``."""
        return await self._call("read_chain", lambda: self._store.read_chain(response_id, owner))

    async def delete_response(self, response_id: UUID, owner: str) -> bool:
        """See ``ports.ResponseStore``."""
        return await self._call("delete_response", lambda: self._store.delete_response(response_id, owner))

    async def read_conversation(self, response_id: UUID, owner: str) -> Conversation | None:
        """See ``ports.ConversationStore``."""
        return await self._call("read_conversation", lambda: self._store.read_conversation(response_id, owner))

    async def find_turns(self, maker_ids: Sequence[UUID], owner: str) -> Conversation | None:
        """See ``ports.ConversationStore``."""
        return await self._call("find_turns", lambda: self._store.find_turns(maker_ids, owner))

    async def list_responses(self, wanted: WantedPage, owner: str) -> ResponsePage | None:
        """See ``ports.ConversationStore``."""
        return await self._call("list_responses", lambda: self._store.list_responses(wanted, owner))

    async def register_process(self) -> None:
        """See ``ports.LeaseStore``."""
        await self._call("register_process", self._store.register_process)

    async def renew_leases(self, response_ids: AbstractSet[UUID]) -> RenewedLeases:
        """See ``ports.LeaseStore``."""
        return await self._call("renew_leases", lambda: self._store.renew_leases(response_ids))

    async def rescue_expired(self) -> Sequence[UUID]:
        """See ``ports.LeaseStore``."""
        return await self._call("rescue_expired", self._store.rescue_expired)

    async def watch_leases(self, response_ids: AbstractSet[UUID]) -> LeaseWatch:
        """See ``ports.LeaseStore``."""
        return await self._call("watch_leases", lambda: self._store.watch_leases(response_ids))

    async def stop_process(self) -> None:
        """See ``ports.LeaseStore``."""
        await self._call("stop_process", self._store.stop_process)

    async def ping(self) -> None:
        """See ``ports.LeaseStore``."""
        await self._call("ping", self._store.ping)

    async def read_clock(self) -> float:
        """See ``ports.QueueStore``."""
        return await self._call("read_clock", self._store.read_clock)

    async def enqueue_response(self, queued: QueuedResponse) -> None:
        """See ``ports.QueueStore``."""
        await self._call("enqueue_response", lambda: self._store.enqueue_response(queued))

    async def claim_responses(self, demand: ClaimDemand) -> Sequence[Claimed]:
        """See ``ports.QueueStore``."""
        return await self._call("claim_responses", lambda: self._store.claim_responses(demand))

    async def append_events(self, response_id: UUID, epoch: int, segment: EventSegment) -> None:
        """See ``ports.QueueStore``."""
        await self._call("append_events", lambda: self._store.append_events(response_id, epoch, segment))

    async def requeue_response(self, requeued: RequeuedResponse) -> None:
        """See ``ports.QueueStore``."""
        await self._call("requeue_response", lambda: self._store.requeue_response(requeued))

    async def request_cancel(self, response_id: UUID, owner: str) -> RowState | None:
        """See ``ports.QueueStore``."""
        return await self._call("request_cancel", lambda: self._store.request_cancel(response_id, owner))

    async def take_over(self, response_id: UUID, *, patience_s: float) -> Claimed | None:
        """See ``ports.QueueStore``."""
        return await self._call("take_over", lambda: self._store.take_over(response_id, patience_s=patience_s))

    async def read_events(self, response_id: UUID, owner: str, after: int) -> EventPage | None:
        """See ``ports.EventStore``."""
        return await self._call("read_events", lambda: self._store.read_events(response_id, owner, after))

    async def read_told(self, response_id: UUID) -> bytes:
        """See ``ports.EventStore``."""
        return await self._call("read_told", lambda: self._store.read_told(response_id))

    async def read_claimed_steps(self, response_id: UUID) -> Chain:
        """See ``ports.EventStore``."""
        return await self._call("read_claimed_steps", lambda: self._store.read_claimed_steps(response_id))

    async def _call(self, method: str, run: Callable[[], Awaitable[_Result]]) -> _Result:
        call = StoreCall(number=len(self.calls), method=method)
        self.calls.append(call)
        fault = Fault.DIE_BEFORE if self.is_dead else self._fault_of(call)
        if fault in {Fault.FAIL_BEFORE, Fault.HANG_BEFORE, Fault.DIE_BEFORE}:
            await self._fail(fault)
        result = await run()
        if fault is not None:
            await self._fail(fault)
        return result

    async def _fail(self, fault: Fault | None) -> None:
        if fault in {Fault.HANG_BEFORE, Fault.HANG_AFTER}:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        if fault in {Fault.DIE_BEFORE, Fault.DIE_AFTER}:
            self.is_dead = True
            raise LeaseLost("the process is dead, as the test planned")
        raise StoreUnavailable("the database did not answer, as the test planned")

    def _fault_of(self, call: StoreCall) -> Fault | None:
        if callable(self.plan):
            return self.plan(call)
        return self.plan[call.number] if call.number < len(self.plan) else None
