"""What processes do to the queue: each action as it is done to a store, and as the model predicts it.

Rule 1: both answer in the same words; ``Action.answer`` is compared with ``Action.predict``.
Rule 2: a process says of a row what it was told when it claimed it, and what it did since; it reads nothing else.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

import attrs
from tests.conformance.queued import make_queued, make_queued_request, recalled
from tests.conformance.responses import ROUTE, ended_model, make_key, make_new, make_request
from tests.machines.queue_model import CONFLICT, KEY_HELD, LOST, NOTHING, OK, REFUSED, Claim, Model, ModelRow
from tests.machines.queue_world import LIMITS

from dwctl_trio.domain.claiming import ClaimDemand, Surface, priority_of
from dwctl_trio.domain.errors import Conflict, IdempotencyKeyHeld, LeaseLost, StoreError, StoreUnavailable
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.request import ServiceTier
from dwctl_trio.domain.response import ErrorCode, ErrorType, ResponseError
from dwctl_trio.domain.retention import RetentionKind, retention_s
from dwctl_trio.domain.steps import ModelCall, Step, StepState
from dwctl_trio.ports import (
    Claimed,
    ClaimedChat,
    EventSegment,
    FinishedResponse,
    Progress,
    RequeuedResponse,
    ResponseRow,
    RetentionStore,
)
from dwctl_trio.testing.faulty_store import Store

FAILED = ResponseError(type=ErrorType.UPSTREAM_ERROR, code=ErrorCode.SERVER_ERROR, message="The model failed.")
STATUS = {RowState.COMPLETED: 200, RowState.FAILED: 502, RowState.CANCELED: 499}


@attrs.frozen(kw_only=True)
class Action:
    """One thing that one process does."""

    name: str
    run: Callable[[], Awaitable[Any]]
    predict: Callable[[Model], Any]
    is_write: bool = True
    """Whether it may change a row."""
    ticket: "Ticket | None" = None
    """Of a write by owner and epoch."""

    async def answer(self) -> Any:
        """What the store said, or how it refused."""
        try:
            answer = await self.run()
        except StoreUnavailable:
            raise
        except LeaseLost:
            return LOST
        except IdempotencyKeyHeld:
            return KEY_HELD
        except Conflict:
            return CONFLICT
        except StoreError:
            return REFUSED
        return OK if answer is None else answer


@attrs.define(kw_only=True, eq=False)
class Process:
    """A server process; whoever dies comes back as another."""

    place: int
    daemon: UUID
    store: Store
    tickets: list["Ticket"] = attrs.Factory(list)
    """Of the rows that it believes its own."""


@attrs.define(kw_only=True, eq=False)
class Ticket:
    """What a process knows of a row that it once owned."""

    process: Process
    row: ResponseRow
    epoch: int
    last_sequence: int
    steps: list[Step]
    is_warm: bool = False
    is_started: bool = False
    stored: EventSegment | None = None
    """The last that it has appended: to be sent once more if the answer had been lost."""

    @property
    def row_id(self) -> UUID:
        return self.row.response_id

    @property
    def holder(self) -> tuple[UUID, int]:
        return self.process.daemon, self.epoch

    def next_segment(self, events: int) -> EventSegment:
        """Further events, each of which tells who wrote it."""
        numbers = range(self.last_sequence + 1, self.last_sequence + 1 + events)
        frames = "".join(f"{number}:{self.epoch}\n" for number in numbers)
        return EventSegment(first_sequence=numbers[0], last_sequence=numbers[-1], frames=frames.encode())


# -- in


def enqueue(process: Process, row: ModelRow, *, background: bool, is_broken: bool = False) -> Action:
    """*row* into the queue; *is_broken*: with first events that no store can take."""
    asked = make_queued_request(store=row.is_stored, model=row.model)
    if background:
        tier = next(tier for tier in ServiceTier if priority_of(tier) == row.priority)
        asked = attrs.evolve(asked, service_tier=tier, background=True)
    new = attrs.evolve(make_new(asked, owner=row.owner, response_id=row.id), route=attrs.evolve(ROUTE, model=row.model))
    opening = None
    if row.surface == Surface.RESPONSES:
        last = -1 if is_broken else 1
        opening = EventSegment(first_sequence=0, last_sequence=last, frames=b"0:0\n1:0\n")
    assert row.deadline is not None
    queued = make_queued(
        new,
        created_at=row.created_at,
        surface=Surface(row.surface),
        idempotency=make_key(row.key) if row.key else None,
        priority=row.priority,
        deadline_s=row.deadline - row.created_at,
        opening=opening,
    )

    def predict(model: Model) -> str:
        return REFUSED if is_broken else model.enqueue(row, opening)

    return Action(name="enqueue", run=lambda: process.store.enqueue_response(queued), predict=predict)


def open_warm(process: Process, row: ModelRow) -> tuple[Action, Ticket]:
    """*row* as a connection's."""
    new = make_new(make_request(), owner=row.owner, response_id=row.id)
    first = Step(id=new.first_step_id, sequence=1, descriptor=ModelCall(), state=StepState.PROCESSING)

    async def run() -> None:
        await process.store.open_response(new)

    action = Action(name="open", run=run, predict=lambda model: model.open_warm(row, process.daemon, first))
    ticket = Ticket(process=process, row=new.row, epoch=1, last_sequence=-1, steps=[first], is_warm=True)
    return action, ticket


