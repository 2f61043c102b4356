"""``Idempotency-Key`` on queued requests: a repeat goes on with the row of the first, however far that is."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio
from tests.http.conftest import DELTA, WAIT_S, as_request, ask, error_of, open_raw, output_text, read_valid_stream
from tests.http.queued import (
    BACKGROUND,
    FLEX,
    NO_WORKERS,
    QUICK,
    cancel,
    frames_of,
    get,
    last_response,
    post,
    wait_ended,
)

from dwctl_trio.testing.service import Service, open_service

KEY = {"Idempotency-Key": "k"}
STREAMED = {"stream": True}
ALL = [BACKGROUND, BACKGROUND | STREAMED, FLEX, FLEX | STREAMED]
ALL_IDS = ["background", "background-stream", "flex", "flex-stream"]
RACERS = 20


@pytest.fixture
async def service(postgres_dsn: str) -> AsyncIterator[Service]:
    async with open_service(postgres_dsn, {"limits": QUICK}) as service:
        yield service


def is_replay(answer: httpx.Response) -> bool:
    """Whether it says that it is one."""
    return answer.headers.get("idempotent-replayed") == "true"


async def count_rows(service: Service) -> int:
    """Rows, each of which is a response."""
    return int(await service.pool.fetchval("select count(*) from requests"))


@pytest.mark.parametrize("fields", ALL, ids=ALL_IDS)
async def test_a_repeat_after_the_end_gets_the_same_response(service: Service, fields: dict[str, Any]) -> None:
    body = ask("echo-5-each", **fields)
    first = await post(service, body, **KEY)
    response_id = first.headers["x-response-id"]
    shown = await wait_ended(service, response_id)

    again = await post(service, body, **KEY)

    assert (again.status_code, is_replay(first), is_replay(again)) == (200, False, True)
    assert again.headers["x-response-id"] == response_id
    assert await count_rows(service) == service.simulator.statistics().total == 1
    if "stream" in fields:
        assert frames_of(again.content) == frames_of(first.content)
        read_valid_stream(again.content, body)
    else:
        assert again.json() == shown
        assert output_text(again.json()) == "word0 word1 word2 word3 word4 "


@pytest.mark.parametrize("fields", ALL[1:], ids=ALL_IDS[1:])
async def test_a_repeat_while_it_runs_waits_with_the_first(service: Service, fields: dict[str, Any]) -> None:
    body = ask("echo-4-pause-2", key="p", **fields)
    answers: list[httpx.Response] = []

    async def send() -> None:
        answers.append(await post(service, body, **KEY))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await service.simulator.wait_until(lambda counts: counts.paused == 1)
        nursery.start_soon(send)
        await _wait_replayed(service)
        service.simulator.resume("p")

    assert sorted(is_replay(answer) for answer in answers) == [False, True]
    contents = {answer.content.replace(b": ping\n", b"") for answer in answers}
    assert len(contents) == 1
    assert await count_rows(service) == service.simulator.statistics().total == 1


async def _wait_replayed(service: Service) -> None:
    """Return when a repeat has found the first one's row."""
    with trio.fail_after(WAIT_S):
        while "dwctl_idempotent_replays_total 1.0" not in (await service.client.get("/metrics")).text:
            await trio.lowlevel.checkpoint()


async def test_a_repeat_at_once_shows_the_response_in_the_queue(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": NO_WORKERS}) as service:
        first = await post(service, ask("echo-2", **BACKGROUND), **KEY)
        again = await post(service, ask("echo-2", **BACKGROUND), **KEY)

        assert again.json() == first.json()
        assert is_replay(again)
        assert await count_rows(service) == 1


@pytest.mark.parametrize("fields", ALL, ids=ALL_IDS)
async def test_another_body_is_a_conflict(service: Service, fields: dict[str, Any]) -> None:
    await post(service, ask("echo-2", **fields), **KEY)

    for change in ({"input": "other"}, {"background": not fields.get("background", False)}):
        refused = await post(service, ask("echo-2", **fields) | change, **KEY)
        error = error_of(refused)
        assert (refused.status_code, error["code"]) == (409, "idempotency_key_reused")
        assert refused.headers["x-should-retry"] == "false"
    assert await count_rows(service) == 1


@pytest.mark.parametrize("fields", [BACKGROUND, FLEX | STREAMED], ids=["at-once", "stream"])
async def test_many_at_once_with_one_key_make_one_response(service: Service, fields: dict[str, Any]) -> None:
    body, answers = ask("echo-3-each", **fields), []

    async with trio.open_nursery() as nursery:

        async def send() -> None:
            answers.append(await post(service, body, **KEY))

        for _ in range(RACERS):
            nursery.start_soon(send)

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["x-response-id"] for answer in answers}) == 1
    assert [is_replay(answer) for answer in answers].count(False) == 1
    assert await count_rows(service) == 1


