"""SIGTERM and SIGINT with many live streams: each gets its end, no row stays under way, and the exit is in time."""

import json
import signal
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from urllib.parse import urlsplit

import attrs
import httpx
import pytest
import trio
from tests.acceptance.conftest import (
    DELTA,
    ENDINGS,
    PAUSED,
    QUICK,
    UNDER_WAY,
    WAIT_S,
    Server,
    open_http,
    open_server,
    open_world,
    streaming,
    wait_none_under_way,
)

from dwctl_trio.postgres.pool import Pool

pytestmark = pytest.mark.usefixtures("each_server_at_length")

STREAMS = 300
"""Two descriptors each, in the server and in the test: below the 1,024 of an ordinary user."""
FINISHING = 30
"""Streams that go on within the grace."""
GRACE_S = 2.0
STALLED = 10


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_every_live_stream_gets_its_end_and_no_row_stays_under_way(postgres_dsn, tmp_path, number):
    limits = attrs.evolve(QUICK, shutdown_grace_s=GRACE_S)
    async with open_world(postgres_dsn, tmp_path, limits) as (path, pool, simulator), open_server(path) as server:
        async with streaming(server, STREAMS) as clients:
            assert await pool.fetchval(UNDER_WAY) == STREAMS
            stopped_at = trio.current_time()
            server.process.send_signal(number)
            await server.wait_logged("server_stopping")
            for index in range(FINISHING):
                simulator.resume(str(index))
            status = await server.process.wait()
            seconds = trio.current_time() - stopped_at
        rows = {
            str(row["id"]): (row["state"], json.loads(row["response"]))
            for row in await pool.fetch("select id, state, response from requests")
        }
        endings = Counter(row[0] for row in await pool.fetch(ENDINGS))
        under_way = await pool.fetchval(UNDER_WAY)

    lasts = [client.events()[-1] for client in clients]
    print(f"{STREAMS} streams, {number.name}: exit {status} after {seconds:.2f} s, {dict(endings)}")
    assert (status, under_way, len(rows)) == (0, 0, STREAMS)
    assert not any(client.is_cut for client in clients)
    assert {client.received.endswith(b"data: [DONE]\n\n") for client in clients} == {True}
    assert endings == {"completed/": FINISHING, "failed/server_stopping": STREAMS - FINISHING}
    assert [last["type"] for last in lasts] == [
        *["response.completed"] * FINISHING,
        *["response.failed"] * (STREAMS - FINISHING),
    ]
    for last in lasts:
        response = last["response"]
        assert rows[response["id"].removeprefix("resp_")][1] == response
    failed = [last["response"] for last in lasts[FINISHING:]]
    assert {response["output"][0]["content"][0]["text"] for response in failed} == {"word0 word1 "}
    assert {response["error"]["code"] for response in failed} == {"server_error"}
    assert server.events[-1] == "server_stopped"
    assert GRACE_S <= seconds < GRACE_S + 10.0


@attrs.define(eq=False)
class Half:
    """A connection on which the beginning of a request has been sent."""

    stream: trio.SocketStream

    async def finish(self, data: bytes) -> bytes:
        """What the server says once the rest of the request is there, until it closes the connection."""
        received = b""
        with suppress(trio.BrokenResourceError):
            await self.stream.send_all(data)
            async for chunk in self.stream:
                received += chunk
        return received


@asynccontextmanager
async def open_half(server: Server, data: bytes) -> AsyncIterator[Half]:
    parts = urlsplit(server.url)
    async with await trio.open_tcp_stream(parts.hostname, parts.port) as stream:
        await stream.send_all(data)
        yield Half(stream)


