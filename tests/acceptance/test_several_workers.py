"""``serve`` with two workers: one port, one page of metrics, and no process whose death takes the others along."""

import json
import os
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import httpx
import pytest
import trio
from tests.acceptance.conftest import (
    ENDINGS,
    PAUSED,
    QUICK,
    UNDER_WAY,
    WAIT_S,
    Client,
    Server,
    get_response,
    open_server,
    open_world,
    wait_none_under_way,
    write_config,
)
from tests.observability.scrapes import Scrape

from dwctl_trio.postgres.pool import Pool
from dwctl_trio.testing.simulator import open_simulator

pytestmark = pytest.mark.slow

PID_OF = "select pid from requests join daemons on daemons.id = requests.daemon_id where requests.id = $1"


def workers_of(server: Server) -> dict[int, int]:
    """The process of each worker, by its number, as the supervisor logged them."""
    return {entry["worker"]: entry["pid"] for entry in server.log if entry["event"] == "worker_process_ready"}


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def wait_gone(*pids: int) -> None:
    """Return when none of these processes lives."""
    with trio.fail_after(WAIT_S):
        while True:
            if not any(lives(pid) for pid in pids):
                return
            await trio.sleep(0.02)


@attrs.define(eq=False)
class Streams:
    """Clients on connections of their own, each with its first words, by the process that serves them."""

    by_pid: dict[int, list[Client]] = attrs.Factory(dict)

    @property
    def all(self) -> list[Client]:
        return [client for clients in self.by_pid.values() for client in clients]


@asynccontextmanager
async def streaming_at_all(server: Server, pool: Pool) -> AsyncIterator[Streams]:
    """Streams, one after the other, until each worker serves one at least; followed to their ends."""
    streams, pids = Streams(), set(workers_of(server).values())
    with trio.fail_after(WAIT_S):
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            while streams.by_pid.keys() != pids:
                client = Client(await stack.enter_async_context(open_alone(server)))
                nursery.start_soon(client.stream, PAUSED)
                await client.has_delta.wait()
                pid = await pool.fetchval(PID_OF, client.response_id.removeprefix("resp_"))
                streams.by_pid.setdefault(pid, []).append(client)
            yield streams


def open_alone(server: Server) -> httpx.AsyncClient:
    """A client with a connection of its own, which one worker serves for as long as it is open."""
    return httpx.AsyncClient(base_url=server.url, timeout=WAIT_S, trust_env=False)


@asynccontextmanager
async def at_each(server: Server) -> AsyncIterator[list[httpx.AsyncClient]]:
    """A client of each worker, in the order of their numbers."""
    found: dict[int, httpx.AsyncClient] = {}
    async with AsyncExitStack() as stack:
        while found.keys() != workers_of(server).keys():
            client = await stack.enter_async_context(open_alone(server))
            answer = await client.post("/v1/responses", json={"model": "echo-1", "input": "who are you?"})
            found.setdefault(await find_worker(server, answer.json()["id"]), client)
        yield [found[number] for number in sorted(found)]


async def find_worker(server: Server, response_id: str) -> int:
    """Who has logged the end of a response."""
    while True:
        seen = len(server.log)
        for entry in server.log:
            if entry["event"] == "response_finished" and entry["response_id"] == response_id:
                return int(entry["worker"])
        await server.wait_logged("response_finished", after=seen)


async def test_both_serve_one_port_and_a_killed_one_is_replaced_while_the_other_goes_on(postgres_dsn, tmp_path):
    async with (
        open_world(postgres_dsn, tmp_path, QUICK, workers=2) as (path, pool, simulator),
        open_server(path) as server,
    ):
        first = workers_of(server)
        async with streaming_at_all(server, pool) as streams:
            os.kill(first[1], signal.SIGKILL)
            await server.wait_logged("worker_process_ended")
            async with open_alone(server) as newcomer:
                assert (await newcomer.get("/readyz")).status_code == 200
            await server.wait_logged("worker_process_ready", after=server.events.index("worker_process_ended"))
            while await pool.fetchval(UNDER_WAY) > len(streams.by_pid[first[2]]):
                await pool.execute("select pg_sleep(0.05)")
            simulator.resume_all()
        second = workers_of(server)
        async with at_each(server) as (client, _):
            scrape = Scrape((await client.get("/metrics")).text)
        killed = [await get_response(server, client.response_id) for client in streams.by_pid[first[1]]]
        assert await server.end_by(signal.SIGTERM) == 0

    assert server.events.count("server_started") == 1
    assert second[2] == first[2]
    assert second[1] not in first.values()
    assert all(client.is_cut for client in streams.by_pid[first[1]])
    assert {response["status"] for response in killed} == {"failed"}
    assert {client.events()[-1]["type"] for client in streams.by_pid[first[2]]} == {"response.completed"}
    assert scrape.rows("dwctl_worker_up", "worker") == {("1",): 1, ("2",): 1}
    assert scrape.rows("dwctl_worker_starts_total", "worker") == {("1",): 2, ("2",): 1}
    assert {entry.get("worker") for entry in server.log if entry["event"] == "response_finished"} == {1, 2}
    assert server.events[-1] == "server_stopped"


