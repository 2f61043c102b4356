"""What the simulator answers, over real sockets, seen by an ordinary HTTP client."""

import json
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from dwctl_trio.testing.simulator import EXAMPLE_MODELS, open_simulator, run_simulator
from dwctl_trio.testing.simulator_script import expected_text, expected_tokens
from dwctl_trio.testing.simulator_text import pack, vector

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "unit": {"type": "string", "enum": ["C", "F"]},
            },
        },
    },
}


@asynccontextmanager
async def served():
    async with open_simulator() as simulator, httpx.AsyncClient(base_url=simulator.base_url, timeout=5) as client:
        yield simulator, client


async def ask(client, model, *, prompt="one two three", stream=True, usage=True, **more):
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": prompt}], **more}
    if stream and usage:
        body["stream_options"] = {"include_usage": True}
    return await client.post("/chat/completions", json=body)


def events(response):
    """The data of each SSE event, decoded; comments and ``[DONE]`` are left out."""
    lines = response.text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    payloads = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [json.loads(payload) for payload in payloads if payload != "[DONE]"]


def deltas(response, name="content"):
    """The values of one member of the deltas, where it is there and not empty."""
    found = [event["choices"][0]["delta"].get(name) for event in events(response) if event["choices"]]
    return tuple(value for value in found if value)


def finish(response):
    return [event["choices"][0]["finish_reason"] for event in events(response) if event["choices"]][-1]


def calls_of(response):
    """Tool calls as (id, name, arguments), put together by index."""
    calls = {}
    for (fragment,) in deltas(response, "tool_calls"):
        call = calls.setdefault(fragment["index"], [None, "", ""])
        call[0] = fragment.get("id", call[0])
        call[1] += fragment["function"].get("name", "")
        call[2] += fragment["function"].get("arguments", "")
    return [tuple(calls[index]) for index in sorted(calls)]


