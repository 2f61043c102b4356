"""Streams that are cut, and waits that are given up, while the response goes on: the client knows, and comes back."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from tests.http.conftest import DELTA, WAIT_S, as_request, ask, error_of, open_raw, read_valid_stream, wait_terminal
from tests.http.database_gate import QUICK as GATED
from tests.http.database_gate import open_gated
from tests.http.queued import BACKGROUND, DONE, FLEX, NO_WORKERS, QUICK, frames_of, get, post

from dwctl_trio.domain import ids
from dwctl_trio.testing.service import Service, open_service

pytestmark = pytest.mark.usefixtures("each_server_at_length")

IMPATIENT = GATED | QUICK | {"follow_patience_s": 0.2}
QUEUED = [BACKGROUND, BACKGROUND | {"stream": True}, FLEX, FLEX | {"stream": True}]
QUEUED_IDS = ["background", "background-stream", "flex", "flex-stream"]


@pytest.mark.slow
async def test_a_follower_that_the_database_keeps_waiting_is_cut_and_comes_back(postgres_dsn: str) -> None:
    body = ask("echo-4-pause-2-each", key="p", stream=True, **BACKGROUND)
    async with open_gated(postgres_dsn, IMPATIENT) as (service, gate):
        async with service.client.stream("POST", "/v1/responses", json=body) as answer:
            received, is_broken = b"", False
            try:
                async for data in answer.aiter_bytes():
                    received += data
                    if received.count(DELTA) == 2:
                        await gate.cut()
            except httpx.RemoteProtocolError:
                is_broken = True
        gate.restore()
        service.simulator.resume("p")
        row = await wait_terminal(service, "p")
        cut = frames_of(received)
        response_id = answer.headers["x-response-id"]
        rest = await get(service, response_id, f"?stream=true&starting_after={len(cut) - 1}")
        whole = await get(service, response_id, "?stream=true")

    assert is_broken, "an end in good order would look like the end of the response"
    assert DONE not in received
    assert row["state"] == "completed"
    assert cut + frames_of(rest.content) == frames_of(whole.content)
    read_valid_stream(whole.content, body)
    print(f"cut after {len(cut)} of {len(frames_of(whole.content)) - 1} events, and the rest followed")


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, "k"], ids=["no-key", "key"])
@pytest.mark.parametrize("store", [True, False], ids=["stored", "unstored"])
async def test_a_client_that_cannot_wait_any_longer_hears_what_to_do(
    postgres_dsn: str, store: bool, key: str | None
) -> None:
    body = ask("echo-4-pause-2", key="p", store=store, **FLEX)
    headers = {} if key is None else {"Idempotency-Key": key}
    answers: list[httpx.Response] = []
    async with open_gated(postgres_dsn, IMPATIENT) as (service, gate), trio.open_nursery() as nursery:

        async def wait() -> None:
            answers.append(await post(service, body, **headers))

        nursery.start_soon(wait)
        await service.simulator.wait_until(lambda counts: counts.paused == 1)
        await gate.cut()
        with trio.fail_after(WAIT_S):
            while not answers:
                await trio.testing.wait_all_tasks_blocked(0.01)
        gate.restore()
        service.simulator.resume("p")

        response_id, message = answers[0].headers["x-response-id"], error_of(answers[0])["message"]
        assert answers[0].status_code == 503
        assert f"{response_id} goes on" in message
        if key is not None:
            assert ("same Idempotency-Key" in message, "retry-after" in answers[0].headers) == (True, True)
            again = await post(service, body, **headers)
            assert (again.status_code, again.json()["id"]) == (200, response_id)
            assert again.headers["idempotent-replayed"] == "true"
        else:
            assert answers[0].headers["x-should-retry"] == "false"
            assert (f"GET /v1/responses/{response_id}" in message) == store
        assert await _count_rows(service) == 1


async def _count_rows(service: Service) -> int:
    return int(await service.pool.fetchval("select count(*) from requests"))


@pytest.mark.slow
@pytest.mark.parametrize("fields", QUEUED, ids=QUEUED_IDS)
async def test_what_cannot_be_enqueued_is_a_clean_error_before_any_stream(
    postgres_dsn: str, fields: dict[str, Any]
) -> None:
    async with open_gated(postgres_dsn, IMPATIENT) as (service, gate):
        await gate.cut()
        refused = await post(service, ask("echo-2", **fields))
        gate.restore()

    assert (refused.status_code, error_of(refused)["type"]) == (503, "server_error")
    assert refused.headers["retry-after"]


@pytest.mark.parametrize("fields", QUEUED, ids=QUEUED_IDS)
async def test_what_the_database_refuses_is_a_500_that_says_what_failed(
    postgres_dsn: str, fields: dict[str, Any]
) -> None:
    async with open_service(postgres_dsn, {"limits": NO_WORKERS}) as service:
        await service.pool.execute("alter table requests add check (model <> 'echo-2')")

        refused = await post(service, ask("echo-2", **fields))

        error = error_of(refused)
        assert (refused.status_code, error["type"], error["code"]) == (500, "server_error", "server_error")
        assert error["message"].startswith("Failed to enqueue request")
        assert await _count_rows(service) == 0


@pytest.mark.slow
async def test_a_follower_that_does_not_read_is_cut_and_holds_up_nobody(postgres_dsn: str) -> None:
    limits = QUICK | {"write_progress_s": 0.3, "upstream_event_bytes": 16_000_000, "owner_responses": 2}
    async with open_service(postgres_dsn, {"limits": limits}) as service:
        # Its text is in five events, more than the kernel and our channel hold.
        response_id = (await post(service, ask("big-3000000", key="b", **BACKGROUND))).json()["id"]
        async with open_raw(service, receive_bytes=4096) as lazy, AsyncExitStack() as stack:
            await lazy.send(_following(response_id))
            await lazy.read_until(b"HTTP/1.1 200")
            row = await wait_terminal(service, "b")
            whole = await get(service, response_id, "?stream=true")
            waiting = (await post(service, ask("hang", **BACKGROUND))).json()["id"]
            with trio.fail_after(WAIT_S):
                while await stack.enter_async_context(_open_stream(service, waiting)) == 429:
                    pass  # the places of the requests before are about to be free
                while (await get(service, response_id, "?stream=true&starting_after=1")).status_code == 429:
                    pass  # the lazy one holds its place until it is cut
            received = await lazy.read_to_end()

    assert row["state"] == "completed"
    assert DONE in whole.content
    assert DONE not in received
    assert len(received) < len(whole.content)


@asynccontextmanager
async def _open_stream(service: Service, response_id: str) -> AsyncIterator[int]:
    """A follower for the block; the status of its answer."""
    async with service.client.stream("GET", f"/v1/responses/{response_id}?stream=true") as answer:
        yield answer.status_code


def _following(response_id: str) -> bytes:
    """A GET of the events as it goes over the wire."""
    return f"GET /v1/responses/{response_id}?stream=true HTTP/1.1\r\nHost: test\r\n\r\n".encode()


async def test_every_answer_to_a_queued_post_names_its_response(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": QUICK}) as service:
        for fields in QUEUED:
            answer = await post(service, ask("echo-2", **fields))
            assert ids.parse_response_id(answer.headers["x-response-id"])
            assert answer.headers["x-response-id"] in answer.text
        async with open_raw(service) as client:
            await client.send(as_request(ask("hang", stream=True, **FLEX)))
            await client.read_until(b"x-response-id: resp_")
