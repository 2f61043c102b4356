"""LangChain's ``ChatOpenAI`` on the Responses API against the running server: what its users do, unchanged."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import httpx
import pydantic
import pytest
import trio
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from tests.http.server_tools import WEATHER, ToolWorld, check_prompt, open_tool_world, server_tools, told_outputs

from dwctl_trio.testing.simulator_script import expected_text

LANGCHAIN_S = 20.0
"""Bound of LangChain's own waits."""
STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["invoked", "streamed"])
OWN_OUTPUT = "the client looked at {}"


class Weather(pydantic.BaseModel):
    """What a city's weather is."""

    city: str
    celsius: int


@tool
def own(city: str) -> str:
    """Look at a city."""
    return OWN_OUTPUT.format(city)


@pytest.fixture
async def world(postgres_dsn: str) -> AsyncIterator[ToolWorld]:
    async with open_tool_world(postgres_dsn) as world:
        yield world


class MakeChat(Protocol):
    """What makes a chat model by its name."""

    def __call__(self, model: str, **options: Any) -> ChatOpenAI: ...


async def use(world: ToolWorld, work: Callable[[MakeChat], Any]) -> Any:
    """Do *work* in a thread, as LangChain's users do."""

    def run() -> Any:
        with httpx.Client(trust_env=False) as http:

            def make_chat(model: str, **options: Any) -> ChatOpenAI:
                where: dict[str, Any] = {"base_url": f"{world.service.url}/v1", "api_key": "unused"}
                bounds: dict[str, Any] = {"max_retries": 0, "timeout": LANGCHAIN_S}
                return ChatOpenAI(model=model, use_responses_api=True, http_client=http, **where, **bounds, **options)

            return work(make_chat)

    with trio.fail_after(LANGCHAIN_S):
        said = await trio.to_thread.run_sync(run, abandon_on_cancel=True)
    for prompt in world.prompts():
        check_prompt(prompt)
    return said


def ask(model: Any, messages: Any, *, streamed: bool) -> Any:
    """The model's answer, whole or added up from its chunks."""
    if not streamed:
        return model.invoke(messages)
    chunks = list(model.stream(messages))
    assert len(chunks) > 2
    return sum(chunks[1:], start=chunks[0])


@pytest.mark.slow
@STREAMED
async def test_an_answer_comes_with_its_text_its_id_and_its_usage(world: ToolWorld, streamed: bool) -> None:
    messages = [SystemMessage("Be brief."), HumanMessage("hello")]

    said = await use(
        world,
        lambda chat: ask(chat("echo-5-each", temperature=0.25, max_completion_tokens=64), messages, streamed=streamed),
    )

    assert said.text == expected_text("echo-5")
    assert said.response_metadata["id"].startswith("resp_")
    assert said.response_metadata["status"] == "completed"
    assert said.usage_metadata["output_tokens"] == 5
    sent = world.service.simulator.requests[-1].body
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    assert (sent["temperature"], sent["max_tokens"]) == (0.25, 64)


@pytest.mark.slow
@STREAMED
async def test_a_bound_tool_is_called_and_its_output_read(world: ToolWorld, streamed: bool) -> None:
    def work(chat: MakeChat) -> tuple[Any, Any]:
        model = chat("tools-1-then-echo-3").bind_tools([own], strict=True)
        called = ask(model, [HumanMessage("hello")], streamed=streamed)
        answers = [own.invoke(call) for call in called.tool_calls]
        return called, ask(model, [HumanMessage("hello"), called, *answers], streamed=streamed)

    called, said = await use(world, work)

    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("own", {"city": "word0"})]
    assert said.text == expected_text("echo-3")
    assert told_outputs(world.prompts()[-1]) == [("own", OWN_OUTPUT.format("word0"))]


@pytest.mark.slow
@STREAMED
async def test_a_tool_of_the_servers_is_not_the_clients_to_run(world: ToolWorld, streamed: bool) -> None:
    def work(chat: MakeChat) -> tuple[Any, Any]:
        model = chat("tools-2-then-echo-3").bind_tools([server_tools("get_weather"), own])
        called = ask(model, [HumanMessage("hello")], streamed=streamed)
        answers = [own.invoke(call) for call in called.tool_calls]
        return called, ask(model, [HumanMessage("hello"), called, *answers], streamed=streamed)

    called, said = await use(world, work)

    assert [call["name"] for call in called.tool_calls] == ["own"]
    assert world.calls() == {"/weather": 1}
    told = told_outputs(world.prompts()[-1])  # of a stream, LangChain takes up the server's call when it is done
    assert sorted(told) == [("get_weather", WEATHER), ("own", OWN_OUTPUT.format("word1"))]
    assert said.text == expected_text("echo-3")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
