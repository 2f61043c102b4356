"""What is checked of a server in front of a real engine, with the official SDK. Each check is a sentence."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import httpx
import openai
from openai.types.responses import Response
from tests.clients.tiny_words import (
    ANSWER,
    NO_TOOL_ANSWER,
    QUESTION,
    SECOND_ANSWER,
    SECOND_QUESTION,
    THINK,
    THOUGHT,
    TOOL,
)
from tests.wire.sdk import assert_typed

from dwctl_trio.testing.tool_server import ToolServer

SDK_S = 30.0
ARGUMENTS = '{"city": "Paris"}'
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
OWN: Any = {"type": "function", "name": TOOL, "parameters": PARAMETERS, "strict": True}
SERVERS: Any = {"type": "mcp", "server_label": "dwctl", "allowed_tools": [TOOL], "require_approval": "never"}


@attrs.define
class Desk:
    """Where the checks find the server."""

    url: str
    tools: ToolServer
    calls: int = 0
    """Requests that the SDK has made."""
    broken: int = 0
    """Answers that the engine broke off, which random weights may make it do."""

    @contextmanager
    def client(self) -> Iterator[openai.OpenAI]:
        """A client of the SDK."""

        def count(_request: httpx.Request) -> None:
            self.calls += 1

        with (
            httpx.Client(trust_env=False, event_hooks={"request": [count]}) as http,
            openai.OpenAI(
                base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=SDK_S, http_client=http
            ) as client,
        ):
            yield client


def what_random_weights_say_is_typed_and_counted(desk: Desk) -> None:
    with desk.client() as client:
        for _ in range(5):
            try:
                said = client.responses.create(model="random", input="hello", max_output_tokens=40)
            except openai.InternalServerError as error:  # the engine cannot read its own model's words
                assert (error.status_code, error.code) == (502, "upstream_error"), error
                desk.broken += 1
            else:
                assert_typed(said)
                _check_counts(said)
                assert client.responses.retrieve(said.id).model_dump() == said.model_dump()


def what_random_weights_stream_adds_up(desk: Desk) -> None:
    with desk.client() as client:
        for _ in range(5):
            events = list(client.responses.create(model="random", input="hello", max_output_tokens=200, stream=True))
            final = _check_stream(events)
            if final.status == "failed":
                desk.broken += 1
                assert final.error is not None
                assert final.error.code == "server_error"
            else:
                _check_counts(final)
            assert client.responses.retrieve(final.id).model_dump() == final.model_dump()


def a_taught_model_answers_word_for_word(desk: Desk) -> None:
    with desk.client() as client:
        whole = client.responses.create(model="taught", input=QUESTION, temperature=0)
        final = _check_stream(list(client.responses.create(model="taught", input=QUESTION, temperature=0, stream=True)))
    for said in (whole, final):
        assert (said.status, said.output_text) == ("completed", NO_TOOL_ANSWER), said.output_text
        _check_counts(said)
    assert whole.usage.total_tokens == final.usage.total_tokens


def what_a_model_thinks_is_an_item_of_its_own(desk: Desk) -> None:
    with desk.client() as client:
        asked: Any = {"model": "taught", "instructions": THINK, "input": QUESTION, "temperature": 0}
        whole = client.responses.create(**asked)
        final = _check_stream(list(client.responses.create(**asked, stream=True)))
    for said in (whole, final):
        assert [item.type for item in said.output] == ["reasoning", "message"]
        (part,) = said.output[0].content
        assert (part.text, said.output_text) == (THOUGHT, NO_TOOL_ANSWER), said.output


def an_answer_over_its_bound_is_incomplete(desk: Desk) -> None:
    with desk.client() as client:  # the likeliest token of these random weights is never the end
        asked: Any = {"model": "random", "input": "hello", "max_output_tokens": 16, "temperature": 0}
        whole = client.responses.create(**asked)
        final = _check_stream(list(client.responses.create(**asked, stream=True)))
    for said in (whole, final):
        assert said.status == "incomplete", said.status
        assert said.incomplete_details is not None
        assert said.incomplete_details.reason == "max_output_tokens"
        assert said.usage is not None
        assert said.usage.output_tokens == 16


def a_clients_tool_is_called_and_its_output_read(desk: Desk) -> None:
    with desk.client() as client:
        called = client.responses.create(model="taught", input=QUESTION, tools=[OWN], temperature=0)
        told = _own_round(called)
        said = client.responses.create(model="taught", input=told, tools=[OWN], temperature=0)
    assert (said.status, said.output_text) == ("completed", ANSWER), said.output_text


def a_streamed_call_of_a_clients_tool_is_whole(desk: Desk) -> None:
    with desk.client() as client:
        asked: Any = {"model": "taught", "tools": [OWN], "temperature": 0, "stream": True}
        called = _check_stream(list(client.responses.create(input=QUESTION, **asked)))
        final = _check_stream(list(client.responses.create(input=_own_round(called), **asked)))
    assert (final.status, final.output_text) == ("completed", ANSWER), final.output_text


def the_servers_own_tool_is_run_within_one_response(desk: Desk) -> None:
    before = len(desk.tools.calls)
    with desk.client() as client:
        asked: Any = {"model": "taught", "input": QUESTION, "tools": [SERVERS], "temperature": 0}
        whole = client.responses.create(**asked)
        final = _check_stream(list(client.responses.create(**asked, stream=True)))
    for said in (whole, final):
        assert [item.type for item in said.output] == ["mcp_call", "message"]
        assert (said.status, said.output_text) == ("completed", ANSWER), said.output_text
        _check_counts(said)
    assert len(desk.tools.calls) == before + 2


def a_tool_that_may_not_be_called_is_not(desk: Desk) -> None:
    before = len(desk.tools.calls)
    forbidden: Any = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "other"}]}
    other: Any = {"type": "function", "name": "other", "parameters": PARAMETERS, "strict": True}
    with desk.client() as client:
        asked: Any = {"model": "taught", "input": QUESTION, "temperature": 0}
        for tool in (OWN, SERVERS):
            said = client.responses.create(**asked, tools=[tool], tool_choice="none")
            assert [item.type for item in said.output] in ([], ["message"]), said.output
        said = client.responses.create(**asked, tools=[OWN, other], tool_choice=forbidden)
        assert "function_call" not in [item.type for item in said.output], said.output
    assert len(desk.tools.calls) == before


def a_background_response_is_followed_and_read(desk: Desk) -> None:
    with desk.client() as client:
        asked: Any = {"model": "taught", "input": QUESTION, "tools": [SERVERS], "temperature": 0, "background": True}
        queued = client.responses.create(**asked)
        assert queued.status == "queued"
        joined = _check_stream(list(client.responses.retrieve(queued.id, stream=True)))
        done = client.responses.retrieve(queued.id)
        followed = _check_stream(list(client.responses.create(**asked, stream=True)))
    for said in (joined, done, followed):
        assert (said.status, said.output_text) == ("completed", ANSWER), said.output_text
    assert joined.id == queued.id


def a_flex_response_is_waited_for(desk: Desk) -> None:
    with desk.client() as client:
        said = client.responses.create(model="taught", input=QUESTION, temperature=0, service_tier="flex")
    assert (said.status, said.output_text) == ("completed", NO_TOOL_ANSWER)


def a_cancelled_background_response_stops(desk: Desk) -> None:
    with desk.client() as client:
        queued = client.responses.create(model="random", input="hello", background=True, max_output_tokens=1000)
        cancelled = client.responses.cancel(queued.id)
        assert cancelled.status in ("cancelled", "completed", "incomplete"), cancelled.status


def leaving_a_stream_leaves_the_engine_free(desk: Desk) -> None:
    with desk.client() as client:
        stream = client.responses.create(model="random", input="hello", max_output_tokens=1500, stream=True)
        began = next(event for event in stream if event.type == "response.output_text.delta")
        stream.close()
        said = client.responses.create(model="taught", input=QUESTION, temperature=0)
    assert began.delta
    assert said.output_text == NO_TOOL_ANSWER


def a_previous_response_is_remembered(desk: Desk) -> None:
    with desk.client() as client:
        asked: Any = {"model": "taught", "tools": [OWN], "temperature": 0}
        called = client.responses.create(input=QUESTION, **asked)
        output: Any = {"type": "function_call_output", "call_id": called.output[0].call_id, "output": "sunny"}
        said = client.responses.create(input=[output], previous_response_id=called.id, **asked)
        second = client.responses.create(input=SECOND_QUESTION, previous_response_id=said.id, **asked)
    assert (said.output_text, second.output_text) == (ANSWER, SECOND_ANSWER)


def every_parameter_that_shapes_an_answer_is_taken(desk: Desk) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    options: list[dict[str, Any]] = [
        {"temperature": 0.5, "top_p": 0.9},
        {"user": "u1", "safety_identifier": "s1", "metadata": {"team": "blue"}},
        {"parallel_tool_calls": False, "tools": [OWN]},
        {"tool_choice": {"type": "function", "name": TOOL}, "tools": [OWN]},
        {"tool_choice": "required", "tools": [OWN]},
        {"tool_choice": "none", "tools": [OWN]},
        {"text": {"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}}},
        {"text": {"format": {"type": "json_object"}, "verbosity": "low"}},
        {"reasoning": {"effort": "low"}},
        {"instructions": "Be brief."},
        {"top_logprobs": 2, "include": ["message.output_text.logprobs"]},
        {"input": [{"role": "developer", "content": "x"}, _user("hello"), _user({"type": "input_text", "text": "y"})]},
        {"input": "✓ ünïcode \U0001f642"},
    ]
    refused = {}
    with desk.client() as client:
        for option in options:
            try:
                asked = {"model": "random", "input": "hello", "max_output_tokens": 16} | option
                said = client.responses.create(**asked)
                assert said.status in ("completed", "incomplete"), said.status
            except openai.APIStatusError as error:
                refused[str(option)[:60]] = f"{error.status_code} {error.message}"
    assert not refused, refused


def a_model_that_the_engine_lacks_is_an_error_not_a_hang(desk: Desk) -> None:
    with desk.client() as client:
        for stream in (False, True):
            try:
                client.responses.create(model="missing", input="hello", stream=stream)
            except openai.APIStatusError as error:
                assert error.body and {"message", "type", "param", "code"} <= error.body.keys(), error.body
                assert "/missing" not in str(error.body)
            else:
                raise AssertionError("it was answered")


def a_chat_completion_is_what_the_engine_said_at_once_and_from_the_queue(desk: Desk) -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    for tier in ("auto", "flex"):
        with desk.client() as client:
            asked: Any = {"model": "taught", "messages": messages, "temperature": 0, "service_tier": tier}
            whole = client.chat.completions.create(**asked)
            chunks = list(client.chat.completions.create(**asked, stream=True))
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert whole.choices[0].message.content == said == NO_TOOL_ANSWER, (tier, said)


CHECKS: tuple[Callable[[Desk], None], ...] = (
    what_random_weights_say_is_typed_and_counted,
    what_random_weights_stream_adds_up,
    a_taught_model_answers_word_for_word,
    what_a_model_thinks_is_an_item_of_its_own,
    an_answer_over_its_bound_is_incomplete,
    a_clients_tool_is_called_and_its_output_read,
    a_streamed_call_of_a_clients_tool_is_whole,
    the_servers_own_tool_is_run_within_one_response,
    a_tool_that_may_not_be_called_is_not,
    a_background_response_is_followed_and_read,
    a_flex_response_is_waited_for,
    a_cancelled_background_response_stops,
    leaving_a_stream_leaves_the_engine_free,
    a_previous_response_is_remembered,
    every_parameter_that_shapes_an_answer_is_taken,
    a_model_that_the_engine_lacks_is_an_error_not_a_hang,
    a_chat_completion_is_what_the_engine_said_at_once_and_from_the_queue,
)


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content if isinstance(content, str) else [content]}


def _own_round(called: Response) -> Any:
    """The input of the next request, with the output of the one call that *called* holds."""
    (call,) = called.output
    assert call.type == "function_call", call.type
    assert (call.name, call.arguments, called.status) == (TOOL, ARGUMENTS, "completed"), call
    answered = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    return [{"role": "user", "content": QUESTION}, call.to_dict(), answered]


def _check_counts(said: Response) -> None:
    assert said.usage is not None
    assert said.usage.input_tokens > 0
    assert said.usage.output_tokens > 0
    assert said.usage.total_tokens == said.usage.input_tokens + said.usage.output_tokens


def _check_stream(events: list[Any]) -> Response:
    """The final response of *events*, which are typed, numbered and add up to it."""
    said = ""
    for number, event in enumerate(events):
        assert_typed(event)
        assert event.sequence_number == number
        said += event.delta if event.type == "response.output_text.delta" else ""
    final: Response = events[-1].response
    assert (events[0].type, events[-1].type) == ("response.created", f"response.{final.status}")
    assert said == final.output_text
    return final
