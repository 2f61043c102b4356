"""Flex chat completions over real sockets: answers, streams, hang-ups, cancels, and what keeps one from the queue."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from tests.http.conftest import WAIT_S, as_request, error_of, open_raw
from tests.http.database_gate import QUICK as GATED
from tests.http.database_gate import open_gated

from dwctl_trio.domain import ids
from dwctl_trio.testing.service import Service, open_service
from dwctl_trio.testing.simulator_reply import CANARY
from dwctl_trio.testing.simulator_script import expected_text

PATH = "/v1/chat/completions"
QUICK = {"queue_poll_s": 0.05, "follow_poll_s": 0.05, "lease_watch_s": 0.05, "queue_retry_s": 0.05, "queue_attempts": 1}
"""What is missed by a lost hint is found at once; what fails is over."""
NO_WORKERS = QUICK | {"queue_workers": 0}
"""The queue is only filled."""
WORD = b'"content":"word'


@pytest.fixture
async def service(postgres_dsn: str) -> AsyncIterator[Service]:
    async with open_service(postgres_dsn, {"limits": QUICK}) as service:
        yield service


def chat(model: str, key: str = "none", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"hello key:{key}"}]
    return {"model": model, "messages": messages, "service_tier": "flex", "store": True, "user": key, **fields}


async def post(service: Service, body: Any, **headers: str) -> httpx.Response:
    with trio.fail_after(WAIT_S):
        return await service.client.post(PATH, json=body, headers=headers)


async def state_of(service: Service, key: str) -> str | None:
    return await service.pool.fetchval("select state from requests where request->>'user' = $1", key)


async def wait_state(service: Service, key: str, *states: str) -> str:
    """The state of the completion with this key, once it is one of *states*."""
    with trio.fail_after(WAIT_S):
        while (state := await state_of(service, key)) not in states:
            await trio.lowlevel.checkpoint()
    return state


def datas(body: bytes) -> list[Any]:
    """The JSON of every frame but the last one, which is ``[DONE]``."""
    frames = [frame for frame in body.split(b"\n\n") if frame.startswith(b"data: ")]
    assert frames.pop() == b"data: [DONE]"
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames]


def said(chunks: list[Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def test_a_completion_is_answered_as_the_upstream_gave_it(service: Service) -> None:
    answer = await post(service, chat("echo-3", key="whole"))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    row = await service.pool.fetchrow("select id, surface, response::text, priority from requests")
    assert answer.text == row["response"]
    assert answer.headers["x-response-id"] == ids.response_id_text(row["id"])
    assert (row["surface"], row["priority"]) == ("chat", 2)
    assert answer.json()["choices"][0]["message"]["content"] == expected_text("echo-3")


@pytest.mark.slow
async def test_what_is_not_to_be_stored_is_answered_all_the_same(service: Service) -> None:
    for stream in (False, True):
        answer = await post(service, chat("echo-3", store=None, stream=stream))
        assert "word2" in answer.text
    assert await service.pool.fetchval("select count(*) from requests where request is null and response is null") == 2


@pytest.mark.slow
async def test_a_stream_is_alive_while_it_waits_and_told_word_for_word(postgres_dsn: str) -> None:
    async with (
        open_service(postgres_dsn, {"limits": QUICK | {"keep_alive_s": 0.05}}) as service,
        open_raw(service) as client,
    ):
        await client.send(as_request(chat("gate-pause-2-each", "live", stream=True), path=PATH))
        with trio.fail_after(WAIT_S):
            head = await client.read_until(b": ping\n", 2)
            assert b"HTTP/1.1 200" in head
            assert b"text/event-stream" in head
            assert b"x-response-id: resp_" in head
            await wait_state(service, "live", "processing")
            service.simulator.resume("live")
            await client.read_until(WORD, 2)
            assert b"word2" not in client.received
            service.simulator.resume("live")
            received = await client.read_until(b"data: [DONE]\n\n")
    assert received.count(WORD) == 16


async def test_no_chat_completion_is_a_response(service: Service) -> None:
    name = (await post(service, chat("echo-3"))).headers["x-response-id"]
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/steps"), ("POST", "/cancel"), ("GET", "?stream=true")):
        answer = await service.client.request(method, f"/v1/responses/{name}{path}")
        assert answer.status_code == 404, path


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (chat("echo-1", service_tier="turbo"), "service_tier"),
        (chat("echo-1", messages=[]), "messages"),
        (chat("echo-1", messages=["hello"]), "messages[0]"),
        (chat("echo-1", stream="yes"), "stream"),
        ({"messages": [{}], "service_tier": "flex"}, "model"),
        ([], None),
    ],
)
async def test_what_is_not_served_is_refused_before_the_queue(service: Service, body: Any, param: str | None) -> None:
    answer = await post(service, body)
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)
    assert await service.pool.fetchval("select count(*) from requests") == 0


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_of_a_providers_error_reaches_the_client(service: Service, stream: bool) -> None:
    for model in ("error-400", "error-503", "html-200", "echo-3-each-midstream", "echo-3-garbage"):
        answer = await post(service, chat(model, stream=stream))
        assert CANARY not in answer.text, model
        if stream:
            (error,) = [data["error"] for data in datas(answer.content) if "error" in data]
            assert set(error) == {"message", "type", "param", "code"}
            assert answer.status_code == 200
        else:
            assert error_of(answer)["message"]
            assert answer.status_code >= 400
    rows = await service.pool.fetch("select error::text, response::text from requests")
    assert all(CANARY not in f"{row['error']}{row['response']}" for row in rows)


# -- who hangs up


async def _leave(service: Service, key: str, *, stream: bool) -> None:
    """Ask for a completion that pauses after two words, or waits for its head, and leave while it does."""
    model = "pause-2-4-each" if stream else "gate"
    async with open_raw(service) as client:
        await client.send(as_request(chat(model, key, stream=stream), path=PATH))
        with trio.fail_after(WAIT_S):
            await service.simulator.wait_until(lambda counts: counts.paused == 1)
            if stream:
                await client.read_until(WORD, 2)
        await client.hang_up()


@pytest.mark.parametrize("stream", [False, True])
async def test_who_hangs_up_changes_nothing(service: Service, stream: bool) -> None:
    await _leave(service, "left", stream=stream)
    service.simulator.resume("left")
    assert await wait_state(service, "left", "completed", "canceled", "failed") == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
async def test_who_hangs_up_ends_it_where_the_configuration_says_so(postgres_dsn: str, stream: bool) -> None:
    async with open_service(postgres_dsn, {"limits": QUICK, "flex_on_disconnect": "cancel"}) as service:
        await _leave(service, "left", stream=stream)
        assert await wait_state(service, "left", "completed", "canceled", "failed") == "canceled"
        with trio.fail_after(WAIT_S):
            await service.simulator.wait_aborted("left")


# -- who cancels, and what the client that waits is told


async def _cancel(service: Service, key: str) -> None:
    await service.pool.execute("update requests set cancel_requested_at = dwctl_now() where request->>'user' = $1", key)


@pytest.mark.slow
async def test_a_client_that_waits_is_told_of_a_cancel_and_not_to_repeat(service: Service) -> None:
    async with trio.open_nursery() as nursery:
        answers: list[httpx.Response] = []

        async def wait() -> None:
            answers.append(await post(service, chat("gate", "cancelled")))

        nursery.start_soon(wait)
        await wait_state(service, "cancelled", "processing")
        await _cancel(service, "cancelled")
    (answer,) = answers
    assert (answer.status_code, error_of(answer)["code"]) == (409, "request_cancelled")
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.slow
async def test_a_client_that_follows_is_told_of_a_cancel_behind_what_it_has(service: Service) -> None:
    async with open_raw(service) as client:
        await client.send(as_request(chat("pause-2-4-each", "cancelled", stream=True), path=PATH))
        with trio.fail_after(WAIT_S):
            await client.read_until(WORD, 2)
            await _cancel(service, "cancelled")
            received = await client.read_until(b"data: [DONE]\n\n")
    *_, last, end = received.replace(b"\r\n", b"\n").split(b"data: ")
    assert b"request_cancelled" in last
    assert end.startswith(b"[DONE]")


# -- what was sent twice


@pytest.mark.parametrize("stream", [False, True])
async def test_a_repeat_has_the_completion_of_the_first(service: Service, stream: bool) -> None:
    key = {"Idempotency-Key": "k1"}
    first = await post(service, chat("echo-3", stream=stream), **key)
    second = await post(service, chat("echo-3", stream=stream), **key)
    other = await post(service, chat("echo-4", stream=stream), **key)
    assert second.content == first.content
    assert (second.headers["idempotent-replayed"], "idempotent-replayed" in first.headers) == ("true", False)
    assert second.headers["x-response-id"] == first.headers["x-response-id"]
    assert (other.status_code, error_of(other)["code"]) == (409, "idempotency_key_reused")
    assert service.simulator.statistics().total == 1


async def test_a_repeat_of_what_is_not_kept_any_more_is_told_so(service: Service) -> None:
    for stream in (False, True):
        key = {"Idempotency-Key": f"k{stream}"}
        await post(service, chat("echo-3", stream=stream, store=False), **key)
        await service.pool.execute("delete from response_events")
        await service.pool.execute("update requests set last_sequence = null")
        answer = await post(service, chat("echo-3", stream=stream, store=False), **key)
        assert (answer.status_code, error_of(answer)["code"]) == (409, "idempotency_replay_unavailable")


# -- what keeps a request from the queue, and a client from its answer


async def test_who_is_not_known_gets_nothing_into_the_queue(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": QUICK, "auth": {"mode": "keys"}}) as service:
        for headers in ({}, {"authorization": "Bearer sk-nonsense"}):
            answer = await post(service, chat("echo-1"), **headers)
            assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
        assert await service.pool.fetchval("select count(*) from requests") == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_enqueued_is_a_json_error(service: Service, stream: bool) -> None:
    await service.pool.execute("alter table requests add constraint no_more check (model <> 'echo-1')")
    answer = await post(service, chat("echo-1", stream=stream))
    assert (answer.status_code, "Failed to enqueue" in error_of(answer)["message"]) == (500, True)


async def test_a_deleted_completion_is_gone_for_who_waits(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": NO_WORKERS}) as service, trio.open_nursery() as nursery:
        answers: list[httpx.Response] = []

        async def wait() -> None:
            answers.append(await post(service, chat("echo-1", "gone")))

        nursery.start_soon(wait)
        await wait_state(service, "gone", "pending")
        await service.pool.execute("delete from requests")
        with trio.fail_after(WAIT_S):
            while not answers:
                await trio.lowlevel.checkpoint()
        assert answers[0].status_code == 404


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
async def test_a_database_that_is_gone_is_a_503_before_any_stream(postgres_dsn: str, stream: bool) -> None:
    async with open_gated(postgres_dsn, GATED | QUICK) as (service, gate):
        await gate.cut()
        answer = await post(service, chat("echo-1", stream=stream))
        gate.restore()
    assert (answer.status_code, error_of(answer)["type"]) == (503, "server_error")
    assert answer.headers["retry-after"]


@pytest.mark.slow
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}], ids=["no-key", "key"])
async def test_who_cannot_wait_any_longer_hears_what_to_do(postgres_dsn: str, headers: dict[str, str]) -> None:
    answers: list[httpx.Response] = []
    limits = GATED | QUICK | {"follow_patience_s": 0.2}
    async with open_gated(postgres_dsn, limits) as (service, gate), trio.open_nursery() as nursery:

        async def wait() -> None:
            answers.append(await post(service, chat("echo-4-pause-2", "p"), **headers))

        nursery.start_soon(wait)
        await service.simulator.wait_until(lambda counts: counts.paused == 1)
        await gate.cut()
        with trio.fail_after(WAIT_S):
            while not answers:
                await trio.testing.wait_all_tasks_blocked(0.01)
        gate.restore()
        service.simulator.resume("p")
        assert (answers[0].status_code, "goes on" in error_of(answers[0])["message"]) == (503, True)
        assert answers[0].headers.get("x-should-retry") == (None if headers else "false")
        if headers:
            again = await post(service, chat("echo-4-pause-2", "p"), **headers)
            assert again.json()["choices"][0]["message"]["content"] == expected_text("echo-4")
        assert service.simulator.statistics().total == 1


@pytest.mark.slow
async def test_a_row_that_nobody_may_try_again_ends_the_wait(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": QUICK | {"flex_deadline_s": 1.0}}) as service:
        answer = await post(service, chat("gate"))
    assert (answer.status_code, "deadline" in error_of(answer)["message"]) == (504, True)
