"""SIGTERM with followers, and with clients that wait for queued responses: they are let go, and the work goes on."""

import json
import signal
from collections.abc import Mapping
from typing import Any

import attrs
import httpx
import pytest
import trio
from tests.acceptance.conftest import (
    DELTA,
    ENDINGS,
    PAUSED,
    QUICK,
    WAIT_S,
    Server,
    get_response,
    open_http,
    open_server,
    open_world,
)

LIMITS = attrs.evolve(QUICK, queue_poll_s=0.1, queue_retry_s=0.1)


@attrs.define(eq=False)
class Caller:
    """A client of a queued response, who streams it or waits for it."""

    server: Server
    body: Mapping[str, Any]
    path: str = "/v1/responses"
    delta: bytes = DELTA
    """What is in the answer once words have come."""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    status: int = 0
    received: bytes = b""
    is_cut: bool = False
    """Whether the connection ended within the answer."""
    has_delta: trio.Event = attrs.Factory(trio.Event)

    async def call(self) -> None:
        """Send the request and read the answer."""
        try:
            async with (
                open_http(self.server) as http,
                http.stream("POST", self.path, json=self.body, timeout=WAIT_S) as answer,
            ):
                self.status, self.headers = answer.status_code, answer.headers
                async for chunk in answer.aiter_bytes():
                    self.received += chunk
                    if self.delta in self.received:
                        self.has_delta.set()
        except httpx.RemoteProtocolError:
            self.is_cut = True


@pytest.mark.slow
async def test_a_stopping_server_cuts_followers_and_hands_their_responses_over(postgres_dsn, tmp_path):
    async with open_world(postgres_dsn, tmp_path, LIMITS) as (path, pool, simulator):
        async with open_server(path) as first, trio.open_nursery() as nursery:
            streamed = Caller(first, ask(stream=True, background=True))
            waiting = Caller(first, ask(service_tier="flex"))
            unstored = Caller(first, ask(service_tier="flex", store=False))
            for caller in (streamed, waiting, unstored):
                nursery.start_soon(caller.call)
            await streamed.has_delta.wait()
            await simulator.wait_until(lambda counts: counts.paused == 3)
            stopped_at = trio.current_time()
            status = await first.end_by(signal.SIGTERM)
            seconds = trio.current_time() - stopped_at
        states = [row[0] for row in await pool.fetch("select state from requests")]

        assert (status, states) == (0, ["pending"] * 3)
        assert (streamed.status, streamed.is_cut, b"[DONE]" in streamed.received) == (200, True, False)
        for caller in (waiting, unstored):
            assert (caller.status, caller.headers["x-should-retry"], caller.is_cut) == (503, "false", False)
            error = json.loads(caller.received)["error"]
            name = caller.headers["x-response-id"]
            assert f"{name} goes on" in error["message"]
            assert (f"GET /v1/responses/{name}" in error["message"]) == (caller is waiting)

        async with open_server(path) as second:
            await simulator.wait_until(lambda counts: counts.paused == 3)
            simulator.resume_all()
            rest = await read_rest(second, streamed)
            ended = await wait_completed(second, waiting.headers["x-response-id"])

    assert ended["status"] == "completed"
    numbers = [int(line.split()[1]) for line in (streamed.received + rest).split(b"\n") if line.startswith(b"id: ")]
    assert numbers == list(range(len(numbers)))
    assert rest.endswith(b"data: [DONE]\n\n")
    print(f"stopped after {seconds:.2f} s; {len(numbers)} events over two processes, no gap, no repeat")


@pytest.mark.slow
async def test_a_streamed_completion_that_the_servers_end_breaks_off_is_told_so(postgres_dsn, tmp_path):
    asked = {"model": PAUSED, "messages": [{"role": "user", "content": "hello"}], "service_tier": "flex"}
    async with (
        open_world(postgres_dsn, tmp_path, LIMITS) as (path, pool, _),
        open_server(path) as server,
        trio.open_nursery() as nursery,
    ):
        told = Caller(server, asked | {"stream": True}, path="/v1/chat/completions", delta=b"word1")
        nursery.start_soon(told.call)
        await told.has_delta.wait()
        status = await server.end_by(signal.SIGTERM)
        states = [row[0] for row in await pool.fetch(ENDINGS)]

    assert (status, states, told.is_cut) == (0, ["failed/server_stopping"], False)
    *_, error, done = told.received.strip().split(b"\n\n")
    assert set(json.loads(error.removeprefix(b"data: "))["error"]) == {"message", "type", "param", "code"}
    assert done == b"data: [DONE]"


def ask(**fields: Any) -> dict[str, Any]:
    return {"model": PAUSED, "input": "hello", **fields}


async def read_rest(server: Server, caller: Caller) -> bytes:
    """The events that *caller* was cut from, to the end of the stream."""
    last = caller.received.count(b"\nid: ") + caller.received.startswith(b"id: ") - 1
    url = f"/v1/responses/{caller.headers['x-response-id']}?stream=true&starting_after={last}"
    async with open_http(server) as http:
        answer = await http.get(url, timeout=WAIT_S)
    assert answer.status_code == 200, answer.text
    return answer.content


async def wait_completed(server: Server, response_id: str) -> Mapping[str, Any]:
    with trio.fail_after(WAIT_S):
        while True:
            shown = await get_response(server, response_id)
            if shown["status"] not in {"queued", "in_progress"}:
                return shown


@pytest.mark.slow
async def test_who_follows_and_waits_is_served_to_the_end_within_the_grace(postgres_dsn, tmp_path):
    limits = attrs.evolve(LIMITS, shutdown_grace_s=30.0)
    async with (
        open_world(postgres_dsn, tmp_path, limits) as (path, _, simulator),
        open_server(path) as server,
        trio.open_nursery() as nursery,
    ):
        streamed = Caller(server, ask(stream=True, service_tier="flex"))
        waiting = Caller(server, ask(service_tier="flex"))
        for caller in (streamed, waiting):
            nursery.start_soon(caller.call)
        await streamed.has_delta.wait()
        await simulator.wait_until(lambda counts: counts.paused == 2)
        server.process.send_signal(signal.SIGTERM)
        await server.wait_logged("server_stopping")
        simulator.resume_all()
        with trio.fail_after(limits.shutdown_grace_s / 2):
            status = await server.process.wait()

    assert status == 0
    assert (streamed.status, streamed.is_cut) == (200, False)
    assert streamed.received.endswith(b"data: [DONE]\n\n")
    assert (waiting.status, json.loads(waiting.received)["status"]) == (200, "completed")
