"""How a server ends: signals, the grace of live streams, and then their end.

Rule 1: with the first signal nothing new begins; streams under way have ``shutdown_grace_s``, and bodies too.
Rule 2: after the grace every stream is stopped, with a terminal event of its own, and no body is waited for.
A stream that is only followed is cut where what it follows goes on, in another process or later.
Rule 3: a second signal ends all at once: responses fail as stopped by the server, and nobody is told any more.
"""

import signal
from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio

from dwctl_trio.domain.errors import ServerStopping
from dwctl_trio.engine.state import Services
from dwctl_trio.http.api import Api

_STOP_AGAIN_S = 0.1
"""Between two looks for responses to stop once the grace is over: one may have come in at the last moment."""


async def watch_signals(
    stop: Callable[[], None],
    abort: Callable[[], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call *stop* at the first SIGTERM or SIGINT, and *abort* at the second.

    Args:
        stop: Begins the end.
        abort: Is the end.
        task_status: Started when no signal can be missed any more.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            stop()
            break
        async for _ in signals:
            abort()


async def end_live(services: Services, wait_idle: Callable[[], Awaitable[None]]) -> None:
    """Give what is live its grace, then end it; return when *wait_idle* does."""
    with trio.move_on_after(services.limits.shutdown_grace_s) as patience:
        await wait_idle()
    while patience.cancelled_caught:
        services.live.stop_all(lambda: ServerStopping("the grace is over"))
        with trio.move_on_after(_STOP_AGAIN_S) as patience:
            await wait_idle()


async def run_drain(api: Api, stopping: trio.Event) -> NoReturn:
    """Once *stopping* is set: refuse new work, give live streams their grace, then end them."""
    await stopping.wait()
    api.stopping = True
    live = api.services.live
    with trio.move_on_after(api.services.limits.shutdown_grace_s):
        await live.wait_idle()
        await api.watchers.wait_idle()
    while True:
        api.stop_reading()
        live.stop_all(lambda: ServerStopping("the grace of live streams is over"))
        api.watchers.stop_all()
        await trio.sleep(_STOP_AGAIN_S)
