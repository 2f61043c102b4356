"""One request, one nursery: a response from its row to its terminal state.

    request's nursery ─┬─ the view        waits for the head, then hands a channel to the SSE writer
                       ├─ open_scope      inserts the row, then tells ``response.created``
                       └─ run_scope       runs the loop, writes the terminal state, then tells the terminal event

Rule 1: the consumer cannot be told apart by the loop: streaming and blocking differ in the sink alone.
Rule 2: a client that hangs up cancels the nursery; the terminal write is shielded, bounded, and always tried.
Rule 3: nothing is told before it is durable: not the id before the row, not the end before the terminal write.
Rule 4: what a kill leaves undone here is done by the rescuer when the lease expires.
"""

from uuid import UUID

import trio

from dwctl_trio.domain.errors import (
    DwctlError,
    IdempotencyKeyHeld,
    ResponseCancelled,
    StoreError,
    StoreUnavailable,
)
from dwctl_trio.domain.events import ResponseCreated, ResponseInProgress
from dwctl_trio.domain.failures import Failure
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.response import Cancelled, Ending, Response, ResponseStatus
from dwctl_trio.engine.finalize import finalize
from dwctl_trio.engine.loop import run_loop
from dwctl_trio.engine.sinks import ChannelSink, NoSink
from dwctl_trio.engine.state import Scope, Services
from dwctl_trio.observability.log import get_logger
from dwctl_trio.ports import NewResponse

_log = get_logger(__name__)


class ResponseRefused(Exception):
    """The response failed before it had anything to show; its row says the same.

    Args:
        failure: What to answer instead of a response.
        response_id: Of the failed row; None if there is no row either.
    """

    def __init__(self, failure: Failure, response_id: UUID | None) -> None:
        super().__init__(failure.error.message)
        self.failure = failure
        self.response_id = response_id


async def run_inline_streaming(
    services: Services, new: NewResponse, nursery: trio.Nursery
) -> trio.MemoryReceiveChannel[bytes]:
    """Run the response in *nursery*; return the channel of its frames once the HTTP head may be sent.

    The head is held back until the upstream has answered, or for ``limits.head_hold_s``.

    Raises:
        ResponseRefused: The response failed while nothing had been sent.
        IdempotencyKeyHeld: It was not begun.
    """
    send_frames, receive_frames = trio.open_memory_channel[bytes](services.limits.event_channel_items)
    scope = Scope(new, ChannelSink(send_frames), services.limits)

    async def run_and_close() -> None:
        with send_frames:
            await run_scope(services, scope)

    nursery.start_soon(open_scope, services, scope, name="open_scope")
    nursery.start_soon(run_and_close, name="run_scope")
    with trio.move_on_after(services.limits.head_hold_s):
        await scope.head.wait()
    if not scope.opened.is_set():
        await scope.opened.wait()
    if scope.opening is None:
        await scope.head.wait()  # the row could not be opened: the scope is about to say so
    if scope.refusal is not None:
        receive_frames.close()
        raise _refused(scope, scope.refusal)
    return receive_frames


async def run_inline_blocking(services: Services, new: NewResponse, nursery: trio.Nursery) -> Response:
    """Run the response in the caller's task, its opening beside it in *nursery*; return the final response.

    Raises:
        ResponseRefused: It failed without any output.
        IdempotencyKeyHeld: It was not begun.
    """
    scope = Scope(new, NoSink(), services.limits)
    nursery.start_soon(open_scope, services, scope, name="open_scope")
    response = await run_scope(services, scope)
    if response.status is ResponseStatus.FAILED and scope.failure is not None and not response.output:
        raise _refused(scope, scope.failure)
    return response


def _refused(scope: Scope, failure: Failure) -> ResponseRefused | IdempotencyKeyHeld:
    return scope.key_held or ResponseRefused(failure, scope.new.response_id if scope.opening is not None else None)


async def open_scope(services: Services, scope: Scope) -> None:
    """Insert the row, which no cancellation interrupts half-way, then tell that the response exists."""
    try:
        with trio.move_on_after(services.limits.store_wait_s + services.limits.store_call_s, shield=True):
            scope.opening = scope.make_opening(await services.store.open_response(scope.new))
            services.live.note_opened(scope.new.response_id)
        if scope.opening is not None:
            await scope.emitter.emit([ResponseCreated(scope.opening), ResponseInProgress(scope.opening)])
    except IdempotencyKeyHeld as held:
        scope.key_held = held
    except StoreError as error:
        _log.warning("response_not_opened", response_id=response_id_text(scope.new.response_id), reason=str(error))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the consumer has left; the loop will meet the same and end the response
    except Exception:  # noqa: BLE001 - supervision boundary: the opening, whose fault must not end the nursery
        _log.exception("response_not_opened", response_id=response_id_text(scope.new.response_id))
    finally:
        scope.opened.set()
        if scope.opening is None:  # nobody may be told anything, so nothing of the upstream is worth waiting for
            services.live.stop(scope.new.response_id, StoreUnavailable("the response's row could not be opened"))


async def run_scope(services: Services, scope: Scope) -> Response:
    """Reach an ending, make it durable, tell it; return the response as it was told."""
    ending: Ending
    with services.live.attempt(scope.new.response_id) as attempt:
        try:
            with attempt.work(scope.started_at + services.limits.response_s):
                ending = await run_loop(services, scope, scope.top)
        except trio.BrokenResourceError:  # the consumer left by itself
            ending = Cancelled()
        except ResponseCancelled:
            ending, scope.tells_cancel = Cancelled(), True
        except DwctlError as error:  # the work was stopped from outside, or the row could not be opened
            ending = scope.fail(error)
        except Exception as error:  # noqa: BLE001 - supervision boundary: a fault inside a response ends only this one
            _log.exception("response_loop_failed", response_id=response_id_text(scope.new.response_id))
            ending = scope.fail(error)
        except BaseException:  # the client hung up, or the server ends: Cancelled, alone or in some library's group
            reason = attempt.stopped_by
            ending = Cancelled() if reason is None or isinstance(reason, ResponseCancelled) else scope.fail(reason)
            await finalize(services, scope, ending)
            raise
        return await finalize(services, scope, ending)
