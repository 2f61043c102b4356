"""The client of an upstream on real sockets: places, deadlines and connections under every way to leave a call."""

import gc
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio

from dwctl_trio.config import UpstreamConfig, UpstreamTimeouts
from dwctl_trio.domain.errors import (
    LimitExceeded,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.tools import FREE_CHOICE
from dwctl_trio.domain.transitions import TurnPlan
from dwctl_trio.domain.turn import TextFragment
from dwctl_trio.ports import UpstreamCall
from dwctl_trio.protocol.request_body import parse_request
from dwctl_trio.testing.simulator import Simulator, open_simulator
from dwctl_trio.testing.simulator_reply import CANARY
from dwctl_trio.testing.simulator_script import expected_text
from dwctl_trio.upstream.client import Upstreams, open_upstreams

WAIT_S = 10.0
"""Bound of the tests' waits: far more than any needs on a busy machine, far less than a hung run."""

PLAN = TurnPlan(tools=(), tool_choice=FREE_CHOICE, max_output_tokens=None)


@asynccontextmanager
async def _open(
    *, limits: Limits | None = None, simulator: Simulator | None = None, **upstream: Any
) -> AsyncIterator[tuple[Upstreams, Simulator]]:
    """A client and its upstream."""
    async with AsyncExitStack() as stack:
        simulator = simulator or await stack.enter_async_context(open_simulator())
        config = UpstreamConfig(name="simulator", **{"base_url": simulator.base_url, **upstream})
        yield await stack.enter_async_context(open_upstreams([config], limits or Limits())), simulator


def _call(model: str, key: str = "none") -> UpstreamCall:
    request = parse_request({"model": model, "input": f"hello key:{key}"})
    route = ModelRoute(model=model, upstream="simulator", upstream_model=model)
    return UpstreamCall(route=route, request=request, output=(), plan=PLAN, step_id=uuid4())


async def _read(upstreams: Upstreams, model: str, key: str = "none") -> str:
    """All the text of a call."""
    text = ""
    async with upstreams.open_turn(_call(model, key)) as turn:
        async for fragments in turn:
            text += "".join(fragment.text for fragment in fragments if isinstance(fragment, TextFragment))
    return text


def _free_places(upstreams: Upstreams) -> int:
    return upstreams._clients["simulator"].free_places


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.slow
async def test_a_thousand_cancelled_calls_lose_no_place_no_connection_and_no_file(transport: str) -> None:
    chance = random.Random(20261122)
    endless = ("slow-50-100", "hang", "hangbody", "pause-5-9", "pause-0-9-each", "echo-5-stall", "gate")
    models = (*endless, "echo-20", "echo-20-each", "error-500", "echo-3-cut")
    outcomes: Counter[str] = Counter()
    async with _open(transport=transport, max_concurrency=40, limits=Limits(upstream_wait_s=60.0)) as (
        upstreams,
        simulator,
    ):
        await _read(upstreams, "echo-1")
        files = _open_files() - simulator.statistics().connections * 2

        async def call(steps: int, model: str, nursery: trio.Nursery) -> None:
            with trio.CancelScope() as scope:
                nursery.start_soon(_cancel_after, scope, steps)
                try:
                    await _read(upstreams, model)
                    outcomes["whole"] += 1
                except UpstreamError:
                    outcomes["failed"] += 1
            outcomes["cancelled"] += scope.cancelled_caught

        with trio.fail_after(6 * WAIT_S):
            for _ in range(25):
                async with trio.open_nursery() as nursery:
                    for _ in range(60):
                        nursery.start_soon(call, chance.randrange(150), chance.choice(models), nursery)
                assert _free_places(upstreams) == 40
            counts = await simulator.wait_idle()
            assert await _read(upstreams, "echo-3") == expected_text("echo-3")
            left = await simulator.wait_until(lambda now: now.connections <= Limits().upstream_idle_connections)
        assert (counts.open, counts.paused) == (0, 0)
        assert _open_files() <= files + left.connections * 2
    print(f"1,500 calls: {dict(outcomes)}, {counts.total} of them seen upstream, {left.connections} connections left")
    assert outcomes["cancelled"] >= 1000
    assert outcomes["whole"] > 0
    assert outcomes["failed"] > 0
    gc.collect()  # a generator or socket that nobody closed would warn here, and a warning is an error


async def _cancel_after(scope: trio.CancelScope, steps: int) -> None:
    """Cancel *scope* after so many rounds of the scheduler: the same point on a fast machine and on a slow one."""
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


@pytest.mark.slow
async def test_a_call_left_at_any_token_aborts_its_upstream_at_once(transport: str) -> None:
    async with _open(transport=transport, max_concurrency=1) as (upstreams, simulator):
        for count in range(20):
            async with upstreams.open_turn(_call(f"pause-{count}-30", f"left-{count}")) as turn:
                read = 0
                while read < count:
                    read += sum(isinstance(fragment, TextFragment) for fragment in await anext(turn))
            with trio.fail_after(1.0):
                await simulator.wait_aborted(f"left-{count}")
            assert _free_places(upstreams) == 1


async def test_a_call_that_raises_inside_aborts_its_upstream_at_once(transport: str) -> None:
    async with _open(transport=transport, max_concurrency=1) as (upstreams, simulator):
        with pytest.raises(ZeroDivisionError):
            async with upstreams.open_turn(_call("pause-0-3", "raised")):
                raise ZeroDivisionError
        with trio.fail_after(1.0):
            await simulator.wait_aborted("raised")
        assert _free_places(upstreams) == 1


async def test_calls_one_after_the_other_share_one_connection(transport: str) -> None:
    async with _open(transport=transport) as (upstreams, simulator):
        for model in ("echo-3", "echo-3-each", "echo-50", "echo-3-json", "echo-3-twofinish", "echo-3-usageinline"):
            assert await _read(upstreams, model) == expected_text(model)
            await simulator.wait_idle()
            assert simulator.statistics().connections == 1, model


async def test_a_broken_call_spoils_no_connection_for_the_next(transport: str) -> None:
    async with _open(transport=transport) as (upstreams, simulator):
        for model in ("error-500", "echo-3-cut", "echo-3-reset", "echo-3-garbage", "html-200", "echo-3-eof"):
            with pytest.raises(UpstreamError) as caught:
                await _read(upstreams, model)
            assert CANARY not in str(caught.value)
            assert await _read(upstreams, "echo-4") == expected_text("echo-4"), model
        await simulator.wait_idle()
        assert simulator.statistics().connections <= 2


async def test_a_connection_that_died_at_rest_is_not_used_again(transport: str) -> None:
    async with AsyncExitStack() as stack:
        simulator = await stack.enter_async_context(open_simulator())
        port = int(simulator.origin.rpartition(":")[2])
        async with _open(transport=transport, simulator=simulator) as (upstreams, _):
            await _read(upstreams, "echo-1")
            await stack.aclose()
            async with open_simulator(port=port) as second:
                assert await _read(upstreams, "echo-2") == expected_text("echo-2")
                assert second.statistics().total == 1


async def test_a_place_that_does_not_become_free_in_time_is_a_limit(transport: str) -> None:
    async with _open(transport=transport, max_concurrency=1, limits=Limits(upstream_wait_s=0.05)) as (
        upstreams,
        simulator,
    ):
        async with upstreams.open_turn(_call("pause-0-1")):
            with pytest.raises(LimitExceeded) as caught:
                await _read(upstreams, "echo-1")
            assert caught.value.retry_after_s == 1.0
        assert await _read(upstreams, "echo-1") == expected_text("echo-1")
        assert simulator.statistics().total == 2


async def test_who_waits_for_a_place_gets_it_when_it_is_free(transport: str) -> None:
    said = []
    async with _open(transport=transport, max_concurrency=1) as (upstreams, simulator), trio.open_nursery() as nursery:

        async def call() -> None:
            said.append(await _read(upstreams, "echo-2"))

        async with upstreams.open_turn(_call("pause-0-1")):
            for _ in range(5):
                nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            assert said == []
        with trio.fail_after(WAIT_S):
            while len(said) < 5:
                await simulator.wait_until(lambda counts: counts.open == 0)
    assert said == [expected_text("echo-2")] * 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "limit"),
    [
        ("hang", "upstream_first_byte_s"),
        ("hangbody", "upstream_first_byte_s"),
        ("gate", "upstream_first_byte_s"),
        ("pause-3-9-each", "upstream_chunk_s"),
        ("echo-5-stall", "upstream_chunk_s"),
        ("slow-10000-20", "upstream_total_s"),
    ],
)
async def test_an_upstream_that_is_too_slow_is_left_in_time(transport: str, model: str, limit: str) -> None:
    async with _open(transport=transport, max_concurrency=1, limits=Limits(**{limit: 0.3})) as (upstreams, simulator):
        begun_at = trio.current_time()

        with pytest.raises(UpstreamTimeout), trio.fail_after(WAIT_S):
            await _read(upstreams, model, "slow")

        assert 0.25 < trio.current_time() - begun_at < 3
        with trio.fail_after(1.0):
            await simulator.wait_aborted("slow")
        assert _free_places(upstreams) == 1


