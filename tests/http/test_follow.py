"""GET with ``stream=true``: the stored events again, and those to come, from wherever a client was cut."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio
from tests.http.conftest import DELTA, WAIT_S, RawClient, as_request, ask, error_of, open_raw, read_valid_stream
from tests.http.queued import (
    BACKGROUND,
    DONE,
    FLEX,
    NO_WORKERS,
    QUICK,
    data_of,
    frames_of,
    get,
    last_response,
    post,
    wait_ended,
    wait_followers,
)
from tests.http.server_tools import open_tool_world, server_tools

from dwctl_trio.domain import ids
from dwctl_trio.testing.service import Service, open_service

MODELS = ("echo-9-each", "tools-2", "reasoning-2-3", "echo-3-length", "echo-3-cut-each", "echo-0")


@pytest.fixture
async def service(postgres_dsn: str) -> AsyncIterator[Service]:
    async with open_service(postgres_dsn, {"limits": QUICK}) as service:
        yield service


def id_of(answer: httpx.Response) -> str:
    """The response's id in the first event."""
    return str(next(data_of(answer))["response"]["id"])


async def begin(service: Service, model: str, **fields: Any) -> str:
    """Start a background response whose model pauses after two words; its id."""
    created = (await post(service, ask(model, **BACKGROUND, **fields))).json()
    await service.simulator.wait_until(lambda counts: counts.paused == 1)
    return str(created["id"])


def following(response_id: str, query: str = "stream=true", *headers: str) -> bytes:
    """A GET of the events as it goes over the wire."""
    lines = [f"GET /v1/responses/{response_id}?{query} HTTP/1.1", "Host: test", *headers, "", ""]
    return "\r\n".join(lines).encode()


# -- what has ended


@pytest.mark.parametrize("fields", [{}, BACKGROUND, FLEX], ids=["warm", "background", "flex"])
@pytest.mark.parametrize("model", MODELS)
async def test_a_finished_stream_is_given_again_byte_for_byte(
    service: Service, model: str, fields: dict[str, Any]
) -> None:
    body = ask(model, stream=True, **fields)
    first = await post(service, body)

    again = await get(service, id_of(first), "?stream=true&include_obfuscation=false")

    assert again.status_code == 200
    assert again.content == first.content.replace(b": ping\n", b"")
    assert again.headers["x-response-id"] == id_of(first)
    assert again.headers["content-type"] == first.headers["content-type"]
    read_valid_stream(again.content, body)


@pytest.mark.parametrize("fields", [{}, BACKGROUND], ids=["warm", "background"])
async def test_from_every_event_on_the_rest_is_given(service: Service, fields: dict[str, Any]) -> None:
    first = await post(service, ask("echo-9-each", stream=True, **fields))
    frames = frames_of(first.content)
    last = len(frames) - 2

    for number in range(last + 1):
        rest = frames[number + 1 :]
        asked = await get(service, id_of(first), f"?stream=true&starting_after={number}")
        by_header = await get(service, id_of(first), "?stream=true", **{"Last-Event-ID": str(number)})
        both = await get(service, id_of(first), f"?stream=1&starting_after={number}", **{"Last-Event-ID": "0"})
        assert frames_of(asked.content) == rest, number
        assert asked.content == by_header.content == both.content
    assert rest == [DONE]
    print(f"resumed after each of {last + 1} events: no gap, no repeat")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "blocking"])
async def test_a_response_that_was_not_streamed_can_be_streamed_afterwards(service: Service, stream: bool) -> None:
    body = ask("echo-5-each", stream=stream)
    answer = await post(service, body)
    response_id = id_of(answer) if stream else answer.json()["id"]

    told = await get(service, response_id, "?stream=true")

    read_valid_stream(told.content, body)
    assert last_response(told) == (await get(service, response_id)).json()


# -- what is asked