async def test_sigterm_drains_the_streams_of_both(postgres_dsn, tmp_path):
    limits = attrs.evolve(QUICK, shutdown_grace_s=1.0)
    async with (
        open_world(postgres_dsn, tmp_path, limits, workers=2) as (path, pool, _),
        open_server(path) as server,
    ):
        pids = workers_of(server).values()
        async with streaming_at_all(server, pool) as streams:
            # All at once, as systemd does with KillMode=control-group: that is one signal, and not two.
            for pid in (server.process.pid, *pids):
                os.kill(pid, signal.SIGTERM)
            assert await server.process.wait() == 0
        endings = Counter(row[0] for row in await pool.fetch(ENDINGS))
        stopped = await pool.fetchval("select count(*) from daemons where stopped_at is not null")

    assert {client.events()[-1]["type"] for client in streams.all} == {"response.failed"}
    assert not any(client.is_cut for client in streams.all)
    assert endings == {"failed/server_stopping": len(streams.all)}
    assert stopped == 2
    assert not any(lives(pid) for pid in pids)


async def test_a_second_signal_ends_all_at_once(postgres_dsn, tmp_path):
    limits = attrs.evolve(QUICK, shutdown_grace_s=600.0)
    async with (
        open_world(postgres_dsn, tmp_path, limits, workers=2) as (path, pool, _),
        open_server(path) as server,
    ):
        async with streaming_at_all(server, pool) as streams:
            server.process.send_signal(signal.SIGINT)
            await server.wait_logged("server_stopping")
            with trio.fail_after(10.0):
                assert await server.end_by(signal.SIGINT) == 0
        endings = Counter(row[0] for row in await pool.fetch(ENDINGS))

    assert all(client.is_cut for client in streams.all)
    assert endings == {"failed/server_stopping": len(streams.all)}


async def test_what_one_worker_has_the_other_knows(postgres_dsn, tmp_path):
    key = {"idempotency-key": "the-same"}
    body = {"model": "echo-3", "input": "hello"}
    async with (
        open_world(postgres_dsn, tmp_path, QUICK, workers=2) as (path, pool, _),
        open_server(path) as server,
        at_each(server) as (here, there),
    ):
        made = await here.post("/v1/responses", json=body, headers=key)
        repeated = await there.post("/v1/responses", json=body, headers=key)
        async with streaming_at_all(server, pool) as streams:
            for client in streams.all:
                answers = [await other.post(f"/v1/responses/{client.response_id}/cancel") for other in (here, there)]
                assert [answer.json()["status"] for answer in answers] == ["cancelled"] * 2
        queued = (await here.post("/v1/responses", json={**body, "background": True})).json()["id"]
        followed = [await client.get(f"/v1/responses/{queued}", params={"stream": True}) for client in (there, here)]

    assert made.status_code == repeated.status_code == 200
    assert made.content == repeated.content
    assert followed[0].content == followed[1].content
    assert b"event: response.completed\n" in followed[0].content


# -- the supervisor


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A directory that also the user can reach that root's PostgreSQL runs as."""
    with tempfile.TemporaryDirectory(prefix="dwctl-tests-") as directory:
        Path(directory).chmod(0o711)
        yield Path(directory) / "database"


async def test_workers_end_with_a_supervisor_that_is_killed(postgres_dsn, tmp_path):
    async with (
        open_world(postgres_dsn, tmp_path, QUICK, workers=2) as (path, pool, _),
        open_server(path) as server,
    ):
        pids = workers_of(server).values()
        async with streaming_at_all(server, pool) as streams:
            await server.end_by(signal.SIGKILL)
            await wait_gone(*pids)
        endings = Counter(row[0] for row in await pool.fetch(ENDINGS))
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", urlsplit(server.url).port))

    assert {client.events()[-1]["type"] for client in streams.all} == {"response.failed"}
    assert endings == {"failed/server_stopping": len(streams.all)}