async def test_a_stream_has_a_role_the_tokens_a_finish_the_usage_and_done():
    async with served() as (_, client):
        response = await ask(client, "echo-3")
    role, *tokens, finished, usage = events(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [token["choices"][0]["delta"]["content"] for token in tokens] == list(expected_tokens("echo-3"))
    assert finished["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "stop"}
    assert (usage["choices"], usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]) == ([], 3, 3)
    assert response.text.endswith("data: [DONE]\n\n")
    assert {(event["object"], event["model"]) for event in events(response)} == {("chat.completion.chunk", "echo-3")}


async def test_every_answer_has_an_id_of_its_own():
    async with served() as (_, client):
        first, second = await ask(client, "echo-3"), await ask(client, "echo-3")
    assert len({event["id"] for event in events(first) + events(second)}) == 2


async def test_usage_comes_only_when_it_was_asked_for():
    async with served() as (_, client):
        response = await ask(client, "echo-3", usage=False)
    assert all("usage" not in event for event in events(response))


@pytest.mark.parametrize("model", ["echo-5", "each-5", "slow-5-1", "split-7-5", "crlf-5", "cr-5", "comments-5"])
async def test_the_text_does_not_depend_on_how_it_is_sent(model):
    async with served() as (simulator, client):
        streamed, whole = await ask(client, model), await ask(client, model, stream=False)
        assert (await simulator.wait_idle()).completed == 2
    assert "".join(deltas(streamed)) == whole.json()["choices"][0]["message"]["content"] == expected_text(model)


async def test_a_plain_answer_is_one_completion_with_usage():
    async with served() as (_, client):
        answer = (await ask(client, "echo-4", stream=False)).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == 3 + 4


async def test_any_unknown_model_says_sixteen_words():
    async with served() as (_, client):
        assert deltas(await ask(client, "gpt-4o")) == expected_tokens("echo-16")


@pytest.mark.parametrize(("model", "reason"), [("length-3", "length"), ("filter-3", "content_filter")])
async def test_the_finish_reason_can_be_chosen(model, reason):
    async with served() as (_, client):
        assert finish(await ask(client, model)) == reason
        assert (await ask(client, model, stream=False)).json()["choices"][0]["finish_reason"] == reason


async def test_a_refusal_has_deltas_of_its_own():
    async with served() as (_, client):
        streamed, whole = await ask(client, "refusal-2"), await ask(client, "refusal-2", stream=False)
    assert deltas(streamed, "refusal") == ("word0 ", "word1 ")
    assert deltas(streamed) == ()
    assert whole.json()["choices"][0]["message"]["refusal"] == "word0 word1 "


@pytest.mark.parametrize(("model", "field"), [("reasoning-2-1", "reasoning_content"), ("thinking-2-1", "reasoning")])
async def test_reasoning_comes_before_the_content_and_is_counted(model, field):
    async with served() as (_, client):
        response = await ask(client, model)
    assert deltas(response, field) == ("word0 ", "word1 ")
    assert deltas(response) == ("word0 ",)
    usage = events(response)[-1]["usage"]
    assert (usage["completion_tokens"], usage["completion_tokens_details"]["reasoning_tokens"]) == (3, 2)


async def test_tool_calls_take_names_and_arguments_from_the_request():
    async with served() as (_, client):
        response = await ask(client, "tools-2", tools=[WEATHER])
        whole = await ask(client, "tools-2", tools=[WEATHER], stream=False)
    first, second = calls_of(response)
    assert finish(response) == "tool_calls"
    assert (first[1], json.loads(first[2])) == ("get_weather", {"city": "word0", "days": 0, "unit": "C"})
    assert (second[1], json.loads(second[2])) == ("get_weather", {"city": "word1", "days": 1, "unit": "F"})
    assert first[0] != second[0]
    called = whole.json()["choices"][0]["message"]["tool_calls"]
    assert [call["function"]["arguments"] for call in called] == [first[2], second[2]]


async def test_the_fragments_of_parallel_calls_are_interleaved():
    async with served() as (_, client):
        response = await ask(client, "tools-2")
    assert [fragment["index"] for (fragment,) in deltas(response, "tool_calls")][:6] == [0, 1, 0, 1, 0, 1]


async def test_ids_of_tool_calls_can_come_late_or_never():
    async with served() as (_, client):
        late, never = await ask(client, "toolslate-2"), await ask(client, "toolsnoid-2")
    assert [name for _, name, _ in calls_of(never)] == ["tool_1", "tool_2"]
    assert {call_id for call_id, _, _ in calls_of(never)} == {None}
    assert None not in {call_id for call_id, _, _ in calls_of(late)}
    assert all("id" not in fragment for (fragment,) in deltas(late, "tool_calls")[:2])


async def test_the_prompt_can_say_what_is_called():
    prompt = 'now call:look{"at": {"depth": 2}} and then call:wait{} but call:this{is none'
    async with served() as (_, client):
        calls = calls_of(await ask(client, "toolsasked-3", prompt=prompt))
        ((_, name, _),) = calls_of(await ask(client, "toolsasked", prompt="say nothing of it"))
    assert [(name, json.loads(arguments)) for _, name, arguments in calls] == [
        ("look", {"at": {"depth": 2}}), ("wait", {}), ("look", {"at": {"depth": 2}}),
    ]  # fmt: skip
    assert name == "tool_1"


async def test_arguments_can_be_broken_json():
    async with served() as (_, client):
        ((_, _, arguments),) = calls_of(await ask(client, "toolsbad-1"))
    with pytest.raises(json.JSONDecodeError):
        json.loads(arguments)


async def test_after_a_tool_result_the_answer_is_text():
    history = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    async with served() as (_, client):
        assert deltas(await ask(client, "tools-2", messages=history)) == expected_tokens("tools-2", turn=1)
        assert len(calls_of(await ask(client, "tools-1-then-tools-3", messages=history))) == 3


async def test_a_parrot_repeats_the_last_user_message_word_by_word():
    prompt = " grüß\ndich,  Welt "
    async with served() as (_, client):
        response = await ask(client, "parrot", prompt=prompt)
    assert deltas(response) == expected_tokens("parrot", prompt=prompt)
    assert "".join(deltas(response)) == prompt


async def test_inspect_shows_the_body_that_was_received():
    async with served() as (_, client):
        (seen,) = deltas(await ask(client, "inspect", temperature=0.5))
    assert json.loads(seen)["temperature"] == 0.5


@pytest.mark.parametrize(
    ("model", "usages", "done"),
    [("nousage-2", 0, True), ("nodone-2", 1, False), ("usageinline-2", 1, True), ("nousage-2-nodone", 0, False)],
)
async def test_usage_and_done_can_be_missing_or_elsewhere(model, usages, done):
    async with served() as (_, client):
        response = await ask(client, model)
    assert sum(bool(event.get("usage")) for event in events(response)) == usages
    assert response.text.endswith("[DONE]\n\n") is done
    assert ([] in [event["choices"] for event in events(response)]) is (model == "nodone-2")


async def test_the_role_can_be_missing_or_everywhere():
    async with served() as (_, client):
        assert deltas(await ask(client, "norole-3"), "role") == ()
        assert len(deltas(await ask(client, "role-3"), "role")) == 4


async def test_a_finish_can_come_twice():
    async with served() as (_, client):
        finishes = [event["choices"][0]["finish_reason"] for event in events(await ask(client, "twofinish-1-nousage"))]
    assert finishes == [None, None, "stop", "stop"]


async def test_plain_json_can_come_where_a_stream_was_asked_for():
    async with served() as (_, client):
        response = await ask(client, "json-2")
    assert response.headers["content-type"] == "application/json"
    assert response.json()["choices"][0]["message"]["content"] == expected_text("json-2")


async def test_nul_and_lone_surrogates_come_as_escapes():
    async with served() as (_, client):
        response = await ask(client, "nul-2")
    assert "".join(deltas(response)) == expected_text("nul-2")
    assert r"\u0000\ud800" in response.text


async def test_one_delta_can_be_big():
    async with served() as (_, client):
        assert deltas(await ask(client, "big-1000000")) == ("x" * 1_000_000,)


async def test_what_was_received_is_kept_with_headers_key_and_bearer():
    async with served() as (simulator, client):
        client.headers["authorization"] = "Bearer sk-1"
        await ask(client, "echo-1", prompt="hello key:blue, please")
        (request,) = simulator.requests
        assert (request.model, request.key, simulator.last_bearer) == ("echo-1", "blue", "sk-1")
        assert request.body["messages"][0]["content"] == "hello key:blue, please"
        assert request.headers["content-type"] == "application/json"


@pytest.mark.slow
async def test_the_newest_thousand_requests_are_kept():
    async with served() as (simulator, client):
        for number in range(1003):
            await ask(client, "empty-200", prompt=f"number {number}")
        kept = simulator.requests
    assert len(kept) == 1000
    assert kept[0].body["messages"][0]["content"] == "number 3"


async def test_connections_are_kept_alive_across_answers_and_errors():
    async with served() as (simulator, client):
        for model in ["echo-2", "error-500", "html-502", "empty-200", "eof-1", "json-1"]:
            await ask(client, model)
            assert simulator.statistics().connections == 1


async def test_a_chunked_request_body_is_read():
    async def pieces():
        yield b'{"model": "echo-1", '
        yield b'"stream": false}'

    async with served() as (_, client):
        response = await client.post("/chat/completions", content=pieces())
    assert response.json()["choices"][0]["message"]["content"] == "word0 "


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": 1}', b'{"messages": []}', b"\xff", b"[" * 100_000])
async def test_a_body_that_is_no_chat_request_is_400(body):
    async with served() as (simulator, client):
        assert (await client.post("/chat/completions", content=body)).status_code == 400
        assert simulator.statistics().total == 0


@pytest.mark.parametrize("sent", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n", b"x" * 70_000])
async def test_bytes_that_are_no_request_are_400_and_the_connection_ends(sent):
    async with open_simulator() as simulator:
        stream = await trio.open_tcp_stream("127.0.0.1", int(simulator.origin.rpartition(":")[2]))
        async with stream:
            await stream.send_all(sent)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 400 ")
            await simulator.wait_until(lambda statistics: statistics.connections == 0)


async def test_the_models_are_listed():
    async with served() as (_, client):
        listed = (await client.get("/models")).json()
    assert [model["id"] for model in listed["data"]] == list(EXAMPLE_MODELS)


async def test_it_runs_without_a_handle_and_starts_with_its_address():
    async with trio.open_nursery() as nursery:
        base_url = await nursery.start(run_simulator, "127.0.0.1", 0)
        async with httpx.AsyncClient(base_url=base_url) as client:
            assert (await ask(client, "echo-1")).status_code == 200
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_text_is_completed_by_the_same_scripts_as_a_chat(stream):
    async with served() as (simulator, client):
        body = {"model": "echo-3-each", "prompt": "one two key:k", "stream": stream}
        answer = await client.post(
            "/completions", json=body | ({"stream_options": {"include_usage": True}} if stream else {})
        )
        statistics = await simulator.wait_idle()
    chunks = events(answer) if stream else [answer.json()]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == expected_text("echo-3")
    assert chunks[-1]["usage"]["prompt_tokens"] == statistics.prompt_tokens == 3
    assert (statistics.completion_tokens_reported, simulator.requests[0].key) == (3, "k")


async def test_a_text_has_the_same_vector_every_time_in_either_form():
    async with served() as (_, client):
        found = []
        for form in ("float", "base64"):
            body = {"model": "any", "input": ["one two", [5, 6]], "encoding_format": form}
            found.append((await client.post("/embeddings", json=body)).json())
        refused = await client.post("/embeddings", json={"model": "error-503", "input": "x"})
    floats, packed = ([entry["embedding"] for entry in answer["data"]] for answer in found)
    assert floats == [vector("one two"), vector("5 6")]
    assert packed == [pack(values) for values in floats]
    assert all(-1 <= number < 1 for values in floats for number in values)
    assert found[0]["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert refused.status_code == 503


@pytest.mark.parametrize("path", ["/completions", "/embeddings"])
async def test_what_is_no_text_to_complete_or_embed_is_refused(path):
    async with served() as (_, client):
        for body in (b"[]", b"{", b'{"model": 1}', b"[" * 100_000):
            assert (await client.post(path, content=body)).status_code == 400


async def test_more_numbers_than_it_has_time_for_are_refused():
    async with served() as (_, client):
        body = {"model": "any", "input": ["one", "two"], "dimensions": 10**9}
        assert (await client.post("/embeddings", json=body)).status_code == 400
