"""The composition root: what a server process is made of, and the order in which it begins and ends."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

import structlog
import trio

from dwctl_trio.config import Config, find_warnings
from dwctl_trio.domain.errors import StoreError
from dwctl_trio.engine.leases import LiveResponses, run_lease_renewal, run_rescuer
from dwctl_trio.engine.state import Services
from dwctl_trio.http.admission import Admission
from dwctl_trio.http.api import Api
from dwctl_trio.http.application import build_application
from dwctl_trio.http.authentication import Authenticator
from dwctl_trio.http.door import Door
from dwctl_trio.http.drain import run_drain, watch_signals
from dwctl_trio.http.server import open_listener, run_server
from dwctl_trio.observability.loop_delay import LoopDelay
from dwctl_trio.observability.loop_lag import LoopLag, run_loop_lag
from dwctl_trio.observability.metrics import Metrics, Watched
from dwctl_trio.observability.tracing import open_tracing
from dwctl_trio.postgres.database import open_database
from dwctl_trio.postgres.keys import PostgresKeyStore
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.postgres.store import PostgresStore
from dwctl_trio.tools.http_tools import HttpToolRunner
from dwctl_trio.upstream.client import open_upstreams

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_api(config: Config, pool: Pool) -> AsyncIterator[tuple[Api, PostgresStore]]:
    """All that the HTTP application needs, over *pool*."""
    store = PostgresStore(pool, limits=config.limits, daemon_id=uuid4())
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
        services = Services(
            store=store,
            upstream=upstreams,
            tools=HttpToolRunner(config.limits),
            catalog=config.tools,
            limits=config.limits,
            live=live,
            metrics=metrics,
            tracing=tracing,
            loop_lag=lag,
            note_tokens=admission.note_tokens,
        )
        keys = PostgresKeyStore(pool) if config.auth_mode == "keys" else None
        with delay.measuring():
            yield Api(services, config, Authenticator(keys, config.limits), admission), store
    with trio.move_on_after(config.limits.store_call_s, shield=True):
        try:
            await store.stop_process()
        except StoreError as error:  # we end all the same; our rows are the rescuer's
            _log.warning("process_end_not_noted", reason=str(error))


async def run_api(config: Config, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve until SIGTERM or SIGINT, drain, and return; a second signal ends it at once.

    The service nursery: HTTP server, lease renewal, rescuer, loop lag, signal watcher.

    Args:
        config: What to serve.
        task_status: Started with the server's URL when connections are accepted.
    """
    async with (
        _open_listener(config) as listener,
        open_database(config) as pool,
        open_api(config, pool) as (api, store),
        trio.open_nursery() as services,
    ):
        limits, live, metrics = config.limits, api.services.live, api.services.metrics
        stopping = trio.Event()
        services.start_soon(run_lease_renewal, store, live, limits, metrics, name="lease_renewal")
        services.start_soon(run_rescuer, store, limits, metrics, name="rescuer")
        services.start_soon(run_loop_lag, api.services.loop_lag, metrics.loop_lag.observe, name="loop_lag")
        await services.start(watch_signals, live, stopping.set, services.cancel_scope.cancel, name="signals")
        services.start_soon(run_drain, api, stopping, name="drain")
        admission = api.admission
        door = Door(find_overload=admission.find_overload, note_request=metrics.note_request, enter=admission.enter)
        app = build_application(api, store)
        serve = partial(run_server, app, listener, limits, door=door, wait_stop=stopping.wait)
        async with trio.open_nursery() as server:
            server.start_soon(serve, name="http_server")
            for problem in find_warnings(config):
                _log.warning("configuration_incomplete", problem=problem)
            _log.info("server_started", url=_url_of(listener))
            task_status.started(_url_of(listener))
        services.cancel_scope.cancel()
    _log.info("server_stopped")


@asynccontextmanager
async def _open_listener(config: Config) -> AsyncIterator[socket.socket]:
    """The server's socket, closed also if the server never comes to listening on it."""
    with open_listener(config.host, config.port, config.limits) as listener:
        yield listener


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