@pytest.mark.parametrize("value", ["", "-1", "+1", "1.0", "1e3", "x", "0x1", "٣", "1 ", "9" * 19, "9" * 5000, "null"])
async def test_a_number_that_is_none_is_refused_and_named(service: Service, value: str) -> None:
    created = (await post(service, ask("echo-1"))).json()

    refused = await service.client.get(
        f"/v1/responses/{created['id']}", params={"stream": "true", "starting_after": value}
    )

    error = error_of(refused)
    assert (refused.status_code, error["param"], error["code"]) == (400, "starting_after", "invalid_value")
    if value.isascii() and value == value.strip():
        header = await get(service, created["id"], "?stream=true", **{"Last-Event-ID": value})
        assert (header.status_code, error_of(header)["param"]) == (400, "Last-Event-ID")


@pytest.mark.parametrize("name", ["stream", "include_obfuscation"])
@pytest.mark.parametrize("value", ["yes", "2", "null", "tru", "%00"])
async def test_a_flag_that_is_none_is_refused_and_named(service: Service, name: str, value: str) -> None:
    refused = await get(service, "resp_00000000-0000-4000-8000-000000000000", f"?{name}={value}")

    assert (refused.status_code, error_of(refused)["param"]) == (400, name)


async def test_starting_after_without_a_stream_is_refused_for_the_answer_has_no_events(service: Service) -> None:
    created = (await post(service, ask("echo-1"))).json()

    for query in ("?starting_after=1", "?stream=false&starting_after=1"):
        refused = await get(service, created["id"], query)
        assert (refused.status_code, error_of(refused)["param"]) == (400, "starting_after")
        assert "stream=true" in error_of(refused)["message"]
    plain = await get(service, created["id"], **{"Last-Event-ID": "nonsense"})
    assert plain.json() == created


@pytest.mark.parametrize("fields", [{}, BACKGROUND], ids=["warm", "background"])
async def test_a_number_behind_the_last_event_is_refused_with_the_last_one(
    service: Service, fields: dict[str, Any]
) -> None:
    first = await post(service, ask("echo-5-each", stream=True, **fields))
    last = len(frames_of(first.content)) - 2

    refused = await get(service, id_of(first), f"?stream=true&starting_after={last + 1}")
    by_header = await get(service, id_of(first), "?stream=true", **{"Last-Event-ID": str(10**17)})
    at_the_end = await get(service, id_of(first), f"?stream=true&starting_after={last}")

    assert (refused.status_code, error_of(refused)["param"]) == (400, "starting_after")
    assert f"number {last}," in error_of(refused)["message"]
    assert (by_header.status_code, error_of(by_header)["param"]) == (400, "Last-Event-ID")
    assert (at_the_end.status_code, at_the_end.content) == (200, DONE)


async def test_a_head_request_follows_nothing(service: Service) -> None:
    response_id = await begin(service, "pause-2-4", key="p")

    with trio.fail_after(WAIT_S):
        answer = await service.client.head(f"/v1/responses/{response_id}?stream=true")

    assert (answer.status_code, answer.content) == (200, b"")
    service.simulator.resume("p")


# -- what is under way


async def test_a_running_response_is_followed_from_every_event_and_by_several_at_once(service: Service) -> None:
    response_id = await begin(service, "echo-4-pause-2", key="p")
    streams: dict[int, bytes] = {}

    async with trio.open_nursery() as nursery:

        async def follow(number: int) -> None:
            query = f"?stream=true&starting_after={number}" if number >= 0 else "?stream=true"
            streams[number] = (await get(service, response_id, query)).content

        for number in range(-1, 3):
            nursery.start_soon(follow, number)
        await wait_followers(service, 4)
        service.simulator.resume("p")

    again = frames_of((await get(service, response_id, "?stream=true")).content)
    assert {number: frames_of(body) for number, body in streams.items()} == {
        number: again[number + 1 :] for number in range(-1, 3)
    }
    read_valid_stream(streams[-1], ask("echo-4-pause-2", key="p", **BACKGROUND))