@pytest.mark.slow
async def test_the_times_of_one_upstream_go_before_the_limits(transport: str) -> None:
    timeouts = UpstreamTimeouts(first_byte_s=0.2)
    async with _open(transport=transport, timeouts=timeouts) as (upstreams, _):
        with pytest.raises(UpstreamTimeout), trio.fail_after(WAIT_S):
            await _read(upstreams, "hang")


@pytest.mark.slow
async def test_usage_that_does_not_come_is_not_waited_for_long(transport: str) -> None:
    async with _open(transport=transport, limits=Limits(upstream_usage_s=0.2)) as (upstreams, _):
        for model in ("echo-3-nousage", "echo-3-nodone", "echo-3-nousage-nodone"):
            with trio.fail_after(WAIT_S):
                assert await _read(upstreams, model) == expected_text(model)


async def test_an_upstream_that_is_not_there_is_unreachable(transport: str) -> None:
    async with _open(transport=transport, base_url="http://127.0.0.1:1/v1", max_concurrency=1) as (upstreams, _):
        for _ in range(3):
            with pytest.raises(UpstreamUnreachable) as caught:
                await _read(upstreams, "echo-1")
            assert "127.0.0.1" not in str(caught.value)
        assert _free_places(upstreams) == 1


async def test_the_key_and_the_headers_of_the_configuration_are_sent_and_the_advice_is_kept(transport: str) -> None:
    async with _open(transport=transport, api_key="sk-upstream", headers=(("x-team", "blue"),)) as (
        upstreams,
        simulator,
    ):
        with pytest.raises(UpstreamRejected) as caught:
            await _read(upstreams, "error-429-7")

    sent = simulator.requests[-1].headers
    assert (sent["authorization"], sent["x-team"], sent["accept-encoding"]) == (
        "Bearer sk-upstream",
        "blue",
        "identity",
    )
    assert (caught.value.status, caught.value.retry_after_s) == (429, 7.0)
