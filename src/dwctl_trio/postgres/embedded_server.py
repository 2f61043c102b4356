"""The server process of the embedded PostgreSQL: its cluster, its command line, its start and its end.

Rule 1: a child is tied to the thread that starts it (embedded_child.py), so it is never started in a worker thread.
Rule 2: every wait is bounded by a constant of this file, and every failure shows the end of the server's log.
Rule 3: PostgreSQL's own log quotes no row and no statement.

Source: PostgreSQL manual, "Shutting Down the Server", "Message Formats", "initdb", "Error Reporting and Logging".
"""

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

import attrs
import structlog
import trio

from dwctl_trio.domain.limits import EMBEDDED_CONNECTIONS
from dwctl_trio.postgres import embedded_files as files
from dwctl_trio.postgres import embedded_system as system
from dwctl_trio.postgres.embedded_files import Address, EmbeddedPostgresError

INITDB_S_MAX = 120.0
"""To make a cluster: 0.5 s here; it writes and syncs 40 MB, and a network disk may sync slowly."""

START_S_MAX = 120.0
"""Until the server accepts: 0.03 s after a clean stop, and up to a minute of replay after a crash (max_wal_size)."""

START_TRIES_MAX = 3
"""A start may meet the last moments of a dead owner's server, and then has to be tried again."""

TAKEOVER_S_MAX = 60.0
"""For the server of a dead owner to end: its fast shutdown writes one checkpoint, at most shared_buffers."""

FAST_STOP_S_MAX = 20.0
"""For the fast shutdown: 0.01 s here, one checkpoint on a slow disk."""

QUICK_STOP_S_MAX = 5.0
"""For the immediate shutdown that follows; it writes nothing, so a server that needs longer hangs."""

KILL_S_MAX = 5.0
"""For the kernel to end a killed process; longer only in a device's uninterruptible wait."""

PROBE_S_MAX = 1.0
"""For the answer to one connection attempt while starting; the next attempt follows."""

POLL_S_MIN = 0.01
"""First pause between two looks, so that a quick start is not held up."""

POLL_S_MAX = 0.25
"""Last pause, so that a long start is not asked a hundred times a second."""

POLL_GROWTH = 1.5
"""From one pause to the next; the longest is reached after a second."""

SHARED_BUFFERS_MB = 64
"""Holds the hot part of a small service's database; the operating system caches the rest."""

Process: TypeAlias = "subprocess.Popen[bytes]"

_USER = "postgres"
_STARTUP = b"\x00\x03\x00\x00user\x00postgres\x00database\x00postgres\x00\x00"
_STARTUP_PACKET = (len(_STARTUP) + 4).to_bytes(4, "big") + _STARTUP
_TERMINATE = b"X\x00\x00\x00\x04"
_TOO_MANY_CONNECTIONS = b"C53300\x00"

log = structlog.get_logger(__name__)


@attrs.frozen(kw_only=True)
class ServerPlan:
    """Everything that starting a server needs, found out before."""

    data_dir: Path
    """Holds the lock, the address and the log."""
    cluster_dir: Path
    """Holds PostgreSQL's files, and need not exist yet."""
    socket_dir: Path
    programs: Path
    """The directory of ``initdb`` and ``postgres``."""
    account: system.Account
    durable: bool
    """False skips every sync to disk."""


async def make_cluster(plan: ServerPlan) -> None:
    """Make the cluster under another name, then give it its own: a crash on the way leaves nothing that looks whole.

    Raises:
        EmbeddedPostgresError: ``initdb`` failed or took too long; the text has its output.
        OSError: A directory cannot be made or renamed.

    Cancellation: ``initdb`` is stopped, and the next call deletes what it left.
    """
    system.check_account_name(plan.account)
    parent = plan.cluster_dir.parent
    await trio.to_thread.run_sync(files.remove_leftovers, parent)
    new = parent / f"{files.NEW_CLUSTER_PREFIX}{secrets.token_hex(4)}"
    new.mkdir(mode=0o700)
    if plan.account.changes:
        os.chown(new, plan.account.uid, plan.account.gid)
    log_start = files.log_size(plan.data_dir)
    process = _spawn(plan, _initdb_command(plan, new))
    try:
        ended = await wait_ended(process, INITDB_S_MAX)
    finally:
        await stop_process(process)
    if not ended or process.returncode != 0:
        reason = f"initdb failed ({process.returncode})" if ended else f"initdb took longer than {INITDB_S_MAX:.0f} s"
        raise EmbeddedPostgresError(f"{reason}; {files.log_tail(plan.data_dir, log_start)}")
    new.rename(plan.cluster_dir)
    if parent != plan.data_dir:
        (plan.data_dir / files.CLUSTER_NAME).symlink_to(plan.cluster_dir)
        log.warning("embedded_cluster_elsewhere", data_dir=str(plan.data_dir), cluster_dir=str(plan.cluster_dir))
    if plan.durable:
        files.sync_dir(parent)
        files.sync_dir(plan.data_dir)


