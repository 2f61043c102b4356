"""Wake-ups as a process has them, several of them in one test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from dwctl_trio.domain.limits import Limits
from dwctl_trio.observability.metrics import Metrics
from dwctl_trio.postgres.guest_loop import open_guest_loop
from dwctl_trio.postgres.notifications import PostgresWakeups
from dwctl_trio.postgres.pool import Pool, open_pool

WAIT_S = 10.0
"""Bound of every wait: far more than any needs on a busy machine."""

QUICK = Limits(store_wait_s=WAIT_S, store_call_s=WAIT_S, notify_interval_s=0.001, listen_retry_s=0.01)
"""As by default, but without pauses to speak of."""


@asynccontextmanager
async def open_process_pool(dsn: str, limits: Limits = QUICK) -> AsyncIterator[Pool]:
    """The connections of one process, two at the most."""
    async with (
        open_guest_loop() as loop,
        open_pool(loop, dsn, connections_max=2, wait_s=limits.store_wait_s, call_s=limits.store_call_s) as pool,
    ):
        yield pool


@asynccontextmanager
async def open_wakeups(
    dsn: str, limits: Limits = QUICK, metrics: Metrics | None = None
) -> AsyncIterator[PostgresWakeups]:
    """The wake-ups of one process, which carry from the beginning of the block."""
    async with open_process_pool(dsn, limits) as pool, trio.open_nursery() as nursery:
        wakeups = PostgresWakeups(pool, limits, metrics)
        with wakeups.listen("any") as established:
            nursery.start_soon(wakeups.run, name="wakeups")
            with trio.fail_after(WAIT_S):
                await established.wait()
        yield wakeups
        nursery.cancel_scope.cancel()
