"""``kill -9`` and SIGTERM against the real process: no row stays ``processing``, and a stream gets its end."""

import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from tests.acceptance.conftest import (
    ENDINGS,
    PROMISE_S,
    QUICK,
    UNDER_WAY,
    WAIT_S,
    Client,
    get_response,
    open_server,
    open_world,
    streaming,
    wait_none_under_way,
    write_config,
)

from dwctl_trio.config import Config
from dwctl_trio.domain.limits import DEFAULT_LIMITS
from dwctl_trio.postgres.database import open_database
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.testing.simulator import open_simulator


async def kill_and_restart(path: Path, pool: Pool, count: int) -> tuple[list[Client], list[Mapping[str, Any]], float]:
    """Kill a server in the middle of *count* streams and start another; how they ended, and after how many seconds."""
    async with open_server(path) as first, streaming(first, count) as clients:
        assert await pool.fetchval(UNDER_WAY) == count
        await first.end_by(signal.SIGKILL)
        killed_at = trio.current_time()
        async with open_server(path) as second:
            await wait_none_under_way(pool)
            seconds = trio.current_time() - killed_at
            return clients, [await get_response(second, client.response_id) for client in clients], seconds


@pytest.mark.slow
async def test_a_server_killed_in_mid_stream_leaves_no_row_under_way(postgres_dsn, tmp_path):
    async with open_world(postgres_dsn, tmp_path, QUICK) as (path, pool, _):
        clients, stored, seconds = await kill_and_restart(path, pool, 3)
        endings = [row[0] for row in await pool.fetch(ENDINGS)]
        metered = [row[0] for row in await pool.fetch("select error_code from usage_records")]
    assert seconds < PROMISE_S
    assert endings == ["failed/step_abandoned"] * 3
    assert metered == ["step_abandoned"] * 3
    assert [(response["status"], response["error"]["code"]) for response in stored] == [("failed", "server_error")] * 3
    assert all(client.is_cut for client in clients)
    assert {client.events()[-1]["type"] for client in clients} == {"response.output_text.delta"}


@pytest.mark.slow
async def test_a_server_that_lives_rescues_the_rows_of_one_that_was_killed_and_keeps_its_own(postgres_dsn, tmp_path):
    async with open_world(postgres_dsn, tmp_path, QUICK) as (path, pool, simulator):
        async with open_server(path) as survivor, streaming(survivor, 1) as (kept,):
            async with open_server(path) as victim, streaming(victim, 2):
                await victim.end_by(signal.SIGKILL)
            while await pool.fetchval(UNDER_WAY) > 1:
                await pool.execute("select pg_sleep(0.05)")
            simulator.resume_all()
        endings = [row[0] for row in await pool.fetch(ENDINGS)]
    assert endings == ["completed/", *["failed/step_abandoned"] * 2]
    assert kept.events()[-1]["type"] == "response.completed"


@pytest.mark.long
async def test_the_default_limits_keep_the_promise(postgres_dsn, tmp_path, capsys):
    async with open_world(postgres_dsn, tmp_path, DEFAULT_LIMITS) as (path, pool, _):
        _, stored, seconds = await kill_and_restart(path, pool, 5)
    with capsys.disabled():
        sys.stdout.write(f"\nno row under way {seconds:.1f} s after kill -9 (at most {PROMISE_S:.0f} s)\n")
    assert seconds <= PROMISE_S
    assert {response["status"] for response in stored} == {"failed"}


# -- the embedded database


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A directory that also the user can reach that root's server runs as."""
    with tempfile.TemporaryDirectory(prefix="dwctl-tests-") as directory:
        Path(directory).chmod(0o711)
        yield Path(directory) / "database"


@pytest.mark.slow
async def test_a_killed_server_with_its_own_database_comes_back_with_both(data_dir, tmp_path):
    async with open_simulator() as simulator:
        path = write_config(tmp_path / "config.yaml", simulator.base_url, QUICK, data_dir=str(data_dir))
        async with open_server(path) as first, streaming(first, 2) as clients:
            await first.end_by(signal.SIGKILL)
        async with open_server(path) as second, open_database(Config(data_dir=data_dir)) as pool:
            with trio.fail_after(PROMISE_S):
                await wait_none_under_way(pool)
            stored = [await get_response(second, client.response_id) for client in clients]
            assert await second.end_by(signal.SIGTERM) == 0
    assert [(response["status"], response["error"]["code"]) for response in stored] == [("failed", "server_error")] * 2


# -- SIGTERM


@pytest.mark.slow
async def test_a_stream_that_outlasts_the_grace_gets_a_terminal_event_and_the_exit_is_clean(postgres_dsn, tmp_path):
    async with open_world(postgres_dsn, tmp_path, QUICK) as (path, pool, _), open_server(path) as server:
        async with streaming(server, 2) as clients:
            assert await server.end_by(signal.SIGTERM) == 0
        endings = [row[0] for row in await pool.fetch(ENDINGS)]
        stopped = await pool.fetchval("select count(*) from daemons where stopped_at is not null")
        bodies = [json.loads(row[0]) for row in await pool.fetch("select response from requests")]
    lasts = [client.events()[-1] for client in clients]
    assert [last["type"] for last in lasts] == ["response.failed"] * 2
    assert [last["response"]["output"][0]["content"][0]["text"] for last in lasts] == ["word0 word1 "] * 2
    assert {body["id"]: body for body in bodies} == {last["response"]["id"]: last["response"] for last in lasts}
    assert endings == ["failed/server_stopping"] * 2
    finished = [entry for entry in server.log if entry["event"] == "response_finished"]
    assert [entry["error_type"] for entry in finished] == ["server_stopping"] * 2
    assert stopped == 1
    assert not any(client.is_cut for client in clients)
    assert server.events[-1] == "server_stopped"


@pytest.mark.slow
async def test_a_stream_that_ends_within_the_grace_is_completed(postgres_dsn, tmp_path):
    patient = attrs.evolve(QUICK, shutdown_grace_s=WAIT_S)
    async with open_world(postgres_dsn, tmp_path, patient) as (path, pool, simulator), open_server(path) as server:
        async with streaming(server, 1) as (client,):
            server.process.send_signal(signal.SIGTERM)
            while "server_stopping" not in server.events:
                await pool.execute("select pg_sleep(0.01)")
            simulator.resume_all()
            assert await server.process.wait() == 0
        endings = [row[0] for row in await pool.fetch(ENDINGS)]
    assert client.events()[-1]["type"] == "response.completed"
    assert endings == ["completed/"]
