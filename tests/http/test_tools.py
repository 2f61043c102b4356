"""Tools over real sockets: who is offered which, who runs a call, what the stream says of it, and that it runs once."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio
from tests.http.conftest import WAIT_S, as_request, ask, error_of, open_raw, output_text, read_back, read_valid_stream
from tests.http.server_tools import (
    AGENT_ANSWER,
    ARGUMENTS,
    CUSTOM,
    OWN,
    WEATHER,
    ToolWorld,
    check_prompt,
    open_tool_world,
    server_tools,
)
from tests.observability.scrapes import Scrape

from dwctl_trio.domain import ids
from dwctl_trio.domain.assembly import fold
from dwctl_trio.testing.simulator_script import expected_text
from dwctl_trio.testing.tool_server import ToolReply

QUICK = {"limits": {"idempotency_poll_s": 0.02, "head_hold_s": 0.5}}
EVERYTHING = {"type": "mcp", "server_label": "dwctl"}


@pytest.fixture
async def world(postgres_dsn: str) -> AsyncIterator[ToolWorld]:
    async with open_tool_world(postgres_dsn, **QUICK) as world:
        yield world


async def create(world: ToolWorld, model: str, *, key: str | None = None, **fields: Any) -> httpx.Response:
    headers = {} if key is None else {"idempotency-key": key}
    with trio.fail_after(WAIT_S):
        return await world.service.client.post("/v1/responses", json=ask(model, **fields), headers=headers)


async def create_whole(world: ToolWorld, model: str, **fields: Any) -> Any:
    answer = await create(world, model, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def offered(world: ToolWorld, call: int = -1) -> list[str]:
    """The names of the tools that a model call was offered."""
    tools = world.service.simulator.requests[call].body.get("tools", [])
    return [tool["function"]["name"] for tool in tools]


def kinds(response: Any) -> list[str]:
    return [item["type"] for item in response["output"]]


# -- which tools


@pytest.mark.slow
async def test_a_request_gets_the_tools_that_it_names_or_else_those_that_its_model_lists(world: ToolWorld) -> None:
    everything: list[Any] = [EVERYTHING]
    one, other = {"type": "dwctl:tool", "name": "researcher"}, {"type": "dwctl:tool", "name": "search"}
    for tools, names in (
        (None, ["get_weather", "search"]),
        ([], []),
        (everything, ["get_weather", "search"]),
        ([one], ["researcher"]),
        ([OWN], ["own"]),
        ([one, OWN, *everything], ["researcher", "own", "get_weather", "search"]),
        ([*everything, other], ["get_weather", "search"]),
        ([server_tools("search"), server_tools("get_weather")], ["search", "get_weather"]),
    ):
        world.service.simulator.reset()
        made = await create_whole(world, "equipped", tools=tools)
        echoed = [tool.get("name") or tool["allowed_tools"] for tool in made["tools"]]
        ours = [name for name in names if name != "own"]
        assert sorted(offered(world, 0)) == sorted(names), tools
        assert echoed == [*(["own"] if "own" in names else []), *([ours] if ours else [])], tools
        assert made["tools"] == (await read_back(world.service, ids.parse_response_id(made["id"])))["tools"]


@pytest.mark.slow
async def test_a_model_that_lists_no_tools_offers_none_unless_they_are_named(world: ToolWorld) -> None:
    await create_whole(world, "echo-1")
    assert (offered(world), world.calls()) == ([], {})

    await create_whole(world, "echo-1", tools=[EVERYTHING])
    assert offered(world) == []

    await create_whole(world, "echo-1", tools=[server_tools("get_weather")])
    assert offered(world) == ["get_weather"]


async def test_an_unknown_server_tool_is_refused_by_its_place_and_told_which_there_are(world: ToolWorld) -> None:
    for tools, param in (
        ([server_tools("search", "nothing")], "tools[0].allowed_tools[1]"),
        ([server_tools("search", "get_weather"), OWN, {"type": "dwctl:tool", "name": "nothing"}], "tools[2].name"),
        ([{**EVERYTHING, "allowed_tools": {"tool_names": ["nothing"]}}], "tools[0].allowed_tools.tool_names[0]"),
    ):
        answer = await create(world, "tools-1", tools=tools)
        error = error_of(answer)
        assert (answer.status_code, error["param"], error["code"]) == (400, param, "invalid_value")
        assert error["message"] == (
            f"Invalid '{param}': there is no server tool 'nothing';"
            " the tools of this server are 'get_weather', 'search' or 'researcher'."
        )
    assert world.service.simulator.statistics().total == 0


@pytest.mark.slow
async def test_with_the_choice_of_none_no_tool_is_offered_and_none_runs(world: ToolWorld) -> None:
    made = await create_whole(world, "equipped", tool_choice="none")

    assert (offered(world), world.calls(), made["tool_choice"]) == ([], {}, "none")
    assert made["tools"][0]["allowed_tools"] == ["get_weather", "search"]


@pytest.mark.slow
async def test_a_model_that_calls_all_the_same_is_told_that_it_may_not(world: ToolWorld) -> None:
    made = await create_whole(world, "tools-1", tools=[OWN], tool_choice="none")

    assert (offered(world, 0), kinds(made)) == ([], ["mcp_call", "message"])
    assert (made["status"], made["output"][0]["status"], made["output"][0]["name"]) == ("completed", "failed", "tool_1")


@pytest.mark.slow
async def test_a_choice_of_what_is_not_offered_is_refused_before_any_model_is_asked(world: ToolWorld) -> None:
    search = {"type": "mcp", "server_label": "dwctl", "name": "search"}
    for model, fields in (
        ("echo-1", {"tool_choice": search}),
        ("echo-1", {"tool_choice": "required"}),
        ("echo-1", {"tools": [EVERYTHING], "tool_choice": "required"}),
        ("echo-1", {"tools": [EVERYTHING], "tool_choice": search}),
        ("equipped", {"tool_choice": {"type": "dwctl:tool", "name": "researcher"}}),
        ("equipped", {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [search, OWN_CHOICE]}}),
        ("equipped", {"tools": [], "tool_choice": search}),
    ):
        answer = await create(world, model, **fields)
        assert (answer.status_code, error_of(answer)["param"]) == (400, "tool_choice"), fields
    assert world.service.simulator.statistics().total == 0
    assert (await create_whole(world, "equipped", tool_choice=search))["tool_choice"] == search


OWN_CHOICE = {"type": "function", "name": "own"}


@pytest.mark.slow
@pytest.mark.parametrize("tools", [[], [EVERYTHING]], ids=["alone", "beside the servers"])
async def test_a_function_of_the_clients_is_the_clients_whatever_its_name(world: ToolWorld, tools: list[Any]) -> None:
    made = await create_whole(world, "equipped", tools=[{**OWN, "name": "get_weather"}, *tools])

    calls = [(item["type"], item["name"]) for item in made["output"]]
    others = [("mcp_call", "search")] if tools else [("function_call", "get_weather")]
    assert calls == [("function_call", "get_weather"), *others]
    assert world.calls() == ({"/search": 1} if tools else {})


@pytest.mark.slow
async def test_what_a_model_calls_without_being_offered_it_is_told_to_it_and_not_run(world: ToolWorld) -> None:
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{**EVERYTHING, "name": "get_weather"}]}

    made = await create_whole(world, "equipped", tool_choice=allowed)

    assert (offered(world, 0), world.calls()) == (["get_weather"], {"/weather": 2})
    assert [item.get("name") for item in made["output"]] == ["get_weather", "get_weather", None]


@pytest.mark.slow
async def test_calls_beyond_max_tool_calls_are_not_made_and_the_model_answers_all_the_same(world: ToolWorld) -> None:
    made = await create_whole(world, "tools-3", tools=[server_tools("get_weather")], max_tool_calls=2)

    assert (world.calls(), made["max_tool_calls"], made["status"]) == ({"/weather": 2}, 2, "completed")
    assert output_text(made) == expected_text("tools-3", turn=1)
    for prompt in world.prompts():
        check_prompt(prompt)


# -- the stream


async def stream_of(world: ToolWorld, model: str, **fields: Any) -> Any:
    """The stream of a response, after the rules of the grammar have been checked, and what GET says of it."""
    asked = ask(model, stream=True, **fields)
    with trio.fail_after(WAIT_S):
        answer = await world.service.client.post("/v1/responses", json=asked)
    stream = read_valid_stream(answer.content, asked)
    last = stream.data[-1]["response"]
    read = await read_back(world.service, ids.parse_response_id(last["id"]))
    assert read == last
    assert fold([event.event for event in stream.events]).output == stream.events[-1].event.response.output
    return stream


def told(stream: Any, output_index: int) -> list[str]:
    """The types of the events of one item."""
    return [fields["type"] for fields in stream.data if fields.get("output_index") == output_index]


@pytest.mark.slow
async def test_a_call_is_told_in_openais_order(world: ToolWorld) -> None:
    stream = await stream_of(world, "tools-1-each-then-echo-1", tools=[server_tools("get_weather")])

    deltas = ["response.mcp_call_arguments.delta"] * 3
    assert [fields["type"] for fields in stream.data] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.mcp_call.in_progress",
        *deltas,
        "response.mcp_call_arguments.done",
        "response.mcp_call.completed",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    added, done = stream.data[2]["item"], stream.data[9]["item"]
    receipt = {"server_label": "dwctl", "name": "get_weather", "approval_request_id": None, "error": None}
    assert added == {
        "id": done["id"], "type": "mcp_call", "status": "in_progress", "arguments": "", "output": None, **receipt,
    }  # fmt: skip
    assert done == {**added, "status": "completed", "arguments": ARGUMENTS, "output": WEATHER}
    assert {fields["item_id"] for fields in stream.data[3:9]} == {done["id"]}
    assert "".join(fields["delta"] for fields in stream.data[4:7]) == stream.data[7]["arguments"] == ARGUMENTS


@pytest.mark.slow
async def test_a_call_that_failed_is_told_as_failed_with_its_reason(world: ToolWorld) -> None:
    world.tools.script("/weather", ToolReply(status=422, body=b"no such city", content_type="text/plain"))

    stream = await stream_of(world, "tools-1", tools=[server_tools("get_weather")])

    assert told(stream, 0)[-2:] == ["response.mcp_call.failed", "response.output_item.done"]
    item = stream.data[-1]["response"]["output"][0]
    assert (item["status"], item["output"], item["error"]["type"]) == ("failed", None, "mcp_tool_execution_error")
    assert "no such city" in item["error"]["content"][0]["text"]


@pytest.mark.slow
async def test_results_are_told_as_they_arrive_and_keep_their_places(world: ToolWorld) -> None:
    world.tools.script("/weather", ToolReply(body=WEATHER.encode(), pauses_at="head"))
    asked = ask("tools-2", stream=True, tools=[server_tools("get_weather", "search")])

    async with open_raw(world.service) as client:
        with trio.fail_after(WAIT_S):
            await client.send(as_request(asked, "Connection: close"))
            early = await client.read_until(b"event: response.mcp_call.completed\n")
            await world.tools.wait_until(lambda tools: tools.paused == 1)
            world.tools.resume_all()
            await client.read_to_end()

    done = [line for line in early.split(b"\n") if b'"type":"response.mcp_call.completed"' in line]
    assert [b'"output_index":1' in line for line in done] == [True], "the second call was ready first"
    head, _, body = client.received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body.count(b'"type":"response.mcp_call.completed"') == 2
    (row,) = await world.service.pool.fetch("select response::text as response from requests")
    assert row["response"].index("get_weather") < row["response"].index('"search"')


@pytest.mark.slow
async def test_sub_agents_are_shown_to_those_who_ask_and_to_nobody_else(world: ToolWorld) -> None:
    tools = [server_tools("researcher")]

    hidden = await stream_of(world, "tools-1", tools=tools)
    shown = await stream_of(world, "tools-1", tools=tools, include=["dwctl:sub_agents"])

    inside = [fields for fields in shown.data if fields["type"] == "dwctl:sub_agent"]
    others = [fields["type"] for fields in shown.data if fields["type"] != "dwctl:sub_agent"]
    assert others == [fields["type"] for fields in hidden.data]
    call = shown.data[-1]["response"]["output"][0]
    assert (call["name"], call["output"]) == ("researcher", AGENT_ANSWER)
    assert {fields["item_id"] for fields in inside} == {call["id"]}
    assert {fields["agent"]["agent_name"] for fields in inside} == {"researcher"}
    said = "".join(
        fields["event"]["delta"] for fields in inside if fields["event"]["type"] == "response.output_text.delta"
    )
    assert said == AGENT_ANSWER
    assert "response.mcp_call.completed" in {fields["event"]["type"] for fields in inside}, "its own tool's"


# -- once


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_repeat_with_the_same_key_runs_no_tool_again(world: ToolWorld, stream: bool) -> None:
    tools = [server_tools("get_weather", "researcher")]

    first, second, third = [await create(world, "tools-2", key="same", tools=tools, stream=stream) for _ in range(3)]

    assert first.content == second.content == third.content
    assert world.calls() == {"/weather": 1, "/search": 1}
    assert world.service.simulator.statistics().total == 4
    assert await world.service.pool.fetchval("select count(*) from requests") == 1


@pytest.mark.slow
async def test_repeats_that_race_a_running_tool_wait_for_it(world: ToolWorld) -> None:
    world.tools.script("/weather", ToolReply(body=WEATHER.encode(), pauses_at="body"))
    answers: list[httpx.Response] = []

    async def post() -> None:
        answers.append(await create(world, "tools-1", key="same", tools=[server_tools("get_weather")]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(post)
        with trio.fail_after(WAIT_S):
            await world.tools.wait_until(lambda tools: tools.paused == 1)
        for _ in range(5):
            nursery.start_soon(post)
        looked = "select count(*) from pg_stat_activity where query like '%idempotency_digest,%' and state = 'idle'"
        with trio.fail_after(WAIT_S):
            while not await world.service.pool.fetchval(looked):
                await trio.lowlevel.checkpoint()
        world.tools.resume_all()

    assert len({answer.content for answer in answers}) == 1
    assert (world.calls(), set(world.tools.calls_by_key.values())) == ({"/weather": 1}, {1})


@pytest.mark.slow
async def test_every_call_carries_a_key_of_its_own_that_names_the_response(world: ToolWorld) -> None:
    made = await create_whole(world, "tools-2-then-tools-1-then-echo-1", tools=[server_tools("get_weather")])

    keys = [call.idempotency_key or "" for call in world.tools.calls]
    assert (len(set(keys)), {key[: len(made["id"])] for key in keys}) == (3, {made["id"]})
    assert {call.headers["x-response-id"] for call in world.tools.calls} == {made["id"]}


@pytest.mark.slow
async def test_a_client_that_leaves_during_a_tool_ends_it_and_the_response(world: ToolWorld) -> None:
    world.tools.script("/weather", ToolReply(pauses_at="head"))
    asked = ask("tools-2", key="left", stream=True, tools=[server_tools("get_weather", "researcher")])

    async with open_raw(world.service) as client:
        with trio.fail_after(WAIT_S):
            await client.send(as_request(asked))
            await client.read_until(b"event: response.mcp_call.completed\n")
    with trio.fail_after(WAIT_S):
        await world.tools.wait_until(lambda tools: tools.left == 1)
        while await world.service.pool.fetchval("select state from requests") == "processing":
            pass
    states = await world.service.pool.fetch("select state, name from response_steps order by sequence")
    response_id = await world.service.pool.fetchval("select id from requests")
    read = await read_back(world.service, response_id)

    assert ("canceled", "get_weather") in [tuple(row) for row in states]
    assert (read["status"], kinds(read)) == ("cancelled", ["mcp_call", "mcp_call"])
    assert [item["status"] for item in read["output"]] == ["incomplete", "completed"]


# -- metrics


@pytest.mark.slow
async def test_every_call_of_a_tool_is_counted_once_by_its_name_and_end(world: ToolWorld) -> None:
    world.tools.script("/weather", ToolReply(body=WEATHER.encode()), ToolReply(status=500))
    await create_whole(world, "tools-2", tools=[server_tools("get_weather")])
    await create_whole(world, "tools-2", tools=[server_tools("researcher", "search")])
    await create_whole(world, "toolsbad-1", tools=[server_tools("search")])
    await create_whole(world, "tools-2", tools=[OWN, CUSTOM])

    seen = Scrape((await world.service.client.get("/metrics")).text)

    counted = seen.rows("gen_ai_execute_tool_duration_seconds_count", "gen_ai_tool_name", "error_type")
    assert {labels: count for labels, count in counted.items() if count} == {
        ("get_weather", ""): 1,
        ("get_weather", "executor_error"): 1,
        ("researcher", ""): 1,
        ("search", ""): 2,
        ("search", "tool_arguments_invalid"): 1,
    }
