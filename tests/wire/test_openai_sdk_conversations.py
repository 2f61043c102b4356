"""The official OpenAI SDK and conversations: responses that go on with others, references to items, and lists."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseItem
from pydantic import TypeAdapter
from tests.http.queued import QUICK, cancel, wait_ended
from tests.http.server_tools import (
    CUSTOM,
    OWN,
    WEATHER,
    ToolWorld,
    check_prompt,
    open_tool_world,
    server_tools,
    told_outputs,
)
from tests.wire.sdk import assert_typed, use

from dwctl_trio.testing.service import Service, open_service
from dwctl_trio.testing.simulator_script import expected_text

WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "streamed": {"stream": True},
    "background": {"background": True},
    "background, streamed": {"background": True, "stream": True},
    "flex": {"service_tier": "flex"},
    "flex, streamed": {"service_tier": "flex", "stream": True},
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
POLLS_MAX = 2000


@pytest.fixture
async def world(postgres_dsn: str) -> AsyncIterator[ToolWorld]:
    async with open_tool_world(postgres_dsn, limits=QUICK) as world:
        yield world


@pytest.fixture
def service(world: ToolWorld) -> Service:
    return world.service


def ask(client: openai.OpenAI, way: dict[str, Any], **fields: Any) -> Response:
    """A response that was asked for in one of the ways, once it has ended."""
    made: Any = client.responses.create(**{"model": "echo-2", **way, **fields})
    response = [*made][-1].response if way.get("stream") else made
    for _ in range(POLLS_MAX):
        if response.status not in {"queued", "in_progress"}:
            assert_typed(response)
            return response
        response = client.responses.retrieve(response.id)
    raise AssertionError(f"it is still {response.status}")


def prompt_of(service: Service) -> list[tuple[str, Any]]:
    """Role and content of each message of the last model call, whose pairing of calls and outputs is whole."""
    messages = service.simulator.requests[-1].body["messages"]
    check_prompt(messages)
    return [(message["role"], message["content"]) for message in messages]


def refusal(work: Any) -> tuple[int, Any, Any]:
    """Status, code and parameter of the error that *work* ends in."""
    with pytest.raises(openai.APIStatusError) as caught:
        work()
    return caught.value.status_code, caught.value.code, caught.value.param


# -- previous_response_id


@pytest.mark.slow
@every_way
async def test_a_response_is_shown_all_that_was_said_before(service: Service, way: dict[str, Any]) -> None:
    def work(client: openai.OpenAI) -> list[Response]:
        said = [ask(client, way, input="turn 0", instructions="Only now.")]
        for turn in (1, 2):
            said.append(ask(client, way, input=f"turn {turn}", previous_response_id=said[-1].id))
        return said

    said = await use(service, work)

    answer = expected_text("echo-2")
    assert prompt_of(service) == [
        *(("user", "turn 0"), ("assistant", answer)),
        *(("user", "turn 1"), ("assistant", answer)),
        ("user", "turn 2"),
    ]
    assert [response.previous_response_id for response in said] == [None, said[0].id, said[1].id]
    assert said[1].instructions is None


@pytest.mark.slow
@every_way
async def test_a_conversation_carries_calls_and_outputs_over_its_turns(service: Service, way: dict[str, Any]) -> None:
    tools = [OWN, CUSTOM]

    def work(client: openai.OpenAI) -> None:
        called = ask(client, way, model="tools-2", input="begin", tools=tools)
        first, second = called.output
        assert (first.type, second.type) == ("function_call", "custom_tool_call")
        outputs: Any = [
            {"type": "function_call_output", "call_id": first.call_id, "output": "first output"},
            {"type": "custom_tool_call_output", "call_id": second.call_id, "output": "second output"},
        ]
        answered = ask(client, way, input=outputs, previous_response_id=called.id, tools=tools)
        ask(client, way, input="and now?", previous_response_id=answered.id)
        assert "tools" not in service.simulator.requests[-1].body, "tools are not inherited"

        unanswered = refusal(lambda: ask(client, way, input="hm", previous_response_id=called.id))
        assert unanswered == (400, "invalid_value", "input")
        twice = refusal(lambda: ask(client, way, input=outputs, previous_response_id=answered.id))
        assert twice == (400, "invalid_value", "input")

    await use(service, work)

    roles = [role for role, _ in prompt_of(service)]
    assert roles == ["user", "assistant", "tool", "tool", "assistant", "user"]
    told = told_outputs(service.simulator.requests[-1].body["messages"])
    assert told == [("own", "first output"), ("script", "second output")]


@pytest.mark.slow
async def test_what_the_servers_tools_gave_is_shown_in_later_turns_under_the_models_own_ids(world: ToolWorld) -> None:
    def work(client: openai.OpenAI) -> None:
        found = ask(client, {}, model="tools-1", input="the weather?", tools=[server_tools("get_weather")])
        (call, _) = found.output
        assert call.type == "mcp_call"
        ask(client, {}, input="thanks", previous_response_id=found.id)

    await use(world.service, work)

    during, after = (request.body["messages"] for request in world.service.simulator.requests[-2:])
    assert told_outputs(after) == [("get_weather", WEATHER)]
    assert after[: len(during)] == during, "an upstream's cache of prompts finds what it has seen"


@pytest.mark.slow
async def test_a_response_that_was_cut_short_by_a_limit_is_gone_on_with_as_it_is(service: Service) -> None:
    def work(client: openai.OpenAI) -> None:
        cut = ask(client, {}, model="echo-3-length", input="begin")
        assert cut.status == "incomplete"
        ask(client, {}, input="go on", previous_response_id=cut.id)

    await use(service, work)
    assert prompt_of(service) == [("user", "begin"), ("assistant", expected_text("echo-3")), ("user", "go on")]


@pytest.mark.slow
async def test_of_a_failed_response_the_model_is_shown_what_was_asked_and_no_half_answer(service: Service) -> None:
    def work(client: openai.OpenAI) -> None:
        failed = ask(client, {"stream": True}, model="echo-3-cut-each", input="begin")
        assert (failed.status, failed.output[0].status) == ("failed", "incomplete")
        ask(client, {}, input="again", previous_response_id=failed.id)

    await use(service, work)
    assert prompt_of(service) == [("user", "begin"), ("user", "again")]


@pytest.mark.slow
async def test_a_response_goes_on_with_another_only_once_that_has_ended(service: Service) -> None:
    def begin(client: openai.OpenAI) -> Response:
        waiting = client.responses.create(model="pause-1-2", input="begin", background=True)
        early = refusal(lambda: ask(client, {}, input="too early", previous_response_id=waiting.id))
        assert early == (400, "previous_response_not_ended", "previous_response_id")
        return waiting

    def go_on(client: openai.OpenAI, waiting: Response) -> None:
        ask(client, {}, input="now", previous_response_id=waiting.id)

    waiting = await use(service, begin)
    await cancel(service, waiting.id)
    await use(service, lambda client: go_on(client, waiting))
    assert prompt_of(service) == [("user", "begin"), ("user", "now")]


@pytest.mark.slow
@every_way
async def test_what_is_not_there_is_one_error_and_leaves_no_row(service: Service, way: dict[str, Any]) -> None:
    def work(client: openai.OpenAI) -> None:
        first = ask(client, {}, input="one")
        second = ask(client, {}, input="two", previous_response_id=first.id)
        unstored = client.responses.create(model="echo-2", input="hello", store=False)
        client.responses.delete(first.id)
        names = (first.id, unstored.id, "resp_00000000-0000-4000-8000-000000000000", "resp_x", "x")
        refusals = {
            refusal(lambda name=name: ask(client, way, input="three", previous_response_id=name)) for name in names
        }
        refusals.add(refusal(lambda: ask(client, way, input="three", previous_response_id=second.id)))
        assert refusals == {(400, "previous_response_not_found", "previous_response_id")}

    await use(service, work)
    assert await service.pool.fetchval("select count(*) from requests where request->>'input' like '%three%'") == 0


@pytest.mark.slow
async def test_a_response_whose_history_is_deleted_while_it_waits_fails_and_says_why(postgres_dsn: str) -> None:
    def begin(client: openai.OpenAI) -> list[Response]:
        first = ask(client, {}, input="one")
        running: Any = {"model": "pause-1-2", "background": True}
        holding = client.responses.create(**running, input="holds the only place of its model")
        return [first, holding, client.responses.create(**running, input="two", previous_response_id=first.id)]

    async with open_service(postgres_dsn, {"limits": {**QUICK, "queue_model_concurrency": 1}}) as service:
        first, holding, waiting = await use(service, begin)
        await service.simulator.wait_until(lambda statistics: statistics.open == 1)
        await use(service, lambda client: client.responses.delete(first.id))
        await cancel(service, holding.id)
        ended = await wait_ended(service, waiting.id)

    assert (ended["status"], ended["error"]["code"]) == ("failed", "invalid_prompt")
    assert first.id in ended["error"]["message"]
    assert ended["previous_response_id"] == first.id


# -- item_reference


@pytest.mark.slow
async def test_items_are_referred_to_by_the_ids_that_were_shown_of_them(service: Service) -> None:
    def work(client: openai.OpenAI) -> None:
        called = ask(client, {}, model="tools-1", input="begin", tools=[OWN])
        (call,) = called.output
        (asked,) = client.responses.input_items.list(called.id)
        reference = {"type": "item_reference", "id": call.id}
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "found"}
        items: Any = [{"type": "item_reference", "id": asked.id}, reference, output]
        answered = ask(client, {}, input=items)
        client.responses.delete(called.id)
        again: Any = [
            {"role": "user", "content": "so?"},
            {"id": answered.output[0].id},
            {"role": "user", "content": "and now?"},
        ]
        ask(client, {}, input=again)
        assert prompt_of(service) == [("user", "so?"), ("assistant", expected_text("echo-2")), ("user", "and now?")]
        ask(client, {}, input="and now?", previous_response_id=answered.id)
        shown = client.responses.input_items.list(answered.id, order="asc")
        assert [item.id for item in shown][:2] == [asked.id, call.id], "they are its own now"

    await use(service, work)

    answer = expected_text("echo-2")
    assert prompt_of(service) == [
        *(("user", "begin"), ("assistant", None), ("tool", "found")),
        *(("assistant", answer), ("user", "and now?")),
    ]


@pytest.mark.slow
async def test_a_reference_to_what_is_not_there_names_its_place(service: Service) -> None:
    def work(client: openai.OpenAI) -> None:
        kept = ask(client, {}, input="one")
        unstored = client.responses.create(model="echo-2", input="hello", store=False)
        reference = kept.output[0].id
        for name in (unstored.output[0].id, reference[:-1] + "7", "msg_" + "0" * 33, "msg_x", reference.upper()):
            items: Any = [{"role": "user", "content": "x"}, {"type": "item_reference", "id": name}]
            assert refusal(lambda items=items: ask(client, {}, input=items)) == (400, "item_not_found", "input[1].id")

    await use(service, work)


@pytest.mark.slow
async def test_a_conversation_and_what_is_referred_to_are_bounded(postgres_dsn: str) -> None:
    def work(client: openai.OpenAI) -> None:
        first = ask(client, {}, input="one")
        second = ask(client, {}, input="two", previous_response_id=first.id)
        third = ask(client, {}, input="three", previous_response_id=second.id)
        too_many = refusal(lambda: ask(client, {}, input="four", previous_response_id=third.id))
        assert too_many == (400, "conversation_too_long", "previous_response_id")
        large = ask(client, {}, input="x" * 9000)
        too_large = refusal(lambda: ask(client, {}, input="four", previous_response_id=large.id))
        assert too_large == (400, "conversation_too_long", "previous_response_id")
        assert len(list(client.responses.input_items.list(large.id))) == 1, "what was asked can be read all the same"
        items: Any = [{"type": "item_reference", "id": one.output[0].id} for one in (first, second, third)]
        assert refusal(lambda: ask(client, {}, input=items)) == (400, "invalid_value", "input")
        items = [
            {"type": "item_reference", "id": one.output[0].id} for one in (large, ask(client, {}, input="y" * 9000))
        ]
        assert refusal(lambda: ask(client, {}, input=items))[:2] == (400, "conversation_too_long")

    bounds = {"conversation_turns": 3, "conversation_bytes": 8192, "item_references": 2}
    async with open_service(postgres_dsn, {"limits": bounds}) as service:
        await use(service, work)


# -- lists


@pytest.mark.slow
async def test_input_items_are_listed_with_those_of_the_conversation_and_paginated(service: Service) -> None:
    image: Any = [{"role": "developer", "content": [{"type": "input_text", "text": "be brief"}]}]
    adapter = TypeAdapter[Any](ResponseItem)

    def work(client: openai.OpenAI) -> None:
        called = ask(
            client, {}, model="tools-2", input=[*image, {"role": "user", "content": "begin"}], tools=[OWN, CUSTOM]
        )
        outputs: Any = [
            {"type": "function_call_output", "call_id": called.output[0].call_id, "output": "first"},
            {
                "type": "custom_tool_call_output",
                "call_id": called.output[1].call_id,
                "output": "second",
                "id": "mine_1",
            },
        ]
        answered = ask(client, {}, model="reasoning-2-3", input=outputs, previous_response_id=called.id)
        last = ask(client, {}, model="tools-1", input="and now?", previous_response_id=answered.id,
                   tools=[server_tools("get_weather")])  # fmt: skip
        final = ask(client, {}, input="bye", previous_response_id=last.id)

        whole = list(client.responses.input_items.list(final.id, order="asc", limit=100))
        kinds = [item.type for item in whole]
        assert kinds == [
            *("message", "message", "function_call", "custom_tool_call"),
            *("function_call_output", "custom_tool_call_output", "reasoning", "message"),
            *("message", "mcp_call", "message", "message"),
        ]
        assert [item.id for item in whole][2:4] == [item.id for item in called.output]
        assert whole[5].id == "mine_1"
        assert len({item.id for item in whole}) == len(whole)
        for item in whole:
            assert_typed(item)
            adapter.validate_python(item.to_dict())
        for limit in (1, 2, 5, 11, 12, 13):
            asked = [client.responses.input_items.list(final.id, order=order, limit=limit) for order in ("asc", "desc")]
            assert [[item.id for item in page] for page in asked] == [
                [item.id for item in whole], [item.id for item in whole][::-1],
            ]  # fmt: skip
        own = client.responses.input_items.list(called.id)
        assert [item.id for item in own] == [item.id for item in whole[:2]][::-1]
        assert refusal(lambda: client.responses.input_items.list(own.data[0].id)) == (404, "not_found", None)
        client.responses.delete(answered.id)
        left = [item.id for item in client.responses.input_items.list(final.id, order="asc")]
        assert left == [item.id for item in whole[8:]], "what is left"

    await use(service, work)


@pytest.mark.slow
async def test_a_page_says_where_it_begins_and_ends_and_refuses_what_is_no_page(service: Service) -> None:
    answer = await service.client.post("/v1/responses", json={"model": "echo-2", "input": "hello"})
    name = answer.json()["id"]
    for url in (f"/v1/responses/{name}/input_items", "/v1/responses"):
        shown = (await service.client.get(url, params={"include[]": "reasoning.encrypted_content"})).json()
        (entry,) = shown["data"]
        assert shown == {
            "object": "list", "data": [entry], "has_more": False, "first_id": entry["id"], "last_id": entry["id"],
        }  # fmt: skip
        behind = (await service.client.get(url, params={"after": entry["id"]})).json()
        assert behind == {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}
        for param, values in {
            "limit": ("0", "101", "x", "-1", "1.5", "9" * 30), "order": ("up", "ASC"), "after": ("x", name[:-1]),
            "before": ("x",),
        }.items():  # fmt: skip
            for value in values:
                refused = await service.client.get(url, params={param: value})
                assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), (url, param, value)


@pytest.mark.slow
async def test_responses_are_listed_as_get_shows_them(service: Service) -> None:
    def work(client: openai.OpenAI) -> list[str]:
        return [
            *(ask(client, way, input="hello").id for way in WAYS.values()),
            ask(client, {"stream": True}, model="echo-2-cut-each", input="x").id,
            client.responses.create(model="pause-1-2", input="waits", background=True).id,
        ]

    made = await use(service, work)
    seen: list[Any] = []
    after: dict[str, str] = {}
    while True:
        page = (await service.client.get("/v1/responses", params={"limit": 3, **after})).json()
        seen += page["data"]
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}
    assert [one["id"] for one in seen] == made[::-1]
    for one in seen[1:]:
        assert one == (await service.client.get(f"/v1/responses/{one['id']}")).json()
    await cancel(service, made[-1])
