"""A way to PostgreSQL that tests can cut, freeze, or have swallow an answer."""

import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trio

from dwctl_trio.testing.service import Service, open_service

QUICK = {
    "store_wait_s": 0.5, "store_call_s": 0.5, "ready_check_s": 0.5, "terminal_write_s": 0.5, "terminal_retry_s": 0.02,
    "lease_s": 2.0, "lease_renewal_s": 0.2, "lease_give_up_s": 1.5, "rescue_interval_s": 0.2,
}  # fmt: skip


class Gate:
    """A way to PostgreSQL that can be cut, frozen, or made to swallow an answer."""

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._streams: set[trio.SocketStream] = set()
        self._is_cut = False
        self._thawed = trio.Event()
        self._thawed.set()
        self._swallows_after: bytes | None = None
        self._swallowing: trio.SocketStream | None = None
        self.port = 0

    async def cut(self) -> None:
        """Reset every connection, and each new one."""
        self._is_cut = True
        await self._reset_all()

    def restore(self) -> None:
        """Let everything pass again."""
        self._is_cut = False
        self._thawed.set()

    def freeze(self) -> None:
        """Hold everything back, as a network that loses every packet does."""
        self._thawed = trio.Event()

    def lose_answer_to(self, words: bytes) -> None:
        """Reset the connection instead of giving back the answer to the next statement that holds *words*."""
        self._swallows_after = words

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._handle, listeners, task_status=task_status)

    async def _handle(self, client: trio.SocketStream) -> None:
        if self._is_cut:
            await _reset(client)
            return
        self._streams.add(client)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with client, await trio.open_unix_socket(self._socket_path) as server, trio.open_nursery() as nursery:
                nursery.start_soon(self._ask, client, server, nursery.cancel_scope)
                nursery.start_soon(self._answer, client, server, nursery.cancel_scope)
        self._streams.discard(client)

    async def _ask(self, client: trio.SocketStream, server: trio.SocketStream, scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in client:
                await self._thawed.wait()
                if self._swallows_after is not None and self._swallows_after in data:
                    self._swallows_after = None
                    self._swallowing = client
                await server.send_all(data)
        scope.cancel()

    async def _answer(self, client: trio.SocketStream, server: trio.SocketStream, scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in server:
                await self._thawed.wait()
                if self._swallowing is client:  # PostgreSQL is done, and only we know
                    await _reset(client)
                await client.send_all(data)
        scope.cancel()

    async def _reset_all(self) -> None:
        for stream in list(self._streams):
            await _reset(stream)


async def _reset(stream: trio.SocketStream) -> None:
    with suppress(trio.ClosedResourceError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await stream.aclose()


@asynccontextmanager
async def open_gated(
    dsn: str, limits: Mapping[str, Any] | None = None, **overrides: Any
) -> AsyncIterator[tuple[Service, Gate]]:
    """The service, whose database is behind a gate."""
    parts = urlsplit(dsn)
    gate = Gate(f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.5432")
    async with trio.open_nursery() as nursery:
        await nursery.start(gate.serve)
        behind = f"postgresql://postgres@127.0.0.1:{gate.port}{parts.path}?sslmode=disable"
        async with open_service(behind, {"limits": {**QUICK, **(limits or {})}, **overrides}) as service:
            yield service, gate
        nursery.cancel_scope.cancel()