async def test_a_follower_of_a_running_response_has_the_deltas_at_once(service: Service) -> None:
    response_id = await begin(service, "echo-4-pause-2-each", key="p")

    async with open_raw(service) as client:
        await client.send(following(response_id))
        with trio.fail_after(WAIT_S):
            await client.read_until(DELTA, 2)
            service.simulator.resume("p")
            await client.read_until(b"[DONE]")


async def test_a_number_that_a_running_response_has_not_come_to_is_refused(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": NO_WORKERS}) as service:
        created = (await post(service, ask("echo-2", **BACKGROUND))).json()

        refused = await get(service, created["id"], "?stream=true&starting_after=2")

    assert (refused.status_code, error_of(refused)["param"]) == (400, "starting_after")
    assert "so far" in error_of(refused)["message"]


async def test_a_warm_response_that_runs_is_streamed_to_its_own_client_only(service: Service) -> None:
    async with open_raw(service) as client:
        await client.send(as_request(ask("pause-2-4", key="p", stream=True)))
        response_id = _id_in(await client.read_until(DELTA, 2))

        refused = await get(service, response_id, "?stream=true")

        service.simulator.resume("p")
        with trio.fail_after(WAIT_S):
            await client.read_until(b"[DONE]")
    assert (refused.status_code, error_of(refused)["code"]) == (400, "response_not_streamable")
    assert (await get(service, response_id, "?stream=true")).status_code == 200


def _id_in(received: bytes) -> str:
    return received.split(b'"id":"', 1)[1].split(b'"', 1)[0].decode()


async def test_a_response_that_is_deleted_while_it_is_followed_ends_its_stream(service: Service) -> None:
    response_id = await begin(service, "echo-4-pause-2", key="p")
    async with open_raw(service) as client:
        await client.send(following(response_id))
        await client.read_until(DELTA, 2)

        deleted = await service.client.delete(f"/v1/responses/{response_id}")

        with trio.fail_after(WAIT_S):
            received = await _read_stream(client)
    assert deleted.status_code == 200
    # It was cancelled first; the last event was there to be read until the row was gone.
    assert (b"response.incomplete" in received) == (DONE in received)
    assert (await get(service, response_id, "?stream=true")).status_code == 404


async def _read_stream(client: RawClient) -> bytes:
    """Everything received until ``[DONE]``, or until the server has closed the connection."""
    while DONE not in client.received:
        data = await client.stream.receive_some(65536)
        if not data:
            break
        client.received += data
    return client.received


async def test_a_follower_is_kept_alive_and_holds_a_place(postgres_dsn: str) -> None:
    limits = NO_WORKERS | {"keep_alive_s": 0.05, "owner_responses": 1}
    async with open_service(postgres_dsn, {"limits": limits}) as service:
        created = (await post(service, ask("echo-2", **BACKGROUND))).json()
        async with open_raw(service) as client:
            await client.send(following(created["id"]))
            with trio.fail_after(WAIT_S):
                await client.read_until(b": ping\n", 2)
            refused = await get(service, created["id"], "?stream=true")
            await client.hang_up()
        await wait_followers(service, 0)

    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")


# -- what is not kept


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "blocking"])
async def test_a_stream_that_was_too_long_to_keep_is_refused_with_what_to_do(postgres_dsn: str, stream: bool) -> None:
    async with open_service(postgres_dsn, {"limits": QUICK | {"event_log_bytes": 1000}}) as service:
        answer = await post(service, ask("echo-9-each", stream=stream))
        response_id = id_of(answer) if stream else answer.json()["id"]

        refused = await get(service, response_id, "?stream=true&starting_after=1")

    error = error_of(refused)
    assert (refused.status_code, error["code"], error["param"]) == (400, "response_events_not_kept", "stream")
    assert f"GET /v1/responses/{response_id}" in error["message"]
    assert ("event_log_bytes" in error["message"], "event_retention_s" in error["message"]) == (True, False)


