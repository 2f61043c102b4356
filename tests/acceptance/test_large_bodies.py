"""Many large bodies at once: the server's memory is bounded, small requests go on, and every byte is given back."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import attrs
import httpx
import pytest
import trio
from tests.acceptance.conftest import QUICK, WAIT_S, Server, open_http, open_server, open_world
from tests.http.conftest import ask

from dwctl_trio.testing.simulator import Simulator

MIB = 1024 * 1024
BUDGET_BYTES = 64 * MIB
BODY_BYTES = 12_000_000
FIT = BUDGET_BYTES // BODY_BYTES
TOO_MANY = 30
TIMES_MAX = 6
"""So much memory, for each byte of the budget, the server may take on top of what it had."""
LIMITS = attrs.evolve(QUICK, request_bodies_bytes=BUDGET_BYTES, request_body_s=2.0)
HELD = "echo-4-pause-2"


def large(model: str, *, messages: int = 1) -> bytes:
    """A body of ``BODY_BYTES`` in so many messages."""
    text = "x" * (BODY_BYTES // messages - 80)
    said = [{"role": "user", "content": text} for _ in range(messages - 1)]
    asked = {"model": model, "input": [*said, {"role": "user", "content": ""}], "store": True}
    room = BODY_BYTES - len(json.dumps(asked))
    asked["input"][-1]["content"] = "key:held " + "y" * (room - 9)
    return json.dumps(asked).encode()


def kinds(model: str) -> Iterator[bytes]:
    """One text, a hundred, ten thousand, and again."""
    while True:
        yield from (large(model), large(model, messages=100), large(model, messages=10_000))


class Pieces(httpx.AsyncByteStream):
    """A body that is sent in pieces; httpx's own is a generator, which an early answer leaves to the collector."""

    def __init__(self, body: bytes) -> None:
        self._pieces = iter([body[start : start + 65536] for start in range(0, len(body), 65536)])

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        piece = next(self._pieces, None)
        if piece is None:
            raise StopAsyncIteration
        return piece


async def post(http: httpx.AsyncClient, body: bytes, *, chunked: bool = False) -> httpx.Response:
    url = http.base_url.join("/v1/responses")
    framing = {"transfer-encoding": "chunked"} if chunked else {"content-length": str(len(body))}
    headers = {"host": url.netloc.decode(), "content-type": "application/json", **framing}
    return await http.send(httpx.Request("POST", url, headers=headers, stream=Pieces(body)))


async def post_all(http: httpx.AsyncClient, bodies: list[bytes]) -> list[httpx.Response]:
    """The answers to all *bodies*, sent at once, every other one in chunks."""
    answers: list[httpx.Response] = []

    async def run(index: int, body: bytes) -> None:
        answers.append(await post(http, body, chunked=index % 2 == 1))

    async with trio.open_nursery() as nursery:
        for index, body in enumerate(bodies):
            nursery.start_soon(run, index, body)
    return answers


async def hang_up_within(server: Server, body: bytes, *, chunked: bool) -> None:
    """Send half a body and leave."""
    async with begun(server, body, chunked=chunked):
        pass


async def stop_sending(server: Server, body: bytes, *, chunked: bool) -> bytes:
    """Send half a body, and read what the server has to say of that."""
    async with begun(server, body, chunked=chunked) as stream:
        return bytes(await stream.receive_some())


@asynccontextmanager
async def begun(server: Server, body: bytes, *, chunked: bool) -> AsyncIterator[trio.SocketStream]:
    parts = urlsplit(server.url)
    half = body[: len(body) // 2]
    framing = f"Transfer-Encoding: chunked\r\n\r\n{len(body):x}" if chunked else f"Content-Length: {len(body)}\r\n"
    head = f"POST /v1/responses HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n{framing}\r\n"
    async with await trio.open_tcp_stream(parts.hostname, parts.port) as stream:
        await stream.send_all(head.encode() + half)
        yield stream


def peak_bytes(server: Server) -> int:
    """The most memory that the server has held so far."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


@asynccontextmanager
async def open_bench(dsn: str, tmp_path: Path) -> AsyncIterator[tuple[Server, Simulator, httpx.AsyncClient]]:
    async with (
        open_world(dsn, tmp_path, LIMITS) as (path, _, simulator),
        open_server(path) as server,
        open_http(server) as http,
    ):
        yield server, simulator, http


@pytest.mark.slow
async def test_many_large_bodies_at_once_are_held_within_a_budget(postgres_dsn: str, tmp_path: Path):
    async with open_bench(postgres_dsn, tmp_path) as (server, simulator, http):
        assert (await http.post("/v1/responses", json=ask("echo-2"))).status_code == 200
        before = server.resident_bytes()
        held = list(zip(range(FIT), kinds(HELD), strict=False))
        refused: list[httpx.Response] = []
        served: list[int] = []
        with trio.fail_after(2 * WAIT_S):
            async with trio.open_nursery() as nursery:

                async def hold(body: bytes) -> None:
                    served.append((await post(http, body)).status_code)

                for _, body in held:
                    nursery.start_soon(hold, body)
                await simulator.wait_until(lambda counts: counts.paused == FIT)
                refused += await post_all(http, [large("echo-2")] * TOO_MANY)
                small = [(await http.post("/v1/responses", json=ask("echo-2"))).status_code for _ in range(20)]
                simulator.resume_all()
            await simulator.wait_idle()
        peak = peak_bytes(server)

    refusals = Counter(answer.status_code for answer in refused)
    growth = peak - before
    print(
        f"{FIT} bodies of {BODY_BYTES / 1e6:.0f} MB held, {TOO_MANY} more: {dict(refusals)}, {small.count(200)} small"
        f" served; memory {before / MIB:.0f} -> {peak / MIB:.0f} MiB at most: {growth / (FIT * BODY_BYTES):.1f} times"
    )
    assert served == [200] * FIT
    assert refusals == {503: TOO_MANY}
    for answer in refused:
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
        assert "bodies" in answer.json()["error"]["message"]
        assert 1000 <= int(answer.headers["retry-after-ms"]) <= 5000
    assert small == [200] * 20
    assert growth <= TIMES_MAX * BUDGET_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_the_budget_is_given_back_however_a_body_ends(postgres_dsn: str, tmp_path: Path, chunked: bool):
    body = large("echo-2")
    async with open_bench(postgres_dsn, tmp_path) as (server, _, http):
        with trio.fail_after(2 * WAIT_S):
            for _ in range(2):
                known = server.open_connections()
                for _ in range(FIT):
                    await hang_up_within(server, body, chunked=chunked)
                while server.open_connections() > known:
                    await trio.lowlevel.checkpoint()
                slow: list[bytes] = []

                async def stall(slow: list[bytes]) -> None:
                    slow.append(await stop_sending(server, body, chunked=chunked))

                async with trio.open_nursery() as nursery:
                    for _ in range(FIT):
                        nursery.start_soon(stall, slow)
                assert [answer[:13] for answer in slow] == [b"HTTP/1.1 408 "] * FIT
                malformed = await post_all(http, [body[:-1]] * FIT)
                assert [answer.status_code for answer in malformed] == [400] * FIT
            whole = await post_all(http, [body] * FIT)
    assert [answer.status_code for answer in whole] == [200] * FIT
