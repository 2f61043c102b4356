"""The composition root: what a server process is made of, and the order in which it begins and ends."""

import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from uuid import uuid4

import structlog
import trio

from dwctl_trio.config import Config
from dwctl_trio.domain.errors import ServerStopping
from dwctl_trio.engine.leases import LiveResponses, run_lease_renewal, run_rescuer
from dwctl_trio.engine.state import Services
from dwctl_trio.http.api import Api
from dwctl_trio.http.application import build_application
from dwctl_trio.http.authentication import Authenticator
from dwctl_trio.http.server import open_listener, run_server
from dwctl_trio.postgres.embedded import open_embedded_postgres
from dwctl_trio.postgres.guest_loop import open_guest_loop
from dwctl_trio.postgres.keys import PostgresKeyStore
from dwctl_trio.postgres.migrate import check_schema_version, migrate
from dwctl_trio.postgres.pool import Pool, open_pool
from dwctl_trio.postgres.store import PostgresStore
from dwctl_trio.postgres.trio_asyncpg import connect
from dwctl_trio.upstream.client import open_upstreams

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_database(config: Config, *, migrating: bool | None = None) -> AsyncIterator[Pool]:
    """Connections to the configured database, with the schema of this release.

    Args:
        config: ``database_url``, or ``data_dir`` for the embedded default.
        migrating: Whether to bring the schema up to date; None: only if the database is our own, embedded one.

    Raises:
        SchemaVersionError: The schema is not this release's.
        StoreError: PostgreSQL cannot be started or reached.
    """
    limits = config.limits
    async with _open_dsn(config) as dsn, open_guest_loop() as loop:
        async with aclosing(await connect(loop, dsn, call_s=limits.migration_s)) as connection:
            if migrating or (migrating is None and config.database_url is None):
                await migrate(connection)
            await check_schema_version(connection)
        async with open_pool(
            loop,
            dsn,
            connections_max=limits.store_connections,
            wait_s=limits.store_wait_s,
            call_s=limits.store_call_s,
        ) as pool:
            yield pool


@asynccontextmanager
async def _open_dsn(config: Config) -> AsyncIterator[str]:
    if config.database_url is not None:
        yield config.database_url
        return
    async with open_embedded_postgres(config.data_dir) as embedded:
        yield embedded.dsn


@asynccontextmanager
async def open_api(config: Config, pool: Pool) -> AsyncIterator[tuple[Api, PostgresStore]]:
    """All that the HTTP application needs, over *pool*."""
    store = PostgresStore(pool, limits=config.limits, daemon_id=uuid4())
    await store.register_process()
    async with open_upstreams(config.upstreams, config.limits) as upstreams:
        live = LiveResponses()
        services = Services(store=store, upstream=upstreams, limits=config.limits, live=live)
        keys = PostgresKeyStore(pool) if config.auth_mode == "keys" else None
        yield Api(services, config, Authenticator(keys, config.limits)), store
    with trio.move_on_after(config.limits.store_call_s, shield=True):
        await store.stop_process()


async def run_api(config: Config, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve until SIGTERM or SIGINT, drain, and return; a second signal ends it at once.

    The service nursery: HTTP server, lease renewal, rescuer, signal watcher.

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
        limits, live = config.limits, api.services.live
        stopping = trio.Event()

        async def drain() -> None:
            """Refuse new work, give live streams their grace, then end them."""
            await stopping.wait()
            api.stopping = True
            with trio.move_on_after(limits.shutdown_grace_s):
                await live.wait_idle()
            live.stop_all(lambda: ServerStopping("the grace of live streams is over"))

        services.start_soon(run_lease_renewal, store, live, limits, name="lease_renewal")
        services.start_soon(run_rescuer, store, limits, name="rescuer")
        services.start_soon(_watch_signals, stopping.set, services.cancel_scope.cancel, name="signals")
        services.start_soon(drain, name="drain")
        app = build_application(api, store)
        async with trio.open_nursery() as server:
            server.start_soon(partial(run_server, app, listener, limits, wait_stop=stopping.wait), name="http_server")
            _log.info("server_started", url=_url_of(listener))
            task_status.started(_url_of(listener))
        services.cancel_scope.cancel()
    _log.info("server_stopped")


@asynccontextmanager
async def _open_listener(config: Config) -> AsyncIterator[socket.socket]:
    """The server's socket, closed also if the server never comes to listening on it."""
    with open_listener(config.host, config.port, config.limits) as listener:
        yield listener


async def _watch_signals(stop: Callable[[], None], abort: Callable[[], None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            _log.info("server_stopping")
            stop()
            break
        async for _ in signals:
            abort()


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
