"""Calls that are handed over, on real sockets: the upstream's answer, our errors, a record of each, nothing kept."""

import itertools
import json
import re
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import trio
from tests.http.conftest import error_of
from tests.http.database_gate import QUICK as GATED
from tests.http.database_gate import open_gated
from tests.http.proxied import (
    CHAT,
    COUNT,
    EMBEDDINGS,
    STREAMING,
    SURFACES,
    TEXT,
    assert_nothing_kept,
    body_for,
    last_row,
    read_frames,
    send,
)
from tests.http.tenants import authorize

from dwctl_trio.testing.service import Service, open_service
from dwctl_trio.testing.simulator_reply import CANARY
from dwctl_trio.testing.simulator_script import expected_text
from dwctl_trio.testing.simulator_text import pack, vector

ALIASES = {
    "models": [
        {"name": "alias", "upstream": "simulator", "upstream_model": "echo-3-each"},
        {"name": "alias-odd", "upstream": "simulator", "upstream_model": "echo-3-json"},
        {"name": "*", "upstream": "simulator"},
    ]
}


@pytest.fixture
async def service(postgres_dsn: str) -> AsyncIterator[Service]:
    async with open_service(postgres_dsn, ALIASES) as service:
        yield service


# -- what is answered


async def test_a_whole_answer_is_the_upstreams_own_to_the_byte(service: Service) -> None:
    for path in (CHAT, TEXT, EMBEDDINGS):
        body = body_for(path, "echo-3", user="u", dimensions=3, **{"x-unknown": [1.10]})
        answer = await send(service, path, body)
        received = service.simulator.requests[-1]
        direct = await service.client.post(f"{service.simulator.origin}{path}", json=body)
        ours, theirs = (found.get("id", "").encode() for found in (answer.json(), direct.json()))
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.content == (direct.content.replace(theirs, ours) if theirs else direct.content)
        assert (received.path, received.body) == (path, body)


async def test_a_stream_is_the_upstreams_chunks_and_then_done(service: Service) -> None:
    for path in STREAMING:
        answer = await send(service, path, body_for(path, "echo-3-each", stream=True))
        frames = read_frames(answer.content)
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-cache, no-transform")
        assert (frames.said, len(frames.datas)) == (expected_text("echo-3"), 5)
        assert frames.datas[-1]["choices"][0]["finish_reason"] == "stop"
        assert "usage" not in frames.datas[-1] or frames.datas[-1]["usage"] is None
        assert service.simulator.requests[0].body["stream_options"] == {"include_usage": True}


async def test_the_usage_of_a_stream_is_shown_to_who_asked_for_it(service: Service) -> None:
    for path in STREAMING:
        asked = body_for(path, "echo-3-each", stream=True, stream_options={"include_usage": True})
        frames = read_frames((await send(service, path, asked)).content)
        assert (frames.datas[-1]["choices"], frames.datas[-1]["usage"]["completion_tokens"]) == ([], 3)


async def test_a_model_has_the_name_that_its_client_used(service: Service) -> None:
    for path, stream in itertools.product(STREAMING, (True, False)):
        answer = await send(service, path, body_for(path, "alias", stream=stream))
        shown = read_frames(answer.content).datas if stream else [answer.json()]
        assert {chunk["model"] for chunk in shown} == {"alias"}
        assert service.simulator.requests[-1].model == "echo-3-each"
        assert (await last_row(service))["used"] == "alias"


async def test_an_upstream_that_does_not_stream_is_streamed_all_the_same(service: Service) -> None:
    for path in STREAMING:
        frames = read_frames((await send(service, path, body_for(path, "alias-odd", stream=True))).content)
        assert frames.said == expected_text("echo-3"), path


INPUTS: list[tuple[Any, str, int]] = [
    ("one two", "one two", 2),
    (["one", "two three"], "one", 3),
    ([5, 6, 7], "5 6 7", 3),
    ([[1, 2], [3]], "1 2", 3),
]
"""A text, texts, tokens and arrays of tokens: what the first vector is of, and the words in all."""


