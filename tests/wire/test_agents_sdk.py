"""The OpenAI Agents SDK runs agents whose tools are the server's and its own: each call is made exactly once."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from agents import Agent, HostedMCPTool, ModelSettings, OpenAIResponsesModel
from tests.http.server_tools import AGENT_ANSWER, WEATHER, ToolWorld, open_tool_world, server_tools, told_outputs
from tests.wire.agents_sdk import OWN_OUTPUT, run_agent

from dwctl_trio.testing.simulator_script import expected_text
from dwctl_trio.testing.tool_server import ToolReply

STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])


@pytest.fixture
async def world(postgres_dsn: str) -> AsyncIterator[ToolWorld]:
    async with open_tool_world(postgres_dsn) as world:
        yield world


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
