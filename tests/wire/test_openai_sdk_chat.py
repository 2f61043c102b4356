"""The official OpenAI SDK's chat completions on the flex tier: what its users do, and what its types demand."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tests.wire.sdk import use

from dwctl_trio.testing.service import Service, open_service
from dwctl_trio.testing.simulator_reply import CANARY
from dwctl_trio.testing.simulator_script import expected_text

HELLO: Any = [{"role": "user", "content": "hello there"}]


@pytest.fixture
async def service(postgres_dsn: str) -> AsyncIterator[Service]:
    async with open_service(postgres_dsn, {"limits": {"queue_attempts": 1, "queue_retry_s": 0.05}}) as service:
        yield service


@pytest.mark.slow
async def test_a_completion_is_typed_and_metered(service: Service) -> None:
    def work(client: openai.OpenAI) -> ChatCompletion:
        return client.chat.completions.create(model="echo-5", messages=HELLO, service_tier="flex", temperature=0.5)

    completion = await use(service, work)

    ChatCompletion.model_validate(completion.to_dict())
    assert completion.choices[0].message.content == expected_text("echo-5")
    assert completion.usage.completion_tokens == 5
    (asked,) = service.simulator.requests
    assert (asked.body["temperature"], "service_tier" in asked.body) == (0.5, False)
    counts = service.simulator.statistics()
    (record,) = await service.pool.fetch("select * from usage_records")
    assert (record["input_tokens"], record["output_tokens"]) == (counts.prompt_tokens, 5)
    assert (record["service_tier"], record["model"], record["output_price_per_million"]) == ("flex", "echo-5", 2)


@pytest.mark.slow
@pytest.mark.parametrize("include_usage", [True, False])
async def test_a_stream_is_typed_and_metered_whether_the_usage_is_shown_or_not(
    service: Service, include_usage: bool
) -> None:
    def work(client: openai.OpenAI) -> list[ChatCompletionChunk]:
        return list(
            client.chat.completions.create(
                model="echo-5-each",
                messages=HELLO,
                service_tier="flex",
                stream=True,
                stream_options={"include_usage": include_usage},
            )
        )

    chunks = await use(service, work)

    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.to_dict())
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert said == expected_text("echo-5")
    shown = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert shown == ([5] if include_usage else [])
    counts = service.simulator.statistics()
    (record,) = await service.pool.fetch("select * from usage_records")
    assert (record["input_tokens"], record["output_tokens"]) == (counts.prompt_tokens, 5)


@pytest.mark.slow
async def test_tool_calls_come_through_in_both_ways(service: Service) -> None:
    tool: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}

    def work(client: openai.OpenAI) -> tuple[ChatCompletion, ChatCompletion]:
        asked: Any = {"model": "tools-2", "messages": HELLO, "tools": [tool], "service_tier": "flex"}
        whole = client.chat.completions.create(**asked)
        with client.chat.completions.stream(**asked) as stream:
            stream.until_done()
            return whole, stream.get_final_completion()

    for completion in await use(service, work):
        calls = completion.choices[0].message.tool_calls or []
        assert [call.function.name for call in calls] == ["look", "look"]
        assert completion.choices[0].finish_reason == "tool_calls"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "kind", "status"),
    [
        ("error-400", openai.BadRequestError, 400),
        ("error-404", openai.NotFoundError, 404),
        ("error-503", openai.InternalServerError, 502),
        ("echo-3-midstream", openai.InternalServerError, 502),
    ],
)
async def test_a_failure_is_the_sdks_own_error_and_nothing_of_the_providers(
    service: Service, model: str, kind: type[openai.APIStatusError], status: int
) -> None:
    def work(client: openai.OpenAI) -> openai.APIStatusError:
        with pytest.raises(kind) as caught:
            client.chat.completions.create(model=model, messages=HELLO, service_tier="flex")
        return caught.value

    error = await use(service, work)

    assert error.status_code == status
    assert CANARY not in error.response.text
    assert set(error.body) == {"message", "type", "param", "code"}  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["error-503", "echo-3-each-cut", "echo-3-each-midstream", "error-400"])
async def test_a_stream_that_fails_raises_in_the_sdk(service: Service, model: str) -> None:
    def work(client: openai.OpenAI) -> tuple[str, openai.APIError]:
        said = ""
        stream = client.chat.completions.create(model=model, messages=HELLO, service_tier="flex", stream=True)
        with pytest.raises(openai.APIError) as caught:
            for chunk in stream:
                said += chunk.choices[0].delta.content or ""
        return said, caught.value

    said, error = await use(service, work)

    assert said == (expected_text("echo-3") if model.startswith("echo") else "")
    assert CANARY not in f"{error.message} {error.body}"
    assert "model's server" in error.message


@pytest.mark.slow
async def test_what_fails_for_a_moment_is_tried_again_without_the_client_noticing(postgres_dsn: str) -> None:
    def work(client: openai.OpenAI) -> str:
        asked: Any = {"messages": HELLO, "service_tier": "flex"}
        whole = client.chat.completions.create(model="echo-3-flaky-1", **asked)
        chunks = client.chat.completions.create(model="echo-4-flaky-2", stream=True, **asked)
        return f"{whole.choices[0].message.content}|{''.join(chunk.choices[0].delta.content or '' for chunk in chunks)}"

    async with open_service(postgres_dsn, {"limits": {"queue_retry_s": 0.05}}) as service:
        assert await use(service, work) == f"{expected_text('echo-3')}|{expected_text('echo-4')}"
        assert service.simulator.statistics().total == 5
        assert await service.pool.fetchval("select count(*) from usage_records where error_code is not null") == 3
        assert await service.pool.fetchval("select sum(output_tokens) from usage_records") == 7
