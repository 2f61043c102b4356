"""The OpenAI Agents SDK with typed answers, and with the server as its memory: only what is new is sent."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pydantic
import pytest
from agents import Agent, HostedMCPTool, OpenAIResponsesModel
from tests.http.server_tools import WEATHER, ToolWorld, open_tool_world, server_tools, told_outputs
from tests.wire.agents_sdk import OWN_OUTPUT, run_agent

from dwctl_trio.testing.simulator_script import expected_text

MakeModel = Callable[[str], OpenAIResponsesModel]
STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])


class Weather(pydantic.BaseModel):
    """What a city's weather is."""

    city: str
    celsius: int


PARROT = Weather(city="Oslo", celsius=-3)


@pytest.fixture
async def world(postgres_dsn: str) -> AsyncIterator[ToolWorld]:
    async with open_tool_world(postgres_dsn) as world:
        yield world


async def previous_of(world: ToolWorld, response_id: str) -> Any:
    """Which response the one with *response_id* goes on from."""
    return (await world.service.client.get(f"/v1/responses/{response_id}")).json()["previous_response_id"]


@pytest.mark.slow
@STREAMED
async def test_an_answer_behind_a_tool_is_of_the_agents_output_type(world: ToolWorld, streamed: bool) -> None:
    ran = await run_agent(
        world,
        lambda model, own: Agent(name="one", model=model("tools-1-then-parrot"), tools=[own], output_type=Weather),
        streamed=streamed,
        prompt=PARROT.model_dump_json(),
    )

    asked = world.service.simulator.requests[-1].body["response_format"]["json_schema"]
    assert (ran.final_output, ran.own_calls) == (PARROT, ["word0"])
    assert asked["strict"] is True
    assert asked["schema"]["required"] == ["city", "celsius"]


@pytest.mark.slow
@STREAMED
async def test_a_run_that_names_its_previous_responses_sends_only_what_is_new(world: ToolWorld, streamed: bool) -> None:
    hosted = HostedMCPTool(tool_config=server_tools("get_weather"))

    ran = await run_agent(
        world,
        lambda model, own: Agent(name="one", instructions="Be brief.", model=model("tools-2"), tools=[hosted, own]),
        streamed=streamed,
        auto_previous_response_id=True,
    )

    first, second = ran.response_ids
    last = world.prompts()[-1]
    print(f"{dict(world.calls())} at the tool server, {len(ran.sent[-1])} item sent in the second request")
    assert (await previous_of(world, first), await previous_of(world, second)) == (None, first)
    assert [item["type"] for item in ran.sent[-1]] == ["function_call_output"]
    assert (world.calls(), ran.own_calls) == ({"/weather": 1}, ["word1"])
    assert [message["role"] for message in last] == ["system", "user", "assistant", "tool", "tool"]
    assert told_outputs(last) == [("get_weather", WEATHER), ("own", OWN_OUTPUT)]
    assert ran.final_output == expected_text("tools-2", turn=1)


@pytest.mark.slow
@STREAMED
async def test_a_handoff_goes_on_from_the_first_agents_response(world: ToolWorld, streamed: bool) -> None:
    weather, search = (HostedMCPTool(tool_config=server_tools(name)) for name in ("get_weather", "search"))

    def make_agent(model: MakeModel, own: Any) -> Agent[None]:
        script = "echo-1-then-tools-2-then-parrot"
        second = Agent[None](
            name="second", instructions="Be second.", model=model(script), tools=[search, own], output_type=Weather
        )
        first = model("tools-2")
        return Agent(name="first", instructions="Be first.", model=first, tools=[weather], handoffs=[second])

    ran = await run_agent(
        world, make_agent, streamed=streamed, prompt=PARROT.model_dump_json(), auto_previous_response_id=True
    )

    last = world.prompts()[-1]
    names = [name for name, _ in told_outputs(last)]
    assert [await previous_of(world, response_id) for response_id in ran.response_ids] == [None, *ran.response_ids[:-1]]
    assert (world.calls(), ran.own_calls) == ({"/weather": 1, "/search": 1}, ["word1"])
    assert set(world.tools.calls_by_key.values()) == {1}, "each call of the server's tools made once"
    assert names == ["get_weather", "transfer_to_second", "search", "own"]
    assert [message["content"] for message in last if message["role"] == "system"] == ["Be second."]
    assert (ran.agent, ran.final_output) == ("second", PARROT)


@pytest.mark.slow
@STREAMED
async def test_a_second_run_goes_on_from_the_first(world: ToolWorld, streamed: bool) -> None:
    hosted = HostedMCPTool(tool_config=server_tools("get_weather"))

    def make_agent(model: MakeModel, own: Any) -> Agent[None]:
        return Agent(name="one", model=model("tools-1-then-echo-3"), tools=[hosted, own])

    first = await run_agent(world, make_agent, streamed=streamed)
    second = await run_agent(
        world, make_agent, streamed=streamed, prompt="again", previous_response_id=first.response_ids[-1]
    )

    last = world.prompts()[-1]
    assert world.calls() == {"/weather": 2}, "one for each run"
    turn = ["user", "assistant", "tool", "assistant"]
    assert [message["role"] for message in last] == [*turn, "user", "assistant", "tool"]
    assert [message["content"] for message in last if message["role"] == "user"] == ["hello", "again"]
    assert first.final_output == second.final_output == expected_text("echo-3")
