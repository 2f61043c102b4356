"""One attempt at a claimed chat completion: one model call, whose answer is stored as the upstream gave it.

    run_claimed_chat ─┬─ SegmentWriter  stores the chunks as they come
                      ├─ open_chat      the call
                      └─ the terminal write, or hand_back to the queue, or nothing if the row is somebody else's now

Rule 1: the client gets one answer from one call: what was told of a stream cannot be taken back, so a call that breaks
off after its first chunk is the end. Before that, what may pass is tried again.
Rule 2: a whole completion is told with the terminal write, a stream as it comes; both are read from the stored events.
"""

import attrs
import trio

from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.errors import LeaseLost, ResponseCancelled, StoreError, StoreUnavailable
from dwctl_trio.domain.failures import Failure, describe_failure
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.retry import RetryLater
from dwctl_trio.engine import topics
from dwctl_trio.engine.attempts import decide_again, explain, goes_back, reason_of, refuse_to_begin
from dwctl_trio.engine.chat_attempt import BROKEN_OFF, CANCELLED, ChatAttempt
from dwctl_trio.engine.chat_call import EndedCall, open_chat_call, record_call
from dwctl_trio.engine.finalize import write_ending
from dwctl_trio.engine.handing_back import hand_back
from dwctl_trio.engine.leases import Attempt
from dwctl_trio.engine.progress import write_progress
from dwctl_trio.engine.recalling import put_off, recall, untouched
from dwctl_trio.engine.segments import SegmentWriter
from dwctl_trio.engine.state import Services
from dwctl_trio.observability.log import get_logger
from dwctl_trio.observability.queue_metrics import HandedBack
from dwctl_trio.ports import ChatCall, ClaimedChat, FinishedResponse
from dwctl_trio.protocol.chat_body import read_chat
from dwctl_trio.protocol.error_body import failure_error

_log = get_logger(__name__)

_OK = 200
_STREAMED = b"null"
"""The body of a stream: all of it is in its events."""


async def run_claimed_chat(services: Services, claimed: ClaimedChat) -> None:
    """Work on *claimed* until it has ended, or is back in the queue, or is not ours any more.

    Cancellation: it is handed back, or fails if a part of it was told; shielded and bounded.
    """
    with services.live.attempt(claimed.row.response_id) as attempt:
        services.live.note_opened(claimed.row.response_id)
        try:
            recalled = await recall(services, claimed)
        except Exception as error:  # noqa: BLE001 - supervision boundary: what is stored of one completion, which another release may have written
            failure = await put_off(services, claimed, error)
            if failure is not None:
                await _finish(services, claimed, ChatAttempt(claimed), failure)
        except BaseException:  # the process ends
            await hand_back(services, untouched(claimed), HandedBack.STOPPING)
            raise
        else:
            await _run(services, recalled, attempt)
    services.wakeups.tell(topics.QUEUE)  # a place of its model is free


async def _run(services: Services, claimed: ClaimedChat, attempt: Attempt) -> None:
    """Make the call, unless it is not to be made; end the completion, or hand it back."""
    attempted, response_id = ChatAttempt(claimed), claimed.row.response_id
    writer = SegmentWriter(services, response_id, claimed.epoch, attempt)
    failure: Failure | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run, attempted.log, name="segment_writer")
            try:
                with attempt.work(attempted.deadline):
                    refuse_to_begin(services, claimed)
                    if attempted.is_told:
                        failure = BROKEN_OFF
                    else:
                        await _ask(services, claimed, attempted, writer)
            except Exception as error:  # noqa: BLE001 - supervision boundary: a fault inside a completion ends only this one
                failure = _describe(explain(attempt, response_id, error))
            nursery.cancel_scope.cancel()
    except BaseException as error:  # the process ends, or a fault of ours that nobody foresaw
        attempted.end_call(CANCELLED)
        if attempted.is_told:
            await _finish(services, claimed, attempted, BROKEN_OFF)
        else:
            why = HandedBack.FAULT if isinstance(error, Exception) else HandedBack.STOPPING
            await hand_back(services, attempted.unfinished(), why)
        raise
    attempted.end_call(failure)
    if not await _goes_back(services, claimed, attempted, attempt, failure):
        await _finish(services, claimed, attempted, failure)


