"""The official OpenAI SDK and tools: the server's, run before it answers, and the client's, run by its user."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import openai
import pydantic
import pytest
from openai.types.responses import (
    CustomToolParam,
    FunctionToolParam,
    Response,
    ResponseCustomToolCall,
    ResponseFunctionToolCall,
)
from openai.types.responses.response_output_item import McpCall
from openai.types.responses.tool_param import Mcp
from tests.http.server_tools import (
    AGENT_ANSWER,
    ARGUMENTS,
    CITY,
    WEATHER,
    ToolWorld,
    check_prompt,
    open_tool_world,
    told_outputs,
)
from tests.wire.sdk import assert_typed, use

from dwctl_trio.testing.simulator_script import expected_text
from dwctl_trio.testing.tool_server import ToolReply

WEATHER_TOOL: Mcp = {
    "type": "mcp", "server_label": "dwctl", "allowed_tools": ["get_weather"], "require_approval": "never",
}  # fmt: skip
OTHERS: Mcp = {"type": "mcp", "server_label": "dwctl", "allowed_tools": {"tool_names": ["search", "researcher"]}}
OWN_TOOL: FunctionToolParam = {"type": "function", "name": "own", "parameters": CITY, "strict": False}
CUSTOM_TOOL: CustomToolParam = {"type": "custom", "name": "script", "description": "Any text."}
GRAMMAR_TOOL: CustomToolParam = {
    "type": "custom",
    "name": "query",
    "format": {"type": "grammar", "syntax": "regex", "definition": "[a-z]+"},
}
EVERY_KIND = [WEATHER_TOOL, OWN_TOOL, CUSTOM_TOOL]

SCRIPTS = (
    "tools-1", "tools-3", "tools-3-each", "toolslate-3", "toolsnoid-3", "toolsbad-3", "tools-3-length", "tools-3-cut",
    "tools-1-then-reasoning-2-3", "tools-1-then-tools-1-then-echo-2-each", "tools-1-then-refusal-2",
)  # fmt: skip
MCP_EVENTS = {
    "response.mcp_call.in_progress", "response.mcp_call_arguments.delta", "response.mcp_call_arguments.done",
    "response.mcp_call.completed", "response.mcp_call.failed",
}  # fmt: skip


@pytest.fixture
async def world(postgres_dsn: str) -> AsyncIterator[ToolWorld]:
    async with open_tool_world(postgres_dsn) as world:
        yield world


def assert_all_typed(events: list[Any]) -> None:
    """Every event is one of the SDK's types, and they are numbered."""
    for event in events:
        assert_typed(event)
        assert type(event).__name__ != "BaseModel", event.type
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.slow
async def test_every_event_of_tools_is_one_that_the_types_of_the_sdk_know(world: ToolWorld) -> None:
    replies = (ToolReply(body=WEATHER.encode()), ToolReply(status=500), ToolReply(status=422, body=b"no"))
    seen: Counter[str] = Counter()

    def work(client: openai.OpenAI, script: str) -> None:
        asked: dict[str, Any] = {"model": script, "input": "hello", "tools": EVERY_KIND}
        for _ in replies:
            events = list(client.responses.create(**asked, stream=True))
            assert_all_typed(events)
            last = events[-1].response
            assert events[-1].type == f"response.{last.status}"
            assert client.responses.retrieve(last.id).model_dump() == last.model_dump()
            for item in last.output:
                assert type(item).__name__ != "BaseModel", item.type
            seen.update(event.type for event in events)
            whole = client.responses.create(**asked)
            assert_typed(whole)
            assert [item.type for item in whole.output] == [item.type for item in last.output]

    for script in SCRIPTS:
        world.tools.script("/weather", *replies, *replies)
        await use(world.service, lambda client, script=script: work(client, script))

    print({kind: count for kind, count in sorted(seen.items()) if "call" in kind})
    assert set(seen) >= MCP_EVENTS
    assert seen["response.mcp_call.in_progress"] == seen["response.mcp_call_arguments.done"]
    for prompt in world.prompts():
        check_prompt(prompt)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_tool_of_the_servers_has_run_when_the_response_is_there(world: ToolWorld, stream: bool) -> None:
    def work(client: openai.OpenAI) -> Response:
        made: Any = client.responses.create(model="tools-1", input="hello", tools=[WEATHER_TOOL], stream=stream)
        return list(made)[-1].response if stream else made

    response = await use(world.service, work)

    call, message = response.output
    assert isinstance(call, McpCall)
    assert (call.name, call.server_label, call.status) == ("get_weather", "dwctl", "completed")
    assert (call.arguments, call.output, call.error) == (ARGUMENTS, WEATHER, None)
    assert (message.type, response.output_text) == ("message", expected_text("tools-1", turn=1))
    assert world.calls() == {"/weather": 1}


