"""What every attempt at a claimed row has in common: whether it begins, what has stopped it, whether it is tried again.

Rule: what may pass is tried again, what the database broke off as well.
"""

import random
from uuid import UUID

import trio

from dwctl_trio.domain.errors import (
    AttemptsExhausted,
    DeadlineExceeded,
    DwctlError,
    LeaseLost,
    ResponseCancelled,
    ServerStopping,
    StoreError,
)
from dwctl_trio.domain.failures import Failure
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.retry import Decision, GiveUp, RetryLater, decide_retry, find_exhaustion
from dwctl_trio.engine.handing_back import Unfinished, hand_back
from dwctl_trio.engine.leases import Attempt
from dwctl_trio.engine.state import Services
from dwctl_trio.observability.log import get_logger
from dwctl_trio.observability.queue_metrics import HandedBack
from dwctl_trio.ports import Claimed, ClaimedResponse

_log = get_logger(__name__)

LATE = "The response was not done by its deadline, counted from its creation; waiting in the queue counts."


def refuse_to_begin(services: Services, claimed: Claimed) -> None:
    """Raise for a response that was claimed only to be ended."""
    if claimed.is_cancel_requested:
        raise ResponseCancelled("it was cancelled while it waited")
    if isinstance(claimed, ClaimedResponse) and claimed.refusal is not None:
        raise claimed.refusal
    if claimed.deadline_in_s is None or claimed.deadline_in_s <= 0:
        raise DeadlineExceeded("the deadline has passed")
    exhaustion = find_exhaustion(attempt=claimed.attempt, reclaims=claimed.reclaims, limits=services.limits)
    if exhaustion is not None:
        raise AttemptsExhausted(exhaustion)


def explain(attempt: Attempt, response_id: UUID, error: Exception) -> Exception:
    """The reason that *error*, which has stopped an attempt, is for the client; a failing store stops the attempt."""
    match error:
        case DeadlineExceeded():
            return DeadlineExceeded(LATE)
        case StoreError():
            attempt.stopped_by = attempt.stopped_by or error
        case DwctlError():
            pass
        case _:
            _log.error("response_loop_failed", response_id=response_id_text(response_id), exc_info=error)
    return error


def reason_of(decision: RetryLater) -> HandedBack:
    """Why a response goes back into the queue that is to be tried again."""
    return HandedBack.RETRY if decision.counts else HandedBack.BUSY


async def goes_back(services: Services, attempt: Attempt, unfinished: Unfinished) -> bool:
    """Hand the response back if its attempt was broken off; whether nothing more is to be done with it here."""
    match attempt.stopped_by:
        case LeaseLost():
            _log.warning("response_lost", response_id=response_id_text(unfinished.row.response_id))
            return True
        case ServerStopping():
            await hand_back(services, unfinished, HandedBack.STOPPING)
            return True
        case StoreError():
            await hand_back(services, unfinished, HandedBack.FAULT)
            return True
    return False


def decide_again(services: Services, claimed: Claimed, failure: Failure, deadline: float) -> Decision:
    """Whether a response that failed is tried again, and when.

    Args:
        services: The bounds.
        claimed: The attempt that failed.
        failure: How.
        deadline: Of the response, by Trio's clock.
    """
    decision = decide_retry(
        failure,
        attempt=claimed.attempt,
        deadline_in_s=deadline - trio.current_time(),
        jitter=random.random(),  # noqa: S311 - spreads retries
        limits=services.limits,
    )
    if isinstance(decision, GiveUp):
        response_id = response_id_text(claimed.row.response_id)
        _log.info("response_given_up", response_id=response_id, reason=decision.reason)
    return decision