def post(model: str) -> tuple[bytes, bytes]:
    """Head and body of a request for a stream."""
    body = json.dumps({"model": model, "input": "hello", "stream": True}).encode()
    head = (
        f"POST /v1/responses HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    return head.encode() + b"\r\n", body


@pytest.mark.slow
async def test_a_server_that_stops_lets_nobody_in_and_finishes_what_it_has_taken(postgres_dsn, tmp_path):
    limits = attrs.evolve(QUICK, shutdown_grace_s=WAIT_S)
    async with (
        open_world(postgres_dsn, tmp_path, limits) as (path, _, simulator),
        open_server(path) as server,
        streaming(server, 1) as (client,),
        open_begun(server, "echo-2") as begun,
        open_http(server) as known,
        open_http(server) as newcomer,
    ):
        ready = (await known.get("/readyz")).status_code
        server.process.send_signal(signal.SIGTERM)
        with trio.fail_after(WAIT_S), pytest.raises(httpx.TransportError):
            while True:  # the signal is on its way; then there is no answer, also not on a connection that was kept
                assert (await known.get("/readyz")).status_code in {200, 503}
        for method, url in (("GET", "/readyz"), ("GET", "/healthz"), ("POST", "/v1/responses")):
            with pytest.raises(httpx.ConnectError):
                await newcomer.request(method, url)
        finished = await begun.finish()
        simulator.resume_all()
        assert await server.process.wait() == 0
    assert ready == 200
    assert client.events()[-1]["type"] == "response.completed"
    assert b"event: response.completed" in finished
    assert finished.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


@pytest.mark.slow
async def test_a_request_whose_body_comes_after_the_grace_is_not_left_open(postgres_dsn, tmp_path):
    async with open_world(postgres_dsn, tmp_path, QUICK) as (path, pool, _), open_server(path) as server:
        async with open_begun(server, PAUSED) as begun:
            async with streaming(server, 1) as (client,):
                server.process.send_signal(signal.SIGTERM)
            ended_at = trio.current_time()
            finished = await begun.finish()
            status = await server.process.wait()
            seconds = trio.current_time() - ended_at
        under_way = await pool.fetchval(UNDER_WAY)
    assert client.events()[-1]["type"] == "response.failed"
    assert b"event: response.failed" in finished or (b" 503 " in finished and b"retry-after-ms: " in finished)
    assert (status, under_way) == (0, 0)
    assert seconds < 5.0


@attrs.define(eq=False)
class Begun:
    """A request whose head the server has taken, and whose body it waits for."""

    stream: trio.SocketStream
    body: bytes

    async def finish(self) -> bytes:
        """Send the body; what the server says until it closes the connection."""
        received = b""
        with trio.fail_after(WAIT_S), suppress(trio.BrokenResourceError):
            await self.stream.send_all(self.body)
            async for chunk in self.stream:
                received += chunk
        return received


@asynccontextmanager
async def open_begun(server: Server, model: str) -> AsyncIterator[Begun]:
    """A request for a stream that the server is in the middle of."""
    body = json.dumps({"model": model, "input": "hello", "stream": True}).encode()
    lines = [
        *("POST /v1/responses HTTP/1.1", "Host: t", "Content-Type: application/json", "Expect: 100-continue"),
        *(f"Content-Length: {len(body)}", "", ""),
    ]
    async with await open_socket(server) as stream:
        await stream.send_all("\r\n".join(lines).encode())
        assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 100 ")
        yield Begun(stream, body)


async def open_socket(server: Server) -> trio.SocketStream:
    parts = urlsplit(server.url)
    return await trio.open_tcp_stream(parts.hostname, parts.port)


@asynccontextmanager
async def stalling(server: Server, pool: Pool, count: int) -> AsyncIterator[None]:
    """Clients that ask for far more than the kernel holds and never read."""
    body = json.dumps({"model": "echo-60000", "input": "hello", "stream": True})
    head = f"POST /v1/responses HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    before = await pool.fetchval(UNDER_WAY)
    async with AsyncExitStack() as stack:
        for _ in range(count):
            stream = await stack.enter_async_context(await open_socket(server))
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await stream.send_all(f"{head}\r\n\r\n{body}".encode())
        with trio.fail_after(WAIT_S):
            while await pool.fetchval(UNDER_WAY) < before + count:
                await pool.execute("select pg_sleep(0.01)")
        yield


@pytest.mark.slow
async def test_clients_that_never_read_do_not_hold_up_the_end(postgres_dsn, tmp_path):
    limits = attrs.evolve(QUICK, write_progress_s=1.0)
    async with open_world(postgres_dsn, tmp_path, limits) as (path, pool, _), open_server(path) as server:
        async with stalling(server, pool, STALLED):
            status, seconds = await stop(server, signal.SIGTERM)
        endings = {row[0] for row in await pool.fetch(ENDINGS)}
    print(f"{STALLED} clients that never read: exit {status} after {seconds:.2f} s")
    assert (status, endings) == (0, {"failed/server_stopping"})
    assert seconds < limits.shutdown_grace_s + limits.write_progress_s + 5.0


@pytest.mark.slow
async def test_the_end_comes_in_time_also_when_writes_may_take_longer(postgres_dsn, tmp_path):
    limits = attrs.evolve(QUICK, write_progress_s=600.0, terminal_write_s=0.5)
    async with open_world(postgres_dsn, tmp_path, limits) as (path, pool, _), open_server(path) as server:
        async with stalling(server, pool, STALLED):
            status, seconds = await stop(server, signal.SIGTERM)
        endings = {row[0] for row in await pool.fetch(ENDINGS)}
    print(f"{STALLED} clients that never read, write_progress_s 600: exit {status} after {seconds:.2f} s")
    assert (status, endings) == (0, {"failed/server_stopping"})
    assert seconds < 15.0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_second_signal_ends_it_at_once(postgres_dsn, tmp_path, number):
    limits = attrs.evolve(QUICK, shutdown_grace_s=600.0, write_progress_s=600.0)
    async with open_world(postgres_dsn, tmp_path, limits) as (path, pool, _), open_server(path) as server:
        async with streaming(server, STALLED) as clients, stalling(server, pool, STALLED):
            server.process.send_signal(number)
            await server.wait_logged("server_stopping")
            assert await pool.fetchval(UNDER_WAY) == 2 * STALLED
            status, seconds = await stop(server, number)
        endings = Counter(row[0] for row in await pool.fetch(ENDINGS))
    print(
        f"second {number.name} with {STALLED} live and {STALLED} stalled streams: exit {status} after {seconds:.2f} s"
    )
    logged = Counter(
        (entry["ending"], entry["error_type"]) for entry in server.log if entry["event"] == "response_finished"
    )
    assert (status, endings) == (0, {"failed/server_stopping": 2 * STALLED})
    assert logged == {("failed", "server_stopping"): 2 * STALLED}
    assert all(client.is_cut for client in clients)
    assert seconds < 3.0


async def stop(server: Server, number: signal.Signals) -> tuple[int, float]:
    """Send a signal; the exit status, and after how many seconds."""
    begun_at = trio.current_time()
    with trio.fail_after(WAIT_S):
        status = await server.end_by(number)
    return status, trio.current_time() - begun_at


@pytest.mark.slow
async def test_clients_that_sent_on_and_broke_off_do_not_hold_up_the_end(postgres_dsn, tmp_path):
    limits = attrs.evolve(QUICK, keep_alive_s=0.05)
    async with open_world(postgres_dsn, tmp_path, limits) as (path, pool, _), open_server(path) as server:
        for _ in range(STALLED):
            async with open_begun(server, PAUSED) as begun:
                await begun.stream.send_all(begun.body + b"GET / HTTP/1.1\r\nHost: t\r\n\r\n" * 5000)
                while DELTA not in await begun.stream.receive_some(65536):
                    pass
                begun.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with trio.fail_after(WAIT_S):
            await wait_none_under_way(pool)
        status, seconds = await stop(server, signal.SIGTERM)
    assert status == 0
    assert seconds < 5.0


@pytest.mark.slow
async def test_a_request_whose_body_is_not_here_when_the_grace_is_over_is_refused(postgres_dsn, tmp_path):
    head = b"POST /v1/responses HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    async with open_world(postgres_dsn, tmp_path, QUICK) as (path, pool, _), open_server(path) as server:
        parts = urlsplit(server.url)
        async with await trio.open_tcp_stream(parts.hostname, parts.port) as client, open_http(server) as http:
            await client.send_all(head)
            await http.get("/healthz")
            status, seconds = await stop(server, signal.SIGTERM)
            answer = b"".join([piece async for piece in client])
        rows = await pool.fetchval("select count(*) from requests")
    assert (status, rows) == (0, 0)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert seconds < 5.0
