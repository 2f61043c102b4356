"""The composition root: what a process is made of, and the order in which its parts begin and end.

serve  ── HTTP server ─┐
worker ────────────────┴── daemon, lease renewal, lease watch, rescuer, wake-ups
"""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import structlog
import trio

from dwctl_trio.config import Config, find_warnings
from dwctl_trio.http.api import Api
from dwctl_trio.http.application import build_application
from dwctl_trio.http.authentication import Authenticator
from dwctl_trio.http.door import Door
from dwctl_trio.http.drain import end_live, run_drain
from dwctl_trio.http.server import WAYS, open_listener, open_shared_listener, run_server, url_of
from dwctl_trio.observability.worker_metrics import WorkersPage
from dwctl_trio.postgres.database import open_database
from dwctl_trio.postgres.keys import PostgresKeyStore
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.process import Process, Worker, open_process

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_api(config: Config, pool: Pool) -> AsyncIterator[tuple[Api, Process]]:
    """All that the HTTP application needs, over *pool*."""
    async with open_process(config, pool, "api") as process:
        keys = PostgresKeyStore(pool) if config.auth_mode == "keys" else None
        yield Api(process.services, config, Authenticator(keys, config.limits), process.admission), process


async def run_api(
    config: Config, *, worker: Worker | None = None, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until SIGTERM or SIGINT, drain, and return; a second signal ends it at once.

    Args:
        config: What to serve.
        worker: Which of several processes this is, that serve on one port; None: it is the only one.
        task_status: Started with the server's URL when connections are accepted.
    """
    async with (
        _open_listener(config, is_shared=worker is not None) as listener,
        open_database(config) as pool,
        open_api(config, pool) as (api, process),
        trio.open_nursery() as services,
    ):
        stopping = trio.Event()
        await process.start(services, stopping, None if worker is None else worker.follow_orders)
        services.start_soon(run_drain, api, stopping, name="drain")
        if worker is not None:
            api.all_workers = WorkersPage(api.services.metrics, worker.place, config.limits)
            await services.start(api.all_workers.run, name="worker_metrics")
        admission = api.admission
        door = Door(
            find_overload=admission.find_overload,
            note_request=api.services.metrics.note_request,
            enter=admission.enter,
        )
        app = build_application(api, process.store)
        connections = WAYS[config.http_server](app, config.limits, door)
        serve = partial(run_server, connections, listener, config.limits, door=door, wait_stop=stopping.wait)
        listener.listen(config.limits.connection_backlog)
        async with trio.open_nursery() as server:
            server.start_soon(serve, name="http_server")
            if worker is None:
                _tell_start(config, url_of(listener))
            task_status.started(url_of(listener))
        await api.services.live.wait_idle()
        await process.daemon.wait_idle()  # what it works on has its grace as well
        services.cancel_scope.cancel()
    _log.info("server_stopped")


async def run_worker(config: Config, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Work on queued responses until SIGTERM or SIGINT; a second signal ends it at once.

    Args:
        config: As for ``run_api``; nothing is listened on.
        task_status: Started when rows are claimed.
    """
    async with (
        open_database(config) as pool,
        open_process(config, pool, "worker") as process,
        trio.open_nursery() as services,
    ):
        stopping = trio.Event()
        await process.start(services, stopping)
        _log.info("worker_started")
        task_status.started()
        await stopping.wait()
        await end_live(process.services, process.daemon.wait_idle)
        services.cancel_scope.cancel()
    _log.info("worker_stopped")


@asynccontextmanager
async def _open_listener(config: Config, *, is_shared: bool) -> AsyncIterator[socket.socket]:
    """The server's socket, closed also if the server never comes to listening on it.

    A shared one does not listen yet: connections would wait for this process while others have time for them.
    """
    if is_shared:
        listener = open_shared_listener(config.host, config.port)
    else:
        listener = open_listener(config.host, config.port, config.limits)
    with listener:
        yield listener


def _tell_start(config: Config, url: str) -> None:
    for problem in find_warnings(config):
        _log.warning("configuration_incomplete", problem=problem)
    _log.info("server_started", url=url)
