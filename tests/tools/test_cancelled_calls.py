"""Calls of tools left at each of their steps, and what they leave behind: nothing."""

import gc
import random
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trustme
from tests.tools.places import Names, invocation, open_tls_front, tool

from dwctl_trio.domain.errors import ToolFailed
from dwctl_trio.domain.limits import Limits
from dwctl_trio.testing.cancel_sweep import sweep_cancellation
from dwctl_trio.testing.tool_server import ToolReply, ToolServer, open_tool_server
from dwctl_trio.tools.http_tools import HttpToolRunner

WAIT_S = 10.0
"""Bound of the tests' waits: far more than any needs on a busy machine."""
PLACES = 2


def _open_files() -> set[str]:
    """What this process has open, but for what lists it."""
    return {path.name for path in Path("/proc/self/fd").iterdir() if path.exists()}


async def _sweep(runner: HttpToolRunner, server: ToolServer, scenario: Callable[[], Awaitable[object]]) -> int:
    """Leave *scenario* after each of its steps; returns how many there are."""
    files, steps = len(_open_files()), 0
    async for run in sweep_cancellation(scenario):
        steps = run.step
        with trio.fail_after(WAIT_S):
            await server.wait_idle()
            while len(_open_files()) > files:  # the server closes its own ends a moment after it has counted
                await trio.lowlevel.checkpoint()
        assert runner._places.value == PLACES, f"after step {run.step}"
    gc.collect()  # a generator or socket that nobody closed would warn here, and a warning is an error
    return steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reply", "hops"),
    [
        (ToolReply(), 0),
        (ToolReply(body=b"x" * 400_000, is_chunked=True), 0),
        (ToolReply(body=b"x" * 400_000, cuts_at="body"), 0),
        (ToolReply(status=422, body=b"y" * 100_000), 0),
        (ToolReply(), 2),
    ],
    ids=["small", "large", "cut", "refused", "redirected"],
)
async def test_a_call_left_at_any_step_leaves_no_file_and_no_place(reply: ToolReply, hops: int) -> None:
    async with open_tool_server() as server:
        server.script_redirects("/tool", hops=hops)
        server.script(f"/tool/{hops}" if hops else "/tool", reply)
        runner = HttpToolRunner(Limits(tool_connections=PLACES))
        Names(tool_example=[["127.0.0.1"]])
        url = server.url("/tool").replace("127.0.0.1", "tool.example")

        async def call() -> None:
            with suppress(ToolFailed):
                await runner.run_tool(invocation(tool(url)))

        steps = await _sweep(runner, server, call)
    print(f"cancelled after each of {steps} steps: no file, place or generator left")
    assert steps > 5


@pytest.mark.slow
async def test_a_call_over_tls_left_at_any_step_leaves_no_file() -> None:
    authority, trust = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trust)
    Names(tool_example=[["127.0.0.1"]])
    runner = HttpToolRunner(Limits(tool_connections=PLACES), tls=trust)
    async with open_tool_server() as server, open_tls_front(server, authority, "tool.example") as port:

        async def call() -> None:
            await runner.run_tool(invocation(tool(f"https://tool.example:{port}/tool")))

        steps = await _sweep(runner, server, call)
    print(f"cancelled after each of {steps} steps over TLS: no file, place or generator left")
    assert steps > 5


@pytest.mark.slow
async def test_a_thousand_calls_left_at_random_leave_no_place_and_no_file() -> None:
    chance, done = random.Random(20261122), {"answered": 0, "failed": 0, "left": 0}
    replies = {
        "/echo": ToolReply(),
        "/held": ToolReply(pauses_at="head"),
        "/half": ToolReply(body=b"x" * 9000, pauses_at="body"),
        "/cut": ToolReply(cuts_at="head", resets=True),
        "/error": ToolReply(status=500),
    }
    async with open_tool_server() as server:
        runner = HttpToolRunner(Limits(tool_connections=PLACES * 20))
        for path, reply in replies.items():
            server.script(path, reply)
        files = _open_files()

        async def call(path: str, steps: int, nursery: trio.Nursery) -> None:
            with trio.CancelScope() as scope:
                nursery.start_soon(_cancel_after, scope, steps)
                try:
                    await runner.run_tool(invocation(tool(server.url(path))))
                    done["answered"] += 1
                except ToolFailed:
                    done["failed"] += 1
            done["left"] += scope.cancelled_caught

        with trio.fail_after(6 * WAIT_S):
            for _ in range(25):
                async with trio.open_nursery() as nursery:
                    for _ in range(60):
                        nursery.start_soon(call, chance.choice(list(replies)), chance.randrange(120), nursery)
            await server.wait_idle()
        assert _open_files() == files
        assert runner._places.value == PLACES * 20
    gc.collect()
    print(f"1,500 calls: {done}")
    assert min(done.values()) > 0
    assert done["left"] > 500


async def _cancel_after(scope: trio.CancelScope, steps: int) -> None:
    """Cancel *scope* after so many rounds of the scheduler: the same point on a fast machine and on a slow one."""
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()
