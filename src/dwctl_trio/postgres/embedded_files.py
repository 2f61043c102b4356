"""What the embedded PostgreSQL keeps in its data directory, and who may touch it.

    embedded.lock    locked (flock) by the owner for as long as it lives
    embedded.json    where the owner's server listens; only there while it does
    postgres.log     the server's own log
    cluster          the database cluster, or a symbolic link to it (see embedded_system.py)

Rule 1: only the holder of the lock writes anything here.
Rule 2: what must be whole is made under another name and renamed: the cluster, the address.
Rule 3: a lock file of PostgreSQL is removed only when no process of the cluster lives.

Source: PostgreSQL manual, "Database File Layout"; flock(2); proc(5).
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import attrs

from dwctl_trio.domain.errors import StoreError

POSTGRES_MAJOR = 18
"""The version of the wheel's binaries; a cluster belongs to one major version."""

LOG_BYTES_MAX = 8 * 1024 * 1024
"""A longer log is emptied at the next start: weeks of warnings, and it still opens in an editor."""

LOG_TAIL_BYTES = 2000
"""Of the log in an error message: PostgreSQL's last ten lines."""

LOCK_NAME = "embedded.lock"
ADDRESS_NAME = "embedded.json"
LOG_NAME = "postgres.log"
CLUSTER_NAME = "cluster"
NEW_CLUSTER_PREFIX = "cluster.new-"


class EmbeddedPostgresError(StoreError):
    """The embedded PostgreSQL could not be started or reached; written for the operator, so it names paths."""


@attrs.frozen(kw_only=True)
class Address:
    """Where a running server can be reached, as its owner wrote it down."""

    dsn: str
    """A ``postgresql://`` URL whose host is the directory of the socket."""
    socket_dir: Path
    pid: int
    """The postmaster's."""
    owner_pid: int
    """The process that started it and will stop it."""


def open_data_dir(data_dir: Path) -> Path:
    """Create the data directory if it is missing.

    Args:
        data_dir: Where it is to be; parents are created too, existing directories stay as they are.

    Returns:
        Its absolute path without symbolic links.

    Raises:
        OSError: It cannot be made, or is no directory.
    """
    try:
        # Root's is only passed through by the user that the server runs as; everybody else's is private.
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        data_dir.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700)
    except FileExistsError:
        if not data_dir.is_dir():
            raise
    return data_dir.resolve()


def open_own_file(path: Path, flags: int) -> int:
    """Open a file of the data directory, give it to the directory's owner if it is new, and return the descriptor."""
    descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if os.geteuid() == 0:
        directory = path.parent.stat()
        os.fchown(descriptor, directory.st_uid, directory.st_gid)
    return descriptor


