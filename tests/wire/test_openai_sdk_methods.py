"""Every method of ``client.responses`` that makes, reads or ends a response, in both clients of the official SDK.

What lists input items and counts tokens is tested elsewhere.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import httpx
import openai
import pydantic
import pytest
import trio
from openai.types.responses import Response
from tests.http.queued import QUICK
from tests.wire.sdk import SDK_S, assert_named_extras, assert_typed, use

from dwctl_trio.testing.service import Service, open_service
from dwctl_trio.testing.simulator_script import expected_text


class Answer(pydantic.BaseModel):
    """What ``parrot`` is made to say."""

    answer: int


SAID = '{"answer": 4}'
ECHO: dict[str, Any] = {"model": "echo-3", "input": "hello"}
PARROT: dict[str, Any] = {"model": "parrot", "input": SAID, "text_format": Answer}
PAUSED: dict[str, Any] = {"model": "echo-9-pause-3", "input": "hello", "background": True}


@pytest.fixture
async def service(postgres_dsn: str) -> AsyncIterator[Service]:
    async with open_service(postgres_dsn, {"limits": QUICK}) as service:
        yield service


async def use_async(service: Service, work: Callable[[openai.AsyncOpenAI], Awaitable[Any]]) -> Any:
    """Do *work* with an asynchronous client of the SDK, in a loop of its own in a thread."""

    async def run() -> Any:
        async with (
            httpx.AsyncClient(trust_env=False) as http,
            openai.AsyncOpenAI(
                base_url=f"{service.url}/v1", api_key="unused", max_retries=0, timeout=SDK_S, http_client=http
            ) as client,
        ):
            return await work(client)

    with trio.fail_after(SDK_S):
        return await trio.to_thread.run_sync(partial(asyncio.run, run()), abandon_on_cancel=True)


def assert_same_events(streams: list[list[Any]]) -> None:
    """All *streams* are the rest of one and the same, each of known events."""
    whole = [event.to_dict() for event in streams[0]]
    for stream in streams:
        for event in stream:
            assert_typed(event)
        assert [event.to_dict() for event in stream] == whole[len(whole) - len(stream) :]


@pytest.mark.slow
async def test_every_method_of_the_synchronous_client(service: Service) -> None:
    def work(client: openai.OpenAI) -> dict[str, Any]:
        responses = client.responses
        created = responses.create(**ECHO, background=True)
        with responses.stream(response_id=created.id) as stream:
            followed = list(stream)
            final = stream.get_final_response()
        with responses.stream(response_id=created.id, starting_after=4) as stream:
            rest = list(stream)
        parsed = responses.parse(**PARROT)
        with responses.stream(**PARROT) as stream:
            said = [event for event in stream if event.type == "response.output_text.done"]
            streamed = stream.get_final_response()
        raw = responses.with_raw_response.create(**ECHO)
        with responses.with_streaming_response.create(**ECHO, stream=True) as streaming:
            lines = list(streaming.iter_lines())
            kind = streaming.headers["content-type"]
        read = responses.retrieve(created.id)
        told = list(responses.retrieve(created.id, stream=True))
        told_rest = list(responses.retrieve(created.id, stream=True, starting_after=4))
        unended = responses.create(**PAUSED)
        cancelled = responses.cancel(unended.id)
        deleted = responses.delete(created.id)
        with pytest.raises(openai.NotFoundError):
            responses.with_raw_response.retrieve(created.id)
        return {
            "objects": [created, final, parsed, streamed, raw.parse(), read, cancelled],
            "streams": [told, told_rest],
            "followed": [event.type for event in followed],
            "rest": [event.sequence_number for event in rest],
            "parsed": [parsed.output_parsed, streamed.output_parsed, said[0].parsed],
            "texts": [final.output_text, raw.parse().output_text, read.output_text],
            "raw": [raw.headers["x-request-id"], kind, lines[-2]],
            "ends": [cancelled.status, deleted],
        }

    check(await use(service, work))


@pytest.mark.slow
async def test_every_method_of_the_asynchronous_client(service: Service) -> None:
    async def work(client: openai.AsyncOpenAI) -> dict[str, Any]:
        responses = client.responses
        created = await responses.create(**ECHO, background=True)
        async with responses.stream(response_id=created.id) as stream:
            followed = [event async for event in stream]
            final = await stream.get_final_response()
        async with responses.stream(response_id=created.id, starting_after=4) as stream:
            rest = [event async for event in stream]
        parsed = await responses.parse(**PARROT)
        async with responses.stream(**PARROT) as stream:
            said = [event async for event in stream if event.type == "response.output_text.done"]
            streamed = await stream.get_final_response()
        raw = await responses.with_raw_response.create(**ECHO)
        async with responses.with_streaming_response.create(**ECHO, stream=True) as streaming:
            lines = [line async for line in streaming.iter_lines()]
            kind = streaming.headers["content-type"]
        read = await responses.retrieve(created.id)
        told = [event async for event in await responses.retrieve(created.id, stream=True)]
        told_rest = [event async for event in await responses.retrieve(created.id, stream=True, starting_after=4)]
        unended = await responses.create(**PAUSED)
        cancelled = await responses.cancel(unended.id)
        deleted = await responses.delete(created.id)
        with pytest.raises(openai.NotFoundError):
            await responses.with_raw_response.retrieve(created.id)
        return {
            "objects": [created, final, parsed, streamed, raw.parse(), read, cancelled],
            "streams": [told, told_rest],
            "followed": [event.type for event in followed],
            "rest": [event.sequence_number for event in rest],
            "parsed": [parsed.output_parsed, streamed.output_parsed, said[0].parsed],
            "texts": [final.output_text, raw.parse().output_text, read.output_text],
            "raw": [raw.headers["x-request-id"], kind, lines[-2]],
            "ends": [cancelled.status, deleted],
        }

    check(await use_async(service, work))


def check(found: dict[str, Any]) -> None:
    for shown in found["objects"]:
        assert isinstance(shown, Response)
        assert_named_extras(shown)
    assert_same_events(found["streams"])
    told = [event.type for event in found["streams"][0]]
    assert found["followed"] == told
    assert found["rest"] == list(range(5, len(told)))
    assert found["parsed"] == [Answer(answer=4)] * 3
    assert found["texts"] == [expected_text("echo-3")] * 3
    request_id, kind, last = found["raw"]
    assert request_id
    assert kind.startswith("text/event-stream")
    assert last == "data: [DONE]"
    assert found["ends"] == ["cancelled", None]


@pytest.mark.slow
async def test_log_probabilities_and_annotations_are_where_programs_look_for_them(service: Service) -> None:
    asked: dict[str, Any] = {
        "model": "echo-2-cites", "input": "hello", "include": ["message.output_text.logprobs"], "top_logprobs": 1,
    }  # fmt: skip

    def work(client: openai.OpenAI) -> tuple[Response, Response, list[Any], Response]:
        with client.responses.stream(**asked) as stream:
            events = list(stream)
            final = stream.get_final_response()
        silent = client.responses.create(**{key: value for key, value in asked.items() if key in {"model", "input"}})
        return client.responses.create(**asked), final, events, silent

    created, final, events, silent = await use(service, work)

    part = created.output[0].content[0]  # type: ignore[union-attr]
    assert [token.token for token in part.logprobs] == ["word0 ", "word1 "]  # type: ignore[union-attr]
    assert part.logprobs[0].to_dict() == {  # type: ignore[union-attr,index]
        "token": "word0 ",
        "logprob": -0.25,
        "bytes": [119, 111, 114, 100, 48, 32],
        "top_logprobs": [{"token": "word0 0", "logprob": -1.5, "bytes": [119, 111, 114, 100, 48, 32, 48]}],
    }
    assert [annotation.type for annotation in part.annotations] == [  # type: ignore[union-attr]
        *("url_citation", "file_citation", "container_file_citation", "file_path"),
    ]
    shown = final.output[0].content[0]  # type: ignore[union-attr]
    assert [token.to_dict() for token in shown.logprobs] == [token.to_dict() for token in part.logprobs]  # type: ignore[union-attr]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [token.token for event in deltas for token in event.logprobs] == ["word0 ", "word1 "]
    added = [event for event in events if event.type == "response.output_text.annotation.added"]
    assert [event.annotation_index for event in added] == [0, 1, 2, 3]
    assert service.simulator.requests[0].body["top_logprobs"] == 1
    unasked = silent.output[0].content[0]  # type: ignore[union-attr]
    assert (unasked.logprobs, len(unasked.annotations)) == ([], 4)  # type: ignore[union-attr]
    assert "logprobs" not in service.simulator.requests[1].body


REFUSED = [
    ("toolong", "context_length_exceeded", "input"),
    ("toolongwords", "context_length_exceeded", "input"),
    ("policy", "invalid_prompt", "input"),
    ("badimage", "invalid_image_url", "input"),
    ("noimages", "invalid_prompt", "input"),
    ("notools", "invalid_prompt", "tools"),
    ("badparam", "invalid_prompt", "max_output_tokens"),
]


@pytest.mark.slow
async def test_what_the_upstream_dislikes_about_the_request_is_the_clients_to_mend(service: Service) -> None:
    def work(client: openai.OpenAI) -> None:
        for model, code, param in REFUSED:
            for how in ({}, {"stream": True}, {"service_tier": "flex"}):
                with pytest.raises(openai.BadRequestError) as caught:
                    client.responses.create(model=model, input="hello", **how)  # type: ignore[call-overload]
                assert (caught.value.code, caught.value.type) == (code, "invalid_request_error"), (model, how)
                known = {param} if how != {"service_tier": "flex"} else {param, None}
                assert caught.value.param in known, (model, how)
                assert "provider secret" not in str(caught.value)
            told = client.responses.create(model=model, input="hello", background=True, stream=True)
            (failed,) = [event.response for event in told if event.type == "response.failed"]
            assert_typed(failed)
            assert failed.error is not None
            assert failed.error.code == ("invalid_prompt" if code == "context_length_exceeded" else code)

    await use(service, work)
