"""The embedded PostgreSQL with real processes: who owns it, when it dies, what it keeps, where it refuses.

As root the server runs as another user, so the same tests prove the change of user; as an ordinary user they prove the
plain case. Waiting is done on process descriptors and pipes, never by sleeping.
"""

import asyncio
import contextlib
import importlib.util
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import trio

from dwctl_trio.postgres import embedded_files as files
from dwctl_trio.postgres import embedded_system as system
from dwctl_trio.postgres.embedded import EmbeddedPostgresOptions, open_embedded_postgres

pytestmark = pytest.mark.slow

IS_ROOT = os.geteuid() == 0
WAIT_S_MAX = 30.0
"""For another process to say or do something that takes it a second."""

STARTER = """
import json, sys, pathlib, resource, structlog, trio
from dwctl_trio.postgres.embedded import EmbeddedPostgresError, EmbeddedPostgresOptions, open_embedded_postgres
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
data_dir, system_dir, file_bytes_max = sys.argv[1:]
if int(file_bytes_max):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(file_bytes_max), resource.RLIM_INFINITY))
async def main():
    options = EmbeddedPostgresOptions(durable=False, system_dir=pathlib.Path(system_dir))
    try:
        async with open_embedded_postgres(pathlib.Path(data_dir), options) as server:
            print(json.dumps({"dsn": server.dsn, "pid": server.pid, "owner": server.owner}), flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)
    except EmbeddedPostgresError as exc:
        print(json.dumps({"error": str(exc)}), flush=True)
trio.run(main)
"""


class Starter:
    """Another process that opens the embedded server, and holds it open until it is told to close."""

    def __init__(self, data_dir: Path, system_dir: Path, *, file_bytes_max: int = 0, **environment: str) -> None:
        command = [sys.executable, "-c", STARTER, str(data_dir), str(system_dir), str(file_bytes_max)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | environment
        )

    def answer(self) -> dict[str, Any]:
        """What it said once it had the server, or why it has none."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], WAIT_S_MAX)
        assert readable, "the other process said nothing"
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        self.process.communicate(timeout=WAIT_S_MAX)

    def kill(self) -> None:
        self.process.kill()
        self.close()


class Place:
    """A temporary directory that a server of root can reach, as a user's own would be."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data_dir = root / "data"
        self.system_dir = root / "system"
        self.options = EmbeddedPostgresOptions(durable=False, system_dir=self.system_dir)
        self._starters: list[Starter] = []

    def start(self, data_dir: Path | None = None, **options: Any) -> Starter:
        starter = Starter(data_dir or self.data_dir, self.system_dir, **options)
        self._starters.append(starter)
        return starter

    def close(self) -> None:
        for starter in self._starters:
            if starter.process.stdin is not None and not starter.process.stdin.closed:
                starter.close()


@pytest.fixture
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="dwctl-embedded-") as directory:
        root = Path(directory).resolve()
        root.chmod(0o755)
        place = Place(root)
        yield place
        place.close()


@pytest.fixture(scope="module")
def made_once() -> Iterator[Path]:
    """A data directory with a cluster that was cleanly stopped; making one takes half a second."""
    with tempfile.TemporaryDirectory(prefix="dwctl-embedded-") as directory:
        root = Path(directory).resolve()
        root.chmod(0o755)
        starter = Starter(root / "data", root / "system")
        starter.answer()
        starter.close()
        yield root / "data"


@pytest.fixture
def warm_place(place: Place, made_once: Path) -> Place:
    """A place whose database exists already."""
    subprocess.run(["cp", "-a", str(made_once), str(place.data_dir)], check=True)
    return place


def query(dsn: str, statement: str) -> Any:
    """Run one statement on a connection of its own; the first value of its first row."""

    async def fetch() -> Any:
        connection = await asyncpg.connect(dsn, timeout=WAIT_S_MAX)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(fetch())


async def wait_served(dsn: str) -> None:
    with trio.fail_after(WAIT_S_MAX):
        while True:
            with contextlib.suppress(OSError, asyncpg.PostgresError):
                if await fetch(dsn, "SELECT 1") == 1:
                    return


