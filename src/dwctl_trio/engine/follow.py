"""Following a response through its stored events, in whatever process it is worked on.

Rule 1: the store is the truth, and the only source: the first to listen and the last see the same bytes.
Rule 2: a wake-up is a hint; without one the store is looked at every ``follow_poll_s``.
Rule 3: nobody waits for a follower. Whoever is slow reads later; the connection's own bounds end who does not read.
"""

from uuid import UUID

import attrs
import trio

from dwctl_trio.domain.errors import StoreUnavailable
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.lifecycle import TERMINAL_STATES
from dwctl_trio.engine import topics
from dwctl_trio.engine.state import Services
from dwctl_trio.engine.wakeups import wait_for
from dwctl_trio.observability.log import get_logger
from dwctl_trio.ports import EventPage
from dwctl_trio.protocol.event_reading import frames_after

_log = get_logger(__name__)
_NO_EVENTS = 2**62
"""Behind the last event of any response: a look at the row alone."""


@attrs.define(eq=False)
class Place:
    """How far a follower has come; it can go on from there."""

    after: int
    """Number of the last event that is known already; -1 for none."""


async def follow(
    services: Services, response_id: UUID, owner: str, place: Place, send_frames: trio.MemorySendChannel[bytes]
) -> bool:
    """Send the frames of all events behind *place*, stored and to come, and return when the last was sent.

    Args:
        services: The store, and the bounds of the wait.
        response_id: A response whose events are kept.
        owner: Of the response.
        place: Moved with every send.
        send_frames: Not closed here.

    Returns:
        Whether that was the end of the stream; else the response is gone, or its events are.

    Raises:
        StoreUnavailable: The store has not answered for ``follow_patience_s``; the follower may come back.
        trio.BrokenResourceError: The reader has left.

    Cancellation: *place* says what was sent.
    """
    with services.metrics.queue.following(), services.wakeups.listen(topics.response_topic(response_id)) as wakeup:
        while True:
            page = await _read(services, response_id, owner, place.after)
            if page is None:
                return False
            for segment in page.segments:
                is_cut = segment.first_sequence <= place.after
                await send_frames.send(frames_after(segment.frames, place.after) if is_cut else segment.frames)
                place.after = segment.last_sequence
            if page.state in TERMINAL_STATES:
                if page.last_sequence is None:
                    return False
                if place.after >= page.last_sequence:
                    return True
            if not page.segments:
                await wait_for(wakeup, services.limits.follow_poll_s)


async def wait_ended(services: Services, response_id: UUID, owner: str, after: int = _NO_EVENTS) -> EventPage | None:
    """How the response ended, once it has, with its first events behind number *after*; None if it is gone.

    Raises:
        StoreUnavailable: The store has not answered for ``follow_patience_s``.
    """
    with services.wakeups.listen(topics.response_topic(response_id)) as wakeup:
        while True:
            page = await _read(services, response_id, owner, after)
            if page is None or page.state in TERMINAL_STATES:
                return page
            await wait_for(wakeup, services.limits.follow_poll_s)


async def _read(services: Services, response_id: UUID, owner: str, after: int) -> EventPage | None:
    """The next events, as soon as the store answers.

    Raises:
        StoreUnavailable: It has not for ``follow_patience_s``.
    """
    deadline = trio.current_time() + services.limits.follow_patience_s
    while True:
        try:
            return await services.events.read_events(response_id, owner, after)
        except StoreUnavailable as error:
            _log.warning("follower_waits", response_id=response_id_text(response_id), reason=str(error))
            if trio.current_time() >= deadline:
                raise
            await trio.sleep(services.limits.follow_poll_s)