async def test_a_stream_whose_events_were_pruned_is_refused_with_what_to_do(postgres_dsn: str) -> None:
    limits = QUICK | {"unstored_event_s": 10.0, "event_retention_s": 60.0, "retention_interval_s": 0.1}
    async with open_service(postgres_dsn, {"limits": limits}) as service:
        first = await post(service, ask("echo-2", stream=True, **BACKGROUND))
        await _make_older(service, "2 minutes")
        with trio.fail_after(WAIT_S):
            while await service.pool.fetchval("select count(*) from response_events"):
                await trio.lowlevel.checkpoint()

        refused = await get(service, id_of(first), "?stream=true")
        shown = await get(service, id_of(first))

    error = error_of(refused)
    assert (refused.status_code, error["code"], error["param"]) == (400, "response_events_not_kept", "stream")
    assert "event_retention_s" in error["message"]
    assert shown.json() == last_response(first)


async def _make_older(service: Service, age: str) -> None:
    """Make every response that has ended *age* older."""
    await service.pool.execute("alter table requests disable trigger user")
    await service.pool.execute(
        f"update requests set created_at = created_at - interval '{age}', started_at = started_at - interval '{age}',"
        f" finished_at = finished_at - interval '{age}'"
    )


@pytest.mark.parametrize("fields", [{}, FLEX], ids=["warm", "flex"])
async def test_what_was_not_stored_is_not_found(service: Service, fields: dict[str, Any]) -> None:
    answer = await post(service, ask("echo-2", stream=True, store=False, **fields))

    for query in ("", "?stream=true", "?stream=true&starting_after=1"):
        refused = await get(service, id_of(answer), query)
        assert (refused.status_code, error_of(refused)["code"]) == (404, "not_found")


@pytest.mark.parametrize("include", [[], ["dwctl:sub_agents"]], ids=["plain", "sub-agents"])
@pytest.mark.parametrize("tool", ["get_weather", "researcher"])
async def test_a_warm_response_whose_process_died_is_told_from_its_rows(
    postgres_dsn: str, tool: str, include: list[str]
) -> None:
    async with open_tool_world(postgres_dsn, limits=QUICK | {"rescue_interval_s": 0.2}) as world:
        service = world.service
        tools = [server_tools(tool)]
        body = ask("tools-1-then-echo-4-pause-2", key="p", stream=True, tools=tools, include=include)
        async with open_raw(service) as client:
            await client.send(as_request(body))
            response_id = _id_in(await client.read_until(DELTA, 2))
            await _kill_owner(service, response_id)
            shown = (await get(service, response_id)).json()

            told = await get(service, response_id, "?stream=true")
            rest = await get(service, response_id, "?stream=true&starting_after=0")
            service.simulator.resume_all()

    read_valid_stream(told.content, body)
    assert last_response(told) == shown
    assert (shown["status"], [item["type"] for item in shown["output"]]) == ("failed", ["mcp_call"])
    assert frames_of(rest.content) == frames_of(told.content)[1:]
    assert (b"dwctl:sub_agent" in told.content) == (tool == "researcher" and bool(include))


async def _kill_owner(service: Service, response_id: str) -> None:
    """Let the lease run out as if the process had died, and have the row rescued."""
    row_id = ids.parse_response_id(response_id)
    await service.pool.execute("update requests set lease_expires_at = now() - interval '1 s' where id = $1", row_id)
    with trio.fail_after(WAIT_S):
        while await service.pool.fetchval("select state from requests where id = $1", row_id) != "failed":
            await trio.lowlevel.checkpoint()


async def test_a_response_of_another_process_is_followed_by_a_hint_or_without(postgres_dsn: str) -> None:
    async with (
        open_service(postgres_dsn, {"limits": QUICK}) as working,
        open_service(postgres_dsn, {"limits": NO_WORKERS}) as following_service,
    ):
        response_id = await begin(working, "echo-4-pause-2-each", key="p")
        async with open_raw(following_service) as client:
            await client.send(following(response_id))
            with trio.fail_after(WAIT_S):
                await client.read_until(DELTA, 2)
                working.simulator.resume("p")
                await client.read_until(b"[DONE]")
        ended = await wait_ended(working, response_id)
        assert ended == await wait_ended(following_service, response_id)
