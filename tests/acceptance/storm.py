"""A storm: processes of a fleet are killed (SIGKILL) one after the other under load, and then everything is audited.

    python -m tests.acceptance.storm --kills 500 --seed 7

Two API processes, each with a daemon of its own, and two workers share one PostgreSQL. Clients ask for background and
flex responses whose models call tools, and follow them through whatever process is there. It ends with the figures, and
with status 1 if anything does not hold. Without ``--database-url`` it brings a PostgreSQL of its own.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import httpx
import structlog
import trio
from tests.acceptance.auditor import Asked, Audit, Calls, Evidence, audit
from tests.acceptance.conftest import PROMISE_S, open_world, wait_none_under_way
from tests.acceptance.fleet import LATER, POLL_S, Fleet, Follower, Member, open_client, open_fleet

from dwctl_trio.domain.limits import Limits
from dwctl_trio.postgres.embedded import open_embedded_postgres
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.testing.tool_server import ToolReply, ToolServer, open_tool_server

LIMITS = Limits(
    lease_s=3.0,
    lease_renewal_s=0.5,
    lease_give_up_s=2.0,
    store_wait_s=1.2,
    store_call_s=1.2,
    rescue_interval_s=0.5,
    lease_watch_s=0.2,
    terminal_write_s=5.0,
    # So often nothing dies by accident; here everything does, and is to be completed all the same.
    queue_attempts=1000,
    queue_reclaims=1000,
    queue_retry_s=0.2,
    queue_model_concurrency=100,
    # The machine may be so busy with starting processes that the door would refuse clients, who are few.
    calm_responses=1000,
)
ONCE = "charge"
"""The tool that must not be called twice."""
AGAIN = "look_up"
AGENT = "researcher"
ONCE_NAMES, AGENT_NAMES = frozenset({ONCE}), frozenset({AGENT})
AGENT_MODEL = "tools-1-then-slow-10-20"
TOOL_S = 0.3
MODELS = (
    "slow-30-30",
    "tools-2-every-20-then-slow-20-20",
    "tools-1-then-tools-2-every-20-then-slow-20-20",
    "tools-3-then-slow-10-20",
    "reasoning-10-20-every-20",
)
"""About a second of text; text behind two tools at once; behind three in two turns; behind an agent; with reasoning."""
CLIENTS = 12
RESPONSES_A_KILL = 30
"""The most that is asked for, so that a long storm stays bounded."""
PAUSE_S = (0.5, 1.5)
"""Between two kills."""
UP = 3
"""Processes that are up when one is killed: starts may take seconds, and a fleet that is down does nothing."""
QUIET_S = 5 * PROMISE_S
"""Bound of the time in which clients get their last answers."""

Report = Callable[[str], None]


@attrs.frozen(kw_only=True)
class Result:
    """What came of a storm."""

    audit: Audit
    seconds: float
    quiet_s: float
    """From the last kill until no row was under way."""
    figures: Mapping[str, int]


@attrs.define(eq=False)
class Load:
    """The clients."""

    http: httpx.AsyncClient
    fleet: Fleet
    chance: random.Random
    left: int
    """How many more responses are asked for."""
    asked: list[Asked] = attrs.Factory(list)
    is_over: bool = False
    _number: int = 0

    async def run_client(self) -> None:
        """Ask for one response after the other, each followed to its end."""
        while not self.is_over and self.left > 0:
            self.left -= 1
            self._number += 1
            await self._ask(f"n{self._number}")

    async def _ask(self, key: str) -> None:
        kind = self.chance.choice(("background", "background", "background stream", "flex stream", "flex"))
        body: dict[str, Any] = {"model": self.chance.choice(MODELS), "input": f"hello key:{key}"}
        body |= {"background": True} if kind.startswith("background") else {"service_tier": "flex"}
        body |= {"stream": True} if kind.endswith("stream") else {}
        follower, answer = Follower(), None
        while not follower.response_id:
            api = await self.fleet.pick(self.chance, "serve")
            try:
                answer = await self._post(f"{api.server.url}/v1/responses", body, key, follower)
            except httpx.TransportError:  # nobody knows whether it was taken: the key tells
                await trio.sleep(POLL_S)
        await follower.run(self.http, self.fleet, self.chance, hops=0.3)
        told = answer if kind == "flex" else None
        self.asked.append(Asked(key=key, body=body, follower=follower, answer=told))

    async def _post(self, url: str, body: Mapping[str, Any], key: str, follower: Follower) -> Mapping[str, Any] | None:
        """Ask once; the answer, if it is one object."""
        async with self.http.stream("POST", url, json=body, headers={"idempotency-key": key}) as answer:
            if answer.status_code in LATER:
                await trio.sleep(POLL_S)
                return None
            if body.get("stream") and answer.status_code == 200:
                await follower.read(answer)
                return None
            await answer.aread()
            assert answer.status_code == 200, (answer.status_code, answer.text)
            found: Mapping[str, Any] = answer.json()
            follower.response_id = found["id"]
            return found


def tool_section(server: ToolServer) -> list[dict[str, Any]]:
    """The tools, as the configuration has them."""
    agent = {"name": AGENT, "kind": "agent", "model": AGENT_MODEL, "tools": [AGAIN]}
    http = [
        {
            "name": name,
            "kind": "http",
            "url": server.url(f"/{name}"),
            "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
            "timeout_s": 20,
            "idempotent": name == AGAIN,
            "allow_private": True,
        }
        for name in (ONCE, AGAIN)
    ]
    return [*http, agent]


@asynccontextmanager
async def open_arena(dsn: str, directory: Path) -> AsyncIterator[tuple[Fleet, Pool, Calls]]:
    """The fleet with all around it."""
    async with AsyncExitStack() as stack:
        tools = await stack.enter_async_context(open_tool_server())
        for name in (ONCE, AGAIN):
            tools.script(f"/{name}", ToolReply(delay_s=TOOL_S))
        models = [{"name": "*", "upstream": "simulator", "tools": [ONCE, AGAIN, AGENT]}]
        fields = {"models": models, "tools": tool_section(tools), "log_level": "info"}
        world = open_world(dsn, directory, LIMITS, **fields)
        config, pool, simulator = await stack.enter_async_context(world)
        calls = Calls()
        calls.watch(simulator, tools)
        members = [Member("api-1", "serve", config), Member("api-2", "serve", config)]
        members += [Member("worker-1", "worker", config), Member("worker-2", "worker", config)]
        yield await stack.enter_async_context(open_fleet(*members)), pool, calls


async def kill_at_random(
    fleet: Fleet, kills: int, chance: random.Random, report: Callable[[int, Member], None]
) -> None:
    """Kill a process that is up, every second or so, and start another one in its place; all are up at the end."""
    async with trio.open_nursery() as restarts:
        for number in range(1, kills + 1):
            await trio.sleep(chance.uniform(*PAUSE_S))
            victim = await fleet.pick(chance, least=UP)
            await fleet.kill(victim)
            report(number, victim)
            restarts.start_soon(fleet.start, victim)


async def run_storm(dsn: str, directory: Path, *, kills: int, seed: int, report: Report) -> Result:
    """Kill *kills* times under load, wait until it is quiet, and audit; *seed* decides who is killed, and when."""
    chance, begun_at = random.Random(seed), time.monotonic()
    async with open_arena(dsn, directory) as (fleet, pool, calls), open_client() as http:
        load = Load(http, fleet, random.Random(seed + 1), left=RESPONSES_A_KILL * kills)

        def tell(number: int, victim: Member) -> None:
            ended = sum(one.follower.is_ended for one in load.asked)
            pid = victim.server.process.pid
            report(f"kill {number}/{kills}: {victim.name} (process {pid}), {ended} responses have ended so far")

        with trio.fail_after(kills * (PAUSE_S[1] + PROMISE_S) + QUIET_S):
            async with trio.open_nursery() as clients:
                for _ in range(CLIENTS):
                    clients.start_soon(load.run_client)
                await kill_at_random(fleet, kills, chance, tell)
                load.is_over = True
                quiet_from = time.monotonic()
                with trio.fail_after(QUIET_S):
                    await wait_none_under_way(pool)
                quiet_s = time.monotonic() - quiet_from
        urls = [api.server.url for api in fleet.apis]
        evidence = Evidence(asked=load.asked, calls=calls, once=ONCE_NAMES, agents=AGENT_NAMES, http=http, urls=urls)
        found = await audit(pool, evidence)
        logged = ("response_lost", "response_rescued", "response_handed_back", "worker_failed", "response_loop_failed")
        figures = {name: fleet.logged(name) for name in logged}
    return Result(audit=found, seconds=time.monotonic() - begun_at, quiet_s=quiet_s, figures=figures)


def render(result: Result) -> str:
    """The figures, to be printed."""
    lines = [f"{name}: {count}" for name, count in sorted({**result.audit.counts, **result.figures}.items())]
    lines.append(f"{result.seconds:.0f} s in all; no row under way {result.quiet_s:.1f} s after the last kill")
    lines.append(f"violations: {len(result.audit.violations)}")
    return "\n".join([*lines, *result.audit.violations[:50]])


async def _run(options: argparse.Namespace, directory: Path) -> Result:
    run = partial(run_storm, directory=directory, kills=options.kills, seed=options.seed, report=_say)
    if options.database_url is not None:
        return await run(options.database_url)
    async with open_embedded_postgres(directory / "database") as postgres:
        return await run(postgres.dsn)


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    """Run it as the command line asks."""
    parser = argparse.ArgumentParser(description="Kill processes of a fleet under load, and audit what is left.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--database-url", default=None, help="an empty database; default: an embedded one, deleted")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    _say(f"{options.kills} kills, seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="dwctl-storm-") as name:
        directory = Path(name)
        directory.chmod(0o711)  # as root, PostgreSQL runs as another user, who must get through
        result = trio.run(_run, options, directory)
    _say(render(result))
    return 1 if result.audit.violations else 0


if __name__ == "__main__":
    sys.exit(main())
