"""Background and flex over real sockets: what a queued request is answered, and what its row comes to."""

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
from tests.http.queued import (
    BACKGROUND,
    FLEX,
    NO_WORKERS,
    QUICK,
    cancel,
    get,
    last_response,
    post,
    wait_ended,
    wait_followers,
)

from dwctl_trio.domain import ids
from dwctl_trio.domain.events import ResponseCreated, ResponseInProgress, ResponseQueued
from dwctl_trio.testing.service import Service, open_service
from dwctl_trio.testing.simulator_script import expected_text

QUEUED_STREAMS = [BACKGROUND, FLEX, BACKGROUND | FLEX]


@pytest.fixture
async def service(postgres_dsn: str) -> AsyncIterator[Service]:
    async with open_service(postgres_dsn, {"limits": QUICK}) as service:
        yield service


# -- background, answered at once


async def test_a_background_response_is_answered_as_queued_and_completes_by_itself(service: Service) -> None:
    created = await post(service, ask("echo-5", **BACKGROUND))

    shown = created.json()
    assert created.status_code == 200
    assert (shown["status"], shown["background"], shown["output"], shown["usage"]) == ("queued", True, [], None)
    assert created.headers["x-response-id"] == shown["id"]
    ended = await wait_ended(service, shown["id"])
    assert (ended["status"], output_text(ended)) == ("completed", expected_text("echo-5"))
    assert ended["usage"]["output_tokens"] == 5
    same = ("id", "created_at", "model", "background", "service_tier", "metadata", "store")
    assert {name: ended[name] for name in same} == {name: shown[name] for name in same}


