"""The official OpenAI SDK's chat completions, completions, embeddings and token counts, at once: what its users do."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import openai
import pydantic
import pytest
import trio
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tests.wire.sdk import SDK_S, use

from dwctl_trio.testing.service import Service, open_service
from dwctl_trio.testing.simulator_reply import CANARY
from dwctl_trio.testing.simulator_script import expected_text
from dwctl_trio.testing.simulator_text import vector

HELLO: Any = [{"role": "user", "content": "hello there"}]
USED = "select sum(input_tokens)::int, sum(output_tokens)::int, count(*)::int from usage_records"


class Point(pydantic.BaseModel):
    """What a model is made to say."""

    x: int
    y: int


@pytest.fixture
async def service(postgres_dsn: str) -> AsyncIterator[Service]:
    async with open_service(postgres_dsn) as service:
        yield service


async def use_async(service: Service, work: Callable[[openai.AsyncOpenAI], Awaitable[Any]]) -> Any:
    """Do *work* with the SDK's async client under asyncio, in a thread."""

    async def run() -> Any:
        async with (
            httpx.AsyncClient(trust_env=False) as http,
            openai.AsyncOpenAI(
                base_url=f"{service.url}/v1", api_key="unused", max_retries=0, timeout=SDK_S, http_client=http
            ) as client,
        ):
            return await work(client)

    with trio.fail_after(SDK_S):
        return await trio.to_thread.run_sync(lambda: asyncio.run(run()), abandon_on_cancel=True)


async def assert_used(service: Service, *, calls: int) -> None:
    """The records hold what the upstream says that it has told, call for call."""
    counts = await service.simulator.wait_idle()
    used = await service.pool.fetchrow(USED)
    assert tuple(used) == (counts.prompt_tokens, counts.completion_tokens_reported, calls)
    assert counts.total == calls


@pytest.mark.slow
async def test_chat_completions_come_whole_and_typed_with_what_was_asked_for(service: Service) -> None:
    tool: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}

    def work(client: openai.OpenAI) -> tuple[ChatCompletion, ChatCompletion]:
        plain = client.chat.completions.create(
            model="echo-5", messages=HELLO, temperature=0.5, n=1, logprobs=True, top_logprobs=2, seed=7, stop=["x"]
        )
        return plain, client.chat.completions.create(model="tools-2", messages=HELLO, tools=[tool])

    plain, called = await use(service, work)

    for completion in (plain, called):
        ChatCompletion.model_validate(completion.to_dict())
    assert (plain.choices[0].message.content, plain.model) == (expected_text("echo-5"), "echo-5")
    assert [call.function.name for call in called.choices[0].message.tool_calls] == ["look", "look"]
    asked, _ = (received.body for received in service.simulator.requests)
    assert {name: asked[name] for name in ("temperature", "n", "logprobs", "top_logprobs", "seed", "stop")} == {
        "temperature": 0.5,
        "n": 1,
        "logprobs": True,
        "top_logprobs": 2,
        "seed": 7,
        "stop": ["x"],
    }
    await assert_used(service, calls=2)


@pytest.mark.slow
async def test_chat_completions_stream_chunk_by_chunk_through_every_helper(service: Service) -> None:
    def work(client: openai.OpenAI) -> tuple[list[ChatCompletionChunk], ChatCompletion, ChatCompletion]:
        asked: Any = {"model": "echo-5-each", "messages": HELLO}
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        with client.chat.completions.stream(**asked) as stream:
            stream.until_done()
            streamed = stream.get_final_completion()
        said = '{"x": 1, "y": 2}'
        parsed = client.chat.completions.parse(
            model="parrot", messages=[{"role": "user", "content": said}], response_format=Point
        )
        return chunks, streamed, parsed

    chunks, streamed, parsed = await use(service, work)

    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.to_dict())
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert said == streamed.choices[0].message.content == expected_text("echo-5")
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 5)
    assert parsed.choices[0].message.parsed == Point(x=1, y=2)
    assert service.simulator.requests[-1].body["response_format"]["json_schema"]["name"] == "Point"
    await assert_used(service, calls=3)


@pytest.mark.slow
async def test_completions_and_embeddings_are_typed(service: Service) -> None:
    def work(client: openai.OpenAI) -> tuple[Completion, list[Completion], list[CreateEmbeddingResponse]]:
        whole = client.completions.create(model="echo-5", prompt="one two", max_tokens=9)
        chunks = list(client.completions.create(model="echo-5-each", prompt="one two", stream=True))
        texts = ["hello there", "you"]
        return (
            whole,
            chunks,
            [
                client.embeddings.create(model="embedder", input=texts),
                client.embeddings.create(model="embedder", input=texts, encoding_format="float", dimensions=3),
            ],
        )

    whole, chunks, embedded = await use(service, work)

    for completion in (whole, chunks[-1]):  # before the last, `finish_reason` is null, which the SDK's type denies
        Completion.model_validate(completion.to_dict())
    assert whole.choices[0].text == "".join(chunk.choices[0].text for chunk in chunks) == expected_text("echo-5")
    for found, dimensions in zip(embedded, (8, 3), strict=True):
        CreateEmbeddingResponse.model_validate(found.to_dict())
        assert [entry.embedding for entry in found.data] == [
            vector("hello there", dimensions),
            vector("you", dimensions),
        ]
        assert (found.model, found.usage.prompt_tokens) == ("embedder", 3)
    assert service.simulator.requests[-2].body["encoding_format"] == "base64", "which the SDK asks for by itself"
    await assert_used(service, calls=4)


