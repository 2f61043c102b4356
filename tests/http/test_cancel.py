"""``POST …/cancel`` and DELETE of whatever is under way: queued, running here or elsewhere, warm or not."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from tests.http.conftest import (
    DELTA,
    WAIT_S,
    as_request,
    ask,
    assert_serves,
    error_of,
    find_row,
    open_raw,
    output_text,
    read_valid_stream,
    wait_terminal,
)
from tests.http.queued import BACKGROUND, FLEX, NO_WORKERS, QUICK, cancel, get, last_response, post, wait_ended

from dwctl_trio.domain import ids
from dwctl_trio.testing.service import Service, open_service

ABORT_S = 1.0
"""The upstream must see within this that nobody wants its answer any more."""


@pytest.fixture
async def service(postgres_dsn: str) -> AsyncIterator[Service]:
    async with open_service(postgres_dsn, {"limits": QUICK}) as service:
        yield service


async def begin(service: Service, key: str, **fields: Any) -> str:
    """Start a background response whose model pauses after two words; its id."""
    created = (await post(service, ask("echo-4-pause-2", key=key, **BACKGROUND, **fields))).json()
    await service.simulator.wait_until(lambda counts: counts.paused == 1)
    return str(created["id"])


def id_in(received: bytes) -> str:
    """The response's id in the first event."""
    return received.split(b'"id":"', 1)[1].split(b'"', 1)[0].decode()


async def test_a_running_background_response_is_cancelled_with_what_it_has(service: Service) -> None:
    response_id = await begin(service, "p")

    asked_at = trio.current_time()
    with trio.fail_after(ABORT_S):
        cancelled = await cancel(service, response_id)
        await service.simulator.wait_aborted("p")
    print(f"cancelled, and the upstream let go, within {(trio.current_time() - asked_at) * 1000:.0f} ms")

    shown = cancelled.json()
    assert (cancelled.status_code, shown["status"], shown["error"]) == (200, "cancelled", None)
    assert output_text(shown) == "word0 word1 "
    assert [item["status"] for item in shown["output"]] == ["incomplete"]
    assert (await get(service, response_id)).content == cancelled.content
    told = await get(service, response_id, "?stream=true")
    read_valid_stream(told.content, ask("echo-4-pause-2", key="p", **BACKGROUND))
    assert last_response(told) == shown
    await assert_serves(service)


async def test_a_response_in_the_queue_is_cancelled_without_a_worker(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": NO_WORKERS}) as service:
        body = ask("echo-4", **BACKGROUND)
        created = (await post(service, body)).json()

        with trio.fail_after(ABORT_S):
            cancelled = await cancel(service, created["id"])

        assert (cancelled.json()["status"], cancelled.json()["output"]) == ("cancelled", [])
        read_valid_stream((await get(service, created["id"], "?stream=true")).content, body)
        assert (await get(service, f"{created['id']}/steps")).json()["data"] == []
        assert service.simulator.statistics().total == 0


@pytest.mark.parametrize("fields", [{}, BACKGROUND], ids=["warm", "background"])
@pytest.mark.parametrize("model", ["echo-2", "echo-2-length", "echo-2-cut-each"])
async def test_a_response_that_has_ended_stays_as_it_is(service: Service, model: str, fields: dict[str, Any]) -> None:
    created = (await post(service, ask(model, **fields))).json()
    ended = await wait_ended(service, created["id"])

    answers = [await cancel(service, created["id"]) for _ in range(2)]

    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, ended)] * 2
    assert ended["status"] != "cancelled"


async def test_cancelling_again_and_at_the_same_time_gives_the_same(service: Service) -> None:
    response_id = await begin(service, "p")
    answers = []

    async with trio.open_nursery() as nursery:

        async def ask_to_cancel() -> None:
            answers.append(await cancel(service, response_id))

        for _ in range(5):
            nursery.start_soon(ask_to_cancel)
    answers.append(await cancel(service, response_id))

    assert {(answer.status_code, answer.content) for answer in answers} == {(200, answers[0].content)}
    assert answers[0].json()["status"] == "cancelled"


async def test_a_warm_stream_that_is_cancelled_ends_with_an_event_that_says_so(service: Service) -> None:
    body = ask("echo-4-pause-2", key="p", stream=True)
    async with open_raw(service) as client:
        await client.send(as_request(body))
        response_id = id_in(await client.read_until(DELTA, 2))

        with trio.fail_after(ABORT_S):
            cancelled = await cancel(service, response_id)
            await service.simulator.wait_aborted("p")
            await client.read_until(b"data: [DONE]\n\n")

    shown = cancelled.json()
    assert (cancelled.status_code, shown["status"], output_text(shown)) == (200, "cancelled", "word0 word1 ")
    assert b"event: response.incomplete\n" in client.received
    assert b'"status":"cancelled"' in client.received
    told = await get(service, response_id, "?stream=true")
    read_valid_stream(told.content, body)
    assert last_response(told) == shown