async def test_a_response_in_the_queue_is_shown_without_output_and_without_steps(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": NO_WORKERS}) as service:
        created = (await post(service, ask("echo-5", **BACKGROUND, **FLEX))).json()
        shown = await get(service, created["id"])
        steps = await get(service, f"{created['id']}/steps")

    assert shown.json() == created
    assert (created["status"], created["service_tier"]) == ("queued", "flex")
    assert (steps.status_code, steps.json()["data"]) == (200, [])


async def test_a_response_that_is_worked_on_is_shown_as_in_progress(service: Service) -> None:
    created = (await post(service, ask("pause-2-4", key="p", **BACKGROUND))).json()
    await service.simulator.wait_until(lambda counts: counts.paused == 1)

    shown = (await get(service, created["id"])).json()

    assert (shown["status"], shown["output"]) == ("in_progress", [])
    service.simulator.resume("p")
    assert (await wait_ended(service, created["id"]))["status"] == "completed"


async def test_background_without_store_is_refused_for_nobody_could_read_it(service: Service) -> None:
    for fields in ({}, {"stream": True}, FLEX):
        refused = await post(service, ask("echo-5", store=False, **BACKGROUND, **fields))

        error = error_of(refused)
        assert (refused.status_code, error["param"], error["code"]) == (400, "store", "invalid_value")
    assert await service.pool.fetchval("select count(*) from requests") == 0


async def test_a_model_that_nobody_serves_is_refused_before_anything_is_queued(postgres_dsn: str) -> None:
    models = [{"name": "echo-2", "upstream": "simulator"}]
    async with open_service(postgres_dsn, {"models": models}) as service:
        for fields in ({}, {"stream": True}):
            refused = await post(service, ask("other", **BACKGROUND, **fields))
            assert (refused.status_code, error_of(refused)["code"]) == (404, "model_not_found")
        assert await service.pool.fetchval("select count(*) from requests") == 0


# -- flex, waited for


@pytest.mark.parametrize("model", ["echo-5", "echo-3-length", "echo-3-cut-each", "tools-2"])
async def test_a_flex_request_is_answered_with_what_get_shows(service: Service, model: str) -> None:
    answer = await post(service, ask(model, **FLEX))

    shown = answer.json()
    assert answer.status_code == 200
    assert answer.headers["x-response-id"] == shown["id"]
    assert shown["service_tier"] == "flex"
    assert (await get(service, shown["id"])).content == answer.content
    row = await find_row(service, "none")
    assert row["response_status"] == 200


@pytest.mark.parametrize("store", [True, False], ids=["stored", "unstored"])
async def test_a_flex_request_that_fails_without_output_is_the_error_of_the_warm_path(
    service: Service, store: bool
) -> None:
    warm, flex = [await post(service, ask("error-400", store=store, **fields)) for fields in ({}, FLEX)]

    assert flex.status_code == warm.status_code == 400
    assert error_of(flex) == error_of(warm)
    assert ids.parse_response_id(flex.headers["x-response-id"])


async def test_an_unstored_flex_request_is_answered_in_full_and_leaves_no_body(service: Service) -> None:
    answer = await post(service, ask("echo-5", store=False, **FLEX))

    shown = answer.json()
    assert (answer.status_code, shown["status"], shown["store"]) == (200, "completed", False)
    assert output_text(shown) == expected_text("echo-5")
    row = await service.pool.fetchrow("select request, tools, response from requests")
    assert tuple(row) == (None, None, None)
    steps = await service.pool.fetch("select request, result from response_steps")
    assert [tuple(step) for step in steps] == [(None, None)]
    assert (await get(service, shown["id"])).status_code == 404


async def test_a_flex_client_hears_of_a_cancel_by_somebody_else(service: Service) -> None:
    answers = []
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            answers.append(await post(service, ask("pause-2-4", key="p", **FLEX)))

        nursery.start_soon(wait)
        await service.simulator.wait_until(lambda counts: counts.paused == 1)
        response_id = ids.response_id_text((await find_row(service, "p"))["id"])
        cancelled = await cancel(service, response_id)

    assert answers[0].status_code == 200
    assert answers[0].content == cancelled.content
    assert (cancelled.json()["status"], output_text(cancelled.json())) == ("cancelled", "word0 word1 ")


async def test_a_flex_client_hears_that_its_response_was_deleted(service: Service) -> None:
    answers = []
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            answers.append(await post(service, ask("pause-2-4", key="p", **FLEX)))

        nursery.start_soon(wait)
        await service.simulator.wait_until(lambda counts: counts.paused == 1)
        response_id = ids.response_id_text((await find_row(service, "p"))["id"])
        deleted = await service.client.delete(f"/v1/responses/{response_id}")

    assert deleted.status_code == 200
    assert answers[0].status_code in {200, 404}  # it was cancelled first, and may have heard of that in time


# -- streamed


@pytest.mark.parametrize("fields", QUEUED_STREAMS, ids=["background", "flex", "both"])
@pytest.mark.parametrize("model", ["echo-5-each", "tools-2", "reasoning-2-3", "echo-3-cut-each", "error-400"])
async def test_a_queued_stream_holds_all_events_and_ends_with_what_get_shows(
    service: Service, model: str, fields: dict[str, Any]
) -> None:
    body = ask(model, stream=True, **fields)

    answer = await post(service, body)

    stream = read_valid_stream(answer.content, body)
    told = [type(told.event) for told in stream.events[:3]]
    assert told == [ResponseCreated, ResponseQueued, ResponseInProgress]
    shown = (await get(service, answer.headers["x-response-id"])).json()
    assert last_response(answer) == shown
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"


async def test_a_queued_stream_begins_at_once_and_is_kept_alive_while_it_waits(postgres_dsn: str) -> None:
    limits = NO_WORKERS | {"keep_alive_s": 0.05}
    async with open_service(postgres_dsn, {"limits": limits}) as service, open_raw(service) as client:
        await client.send(as_request(ask("echo-2", stream=True, **FLEX)))
        with trio.fail_after(WAIT_S):
            await client.read_until(b"event: response.queued\n")
            await client.read_until(b": ping\n", 3)
    assert b"response.in_progress" not in client.received


async def test_an_unstored_flex_stream_holds_all_events(service: Service) -> None:
    body = ask("echo-5-each", stream=True, store=False, **FLEX)

    answer = await post(service, body)

    read_valid_stream(answer.content, body)
    assert output_text(last_response(answer)) == expected_text("echo-5")
    assert (await get(service, answer.headers["x-response-id"], "?stream=true")).status_code == 404


# -- the client leaves


@pytest.mark.parametrize("fields", [BACKGROUND, FLEX], ids=["background", "flex"])
async def test_a_client_that_leaves_a_queued_stream_does_not_stop_the_run(
    service: Service, fields: dict[str, Any]
) -> None:
    async with open_raw(service) as client:
        await client.send(as_request(ask("pause-2-4", key="left", stream=True, **fields)))
        await client.read_until(DELTA, 2)
        await client.hang_up()
    await wait_followers(service, 0)
    service.simulator.resume("left")

    assert (await wait_terminal(service, "left"))["state"] == "completed"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "blocking"])
