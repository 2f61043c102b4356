"""A choice of one tool over real sockets, and models that do not keep to it."""

from typing import Any

import pytest
import trio
from tests.http.conftest import WAIT_S, ask
from tests.http.server_tools import OWN, ToolWorld, open_tool_world, server_tools

OTHER = {**OWN, "name": "other"}
CHOICE = {"type": "function", "name": "own"}


async def ask_for(world: ToolWorld, model: str, text: str, *tools: Any) -> Any:
    """The response of a model that is to call ``own``."""
    with trio.fail_after(WAIT_S):
        answer = await world.service.client.post(
            "/v1/responses", json=ask(model, input=text, tools=[OWN, OTHER, *tools], tool_choice=CHOICE)
        )
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.slow
@pytest.mark.parametrize("called", ["other", "get_weather"])
async def test_no_other_tool_than_the_one_that_is_demanded_is_called(postgres_dsn: str, called: str) -> None:
    text = f"call:{called}{{}} call:own{{}}"
    async with open_tool_world(postgres_dsn) as world:
        made = await ask_for(world, "toolsasked-2-then-echo-1", text, server_tools("get_weather"))

    assert [(item["type"], item["name"]) for item in made["output"]] == [("mcp_call", called), ("function_call", "own")]
    assert "The tools are: own." in made["output"][0]["error"]["content"][0]["text"]
    assert world.calls() == {}


@pytest.mark.slow
async def test_a_demand_for_a_tool_holds_until_that_tool_was_called(postgres_dsn: str) -> None:
    async with open_tool_world(postgres_dsn) as world:
        made = await ask_for(world, "toolsasked-1-then-toolsasked-1-then-echo-1", "call:other{}")

    assert [item["type"] for item in made["output"]] == ["mcp_call", "mcp_call", "message"]