async def test_embeddings_are_handed_over_in_every_form(service: Service) -> None:
    for (texts, first, words), form in itertools.product(INPUTS, ("float", "base64")):
        asked = {"model": "alias", "input": texts, "encoding_format": form, "dimensions": 4}
        answer = (await send(service, EMBEDDINGS, asked)).json()
        expected = pack(vector(first, 4)) if form == "base64" else vector(first, 4)
        assert (answer["data"][0]["embedding"], answer["model"]) == (expected, "alias")
        row = await last_row(service)
        assert (row["input_tokens"], row["output_tokens"], row["surface"]) == (words, 0, "embeddings")


# -- what is recorded and what is not


async def test_a_call_leaves_one_record_and_nothing_of_what_was_said(service: Service) -> None:
    for path in SURFACES:
        for stream in {False, path in STREAMING}:
            fields = {"stream": True} if stream else {}
            fields |= {"store": True, "service_tier": "priority"} if path == CHAT else {}
            assert (await send(service, path, body_for(path, "echo-3", **fields))).status_code == 200
            row = await last_row(service)
            assert_nothing_kept(row)
            assert (row["state"], row["step_state"], row["response_status"]) == ("completed", "completed", 200)
            assert (row["surface"], row["stream"], row["http_status"]) == (SURFACES[path], stream, 200)
            assert (row["input_tokens"], row["output_tokens"]) == (2, 0 if path == EMBEDDINGS else 3)
            assert (row["error_code"], row["metered_tier"]) == (None, "priority" if path == CHAT else "auto")
            name = f"resp_{row['id']}"
            for method, place in (("GET", ""), ("DELETE", ""), ("GET", "/steps"), ("POST", "/cancel")):
                assert (await service.client.request(method, f"/v1/responses/{name}{place}")).status_code == 404
        assert await service.pool.fetchval("select count(*) from response_events") == 0


async def test_a_call_is_in_the_metrics_and_in_the_rates_of_its_owner(postgres_dsn: str) -> None:
    rates = {"auth": {"mode": "keys"}, "owners": {"alice": {"tokens_per_minute": 100}}}
    async with open_service(postgres_dsn, rates) as service:
        (alice,) = await authorize(service, "alice")
        left = 100
        for path, tokens in ((CHAT, 5), (TEXT, 5), (EMBEDDINGS, 2), (COUNT, 5)):
            answer = await send(service, path, body_for(path, "echo-3"), **alice)
            left -= tokens
            assert answer.status_code == 200
            shown = await send(service, path, {}, **alice)
            assert left <= int(shown.headers["x-ratelimit-remaining-tokens"]) <= left + 5, path
        metrics = (await service.client.get("/metrics")).text
    (line,) = [line for line in metrics.splitlines() if line.startswith("dwctl_responses_total{")]
    assert line.endswith(" 4.0")
    counted = [
        line for line in metrics.splitlines() if line.startswith("gen_ai_server_request_duration_seconds_count{")
    ]
    operations = {re.search(r'operation_name="(\w+)"', line)[1]: float(line.split()[-1]) for line in counted}  # type: ignore[index]
    assert operations == {"chat": 2.0, "text_completion": 1.0, "embeddings": 1.0}


async def test_a_call_is_a_part_of_its_clients_trace(service: Service) -> None:
    for path in SURFACES:
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        answer = await send(service, path, body_for(path, "echo-1"), traceparent=f"00-{trace}-00f067aa0ba902b7-01")
        assert answer.headers["x-request-id"]
        assert service.simulator.requests[-1].headers["traceparent"].split("-")[1] == trace


async def test_who_is_not_known_makes_no_call(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"auth": {"mode": "keys"}}) as service:
        for path in SURFACES:
            answer = await send(service, path, body_for(path, "echo-1"))
            assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
        assert service.simulator.statistics().total == 0


# -- what is refused


async def test_what_we_act_on_is_checked_first(postgres_dsn: str) -> None:
    models = [{"name": "echo-1", "upstream": "simulator"}]
    wrong: list[tuple[dict[str, Any], int]] = [
        ({"model": None}, 400),
        ({"model": 1}, 400),
        ({"model": "nobodys"}, 404),
        ({"stream": "yes"}, 400),
        ({"stream_options": {"include_usage": 1}}, 400),
    ]
    async with open_service(postgres_dsn, {"models": models}) as service:
        for path, (fields, status) in itertools.product(SURFACES, wrong):
            (name,) = fields
            if name == "model" or path in STREAMING:
                answer = await send(service, path, body_for(path, "echo-1") | fields)
                assert (answer.status_code, error_of(answer)["param"].split(".")[0]) == (status, name)
        assert await service.pool.fetchval("select count(*) from requests") == 0


