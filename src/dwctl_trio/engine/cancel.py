"""Cancelling a response, in whatever process it is worked on, if in any.

    asked for ── its worker hears of it, and ends it with all that it has
              └─ it waits in the queue, or its worker does not hear: it is ended here, with all that is stored

Rule 1: what was asked for is durable before anything else: whoever claims the response later ends it.
Rule 2: a response that has ended stays as it is; asking again gives the same.
"""

from uuid import UUID

import trio

from dwctl_trio.domain.errors import StoreError
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.lifecycle import TERMINAL_STATES, RowState
from dwctl_trio.domain.response import Cancelled
from dwctl_trio.engine import topics
from dwctl_trio.engine.chat import end_chat_as_cancelled
from dwctl_trio.engine.chat_attempt import CANCELLED
from dwctl_trio.engine.finalize import finalize
from dwctl_trio.engine.recalling import recall
from dwctl_trio.engine.resume import Restored, restore
from dwctl_trio.engine.sinks import NoSink
from dwctl_trio.engine.state import Services
from dwctl_trio.engine.unreadable import end_unreadable
from dwctl_trio.observability.log import get_logger
from dwctl_trio.ports import Claimed, ClaimedChat, ClaimedResponse

_log = get_logger(__name__)


async def cancel_response(services: Services, response_id: UUID, owner: str) -> bool:
    """Have the response ended; False if there is none for this owner.

    It has ended on return, unless somebody has claimed it in this very moment, who ends it as well.

    Raises:
        StoreError: It could not be asked for, or seen.

    Cancellation: once it is asked for it happens.
    """
    queue, limits = services.queue, services.limits
    state = await queue.request_cancel(response_id, owner)
    if state is None or state in TERMINAL_STATES:
        return state is not None
    services.wakeups.tell(topics.CANCEL)
    deadline = trio.current_time() + limits.cancel_wait_s
    while state is not RowState.PENDING and trio.current_time() < deadline:
        await trio.sleep(limits.cancel_poll_s)
        state = await queue.request_cancel(response_id, owner)
        if state is None or state in TERMINAL_STATES:
            return True
    taken = await queue.take_over(response_id, patience_s=limits.cancel_wait_s)
    if taken is not None:
        _log.info("cancelled_response_taken_over", response_id=response_id_text(response_id), state=state.value)
        await end_as_cancelled(services, taken)
    return True


async def end_as_cancelled(services: Services, taken: Claimed) -> None:
    """End a response that nobody works on, with what is stored of it."""
    if isinstance(taken, ClaimedChat):
        await end_chat_as_cancelled(services, taken)
        return
    with services.live.attempt(taken.row.response_id):
        restored = await _restore(services, taken) if isinstance(taken, ClaimedResponse) else None
        if restored is None:
            await end_unreadable(services, taken, CANCELLED)
        else:
            restored.note_untold()
            await finalize(services, restored.scope, Cancelled())
    services.wakeups.tell(topics.response_topic(taken.row.response_id))


async def _restore(services: Services, taken: ClaimedResponse) -> Restored | None:
    """What is stored of *taken*; None if it cannot be read.

    Raises:
        StoreError: Not now.
    """
    try:
        return await restore(services, await recall(services, taken), NoSink())
    except StoreError:
        raise
    except Exception:  # noqa: BLE001 - supervision boundary: what is stored of a response that is ended in any case
        _log.exception("response_not_readable", response_id=response_id_text(taken.row.response_id))
        return None