@pytest.mark.slow
async def test_a_tool_that_failed_carries_an_error_that_the_sdk_knows(world: ToolWorld) -> None:
    world.tools.script("/weather", ToolReply(status=422, body=b"no such city", content_type="text/plain"))

    response = await use(
        world.service,
        lambda client: client.responses.create(model="tools-1", input="hello", tools=[WEATHER_TOOL]),
    )

    call = response.output[0]
    assert isinstance(call, McpCall)
    assert (call.status, call.output) == ("failed", None)
    assert call.error is not None
    assert type(call.error).__name__ == "McpToolExecutionError"
    assert "no such city" in call.error.content[0]["text"]
    assert (response.status, response.output[1].type) == ("completed", "message")


class Place(pydantic.BaseModel):
    """What the helper makes of arguments."""

    city: str


@pytest.mark.slow
async def test_the_helper_that_accumulates_a_stream_parses_arguments_and_keeps_the_servers_calls(
    world: ToolWorld,
) -> None:
    place = openai.pydantic_function_tool(Place, name="own")

    def work(client: openai.OpenAI) -> tuple[list[Any], Response, Response]:
        tools: Any = [WEATHER_TOOL, place]
        with client.responses.stream(model="tools-2-each", input="hello", tools=tools) as stream:
            events = list(stream)
            final = stream.get_final_response()
        return events, final, client.responses.retrieve(final.id)

    events, final, retrieved = await use(world.service, work)

    ours, own = final.output
    assert (own.name, own.parsed_arguments) == ("own", Place(city="word1"))
    assert (ours.type, ours.output) == ("mcp_call", WEATHER)
    snapshots = [event.snapshot for event in events if event.type == "response.function_call_arguments.delta"]
    assert (snapshots[-1], len(snapshots)) == (own.arguments, 3)
    known = [item.model_dump() for item in retrieved.output]
    assert [item.model_dump(exclude={"parsed_arguments"}) for item in final.output] == known
    assert final.tools[0].strict is True


@pytest.mark.slow
async def test_definitions_of_every_kind_are_echoed_in_types_of_the_sdk(world: ToolWorld) -> None:
    tools: Any = [WEATHER_TOOL, OWN_TOOL, CUSTOM_TOOL, GRAMMAR_TOOL, OTHERS]

    response = await use(
        world.service, lambda client: client.responses.create(model="echo-1", input="hello", tools=tools)
    )

    shown = {type(tool).__name__: [] for tool in response.tools}
    for tool in response.tools:
        assert_typed(tool)
        shown[type(tool).__name__].append(getattr(tool, "name", None) or tool.allowed_tools)
    assert shown == {
        "FunctionTool": ["own"],
        "CustomTool": ["script", "query"],
        "Mcp": [["get_weather", "search", "researcher"]],
    }
    own = response.tools[0].to_dict()
    assert (own["parameters"], own["strict"]) == (CITY, False)
    sent = world.service.simulator.requests[-1].body["tools"]
    assert [tool["function"]["name"] for tool in sent] == [
        "get_weather",
        "own",
        "script",
        "query",
        "search",
        "researcher",
    ]


