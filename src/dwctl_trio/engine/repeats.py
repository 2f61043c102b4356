"""A request whose idempotency key is held by another row: what that one was told, or a run of its own after all.

Rule 1: the row decides, in whatever process its response is worked on; it is looked at every ``idempotency_poll_s``.
Rule 2: the wait for the first one's end is bounded by ``idempotency_wait_s``, tries to take over its key included.
Rule 3: the first one never knows; a repeat that hangs up changes nothing.
Rule 4: what the first one went on with may be gone by now; that is no concern of a repeat.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import uuid4

import attrs
import trio

from dwctl_trio.domain.errors import IdempotencyKeyHeld, InvalidRequest
from dwctl_trio.domain.idempotency import Replay, answer_repeat, still_under_way
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.engine.conversations import put_together
from dwctl_trio.engine.state import Services
from dwctl_trio.observability.log import get_logger
from dwctl_trio.ports import NewResponse

_log = get_logger(__name__)
_Result = TypeVar("_Result")

_RETRY_AFTER_S = 5.0
"""When to repeat a request whose first try has outlasted the wait already."""


async def put_together_once(services: Services, new: NewResponse, hold: Callable[[int], None]) -> NewResponse:
    """*new*, put together as in ``put_together``, which also says what else is raised.

    Raises:
        IdempotencyKeyHeld: It cannot be put together, and another row holds its key.
    """
    try:
        return await put_together(services, new, hold)
    except InvalidRequest as error:
        key = new.idempotency
        if key is None or await services.store.find_key_holder(new.owner, key.text) is None:
            raise
        raise IdempotencyKeyHeld("another row holds the idempotency key") from error


async def repeat(
    services: Services,
    new: NewResponse,
    run: Callable[[NewResponse], Awaitable[_Result]],
    refuse_when_stopping: Callable[[], None],
) -> _Result | Replay:
    """What the first request with the key of *new* was told, or what *run* gives if that one has released the key.

    Args:
        services: The store, and the bounds of the wait.
        new: A request that met ``IdempotencyKeyHeld``; what is run has the same content and other ids.
        run: Runs one; raises ``IdempotencyKeyHeld`` if somebody was faster.
        refuse_when_stopping: Raises once the process takes no new work.

    Raises:
        IdempotencyConflict: The first one's response cannot be given, or is still under way.
        ServerStopping: Before it was known.
    """
    limits = services.limits
    deadline = trio.current_time() + limits.idempotency_wait_s
    while True:
        replay = await _wait_ended(services, new, deadline, refuse_when_stopping)
        if replay is not None:
            services.metrics.replays.inc()
            _log.info("response_replayed", response_id=response_id_text(replay.response_id), owner=new.owner)
            return replay
        refuse_when_stopping()
        try:
            return await run(attrs.evolve(new, response_id=uuid4(), first_step_id=uuid4()))
        except IdempotencyKeyHeld:
            await _pause(limits.idempotency_poll_s, deadline)


async def _wait_ended(
    services: Services, new: NewResponse, deadline: float, refuse_when_stopping: Callable[[], None]
) -> Replay | None:
    """What the holder of the key was told, once it has ended; None once nobody holds the key."""
    key = new.idempotency
    assert key is not None, "only a request with a key repeats another"
    while True:
        holder = await services.store.find_key_holder(new.owner, key.text)
        if holder is None:
            return None
        replay = answer_repeat(key, holder)
        if replay is not None:
            return replay
        refuse_when_stopping()
        await _pause(services.limits.idempotency_poll_s, deadline)


async def _pause(seconds: float, deadline: float) -> None:
    """Sleep until the next look.

    Raises:
        IdempotencyConflict: There is no time for one.
    """
    if trio.current_time() >= deadline:
        raise still_under_way(_RETRY_AFTER_S)
    await trio.sleep_until(min(trio.current_time() + seconds, deadline))
