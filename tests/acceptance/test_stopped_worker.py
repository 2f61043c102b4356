"""A worker that stands still (SIGSTOP) past its lease, and goes on when another has its response, changes nothing."""

import os
import random
import signal

import attrs
import pytest
import trio
from tests.acceptance.auditor import Asked, Calls, Evidence, audit, read_stored
from tests.acceptance.conftest import PROMISE_S, QUICK, Server, open_world, write_config
from tests.acceptance.fleet import Fleet, Follower, Member, open_client, open_fleet

from dwctl_trio.postgres.pool import Pool
from dwctl_trio.postgres.queries import load_query

LOST = {"response_lost", "terminal_write_refused"}
"""What a worker logs that has lost a response: while it works, or at the end."""
LIMITS = attrs.evolve(QUICK, lease_s=2.5, lease_give_up_s=1.2, store_wait_s=1.0, store_call_s=1.0, lease_watch_s=0.2)
MODEL = "slow-60-25"
BEFORE = 12
"""Events that the first worker has told when it is stopped."""
ROUNDS_MAX = 8
"""A worker may notice that it has lost its response before it writes anything."""
WRITES = ("append_events", "advance_response", "finish_response", "requeue_response")
"""What a worker changes its response with; in good order each changes a row."""
WATCH_WRITES = """
    create table watched_writes (number bigserial, changed bigint, statement text);
    create function watch_writes() returns trigger language plpgsql as $$
    begin
        insert into watched_writes (changed, statement) select count(*), current_query() from changed;
        return null;
    end $$;
    create trigger watch_writes after update on requests
    referencing new table as changed for each statement execute function watch_writes();
"""
HOLDER = """
    select r.epoch, r.state, coalesce(d.pid, 0) as pid
    from requests as r left join daemons as d on d.id = r.daemon_id where r.id = $1
"""


async def wait_holder(pool: Pool, response_id: str, *, other_than: int) -> int:
    """The process that works on the response, once it is not *other_than*."""
    while True:
        row = await pool.fetchrow(HOLDER, response_id.removeprefix("resp_"))
        if row["state"] == "processing" and row["pid"] != other_than:
            return int(row["pid"])
        await pool.execute("select pg_sleep(0.02)")


def server_of(fleet: Fleet, pid: int) -> Server:
    (server,) = [member.server for member in fleet.members if member.server.process.pid == pid]
    return server


async def late_writes(pool: Pool, after: int) -> list[tuple[str, int]]:
    """Writes of workers behind number *after*, by name, and how many rows each changed."""
    names = {load_query(name).text: name for name in WRITES}
    rows = await pool.fetch("select statement, changed from watched_writes where number > $1 order by number", after)
    return [(names[row["statement"]], row["changed"]) for row in rows if row["statement"] in names]


def attempts(late: list[list[tuple[str, int]]]) -> int:
    """How many writes came too late and changed nothing."""
    return sum(changed == 0 for writes in late for _, changed in writes)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [2, pytest.param(5, marks=pytest.mark.long)])
async def test_every_late_write_of_a_worker_that_stood_still_changes_nothing(postgres_dsn, tmp_path, rounds):
    async with open_world(postgres_dsn, tmp_path, LIMITS) as (config, pool, simulator):
        await pool.execute(WATCH_WRITES)
        calls, asked, late, said = Calls(), [], [], []
        calls.watch(simulator)
        serving = write_config(
            tmp_path / "serving.yaml",
            simulator.base_url,
            attrs.evolve(LIMITS, queue_workers=0),
            database_url=postgres_dsn,
        )
        workers = [Member(f"worker-{number}", "worker", config) for number in (1, 2)]
        async with open_fleet(Member("api", "serve", serving), *workers) as fleet, open_client() as http:
            url = fleet["api"].server.url
            for number in range(ROUNDS_MAX):
                if number >= rounds and attempts(late):
                    break
                body = {"model": MODEL, "input": f"key:{number}", "background": True}
                response_id = (await http.post(f"{url}/v1/responses", json=body)).json()["id"]
                follower = Follower(response_id)
                asked.append(Asked(key=str(number), body=body, follower=follower))
                with trio.fail_after(PROMISE_S):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(follower.run, http, fleet, random.Random(number))
                        await follower.wait_for(BEFORE)
                        stopped = await wait_holder(pool, response_id, other_than=0)
                        os.kill(stopped, signal.SIGSTOP)
                        await wait_holder(pool, response_id, other_than=stopped)
                        if number % 2:  # it wakes up when all is over
                            while not follower.is_ended:
                                await follower.wait_for(follower.last + 1)
                        else:  # it wakes up while the other tells
                            await follower.wait_for(follower.last + BEFORE)
                        before = await read_stored(pool)
                        last_write = await pool.fetchval("select max(number) from watched_writes")
                        server = server_of(fleet, stopped)
                        logged = len(server.log)
                        os.kill(stopped, signal.SIGCONT)
                        await server.wait_logged(*LOST, after=logged)
                        said.append(next(event for event in server.events[logged:] if event in LOST))
                    if number % 2:
                        assert await read_stored(pool) == before
                late.append(await late_writes(pool, last_write))
            found = await audit(pool, Evidence(asked=asked, calls=calls, once=frozenset(), http=http, urls=[url]))
    print(f"{len(late)} rounds: late writes that changed no row: {attempts(late)}; logged {said}")
    assert found.violations == []
    assert found.counts["reclaims"] == len(late)
    assert found.counts["model_call failed step_abandoned"] == len(late)
    assert attempts(late), "there were late writes"
    assert all(changed == 0 for writes in late[1::2] for _, changed in writes)
