"""The OpenAI Agents SDK runs agents whose tools are the server's and its own: each call is made exactly once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import httpx
import openai
import pytest
import trio
from agents import Agent, HostedMCPTool, ModelSettings, OpenAIResponsesModel, RunConfig, Runner, function_tool
from tests.http.server_tools import (
    AGENT_ANSWER,
    WEATHER,
    ToolWorld,
    check_prompt,
    open_tool_world,
    server_tools,
    told_outputs,
)

from dwctl_trio.testing.simulator_script import expected_text
from dwctl_trio.testing.tool_server import ToolReply

SDK_S = 30.0
"""Bound of the SDK's own waits."""
OWN_OUTPUT = "the client looked at word1"
STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])


@attrs.define
class Ran:
    """One run of an agent, as the SDK tells it."""

    own_calls: list[str] = attrs.Factory(list)
    """The arguments of each call of the client's own function."""
    kinds: list[str] = attrs.Factory(list)
    """The types of the items that the run has added, those of the wire."""
    events: list[str] = attrs.Factory(list)
    """The types of the events, if it was streamed."""
    final_output: str = ""
    agent: str = ""
    """Who answered."""


MakeAgent = Callable[[Callable[[str], OpenAIResponsesModel], Any], Agent[None]]
"""An agent out of what makes a model by its name, and the client's own function."""


@pytest.fixture
async def world(postgres_dsn: str) -> AsyncIterator[ToolWorld]:
    async with open_tool_world(postgres_dsn) as world:
        yield world


async def run_agent(world: ToolWorld, make_agent: MakeAgent, *, streamed: bool) -> Ran:
    """Run an agent under asyncio, in a thread, as its users do."""
    ran = Ran()

    @function_tool
    def own(city: str) -> str:
        """Look at a city."""
        ran.own_calls.append(city)
        return f"the client looked at {city}"

    async def work() -> None:
        async with (
            httpx.AsyncClient(trust_env=False) as http,
            openai.AsyncOpenAI(
                base_url=f"{world.service.url}/v1", api_key="unused", max_retries=0, timeout=SDK_S, http_client=http
            ) as client,
        ):
            agent = make_agent(lambda model: OpenAIResponsesModel(model, client), own)
            config = RunConfig(tracing_disabled=True)
            if streamed:
                result: Any = Runner.run_streamed(agent, "hello", run_config=config)
                async for event in result.stream_events():
                    if event.type == "raw_response_event":
                        ran.events.append(event.data.type)
            else:
                result = await Runner.run(agent, "hello", run_config=config)
            ran.kinds = [_kind_of(item.raw_item) for item in result.new_items]
            ran.final_output, ran.agent = result.final_output, result.last_agent.name

    with trio.fail_after(SDK_S):
        await trio.to_thread.run_sync(asyncio.run, work(), abandon_on_cancel=True)
    for prompt in world.prompts():
        check_prompt(prompt)
    return ran


def _kind_of(item: Any) -> str:
    kind = item["type"] if isinstance(item, dict) else item.type
    assert isinstance(kind, str)
    return kind


@pytest.mark.slow
@STREAMED
async def test_an_agent_with_the_servers_tool_and_its_own_makes_each_call_once(
    world: ToolWorld, streamed: bool
) -> None:
    hosted = HostedMCPTool(tool_config=server_tools("get_weather"))

    ran = await run_agent(
        world,
        lambda model, own: Agent(name="one", instructions="Be brief.", model=model("tools-2"), tools=[hosted, own]),
        streamed=streamed,
    )

    last = world.prompts()[-1]
    print(f"{dict(world.calls())} at the tool server, {len(ran.own_calls)} of the client's own function")
    assert (world.calls(), ran.own_calls) == ({"/weather": 1}, ["word1"])
    assert ran.kinds == ["mcp_call", "function_call", "function_call_output", "message"]
    assert ran.final_output == expected_text("tools-2", turn=1)
    assert [message["role"] for message in last] == ["system", "user", "assistant", "tool", "tool"]
    assert told_outputs(last) == [("get_weather", WEATHER), ("own", OWN_OUTPUT)]
    if streamed:
        assert ran.events.count("response.mcp_call.completed") == 1
        assert ran.events.count("response.function_call_arguments.done") == 1
        assert ran.events.count("response.completed") == 2