CHOICES: tuple[tuple[Any, Any, list[str]], ...] = (
    # the choice, what the upstream is told, and the tools that it is offered
    ("auto", None, ["get_weather", "own", "script"]),
    ("none", None, []),
    ("required", "required", ["get_weather", "own", "script"]),
    ({"type": "function", "name": "own"}, "own", ["get_weather", "own", "script"]),
    ({"type": "custom", "name": "script"}, "script", ["get_weather", "own", "script"]),
    ({"type": "mcp", "server_label": "dwctl", "name": "get_weather"}, "get_weather", ["get_weather", "own", "script"]),
    (
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "own"}]},
        None,
        ["own"],
    ),
    (
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [
                {"type": "mcp", "server_label": "dwctl", "name": "get_weather"},
                {"type": "custom", "name": "script"},
            ],
        },
        "required",
        ["get_weather", "script"],
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize(("choice", "told", "offered"), CHOICES, ids=lambda value: str(value)[:40])
async def test_every_form_of_choice_is_echoed_and_passed_on(
    world: ToolWorld, choice: Any, told: str | None, offered: list[str]
) -> None:
    tools: Any = EVERY_KIND

    response = await use(
        world.service,
        lambda client: client.responses.create(model="echo-1", input="hello", tools=tools, tool_choice=choice),
    )

    assert_typed(response)
    echoed = response.to_dict()["tool_choice"]
    assert echoed == choice
    sent = world.service.simulator.requests[-1].body
    named = sent.get("tool_choice")
    assert (named["function"]["name"] if isinstance(named, dict) else named) == told
    assert [tool["function"]["name"] for tool in sent.get("tools", ())] == offered


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_mixed_turn_has_run_the_servers_and_leaves_the_clients_open(world: ToolWorld, stream: bool) -> None:
    tools: Any = EVERY_KIND
    script = "tools-3-then-echo-4"

    def create(client: openai.OpenAI, history: list[Any]) -> Response:
        made: Any = client.responses.create(model=script, input=history, tools=tools, stream=stream)
        return list(made)[-1].response if stream else made

    def work(client: openai.OpenAI) -> tuple[Response, Response]:
        history: list[Any] = [{"role": "user", "content": "hello"}]
        first = create(client, history)
        history += [item.to_dict() for item in first.output]
        for item in first.output:
            if isinstance(item, ResponseFunctionToolCall):
                history.append({"type": "function_call_output", "call_id": item.call_id, "output": "the own output"})
            if isinstance(item, ResponseCustomToolCall):
                parts = [{"type": "input_text", "text": "the custom output"}]
                history.append({"type": "custom_tool_call_output", "call_id": item.call_id, "output": parts})
        return first, create(client, history)

    first, second = await use(world.service, work)

    ours, own, custom = first.output
    assert first.status == "completed"
    assert (ours.type, ours.status, ours.output) == ("mcp_call", "completed", WEATHER)
    assert (own.type, own.status, own.name, own.arguments) == ("function_call", "completed", "own", '{"city":"word1"}')
    assert (custom.type, custom.status, custom.name, custom.input) == (
        "custom_tool_call", "completed", "script", "word2",
    )  # fmt: skip
    last = world.prompts()[-1]
    check_prompt(last)
    assert [message["role"] for message in last] == ["user", "assistant", "tool", "tool", "tool"]
    assert told_outputs(last) == [
        ("get_weather", WEATHER), ("own", "the own output"), ("script", "the custom output"),
    ]  # fmt: skip
    assert (second.status, second.output_text) == ("completed", expected_text("echo-4"))
    assert world.calls() == {"/weather": 1}


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_function_of_a_namespace_is_called_and_answered_by_both_names(world: ToolWorld, stream: bool) -> None:
    tools: Any = [{"type": "namespace", "name": "crm", "description": "Customers.", "tools": [OWN_TOOL, CUSTOM_TOOL]}]

    def create(client: openai.OpenAI, history: list[Any]) -> Response:
        made: Any = client.responses.create(model="tools-2-each", input=history, tools=tools, stream=stream)
        if stream:
            events = list(made)
            assert_all_typed(events)
            assert [event.name for event in events if event.type == "response.function_call_arguments.done"] in (
                [], ["own"],
            )  # fmt: skip
        return events[-1].response if stream else made

    def work(client: openai.OpenAI) -> tuple[Response, Response]:
        history: list[Any] = [{"role": "user", "content": "hello"}]
        first = create(client, history)
        history += [item.to_dict() for item in first.output]
        history += [{"type": f"{item.type}_output", "call_id": item.call_id, "output": "done"} for item in first.output]
        return first, create(client, history)

    first, second = await use(world.service, work)

    assert_typed(first)
    own, custom = first.output
    assert (own.type, own.name, own.namespace) == ("function_call", "own", "crm")
    assert (custom.type, custom.name, custom.namespace) == ("custom_tool_call", "script", "crm")
    (echoed,) = [tool.to_dict() for tool in first.tools]
    assert (echoed["name"], [tool["name"] for tool in echoed["tools"]]) == ("crm", ["own", "script"])
    assert told_outputs(world.prompts()[-1]) == [("crm__own", "done"), ("crm__script", "done")]
    assert second.output_text == expected_text("tools-2", turn=1)


@pytest.mark.slow
async def test_open_calls_without_their_outputs_are_a_bad_request_and_so_are_outputs_without_calls(
    world: ToolWorld,
) -> None:
    call = {"type": "function_call", "call_id": "call_1", "name": "own", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "call_1", "output": "x"}

    def work(client: openai.OpenAI) -> None:
        for history in ([call], [output], [output, call], [call, output, output]):
            with pytest.raises(openai.BadRequestError) as caught:
                client.responses.create(model="echo-1", input=history)
            assert caught.value.param == "input"
            assert "call_1" in caught.value.message

    await use(world.service, work)


@pytest.mark.slow
async def test_the_steps_are_read_with_the_sdks_own_client(world: ToolWorld) -> None:
    tools: Any = [OTHERS]

    def work(client: openai.OpenAI) -> tuple[Response, Any]:
        made = client.responses.create(model="tools-2", input="hello", tools=tools)
        return made, client.get(f"/responses/{made.id}/steps", cast_to=object)

    response, listed = await use(world.service, work)

    assert [item.type for item in response.output] == ["mcp_call", "mcp_call", "message"]
    assert response.output[1].output == AGENT_ANSWER
    steps = {step["id"]: step for step in listed["data"]}
    (agent,) = [step for step in steps.values() if step.get("name") == "researcher"]
    inner = [step["type"] for step in steps.values() if step["parent_step_id"] == agent["id"]]
    assert inner == ["model_call", "tool_call", "model_call"]
    assert Counter(step["status"] for step in steps.values()) == {"completed": 7}
