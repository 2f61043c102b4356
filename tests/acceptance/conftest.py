"""What the tests of the real process share: servers, their logs, and clients that stream from them."""

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import httpx
import trio
import yaml

from dwctl_trio.config import Config
from dwctl_trio.domain.limits import DEFAULT_LIMITS, Limits
from dwctl_trio.postgres.database import open_database
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.testing.simulator import Simulator, open_simulator

WAIT_S = 60.0
"""Bound of the tests' waits: far more than any needs on a busy machine, far less than a hung run."""

PROMISE_S = 60.0
"""A row whose process died is ended within this, by the design."""

QUICK = Limits(
    lease_s=4.0,
    lease_renewal_s=0.4,
    lease_give_up_s=1.2,
    rescue_interval_s=0.3,
    shutdown_grace_s=0.3,
    store_wait_s=1.7,
    store_call_s=1.7,
    calm_responses=1000,
)
PAUSED = "echo-4-pause-2"
"""Says two words and waits."""

STARTED = {"server_started", "worker_started"}
"""What a process logs when it is up."""

LISTENING = "0A"
"""As Linux writes it in the table of sockets."""
RAMP = 50
"""Streams that begin together; many more would be refused by a server that is late."""

DELTA = b"event: response.output_text.delta\n"
UNDER_WAY = "select count(*) from requests where state in ('pending', 'claimed', 'processing')"
ENDINGS = "select state || '/' || coalesce(error ->> 'type', '') from requests order by 1"


