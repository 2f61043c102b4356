"""The PostgreSQL that comes along: started on first use, shared by every process on its directory, gone with its owner.

Rule 1: the process that holds the lock of the data directory owns the server; the others attach and never stop it,
but one of them becomes its owner, behind the same DSN, when the owner ends.
Rule 2: the server is the owner's child and dies with it, by a fast shutdown, also when the owner is killed.
Rule 3: a server that dies under its living owner is started again, behind the same DSN.
Rule 4: nothing here knows a table; whoever has the DSN needs nothing else from this package.

How it is started and stopped is in embedded_server.py, its files are in embedded_files.py, users and places in
embedded_system.py. Linux only: elsewhere a child cannot be made to die with its parent.
"""

import contextlib
import errno
import math
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import attrs
import structlog
import trio

from dwctl_trio.postgres import embedded_files as files
from dwctl_trio.postgres import embedded_server as server
from dwctl_trio.postgres import embedded_system as system
from dwctl_trio.postgres.embedded_files import Address, EmbeddedPostgresError

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "EmbeddedPostgresOptions", "open_embedded_postgres"]

ATTACH_S_MAX = server.INITDB_S_MAX + server.TAKEOVER_S_MAX + server.START_S_MAX
"""For another process that is starting the server: all that it may take itself."""

RESTARTS_MAX = 5
"""Restarts of a server that keeps dying; more of them are a broken disk or machine."""

HEIR_S = 0.5
"""Between two looks of an attached process whether the owner is still there."""

STEADY_S = 60.0
"""A server that lived for this long does not count as one that keeps dying."""

log = structlog.get_logger(__name__)


@attrs.frozen(kw_only=True)
class EmbeddedPostgresOptions:
    """What may differ from one embedded server to another."""

    durable: bool = True
    """False skips every sync to disk: for tests, whose data may go with the machine."""
    system_dir: Path = Path("/var/lib/dwctl-trio")
    """Only root needs it, for what its server's user cannot reach where it is: binaries, or the cluster itself."""


DEFAULT_OPTIONS = EmbeddedPostgresOptions()


@attrs.frozen(kw_only=True)
class EmbeddedPostgres:
    """A running embedded server."""

    dsn: str
    """A ``postgresql://`` URL whose host is the directory of the socket; it outlives restarts."""
    pid: int
    """The postmaster's, when this value was made."""
    owner: bool
    """Whether this process started the server, and will stop it."""
    data_dir: Path
    """Absolute, without symbolic links."""


@attrs.define
class _Owned:
    """The server process of the moment; the keeper replaces it."""

    process: server.Process


@contextlib.asynccontextmanager
async def open_embedded_postgres(
    data_dir: Path, options: EmbeddedPostgresOptions = DEFAULT_OPTIONS
) -> AsyncIterator[EmbeddedPostgres]:
    """Run the embedded PostgreSQL of *data_dir*, or join the process that already does.

    The thread that enters must outlive the server: Linux ties the server's life to that thread.

    Args:
        data_dir: Holds the database, its log and its lock; made if it is missing.
        options: Durability, and root's place for what must be reachable.

    Yields:
        The server, accepting connections. An owner stops it on the way out, an attached process leaves it alone, and
        starts it again if its owner ends first.

    Raises:
        EmbeddedPostgresError: It could not be started or reached in time; the text says why and what to do.

    Cancellation: a half-made cluster is deleted at the next start; a started server is stopped, shielded and bounded.
    """
    with _operating_system_errors(data_dir):
        directory = files.open_data_dir(data_dir)
        found = await _own_or_attach(directory)
    if isinstance(found, Address):
        async with _beside(partial(_inherit, directory, options, found), "embedded_postgres_heir"):
            yield EmbeddedPostgres(dsn=found.dsn, pid=found.pid, owner=False, data_dir=directory)
        return
    try:
        async with _run_owned(directory, options) as address:
            yield EmbeddedPostgres(dsn=address.dsn, pid=address.pid, owner=True, data_dir=directory)
    finally:
        os.close(found)


@contextlib.asynccontextmanager
async def _run_owned(data_dir: Path, options: EmbeddedPostgresOptions) -> AsyncIterator[Address]:
    """Start the server, keep it running, and stop it on the way out; the caller holds the lock."""
    with _operating_system_errors(data_dir):
        plan = await _prepare(data_dir, options)
    try:
        with _operating_system_errors(data_dir):
            if not plan.cluster_dir.exists():
                await server.make_cluster(plan)
            owned = _Owned(process=await server.start_server(plan))
        try:
            with _operating_system_errors(data_dir):
                address = server.announce(plan, owned.process)
            async with _beside(partial(_keep_running, plan, owned), "embedded_postgres_keeper"):
                yield address
        finally:
            await server.stop_process(owned.process)
    finally:
        with contextlib.suppress(OSError):  # What stays is overwritten by the next start.
            files.remove_address(data_dir)
            plan.socket_dir.rmdir()


