"""The official OpenAI SDK against the running server: what its users do, and what its types demand."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx
import openai
import pytest
import trio
from openai.types.responses import Response
from tests.wire.sdk import SDK_S, assert_typed, use

from dwctl_trio.postgres.keys import PostgresKeyStore
from dwctl_trio.testing.service import Service, open_service
from dwctl_trio.testing.simulator_script import expected_text

MODELS = (
    "echo-3", "echo-3-each", "reasoning-2-3", "refusal-2", "echo-3-cut", "echo-2-length", "echo-2-filter", "tools-2",
    "echo-3-nousage", "echo-3-unicode", "echo-0",
)  # fmt: skip


@pytest.fixture
async def service(postgres_dsn: str) -> AsyncIterator[Service]:
    async with open_service(postgres_dsn) as service:
        yield service


@pytest.mark.slow
async def test_a_created_response_is_typed_and_equals_the_retrieved_one(service: Service) -> None:
    def work(client: openai.OpenAI) -> tuple[Response, Response]:
        created = client.responses.create(model="echo-5", input="hello")
        return created, client.responses.retrieve(created.id)

    created, retrieved = await use(service, work)

    assert_typed(created)
    assert (created.status, created.output_text) == ("completed", expected_text("echo-5"))
    assert created.usage.total_tokens == created.usage.input_tokens + 5
    assert retrieved.model_dump() == created.model_dump()


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
async def test_every_event_is_one_that_the_types_of_the_sdk_know(service: Service, model: str) -> None:
    def work(client: openai.OpenAI) -> tuple[list[Any], Response]:
        events = list(client.responses.create(model=model, input="hello", stream=True))
        return events, client.responses.retrieve(events[-1].response.id)

    events, retrieved = await use(service, work)

    for event in events:
        assert_typed(event)
        assert type(event).__name__ != "BaseModel", event.type
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", f"response.{events[-1].response.status}")
    assert retrieved.model_dump() == events[-1].response.model_dump()


@pytest.mark.slow
async def test_the_helper_that_accumulates_a_stream_ends_with_the_retrieved_response(service: Service) -> None:
    def work(client: openai.OpenAI) -> tuple[str, Response, Response]:
        with client.responses.stream(model="echo-20-each", input="hello") as stream:
            said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            final = stream.get_final_response()
        return said, final, client.responses.retrieve(final.id)

    said, final, retrieved = await use(service, work)

    assert said == final.output_text == retrieved.output_text == expected_text("echo-20")
    known = retrieved.model_dump(exclude={"output"})
    assert final.model_dump(exclude={"output"}) == known
    assert [item.to_dict() for item in retrieved.output] == [_without_parsed(item) for item in final.output]


def _without_parsed(item: Any) -> dict[str, Any]:
    """An item of the accumulating helper, without the member that it adds itself."""
    shown = dict(item.to_dict())
    shown["content"] = [{k: v for k, v in part.items() if k != "parsed"} for part in shown["content"]]
    return shown


@pytest.mark.slow
async def test_keep_alive_comments_ids_and_done_do_not_disturb_the_sdk(postgres_dsn: str) -> None:
    asked = {"model": "pause-3-9", "input": "hello key:quiet", "stream": True}
    async with (
        open_service(postgres_dsn, {"limits": {"keep_alive_s": 0.05}}) as service,
        trio.open_nursery() as nursery,
    ):

        async def resume_after_some_comments() -> None:
            await service.simulator.wait_until(lambda counts: counts.paused == 1)
            with trio.move_on_after(0.3):  # several comments, in the middle of the stream
                await trio.sleep_forever()
            service.simulator.resume("quiet")

        nursery.start_soon(resume_after_some_comments)
        events = await use(service, lambda client: list(client.responses.create(**asked)))

    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == expected_text("echo-9")


async def test_a_deleted_response_is_not_found(service: Service) -> None:
    def work(client: openai.OpenAI) -> None:
        created = client.responses.create(model="echo-1", input="hello")
        client.responses.delete(created.id)
        with pytest.raises(openai.NotFoundError) as caught:
            client.responses.retrieve(created.id)
        assert caught.value.request_id
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(created.id)

    await use(service, work)


@pytest.mark.slow
async def test_errors_have_the_classes_that_users_catch(postgres_dsn: str) -> None:
    models = [{"name": name, "upstream": "simulator"} for name in ("error-429-3", "error-500", "error-400", "hang")]
    limits = {"upstream_first_byte_s": 0.1}
    async with open_service(postgres_dsn, {"models": models, "limits": limits}) as service:

        def work(client: openai.OpenAI) -> None:
            for stream in (False, True):
                for model, kind, status, code in (
                    ("unknown", openai.NotFoundError, 404, "model_not_found"),
                    ("error-400", openai.BadRequestError, 400, "invalid_prompt"),
                    ("error-429-3", openai.RateLimitError, 429, "rate_limit_exceeded"),
                    ("error-500", openai.InternalServerError, 502, "upstream_error"),
                    ("hang", openai.InternalServerError, 504, "upstream_error"),
                ):
                    with pytest.raises(kind) as caught:
                        client.responses.create(model=model, input="hello", stream=stream)
                    assert (caught.value.status_code, caught.value.code) == (status, code), model
                    assert caught.value.request_id
                    assert caught.value.body["message"]
                    assert caught.value.response.headers.get("retry-after") == ("3" if status == 429 else None)
            with pytest.raises(openai.BadRequestError) as refused:
                client.responses.create(model="error-500", input="hello", temperature=9)
            assert (refused.value.param, refused.value.type) == ("temperature", "invalid_request_error")

        await use(service, work)


@pytest.mark.slow
async def test_a_wrong_key_is_an_authentication_error_and_a_right_one_works(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"auth": {"mode": "keys"}}) as service:
        key = await PostgresKeyStore(service.pool).create_key("alice")

        def refused(client: openai.OpenAI) -> None:
            for act in (
                lambda: client.responses.create(model="echo-1", input="hello"),
                lambda: client.responses.create(model="echo-1", input="hello", stream=True),
                lambda: client.responses.retrieve("resp_00000000-0000-0000-0000-000000000000"),
                client.models.list,
            ):
                with pytest.raises(openai.AuthenticationError) as caught:
                    act()
                assert caught.value.code == "invalid_api_key"

        await use(service, refused, api_key="sk-dwctl-wrong")
        said = await use(service, lambda sdk: sdk.responses.create(model="echo-1", input="x").output_text, api_key=key)
    assert said == "word0 "


@pytest.mark.slow
async def test_a_retry_of_the_sdk_gets_through_where_the_upstream_recovers(service: Service) -> None:
    def work(client: openai.OpenAI) -> Response:
        patient = client.with_options(max_retries=2)
        return patient.responses.create(model="echo-2-flaky-1", input="hello key:flaky")

    response = await use(service, work)

    assert response.output_text == expected_text("echo-2")
    assert service.simulator.statistics().total == 2


@pytest.mark.slow
async def test_what_was_asked_is_echoed_and_passed_on(service: Service) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    form = {"type": "json_schema", "name": "answer", "description": "a", "schema": schema, "strict": True}
    asked: dict[str, Any] = {
        "model": "echo-2",
        "instructions": "Be brief.",
        "input": [{"role": "developer", "content": "x"}, {"role": "user", "content": [_TEXT]}],
        "metadata": {"team": "blue", "empty": ""},
        "temperature": 0.25,
        "top_p": 0.5,
        "max_output_tokens": 64,
        "text": {"format": form, "verbosity": "low"},
        "reasoning": {"effort": "low"},
        "user": "u1",
        "safety_identifier": "s1",
        "prompt_cache_key": "p1",
        "parallel_tool_calls": False,
        "store": True,
    }

    response = await use(service, lambda client: client.responses.create(**asked))

    assert_typed(response)
    shown = response.to_dict()
    for name in asked.keys() - {"input", "reasoning"}:
        assert shown[name] == asked[name], name
    assert shown["reasoning"]["effort"] == "low"
    sent = service.simulator.requests[-1].body
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (sent["temperature"], sent["top_p"]) == (0.25, 0.5)
    assert sent["response_format"]["json_schema"]["schema"] == schema
    assert 64 in {sent.get("max_tokens"), sent.get("max_completion_tokens")}


@pytest.mark.slow
async def test_the_models_are_listed(postgres_dsn: str) -> None:
    models = [{"name": name, "upstream": "simulator"} for name in ("gpt-4o", "org/small")]
    async with open_service(postgres_dsn, {"models": models}) as service:

        def work(client: openai.OpenAI) -> tuple[list[Any], Any]:
            return list(client.models.list()), client.models.retrieve("org/small")

        listed, one = await use(service, work)

    for model in (*listed, one):
        assert_typed(model)
    assert [model.id for model in listed] == ["gpt-4o", "org/small"]
    assert one.id == "org/small"


@pytest.mark.slow
async def test_the_async_sdk_streams_and_leaves_under_asyncio(service: Service) -> None:
    async def work() -> tuple[list[Any], list[Response], str]:
        async with (
            httpx.AsyncClient(trust_env=False) as http,
            openai.AsyncOpenAI(
                base_url=f"{service.url}/v1", api_key="unused", max_retries=0, timeout=SDK_S, http_client=http
            ) as client,
        ):
            events = [event async for event in await client.responses.create(model="echo-9", input="x", stream=True)]
            many = await asyncio.gather(*(client.responses.create(model="echo-4", input="x") for _ in range(10)))
            async with client.responses.stream(model="echo-40-pause-2", input="x key:left") as stream:
                async for event in stream:
                    if event.type == "response.output_text.delta":
                        left = event.item_id
                        break
        return events, many, left

    with trio.fail_after(SDK_S):
        events, many, left = await trio.to_thread.run_sync(partial(asyncio.run, work()))
        await service.simulator.wait_aborted("left")

    for event in events:
        assert_typed(event)
    assert events[-1].response.output_text == expected_text("echo-9")
    assert [response.output_text for response in many] == [expected_text("echo-4")] * 10
    assert left.startswith("msg_")


_TEXT = {"type": "input_text", "text": "hello"}
