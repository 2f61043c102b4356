"""What a response costs the database: a commit for each step and one more, and no connection while others work."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import attrs
import pytest
import trio
import trio.testing
from tests.postgres.conftest import CALL_S

from dwctl_trio.app import open_api
from dwctl_trio.config import Config
from dwctl_trio.domain.toolbox import resolve_tools
from dwctl_trio.engine.scope import ResponseRefused, run_inline_blocking, run_inline_streaming
from dwctl_trio.engine.state import Services
from dwctl_trio.ports import NewResponse
from dwctl_trio.postgres.database import open_database
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.postgres.queries import load_query
from dwctl_trio.protocol.request_body import parse_request
from dwctl_trio.testing.service import make_config, open_service
from dwctl_trio.testing.simulator import Simulator, open_simulator
from dwctl_trio.testing.tool_server import ToolReply, ToolServer, open_tool_server

OPEN, ADVANCE, FINISH = (load_query(f"{verb}_response").text for verb in ("open", "advance", "finish"))
NEXT_TRANSACTION = "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
"""Transactions that only read have no number of their own."""

QUIET = {"lease_s": 600.0, "lease_renewal_s": 200.0, "lease_give_up_s": 400.0, "rescue_interval_s": 600.0}
"""Limits under which nothing but the requests writes during a test."""

WAIT_S = 3 * CALL_S
ROUNDS, SIDE_BY_SIDE = 5, 3
ROUND = f"tools-{SIDE_BY_SIDE}"


class CountingPool:
    """A pool that remembers what was sent over it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.statements: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._pool, name)
        if name not in {"fetch", "fetchrow", "fetchval", "execute"}:
            raise AssertionError(f"the store took a connection for itself: {name}")

        async def counted(query: str, *args: Any, **options: Any) -> Any:
            self.statements.append(query)
            return await method(query, *args, **options)

        return counted


@attrs.frozen(kw_only=True)
class Bench:
    """The engine on a real pool, without HTTP."""

    config: Config
    services: Services
    simulator: Simulator
    pool: Pool
    counting: CountingPool

    def new(self, model: str, **fields: Any) -> NewResponse:
        request = parse_request({"model": model, "input": "hello", **fields})
        route = self.config.find_route(model)
        assert route is not None
        return NewResponse(
            response_id=uuid4(),
            owner="blue",
            key_prefix=None,
            request=request,
            route=route,
            first_step_id=uuid4(),
            tools=resolve_tools(request, listed=(), catalog=self.config.tools),
        )


@asynccontextmanager
async def open_bench(dsn: str, overrides: Mapping[str, Any] | None = None) -> AsyncIterator[Bench]:
    async with open_simulator() as simulator:
        config = make_config(dsn, simulator.base_url, overrides)
        async with open_database(config, migrating=True) as pool:
            counting: Any = CountingPool(pool)
            async with open_api(config, counting) as (api, _):
                counting.statements.clear()
                yield Bench(
                    config=config, services=api.services, simulator=simulator, pool=pool, counting=counting
                )  # fmt: skip


@pytest.fixture
async def bench(postgres_dsn: str) -> AsyncIterator[Bench]:
    async with open_bench(postgres_dsn) as bench:
        yield bench


async def stream(bench: Bench, new: NewResponse) -> bytes:
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            frames = await run_inline_streaming(bench.services, new, nursery)
            return b"".join([batch async for batch in frames])


@pytest.mark.parametrize("model", ["echo-4", "slow-20-1", "echo-4-length", "reasoning-3-3", "toolsbad-3", "cut-3"])
async def test_a_streamed_response_costs_two_statements(bench, model):
    await stream(bench, bench.new(model, stream=True))
    assert bench.counting.statements == [OPEN, FINISH]


@pytest.mark.parametrize("store", [True, False])
async def test_a_blocking_response_costs_two_statements(bench, store):
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            await run_inline_blocking(bench.services, bench.new("echo-4", store=store), nursery)
    assert bench.counting.statements == [OPEN, FINISH]


async def test_a_refused_response_costs_two_statements(bench):
    refusals = []
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            try:
                await run_inline_blocking(bench.services, bench.new("error-400"), nursery)
            except ResponseRefused as refusal:
                refusals.append(refusal)
    assert len(refusals) == 1
    assert bench.counting.statements == [OPEN, FINISH]


async def test_a_cancelled_response_costs_two_statements(bench):
    new = bench.new("echo-4-pause-2", stream=True)
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            await run_inline_streaming(bench.services, new, nursery)
            await bench.simulator.wait_until(lambda counts: counts.paused == 1)
            nursery.cancel_scope.cancel()
    assert bench.counting.statements == [OPEN, FINISH]


@pytest.mark.parametrize("model", ["echo-4-pause-2", "echo-4-gate", "hangbody"])
async def test_no_connection_is_held_while_the_model_is_silent(bench, model):
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(run_inline_streaming, bench.services, bench.new(model, stream=True), nursery)
            await bench.simulator.wait_until(lambda counts: counts.open == 5)
            while len(bench.services.live.opened()) < 5:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            statistics = bench.pool.statistics()
            nursery.cancel_scope.cancel()
    assert (statistics.in_use, statistics.waiting) == (0, 0)
    assert statistics.size >= 1


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_whole_request_commits_twice(postgres_dsn, streamed):
    written = []
    async with open_service(postgres_dsn, {"limits": QUIET}) as service:
        for _ in range(5):  # the server may vacuum in between, so the least of them counts
            before = await service.pool.fetchval(NEXT_TRANSACTION)
            body = {"model": "echo-4", "input": "hello", "stream": streamed}
            answer = await service.client.post("/v1/responses", json=body)
            assert answer.status_code == 200
            written.append(await service.pool.fetchval(NEXT_TRANSACTION) - before)
    assert min(written) == 2


