"""Idempotency keys over the end of a process: killed in the middle, or asked to stop while a repeat waits."""

import signal

import attrs
import httpx
import pytest
import trio
from tests.acceptance.conftest import PROMISE_S, QUICK, WAIT_S, Server, open_http, open_server, open_world

BODY = {"model": "echo-4-pause-2", "input": "hello"}
STATES = "select state, response_status from requests order by created_at"
LOOKED = "select count(*) from pg_stat_activity where query like '%idempotency_digest,%' and pid <> pg_backend_pid()"
"""Connections whose last statement was a look at who holds a key."""


async def request(server: Server, answers: list[httpx.Response | None]) -> None:
    """Send the request with its key; its answer, or None if the connection broke."""
    async with open_http(server) as http:
        try:
            answers.append(await http.post("/v1/responses", json=BODY, headers={"Idempotency-Key": "k"}))
        except httpx.TransportError:
            answers.append(None)


@pytest.mark.slow
async def test_a_key_of_a_killed_process_is_free_once_its_row_was_rescued(postgres_dsn, tmp_path):
    answers: list[httpx.Response | None] = []
    with trio.fail_after(PROMISE_S):
        async with open_world(postgres_dsn, tmp_path, QUICK) as (path, pool, simulator):
            async with open_server(path) as killed, trio.open_nursery() as nursery:
                nursery.start_soon(request, killed, answers)
                await simulator.wait_until(lambda counts: counts.paused == 1)
                await killed.end_by(signal.SIGKILL)
            async with open_server(path) as second, trio.open_nursery() as nursery:
                nursery.start_soon(request, second, answers)
                await simulator.wait_until(lambda counts: counts.total == 2 and counts.paused == 1)
                rows = [tuple(row) for row in await pool.fetch(STATES)]
                simulator.resume_all()
            async with open_server(path) as third:
                await request(third, answers)
            ended = [tuple(row) for row in await pool.fetch(STATES)]
    lost, made, replayed = answers
    assert lost is None
    assert made is not None
    assert replayed is not None
    assert rows == [("failed", 500), ("processing", None)]
    assert ended == [("failed", 500), ("completed", 200)]
    assert "idempotent-replayed" not in made.headers
    assert replayed.headers["idempotent-replayed"] == "true"
    assert replayed.content == made.content


@pytest.mark.slow
async def test_a_waiting_repeat_is_sent_away_by_a_server_that_stops_and_the_first_goes_on(postgres_dsn, tmp_path):
    patient = attrs.evolve(QUICK, shutdown_grace_s=WAIT_S)
    first: list[httpx.Response | None] = []
    repeated: list[httpx.Response | None] = []
    with trio.fail_after(PROMISE_S):
        async with open_world(postgres_dsn, tmp_path, patient) as (path, pool, simulator), open_server(path) as server:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(request, server, first)
                await simulator.wait_until(lambda counts: counts.paused == 1)
                nursery.start_soon(request, server, repeated)
                while not await pool.fetchval(LOOKED):
                    await trio.lowlevel.checkpoint()
                server.process.send_signal(signal.SIGTERM)
                while not repeated:
                    await pool.fetchval("select 1")
                assert first == []
                simulator.resume_all()
            assert await server.process.wait() == 0
    assert first[0] is not None
    assert repeated[0] is not None
    assert (first[0].status_code, first[0].json()["status"]) == (200, "completed")
    assert repeated[0].status_code == 503
    assert repeated[0].headers["retry-after"] == "1"