async def test_tokens_are_counted_at_once_or_not_at_all(service: Service) -> None:
    for field in ("stream", "background"):
        answer = await send(service, COUNT, body_for(COUNT, "echo-1", **{field: True}))
        assert (answer.status_code, error_of(answer)["param"]) == (400, field)


@pytest.mark.slow
async def test_a_failure_of_the_upstream_is_an_error_of_ours(service: Service) -> None:
    for path in SURFACES:
        expected = {400: 400, 401: 502, 404: 404, 405: 404, 429: 429, 500: 502, 501: 404, 503: 502}
        for stream in {False, path in STREAMING}:
            for given, status in expected.items():
                answer = await send(
                    service, path, body_for(path, f"error-{given}", **({"stream": True} if stream else {}))
                )
                assert answer.status_code == status, given
                assert error_of(answer)["message"]
                assert CANARY not in answer.text
                row = await last_row(service)
                assert (row["state"], row["http_status"], row["response_status"]) == ("failed", given, status)
                assert row["error_code"] in {"upstream_error", "rate_limited"}
                assert_nothing_kept(row)


async def test_a_refusal_names_what_its_client_sent(service: Service) -> None:
    inputs = {CHAT: "messages", TEXT: "prompt", EMBEDDINGS: "input", COUNT: "input"}
    for path, param in inputs.items():
        for model, named in (("toolong", param), ("badimage", param), ("badparam", "max_tokens")):
            answer = await send(service, path, body_for(path, model))
            told = (answer.status_code, error_of(answer)["param"])
            assert told == ((400, named) if (path, model) != (COUNT, "badparam") else (502, None)), (path, model)
            assert "max_output_tokens" not in answer.text
    assert "answer of one token" in error_of(answer)["message"]


async def test_a_refusal_from_the_queue_names_what_its_client_sent(service: Service) -> None:
    for stream in (False, True):
        for model in ("toolong", "badimage"):
            answer = await send(service, CHAT, body_for(CHAT, model, service_tier="flex", stream=stream))
            assert (answer.status_code, '"param":"messages"' in answer.text) == (200 if stream else 400, True), model
        answer = await send(service, CHAT, body_for(CHAT, "badparam", service_tier="flex", stream=stream))
        assert "does not accept max_tokens" in answer.text


@pytest.mark.slow
async def test_an_upstream_that_has_no_such_endpoint_is_named_as_the_reason(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn) as around:
        nowhere = {"upstreams": {"simulator": {"base_url": f"{around.simulator.origin}/nowhere/v1"}}}
        async with open_service(postgres_dsn, nowhere) as service:
            for path in SURFACES:
                answer = await send(service, path, body_for(path, "echo-1"))
                assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")
                assert "does not serve this kind of request" in error_of(answer)["message"]


@pytest.mark.slow
async def test_a_stream_that_breaks_off_says_so_behind_what_was_said(service: Service) -> None:
    for path, fault in itertools.product(STREAMING, ("cut", "reset", "eof", "midstream", "garbage", "binary")):
        answer = await send(service, path, body_for(path, f"echo-3-{fault}-each", stream=True))
        *chunks, last = read_frames(answer.content).datas
        assert set(last["error"]) == {"message", "type", "param", "code"}
        assert (len(chunks), CANARY in answer.text) == (4, False), fault
        row = await last_row(service)
        assert (row["state"], row["error_code"], row["http_status"]) == ("failed", "upstream_error", 200)


@pytest.mark.slow
async def test_a_whole_answer_that_breaks_off_is_an_error(service: Service) -> None:
    for path in SURFACES:
        for fault in ("cut", "reset", "eof", "midstream", "binary"):
            answer = await send(service, path, body_for(path, f"echo-3-{fault}"))
            assert (answer.status_code, CANARY in answer.text) == (502, False), fault
            assert (await last_row(service))["state"] == "failed"


async def test_a_count_that_the_upstream_does_not_give_is_none(service: Service) -> None:
    answer = await send(service, COUNT, body_for(COUNT, "echo-3-nousage"))
    assert (answer.status_code, "how many tokens" in error_of(answer)["message"]) == (502, True)


