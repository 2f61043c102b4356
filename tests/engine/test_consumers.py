"""Who listens while tools and agents work side by side: slowly, to a point, or not any more."""

import random
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
import trio
from tests.engine.scenarios import SHOWING_AGENTS, open_memory_bench, read_told, server_tools

from dwctl_trio.domain.event_grammar import check_stream
from dwctl_trio.domain.events import ContentDelta, SubAgentEvent
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.steps import StepState
from dwctl_trio.engine.scope import run_inline_streaming
from dwctl_trio.protocol.sse import DONE
from dwctl_trio.testing.request_bench import RequestBench, make_new
from dwctl_trio.testing.service import open_service
from dwctl_trio.testing.simulator_script import expected_text
from dwctl_trio.testing.tool_server import ToolReply, ToolServer, open_tool_server
from dwctl_trio.testing.wire import read_stream

WAIT_S = 10.0
LEAVING_S_MAX = 1.0
WORKERS = {"red": "each-12", "green": "reasoning-6-6-each", "blue": "tools-2-then-each-9"}
TOOLS: list[Mapping[str, Any]] = [
    {"name": "look", "url": "/look"},
    *({"name": name, "kind": "agent", "model": model, "tools": ["look"]} for name, model in WORKERS.items()),
]
MODEL = "tools-6-each-then-each-5"
FIELDS = {"tools": server_tools(*WORKERS), **SHOWING_AGENTS}


async def _stream_slowly(bench: RequestBench, chance: random.Random, *, batches_max: float = float("inf")) -> None:
    """Take batches with pauses of random length between them; leave after *batches_max*."""
    bench.told.clear()
    bench.new = make_new(MODEL, stream=True, catalog=bench.services.catalog, **FIELDS)
    async with (
        trio.open_nursery() as nursery,
        await run_inline_streaming(bench.services, bench.new, nursery) as frames,
    ):
        async for batch in frames:
            bench.told.append(batch)
            if len(bench.told) >= batches_max:
                break
            for _ in range(chance.choice([0, 0, 3, 40])):
                await trio.lowlevel.checkpoint()


@pytest.mark.slow
async def test_a_slow_reader_of_agents_side_by_side_gets_every_event_once_and_in_order() -> None:
    events = 0
    async with open_memory_bench(TOOLS, Limits(event_channel_items=1)) as bench:
        requests = bench.requests
        for seed in range(30):
            with trio.fail_after(WAIT_S):
                await _stream_slowly(requests, random.Random(seed))
            requests.told.append(DONE)
            stream = read_told(requests)
            log = bench.database.events[requests.response_id]
            assert log.frames + DONE == b"".join(requests.told)
            events += len(stream.events)
            said: dict[tuple[str, str], str] = defaultdict(str)
            for numbered in stream.events:
                match numbered.event:
                    case SubAgentEvent(agent_name, item_id, ContentDelta(delta=text)):
                        said[agent_name, item_id] += text
            texts = sorted((name, text) for (name, _), text in said.items())
            told = {name: expected_text(model, turn=model.count("then")) for name, model in WORKERS.items()}
            told["green"] = "".join(f"word{index} " for index in range(6)) * 2  # it thinks first
            assert texts == sorted(list(told.items()) * 2)
    print(f"a slow reader of six agents at once: 30 streams, {events} events, all told once and in order")


@pytest.mark.slow
async def test_a_reader_may_leave_after_any_batch_of_agents_side_by_side() -> None:
    async with open_memory_bench(TOOLS, Limits(event_channel_items=1)) as bench:
        requests, left = bench.requests, 0
        for batches in range(1, 400):
            with trio.fail_after(WAIT_S):
                await _stream_slowly(requests, random.Random(batches), batches_max=batches)
                await requests.check_nothing_left()
            assert requests.new is not None
            log = bench.database.events[requests.response_id].frames
            assert log.startswith(b"".join(requests.told))
            assert check_stream(read_stream(log, requests.new.request).events) is None
            assert not [step for step in bench.steps() if step.finished_at is None]
            if bench.row.state is RowState.COMPLETED:
                break
            assert bench.row.state is RowState.CANCELED
            left += 1
    print(f"readers of six agents at once that left: {left}, after every batch; all steps marked")
    assert left > 10


async def test_a_client_that_hangs_up_before_it_took_a_whole_turn_leaves_no_call_open() -> None:
    async with open_memory_bench(limits=Limits(event_channel_items=1)) as bench:
        requests = bench.requests
        catalog = requests.services.catalog
        requests.new = make_new("tools-2", stream=True, catalog=catalog, tools=server_tools("look", "note"))
        with trio.fail_after(WAIT_S):
            async with trio.open_nursery() as nursery:
                frames = await run_inline_streaming(requests.services, requests.new, nursery)
                while frames.statistics().tasks_waiting_send == 0:  # the turn, whole, behind the opening
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            frames.close()
            await requests.check_nothing_left()
        log = read_stream(bench.database.events[requests.response_id].frames, requests.new.request)
        states = [step.state for step in bench.steps()]
        called = requests.tool_server.calls_by_key.total()
    assert check_stream(log.events) is None
    assert [item.status.value for item in log.events[-1].event.response.output] == ["incomplete"] * 2
    assert (states, called) == ([StepState.CANCELED], 0)


async def _wait_seconds(predicate: Any, server: ToolServer) -> float:
    """How long it takes until *server* fulfils *predicate*."""
    begun = trio.current_time()
    with trio.fail_after(WAIT_S):
        await server.wait_until(predicate)
    return trio.current_time() - begun


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "blocking"])
async def test_a_client_that_hangs_up_while_tools_run_closes_their_connections_within_a_second(
    postgres_dsn: str, stream: bool
) -> None:
    async with open_tool_server() as server:
        server.script("/look", ToolReply(pauses_at="head"))
        look = {"name": "look", "kind": "http", "url": server.url("/look"), "allow_private": True}
        worker = {"name": "worker", "kind": "agent", "model": "tools-2-then-echo-1", "tools": ["look"]}
        async with open_service(postgres_dsn, {"tools": [look, worker]}) as service:
            body = {"model": "tools-2-then-echo-1", "input": "hello", "stream": stream}
            body["tools"] = server_tools("look", "worker")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_post, service.url, body)
                with trio.fail_after(WAIT_S):
                    await server.wait_until(lambda server: server.paused == 3)
                nursery.cancel_scope.cancel()
            seconds = await _wait_seconds(lambda server: server.connections == 0, server)
            with trio.fail_after(WAIT_S):
                while await service.pool.fetchval("select state from requests") != "canceled":
                    await trio.lowlevel.checkpoint()
            steps = await service.pool.fetch("select name, state from response_steps order by sequence")
            metered = await service.pool.fetchval("select count(*) from usage_records")
    print(f"a hang-up in the middle of three tools, stream {stream}: connections closed after {seconds * 1e3:.1f} ms")
    assert seconds < LEAVING_S_MAX
    assert server.left == 3
    assert sorted((step["name"] or "", StepState(step["state"])) for step in steps) == [
        *[("", StepState.COMPLETED)] * 2,
        *[("look", StepState.CANCELED)] * 3,
        ("worker", StepState.CANCELED),
    ]
    assert metered == 2


async def _post(url: str, body: dict[str, Any]) -> None:
    """A client of its own, whose connection goes with it."""
    async with (
        httpx.AsyncClient(base_url=url, timeout=WAIT_S, trust_env=False) as client,
        client.stream("POST", "/v1/responses", json=body) as answer,
    ):
        async for _ in answer.aiter_raw():
            pass