async def fetch(dsn: str, statement: str) -> Any:
    return await trio.to_thread.run_sync(query, dsn, statement)


def wait_gone(process_descriptor: int) -> bool:
    """Whether the process ends within the bound; the descriptor is closed."""
    readable, _, _ = select.select([process_descriptor], [], [], WAIT_S_MAX)
    os.close(process_descriptor)
    return bool(readable)


async def test_a_cold_start_gives_a_utf8_server_that_only_its_socket_reaches(place: Place) -> None:
    async with open_embedded_postgres(place.data_dir, place.options) as server:
        assert server.owner
        assert await fetch(server.dsn, "SHOW server_encoding") == "UTF8"
        assert await fetch(server.dsn, "SHOW listen_addresses") == ""
        assert await fetch(server.dsn, "SELECT lower('ÄÖ') || (SELECT 'Z' < 'a')") == "äötrue"
        address = files.read_address(server.data_dir)
        assert address is not None
        status = address.socket_dir.stat()
        assert stat.S_IMODE(status.st_mode) == 0o700
        assert (status.st_uid == os.geteuid()) is not IS_ROOT
        descriptor = os.pidfd_open(server.pid)
    assert wait_gone(descriptor)
    assert files.read_address(place.data_dir) is None
    assert not address.socket_dir.exists()


async def test_a_durable_server_syncs(place: Place) -> None:
    options = EmbeddedPostgresOptions(system_dir=place.system_dir)
    async with open_embedded_postgres(place.data_dir, options) as server:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert await fetch(server.dsn, f"SHOW {setting}") == "on"


async def test_a_warm_start_finds_the_rows_of_the_last_one(place: Place) -> None:
    async with open_embedded_postgres(place.data_dir, place.options) as server:
        await fetch(server.dsn, "CREATE TABLE kept AS SELECT 7 AS number")
    async with open_embedded_postgres(place.data_dir, place.options) as server:
        assert await fetch(server.dsn, "SELECT number FROM kept") == 7


def test_a_killed_owner_takes_the_server_along_and_the_next_has_the_rows(warm_place: Place) -> None:
    first = warm_place.start()
    server = first.answer()
    query(server["dsn"], "CREATE TABLE kept AS SELECT 7 AS number")
    descriptor = os.pidfd_open(server["pid"])
    first.kill()
    second = warm_place.start()
    assert second.answer()["owner"]
    assert wait_gone(descriptor)
    assert query(server["dsn"], "SELECT number FROM kept") == 7


def test_owner_and_server_killed_together_leave_a_directory_that_starts(warm_place: Place) -> None:
    first = warm_place.start()
    server = first.answer()
    query(server["dsn"], "CREATE TABLE kept AS SELECT 7 AS number")
    os.kill(first.process.pid, signal.SIGSTOP)  # So that it cannot start the server again in between.
    os.kill(server["pid"], signal.SIGKILL)
    first.kill()
    assert (warm_place.data_dir / files.CLUSTER_NAME / "postmaster.pid").exists()
    second = warm_place.start()
    assert second.answer()["owner"]
    assert query(server["dsn"], "SELECT number FROM kept") == 7


async def test_a_killed_server_comes_back_behind_the_same_dsn(warm_place: Place) -> None:
    async with open_embedded_postgres(warm_place.data_dir, warm_place.options) as server:
        await fetch(server.dsn, "CREATE TABLE kept AS SELECT 7 AS number")
        descriptor = os.pidfd_open(server.pid)
        os.kill(server.pid, signal.SIGKILL)
        assert await trio.to_thread.run_sync(wait_gone, descriptor)
        async with open_embedded_postgres(
            warm_place.data_dir, warm_place.options
        ) as attached:  # Waits until it accepts.
            assert not attached.owner
            assert attached.dsn == server.dsn
        assert await fetch(server.dsn, "SELECT number FROM kept") == 7


