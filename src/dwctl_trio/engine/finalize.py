"""The end of a response: the terminal write, and then what the client is told.

Rule 1: the write is shielded and bounded; whatever it cannot do in time is the rescuer's.
Rule 2: the terminal event goes out after the write; a client that saw ``completed`` finds it stored.
Rule 3: a failed or unsure write still hands the client its output, in a failed response.
"""

from collections.abc import Callable
from contextlib import suppress

import attrs
import trio

from dwctl_trio.domain.assembly import assemble, chain_output, output_length, terminal_event
from dwctl_trio.domain.errors import LeaseLost, StoreError, StoreUnavailable
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.items import McpCall
from dwctl_trio.domain.lifecycle import RowState, apply, ending_change
from dwctl_trio.domain.response import (
    Cancelled,
    Completed,
    Ending,
    ErrorType,
    Failed,
    Incomplete,
    Response,
    ResponseStatus,
)
from dwctl_trio.domain.steps import ModelCall
from dwctl_trio.domain.turn_output import close_call
from dwctl_trio.engine.emitter import PreparedEvents
from dwctl_trio.engine.progress import write_until_taken
from dwctl_trio.engine.state import Scope, Services
from dwctl_trio.observability.log import get_logger
from dwctl_trio.observability.metrics import EndedResponse, GivenUp
from dwctl_trio.ports import EndedStep, FinishedResponse

_log = get_logger(__name__)

_OK = 200
_GRACE_S = 1.0
"""On top of what the opening itself is bounded by."""
_CLIENT_CLOSED = 499
"""What servers log for a client that hung up; nobody receives it."""


async def finalize(services: Services, scope: Scope, ending: Ending) -> Response:
    """Make *ending* durable and tell it; return the response as told.

    Args:
        services: The store, and the bounds of the write.
        scope: The response; steps that the loop did not come to an end with are ended here.
        ending: How the loop ended.

    Cancellation: the terminal write is shielded; the telling is not.
    """
    if not scope.opened.is_set():
        with trio.move_on_after(services.limits.store_wait_s + services.limits.store_call_s + _GRACE_S, shield=True):
            await scope.opened.wait()
    if isinstance(ending, Failed):
        scope.note_failure(ending)
    _end_output(scope, ending)
    opening = scope.opening
    if opening is None:  # there is no row: nobody was told of this response
        unopened = _unopened(scope)
        scope.refusal = scope.failure
        scope.head.set()
        if scope.key_held is None:
            services.metrics.opening_failures.inc()
            _record(services, scope, unopened, ending, written=False)
        return unopened
    ended_at = opening.created_at + int(trio.current_time() - scope.started_at)
    response = assemble(opening, scope.tree, ending, ended_at=ended_at)
    prepared = scope.emitter.prepare([terminal_event(response)])
    # Also when the lease may be lost: the guard of the statement knows, and asking it cannot harm.
    written = await write_ending(services, _finished(scope, ending, response, prepared), scope.ended_steps)
    if not written:
        response = _not_stored(scope, response)
        prepared = scope.emitter.prepare([terminal_event(response)])
    if isinstance(ending, Failed) and not scope.head.is_set():
        scope.refusal = scope.failure
    scope.head.set()
    _record(services, scope, response, ending, written=written)
    if scope.new.request.is_queued:
        return response  # who follows reads what was stored
    if not isinstance(ending, Cancelled) or scope.tells_cancel:
        with suppress(trio.BrokenResourceError):  # the consumer has left; the response is durable all the same
            await scope.emitter.send(prepared)
    return response


def _end_output(scope: Scope, ending: Ending) -> None:
    """End every step and every item that the loop left open."""
    top = scope.top
    chain = scope.chain_of(top)
    begun = next((step for step in chain if step.is_open and isinstance(step.descriptor, ModelCall)), None)
    if top.model_step is None and begun is not None:  # it was opened, and no more
        top.model_step = top.make_model_step(begun, first_output_index=output_length(chain))
    is_in_turn = top.model_step is not None and scope.steps[top.model_step.step.id].is_open
    if top.model_step is not None and is_in_turn:
        scope.emitter.note(top.model_step.close_output())
    scope.break_off(top, ending)
    if is_in_turn:  # which may have been whole, but for its write
        scope.show_calls(top)
    output = chain_output(scope.chain_of(top))
    for output_index, _ in top.calls.values():
        call = output[output_index]
        assert isinstance(call, McpCall), "that is its place"
        scope.emitter.note(close_call(output_index, call))
    top.calls.clear()


