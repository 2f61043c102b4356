"""The end of a response of which something that is stored cannot be read: another release of the server wrote it.

    claimed ── put_off ─┬─ back to the queue: another process may be able to read it
                        └─ end_unreadable: its opening, with another status, is its body and its terminal event

Rule: its followers get an end, and its owner an answer, whatever is in its rows.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import attrs
import trio

from dwctl_trio.domain.errors import StoreError
from dwctl_trio.domain.failures import Failure
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.lifecycle import RowState, wire_status
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.recovery import ABANDONED_CALL, ABANDONED_TURN
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.domain.response import Response, ResponseStatus
from dwctl_trio.domain.steps import ModelCall, Step, StepState
from dwctl_trio.domain.tools import OfferedTool
from dwctl_trio.engine import topics
from dwctl_trio.engine.chat_attempt import CANCELLED
from dwctl_trio.engine.finalize import write_ending
from dwctl_trio.engine.handing_back import hand_back
from dwctl_trio.engine.recalling import put_off, untouched
from dwctl_trio.engine.state import Services
from dwctl_trio.observability.log import get_logger
from dwctl_trio.observability.metrics import EndedResponse
from dwctl_trio.observability.queue_metrics import HandedBack
from dwctl_trio.ports import (
    CallMetering,
    ClaimedResponse,
    ClaimedUnreadable,
    EndedStep,
    EventSegment,
    FinishedResponse,
)
from dwctl_trio.protocol.final_response import encode_ending, encode_object, read_opening, with_status
from dwctl_trio.protocol.response_object import render_response

_log = get_logger(__name__)


async def run_unreadable(services: Services, claimed: ClaimedResponse | ClaimedUnreadable, error: Exception) -> None:
    """Hand *claimed*, which *error* kept from being read, back to the queue, or end it.

    Cancellation: it is handed back, or has ended; shielded and bounded.
    """
    try:
        failure = await put_off(services, claimed, error)
        if failure is not None:
            await end_unreadable(services, claimed, failure)
    except StoreError as reason:
        await put_off(services, claimed, reason)
    except BaseException as reason:  # the process ends, or a fault of ours that nobody foresaw
        why = HandedBack.FAULT if isinstance(reason, Exception) else HandedBack.STOPPING
        await hand_back(services, untouched(claimed), why)
        raise


async def end_unreadable(services: Services, claimed: ClaimedResponse | ClaimedUnreadable, failure: Failure) -> None:
    """End *claimed* as failed, or as cancelled if that is the failure, without any output.

    Raises:
        StoreError: Its opening could not be read now.

    Cancellation: the terminal write is shielded and bounded.
    """
    began_at, row = trio.current_time(), claimed.row
    state = RowState.CANCELED if failure is CANCELLED else RowState.FAILED
    error = failure.error if state is RowState.FAILED else None
    opening = await _read_opening(services, claimed)
    open_steps = await _read_open_steps(services, row.response_id)
    abandoned = tuple(_abandon(step, claimed.route) for step in open_steps)
    ended = with_status(opening, wire_status(state), error)
    number = claimed.last_sequence + 1
    finished = FinishedResponse(
        row=row,
        epoch=claimed.epoch,
        state=state,
        response_status=failure.http_status,
        body=encode_object(ended),
        error=error,
        ended=abandoned,
        segments=(EventSegment(first_sequence=number, last_sequence=number, frames=encode_ending(number, ended)),)
        if number
        else (),
    )
    written = await write_ending(services, finished, lambda: abandoned)
    services.wakeups.tell(topics.response_topic(row.response_id))
    services.wakeups.tell(topics.QUEUE)
    _log.info(
        "unreadable_response_finished",
        response_id=response_id_text(row.response_id),
        owner=row.owner,
        model=claimed.route.model,
        status=wire_status(state).value,
        error_type=failure.error.type.value,
        stored=written,
    )
    services.metrics.note_response(
        EndedResponse(
            model=claimed.route.model,
            upstream=claimed.route.upstream,
            status=wire_status(state),
            error_type=error.type if error is not None else None,
            duration_s=trio.current_time() - began_at + claimed.age_s,
            first_token_s=None,
            usage=None,
        )
    )


async def _read_opening(services: Services, claimed: ClaimedResponse | ClaimedUnreadable) -> dict[str, Any]:
    """The response object as the row knows it, or as it was first told, or as far as anything is known."""
    row, tools = claimed.row, tuple[OfferedTool, ...]()
    if isinstance(claimed, ClaimedResponse):
        request, tools = claimed.new.request, claimed.new.tools
    else:
        told = await read_told_opening(services, row.response_id, row.owner)
        if told is not None:
            return told
        model, tier = claimed.route.model, row.service_tier
        request = ResponseRequest(model=model, input=(), stream=row.stream, store=row.store, service_tier=tier)
    opening = Response(
        id=row.response_id,
        created_at=claimed.created_at,
        request=request,
        status=ResponseStatus.IN_PROGRESS,
        tools=tools,
    )
    return render_response(opening)


async def read_told_opening(services: Services, response_id: UUID, owner: str) -> dict[str, Any] | None:
    """The response object that was told first; None if none is kept.

    Raises:
        StoreError: It could not be read now.
    """
    page = await services.events.read_events(response_id, owner, -1)
    if page is None or not page.segments:
        return None
    try:
        return read_opening(page.segments[0].frames)
    except (ValueError, IndexError):
        return None


async def _read_open_steps(services: Services, response_id: UUID) -> Sequence[Step]:
    """The steps that an attempt has left open, as far as they can be read.

    Raises:
        StoreError: They could not be read now.
    """
    try:
        steps = await services.events.read_claimed_steps(response_id)
    except StoreError:
        raise
    except Exception:  # noqa: BLE001 - supervision boundary: the steps of a row that ends because it cannot be read
        return ()
    return [step for step in steps if step.is_open]


def _abandon(step: Step, route: ModelRoute) -> EndedStep:
    """The open *step* as it ends, and what is recorded of it."""
    is_model = isinstance(step.descriptor, ModelCall)
    error = ABANDONED_TURN if is_model else ABANDONED_CALL
    metering = CallMetering(
        route=route, http_status=None, error_code=error.type.value, started_ago_s=0.0, first_token_ago_s=None
    )
    failed = attrs.evolve(step, state=StepState.FAILED, error=error)
    return EndedStep(step=failed, metering=metering if is_model else None)
