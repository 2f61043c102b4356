"""From the end of a step to what follows from it, durably: one statement for both.

Rule 1: a decision and its write are one: nobody decides on steps that the rows do not know of yet.
Rule 2: a write that has begun is not broken off: the terminal write, right after it, would not see its steps.
Rule 3: what ends a loop goes with the next write: that of the step which the loop is, or the terminal write.
"""

from collections.abc import Awaitable, Callable
from itertools import count
from uuid import UUID, uuid4

import trio
from prometheus_client import Counter

from dwctl_trio.domain.errors import StoreUnavailable
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.steps import Step, StepDescriptor, StepState
from dwctl_trio.domain.transitions import AppendSteps, Finish, next_action
from dwctl_trio.engine.model_step import ModelStep
from dwctl_trio.engine.state import AgentLoop, Scope, Services
from dwctl_trio.observability.log import get_logger
from dwctl_trio.ports import Progress

_log = get_logger(__name__)


async def settle(
    services: Services, scope: Scope, loop: AgentLoop, ended: Step | None = None, call: ModelStep | None = None
) -> None:
    """Make the end of a step durable, and with the last of a loop's open steps also what follows from it.

    Args:
        services: The store and the bounds.
        scope: The response.
        loop: Whose step it is; its ``ending`` is set if this was its last.
        ended: The step as it ended; None to decide what comes first.
        call: The model call that it was, if it was one.

    Raises:
        StoreError: It could not be made durable.
    """
    try:
        scope.writing.acquire_nowait()  # without a checkpoint, where nobody else settles
    except trio.WouldBlock:
        await scope.writing.acquire()
    try:
        if ended is not None:
            scope.end_step(ended, call)
            if call is not None:
                scope.show_calls(loop)
        opened = () if open_steps(scope, loop) else _decide(services, scope, loop)
        if loop.ending is None:
            await _write(services, scope, opened)
    finally:
        scope.writing.release()


async def begin(services: Services, scope: Scope) -> None:
    """Make durable that a claimed response is being worked on, with what became of the steps of its last attempt.

    Raises:
        StoreError: It could not be made durable.
    """
    if not open_steps(scope, scope.top):
        await settle(services, scope, scope.top)
        return
    async with scope.writing:
        await _write(services, scope, ())


def open_steps(scope: Scope, loop: AgentLoop) -> list[Step]:
    """The steps of *loop* that have not ended, in order."""
    return [step for step in scope.chain_of(loop) if step.is_open]


def _decide(services: Services, scope: Scope, loop: AgentLoop) -> tuple[Step, ...]:
    """The steps that come next, or none and an ending."""
    chain = scope.chain_of(loop)
    action = next_action(chain, request=scope.new.request, limits=services.limits, tree=scope.tree)
    match action:
        case Finish(ending):
            loop.ending = ending
            return ()
        case AppendSteps(descriptors):
            return tuple(_open_step(scope, loop, descriptor) for descriptor in descriptors)


def _open_step(scope: Scope, loop: AgentLoop, descriptor: StepDescriptor) -> Step:
    last = next(reversed(scope.steps.values()), None)  # of rows that were read, some numbers may be missing
    step = Step(
        id=uuid4() if last is not None else scope.new.first_step_id,
        sequence=last.sequence + 1 if last is not None else 1,
        descriptor=descriptor,
        state=StepState.PROCESSING,
        parent_step_id=loop.parent.id if loop.parent is not None else None,
    )
    scope.add_step(step)
    return step


async def _write(services: Services, scope: Scope, opened: tuple[Step, ...]) -> None:
    await scope.wait_opened()
    written = len(scope.unstored)

    def make_progress() -> Progress:
        return Progress(row=scope.new.row, epoch=scope.epoch, ended=scope.ended_steps(), opened=opened)

    await write_progress(services, scope.new.response_id, make_progress)
    del scope.unstored[:written]


async def write_progress(services: Services, response_id: UUID, make_progress: Callable[[], Progress]) -> None:
    """Write what *make_progress* gives, whose times count back from each try.

    Raises:
        StoreError: It could not be written.
    """
    limits = services.limits

    async def advance() -> None:
        with trio.move_on_after(limits.store_wait_s + limits.store_call_s, shield=True):
            await services.store.advance_response(make_progress())
            return
        raise StoreUnavailable("the database did not answer in time")

    with trio.move_on_after(limits.terminal_write_s):
        await write_until_taken(services, response_id, advance, services.metrics.step_write_failures)
        return
    raise StoreUnavailable("a step could not be stored in time")


async def write_until_taken(
    services: Services, response_id: UUID, write: Callable[[], Awaitable[None]], failures: Counter
) -> None:
    """Try *write*, which must be idempotent, until the store takes it.

    Args:
        services: How long to wait between two tries.
        response_id: Whose write it is.
        write: Tried again and again; the caller bounds it.
        failures: Counts the tries that failed.

    Raises:
        StoreError: The store will never take it.
    """
    for tries in count(1):
        try:
            await write()
        except StoreUnavailable as error:
            failures.inc()
            if tries == 1:
                _log.warning("write_failed", response_id=response_id_text(response_id), reason=str(error))
        else:
            return
        await trio.sleep(services.limits.terminal_retry_s)
