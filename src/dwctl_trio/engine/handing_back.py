"""Putting a response that is worked on back into the queue.

Rule 1: what the server's own end broke off, or a busy model's server refused, is no attempt; all else is one.
Rule 2: the write is shielded and bounded; a response that cannot be handed back is the rescuer's.
"""

from collections.abc import Callable

import attrs
import trio

from dwctl_trio.domain.errors import LeaseLost, StoreError
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.engine import topics
from dwctl_trio.engine.progress import write_until_taken
from dwctl_trio.engine.state import Services
from dwctl_trio.observability.log import get_logger
from dwctl_trio.observability.queue_metrics import HandedBack
from dwctl_trio.ports import EndedStep, EventSegment, RequeuedResponse, ResponseRow

_log = get_logger(__name__)

_NO_ATTEMPT = frozenset({HandedBack.STOPPING, HandedBack.BUSY})


@attrs.frozen(kw_only=True)
class Unfinished:
    """A response that is worked on no more."""

    row: ResponseRow
    epoch: int
    ended_steps: Callable[[], tuple[EndedStep, ...]]
    """What has ended since the last write, its times counting back from now."""
    segments: tuple[EventSegment, ...]
    """The events that are not known to be stored."""


async def hand_back(
    services: Services, unfinished: Unfinished, reason: HandedBack, *, delay_s: float | None = None
) -> None:
    """Put *unfinished* back into the queue, as far as the database takes it in time.

    Args:
        services: The store, and how long it may take.
        unfinished: What is to be stored of it.
        reason: Why.
        delay_s: Before it may be claimed again; None: as the reason asks for.

    Cancellation: shielded.
    """
    limits, row, counts = services.limits, unfinished.row, reason not in _NO_ATTEMPT
    pause_s = delay_s if delay_s is not None else limits.queue_retry_s if counts else 0.0

    async def requeue() -> None:
        requeued = RequeuedResponse(
            row=row,
            epoch=unfinished.epoch,
            delay_s=pause_s,
            counts=counts,
            ended=unfinished.ended_steps(),
            segments=unfinished.segments,
        )
        await services.queue.requeue_response(requeued)

    with trio.move_on_after(limits.terminal_write_s, shield=True):
        try:
            await write_until_taken(services, row.response_id, requeue, services.metrics.step_write_failures)
        except LeaseLost:  # somebody else's by now, or the answer to an earlier try was lost
            return
        except StoreError:
            _log.exception("response_not_handed_back", response_id=response_id_text(row.response_id))
            return
        _log.info("response_handed_back", response_id=response_id_text(row.response_id), reason=reason.value)
        services.metrics.queue.note_handed_back(reason)
        services.wakeups.tell(topics.response_topic(row.response_id))
        services.wakeups.tell(topics.QUEUE)
        return
    _log.error("response_not_handed_back", response_id=response_id_text(row.response_id), reason="out of time")
