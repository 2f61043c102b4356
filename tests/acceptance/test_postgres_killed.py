"""``kill -9`` of PostgreSQL under load: it is served again soon, nothing is lost, and nobody saw a completed response
that is not stored.
"""

import os
import random
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import httpx
import pytest
import trio
from tests.acceptance.auditor import Evidence, audit
from tests.acceptance.conftest import PROMISE_S, UNDER_WAY, wait_none_under_way
from tests.acceptance.fleet import POLL_S, Fleet, Follower, open_client
from tests.acceptance.storm import AGENT_NAMES, ONCE_NAMES, Load, open_arena

from dwctl_trio.postgres import embedded_files, embedded_server
from dwctl_trio.postgres.embedded import EmbeddedPostgres, open_embedded_postgres
from dwctl_trio.postgres.pool import Pool

CLIENTS = 12
WARM_CLIENTS = 4
PAUSE_S = (1.0, 2.0)
RECOVERY_S = 10.0
"""From the kill until a new background response has been taken, worked on and completed."""
PROBE = {"model": "echo-2", "input": "key:probe", "background": True}
WARM = {"model": "slow-20-20", "input": "key:warm", "stream": True}


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A directory that also the user can reach that root's server runs as."""
    with tempfile.TemporaryDirectory(prefix="dwctl-tests-") as directory:
        Path(directory).chmod(0o711)
        yield Path(directory) / "database"


@attrs.frozen
class Recovery:
    """How soon it was over, in seconds from the kill."""

    accepting_s: float
    """PostgreSQL lets clients in."""
    completed_s: float
    """A new background response has completed."""


async def kill_postgres(postgres: EmbeddedPostgres, fleet: Fleet, http: httpx.AsyncClient) -> Recovery:
    """Kill the server, which its keeper starts again, and ask for something new until it completes."""
    address = embedded_files.read_address(postgres.data_dir)
    assert address is not None
    descriptor = os.pidfd_open(address.pid)
    os.kill(address.pid, signal.SIGKILL)
    killed_at = trio.current_time()
    await trio.lowlevel.wait_readable(descriptor)
    os.close(descriptor)
    for pause_s in embedded_server.pauses_s():
        if await embedded_server.accepts(address.socket_dir):
            break
        await trio.sleep(pause_s)
    accepting_s = trio.current_time() - killed_at
    follower = Follower()
    while not follower.response_id:
        answer = await http.post(f"{fleet.apis[0].server.url}/v1/responses", json=PROBE)
        assert answer.status_code in {200, 503}, answer.text
        if answer.status_code == 200:
            follower.response_id = answer.json()["id"]
        else:
            await trio.sleep(POLL_S)
    await follower.run(http, fleet, random.Random(0))
    return Recovery(accepting_s, trio.current_time() - killed_at)


@attrs.define(eq=False)
class WarmLoad:
    """Clients whose connection is the lifetime of their response."""

    http: httpx.AsyncClient
    fleet: Fleet
    endings: list[Follower] = attrs.Factory(list)
    refused: int = 0
    is_over: bool = False

    async def run_client(self) -> None:
        while not self.is_over:
            follower = Follower()
            try:
                async with self.http.stream(
                    "POST", f"{self.fleet.apis[-1].server.url}/v1/responses", json=WARM
                ) as answer:
                    if answer.status_code == 200:
                        await follower.read(answer)
                        self.endings.append(follower)
                        continue
                    assert answer.status_code == 503, await answer.aread()
            except httpx.TransportError:
                pass
            self.refused += 1
            await trio.sleep(POLL_S)

    async def check(self, pool: Pool) -> Counter[str]:
        """How the streams ended; each that was told to be completed is stored like that."""
        rows = dict(await pool.fetch("select 'resp_' || id, state from requests where deadline is null"))
        endings: Counter[str] = Counter()
        for follower in self.endings:
            told = follower.frames[-1].data["type"] if follower.is_ended else "cut"
            endings[f"{told}, stored {rows[follower.response_id]}"] += 1
        return endings


@asynccontextmanager
async def under_load(fleet: Fleet, http: httpx.AsyncClient) -> AsyncIterator[tuple[Load, WarmLoad]]:
    """Clients of all kinds during the block, which then get what they wait for."""
    load, warm = Load(http, fleet, random.Random(1), left=2000), WarmLoad(http, fleet)
    async with trio.open_nursery() as clients:
        for _ in range(CLIENTS):
            clients.start_soon(load.run_client)
        for _ in range(WARM_CLIENTS):
            clients.start_soon(warm.run_client)
        yield load, warm
        load.is_over = warm.is_over = True


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(5, marks=pytest.mark.long)])
async def test_a_killed_postgresql_loses_nothing_and_is_served_again_soon(data_dir, tmp_path, kills):
    chance, recoveries, under_way = random.Random(kills), [], []
    async with (
        open_embedded_postgres(data_dir) as postgres,
        open_arena(postgres.dsn, tmp_path) as (fleet, pool, calls),
        open_client() as http,
    ):
        with trio.fail_after(kills * PROMISE_S):
            async with under_load(fleet, http) as (load, warm):
                for _ in range(kills):
                    await trio.sleep(chance.uniform(*PAUSE_S))
                    under_way.append(await pool.fetchval(UNDER_WAY))
                    recoveries.append(await kill_postgres(postgres, fleet, http))
            await wait_none_under_way(pool)
        urls = [api.server.url for api in fleet.apis]
        evidence = Evidence(asked=load.asked, calls=calls, once=ONCE_NAMES, agents=AGENT_NAMES, http=http, urls=urls)
        found = await audit(pool, evidence)
        endings = await warm.check(pool)
        handed_back = fleet.logged("response_handed_back")
    for number, one in enumerate(recoveries, 1):
        print(f"kill {number}: accepts after {one.accepting_s:.1f} s, served again after {one.completed_s:.1f} s")
    print(f"rows under way at the kills: {under_way}")
    print(dict(found.counts), f"handed back {handed_back}", f"warm: {dict(endings)}, refused {warm.refused}", sep="\n")
    assert found.violations == []
    assert min(under_way) > 0
    assert [one for one in recoveries if one.completed_s > RECOVERY_S] == []
    assert {ending for ending in endings if "completed, " in ending} == {"response.completed, stored completed"}