@pytest.mark.slow
@STREAMED
async def test_rounds_of_the_servers_own_come_before_a_mixed_one(world: ToolWorld, streamed: bool) -> None:
    hosted = HostedMCPTool(tool_config=server_tools("get_weather"))
    script = "tools-1-then-tools-1-then-tools-2-then-echo-5"

    ran = await run_agent(
        world, lambda model, own: Agent(name="one", model=model(script), tools=[hosted, own]), streamed=streamed
    )

    last = world.prompts()[-1]
    assert (world.calls(), ran.own_calls) == ({"/weather": 3}, ["word1"])
    assert set(world.tools.calls_by_key.values()) == {1}, "three calls, each made once"
    assert ran.kinds == [*["mcp_call"] * 3, "function_call", "function_call_output", "message"]
    assert ran.final_output == expected_text("echo-5")
    assert told_outputs(last) == [*[("get_weather", WEATHER)] * 3, ("own", OWN_OUTPUT)]
    assert [len(message.get("tool_calls", [])) for message in last if message["role"] == "assistant"] == [1, 1, 2]


@pytest.mark.slow
@STREAMED
async def test_a_tool_of_the_servers_that_failed_is_read_in_its_place(world: ToolWorld, streamed: bool) -> None:
    world.tools.script("/weather", ToolReply(status=422, body=b"no such city", content_type="text/plain"))
    hosted = HostedMCPTool(tool_config=server_tools("get_weather"))

    ran = await run_agent(
        world, lambda model, own: Agent(name="one", model=model("tools-2"), tools=[hosted, own]), streamed=streamed
    )

    (_, failed), (_, answered) = told_outputs(world.prompts()[-1])
    assert (world.calls(), ran.own_calls, answered) == ({"/weather": 1}, ["word1"], OWN_OUTPUT)
    assert "no such city" in failed
    assert ran.final_output == expected_text("tools-2", turn=1)


@pytest.mark.slow
@STREAMED
async def test_all_tools_that_the_model_lists_are_named_by_the_server_alone(world: ToolWorld, streamed: bool) -> None:
    everything = HostedMCPTool(tool_config={"type": "mcp", "server_label": "dwctl", "require_approval": "never"})

    ran = await run_agent(
        world, lambda model, own: Agent(name="one", model=model("equipped"), tools=[everything, own]), streamed=streamed
    )

    assert (world.calls(), ran.own_calls) == ({"/weather": 1, "/search": 1}, [])
    assert ran.kinds == ["mcp_call", "mcp_call", "message"]


@pytest.mark.slow
@STREAMED
async def test_a_handoff_keeps_what_the_first_agents_tools_gave(world: ToolWorld, streamed: bool) -> None:
    weather, search = (HostedMCPTool(tool_config=server_tools(name)) for name in ("get_weather", "search"))

    def make_agent(model: Callable[[str], OpenAIResponsesModel], own: Any) -> Agent[None]:
        script = "echo-1-then-tools-2-then-echo-5"
        second = Agent[None](name="second", model=model(script), tools=[search, own])
        return Agent(name="first", model=model("tools-2"), tools=[weather], handoffs=[second])

    ran = await run_agent(world, make_agent, streamed=streamed)

    names = [name for name, _ in told_outputs(world.prompts()[-1])]
    assert (world.calls(), ran.own_calls) == ({"/weather": 1, "/search": 1}, ["word1"])
    assert names == ["get_weather", "transfer_to_second", "search", "own"]
    assert (ran.agent, ran.final_output) == ("second", expected_text("echo-5"))


@pytest.mark.slow
@pytest.mark.parametrize("shown", [False, True], ids=["hidden", "shown"])
async def test_an_agent_of_the_servers_is_one_tool_among_others(world: ToolWorld, shown: bool) -> None:
    hosted = HostedMCPTool(tool_config=server_tools("researcher"))
    settings = ModelSettings(extra_body={"include": ["dwctl:sub_agents"]} if shown else {})

    ran = await run_agent(
        world,
        lambda model, own: Agent(name="one", model=model("tools-2"), tools=[hosted, own], model_settings=settings),
        streamed=True,
    )

    assert (world.calls(), ran.own_calls) == ({"/search": 1}, ["word1"])
    assert told_outputs(world.prompts()[-1]) == [("researcher", AGENT_ANSWER), ("own", OWN_OUTPUT)]
    assert ("dwctl:sub_agent" in ran.events) == shown
    assert ran.kinds == ["mcp_call", "function_call", "function_call_output", "message"]
