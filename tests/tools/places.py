"""Stand-ins for what lies outside of this machine: names with scripted addresses, and a network that is all local."""

import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import httpcore
import trio
import trustme

from dwctl_trio.domain.tools import HttpTool
from dwctl_trio.ports import ToolInvocation
from dwctl_trio.testing.tool_server import ToolServer

RESPONSE_ID = UUID("00000000-0000-4000-8000-000000000001")
PUBLIC = "93.184.215.14"
"""An address of somebody else's, to which nothing here ever connects."""


class Names(trio.abc.HostnameResolver):
    """Answers each question for a name with the next of its lists of addresses; the last one repeats."""

    def __init__(self, **names: Sequence[Sequence[Any]]) -> None:
        self._names = {name.replace("_", "."): list(answers) for name, answers in names.items()}
        self.asked: list[str] = []
        trio.socket.set_custom_hostname_resolver(self)

    async def getaddrinfo(self, host: Any, port: Any, *_: Any) -> Any:
        name = host.decode()
        self.asked.append(name)
        await trio.lowlevel.checkpoint()
        if name not in self._names:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        answers = self._names[name]
        return [_entry(address, port) for address in (answers.pop(0) if len(answers) > 1 else answers[0])]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise OSError("nobody asks for names")


def _entry(address: Any, port: int) -> Any:
    """As getaddrinfo has it; of an address with a zone, its number."""
    text, scope = address if isinstance(address, tuple) else (address, 0)
    if ":" in text:
        return socket.AF_INET6, socket.SOCK_STREAM, 6, "", (text, port, 0, scope)
    return socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, port)


class LocalNetwork(httpcore.AsyncNetworkBackend):
    """Notes where it is asked to connect, and connects to this machine instead, or not at all."""

    def __init__(self, origin: str | None = None, *, dead: Sequence[str] = ()) -> None:
        self.dialled: list[tuple[str, int]] = []
        self._port = int(origin.rpartition(":")[2]) if origin else None
        self._dead = dead
        self._tcp = httpcore.TrioBackend()

    async def connect_tcp(self, host: str, port: int, timeout: float | None = None, *_: Any) -> Any:  # noqa: ASYNC109
        self.dialled.append((host, port))
        if self._port is None or host in self._dead:
            raise httpcore.ConnectError("nobody is there")
        return await self._tcp.connect_tcp("127.0.0.1", self._port, timeout)


def tool(url: str, **keys: Any) -> HttpTool:
    """A tool that takes anything, on a private network, with much time."""
    usual = {"name": "tool", "description": "", "parameters": b'{"type":"object"}', "timeout_s": 10.0}
    return HttpTool(**{**usual, "url": url, "allow_private": True, **keys})


def invocation(used: HttpTool, arguments: str = '{"city":"Oslo"}', step_id: UUID | None = None) -> ToolInvocation:
    return ToolInvocation(tool=used, arguments=arguments, response_id=RESPONSE_ID, step_id=step_id or uuid4())


@asynccontextmanager
async def open_tls_front(server: ToolServer, authority: trustme.CA, name: str) -> AsyncIterator[int]:
    """A port on which *server* speaks TLS as *name*."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    port = int(server.origin.rpartition(":")[2])

    async def serve(outside: trio.SSLStream[trio.SocketStream]) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as inside, trio.open_nursery() as nursery:
            nursery.start_soon(_pump, outside, inside, nursery)
            nursery.start_soon(_pump, inside, outside, nursery)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_ssl_over_tcp, serve, 0, context)
        yield listeners[0].transport_listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def _pump(source: trio.abc.ReceiveStream, target: trio.abc.SendStream, nursery: trio.Nursery) -> None:
    try:
        while received := await source.receive_some(65536):
            await target.send_all(received)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    nursery.cancel_scope.cancel()
