"""Clients that never read and clients that send a byte a second: others do not feel them, and they are gone in time."""

import json
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import httpx
import pytest
import trio
from tests.acceptance.conftest import Server, open_http, open_server, open_world
from tests.http.conftest import ask

from dwctl_trio.domain.limits import DEFAULT_LIMITS, Limits

pytestmark = pytest.mark.usefixtures("each_server_at_length")

PACE_S = 1.0
"""Between two bytes of a client that sends slowly."""
SPREAD_S = 0.02
"""Between the arrivals of two slow clients."""
ANSWER = "big-200000"
"""A stream of a megabyte, far more than the kernel takes for a client with small buffers."""
MEASURED_BEFORE = 500
"""Requests for the figure without slow clients."""


@attrs.frozen(kw_only=True)
class Plan:
    """How many slow clients there are, and what must hold."""

    limits: Limits
    each: int
    """Clients that never read, and as many that send slowly: half of these within their headers."""
    rounds: int
    """They all come, and are waited for until they are gone, this many times."""
    gone_s: float
    """After the last has come."""
    quantile: float
    """Of the others' times; the highest of a few hundred would tell more of the machine than of the server."""
    growth_s: float
    """By how much that may be longer than without slow clients."""
    exit_s: float


QUICK = Plan(
    limits=attrs.evolve(
        DEFAULT_LIMITS, write_progress_s=1.5, idle_connection_s=2.0, request_body_s=2.0, shutdown_grace_s=0.5
    ),
    each=40,
    rounds=1,
    gone_s=6.0,
    quantile=0.5,
    growth_s=0.1,
    exit_s=5.0,
)
FULL = Plan(limits=DEFAULT_LIMITS, each=200, rounds=2, gone_s=65.0, quantile=0.99, growth_s=0.020, exit_s=36.0)


def open_narrow() -> trio.socket.SocketType:
    """A socket for which both kernels hold little, so that the server soon feels that it is not read from."""
    narrow = trio.socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with suppress(OSError):
        narrow.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    return narrow


def request_bytes(body: bytes) -> bytes:
    head = f"POST /v1/responses HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


async def never_read(server: Server, left: trio.Event) -> None:
    """Ask for a long answer and read none of it, until *left* is set: such a client cannot see that it was cut."""
    parts = urlsplit(server.url)
    with open_narrow() as narrow:
        await narrow.connect((parts.hostname, parts.port))
        await narrow.send(request_bytes(json.dumps(ask(ANSWER, stream=True)).encode()))
        await left.wait()


async def send_slowly(server: Server, data: bytes, at_once: int) -> None:
    """Send *data*, after the first *at_once* bytes one a second, until the server closes."""
    parts = urlsplit(server.url)
    async with await trio.open_tcp_stream(parts.hostname, parts.port) as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(data[:at_once])
                for position in range(at_once, len(data)):
                    await trio.sleep(PACE_S)
                    await stream.send_all(data[position : position + 1])

        nursery.start_soon(send)
        with suppress(trio.BrokenResourceError):
            async for _ in stream:
                pass
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_slow_clients(server: Server, each: int) -> AsyncIterator[trio.Event]:
    """Slow clients that come one after the other; set when all have come."""
    data = request_bytes(b"x" * 1000)
    body_at = data.index(b"\r\n\r\n") + 4
    arrived, left = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:

        async def arrive() -> None:
            for index in range(each):
                nursery.start_soon(never_read, server, left)
                nursery.start_soon(send_slowly, server, data, 10 if index % 2 else body_at)
                await trio.sleep(SPREAD_S)
            arrived.set()

        nursery.start_soon(arrive)
        yield arrived
        nursery.cancel_scope.cancel()


async def ask_once(http: httpx.AsyncClient) -> float:
    """The seconds that a small request takes."""
    begun_at = time.perf_counter()
    answer = await http.post("/v1/responses", json=ask("echo-2"))
    assert answer.status_code == 200
    return time.perf_counter() - begun_at


def quantile_s(seconds: list[float], quantile: float) -> float:
    return sorted(seconds)[int(len(seconds) * quantile)]


async def run_plan(plan: Plan, dsn: str, tmp_path: Path) -> None:
    async with open_world(dsn, tmp_path, plan.limits) as (path, _, _), open_server(path) as server:
        async with open_http(server) as http:
            before = [await ask_once(http) for _ in range(MEASURED_BEFORE)]
            during: list[float] = []
            gone_s: list[float] = []
            known = server.open_connections()
            most = 0
            for _ in range(plan.rounds):
                async with open_slow_clients(server, plan.each) as arrived:
                    while not arrived.is_set():
                        during.append(await ask_once(http))
                    arrived_at = trio.current_time()
                    with trio.fail_after(plan.gone_s):
                        while (count := server.open_connections()) > known:
                            most = max(most, count)
                            during.append(await ask_once(http))
                    gone_s.append(trio.current_time() - arrived_at)
        async with open_slow_clients(server, plan.each) as arrived:
            await arrived.wait()
            begun_at = trio.current_time()
            with trio.fail_after(plan.exit_s):
                status = await server.end_by(signal.SIGTERM)
            exit_s = trio.current_time() - begun_at

    was_s, is_s = (quantile_s(seconds, plan.quantile) for seconds in (before, during))
    print(
        f"{plan.each} that never read, {plan.each} that send a byte a second, {plan.rounds} times:"
        f" connections {known} -> {most} -> {known}, gone after {', '.join(f'{seconds:.1f}' for seconds in gone_s)} s;"
        f" p{100 * plan.quantile:.0f} {1000 * was_s:.1f} -> {1000 * is_s:.1f} ms of {len(during)};"
        f" SIGTERM: exit {status} after {exit_s:.1f} s"
    )
    assert most > known + plan.each, "both kinds were there"
    assert status == 0
    assert is_s - was_s <= plan.growth_s


@pytest.mark.slow
async def test_a_few_slow_clients_are_not_felt_and_are_gone_in_time(postgres_dsn: str, tmp_path: Path) -> None:
    await run_plan(QUICK, postgres_dsn, tmp_path)


@pytest.mark.long
async def test_hundreds_of_slow_clients_for_two_minutes_are_not_felt_and_are_gone_in_time(
    postgres_dsn: str, tmp_path: Path
) -> None:
    await run_plan(FULL, postgres_dsn, tmp_path)
