"""Strangers who break the rules of HTTP, many times over: the process lives, serves, and is afterwards as it was."""

import signal
from functools import partial
from pathlib import Path

import attrs
import httpx
import pytest
import trio
from tests.acceptance.conftest import WAIT_S, Server, open_http, open_server, open_world
from tests.http.attacks import ATTACKS, ENDINGS, attack
from tests.http.conftest import ask, output_text

from dwctl_trio.domain.limits import DEFAULT_LIMITS
from dwctl_trio.postgres.keys import PostgresKeyStore

pytestmark = pytest.mark.usefixtures("each_server_at_length")

TIMES = 12
LIMITS = attrs.evolve(DEFAULT_LIMITS, idle_connection_s=0.3, request_body_s=1.0)
GROWTH_BYTES_MAX = 16 * 1024 * 1024
"""Of the process's memory over all attacks, after each has been made once; what the allocator keeps is not a leak."""
EXIT_S_MAX = 10.0
QUIET_EVENTS = {"server_started", "server_stopping", "server_stopped", "response_finished", "connection_failed"}
"""Everything else in the log would be a fault of the server's own."""


async def attack_with_all(server: Server, ending: str) -> None:
    """Every attack once, all at the same time."""
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            for name in ATTACKS:
                nursery.start_soon(partial(attack, server, name, ending=ending))


async def assert_serves(http: httpx.AsyncClient, key: str) -> None:
    """A client with a key is served, with and without a stream."""
    for body in (ask("echo-2"), ask("echo-2", stream=True)):
        answer = await http.post("/v1/responses", json=body, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 200
        if body.get("stream"):
            assert answer.text.endswith("data: [DONE]\n\n")
        else:
            assert output_text(answer.json()) == "word0 word1 "


async def wait_closed(server: Server, http: httpx.AsyncClient, count: int) -> None:
    """Return when the server has no more than *count* files open."""
    with trio.fail_after(WAIT_S):
        while server.open_files() > count:
            await http.get("/healthz")


@pytest.mark.slow
async def test_a_stranger_who_breaks_the_rules_harms_nobody_and_leaves_nothing(
    postgres_dsn: str, tmp_path: Path
) -> None:
    async with (
        open_world(postgres_dsn, tmp_path, LIMITS, auth={"mode": "keys"}) as (path, pool, _),
        open_server(path) as server,
        open_http(server) as http,
    ):
        key = await PostgresKeyStore(pool).create_key("alice")
        await assert_serves(http, key)
        files = server.open_files()
        for ending in ENDINGS:
            await attack_with_all(server, ending)
        await wait_closed(server, http, files)
        before = server.resident_bytes()
        served = await pool.fetchval("select count(*) from requests")
        for number in range(TIMES):
            await attack_with_all(server, ENDINGS[number % len(ENDINGS)])
            await assert_serves(http, key)
        await wait_closed(server, http, files)
        after = server.resident_bytes()
        rows = [tuple(row) for row in await pool.fetch("select owner, state, count(*) from requests group by 1, 2")]
        is_alive = server.process.returncode is None
        with trio.fail_after(EXIT_S_MAX):  # a connection that somebody still serves would hold it up
            status = await server.end_by(signal.SIGTERM)

    events = set(server.events)
    mebibyte = 1024 * 1024
    print(
        f"{len(ATTACKS)} attacks, {TIMES} times each: the process lives, {2 * TIMES} requests served,"
        f" files {files} -> {files}, memory {before / mebibyte:.1f} -> {after / mebibyte:.1f} MiB"
    )
    assert is_alive
    assert len(ATTACKS) >= 60
    assert rows == [("alice", "completed", served + 2 * TIMES)]
    assert events - QUIET_EVENTS == set()
    assert after - before < GROWTH_BYTES_MAX
    assert status == 0