@pytest.mark.slow
async def test_tokens_are_counted(service: Service) -> None:
    def work(client: openai.OpenAI) -> tuple[Any, Any]:
        tool: Any = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}
        asked: Any = {"model": "echo-9", "input": "one two three", "instructions": "be kind", "tools": [tool]}
        return client.responses.input_tokens.count(**asked), client.responses.create(**asked)

    counted, created = await use(service, work)

    type(counted).model_validate(counted.to_dict())
    assert (counted.object, counted.input_tokens) == ("response.input_tokens", created.usage.input_tokens)
    await assert_used(service, calls=2)


@pytest.mark.slow
async def test_the_async_client_does_the_same(service: Service) -> None:
    async def work(client: openai.AsyncOpenAI) -> list[Any]:
        whole = await client.chat.completions.create(model="echo-4", messages=HELLO)
        chunks = [chunk async for chunk in await client.completions.create(model="echo-4", prompt="x", stream=True)]
        async with client.chat.completions.stream(model="echo-4-each", messages=HELLO) as stream:
            streamed = await stream.get_final_completion()
        embedded = await client.embeddings.create(model="embedder", input="hello there")
        counted = await client.responses.input_tokens.count(model="echo-4", input="hello there")
        many = await asyncio.gather(
            *(client.chat.completions.create(model="echo-2", messages=HELLO) for _ in range(10))
        )
        return [whole, chunks, streamed, embedded, counted, many]

    whole, chunks, streamed, embedded, counted, many = await use_async(service, work)

    assert whole.choices[0].message.content == streamed.choices[0].message.content == expected_text("echo-4")
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected_text("echo-4")
    assert (embedded.data[0].embedding, counted.input_tokens) == (vector("hello there"), 2)
    assert {completion.choices[0].message.content for completion in many} == {expected_text("echo-2")}
    await assert_used(service, calls=15)


@pytest.mark.slow
async def test_a_client_of_the_sdk_that_leaves_a_stream_lets_the_upstream_go(service: Service) -> None:
    async def work(client: openai.AsyncOpenAI) -> str:
        asked: Any = [{"role": "user", "content": "hello key:left"}]
        async with await client.chat.completions.create(model="echo-40-pause-2", messages=asked, stream=True) as stream:
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    return str(chunk.choices[0].delta.content)
        raise AssertionError("it said nothing")

    assert await use_async(service, work) == "word0 "
    with trio.fail_after(SDK_S):
        await service.simulator.wait_aborted("left")


@pytest.mark.slow
async def test_a_failure_is_the_sdks_own_error_and_nothing_of_the_providers(service: Service) -> None:
    expected = [("error-400", openai.BadRequestError), ("error-404", openai.NotFoundError)]
    expected += [("error-429-2", openai.RateLimitError), ("error-500", openai.InternalServerError)]

    def work(client: openai.OpenAI) -> list[openai.APIStatusError]:
        errors = []
        for model, kind in expected:
            calls: list[Callable[[], Any]] = [
                lambda model=model: client.chat.completions.create(model=model, messages=HELLO, stream=True),
                lambda model=model: client.completions.create(model=model, prompt="x"),
                lambda model=model: client.embeddings.create(model=model, input="x"),
                lambda model=model: client.responses.input_tokens.count(model=model, input="x"),
            ]
            for call in calls:
                with pytest.raises(kind) as caught:
                    call()
                errors.append(caught.value)
        return errors

    errors = await use(service, work)

    assert len(errors) == 16
    for error in errors:
        assert set(error.body) == {"message", "type", "param", "code"}
        assert CANARY not in error.response.text
    assert [error.response.headers["retry-after"] for error in errors[8:12]] == ["2"] * 4


@pytest.mark.slow
async def test_a_stream_that_breaks_off_raises_in_the_sdk_behind_what_was_said(service: Service) -> None:
    def work(client: openai.OpenAI) -> list[tuple[str, openai.APIError]]:
        found = []
        for fault in ("cut", "midstream", "garbage"):
            said = ""
            stream = client.chat.completions.create(model=f"echo-3-each-{fault}", messages=HELLO, stream=True)
            with pytest.raises(openai.APIError) as caught:
                for chunk in stream:
                    said += chunk.choices[0].delta.content or ""
            found.append((said, caught.value))
        text = client.completions.create(model="echo-3-each-cut", prompt="x", stream=True)
        with pytest.raises(openai.APIError) as caught:
            said = "".join(chunk.choices[0].text for chunk in text)
        return [*found, (expected_text("echo-3"), caught.value)]

    for said, error in await use(service, work):
        assert (said, type(error)) == (expected_text("echo-3"), openai.APIError)
        assert "model's server" in error.message
        assert CANARY not in f"{error.message} {json.dumps(error.body)}"