async def end_chat_as_cancelled(services: Services, taken: ClaimedChat) -> None:
    """End a completion that nobody works on, and that was taken over for this."""
    with services.live.attempt(taken.row.response_id):
        try:
            taken = await recall(services, taken)
        except StoreError:
            raise
        except Exception:  # noqa: BLE001 - supervision boundary: what is stored of a completion that is ended in any case
            _log.exception("response_not_readable", response_id=response_id_text(taken.row.response_id))
        await _finish(services, taken, ChatAttempt(taken), CANCELLED)


async def _ask(services: Services, claimed: ClaimedChat, attempted: ChatAttempt, writer: SegmentWriter) -> None:
    """Make the call, and have its chunks stored as they come.

    Raises:
        DwctlError: It failed, or could not be begun.
    """
    await write_progress(services, claimed.row.response_id, attempted.open_call)
    attempted.note_opened()
    asked = ChatCall(route=claimed.route, request=read_chat(claimed.request))
    async with open_chat_call(services, attempted.call, asked, claimed.row.response_id) as reads:
        async for chunks in reads:
            frames = attempted.take(chunks)
            if frames:
                await writer.send(frames)


async def _goes_back(
    services: Services,
    claimed: ClaimedChat,
    attempted: ChatAttempt,
    attempt: Attempt,
    failure: Failure | None,
) -> bool:
    """Put what was not done back into the queue; whether nothing more is to be done with it here."""
    if failure is None or failure is CANCELLED:
        return False
    if attempted.is_told:
        return isinstance(attempt.stopped_by, LeaseLost)
    if await goes_back(services, attempt, attempted.unfinished()):
        return True
    decision = decide_again(services, claimed, failure, attempted.deadline)
    if isinstance(decision, RetryLater):
        await hand_back(services, attempted.unfinished(), reason_of(decision), delay_s=decision.delay_s)
    return isinstance(decision, RetryLater)


def _describe(error: Exception) -> Failure:
    return CANCELLED if isinstance(error, ResponseCancelled) else describe_failure(error, Surface.CHAT)


async def _finish(services: Services, claimed: ClaimedChat, attempted: ChatAttempt, failure: Failure | None) -> None:
    """Write how it ended, and tell whoever waits for it."""
    if failure is None:
        state, body = RowState.COMPLETED, attempted.completion or _STREAMED
        attempted.log.append([attempted.completion] if attempted.completion is not None else [])
    else:
        state = RowState.CANCELED if failure is CANCELLED else RowState.FAILED
        body = failure_error(failure).body
    finished = FinishedResponse(
        row=claimed.row,
        epoch=claimed.epoch,
        state=state,
        response_status=_OK if failure is None else failure.http_status,
        body=body,
        error=failure.error if failure is not None and state is RowState.FAILED else None,
        ended=(),
        segments=attempted.log.unstored(),
    )
    written = await write_ending(services, finished, attempted.ended_steps)
    services.wakeups.tell(topics.response_topic(claimed.row.response_id))
    if not written:  # whatever it came to, nobody is told of it
        lost = describe_failure(StoreUnavailable("the terminal write failed"))
        finished = attrs.evolve(finished, state=RowState.FAILED, error=lost.error)
    ended = EndedCall(
        kind=Surface.CHAT,
        row=claimed.row,
        route=claimed.route,
        call=attempted.call,
        state=finished.state,
        error=finished.error,
        begun_at=attempted.begun_at,
        written=written,
        attempt=claimed.attempt,
    )
    record_call(services, ended)