def take_lock_nowait(data_dir: Path) -> int | None:
    """Become the owner of *data_dir*, if it has none.

    Returns:
        The descriptor that holds the lock until it is closed or the process dies; None when another owner lives.

    Raises:
        OSError: The lock file cannot be opened, or the file system has no locks.
    """
    descriptor = open_own_file(data_dir / LOCK_NAME, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def write_address(data_dir: Path, address: Address) -> None:
    """Tell other processes where the server is; they see the whole of it or nothing."""
    temporary = data_dir / f"{ADDRESS_NAME}.new"
    descriptor = open_own_file(temporary, os.O_WRONLY | os.O_TRUNC)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(attrs.asdict(address, value_serializer=lambda _, __, value: _plain(value)), file)
    temporary.rename(data_dir / ADDRESS_NAME)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def read_address(data_dir: Path) -> Address | None:
    """The address that an owner left, None when there is none; the owner may have died since."""
    try:
        fields = json.loads((data_dir / ADDRESS_NAME).read_text(encoding="utf-8"))
        return Address(
            dsn=str(fields["dsn"]),
            socket_dir=Path(fields["socket_dir"]),
            pid=int(fields["pid"]),
            owner_pid=int(fields["owner_pid"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as exc:
        path = data_dir / ADDRESS_NAME
        raise EmbeddedPostgresError(f"{path} is damaged; stop every dwctl-trio and delete it") from exc


def remove_address(data_dir: Path) -> None:
    """Take back what ``write_address`` wrote; harmless when there is nothing."""
    (data_dir / ADDRESS_NAME).unlink(missing_ok=True)


def open_log(data_dir: Path) -> int:
    """Open the server's log for appending, emptied if it had grown beyond its bound; returns the descriptor."""
    descriptor = open_own_file(data_dir / LOG_NAME, os.O_WRONLY | os.O_APPEND)
    if os.fstat(descriptor).st_size > LOG_BYTES_MAX:
        os.ftruncate(descriptor, 0)
    return descriptor


def log_size(data_dir: Path) -> int:
    """Bytes in the server's log so far; 0 when there is none."""
    try:
        return (data_dir / LOG_NAME).stat().st_size
    except FileNotFoundError:
        return 0


def log_tail(data_dir: Path, since: int = 0) -> str:
    """The end of the server's log, for an error message.

    Args:
        data_dir: The data directory.
        since: Leave out this many bytes at the beginning: what earlier servers wrote.

    Returns:
        At most ``LOG_TAIL_BYTES``, introduced by the log's path; whole lines.
    """
    path = data_dir / LOG_NAME
    size = log_size(data_dir)
    start = max(since if since <= size else 0, size - LOG_TAIL_BYTES)
    if start == size:
        return f"nothing new in {path}"
    with path.open("rb") as file:
        file.seek(start)
        text = file.read(LOG_TAIL_BYTES).decode("utf-8", "replace").strip()
    return f"the end of {path}:\n{text}"


def check_version(cluster_dir: Path) -> None:
    """Refuse a cluster that another major version of PostgreSQL made.

    Raises:
        EmbeddedPostgresError: It is another version's, or damaged; the text says what to do.
    """
    try:
        found = (cluster_dir / "PG_VERSION").read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        raise EmbeddedPostgresError(
            f"{cluster_dir} is no PostgreSQL cluster: PG_VERSION is missing. Nothing was changed; "
            "restore it from a backup, or move it away to start with an empty database"
        ) from None
    if found != str(POSTGRES_MAJOR):
        raise EmbeddedPostgresError(
            f"{cluster_dir} was made by PostgreSQL {found}, and this dwctl-trio brings PostgreSQL {POSTGRES_MAJOR}. "
            f"Nothing was changed. Dump it with the dwctl-trio that made it (pg_dumpall), move {cluster_dir} away and "
            "restore the dump into a new one, or use a database server of your own"
        )


def remove_leftovers(parent: Path) -> None:
    """Delete what an ``initdb`` left that did not come to its end."""
    for path in parent.glob(f"{NEW_CLUSTER_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def sync_dir(path: Path) -> None:
    """Make renames in *path* survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cluster_processes(cluster_dir: Path) -> list[int]:
    """The pids of living PostgreSQL processes of this cluster: each of them has it as its working directory."""
    cluster = cluster_dir.stat()
    return [pid for pid in _postgres_pids() if _works_in(pid, cluster)]


def _postgres_pids() -> Iterator[int]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                name = Path(entry.path, "comm").read_bytes().strip()
            except OSError:  # It has ended since.
                continue
            if name == b"postgres":
                yield int(entry.name)


def _works_in(pid: int, directory: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/cwd"), directory)  # noqa: PTH116 - a link that resolve() would spoil
    except OSError:  # It has ended, is a zombie, or is another user's: not of this cluster in any case.
        return False


def remove_stale_lock_files(cluster_dir: Path, socket_dir: Path) -> None:
    """Delete PostgreSQL's own lock files if their process number now belongs to somebody else.

    PostgreSQL replaces the file of a dead process itself, with a check for its orphans, so that is left to it. But it
    takes any living process of that number for the old server: a zombie, or a stranger in a restarted container. The
    caller holds the lock and has seen ``cluster_processes`` empty.
    """
    for path in (cluster_dir / "postmaster.pid", socket_dir / ".s.PGSQL.5432.lock"):
        try:
            pid = int(path.read_text(encoding="ascii").split("\n", 1)[0])
        except FileNotFoundError:
            continue
        except ValueError:  # Cut off by a crash: PostgreSQL would refuse to start.
            pid = os.getpid()
        # Looked at again, as a server works in the cluster before it writes its number there.
        if _exists(pid) and not cluster_processes(cluster_dir):
            path.unlink(missing_ok=True)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as exc:
        return exc.errno != errno.ESRCH
    return True
