"""Putting a response into the queue: its row and its first events in one commit, and then the word that it is there."""

import trio

from dwctl_trio.domain.claiming import Surface, deadline_of, priority_of
from dwctl_trio.domain.errors import StoreUnavailable
from dwctl_trio.domain.events import ResponseCreated, ResponseQueued
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.request import ServiceTier
from dwctl_trio.domain.response import Response, ResponseStatus
from dwctl_trio.engine import topics
from dwctl_trio.engine.state import Services
from dwctl_trio.observability.log import get_logger
from dwctl_trio.ports import EventSegment, NewChat, NewResponse, QueuedResponse
from dwctl_trio.protocol.event_stream import EventEncoder
from dwctl_trio.protocol.request_body import encode_request
from dwctl_trio.protocol.request_tools import encode_tools

_log = get_logger(__name__)


async def enqueue(services: Services, new: NewResponse) -> Response:
    """Put *new* into the queue; return it as it is there.

    Raises:
        StoreError: It could not be stored; nobody may be told of it.
        IdempotencyKeyHeld: Another row holds its key; nothing was written.

    Cancellation: it is in the queue or it is not, and that is settled; the insert is shielded and bounded.
    """
    created_at = await services.queue.read_clock()
    queued = Response(
        id=new.response_id,
        created_at=int(created_at),
        request=new.request,
        status=ResponseStatus.QUEUED,
        tools=new.tools,
    )
    opening = (ResponseCreated(queued), ResponseQueued(queued))
    frames = EventEncoder().encode(0, opening)
    await _put(
        services,
        QueuedResponse(
            row=new.row,
            surface=Surface.RESPONSES,
            key_prefix=new.key_prefix,
            route=new.route,
            previous_id=new.previous_id,
            background=new.request.background,
            request=encode_request(new.request),
            tools=encode_tools(new.tools) if new.tools else None,
            idempotency=new.idempotency,
            created_at=created_at,
            priority=priority_of(new.request.service_tier),
            deadline_s=deadline_of(new.request.service_tier, services.limits),
            opening=EventSegment(first_sequence=0, last_sequence=len(opening) - 1, frames=frames),
        ),
    )
    _tell(services, new.request.service_tier)
    return queued


async def enqueue_chat(services: Services, new: NewChat) -> None:
    """Put *new* into the queue; nothing is told of it before its answer.

    Raises:
        StoreError: It could not be stored.
        IdempotencyKeyHeld: Another row holds its key; nothing was written.

    Cancellation: it is in the queue or it is not, and that is settled; the insert is shielded and bounded.
    """
    request = new.request
    await _put(
        services,
        QueuedResponse(
            row=new.row,
            surface=Surface.CHAT,
            key_prefix=new.key_prefix,
            route=new.route,
            background=False,
            request=request.body,
            tools=None,
            idempotency=new.idempotency,
            created_at=await services.queue.read_clock(),
            priority=priority_of(request.service_tier),
            deadline_s=deadline_of(request.service_tier, services.limits),
            opening=None,
        ),
    )
    _tell(services, request.service_tier)


async def _put(services: Services, queued: QueuedResponse) -> None:
    """Insert the row. When the answer of the first try is lost it may be there: the second, and last, finds it."""
    try:
        await _insert(services, queued)
    except StoreUnavailable as error:
        response_id = response_id_text(queued.row.response_id)
        _log.warning("enqueueing_unsure", response_id=response_id, reason=str(error))
        await _insert(services, queued)


async def _insert(services: Services, queued: QueuedResponse) -> None:
    """Insert the row, which no cancellation interrupts half-way: whoever then cancels the response must find it.

    Raises:
        StoreError: As far as is known it is not there.
        IdempotencyKeyHeld: The same.
    """
    limits = services.limits
    with trio.move_on_after(limits.store_wait_s + limits.store_call_s, shield=True):
        await services.queue.enqueue_response(queued)
        return
    raise StoreUnavailable("the database did not answer in time")


def _tell(services: Services, tier: ServiceTier) -> None:
    services.wakeups.tell(topics.QUEUE)
    services.metrics.queue.note_enqueued(tier.value)