# -- out


def claim(process: Process, demand: ClaimDemand, into: list[Ticket]) -> Action:
    """What *demand* gets; the tickets go into *into*."""

    async def run() -> list[Any]:
        claimed = [await recalled(process.store, entry) for entry in await process.store.claim_responses(demand)]
        into.extend(_ticket(process, entry) for entry in claimed)
        return [_described(entry) for entry in claimed]

    return Action(
        name="claim",
        run=run,
        predict=lambda model: [_predicted(entry) for entry in model.claim(process.daemon, demand)],
    )


def take_over(process: Process, row_id: UUID, patience_s: float, into: list[Ticket]) -> Action:
    """A row that is to be cancelled."""

    async def run() -> Any:
        taken = await process.store.take_over(row_id, patience_s=patience_s)
        if taken is None:
            return NOTHING
        taken = await recalled(process.store, taken)
        into.append(_ticket(process, taken))
        return _described(taken)

    def predict(model: Model) -> Any:
        taken = model.take_over(process.daemon, row_id, patience_s)
        return _predicted(taken) if isinstance(taken, Claim) else taken

    return Action(name="take_over", run=run, predict=predict)


def _ticket(process: Process, claimed: Claimed) -> Ticket:
    row = claimed.row
    return Ticket(
        process=process,
        row=row,
        epoch=claimed.epoch,
        last_sequence=claimed.last_sequence,
        steps=list(claimed.steps),
        is_warm=not row.is_queued,
        is_started=bool(claimed.steps),
    )


def _described(claimed: Claimed) -> tuple[Any, ...]:
    is_chat = isinstance(claimed, ClaimedChat)
    row = claimed.row
    return (
        *(row.response_id, row.owner, claimed.route.model, row.store, is_chat),
        *(claimed.epoch, claimed.attempt, claimed.reclaims, claimed.is_cancel_requested),
        *(claimed.last_sequence, claimed.steps, b"" if isinstance(claimed, ClaimedChat) else claimed.told),
    )


def _predicted(claim: Claim) -> tuple[Any, ...]:
    row = claim.row
    return (
        *(row.id, row.owner, row.model, row.is_stored, row.surface == Surface.CHAT),
        *(row.epoch, row.attempt, row.reclaims, row.cancel_at is not None),
        *(-1 if row.last_sequence is None else row.last_sequence, claim.steps, claim.told),
    )


# -- at work


def advance(ticket: Ticket, *, opens: bool = True) -> Action:
    """End what is open and begin the next step."""
    ended = [ended_model(step, "x") for step in ticket.steps if step.is_open]
    place = len(ticket.steps) + 1
    step_id = UUID(int=ticket.row_id.int ^ (place << 96))
    opened = (Step(id=step_id, sequence=place, descriptor=ModelCall(), state=StepState.PROCESSING),) if opens else ()
    progress = Progress(row=ticket.row, epoch=ticket.epoch, ended=tuple(ended), opened=opened)

    async def run() -> None:
        await ticket.process.store.advance_response(progress)
        closed = {entry.step.id: entry.step for entry in ended}
        known = [closed.get(step.id, step) for step in ticket.steps]
        ticket.steps = known + [step for step in opened if step.id not in {step.id for step in known}]
        ticket.is_started = True

    return Action(
        name="advance",
        run=run,
        predict=lambda model: model.advance(ticket.row_id, ticket.holder, ended, opened),
        ticket=ticket,
    )


