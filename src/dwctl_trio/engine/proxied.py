"""A call that is made in its request's own nursery, and whose answer is handed over as it comes.

    request's nursery ─┬─ the view    waits for the head, then hands a channel to the SSE writer
                       └─ run_call    opens the row, makes the call, writes its ending

Rule 1: as for a warm response, a client that hangs up cancels the nursery, the terminal write is shielded, bounded and
always tried, and what a kill leaves undone is done by the rescuer.
Rule 2: the row comes before the call; it holds who asked for what and what it cost, and never what was said.
Rule 3: an answer is the client's also where its ending could not be written: the rescuer ends the row.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import attrs
import trio

from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.errors import DwctlError, IdempotencyKeyHeld, ResponseCancelled, StoreUnavailable
from dwctl_trio.domain.failures import Failure, describe_failure
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.steps import ModelCall, Step, StepState
from dwctl_trio.engine.chat_attempt import CANCELLED
from dwctl_trio.engine.chat_call import EndedCall, open_chat_call, record_call
from dwctl_trio.engine.finalize import write_ending
from dwctl_trio.engine.model_step import ModelStep
from dwctl_trio.engine.scope import ResponseRefused
from dwctl_trio.engine.state import FIRST_EPOCH, Services
from dwctl_trio.observability.log import get_logger
from dwctl_trio.ports import ChatCall, EndedStep, FinishedResponse, NewChat, NewResponse
from dwctl_trio.protocol.error_body import failure_error
from dwctl_trio.protocol.sse import encode_frame

_log = get_logger(__name__)

_OK = 200
_NOTHING = b"null"
"""The body of a row that keeps none."""


@attrs.define(eq=False)
class ProxiedCall:
    """One call in memory."""

    new: NewChat | NewResponse
    kind: str
    """What is asked for: a surface, or a name for the log."""
    call: ModelStep
    begun_at: float
    is_open: bool = False
    """Whether its row is known to be there."""
    opened: trio.Event = attrs.field(factory=trio.Event)
    """Set when its row is there, so that something may be told, or when it has ended without one."""
    head: trio.Event = attrs.field(factory=trio.Event)
    """Set when the upstream has answered, or when the call is over."""
    failure: Failure | None = None
    """How it failed; set before ``head`` if the upstream had not answered by then."""
    refusal: Exception | None = None
    """What to raise instead of telling anything."""


def begin_call(new: NewChat | NewResponse, kind: str) -> ProxiedCall:
    """The call that *new* asks for, not yet made."""
    step = Step(id=new.first_step_id, sequence=1, descriptor=ModelCall(), state=StepState.PROCESSING)
    call = ModelStep(step, route=new.route, first_output_index=0, kind_of=lambda _: CallKind.FUNCTION)
    return ProxiedCall(new, kind, call, trio.current_time())


async def stream_chat(services: Services, new: NewChat, nursery: trio.Nursery) -> trio.MemoryReceiveChannel[bytes]:
    """Make the call in *nursery*; return the channel of its frames once the HTTP head may be sent.

    The head is held back until the upstream has answered, or for ``limits.head_hold_s``.

    Raises:
        ResponseRefused: It failed while nothing had been sent.
        IdempotencyKeyHeld: It was not made.
    """
    send_frames, receive_frames = trio.open_memory_channel[bytes](services.limits.event_channel_items)
    proxied = begin_call(new, new.surface)

    async def take(chunks: list[bytes]) -> None:
        await send_frames.send(b"".join([encode_frame(None, chunk) for chunk in chunks]))

    async def run_and_close() -> None:
        with send_frames:
            await run_call(services, proxied, partial(_hand_over, services, proxied, new, take))
            if proxied.failure is not None and proxied.failure is not CANCELLED:
                with suppress(trio.BrokenResourceError):  # nobody is there to be told
                    await send_frames.send(encode_frame(None, failure_error(proxied.failure).body))

    nursery.start_soon(run_and_close, name="run_call")
    with trio.move_on_after(services.limits.head_hold_s):
        await proxied.head.wait()
    if not proxied.opened.is_set():
        await proxied.opened.wait()
    if proxied.refusal is not None:
        receive_frames.close()
        raise proxied.refusal
    return receive_frames


async def answer_chat(services: Services, new: NewChat) -> bytes:
    """Make the call; return its whole answer.

    Raises:
        ResponseRefused: It failed.
        IdempotencyKeyHeld: It was not made.
    """
    proxied, answer = begin_call(new, new.surface), b""

    async def take(chunks: list[bytes]) -> None:
        nonlocal answer
        (answer,) = chunks

    await run_call(services, proxied, partial(_hand_over, services, proxied, new, take))
    raise_failure(proxied)
    return answer


async def run_call(services: Services, proxied: ProxiedCall, make: Callable[[], Awaitable[None]]) -> None:
    """Open the row, have *make* make the call, and write how it ended, which *proxied* knows then.

    Cancellation: the row is opened or not, and what was opened is ended; both shielded and bounded.
    """
    response_id = proxied.new.response_id
    with services.live.attempt(response_id) as attempt:
        try:
            with attempt.work(proxied.begun_at + services.limits.response_s):
                await _open(services, proxied)
                await make()
        except IdempotencyKeyHeld as held:
            proxied.refusal = held
        except trio.BrokenResourceError:  # the consumer left by itself
            proxied.failure = CANCELLED
        except Exception as error:  # noqa: BLE001 - supervision boundary: a fault inside a call ends only this one
            proxied.failure = _explain(proxied, error)
        except BaseException:  # the client hung up, or the server ends
            reason = attempt.stopped_by
            proxied.failure = CANCELLED if reason is None else _explain(proxied, reason)
            await _finish(services, proxied)
            raise
        await _finish(services, proxied)


def raise_failure(proxied: ProxiedCall) -> None:
    """Raise if the call has failed, or was not made.

    Raises:
        ResponseRefused: It failed.
        IdempotencyKeyHeld: It was not made.
    """
    if proxied.refusal is not None:
        raise proxied.refusal
    if proxied.failure is not None:
        raise ResponseRefused(proxied.failure, None)


async def _open(services: Services, proxied: ProxiedCall) -> None:
    """Insert the row, which no cancellation interrupts half-way.

    Raises:
        StoreError: There is none.
        IdempotencyKeyHeld: The same.
    """
    limits = services.limits
    with trio.move_on_after(limits.store_wait_s + limits.store_call_s, shield=True):
        await services.store.open_response(proxied.new)
        proxied.is_open = True
    if not proxied.is_open:
        raise StoreUnavailable("the database did not answer in time")
    services.live.note_opened(proxied.new.response_id)
    proxied.opened.set()


async def _hand_over(
    services: Services, proxied: ProxiedCall, new: NewChat, take: Callable[[list[bytes]], Awaitable[None]]
) -> None:
    """Make the call; have *take* take what each read brings of its answer."""
    asked = ChatCall(route=new.route, request=new.request, trace=new.trace)
    async with open_chat_call(services, proxied.call, asked, new.response_id) as reads:
        proxied.head.set()
        async for chunks in reads:
            await take(chunks)


def _explain(proxied: ProxiedCall, error: Exception) -> Failure:
    if not isinstance(error, DwctlError):
        _log.error("call_failed", response_id=response_id_text(proxied.new.response_id), exc_info=error)
    new = proxied.new
    surface = new.surface if isinstance(new, NewChat) else Surface.RESPONSES
    return CANCELLED if isinstance(error, ResponseCancelled) else describe_failure(error, surface)


async def _finish(services: Services, proxied: ProxiedCall) -> None:
    """Write how the call ended, record it, and let the view go on."""
    failure, new = proxied.failure, proxied.new
    if proxied.refusal is None:
        state = _ending_state(failure)
        if not proxied.is_open:
            services.metrics.opening_failures.inc()
        ended = EndedCall(
            kind=proxied.kind,
            row=new.row,
            route=new.route,
            call=proxied.call,
            state=state,
            error=failure.error if failure is not None and state is RowState.FAILED else None,
            begun_at=proxied.begun_at,
            written=proxied.is_open and await _write(services, proxied, state),
        )
        record_call(services, ended)
        if failure is not None and not proxied.head.is_set():
            proxied.refusal = ResponseRefused(failure, None)
    proxied.head.set()
    proxied.opened.set()


def _ending_state(failure: Failure | None) -> RowState:
    if failure is None:
        return RowState.COMPLETED
    return RowState.CANCELED if failure is CANCELLED else RowState.FAILED


async def _write(services: Services, proxied: ProxiedCall, state: RowState) -> bool:
    """The terminal write; whether it is done."""
    failure, call = proxied.failure, proxied.call
    error = failure.error if failure is not None and state is RowState.FAILED else None
    step = call.end(StepState(state.value), error)
    code = failure.error.type.value if failure is not None else None
    finished = FinishedResponse(
        row=proxied.new.row,
        epoch=FIRST_EPOCH,
        state=state,
        response_status=failure.http_status if failure is not None else _OK,
        body=_NOTHING,
        error=error,
        ended=(),
        segments=(),
    )
    return await write_ending(services, finished, lambda: (EndedStep(step=step, metering=call.metering(code)),))
