"""``kill -9`` and SIGTERM while calls are handed over: no row stays under way, nothing is charged that is not known."""

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import httpx
import pytest
import trio
from tests.acceptance.conftest import (
    ENDINGS,
    PROMISE_S,
    QUICK,
    UNDER_WAY,
    Server,
    open_http,
    open_server,
    open_world,
    wait_none_under_way,
)

WORDS = b"word1"
USED = "select error_code, input_tokens, output_tokens from usage_records"


@attrs.define(eq=False)
class Caller:
    """Somebody who streams one completion."""

    has_words: trio.Event = attrs.Factory(trio.Event)
    received: bytes = b""
    is_cut: bool = False

    async def stream(self, http: httpx.AsyncClient, path: str, index: int) -> None:
        text = f"hello key:{index}"
        body = {"model": "echo-4-pause-2", "stream": True, "prompt": text}
        if path.endswith("chat/completions"):
            body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
        try:
            async with http.stream("POST", path, json=body) as answer:
                async for chunk in answer.aiter_bytes():
                    self.received += chunk
                    if WORDS in self.received:
                        self.has_words.set()
        except httpx.TransportError:
            self.is_cut = True


@asynccontextmanager
async def calling(server: Server) -> AsyncIterator[list[Caller]]:
    """Two callers, one of each kind, who have got their first words, followed to the end of their streams."""
    with trio.fail_after(PROMISE_S):
        async with open_http(server) as http, trio.open_nursery() as nursery:
            callers = [Caller(), Caller()]
            for index, path in enumerate(("/v1/chat/completions", "/v1/completions")):
                nursery.start_soon(callers[index].stream, http, path, index)
            for caller in callers:
                await caller.has_words.wait()
            yield callers


@pytest.mark.slow
async def test_a_server_killed_in_mid_call_leaves_no_row_under_way(postgres_dsn, tmp_path):
    async with open_world(postgres_dsn, tmp_path, QUICK) as (path, pool, _):
        async with open_server(path) as first, calling(first) as callers:
            assert await pool.fetchval(UNDER_WAY) == 2
            await first.end_by(signal.SIGKILL)
            async with open_server(path):
                await wait_none_under_way(pool)
        endings = [row[0] for row in await pool.fetch(ENDINGS)]
        used = [tuple(row) for row in await pool.fetch(USED)]
    assert endings == ["failed/step_abandoned"] * 2
    assert used == [("step_abandoned", None, None)] * 2
    assert all(caller.is_cut for caller in callers)


@pytest.mark.slow
async def test_a_call_that_outlasts_the_grace_is_told_so_and_one_that_does_not_is_whole(postgres_dsn, tmp_path):
    limits = attrs.evolve(QUICK, shutdown_grace_s=1.0)
    async with open_world(postgres_dsn, tmp_path, limits) as (path, pool, simulator), open_server(path) as server:
        async with calling(server) as (whole, cut):
            server.process.send_signal(signal.SIGTERM)
            await server.wait_logged("server_stopping")
            simulator.resume("0")
            assert await server.process.wait() == 0
        endings = [row[0] for row in await pool.fetch(ENDINGS)]
        used = {tuple(row) for row in await pool.fetch(USED)}
    assert endings == ["completed/", "failed/server_stopping"]
    assert used == {(None, 2, 4), ("server_stopping", None, None)}
    assert b"word3" in whole.received
    assert whole.received.endswith(b'"usage":null}\n\ndata: [DONE]\n\n')
    *_, error, done = cut.received.strip().split(b"\n\n")
    assert (json.loads(error.removeprefix(b"data: "))["error"]["type"], done) == ("server_error", b"data: [DONE]")
    assert not whole.is_cut
    assert not cut.is_cut
    finished = [entry for entry in server.log if entry["event"] == "call_finished"]
    assert {(entry["surface"], entry["status"]) for entry in finished} == {
        ("chat", "completed"),
        ("completions", "failed"),
    }
    assert server.events[-1] == "server_stopped"