def _finished(scope: Scope, ending: Ending, response: Response, prepared: PreparedEvents) -> FinishedResponse:
    state = apply(RowState.PROCESSING, ending_change(ending))
    assert state is not None, "every ending may follow processing"
    return FinishedResponse(
        row=scope.new.row,
        epoch=scope.epoch,
        state=state,
        response_status=_response_status(scope, ending, response),
        body=scope.emitter.encode_response(response),
        error=response.error,
        ended=scope.ended_steps(),
        segments=scope.emitter.unstored(prepared),
    )


def _response_status(scope: Scope, ending: Ending, response: Response) -> int:
    match ending:
        case Completed() | Incomplete():
            return _OK
        case Cancelled():
            return _CLIENT_CLOSED
        case Failed():
            assert scope.failure is not None, "a failed response knows its failure"
            return _OK if response.output else scope.failure.http_status


def _error_code(ending: Ending) -> str | None:
    match ending:
        case Failed(error=error):
            return error.type.value
        case Cancelled():
            return ErrorType.CANCELLED.value
        case _:
            return None


async def write_ending(
    services: Services, finished: FinishedResponse, ended_steps: Callable[[], tuple[EndedStep, ...]]
) -> bool:
    """Try the terminal write until it is done, definitely lost, or out of time; True if it is done.

    Args:
        services: The store, and the bounds of the write.
        finished: What is written.
        ended_steps: Its last steps, their times counting back from each try.

    Cancellation: shielded and bounded.
    """
    response_id = finished.row.response_id

    async def finish() -> None:  # the times of the calls count back from the write
        await services.store.finish_response(attrs.evolve(finished, ended=ended_steps()))

    with trio.move_on_after(services.limits.terminal_write_s, shield=True):
        try:
            await write_until_taken(services, response_id, finish, services.metrics.terminal_write_failures)
        except StoreError as error:  # the lease is lost, or PostgreSQL will never take it
            _log.error("terminal_write_refused", response_id=response_id_text(response_id), reason=str(error))
            is_lost = isinstance(error, LeaseLost)
            services.metrics.note_given_up(GivenUp.LEASE_LOST if is_lost else GivenUp.REFUSED)
            return False
        except Exception:  # noqa: BLE001 - supervision boundary: the terminal write, for the client is still to be told
            _log.exception("terminal_write_refused", response_id=response_id_text(response_id))
            services.metrics.note_given_up(GivenUp.REFUSED)
            return False
        return True
    _log.error("terminal_write_given_up", response_id=response_id_text(response_id))
    services.metrics.note_given_up(GivenUp.TIMEOUT)
    return False


def _not_stored(scope: Scope, response: Response) -> Response:
    """What the client is told when its response could not be stored: failed, with all the output there is."""
    failed = scope.fail(StoreUnavailable("the terminal write failed"))
    return attrs.evolve(
        response, status=ResponseStatus.FAILED, error=failed.error, incomplete_reason=None, completed_at=None
    )


def _unopened(scope: Scope) -> Response:
    """What the caller gets when there is no row; no client ever sees it."""
    failed = scope.fail(StoreUnavailable("the response's row could not be opened"))
    return attrs.evolve(scope.make_opening(0), status=ResponseStatus.FAILED, error=failed.error)


def _record(services: Services, scope: Scope, response: Response, ending: Ending, *, written: bool) -> None:
    """The one canonical line of a response, and its place in the metrics."""
    new, usage = scope.new, response.usage
    duration_s = trio.current_time() - scope.started_at
    first_token_s = None if scope.first_token_at is None else scope.first_token_at - scope.started_at
    _log.info(
        "response_finished",
        response_id=response_id_text(new.response_id),
        owner=new.owner,
        model=new.request.model,
        upstream=new.route.upstream,
        stream=new.request.stream,
        ending=type(ending).__name__.lower(),
        status=response.status.value,
        error_type=_error_code(ending),
        http_status=scope.top.model_step.http_status if scope.top.model_step else None,
        opened=scope.opening is not None,
        stored=written,
        duration_s=round(duration_s, 4),
        first_token_s=None if first_token_s is None else round(first_token_s, 4),
        input_tokens=usage.input_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        steps=len(scope.steps),
    )
    ended = EndedResponse(
        model=new.route.model,
        upstream=new.route.upstream,
        status=response.status,
        error_type=response.error.type if response.error else None,
        duration_s=duration_s,
        first_token_s=first_token_s,
        usage=usage,
    )
    services.metrics.note_response(ended)
    if usage is not None:
        services.note_tokens(new.owner, usage.total_tokens)