def test_of_two_starters_at_once_one_owns_and_both_can_work(place: Place) -> None:
    starters = [place.start(), place.start()]
    answers = [starter.answer() for starter in starters]
    assert sorted(answer["owner"] for answer in answers) == [False, True]
    assert len({answer["pid"] for answer in answers}) == 1
    assert [query(answer["dsn"], "SELECT 1") for answer in answers] == [1, 1]


async def test_an_attached_process_leaves_the_server_running(warm_place: Place) -> None:
    async with open_embedded_postgres(warm_place.data_dir, warm_place.options) as server:
        attached = warm_place.start()
        assert (await trio.to_thread.run_sync(attached.answer))["owner"] is False
        await trio.to_thread.run_sync(attached.close)
        assert attached.process.returncode == 0
        assert await fetch(server.dsn, "SELECT 1") == 1


@pytest.mark.parametrize("end", ["kill", "close"])
async def test_an_attached_process_takes_the_server_over_when_its_owner_ends(warm_place: Place, end: str) -> None:
    first = warm_place.start()
    address = await trio.to_thread.run_sync(first.answer)
    async with open_embedded_postgres(warm_place.data_dir, warm_place.options) as joined:
        assert not joined.owner
        await trio.to_thread.run_sync(getattr(first, end))

        await wait_served(joined.dsn)
        assert joined.dsn == address["dsn"]
        later = warm_place.start()
        assert not (await trio.to_thread.run_sync(later.answer))["owner"]
        await trio.to_thread.run_sync(later.close)


async def test_an_error_of_the_body_comes_out_as_it_is(warm_place: Place) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_embedded_postgres(warm_place.data_dir, warm_place.options):
            raise ZeroDivisionError


async def test_cancelling_the_body_stops_the_server(warm_place: Place) -> None:
    with trio.CancelScope() as scope:
        async with open_embedded_postgres(warm_place.data_dir, warm_place.options) as server:
            descriptor = os.pidfd_open(server.pid)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert wait_gone(descriptor)


async def test_a_start_cancelled_half_way_can_be_repeated(place: Place) -> None:
    with trio.move_on_after(0.1) as scope:  # In the middle of initdb, which takes 0.4 s.
        async with open_embedded_postgres(place.data_dir, place.options):
            pass
    assert scope.cancelled_caught
    assert not (place.data_dir / files.CLUSTER_NAME).exists()
    async with open_embedded_postgres(place.data_dir, place.options) as server:
        assert await fetch(server.dsn, "SELECT 1") == 1
    assert not list(place.data_dir.glob(f"{files.NEW_CLUSTER_PREFIX}*"))


def test_long_paths_for_data_and_temporary_files_do_not_hinder_the_socket(place: Place) -> None:
    data_dir = place.root / ("d" * 100) / ("e" * 100)
    temporary_dir = place.root / ("t" * 100)
    temporary_dir.mkdir()
    starter = place.start(data_dir, TMPDIR=str(temporary_dir))
    answer = starter.answer()
    assert query(answer["dsn"], "SELECT 1") == 1
    address = files.read_address(data_dir)
    assert address is not None
    assert len(os.fsencode(address.socket_dir / system.SOCKET_NAME)) <= system.SOCKET_PATH_BYTES_MAX


def test_a_directory_that_private_ones_enclose_works_and_they_stay_private(place: Place) -> None:
    private = place.root / "home"
    private.mkdir(mode=0o700)
    data_dir = private / ".dwctl"
    first = place.start(data_dir)
    server = first.answer()
    query(server["dsn"], "CREATE TABLE kept AS SELECT 7 AS number")
    first.close()
    assert place.start(data_dir).answer()["owner"]
    assert query(server["dsn"], "SELECT number FROM kept") == 7
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    # Root's server could not reach the place, so there is a link to one that it can reach.
    assert (data_dir / files.CLUSTER_NAME).is_symlink() is IS_ROOT


def test_a_link_to_a_cluster_that_is_gone_is_no_empty_database(place: Place) -> None:
    place.data_dir.mkdir()
    (place.data_dir / files.CLUSTER_NAME).symlink_to(place.root / "lost")
    assert "is gone" in place.start().answer()["error"]