@attrs.define(eq=False)
class Server:
    """A server process."""

    process: trio.Process
    url: str = ""
    log: list[Mapping[str, Any]] = attrs.Factory(list)
    """What it logged."""
    _logged: trio.Event = attrs.Factory(trio.Event)

    @property
    def events(self) -> list[str]:
        """What it logged, by name."""
        return [entry["event"] for entry in self.log]

    async def read_log(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Follow its log to the end; started when it says that it has."""
        assert self.process.stderr is not None
        pending = b""
        async for chunk in self.process.stderr:
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                entry = json.loads(line)
                self.log.append(entry)
                self._logged.set()
                self._logged = trio.Event()
                if entry["event"] in STARTED:
                    self.url = entry.get("url", "")
                    task_status.started()

    async def wait_logged(self, *events: str, after: int = 0) -> None:
        """Return when it has logged one of *events*, not counting its first *after* lines."""
        with trio.fail_after(WAIT_S):
            while not set(events) & set(self.events[after:]):
                await self._logged.wait()

    def open_files(self) -> int:
        """How many file descriptors it holds."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def open_connections(self) -> int:
        """How many clients it holds a connection with."""
        port = f":{urlsplit(self.url).port:04X}"
        rows = [line.split() for line in Path(f"/proc/{self.process.pid}/net/tcp").read_text("ascii").splitlines()[1:]]
        return sum(row[1].endswith(port) and row[3] != LISTENING and row[9] != "0" for row in rows)

    def resident_bytes(self) -> int:
        """How much memory it holds."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8").splitlines()
        (line,) = [line for line in lines if line.startswith("VmRSS:")]
        return int(line.split()[1]) * 1024

    def cpu_s(self) -> float:
        """The processor time of its main thread so far, which runs all of it."""
        return self._schedule()[0]

    def kept_waiting_s(self) -> float:
        """How long it was ready to run so far, while others had the processor."""
        return self._schedule()[1]

    def _schedule(self) -> tuple[float, float]:
        numbers = Path(f"/proc/{self.process.pid}/schedstat").read_text("ascii").split()
        return int(numbers[0]) / 1e9, int(numbers[1]) / 1e9

    async def end_by(self, number: signal.Signals) -> int:
        """Send a signal; the exit status."""
        self.process.send_signal(number)
        return await self.process.wait()


@asynccontextmanager
async def open_server(path: Path) -> AsyncIterator[Server]:
    """The server of the configuration *path*, killed at the end if it still runs."""
    command = [sys.executable, "-m", "dwctl_trio", "serve", "--config", str(path)]
    process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE)
    server = Server(process)
    try:
        async with trio.open_nursery() as nursery:
            with trio.fail_after(WAIT_S):
                await nursery.start(server.read_log)
            yield server
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@attrs.define(eq=False)
class Client:
    """Somebody who streams one response."""

    http: httpx.AsyncClient
    has_delta: trio.Event = attrs.Factory(trio.Event)
    received: bytes = b""
    is_cut: bool = False
    """Whether the connection ended within the stream."""

    async def stream(self, model: str, text: str = "hello") -> None:
        body = {"model": model, "input": text, "stream": True}
        try:
            async with self.http.stream("POST", "/v1/responses", json=body) as answer:
                assert answer.status_code == 200, await answer.aread()
                async for chunk in answer.aiter_bytes():
                    self.received += chunk
                    if DELTA in self.received:
                        self.has_delta.set()
        except httpx.TransportError:
            self.is_cut = True

    def events(self) -> list[Mapping[str, Any]]:
        lines = self.received.decode().split("\n")
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]

    @property
    def response_id(self) -> str:
        found: str = self.events()[0]["response"]["id"]
        return found


def open_http(server: Server) -> httpx.AsyncClient:
    """A client of *server* without a bound on its connections."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=server.url, timeout=2 * PROMISE_S, limits=limits, trust_env=False)


@asynccontextmanager
async def streaming(server: Server, count: int, model: str = PAUSED) -> AsyncIterator[list[Client]]:
    """*count* clients that have got their first words, followed to the end of their streams; ``key:0``, ``key:1``, …"""
    with trio.fail_after(PROMISE_S):
        async with open_http(server) as http, trio.open_nursery() as nursery:
            clients = [Client(http) for _ in range(count)]
            for begin in range(0, count, RAMP):
                for index in range(begin, min(begin + RAMP, count)):
                    nursery.start_soon(clients[index].stream, model, f"hello key:{index}")
                for client in clients[begin : begin + RAMP]:
                    await client.has_delta.wait()
            yield clients


async def get_response(server: Server, response_id: str) -> Mapping[str, Any]:
    async with httpx.AsyncClient(base_url=server.url, timeout=WAIT_S, trust_env=False) as http:
        answer = await http.get(f"/v1/responses/{response_id}")
        assert answer.status_code == 200
        found: Mapping[str, Any] = answer.json()
        return found


async def wait_none_under_way(pool: Pool) -> None:
    """Ask until every row has ended; the caller bounds it."""
    while await pool.fetchval(UNDER_WAY):
        await pool.execute("select pg_sleep(0.05)")


def write_config(path: Path, base_url: str, limits: Limits, **fields: Any) -> Path:
    """Write the configuration of a server; *fields* differ at its top, those in ``upstream`` in its only upstream."""
    upstream = {"base_url": base_url, "max_concurrency": 1000, **fields.pop("upstream", {})}
    changed = {name: value for name, value in attrs.asdict(limits).items() if value != getattr(DEFAULT_LIMITS, name)}
    document = {
        "port": 0,
        "auth": {"mode": "none"},
        "upstreams": {"simulator": upstream},
        "models": [{"name": "*", "upstream": "simulator"}],
        "limits": changed,
        **fields,
    }
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


@asynccontextmanager
async def open_world(
    dsn: str, tmp_path: Path, limits: Limits, **fields: Any
) -> AsyncIterator[tuple[Path, Pool, Simulator]]:
    """A migrated database, an upstream, and the configuration of servers on both."""
    async with open_simulator() as simulator, open_database(Config(database_url=dsn), migrating=True) as pool:
        yield (
            write_config(tmp_path / "config.yaml", simulator.base_url, limits, database_url=dsn, **fields),
            pool,
            simulator,
        )