def append(ticket: Ticket, segment: EventSegment) -> Action:
    """Further events."""

    async def run() -> None:
        await ticket.process.store.append_events(ticket.row_id, ticket.epoch, segment)
        ticket.last_sequence, ticket.stored, ticket.is_started = segment.last_sequence, segment, True

    return Action(
        name="append",
        run=run,
        predict=lambda model: model.append(ticket.row_id, ticket.holder, segment),
        ticket=ticket,
    )


def finish(ticket: Ticket, state: RowState, segments: Sequence[EventSegment]) -> Action:
    """The end of a response."""
    error = FAILED if state is RowState.FAILED else None
    ended = [ended_model(step, "x") for step in ticket.steps if step.is_open]
    finished = FinishedResponse(
        row=ticket.row,
        epoch=ticket.epoch,
        state=state,
        response_status=STATUS[state],
        body=b'{"id":"x"}',
        error=error,
        ended=tuple(ended),
        segments=tuple(segments),
    )

    def predict(model: Model) -> str:
        kind = error.type.value if error else None
        told = segments if ticket.row.keeps_steps else ()
        return model.finish(
            ticket.row_id, ticket.holder, ended, told, state=state, status=STATUS[state], error_type=kind
        )

    return Action(
        name="finish",
        run=lambda: ticket.process.store.finish_response(finished),
        predict=predict,
        ticket=ticket,
    )


def requeue(ticket: Ticket, segments: Sequence[EventSegment], *, delay_s: float, counts: bool) -> Action:
    """A response handed back."""
    requeued = RequeuedResponse(
        row=ticket.row, epoch=ticket.epoch, delay_s=delay_s, counts=counts, ended=(), segments=tuple(segments)
    )
    return Action(
        name="retry" if counts else "drain",
        run=lambda: ticket.process.store.requeue_response(requeued),
        predict=lambda model: model.requeue(ticket.row_id, ticket.holder, segments, delay_s=delay_s, counts=counts),
        ticket=ticket,
    )


# -- leases, and from outside


def renew(process: Process, ids: frozenset[UUID]) -> Action:
    """Those of *ids* that are its own."""
    return Action(
        name="renew",
        run=lambda: process.store.renew_leases(ids),
        predict=lambda model: model.renew(process.daemon, ids),
    )


def watch(process: Process, ids: frozenset[UUID]) -> Action:
    """What has become of *ids*."""
    return Action(
        name="watch",
        run=lambda: process.store.watch_leases(ids),
        predict=lambda model: model.watch(process.daemon, ids),
        is_write=False,
    )


def rescue(process: Process) -> Action:
    """One sweep."""

    async def run() -> list[UUID]:
        return sorted(await process.store.rescue_expired())

    return Action(name="rescue", run=run, predict=lambda model: model.rescue())


def request_cancel(process: Process, row_id: UUID, owner: str) -> Action:
    """Somebody wants it to end."""

    async def run() -> Any:
        return await process.store.request_cancel(row_id, owner) or NOTHING

    return Action(
        name="cancel", run=run, predict=lambda model: model.request_cancel(row_id, owner) or NOTHING
    )  # fmt: skip


def delete(process: Process, row_id: UUID, owner: str) -> Action:
    """Its owner wants it gone."""
    return Action(
        name="delete",
        run=lambda: process.store.delete_response(row_id, owner),
        predict=lambda model: model.delete(row_id, owner),
    )


def prune(retention: RetentionStore, kind: RetentionKind, rows: int) -> Action:
    """What is old enough goes."""

    async def run() -> tuple[int, bool]:
        batch = await retention.prune(kind, rows)
        return batch.count, batch.is_full

    return Action(
        name="prune", run=run, predict=lambda model: model.prune(kind, retention_s(kind, LIMITS), rows)
    )  # fmt: skip


def read(process: Process, row_id: UUID, owner: str, after: int, segments_max: int) -> Action:
    """What a follower gets who has seen the events to *after*."""

    async def run() -> Any:
        page = await process.store.read_events(row_id, owner, after)
        if page is None:
            return NOTHING
        kind = page.error.type.value if page.error else None
        return (
            page.state,
            page.is_queued,
            page.is_stored,
            page.response_status,
            kind,
            page.last_sequence,
            page.segments,
        )

    def predict(model: Model) -> Any:
        model.tick()
        row = model.rows.get(row_id)
        if row is None or row.owner != owner:
            return NOTHING
        further = tuple(segment for segment in row.log if segment.last_sequence > after)[:segments_max]
        is_queued = row.deadline is not None
        return (
            row.state, is_queued, row.is_stored, row.response_status, row.error_type, row.last_sequence, further,
        )  # fmt: skip

    return Action(name="read", run=run, predict=predict, is_write=False)