async def test_structured_output_is_an_object_of_the_class(world: ToolWorld, method: str) -> None:
    parrot = Weather(city="Oslo", celsius=-3)
    expected = {"function_calling": Weather(city="word0", celsius=0)}.get(method, parrot)

    def work(chat: MakeChat) -> Any:
        model = chat("tools-1" if method == "function_calling" else "parrot")
        return model.with_structured_output(Weather, method=method).invoke(parrot.model_dump_json())

    assert await use(world, work) == expected
    sent = world.service.simulator.requests[-1].body
    if method == "function_calling":
        assert sent["tool_choice"] == {"type": "function", "function": {"name": "Weather"}}
    else:
        assert sent["response_format"]["type"] == {"json_mode": "json_object"}.get(method, method)


@pytest.mark.slow
async def test_structured_output_is_streamed(world: ToolWorld) -> None:
    parrot = Weather(city="Oslo", celsius=-3)

    def work(chat: MakeChat) -> list[Any]:
        model = chat("parrot").with_structured_output(Weather, method="json_schema")
        return list(model.stream(parrot.model_dump_json()))

    assert (await use(world, work))[-1] == parrot


@pytest.mark.slow
@STREAMED
async def test_reasoning_is_taken_and_given_back(world: ToolWorld, streamed: bool) -> None:
    def work(chat: MakeChat) -> list[tuple[Any, Any]]:
        rounds = []
        for version in ("v0", "responses/v1", "v1"):
            model = chat("reasoning-2-3", reasoning={"effort": "low", "summary": "auto"}, output_version=version)
            first = ask(model, [HumanMessage("hello")], streamed=streamed)
            again = [HumanMessage("hello"), first, HumanMessage("again")]
            rounds.append((first, ask(model, again, streamed=streamed)))
        return rounds

    for first, second in await use(world, work):
        assert first.text == second.text == expected_text("echo-3")
        assert first.usage_metadata["output_token_details"]["reasoning"] == 2
        assert "'type': 'reasoning'" in str(first)
        assert ("'text': 'word0 word1 '" in str(first)) != streamed, "of a stream, LangChain reads summaries alone"
    assert [message["role"] for message in world.prompts()[-1]] == ["user", "assistant", "user"]


@pytest.mark.slow
async def test_calls_run_side_by_side_under_asyncio(world: ToolWorld) -> None:
    async def work() -> tuple[list[Any], str]:
        async with httpx.AsyncClient(trust_env=False) as http:
            where: dict[str, Any] = {"base_url": f"{world.service.url}/v1", "api_key": "unused", "max_retries": 0}
            model = ChatOpenAI(model="echo-4-each", use_responses_api=True, http_async_client=http, **where)
            said = await asyncio.gather(*(model.ainvoke("hello") for _ in range(10)))
            return said, "".join([chunk.text async for chunk in model.astream("hello")])

    with trio.fail_after(LANGCHAIN_S):
        said, streamed = await trio.to_thread.run_sync(asyncio.run, work())

    assert {message.text for message in said} | {streamed} == {expected_text("echo-4")}
    assert len({message.response_metadata["id"] for message in said}) == 10


@pytest.mark.slow
@STREAMED
async def test_the_previous_response_is_named_instead_of_sent_again(world: ToolWorld, streamed: bool) -> None:
    def work(chat: MakeChat) -> tuple[Any, Any]:
        model = chat("echo-3-each", use_previous_response_id=True)
        first = ask(model, [HumanMessage("hello")], streamed=streamed)
        return first, ask(model, [HumanMessage("hello"), first, HumanMessage("again")], streamed=streamed)

    first, second = await use(world, work)

    said = [(message["role"], message["content"]) for message in world.prompts()[-1]]
    assert said == [("user", "hello"), ("assistant", first.text), ("user", "again")]
    assert second.text == expected_text("echo-3")


@pytest.mark.slow
async def test_outputs_of_tools_go_to_the_previous_response(world: ToolWorld) -> None:
    def work(chat: MakeChat) -> Any:
        model = chat("tools-2-then-echo-3", use_previous_response_id=True)
        bound = model.bind_tools([server_tools("get_weather"), own])
        messages: list[Any] = [HumanMessage("hello")]
        messages.append(bound.invoke(messages))
        messages += [own.invoke(call) for call in messages[-1].tool_calls]
        return bound.invoke(messages)

    said = await use(world, work)

    assert world.calls() == {"/weather": 1}
    assert told_outputs(world.prompts()[-1]) == [("get_weather", WEATHER), ("own", OWN_OUTPUT.format("word1"))]
    assert said.text == expected_text("echo-3")
