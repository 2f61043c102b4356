"""What several workers have in common: the port, the database, the signals, and the process that outlasts them.

    dwctl-trio serve --workers 2 ── the supervisor: port, schema, embedded PostgreSQL
        ├── worker 1   a socket of its own on the port, its own pool, its own daemon
        └── worker 2   the same

Rule 1: a worker's connections are the kernel's to give: each listens on a socket of its own (SO_REUSEPORT), and none
passes through the supervisor.
Rule 2: what fails for all workers fails here, once, before any is started.

Hypercorn's own master is not used: it ends when one worker is killed, and kills those that still drain.
"""

import os
import secrets
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs
import structlog
import trio

from dwctl_trio.config import Config, connections_needed, describe_missing_connections, find_warnings
from dwctl_trio.domain.errors import DwctlError
from dwctl_trio.http.drain import watch_signals
from dwctl_trio.http.server import open_listener, open_shared_listener, tell_bind_errors, url_of
from dwctl_trio.postgres.database import open_database, open_dsn
from dwctl_trio.postgres.queries import load_query
from dwctl_trio.supervisor.workers import WORKER_COMMAND, Workers

_log = structlog.get_logger(__name__)

_MEETING_BYTES = 8


class WorkersUnsupported(DwctlError):
    """This system does not give several processes their share of the connections."""


async def run_supervisor(config: Config, *, command: Sequence[str] = WORKER_COMMAND) -> None:
    """Serve in ``config.workers`` processes until SIGTERM or SIGINT, let them drain, and return.

    A second signal ends them at once. A worker that ends by itself is started again.

    Args:
        config: What to serve.
        command: What is run as a worker.

    Raises:
        WorkersUnsupported: Not on this system.
        WorkersFailed: The workers do not start, or keep ending.
        StoreError: PostgreSQL cannot be reached, or has not the schema of this release.
        OSError: The address cannot be listened on.
    """
    refuse_other_systems(sys.platform)
    with _hold_address(config) as holder:
        async with open_dsn(config) as dsn:
            own = attrs.evolve(config, database_url=dsn, port=holder.getsockname()[1])
            await _prepare_database(own, is_embedded=config.database_url is None)
            for problem in find_warnings(own):
                _log.warning("configuration_incomplete", problem=problem)
            workers = Workers(own, command, secrets.token_hex(_MEETING_BYTES))
            async with trio.open_nursery() as running:
                await running.start(watch_signals, workers.stop, workers.abort, name="signals")
                running.start_soon(_tell_address, workers, url_of(holder), name="address")
                await workers.run()
                running.cancel_scope.cancel()
    _log.info("server_stopped")


def refuse_other_systems(platform: str) -> None:
    """Return where a port can be shared as it must be.

    Raises:
        WorkersUnsupported: *platform*, in the words of ``sys.platform``, is none of those.
    """
    if platform != "linux":
        raise WorkersUnsupported(
            "workers: more than one needs Linux, which gives each its share of the connections; run one process for "
            "each core on a port of its own, with a proxy in front"
        )


@contextmanager
def _hold_address(config: Config) -> Iterator[socket.socket]:
    """A socket that keeps the port for the workers, and never listens.

    A shared port could be shared with another server of the same user, started by mistake; so it is tried alone first.
    That finds one that listens. One that starts at the same time is found by a name that only one process can have: an
    abstract socket's, which ends with the process and is the network's as the port is.
    """
    if not config.port:
        with open_shared_listener(config.host, 0) as holder:
            yield holder
        return
    with socket.socket(socket.AF_UNIX) as name:
        with tell_bind_errors(config.host, config.port):
            name.bind(f"\0dwctl-trio-{os.geteuid()}-{config.host}-{config.port}")
        open_listener(config.host, config.port, config.limits).close()
        with open_shared_listener(config.host, config.port) as holder:
            yield holder


async def _prepare_database(config: Config, *, is_embedded: bool) -> None:
    """Bring the schema up to date or refuse another one, and say if it takes too few connections."""
    async with open_database(config, migrating=is_embedded) as pool:
        allowed = await pool.fetchval(load_query("read_connections_max").text)
    if connections_needed(config) > allowed:
        _log.warning("configuration_incomplete", problem=describe_missing_connections(config, allowed))


async def _tell_address(workers: Workers, url: str) -> None:
    """Tell where the server is, once, when all workers listen."""
    await workers.wait_started()
    _log.info("server_started", url=url, workers=workers.count)