def _initdb_command(plan: ServerPlan, target: Path) -> list[str]:
    settings = {
        "max_connections": str(EMBEDDED_CONNECTIONS),
        "shared_buffers": f"{SHARED_BUFFERS_MB}MB",
        "huge_pages": "off",  # Some containers offer huge pages and kill who uses them.
        "log_checkpoints": "off",  # One line every five minutes, for years.
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
    return [
        str(plan.programs / "initdb"),
        f"--pgdata={target}",
        f"--username={_USER}",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--locale=C",
        "--no-instructions",
        *(f"--set={name}={value}" for name, value in settings.items()),
        *(() if plan.durable else ("--no-sync",)),
    ]


def _postgres_command(plan: ServerPlan) -> list[str]:
    settings = {
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": '"' + str(plan.socket_dir).replace('"', '""') + '"',
        "unix_socket_permissions": "0700",
        "logging_collector": "off",
        "log_destination": "stderr",
        "log_line_prefix": "%m [%p] ",
        "log_error_verbosity": "terse",  # The details of an error quote the row.
        "log_min_error_statement": "panic",  # So do statements.
    }
    if not plan.durable:
        settings |= {"fsync": "off", "full_page_writes": "off"}
    options = (part for name, value in settings.items() for part in ("-c", f"{name}={value}"))
    return [str(plan.programs / "postgres"), "-D", str(plan.cluster_dir), *options]


async def start_server(plan: ServerPlan) -> Process:
    """Start the server and wait until it accepts connections.

    Raises:
        EmbeddedPostgresError: It ended, or did not accept in time, or an earlier one does not end.
        OSError: A file of ours cannot be written.

    Cancellation: what was started is stopped, shielded and bounded.
    """
    for _ in range(START_TRIES_MAX):
        await _wait_for_predecessor(plan)
        files.remove_stale_lock_files(plan.cluster_dir, plan.socket_dir)
        log_start = files.log_size(plan.data_dir)
        process = _spawn(plan, _postgres_command(plan))
        accepting = False
        try:
            accepting = await _wait_accepting(process, plan.socket_dir)
        finally:
            if not accepting:
                await stop_process(process)
        if accepting:
            return process
        if not files.cluster_processes(plan.cluster_dir):
            break
    raise EmbeddedPostgresError(f"PostgreSQL did not start; {files.log_tail(plan.data_dir, log_start)}")


async def _wait_accepting(process: Process, socket_dir: Path) -> bool:
    """Whether the server accepts connections in time; False also when it ends before."""
    with trio.move_on_after(START_S_MAX):
        for pause_s in pauses_s():
            if process.poll() is not None:
                break
            if await accepts(socket_dir):
                return True
            await trio.sleep(pause_s)
    return False


async def _wait_for_predecessor(plan: ServerPlan) -> None:
    """Wait until the server of a dead owner has ended: it was told to when that owner died."""
    with trio.move_on_after(TAKEOVER_S_MAX):
        for pause_s in pauses_s():
            if not files.cluster_processes(plan.cluster_dir):
                return
            await trio.sleep(pause_s)
    pids = files.cluster_processes(plan.cluster_dir)
    raise EmbeddedPostgresError(
        f"an earlier PostgreSQL still runs on {plan.cluster_dir} after {TAKEOVER_S_MAX:.0f} s (processes {pids}). "
        f"End it with SIGINT and start again; {files.log_tail(plan.data_dir)}"
    )


def _spawn(plan: ServerPlan, command: list[str]) -> Process:
    """Start *command* as the plan's user, tied to the calling thread; never waits."""
    child = [sys.executable, "-I", "-S", str(Path(__file__).with_name("embedded_child.py"))]
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    output = files.open_log(plan.data_dir)
    try:
        return subprocess.Popen(  # noqa: S603 - our own program
            [*child, str(os.getpid()), *plan.account.arguments, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment | {"LC_ALL": "C", "TZ": "UTC"},
            start_new_session=True,  # Ctrl-C in a terminal is for us; we stop the server after our last write.
        )
    finally:
        os.close(output)


def announce(plan: ServerPlan, process: Process) -> Address:
    """Write down where the server is, for the processes that want to attach."""
    dsn = f"postgresql://{_USER}@/{_USER}?host={quote(str(plan.socket_dir), safe='/')}&port=5432"
    address = Address(dsn=dsn, socket_dir=plan.socket_dir, pid=process.pid, owner_pid=os.getpid())
    files.write_address(plan.data_dir, address)
    return address


async def accepts(socket_dir: Path) -> bool:
    """Whether a server behind the socket lets clients in now; False while it starts, recovers or stops."""
    answer = b""
    with trio.move_on_after(PROBE_S_MAX), trio.socket.socket(trio.socket.AF_UNIX) as connection:
        try:
            await connection.connect(str(socket_dir / system.SOCKET_NAME))
            await connection.send(_STARTUP_PACKET)
            answer = await connection.recv(4096)
            await connection.send(_TERMINATE)
        except OSError:  # Not there yet, or gone in the middle.
            pass
    return answer.startswith(b"R") or _TOO_MANY_CONNECTIONS in answer


async def stop_process(process: Process) -> None:
    """End a process of ours: a fast shutdown, then an immediate one, then by force; shielded, each step bounded."""
    steps = ((signal.SIGINT, FAST_STOP_S_MAX), (signal.SIGQUIT, QUICK_STOP_S_MAX), (signal.SIGKILL, KILL_S_MAX))
    with trio.CancelScope(shield=True):
        for number, bound_s in steps:
            if process.poll() is not None:
                return
            process.send_signal(number)
            if await wait_ended(process, bound_s):
                return
            log.warning("embedded_postgres_slow_stop", pid=process.pid, signal=number.name, waited_s=bound_s)


async def wait_ended(process: Process, bound_s: float) -> bool:
    """Whether *process* ends within *bound_s* seconds; reaps it."""
    with trio.move_on_after(bound_s):
        for pause_s in pauses_s():
            if process.poll() is not None:
                break
            await trio.sleep(pause_s)
    return process.poll() is not None


def pauses_s() -> Iterator[float]:
    """Pauses in seconds between looks at something that may take a millisecond or a minute; endless."""
    pause_s = POLL_S_MIN
    while True:
        yield pause_s
        pause_s = min(pause_s * POLL_GROWTH, POLL_S_MAX)
