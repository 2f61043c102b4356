"""What is stored of a claimed row, read by who goes on with it; and what becomes of a row of which it cannot be read.

Rule 1: one row that cannot be read stops no other: its own worker reads it.
Rule 2: another release may be able to read it: it goes back to the queue as often as it may, and then fails.
"""

from typing import TypeVar

import attrs
import trio

from dwctl_trio.domain.errors import DeadlineExceeded, DwctlError, InvalidRequest, ResponseCancelled, StoreError
from dwctl_trio.domain.failures import Failure, describe_failure
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.response import ErrorCode, ErrorType, ResponseError
from dwctl_trio.domain.retry import RetryLater
from dwctl_trio.engine.attempts import LATE, decide_again, refuse_to_begin
from dwctl_trio.engine.chat_attempt import CANCELLED
from dwctl_trio.engine.conversations import read_history
from dwctl_trio.engine.handing_back import Unfinished, hand_back
from dwctl_trio.engine.state import Services
from dwctl_trio.observability.log import get_logger
from dwctl_trio.observability.queue_metrics import HandedBack
from dwctl_trio.ports import Claimed, ClaimedChat, ClaimedResponse

_log = get_logger(__name__)
_Claimed = TypeVar("_Claimed", ClaimedResponse, ClaimedChat)

UNREADABLE = Failure(
    error=ResponseError(
        type=ErrorType.LOOP_ERROR,
        code=ErrorCode.SERVER_ERROR,
        message="This release of the server cannot read what is stored of the response. Please send the request again.",
    ),
    http_status=500,
    is_retryable=True,
)


async def recall(services: Services, claimed: _Claimed) -> _Claimed:
    """*claimed*, with what earlier attempts have left.

    Raises:
        StoreError: It could not be read now.
        Exception: Another release wrote what cannot be read.
    """
    if not claimed.was_started:
        return claimed
    response_id = claimed.row.response_id
    steps = tuple(await services.events.read_claimed_steps(response_id))
    if isinstance(claimed, ClaimedChat):
        return attrs.evolve(claimed, steps=steps)
    return attrs.evolve(claimed, steps=steps, told=await services.events.read_told(response_id))


async def recall_history(services: Services, claimed: ClaimedResponse) -> ClaimedResponse:
    """*claimed*, with the conversation that it goes on with, or with the reason why there is none any more.

    Raises:
        StoreError: It could not be read now.
        Exception: Another release wrote what cannot be read.
    """
    try:
        history = await read_history(services, claimed.new.request, claimed.new.owner)
    except InvalidRequest as refusal:  # a response that it goes on with was deleted while it waited
        return attrs.evolve(claimed, refusal=refusal)
    return attrs.evolve(claimed, new=attrs.evolve(claimed.new, history=history))


async def put_off(services: Services, claimed: Claimed, error: Exception) -> Failure | None:
    """Hand back a row that *error* kept from being read; how it ends instead if it is not to be tried again.

    Cancellation: shielded, as far as it waits.
    """
    if isinstance(error, StoreError):
        await hand_back(services, untouched(claimed), HandedBack.FAULT)
        return None
    _log.error("response_not_readable", response_id=response_id_text(claimed.row.response_id), exc_info=error)
    try:
        refuse_to_begin(services, claimed)
    except ResponseCancelled:
        return CANCELLED
    except DeadlineExceeded:
        return describe_failure(DeadlineExceeded(LATE))
    except DwctlError as reason:
        return describe_failure(reason)
    deadline = trio.current_time() + (claimed.deadline_in_s or 0.0)
    decision = decide_again(services, claimed, UNREADABLE, deadline)
    if not isinstance(decision, RetryLater):
        return UNREADABLE
    await hand_back(services, untouched(claimed), HandedBack.FAULT, delay_s=decision.delay_s)
    return None


def untouched(claimed: Claimed) -> Unfinished:
    """*claimed* as it was claimed."""
    return Unfinished(row=claimed.row, epoch=claimed.epoch, ended_steps=tuple, segments=())