async def test_a_flex_client_that_leaves_stops_the_run_where_the_configuration_says_so(
    postgres_dsn: str, stream: bool
) -> None:
    async with open_service(postgres_dsn, {"limits": QUICK, "flex_on_disconnect": "cancel"}) as service:
        async with open_raw(service) as client:
            await client.send(as_request(ask("pause-2-4", key="left", stream=stream, **FLEX)))
            await service.simulator.wait_until(lambda counts: counts.paused == 1)
            await client.hang_up()
        with trio.fail_after(WAIT_S):
            await service.simulator.wait_aborted("left")
        assert (await wait_terminal(service, "left"))["state"] == "canceled"

        async with open_raw(service) as client:
            await client.send(as_request(ask("pause-2-4", key="stays", stream=True, **BACKGROUND)))
            await client.read_until(DELTA, 2)
            await client.hang_up()
        service.simulator.resume("stays")
        assert (await wait_terminal(service, "stays"))["state"] == "completed"
        await assert_serves(service)


async def test_a_flex_client_that_leaves_while_it_waits_in_the_queue_takes_it_out(postgres_dsn: str) -> None:
    options = {"limits": NO_WORKERS, "flex_on_disconnect": "cancel"}
    async with open_service(postgres_dsn, options) as service:
        async with open_raw(service) as client:
            await client.send(as_request(ask("echo-2", key="left", stream=True, **FLEX)))
            await client.read_until(b"event: response.queued\n")
            await client.hang_up()
        state = None
        with trio.fail_after(WAIT_S):
            while state != "canceled":
                state = await service.pool.fetchval("select state from requests")


@pytest.mark.parametrize("fields", [BACKGROUND, FLEX], ids=["background", "flex"])
async def test_a_deadline_is_kept_where_there_is_no_worker(postgres_dsn: str, fields: dict[str, Any]) -> None:
    limits = QUICK | NO_WORKERS | {"flex_deadline_s": 1.0, "background_deadline_s": 1.0, "queue_overdue_s": 0.1}
    async with open_service(postgres_dsn, {"limits": limits}) as service:
        with trio.fail_after(WAIT_S):
            answer = await post(service, ask("echo-1", **fields))
            if fields is FLEX:
                assert answer.status_code == 504
                assert answer.headers["x-should-retry"] == "false"
            ended = await wait_ended(service, answer.headers["x-response-id"])

        assert ended["status"] == "failed"
        assert "deadline" in ended["error"]["message"]
        assert service.simulator.statistics().total == 0


async def test_a_flex_client_that_leaves_while_its_row_is_stored_ends_it_too(postgres_dsn: str) -> None:
    options = {"limits": QUICK | NO_WORKERS, "flex_on_disconnect": "cancel"}
    async with open_service(postgres_dsn, options) as service:
        for delay_ms in range(1, 13):
            async with open_raw(service) as client:
                await client.send(as_request(ask("echo-1", **FLEX)))
                await trio.sleep(delay_ms / 1000)
        with trio.fail_after(WAIT_S):
            while await service.pool.fetchval("select count(*) from requests where state <> 'canceled'"):
                await trio.lowlevel.checkpoint()
