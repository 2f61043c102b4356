"""A service with tools of its own, for the tests of the running server: two over HTTP, and an agent that has one.

Rule: the simulator's ``tools-2`` calls the first two tools that it is offered, in the request's order.
"""

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs

from dwctl_trio.testing.service import Service, open_service
from dwctl_trio.testing.simulator_script import expected_text
from dwctl_trio.testing.tool_server import ToolReply, ToolServer, open_tool_server

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
ARGUMENTS = '{"city":"word0"}'
"""What the simulator writes as the first call of a turn."""
WEATHER = '{"celsius": 21}'
AGENT_MODEL = "tools-1-then-echo-3"
AGENT_ANSWER = expected_text("echo-3")
OWN = {"type": "function", "name": "own", "description": "The client's.", "parameters": CITY, "strict": False}
CUSTOM = {"type": "custom", "name": "script", "description": "The client's, of any text."}


def server_tools(*names: str) -> dict[str, Any]:
    """The entry of ``tools`` that names the server's."""
    return {"type": "mcp", "server_label": "dwctl", "allowed_tools": list(names), "require_approval": "never"}


@attrs.frozen(kw_only=True)
class ToolWorld:
    """A running server and the tools that it calls."""

    service: Service
    tools: ToolServer

    def calls(self) -> Counter[str]:
        """How often each tool was called, by its path."""
        return Counter(call.path for call in self.tools.calls)

    def prompts(self) -> list[list[Mapping[str, Any]]]:
        """The messages of every model call, in their order."""
        return [request.body["messages"] for request in self.service.simulator.requests]


def configure_tools(tools: ToolServer, **fields: Any) -> dict[str, Any]:
    """The configuration of the tools and of the models that list some; *fields* are of both HTTP tools."""
    http = {"kind": "http", "description": "Looks it up.", "parameters": CITY, "allow_private": True, **fields}
    agent = {"kind": "agent", "model": AGENT_MODEL, "description": "Finds out.", "instructions": "Be thorough."}
    upstream = {"upstream": "simulator"}
    listed = {"tools": ["get_weather", "search"], "upstream_model": "tools-2", **upstream}
    return {
        "tools": [
            {"name": "get_weather", "url": tools.url("/weather"), **http},
            {"name": "search", "url": tools.url("/search"), **http},
            {"name": "researcher", "tools": ["search"], **agent},
        ],
        "models": [{"name": "equipped", **listed}, {"name": "*", **upstream}],
    }


@asynccontextmanager
async def open_tool_world(dsn: str, **overrides: Any) -> AsyncIterator[ToolWorld]:
    """A service with tools, one of which tells the weather; *overrides* are top-level keys of its configuration."""
    async with open_tool_server() as tools:
        tools.script("/weather", ToolReply(body=WEATHER.encode()))
        async with open_service(dsn, {**configure_tools(tools), **overrides}) as service:
            yield ToolWorld(service=service, tools=tools)


def check_prompt(messages: Iterable[Mapping[str, Any]]) -> None:
    """Each tool message answers exactly one call of the assistant message before it, and none is left open."""
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            assert message["tool_call_id"] in waiting, message
            waiting.remove(message["tool_call_id"])
            continue
        assert not waiting, (waiting, message)
        waiting = [call["id"] for call in message.get("tool_calls") or ()]
        assert len(set(waiting)) == len(waiting), message
    assert not waiting


def told_outputs(messages: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The name of each call in a prompt, with the output that follows it."""
    names: dict[str, str] = {}
    told: list[tuple[str, str]] = []
    for message in messages:
        names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls") or ()}
        if message["role"] == "tool":
            told.append((names[message["tool_call_id"]], message["content"]))
    return told
