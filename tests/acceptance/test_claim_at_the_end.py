"""SIGTERM while a claim is under way: its rows are back in the queue before the process ends."""

import signal

import attrs
import pytest
import trio
from tests.acceptance.conftest import QUICK, WAIT_S, open_world, write_config
from tests.acceptance.fleet import Fleet, Member, open_client, open_fleet

from dwctl_trio.domain.limits import Limits
from dwctl_trio.postgres.pool import Pool

CLAIMS = 7236518040291004
"""The lock under which the processes claim one after the other."""
LIMITS = attrs.evolve(QUICK, queue_poll_s=0.05, store_wait_s=WAIT_S / 3, store_call_s=WAIT_S / 3, lease_s=90.0)
"""A claim may be slow, and nobody is rescued."""
RESPONSES = 3
WAITING = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
ROWS = "select state, attempt, reclaims, daemon_id from requests"


async def wait_claiming(pool: Pool, claims: int) -> None:
    """Return when so many claims wait for their turn."""
    with trio.fail_after(WAIT_S):
        while await pool.fetchval(WAITING) != claims:
            pass


async def enqueue(fleet: Fleet) -> None:
    async with open_client() as http:
        for _ in range(RESPONSES):
            body = {"model": "echo-2-pause-1", "input": "hello", "background": True}
            answer = await http.post(f"{fleet['api'].server.url}/v1/responses", json=body)
            assert answer.status_code == 200, answer.text


def make_limits(*, workers: int) -> Limits:
    return attrs.evolve(LIMITS, queue_workers=workers)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["worker", "serve"])
async def test_what_is_claimed_at_the_last_moment_is_handed_back_and_costs_nothing(postgres_dsn, tmp_path, command):
    async with open_world(postgres_dsn, tmp_path, make_limits(workers=0)) as (config, pool, simulator):
        path, limits = tmp_path / "working.yaml", make_limits(workers=10)
        working = write_config(path, simulator.base_url, limits, database_url=postgres_dsn)
        api, stopped = Member("api", "serve", config), Member("stopped", command, working)
        async with pool.connection() as connection, open_fleet(api) as fleet:
            await connection.fetch(f"select pg_advisory_lock({CLAIMS})")
            await enqueue(fleet)
            waiting = await pool.fetchval(WAITING)
            await fleet.start(stopped)
            await wait_claiming(pool, waiting + 1)
            stopped.server.process.send_signal(signal.SIGTERM)
            await stopped.server.wait_logged("server_stopping")
            await connection.fetch(f"select pg_advisory_unlock({CLAIMS})")
            with trio.fail_after(WAIT_S):
                status = await stopped.server.process.wait()
        rows = [tuple(row) for row in await pool.fetch(ROWS)]

    assert status == 0
    assert rows == [("pending", 0, 0, None)] * RESPONSES
    assert simulator.statistics().total == 0
    handed_back = [entry for entry in stopped.server.log if entry["event"] == "response_handed_back"]
    assert [entry["reason"] for entry in handed_back] == ["stopping"] * RESPONSES, "they were claimed"