async def test_a_warm_client_that_waits_is_answered_with_the_cancelled_response(service: Service) -> None:
    answers = []
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            answers.append(await post(service, ask("echo-4-pause-2", key="p")))

        nursery.start_soon(wait)
        await service.simulator.wait_until(lambda counts: counts.paused == 1)
        with trio.fail_after(WAIT_S):
            while (row := await find_row(service, "p")) is None:  # the model may be called before the row is there
                pass
        cancelled = await cancel(service, ids.response_id_text(row["id"]))

    assert (answers[0].status_code, answers[0].content) == (200, cancelled.content)
    assert cancelled.json()["status"] == "cancelled"


async def test_a_response_of_another_process_is_cancelled_there(postgres_dsn: str) -> None:
    async with (
        open_service(postgres_dsn, {"limits": QUICK}) as working,
        open_service(postgres_dsn, {"limits": NO_WORKERS}) as asking,
    ):
        background = await begin(working, "b")
        async with open_raw(working) as client:
            await client.send(as_request(ask("echo-4-pause-2", key="w", stream=True)))
            warm = id_in(await client.read_until(DELTA, 2))
            for key, response_id in (("b", background), ("w", warm)):
                asked_at = trio.current_time()
                with trio.fail_after(ABORT_S):
                    cancelled = await cancel(asking, response_id)
                    await working.simulator.wait_aborted(key)
                print(f"{key}: cancelled from another process within {(trio.current_time() - asked_at) * 1000:.0f} ms")
                assert (cancelled.json()["status"], output_text(cancelled.json())) == ("cancelled", "word0 word1 ")


@pytest.mark.parametrize("name", ["", "resp_1", "resp_00000000-0000-4000-8000-000000000000"])
async def test_what_is_not_there_cannot_be_cancelled(service: Service, name: str) -> None:
    refused = await cancel(service, name or "x")

    assert (refused.status_code, error_of(refused)["code"]) == (404, "not_found")


@pytest.mark.parametrize("fields", [{}, FLEX], ids=["warm", "flex"])
async def test_what_is_not_stored_cannot_be_cancelled(service: Service, fields: dict[str, Any]) -> None:
    async with open_raw(service) as client:
        await client.send(as_request(ask("echo-4-pause-2", key="p", stream=True, store=False, **fields)))
        response_id = id_in(await client.read_until(DELTA, 2))

        refused = [await cancel(service, response_id), await service.client.delete(f"/v1/responses/{response_id}")]

        service.simulator.resume("p")
        with trio.fail_after(WAIT_S):
            await client.read_until(b"event: response.completed\n")
    assert [answer.status_code for answer in refused] == [404, 404]


# -- DELETE


@pytest.mark.parametrize("fields", [{}, BACKGROUND, FLEX], ids=["warm", "background", "flex"])
async def test_deleting_a_response_under_way_cancels_it_first(service: Service, fields: dict[str, Any]) -> None:
    async with open_raw(service) as client:
        await client.send(as_request(ask("echo-4-pause-2", key="p", stream=True, **fields)))
        response_id = id_in(await client.read_until(DELTA, 2))

        with trio.fail_after(ABORT_S):
            deleted = await service.client.delete(f"/v1/responses/{response_id}")
            await service.simulator.wait_aborted("p")

    assert (deleted.status_code, deleted.json()) == (200, {"id": response_id, "object": "response", "deleted": True})
    assert (await get(service, response_id)).status_code == 404
    assert await service.pool.fetchval("select count(*) from response_steps") == 0
    assert await service.pool.fetchval("select error_code from usage_records") == "cancelled"


async def test_deleting_a_response_in_the_queue_takes_it_out(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": NO_WORKERS}) as service:
        created = (await post(service, ask("echo-4", **BACKGROUND))).json()

        with trio.fail_after(ABORT_S):
            deleted = await service.client.delete(f"/v1/responses/{created['id']}")

        assert deleted.status_code == 200
        assert await service.pool.fetchval("select count(*) from requests") == 0


@pytest.mark.slow
async def test_responses_that_are_cancelled_while_workers_claim_them_all_end_once(service: Service) -> None:
    keys = [f"race-{index}" for index in range(40)]
    states: list[str] = []

    async def race(key: str) -> None:
        created = (await post(service, ask("echo-4-each", key=key, **BACKGROUND))).json()
        shown = (await cancel(service, created["id"])).json()
        states.append(shown["status"])
        assert (await get(service, created["id"])).json() == shown

    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(race, key)
        for key in keys:
            await _ended_or_never_begun(service, key)
    assert set(states) <= {"cancelled", "completed"}
    print(f"40 cancels against claims: {states.count('cancelled')} cancelled, {states.count('completed')} completed")


async def _ended_or_never_begun(service: Service, key: str) -> None:
    """The row has come to its end; one that never began has no step to be found by."""
    state = await service.pool.fetchval("select state from requests where request->>'user' = $1", key)
    assert state in {"completed", "canceled"}, state


async def test_hanging_up_after_a_cancel_changes_nothing(service: Service) -> None:
    async with open_raw(service) as client:
        await client.send(as_request(ask("echo-4-pause-2", key="p", stream=True, **FLEX)))
        response_id = id_in(await client.read_until(DELTA, 2))
        cancelled = await cancel(service, response_id)
        await client.read_until(b"data: [DONE]\n\n")
        await client.reset()

    assert (await wait_terminal(service, "p"))["state"] == "canceled"
    assert (await get(service, response_id)).content == cancelled.content