def test_binaries_below_a_private_directory_are_copied_for_roots_server(place: Place) -> None:
    private = place.root / "home"
    private.mkdir(mode=0o700)
    spec = importlib.util.find_spec(system.WHEEL)
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    for source in (package, package.parent / f"{system.WHEEL}.libs"):
        shutil.copytree(source, private / source.name, ignore=shutil.ignore_patterns("*.a", "pginstall", "include"))
    search_path = os.pathsep.join([str(private), *sys.path])
    answers = []
    for _ in range(2):
        starter = place.start(PYTHONPATH=search_path)
        answers.append(starter.answer())
        assert query(answers[-1]["dsn"], "CREATE EXTENSION IF NOT EXISTS vector") is None
        program = Path(f"/proc/{answers[-1]['pid']}/exe").resolve()
        starter.close()
        assert program.is_relative_to(place.system_dir if IS_ROOT else private)
    assert len(list(place.system_dir.glob("postgresql*"))) == (1 if IS_ROOT else 0)


def test_a_lock_file_whose_number_a_living_stranger_has_is_replaced(warm_place: Place) -> None:
    account = system.choose_account(warm_place.data_dir)
    stranger = subprocess.Popen(["cat"], stdin=subprocess.PIPE, user=account.uid)
    cluster = warm_place.data_dir / files.CLUSTER_NAME
    (cluster / "postmaster.pid").write_text(f"{stranger.pid}\n{cluster}\n")
    os.chown(cluster / "postmaster.pid", account.uid, account.gid)
    server = warm_place.start().answer()
    assert query(server["dsn"], "SELECT 1") == 1
    stranger.communicate()


def test_a_living_server_on_the_cluster_is_waited_for(warm_place: Place) -> None:
    first = warm_place.start()
    server = first.answer()
    cluster = warm_place.data_dir / files.CLUSTER_NAME
    assert server["pid"] in files.cluster_processes(cluster)
    before = (cluster / "postmaster.pid").read_text()
    files.remove_stale_lock_files(cluster, warm_place.root)
    assert (cluster / "postmaster.pid").read_text() == before


def test_another_versions_cluster_is_refused_and_left_alone(place: Place) -> None:
    cluster = place.data_dir / files.CLUSTER_NAME
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("15\n")
    error = place.start().answer()["error"]
    assert "PostgreSQL 15" in error
    assert f"PostgreSQL {files.POSTGRES_MAJOR}" in error
    assert "pg_dumpall" in error
    assert [path.name for path in cluster.iterdir()] == ["PG_VERSION"]


def test_a_directory_without_right_to_write_is_named_in_the_error(place: Place) -> None:
    # Root may write everywhere but to the kernel's own file systems.
    parent = Path("/sys") if IS_ROOT else place.root / "read-only"
    if not IS_ROOT:
        parent.mkdir(mode=0o500)
    error = place.start(parent / "dwctl").answer()["error"]
    assert str(parent / "dwctl") in error
    assert "Choose one that this user can write to" in error


def test_a_failing_initdb_shows_its_log_and_leaves_nothing_broken(place: Place) -> None:
    error = place.start(file_bytes_max=100_000).answer()["error"]  # Like a full disk, for any user.
    assert "initdb failed" in error
    assert "File too large" in error
    starter = place.start()
    assert query(starter.answer()["dsn"], "SELECT 1") == 1


def test_a_server_that_cannot_start_shows_its_log(warm_place: Place) -> None:
    with (warm_place.data_dir / files.CLUSTER_NAME / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = 1\n")
    error = warm_place.start().answer()["error"]
    assert "did not start" in error
    assert 'unrecognized configuration parameter "no_such_setting"' in error


def test_a_log_beyond_its_bound_is_emptied_at_the_next_start(place: Place) -> None:
    place.data_dir.mkdir()
    with (place.data_dir / files.LOG_NAME).open("wb") as file:
        file.truncate(files.LOG_BYTES_MAX + 1)
    starter = place.start()
    starter.answer()
    assert files.log_size(place.data_dir) < 100_000
