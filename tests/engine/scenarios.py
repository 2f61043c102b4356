"""Requests whose answers take tools and agents, and a bench over a store in memory that serves them."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import attrs

from dwctl_trio.domain.event_grammar import check_stream
from dwctl_trio.domain.limits import DEFAULT_LIMITS, Limits
from dwctl_trio.domain.response import Response
from dwctl_trio.ports import StoredResponse
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_rows import MemoryRow, MemoryStep
from dwctl_trio.testing.memory_store import MemoryStore
from dwctl_trio.testing.request_bench import OWNER, RequestBench, open_request_bench
from dwctl_trio.testing.wire import ReadStream, read_stream

TOOLS: list[dict[str, Any]] = [
    {"name": "look", "url": "/look"},
    {"name": "note", "url": "/note"},
    {"name": "inner", "kind": "agent", "model": "tools-1-then-echo-2", "tools": ["look"]},
    {"name": "outer", "kind": "agent", "model": "tools-1-then-echo-2", "tools": ["inner"]},
]
"""Two HTTP tools, an agent that calls one of them, and an agent that calls the agent."""
OVERRIDES = {"tools": TOOLS}
SHOWING_AGENTS = {"include": ["dwctl:sub_agents"]}


def server_tools(*names: str) -> list[dict[str, Any]]:
    """Server tools as a request names them."""
    return [{"type": "dwctl:tool", "name": name} for name in names]


@attrs.frozen(kw_only=True)
class Scenario:
    """A request, and what it comes to if nobody breaks it off."""

    name: str
    model: str
    fields: Mapping[str, Any]
    steps: int
    model_calls: int
    tool_calls: int
    """HTTP tools only."""


CLIENT_TOOL = {"type": "function", "name": "mine", "parameters": {"type": "object", "properties": {}}}
FAN_OUT = Scenario(
    name="fan-out",
    model="tools-2-then-echo-3",
    fields={"tools": server_tools("look", "note")},
    steps=4,
    model_calls=2,
    tool_calls=2,
)
NESTED = Scenario(
    name="nested agent",
    model="tools-1-then-echo-3",
    fields={"tools": server_tools("outer"), **SHOWING_AGENTS},
    steps=9,
    model_calls=6,
    tool_calls=1,
)
MIXED = Scenario(
    name="mixed turn",
    model="tools-2",
    fields={"tools": [*server_tools("look"), CLIENT_TOOL]},
    steps=2,
    model_calls=1,
    tool_calls=1,
)
SCENARIOS = [FAN_OUT, NESTED, MIXED]


def read_told(requests: RequestBench) -> ReadStream:
    """What the client of the last streamed request got, to its end, which kept the grammar."""
    assert requests.new is not None
    stream = read_stream(b"".join(requests.told), requests.new.request)
    assert stream.is_done
    assert check_stream(stream.events) is None
    return stream


@attrs.frozen(kw_only=True)
class MemoryBench:
    """A request bench, and the database that it writes to."""

    requests: RequestBench
    database: MemoryDatabase

    @property
    def told(self) -> Response:
        """How the stream of the last request ended."""
        return read_told(self.requests).events[-1].event.response

    @property
    def row(self) -> MemoryRow:
        """Of the last request."""
        return self.database.rows[self.requests.response_id]

    def steps(self, name: str | None = "", *, inside: bool | None = None) -> list[MemoryStep]:
        """The steps of the last request.

        Args:
            name: Those of one tool, or None for model calls; empty for all.
            inside: Whether only those of sub-agents, or only those of none.
        """
        return [
            step
            for step in self.database.steps_of(self.requests.response_id)
            if name in {"", step.name} and inside in {None, step.parent_step_id is not None}
        ]

    async def get(self) -> StoredResponse:
        """The last response, as its owner may read it."""
        stored = await self.requests.services.store.read_response(self.requests.response_id, OWNER)
        assert stored is not None
        return stored


@asynccontextmanager
async def open_memory_bench(
    tools: Sequence[Mapping[str, Any]] = TOOLS, limits: Limits = DEFAULT_LIMITS
) -> AsyncIterator[MemoryBench]:
    """A bench with *tools*."""
    database = MemoryDatabase()
    store = MemoryStore(database, daemon_id=uuid4(), limits=limits)
    await store.register_process()
    async with open_request_bench(store, limits, {"tools": tools}) as requests:
        yield MemoryBench(requests=requests, database=database)
