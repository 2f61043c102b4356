"""One attempt at a claimed response: the same scope as a client's own request has, with other ends.

    run_claimed ─┬─ recall, restore  rows and stored events → scope; what cannot be read goes back, or ends as it is
                 ├─ SegmentWriter    stores the events as they come
                 ├─ run_loop         as everywhere
                 └─ finalize, or hand_back to the queue, or nothing if the row is somebody else's now

Rule 1: no client is waited for; nobody's leaving is noticed.
Rule 2: what may pass is tried again, what the database broke off as well.
"""

import attrs
import trio

from dwctl_trio.domain.errors import DwctlError, ResponseCancelled
from dwctl_trio.domain.response import Cancelled, Ending, ErrorType, Failed
from dwctl_trio.domain.retry import Decision, RetryLater
from dwctl_trio.domain.steps import ModelCall, StepState
from dwctl_trio.engine import topics
from dwctl_trio.engine.attempts import decide_again, explain, goes_back, reason_of, refuse_to_begin
from dwctl_trio.engine.finalize import finalize
from dwctl_trio.engine.handing_back import Unfinished, hand_back
from dwctl_trio.engine.leases import Attempt
from dwctl_trio.engine.loop import run_loop
from dwctl_trio.engine.progress import begin
from dwctl_trio.engine.recalling import recall, recall_history, untouched
from dwctl_trio.engine.resume import Restored, restore
from dwctl_trio.engine.segments import SegmentWriter
from dwctl_trio.engine.state import Scope, Services
from dwctl_trio.engine.unreadable import run_unreadable
from dwctl_trio.observability.queue_metrics import HandedBack
from dwctl_trio.ports import ClaimedResponse, ClaimedUnreadable


async def run_claimed(services: Services, claimed: ClaimedResponse) -> None:
    """Work on *claimed* until it has ended, or is back in the queue, or is not ours any more.

    Cancellation: it is handed back, shielded and bounded.
    """
    response_id = claimed.new.response_id
    deadline = trio.current_time() + (claimed.deadline_in_s or 0.0)
    with services.live.attempt(response_id) as attempt:
        services.live.note_opened(response_id)
        remembered = await _remember(services, claimed, attempt)
        if remembered is None:
            return
        claimed, restored, writer = remembered
        scope = restored.scope
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writer.run, scope.emitter, name="segment_writer")
                try:
                    with attempt.work(deadline):
                        await _begin(services, claimed, restored)
                        ending = await run_loop(services, scope, scope.top)
                except Exception as error:  # noqa: BLE001 - supervision boundary: a fault inside a response ends only this one
                    ending = _end_of(scope, attempt, error)
                nursery.cancel_scope.cancel()
        except BaseException as error:  # the process ends, or a fault of ours that nobody foresaw
            reason = HandedBack.FAULT if isinstance(error, Exception) else HandedBack.STOPPING
            _supersede(scope)
            await hand_back(services, _unfinished(scope), reason)
            raise
        if await goes_back(services, attempt, _unfinished(scope)):
            return
        decision = _decide(services, claimed, scope, ending, deadline)
        if isinstance(decision, RetryLater):
            _supersede(scope)
            await hand_back(services, _unfinished(scope), reason_of(decision), delay_s=decision.delay_s)
            return
        await finalize(services, scope, ending)
    services.wakeups.tell(topics.response_topic(response_id))
    services.wakeups.tell(topics.QUEUE)  # a place of its model is free


async def run_claimed_unreadable(services: Services, claimed: ClaimedUnreadable) -> None:
    """Hand *claimed* back to the queue, or end it.

    Cancellation: it is handed back; shielded and bounded.
    """
    with services.live.attempt(claimed.row.response_id):
        services.live.note_opened(claimed.row.response_id)
        await run_unreadable(services, claimed, DwctlError("its request cannot be read"))


async def _remember(
    services: Services, claimed: ClaimedResponse, attempt: Attempt
) -> tuple[ClaimedResponse, Restored, SegmentWriter] | None:
    """*claimed* with what it has come to; None if that cannot be read, and then no more is to be done with it here."""
    try:
        claimed = await recall(services, await recall_history(services, claimed))
        writer = SegmentWriter(
            services, claimed.row.response_id, claimed.epoch, attempt, stored_bytes=len(claimed.told)
        )
        return claimed, await restore(services, claimed, writer), writer
    except Exception as error:  # noqa: BLE001 - supervision boundary: what is stored of one response, which another release may have written
        await run_unreadable(services, claimed, error)
        return None
    except BaseException:  # the process ends
        await hand_back(services, untouched(claimed), HandedBack.STOPPING)
        raise


async def _begin(services: Services, claimed: ClaimedResponse, restored: Restored) -> None:
    """Make durable that the response is being worked on, and then tell it, with all that was not told before.

    Raises:
        DwctlError: It is only to be ended, or the store cannot do it.
    """
    is_told = False
    try:
        refuse_to_begin(services, claimed)
        await begin(services, restored.scope)
        is_told = True
        if restored.untold:
            await restored.scope.emitter.emit(restored.untold)
    finally:
        if not is_told:
            restored.note_untold()


def _end_of(scope: Scope, attempt: Attempt, error: Exception) -> Ending:
    """The ending that *error* is, which has stopped the loop."""
    reason = explain(attempt, scope.new.response_id, error)
    return Cancelled() if isinstance(reason, ResponseCancelled) else scope.fail(reason)


def _decide(
    services: Services, claimed: ClaimedResponse, scope: Scope, ending: Ending, deadline: float
) -> Decision | None:
    """Whether a response that failed is tried again; None for one that did not fail."""
    if not isinstance(ending, Failed):
        return None
    scope.note_failure(ending)
    assert scope.failure is not None, "a failed response knows its failure"
    return decide_again(services, claimed, scope.failure, deadline)


def _supersede(scope: Scope) -> None:
    """Have the model call that failed, and is not yet written as such, asked again by the next attempt."""
    for unstored in scope.unstored:
        step = unstored.step
        if step.state is StepState.FAILED and isinstance(step.descriptor, ModelCall) and step.parent_step_id is None:
            assert step.error is not None, "a failed step has an error"
            if step.error.type is not ErrorType.STEP_ABANDONED:
                unstored.step = attrs.evolve(step, error=attrs.evolve(step.error, type=ErrorType.STEP_RETRIED))


def _unfinished(scope: Scope) -> Unfinished:
    return Unfinished(
        row=scope.new.row, epoch=scope.epoch, ended_steps=scope.ended_steps, segments=scope.emitter.unstored()
    )
