"""The loop cannot tell who listens: the same script, streamed and not, comes to the same response.

Real sockets and the store in memory; Hypothesis runs in a thread and writes the parts of models and tools.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import attrs
import msgspec
import pytest
import trio
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from tests.engine.scenarios import CLIENT_TOOL, OVERRIDES, server_tools

from dwctl_trio.domain.assembly import fold
from dwctl_trio.domain.event_grammar import check_stream
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.tools import AgentTool
from dwctl_trio.protocol.request_body import LOGPROBS
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_store import MemoryStore
from dwctl_trio.testing.request_bench import RequestBench, open_request_bench
from dwctl_trio.testing.tool_server import ToolReply
from dwctl_trio.testing.wire import parse_response, read_stream

LIMITS = Limits(turns=3, steps=2000, tool_calls=2000)
"""Agents side by side share steps and calls, and whoever comes first takes what is left: so there is enough for all."""
WAIT_S = 10.0
AGENTS = ("inner", "outer")
_PER_RUN = {"id", "created_at", "completed_at"}
_PER_CALL = {"id", "call_id", "approval_request_id"}

_OPTIONS = st.sampled_from(["", "", "-each", "-json", "-split-5", "-comments-crlf", "-nousage", "-cites"])
_ENDING = st.one_of(
    st.builds("echo-{}{}".format, st.integers(1, 3), _OPTIONS),
    st.sampled_from(
        [
            *("reasoning-2-2", "refusal-2", "each-3", "echo-3-length", "echo-2-filter", "tools-2-length", "toolsbad-2"),
            *("echo-2-cut", "echo-2-midstream", "tools-2-cut", "echo-2-eof", "each-2-garbage", "tools-1-then-tools-2"),
            *("error-500", "error-429-1", "error-400", "html-200", "empty-200"),
        ]
    ),
)
SEED = 3
"""Of the scripts, so that every kind of end is among the few of the short run."""


def _scripts(calls_max: int) -> st.SearchStrategy[str]:
    """The part of a model that calls at most so many tools in one turn."""
    shapes = st.sampled_from(["tools", "toolslate", "toolsnoid"])
    calling = st.builds("{}-{}{}".format, shapes, st.integers(1, calls_max), _OPTIONS)
    return st.builds(lambda turns, ending: "-then-".join([*turns, ending]), st.lists(calling, max_size=2), _ENDING)


REPLIES = st.sampled_from(
    [
        *(ToolReply(), ToolReply(body=b"21 degrees", content_type="text/plain"), ToolReply(body=b"")),
        *(ToolReply(status=503), ToolReply(cuts_at="body"), ToolReply(cuts_at="head", resets=True)),
    ]
)


@attrs.frozen(kw_only=True)
class Parts:
    """Who says what."""

    top: str
    agents: Mapping[str, str]
    replies: Mapping[str, ToolReply]
    fields: Mapping[str, Any]


@st.composite
def parts(draw: st.DrawFn) -> Parts:
    offered = draw(st.lists(st.sampled_from(["look", "note", *AGENTS]), unique=True, min_size=1))
    tools = server_tools(*offered)
    if draw(st.booleans()):
        tools.insert(draw(st.integers(0, len(tools))), CLIENT_TOOL)
    fields: dict[str, Any] = {"tools": tools, "parallel_tool_calls": draw(st.booleans()), "include": []}
    if not set(offered) & set(AGENTS):  # of agents side by side, whoever comes first takes what is left
        fields["max_tool_calls"] = draw(st.none() | st.integers(1, 4))
        fields["max_output_tokens"] = draw(st.none() | st.integers(16, 60))
    elif draw(st.booleans()):
        fields["include"].append("dwctl:sub_agents")
    if draw(st.booleans()):
        fields["include"].append(LOGPROBS)
    return Parts(
        top=draw(_scripts(4)),
        agents={name: draw(_scripts(2)) for name in AGENTS},
        replies={path: draw(REPLIES) for path in ("/look", "/note")},
        fields=fields,
    )


@pytest.mark.slow
async def test_the_same_script_comes_to_the_same_response_streamed_and_not() -> None:
    await _compare(80)


@pytest.mark.long
async def test_three_thousand_scripts_come_to_the_same_responses_streamed_and_not() -> None:
    await _compare(3000)


async def _compare(examples: int) -> None:
    database = MemoryDatabase()
    store = MemoryStore(database, daemon_id=uuid4(), limits=LIMITS)
    await store.register_process()
    seen = Counter[str]()
    async with open_request_bench(store, LIMITS, OVERRIDES) as bench:

        @seed(SEED)
        @settings(max_examples=examples, database=None)
        @given(parts())
        def check(drawn: Parts) -> None:
            trio.from_thread.run(_check, bench, database, drawn, seen)

        await trio.to_thread.run_sync(check)
    print(f"streamed and not: {examples} scripts, {dict(seen)}")
    assert min(seen["completed"], seen["incomplete"], seen["failed"], seen["called"], seen["by agents"]) > 0


async def _check(bench: RequestBench, database: MemoryDatabase, drawn: Parts, seen: Counter[str]) -> None:
    cast(bench, drawn)
    ends = []
    for serve in (bench.serve_stream, bench.serve_blocking):
        called = bench.tool_server.calls_by_key.copy()
        with trio.fail_after(WAIT_S):
            await serve(drawn.top, **drawn.fields)
            await bench.check_nothing_left()
        row = database.rows[bench.response_id]
        assert row.response is not None
        if bench.refused is None:
            _check_told(bench, row.response)
        steps = Counter((step.name, step.state, step.error and step.error.type) for step in database.steps_of(row.id))
        keys = bench.tool_server.calls_by_key - called
        ends.append((row.state, row.response_status, _without_ids(row.response), steps, keys.total()))
        agents = any(step.parent_step_id for step in database.steps_of(row.id))
        database.remove_row(row.id)
    assert ends[0] == ends[1]
    seen.update([ends[0][2]["status"], *(["called"] if ends[0][4] else []), *(["by agents"] if agents else [])])


def cast(bench: RequestBench, drawn: Parts) -> None:
    """Give everybody their part."""
    catalog = dict(bench.services.catalog)
    for name, script in drawn.agents.items():
        agent = catalog[name]
        assert isinstance(agent, AgentTool)
        catalog[name] = attrs.evolve(agent, route=attrs.evolve(agent.route, upstream_model=script))
    bench.services = attrs.evolve(bench.services, catalog=catalog)
    for path, reply in drawn.replies.items():
        bench.tool_server.script(path, reply)


def _check_told(bench: RequestBench, stored: bytes) -> None:
    """What the client was told is what is stored, and a stream keeps the grammar."""
    assert bench.new is not None
    body = parse_response(msgspec.json.decode(stored), bench.new.request)
    if bench.response is not None:
        assert bench.response.status is body.status
        return
    stream = read_stream(b"".join(bench.told), bench.new.request)
    assert check_stream(stream.events) is None
    assert fold(numbered.event for numbered in stream.events) == body


def _without_ids(encoded: bytes) -> dict[str, Any]:
    """A response's body without what differs from run to run."""
    body = {key: value for key, value in msgspec.json.decode(encoded).items() if key not in _PER_RUN}
    body["output"] = [{key: value for key, value in item.items() if key not in _PER_CALL} for item in body["output"]]
    return body
