"""Queued responses to put into a store, and what workers do to them."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

import attrs
from tests.conformance.responses import OWNER, ROUTE, make_request

from dwctl_trio.domain.claiming import ClaimDemand, Surface
from dwctl_trio.domain.idempotency import IdempotencyKey
from dwctl_trio.domain.request import ResponseRequest, ServiceTier
from dwctl_trio.ports import (
    Claimed,
    ClaimedChat,
    ClaimedResponse,
    ClaimedUnreadable,
    EndedStep,
    EventSegment,
    NewResponse,
    Progress,
    QueuedResponse,
    RequeuedResponse,
)
from dwctl_trio.protocol import json
from dwctl_trio.protocol.request_body import render_request
from dwctl_trio.protocol.request_tools import render_tools
from dwctl_trio.testing.faulty_store import Store

OPENING = EventSegment(first_sequence=0, last_sequence=1, frames=b"created, queued\n\n")
DEADLINE_S = 100_000.0
"""Far beyond every lease."""


def make_queued_request(text: str = "hello", *, store: bool = True, model: str = ROUTE.model) -> ResponseRequest:
    """A flex request that says *text*."""
    return attrs.evolve(make_request(text, store=store, tier=ServiceTier.FLEX), model=model)


def make_queued(new: NewResponse, *, created_at: float, **fields: Any) -> QueuedResponse:
    """*new* about to be enqueued."""
    queued = QueuedResponse(
        row=new.row,
        surface=Surface.RESPONSES,
        key_prefix=new.key_prefix,
        route=new.route,
        background=new.request.background,
        request=json.encode(render_request(new.request)),
        tools=json.encode(render_tools(new.tools)) if new.tools else None,
        idempotency=new.idempotency,
        created_at=created_at,
        priority=2,
        deadline_s=DEADLINE_S,
        opening=OPENING,
    )
    return attrs.evolve(queued, **fields)


async def enqueue(
    store: Store,
    asked: ResponseRequest | None = None,
    *,
    owner: str = OWNER,
    response_id: UUID | None = None,
    key: IdempotencyKey | None = None,
    **fields: Any,
) -> NewResponse:
    """A response that waits."""
    asked = asked or make_queued_request()
    new = NewResponse(
        response_id=response_id or uuid4(),
        owner=owner,
        key_prefix="sk-dwctl-abc",
        request=asked,
        route=attrs.evolve(ROUTE, model=asked.model),
        first_step_id=uuid4(),
        idempotency=key,
    )
    fields = {"created_at": await store.read_clock(), **fields}
    await store.enqueue_response(make_queued(new, **fields))
    return new


def demand(
    rows: int = 100, *, models: Mapping[str, int] | None = None, other: int = 100, owner_rows: int = 100
) -> ClaimDemand:
    """A demand that nothing but *rows* bounds, unless it is said."""
    return ClaimDemand(rows=rows, models=models or {}, other_models=other, owner_rows=owner_rows)


async def claim_all(store: Store, **bounds: Any) -> list[Claimed]:
    """All that a demand gets."""
    return [await recalled(store, claimed) for claimed in await store.claim_responses(demand(**bounds))]


async def recalled(store: Store, claimed: Claimed) -> Claimed:
    """*claimed*, with what who goes on with it reads."""
    if isinstance(claimed, ClaimedUnreadable) or not claimed.was_started:
        return claimed
    steps = tuple(await store.read_claimed_steps(claimed.row.response_id))
    if isinstance(claimed, ClaimedChat):
        return attrs.evolve(claimed, steps=steps)
    return attrs.evolve(claimed, steps=steps, told=await store.read_told(claimed.row.response_id))


async def claim_one(store: Store) -> ClaimedResponse:
    """The one response that there is to claim."""
    (claimed,) = await claim_all(store)
    assert isinstance(claimed, ClaimedResponse)
    return claimed


def id_of(claimed: Claimed) -> UUID:
    """Of its row."""
    return claimed.row.response_id


def progress_of(claimed: ClaimedResponse, *ended: EndedStep, opened: tuple[Any, ...] = ()) -> Progress:
    """What its worker writes between two steps."""
    return Progress(row=claimed.new.row, epoch=claimed.epoch, ended=ended, opened=opened)


def requeued_of(claimed: ClaimedResponse, *ended: EndedStep, **fields: Any) -> RequeuedResponse:
    """*claimed* handed back at once, with an attempt that counts."""
    requeued = RequeuedResponse(
        row=claimed.new.row, epoch=claimed.epoch, delay_s=0.0, counts=True, ended=ended, segments=()
    )
    return attrs.evolve(requeued, **fields)


def segment(first: int, last: int) -> EventSegment:
    """Events *first* to *last*."""
    return EventSegment(first_sequence=first, last_sequence=last, frames=f"events {first} to {last}\n\n".encode())