@contextlib.asynccontextmanager
async def _beside(task: Callable[[], Awaitable[None]], name: str) -> AsyncIterator[None]:
    """Run *task* during the body, whose errors come out as they are and not as a nursery's group."""
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(task, name=name)
        try:
            yield
        except BaseException as exc:  # noqa: BLE001 - raised again below, outside of the nursery
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@contextlib.contextmanager
def _operating_system_errors(data_dir: Path) -> Iterator[None]:
    """Turn what the operating system refuses into an error that tells the operator what to do."""
    try:
        yield
    except OSError as exc:
        advice = "Make room" if exc.errno in {errno.ENOSPC, errno.EDQUOT} else "Choose one that this user can write to"
        raise EmbeddedPostgresError(
            f"cannot run a database in {data_dir}: {exc.strerror} ({exc.filename or data_dir}). "
            f"{advice}, or use a database server of your own"
        ) from exc


async def _own_or_attach(data_dir: Path) -> int | Address:
    """The lock, or the address of the server whose owner has it: whichever comes first."""
    if sys.platform != "linux":
        raise EmbeddedPostgresError("the embedded PostgreSQL needs Linux; use a database server of your own")
    with trio.move_on_after(ATTACH_S_MAX):
        for pause_s in server.pauses_s():
            lock = files.take_lock_nowait(data_dir)
            if lock is not None:
                return lock
            address = files.read_address(data_dir)
            if address is not None and await server.accepts(address.socket_dir):
                return address
            await trio.sleep(pause_s)
    address = files.read_address(data_dir)
    owner = "another process" if address is None else f"process {address.owner_pid}"
    raise EmbeddedPostgresError(
        f"{owner} holds {data_dir / files.LOCK_NAME}, but its database did not answer for {ATTACH_S_MAX:.0f} s. "
        f"Stop that process and start again; {files.log_tail(data_dir)}"
    )


async def _prepare(data_dir: Path, options: EmbeddedPostgresOptions) -> server.ServerPlan:
    """Find out where the server runs, and refuse what it cannot run on."""
    files.remove_address(data_dir)
    account = system.choose_account(data_dir)
    parent = system.find_cluster_parent(data_dir, account, options.system_dir)
    cluster_dir = parent / files.CLUSTER_NAME
    if cluster_dir.exists():
        files.check_version(cluster_dir)
    return server.ServerPlan(
        data_dir=data_dir,
        cluster_dir=cluster_dir,
        socket_dir=system.open_socket_dir(data_dir, account),
        programs=await trio.to_thread.run_sync(system.find_programs, account, options.system_dir),
        account=account,
        durable=options.durable,
    )


async def _keep_running(plan: server.ServerPlan, owned: _Owned) -> None:
    """Start the server again whenever it dies, until it keeps dying; never raises but when cancelled."""
    deaths = 0
    while True:
        started_at = trio.current_time()
        await server.wait_ended(owned.process, math.inf)
        deaths = deaths + 1 if trio.current_time() - started_at < STEADY_S else 1
        log.error("embedded_postgres_died", exit_status=owned.process.returncode, deaths=deaths)
        if deaths > RESTARTS_MAX:
            log.error("embedded_postgres_given_up", restarts=RESTARTS_MAX)
            return
        try:
            owned.process = await server.start_server(plan)
            server.announce(plan, owned.process)
        except (EmbeddedPostgresError, OSError) as exc:
            log.error("embedded_postgres_restart_failed", reason=str(exc))  # noqa: TRY400 - the reason is the log's tail
            return


async def _inherit(data_dir: Path, options: EmbeddedPostgresOptions, joined: Address) -> None:
    """Take the server over once its owner has ended, behind the same address; never raises but when cancelled."""
    while True:
        await trio.sleep(HEIR_S)
        lock = files.take_lock_nowait(data_dir)
        if lock is None:
            continue
        try:
            log.warning("embedded_postgres_inherited", data_dir=str(data_dir), former_owner=joined.owner_pid)
            async with _run_owned(data_dir, options) as address:
                if address.dsn != joined.dsn:
                    log.error("embedded_postgres_moved", data_dir=str(data_dir))
                await trio.sleep_forever()
        except (EmbeddedPostgresError, OSError) as exc:
            log.error("embedded_postgres_not_inherited", reason=str(exc))  # noqa: TRY400 - the reason is the log's tail
        finally:
            os.close(lock)
