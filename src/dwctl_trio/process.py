"""What every process is made of, whether it serves or only works: the store, the upstreams, the daemon, its upkeep."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias
from uuid import uuid4

import attrs
import structlog
import trio

from dwctl_trio.config import Config
from dwctl_trio.daemon.producer import Daemon
from dwctl_trio.domain.errors import ServerStopping, StoreError
from dwctl_trio.engine.leases import LiveResponses, run_lease_renewal, run_lease_watch, run_rescuer
from dwctl_trio.engine.retention import run_pruner
from dwctl_trio.engine.state import Services
from dwctl_trio.http.admission import Admission
from dwctl_trio.http.drain import watch_signals
from dwctl_trio.observability.loop_delay import LoopDelay
from dwctl_trio.observability.loop_lag import LoopLag, run_loop_lag
from dwctl_trio.observability.metrics import Metrics, Watched
from dwctl_trio.observability.tracing import open_tracing
from dwctl_trio.observability.worker_metrics import WorkerPlace
from dwctl_trio.postgres.notifications import PostgresWakeups
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.postgres.retention import PostgresRetention
from dwctl_trio.postgres.store import PostgresStore
from dwctl_trio.tools.http_tools import HttpToolRunner
from dwctl_trio.upstream.client import open_upstreams

_log = structlog.get_logger(__name__)


FollowOrders: TypeAlias = Callable[[Callable[[], None], Callable[[], None]], Awaitable[None]]
"""Calls the first when the process is to end, and the second when it is to end at once."""


@attrs.frozen(kw_only=True)
class Worker:
    """What a process knows of being one of several that serve together."""

    place: WorkerPlace
    follow_orders: FollowOrders


@attrs.frozen(kw_only=True)
class Process:
    """What every process has, whether it serves or only works."""

    services: Services
    store: PostgresStore
    retention: PostgresRetention
    daemon: Daemon
    wakeups: PostgresWakeups
    admission: Admission

    async def start(self, nursery: trio.Nursery, stop: trio.Event, follow_orders: FollowOrders | None = None) -> None:
        """Start all that goes on in the background; *stop* is set at the first signal, and nothing is claimed then.

        Args:
            nursery: In which it goes on, cancelled at the second signal.
            stop: Set when this process is to end.
            follow_orders: Who else may tell it so.
        """
        services, store = self.services, self.store
        limits, live, metrics = services.limits, services.live, services.metrics

        def begin_to_stop() -> None:
            if not stop.is_set():
                _log.info("server_stopping")
            self.daemon.stop()
            stop.set()

        def abort() -> None:
            live.stop_all(lambda: ServerStopping("a second signal has come"))
            nursery.cancel_scope.cancel()

        await nursery.start(watch_signals, begin_to_stop, abort, name="signals")
        if follow_orders is not None:
            nursery.start_soon(follow_orders, begin_to_stop, abort, name="orders")
        nursery.start_soon(self.wakeups.run, name="wakeups")
        nursery.start_soon(run_lease_renewal, store, live, limits, metrics, name="lease_renewal")
        nursery.start_soon(run_lease_watch, store, live, limits, self.wakeups, name="lease_watch")
        nursery.start_soon(run_rescuer, store, limits, metrics, name="rescuer")
        nursery.start_soon(run_pruner, self.retention, limits, metrics, name="pruner")
        nursery.start_soon(run_loop_lag, services.loop_lag, metrics.loop_lag.observe, name="loop_lag")
        nursery.start_soon(self.daemon.run, name="daemon")


@asynccontextmanager
async def open_process(config: Config, pool: Pool, kind: str) -> AsyncIterator[Process]:
    """A process over *pool*, known to the others as a *kind* of ``api`` or ``worker``, with nothing started yet."""
    store = PostgresStore(pool, limits=config.limits, daemon_id=uuid4(), kind=kind)
    await store.register_process()
    async with (
        open_upstreams(config.upstreams, config.limits) as upstreams,
        open_tracing(config.tracing_endpoint, config.limits) as tracing,
    ):
        live, metrics = LiveResponses(), Metrics([route.model for route in config.models])
        lag, delay, names = LoopLag(), LoopDelay(), tuple(upstream.name for upstream in config.upstreams)
        watched = Watched(
            live=live, loop_lag=lag, loop_delay=delay, pool=pool, upstreams=upstreams, upstream_names=names
        )
        metrics.watch(watched)
        admission = Admission(config.limits, dict(config.owners), lambda: delay.seconds)
        wakeups = PostgresWakeups(pool, config.limits, metrics)
        services = Services(
            store=store,
            conversations=store,
            queue=store,
            events=store,
            upstream=upstreams,
            chat=upstreams,
            tools=HttpToolRunner(config.limits),
            catalog=config.tools,
            limits=config.limits,
            live=live,
            wakeups=wakeups,
            metrics=metrics,
            tracing=tracing,
            loop_lag=lag,
            note_tokens=admission.note_tokens,
        )
        process = Process(
            services=services,
            store=store,
            retention=PostgresRetention(pool, config.limits),
            daemon=Daemon(services, config.models),
            wakeups=wakeups,
            admission=admission,
        )
        with delay.measuring():
            yield process
    with trio.move_on_after(config.limits.store_call_s, shield=True):
        try:
            await store.stop_process()
        except StoreError as error:  # we end all the same; our rows are the rescuer's
            _log.warning("process_end_not_noted", reason=str(error))