@pytest.mark.slow
async def test_a_database_that_is_gone_is_a_503_before_any_call(postgres_dsn: str) -> None:
    async with open_gated(postgres_dsn, GATED) as (service, gate):
        await gate.cut()
        for path in SURFACES:
            stream = {"stream": True} if path in STREAMING else {}
            answer = await send(service, path, body_for(path, "echo-1", **stream))
            assert (answer.status_code, error_of(answer)["type"]) == (503, "server_error")
        gate.restore()
        assert service.simulator.statistics().total == 0


# -- what was sent twice


async def test_a_key_keeps_a_call_from_being_made_twice(service: Service) -> None:
    for index, path in enumerate(SURFACES):
        key, asked = {"Idempotency-Key": f"k{index}"}, body_for(path, "echo-3")
        first = await send(service, path, asked, **key)
        again = await send(service, path, asked, **key)
        other = await send(service, path, body_for(path, "echo-4"), **key)
        assert first.status_code == 200
        assert (again.status_code, error_of(again)["code"]) == (409, "idempotency_replay_unavailable")
        assert "kept nowhere" in error_of(again)["message"], "whether it could be stored was not asked"
        assert "resp_" not in again.text, "no endpoint knows the call"
        assert (other.status_code, error_of(other)["code"]) == (409, "idempotency_key_reused")
        assert {answer.headers["x-should-retry"] for answer in (again, other)} == {"false"}
        assert service.simulator.statistics().total == index + 1


async def test_a_key_of_a_call_that_failed_is_free_again(service: Service) -> None:
    for index, path in enumerate(SURFACES):
        key, asked = {"Idempotency-Key": f"k{index}"}, body_for(path, "echo-3-flaky-1", f"hello key:{index}")
        assert (await send(service, path, asked, **key)).status_code == 502
        assert (await send(service, path, asked, **key)).status_code == 200


async def test_a_repeat_of_what_is_under_way_is_to_come_again(service: Service) -> None:
    key, asked = {"Idempotency-Key": "k"}, body_for(CHAT, "gate-2", "hello key:held")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(send, service, CHAT, asked, **key))
        await service.simulator.wait_until(lambda counts: counts.paused == 1)
        answer = await send(service, CHAT, asked, **key)
        service.simulator.resume("held")
    assert (answer.status_code, error_of(answer)["code"]) == (409, "idempotency_key_in_use")
    assert answer.headers["retry-after"] == "1"


async def test_the_same_body_with_the_same_key_is_another_request_elsewhere(service: Service) -> None:
    key, asked = {"Idempotency-Key": "k1"}, {"model": "echo-3", "input": "hello"}
    assert (await send(service, EMBEDDINGS, asked, **key)).status_code == 200
    for path in ("/v1/responses", COUNT):
        answer = await send(service, path, asked, **key)
        assert (answer.status_code, error_of(answer)["code"]) == (409, "idempotency_key_reused")


# -- how many tokens there would be


async def test_the_count_is_that_of_the_first_call_and_nothing_is_answered(service: Service) -> None:
    tool = {"type": "function", "name": "look", "parameters": {"type": "object"}}
    asked = body_for(COUNT, "alias", instructions="be kind", tools=[tool], temperature=0.5, max_output_tokens=400)
    answer = await send(service, COUNT, asked)
    assert json.loads(answer.content) == {"object": "response.input_tokens", "input_tokens": 4}
    (sent,) = service.simulator.requests
    response = await send(service, "/v1/responses", asked)
    counted, made = (received.body for received in service.simulator.requests)
    limit = next(name for name in ("max_tokens", "max_completion_tokens") if name in made)
    assert (counted.pop(limit), made.pop(limit)) == (1, 400)
    assert counted == made == {name: value for name, value in sent.body.items() if name != limit}
    assert response.json()["usage"]["input_tokens"] == 4


async def test_tokens_are_counted_with_what_was_said_before(service: Service) -> None:
    async def count(**fields: Any) -> int:
        answer = await service.client.post("/v1/responses/input_tokens", json={"model": "echo-2", **fields})
        assert answer.status_code == 200, answer.text
        return int(answer.json()["input_tokens"])

    first = await service.client.post("/v1/responses", json={"model": "echo-2", "input": "one two three"})
    earlier = first.json()["id"]

    alone, in_turn = await count(input="four"), await count(input="four", previous_response_id=earlier)

    assert in_turn >= alone + 5  # the three words, and the two of the answer