@pytest.mark.slow
async def test_reading_and_refusing_commit_nothing(postgres_dsn):
    written = []
    async with open_service(postgres_dsn, {"limits": QUIET}) as service:
        created = (await service.client.post("/v1/responses", json={"model": "echo-4", "input": "hello"})).json()
        for _ in range(5):
            before = await service.pool.fetchval(NEXT_TRANSACTION)
            found = await service.client.get(f"/v1/responses/{created['id']}")
            refused = await service.client.post("/v1/responses", json={"model": "echo-4"})
            assert (found.status_code, refused.status_code) == (200, 400)
            written.append(await service.pool.fetchval(NEXT_TRANSACTION) - before)
    assert min(written) == 0


def tools_on(server: ToolServer, model: str) -> list[dict[str, Any]]:
    """A tool for each call of a round, and an agent of *model* that has them all."""
    names = [f"look_{number}" for number in range(SIDE_BY_SIDE)]
    looks = [{"name": name, "kind": "http", "url": server.url(f"/{name}"), "allow_private": True} for name in names]
    return [*looks, {"name": "worker", "kind": "agent", "model": model, "tools": names}]


def named(*names: str) -> list[dict[str, str]]:
    return [{"type": "dwctl:tool", "name": name} for name in names]


LOOKS = named(*(f"look_{number}" for number in range(SIDE_BY_SIDE)))


@pytest.mark.slow
@pytest.mark.parametrize("is_sub_agent", [False, True], ids=["on-top", "sub-agent"])
async def test_an_agent_commits_at_most_once_a_step_and_once_more(postgres_dsn, is_sub_agent):
    looping = "-then-".join([ROUND] * ROUNDS + ["echo-4"])
    body = {"model": looping, "input": "hello", "stream": True, "tools": LOOKS}
    if is_sub_agent:
        body |= {"model": "tools-1-then-echo-4", "tools": named("worker")}
    written, steps = [], []
    async with open_tool_server() as server:
        async with open_service(postgres_dsn, {"limits": QUIET, "tools": tools_on(server, looping)}) as service:
            for _ in range(3):  # the server may vacuum in between, so the least of them counts
                before = await service.pool.fetchval(NEXT_TRANSACTION)
                answer = await service.client.post("/v1/responses", json=body)
                assert "response.completed" in answer.text
                written.append(await service.pool.fetchval(NEXT_TRANSACTION) - before)
                steps.append(await service.pool.fetchval("select count(*) from response_steps") - sum(steps))
        calls = server.calls_by_key
    where = "a sub-agent" if is_sub_agent else "an agent"
    print(f"{where} with {ROUNDS} rounds of {SIDE_BY_SIDE} tools: {steps[0]} steps, {min(written)} commits")
    assert steps == [1 + ROUNDS + ROUNDS * SIDE_BY_SIDE + (3 if is_sub_agent else 0)] * 3
    assert min(written) <= steps[0] + 1
    assert set(calls.values()) == {1}
    assert len(calls) == 3 * ROUNDS * SIDE_BY_SIDE


@pytest.mark.slow
async def test_no_connection_is_held_while_a_tool_or_a_model_runs(postgres_dsn):
    looping = "-then-".join([f"{ROUND}-gate"] * ROUNDS + ["echo-4-gate"])
    looks = {"model": 0, "tool": 0}
    async with open_tool_server() as server:
        for number in range(SIDE_BY_SIDE):
            server.script(f"/look_{number}", ToolReply(pauses_at="head"))
        async with open_bench(postgres_dsn, {"tools": tools_on(server, looping)}) as bench:

            async def look(who):
                await trio.testing.wait_all_tasks_blocked()
                statistics = bench.pool.statistics()
                assert (statistics.in_use, statistics.waiting) == (0, 0)
                assert bench.services.live.opened()
                looks[who] += 1

            async def play():
                """Look whenever a model or all tools of a round wait, and let them go on."""
                for turn in range(ROUNDS + 1):
                    await bench.simulator.wait_until(lambda counts: counts.paused == 1)
                    while not bench.services.live.opened():
                        await trio.lowlevel.checkpoint()
                    await look("model")
                    bench.simulator.resume_all()
                    if turn < ROUNDS:
                        await server.wait_until(lambda server: server.paused == SIDE_BY_SIDE)
                        await look("tool")
                        server.resume_all()

            for model, tools in ((looping, LOOKS), ("tools-1-then-echo-4", named("worker"))):
                bench.counting.statements.clear()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(play)
                    told = await stream(bench, bench.new(model, stream=True, tools=tools))
                assert b"response.completed" in told
                opened, *advanced, finished = bench.counting.statements
                assert (opened, set(advanced), finished) == (OPEN, {ADVANCE}, FINISH)
    print(f"looks at the pool while somebody worked: {looks}, never a connection in use")
    assert looks == {"model": 2 * (ROUNDS + 1), "tool": 2 * ROUNDS}
