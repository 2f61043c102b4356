"""Requests over the direct transport left at each of their steps, and what they leave behind: nothing."""

import gc
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import trio
import trustme
from tests.upstream.places import USUAL, WAIT_S, ByteServer, open_byte_server

from dwctl_trio.testing.cancel_sweep import sweep_cancellation
from dwctl_trio.upstream.direct import DirectTransport
from dwctl_trio.upstream.request_body import WholeBody

OK = b"HTTP/1.1 200 OK\r\n"
NO_TLS = ssl.create_default_context()
LARGE = b"x" * (4 * 1024 * 1024)
"""More than the sockets' buffers hold."""


def _open_files() -> int:
    return sum(path.exists() for path in Path("/proc/self/fd").iterdir())


async def _send(transport: DirectTransport, url: str, body: bytes) -> bytes:
    headers = {"host": "localhost", "content-length": str(len(body))}
    response = await transport.handle_async_request(httpx.Request("POST", url, headers=headers, stream=WholeBody(body)))
    try:
        return await response.aread()
    finally:
        await response.aclose()


async def _sweep(server: ByteServer, scenario: Callable[[], Awaitable[object]], kept: int = 0) -> int:
    """Leave *scenario* after each of its steps; returns how many there are."""
    steps, files = 0, None
    async for run in sweep_cancellation(scenario):
        steps = run.step
        with trio.fail_after(WAIT_S):
            while server.open > kept:
                await server.changed.wait()
        files = files or _open_files() - 2 * server.open
        assert _open_files() <= files + 2 * server.open, f"after step {run.step}"
    gc.collect()  # a generator or socket that nobody closed would warn here, and a warning is an error
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("body", [b"hello", LARGE], ids=["small", "large"])
async def test_a_request_left_at_any_step_closes_its_connection(body: bytes) -> None:
    async def answer(stream: trio.abc.Stream, _: int) -> None:
        for piece in (OK + b"transfer-encoding: chu", b"nked\r\n\r\n", b"2\r\nok", b"\r\n0\r\n\r\n"):
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()

    async with open_byte_server(answer) as server:

        async def call() -> None:
            async with DirectTransport(NO_TLS, USUAL) as transport:
                assert await _send(transport, server.url, body) == b"ok"

        steps = await _sweep(server, call)
    print(f"left after each of {steps} steps: no file and no connection left")
    assert steps > 5


async def test_a_kept_connection_is_lost_or_kept_and_never_between() -> None:
    async with open_byte_server() as server:
        async with DirectTransport(NO_TLS, USUAL) as transport:

            async def call() -> None:
                for _ in range(3):
                    assert await _send(transport, server.url, b"hello") == b"ok"

            steps = await _sweep(server, call, kept=1)
            assert len(transport._idle) == 1
        await server.wait_open(0)
    assert steps > 5


@pytest.mark.slow
async def test_a_request_over_tls_left_at_any_step_closes_its_connection() -> None:
    authority, client = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(client)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    async with open_byte_server(tls=context) as server:

        async def call() -> None:
            async with DirectTransport(client, USUAL) as transport:
                assert await _send(transport, f"https://localhost:{server.port}/", b"hello") == b"ok"

        steps = await _sweep(server, call)
    assert steps > 5


async def test_an_answer_that_nobody_reads_to_its_end_is_broken_off() -> None:
    async def answer(stream: trio.abc.Stream, _: int) -> None:
        await stream.send_all(OK + b"content-length: 3\r\n\r\nok")
        with suppress(trio.BrokenResourceError):
            await stream.receive_some()
        ended.set()

    ended = trio.Event()
    async with open_byte_server(answer) as server, DirectTransport(NO_TLS, USUAL) as transport:
        response = await transport.handle_async_request(httpx.Request("POST", server.url, content=b"hello"))
        assert await anext(aiter(response.stream)) == b"ok"
        await response.aclose()
        await response.stream.aclose()
        with trio.fail_after(WAIT_S):
            await ended.wait()
        with pytest.raises(StopAsyncIteration):
            await anext(aiter(response.stream))