async def test_a_deleted_response_lets_its_key_go(service: Service) -> None:
    body = ask("echo-2", **BACKGROUND)
    first = await post(service, body, **KEY)
    await service.client.delete(f"/v1/responses/{first.json()['id']}")

    again = await post(service, body, **KEY)

    assert again.json()["id"] != first.json()["id"]
    assert not is_replay(again)


async def test_a_client_that_leaves_a_repeat_does_not_end_the_run_of_the_first(postgres_dsn: str) -> None:
    options = {"limits": QUICK, "flex_on_disconnect": "cancel"}
    body = ask("echo-4-pause-2", key="p", **FLEX, **STREAMED)
    async with open_service(postgres_dsn, options) as service, open_raw(service) as first:
        await first.send(as_request(body, "Idempotency-Key: k"))
        await first.read_until(DELTA, 2)
        async with open_raw(service) as second:
            await second.send(as_request(body, "Idempotency-Key: k"))
            await second.read_until(DELTA, 2)
            await second.hang_up()
        service.simulator.resume("p")
        with trio.fail_after(WAIT_S):
            received = await first.read_until(b"data: [DONE]\n\n")

    assert b"event: response.completed\n" in received


@pytest.mark.parametrize("fields", [FLEX, FLEX | STREAMED], ids=["blocking", "stream"])
async def test_a_repeat_of_what_was_not_stored_is_served_while_its_events_are_there(
    service: Service, fields: dict[str, Any]
) -> None:
    body = ask("echo-3", store=False, **fields)
    first = await post(service, body, **KEY)
    again = await post(service, body, **KEY)
    await service.pool.execute("update requests set last_sequence = null")
    await service.pool.execute("delete from response_events")
    refused = await post(service, body, **KEY)

    assert again.content == first.content.replace(b": ping\n", b"")
    assert (refused.status_code, error_of(refused)["code"]) == (409, "idempotency_replay_unavailable")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "blocking"])
async def test_the_row_of_a_warm_request_with_the_same_key_and_body_does_no_harm(
    service: Service, stream: bool
) -> None:
    body = ask("echo-3", stream=stream, **FLEX)
    first = await post(service, ask("echo-3", stream=stream), **KEY)
    digest = await _digest_of(service, body)  # as if the same body had once been served warm
    await service.pool.execute("alter table requests disable trigger user")  # which keeps what has ended as it is
    await service.pool.execute("update requests set idempotency_digest = $1 where idempotency_key = 'k'", digest)

    again = await post(service, body, **KEY)

    assert again.content == first.content
    assert is_replay(again)
    if stream:
        assert last_response(again) == (await get(service, again.headers["x-response-id"])).json()


async def _digest_of(service: Service, body: dict[str, Any]) -> bytes:
    """The digest of *body*, as the server makes it."""
    other = await post(service, body, **{"Idempotency-Key": "other"})
    assert other.status_code == 200
    return bytes(await service.pool.fetchval("select idempotency_digest from requests where idempotency_key = 'other'"))


async def test_a_background_response_keeps_its_key_however_it_ends(service: Service) -> None:
    for model, ends in (("echo-3-pause-2", "cancelled"), ("error-400", "failed")):
        body, key = ask(model, **BACKGROUND), {"Idempotency-Key": model}
        first = await post(service, body, **key)
        if ends == "cancelled":
            await cancel(service, first.json()["id"])
        ended = await wait_ended(service, first.json()["id"])

        again = await post(service, body, **key)

        assert ended["status"] == ends
        assert again.json() == ended
        assert is_replay(again)