async def test_the_embedded_database_is_the_supervisors_and_outlives_its_workers(data_dir, tmp_path):
    async with open_simulator() as simulator:
        path = write_config(tmp_path / "config.yaml", simulator.base_url, QUICK, data_dir=str(data_dir), workers=2)
        async with open_server(path) as server, open_alone(server) as client:
            (postgres,) = children_of(server.process.pid) - set(workers_of(server).values())
            for pid in workers_of(server).values():
                after = len(server.log)
                os.kill(pid, signal.SIGKILL)
                await server.wait_logged("worker_process_ready", after=after)
            body = {"model": "echo-3", "input": "hello"}
            answer = await client.post("/v1/responses", json=body)
            assert lives(postgres)
            assert await server.end_by(signal.SIGTERM) == 0
        await wait_gone(postgres)

    assert answer.json()["status"] == "completed"


def children_of(pid: int) -> set[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
    return {int(child) for child in text.split()}


async def run_serve(path: Path, *arguments: str) -> tuple[int, str]:
    """Run a server that is expected to fail; its exit status and the last line that it says."""
    command = [sys.executable, "-m", "dwctl_trio", "serve", "--config", str(path), *arguments]
    with trio.fail_after(WAIT_S):
        done = await trio.run_process(command, check=False, capture_stderr=True)
    return done.returncode, done.stderr.decode().splitlines()[-1]


async def test_what_keeps_all_from_starting_is_one_line_and_nothing_is_tried_again(postgres_dsn, tmp_path):
    async with open_world(postgres_dsn, tmp_path, QUICK, workers=2) as (path, pool, _):
        async with open_server(path) as server:
            taken = await run_serve(path, "--port", str(urlsplit(server.url).port))
            assert await server.end_by(signal.SIGTERM) == 0
        await pool.execute("create role limited login connection limit 1")
        await pool.execute("grant usage on schema public to limited")
        await pool.execute("grant select, insert, update on all tables in schema public to limited")
        limited = postgres_dsn.replace("postgres@", "limited@")
        crowded = await run_serve(
            write_config(tmp_path / "limited.yaml", "http://127.0.0.1:1/v1", QUICK, workers=2, database_url=limited)
        )
        await pool.execute("drop owned by limited")
        await pool.execute("drop role limited")
        await pool.execute("delete from schema_migrations")
        unmigrated = await run_serve(path)

    assert taken[0] == crowded[0] == unmigrated[0] == 1
    assert "Address already in use; stop the program that has it" in taken[1]
    assert "has ended with status 1 before all workers served; what it said of that is above" in crowded[1]
    assert "Run: dwctl-trio migrate" in unmigrated[1]


# -- for long


KILLS = 20
ASKERS = 8


@pytest.mark.long
async def test_under_a_storm_of_kills_every_response_ends_and_the_server_stays(postgres_dsn, tmp_path, capsys):
    limits = attrs.evolve(QUICK, worker_restart_cap_s=0.2)
    async with (
        open_world(postgres_dsn, tmp_path, limits, workers=2) as (path, pool, _),
        open_server(path) as server,
    ):
        outcomes: Counter[str] = Counter()
        async with trio.open_nursery() as nursery:
            for _ in range(ASKERS):
                nursery.start_soon(ask_for_ever, server, outcomes)
            for kill in range(KILLS):
                after, number = len(server.log), kill % 2 + 1
                os.kill(workers_of(server)[number], signal.SIGKILL)
                await server.wait_logged("worker_process_ready", after=after)
            nursery.cancel_scope.cancel()
        with trio.fail_after(WAIT_S):
            await wait_none_under_way(pool)
        endings = Counter(row[0] for row in await pool.fetch(ENDINGS))
        async with at_each(server) as (client, _):
            scrape = Scrape((await client.get("/metrics")).text)
        assert await server.end_by(signal.SIGTERM) == 0

    with capsys.disabled():
        sys.stdout.write(f"\n{KILLS} kills: {dict(outcomes)} to clients, {dict(endings)} in the database\n")
    assert scrape.rows("dwctl_worker_starts_total", "worker") == {("1",): 1 + KILLS / 2, ("2",): 1 + KILLS / 2}
    assert server.events.count("worker_process_ended") == KILLS
    assert endings["completed/"] >= outcomes["completed"] > 10 * KILLS
    assert set(endings) <= {"completed/", "failed/step_abandoned", "canceled/"}


async def ask_for_ever(server: Server, outcomes: Counter[str]) -> None:
    """Ask again and again, each time on a connection of its own, and count what becomes of it."""
    body = json.dumps({"model": "echo-5", "input": "hello"})
    head = "POST /v1/responses HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nConnection: close\r\n"
    parts = urlsplit(server.url)
    while True:
        answer = b""
        with suppress(OSError, trio.BrokenResourceError):
            async with await trio.open_tcp_stream(parts.hostname, parts.port) as stream:
                await stream.send_all(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                answer = b"".join([piece async for piece in stream])
        is_whole = answer.startswith(b"HTTP/1.1 200 ") and b'"status":"completed"' in answer
        outcomes["completed" if is_whole else "cut"] += 1
