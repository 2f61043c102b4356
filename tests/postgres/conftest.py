"""What the tests of the driver share: a guest loop, a connection, a proxy that speaks TCP and TLS."""

import socket
import ssl
import struct
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from dwctl_trio.postgres.guest_loop import GuestLoop, open_guest_loop
from dwctl_trio.postgres.trio_asyncpg import Connection, connect

CALL_S = 10.0
"""Bound of the tests' calls: far more than any needs on a busy machine, far less than a hung run."""


@pytest.fixture
async def guest_loop() -> AsyncIterator[GuestLoop]:
    """An open guest loop."""
    async with open_guest_loop() as loop:
        yield loop


@pytest.fixture
async def connection(guest_loop: GuestLoop, postgres_dsn: str) -> AsyncIterator[Connection]:
    """A connection to a database of the test's own."""
    async with open_connection(guest_loop, postgres_dsn) as connection:
        yield connection


@pytest.fixture
def server_dir() -> Iterator[Path]:
    """A directory for a server of the test's own, reachable for the user that root's server runs as."""
    with tempfile.TemporaryDirectory(prefix="dwctl-tests-") as directory:
        Path(directory).chmod(0o711)
        yield Path(directory) / "database"


@asynccontextmanager
async def open_connection(loop: GuestLoop, dsn: str, *, call_s: float = CALL_S) -> AsyncIterator[Connection]:
    """A connection for the block."""
    connection = await connect(loop, dsn, call_s=call_s)
    try:
        yield connection
    finally:
        await connection.aclose()


async def active_statements(observer: Connection) -> list[str]:
    """What other connections to the observer's database have the server do at this moment."""
    rows = await observer.fetch(
        "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND state NOT IN ('idle', 'idle in transaction', 'idle in transaction (aborted)')"
    )
    return [row["query"] for row in rows]


async def wait_until_nothing_runs(observer: Connection) -> None:
    """Ask the server until no other connection is active; bounded by the observer's deadline for its calls."""
    with trio.fail_after(CALL_S):
        while await active_statements(observer):
            await observer.execute("SELECT pg_sleep(0.005)")


async def wait_until_running(observer: Connection, count: int = 1) -> None:
    """Ask the server until *count* other connections are active."""
    with trio.fail_after(CALL_S):
        while len(await active_statements(observer)) < count:
            await observer.execute("SELECT pg_sleep(0.005)")


class CancelAtStep(trio.abc.Instrument):
    """Cancels its block just before a task, any task of the run, takes the given step since the block began."""

    def __init__(self, step: int) -> None:
        self._scope = trio.CancelScope()
        self._left = step
        self.fired = False

    def __enter__(self) -> Self:
        self._scope.__enter__()
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        trio.lowlevel.remove_instrument(self)
        return self._scope.__exit__(kind, exc, trace)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._left == 0:
            self.fired = True
            self._scope.cancel()
        self._left -= 1


class Front:
    """A proxy before the embedded server, which has neither TCP nor TLS: it speaks both, and fails when told to."""

    def __init__(self, socket_path: str, tls: ssl.SSLContext | None) -> None:
        self._socket_path = socket_path
        self._tls = tls
        self._streams: set[trio.abc.AsyncResource] = set()
        self.port = 0
        self.encrypted = 0
        """Connections that have finished their handshake."""
        self.frozen = trio.Event()
        """Replaced by an unset one, it holds back everything, both ways, until it is set."""
        self.frozen.set()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._handle, listeners, task_status=task_status)

    async def _handle(self, client: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with client, await trio.open_unix_socket(self._socket_path) as server:
                secured = client if self._tls is None else await self._secure(client, self._tls)
                self._streams.add(client)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._forward, secured, server, nursery.cancel_scope)
                    nursery.start_soon(self._forward, server, secured, nursery.cancel_scope)
        self._streams.discard(client)

    async def _secure(self, client: trio.SocketStream, tls: ssl.SSLContext) -> trio.abc.Stream:
        first = b""
        with suppress(OSError):
            first = await client.socket.recv(1, socket.MSG_PEEK)
        if first != b"\x16":  # not a TLS handshake yet, so PostgreSQL's SSLRequest, if it is not the end already
            if await client.receive_some(8) != struct.pack("!ll", 8, 80877103):
                raise trio.BrokenResourceError
            await client.send_all(b"S")
        secured = trio.SSLStream(client, tls, server_side=True, https_compatible=True)
        await secured.do_handshake()
        self.encrypted += 1
        return secured

    async def _forward(self, source: trio.abc.Stream, sink: trio.abc.Stream, scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while chunk := await source.receive_some(65536):
                await self.frozen.wait()
                await sink.send_all(chunk)
        scope.cancel()

    async def reset_all(self) -> None:
        """End every connection by a reset, as a firewall would."""
        for stream in list(self._streams):
            assert isinstance(stream, trio.SocketStream)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await stream.aclose()

    def dsn(self, database: str, parameters: str = "sslmode=disable", host: str = "127.0.0.1") -> str:
        return f"postgresql://postgres@{host}:{self.port}/{database}?{parameters}"


@asynccontextmanager
async def open_front(dsn: str, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Front]:
    """A front before the server of *dsn*."""
    directory = parse_qs(urlsplit(dsn).query)["host"][0]
    front = Front(f"{directory}/.s.PGSQL.5432", tls)
    async with trio.open_nursery() as nursery:
        await nursery.start(front.serve)
        yield front
        nursery.cancel_scope.cancel()
