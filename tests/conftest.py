"""What every test may ask for: Hypothesis profiles and a database of its own.

``postgres_dsn`` is a fresh, empty database in one real server for the whole session; a test that wants no database
costs nothing, as the server starts on first use.
"""

import asyncio
import itertools
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import attrs
import pytest
import structlog
import trio
from hypothesis import settings

from dwctl_trio.postgres.embedded import EmbeddedPostgres, EmbeddedPostgresOptions, open_embedded_postgres
from dwctl_trio.testing.service import HTTP_SERVER

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the suite in the background has it ignored
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
settings.register_profile("dev", deadline=None, max_examples=50, print_blob=True)
settings.register_profile("ci", deadline=None, max_examples=200, derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

_database_numbers = itertools.count(1)


@attrs.define
class _ServerThread:
    """Runs the embedded server in a thread with a Trio of its own, so that sync fixtures can hold it open."""

    data_dir: Path
    _started: threading.Event = attrs.Factory(threading.Event)
    _server: EmbeddedPostgres | None = None
    _failure: BaseException | None = None
    _stop: trio.Event = attrs.Factory(trio.Event)
    _token: trio.lowlevel.TrioToken | None = None

    def run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as exc:  # noqa: BLE001 - told to the fixture, which raises it
            self._failure = exc
            self._started.set()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        options = EmbeddedPostgresOptions(durable=False)
        async with open_embedded_postgres(self.data_dir, options) as server:
            self._server = server
            self._started.set()
            await self._stop.wait()

    def wait_started(self) -> EmbeddedPostgres:
        self._started.wait()
        if self._server is None:
            raise RuntimeError("no database for the tests") from self._failure
        return self._server

    def stop(self) -> None:
        assert self._token is not None
        self._token.run_sync_soon(self._stop.set)


@pytest.fixture(params=["direct", "hypercorn"])
def each_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with both ways to serve connections."""
    monkeypatch.setenv(HTTP_SERVER, request.param)


@pytest.fixture(params=["direct", pytest.param("hypercorn", marks=pytest.mark.long)])
def each_server_at_length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with both ways to serve connections, the plain one among the long tests."""
    monkeypatch.setenv(HTTP_SERVER, request.param)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """One embedded PostgreSQL for the session, without syncs, in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="dwctl-tests-") as directory:
        # As root the server runs as another user, who must get through to the data directory.
        Path(directory).chmod(0o711)
        server = _ServerThread(Path(directory) / "database")
        thread = threading.Thread(target=server.run, name="embedded-postgres")
        thread.start()
        try:
            yield server.wait_started()
        finally:
            if thread.is_alive():
                server.stop()
            thread.join()


@pytest.fixture
def postgres_dsn(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A fresh, empty database; dropped afterwards, with whatever is still connected to it."""
    name = f"test_{next(_database_numbers)}"
    _execute(postgres_server.dsn, f"CREATE DATABASE {name} TEMPLATE template0")
    yield postgres_server.dsn.replace("/postgres?", f"/{name}?")
    _execute(postgres_server.dsn, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(dsn: str, statement: str) -> None:
    async def execute() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(execute())
