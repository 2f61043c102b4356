"""A repeat while the first request with its key is under way: it waits, with signs of life, and never in vain."""

import json
from typing import Any

import pytest
import trio
from tests.http.conftest import DELTA, WAIT_S, RawClient, as_request, ask, error_of, open_raw, read_valid_stream
from tests.http.test_idempotency import QUICK, counts, id_of, is_replay, post, wait_looked

from dwctl_trio.testing.service import Service, open_service

LATE = QUICK | {"head_hold_s": 0.05, "keep_alive_s": 0.05}
"""A streamed repeat gets its head, and signs of life, while the first is under way."""
KEY = "Idempotency-Key: k"
PING = b": ping\n"


async def begin_paused(client: RawClient, service: Service, body: dict[str, Any]) -> None:
    """Send a request with the key, whose model pauses after two words."""
    await client.send(as_request(body, KEY))
    await service.simulator.wait_until(lambda counts: counts.paused == 1)


def body_of(received: bytes) -> bytes:
    """The body in what a raw client received, its chunks joined."""
    _, _, chunked = received.partition(b"\r\n\r\n")
    body = b""
    while chunked:
        size, _, rest = chunked.partition(b"\r\n")
        body, chunked = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body


def data_of(stream: bytes) -> list[dict[str, Any]]:
    """The data of each event, without ``[DONE]``."""
    lines = stream.decode().split("\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


@pytest.mark.slow
async def test_a_blocking_repeat_waits_for_the_end_of_the_first(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": QUICK}) as service, trio.open_nursery() as nursery:
        body = ask("echo-4-pause-2", key="live")
        answers = []

        async def request() -> None:
            answers.append(await post(service, body))

        nursery.start_soon(request)
        await service.simulator.wait_until(lambda counts: counts.paused == 1)
        nursery.start_soon(request)
        await wait_looked(service)
        assert answers == []
        service.simulator.resume_all()
        with trio.fail_after(WAIT_S):
            while len(answers) < 2:
                await service.pool.fetchval("select 1")

        assert answers[0].content == answers[1].content
        assert sorted(is_replay(answer) for answer in answers) == [False, True]
        assert await counts(service) == (1, 1)


@pytest.mark.slow
async def test_a_streamed_repeat_hears_signs_of_life_and_then_every_event_of_the_first(postgres_dsn: str) -> None:
    body = ask("echo-4-pause-2-each", key="live", stream=True)
    with trio.fail_after(WAIT_S):
        async with open_service(postgres_dsn, {"limits": LATE}) as service, open_raw(service) as first:
            await begin_paused(first, service, body)
            await first.read_until(DELTA, 2)
            async with open_raw(service) as second:
                await second.send(as_request(body, KEY))
                await second.read_until(PING, 3)
                assert DELTA not in second.received
                service.simulator.resume_all()
                await second.read_until(b"[DONE]\n\n\r\n0\r\n\r\n")
            await first.read_until(b"[DONE]\n\n\r\n0\r\n\r\n")
            made = await counts(service)

    told, repeated = body_of(first.received).replace(PING, b""), body_of(second.received).replace(PING, b"")
    assert repeated == told
    read_valid_stream(repeated, body)
    assert made == (1, 1)


@pytest.mark.slow
async def test_a_streamed_repeat_that_learns_of_the_end_in_time_says_so_in_its_headers(postgres_dsn: str) -> None:
    body = ask("echo-4-pause-2", key="live", stream=True)
    async with (
        open_service(postgres_dsn, {"limits": QUICK | {"head_hold_s": WAIT_S}}) as service,
        open_raw(service) as first,
        trio.open_nursery() as nursery,
    ):
        await begin_paused(first, service, body)

        async def resume() -> None:
            await wait_looked(service)
            service.simulator.resume_all()

        nursery.start_soon(resume)
        answer = await post(service, body)

    assert is_replay(answer)


@pytest.mark.slow
@pytest.mark.parametrize("limits", [QUICK | {"head_hold_s": WAIT_S}, LATE], ids=["before-head", "after-head"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "blocking"])
async def test_a_repeat_runs_when_the_first_is_hung_up(postgres_dsn: str, stream: bool, limits: Any) -> None:
    body = ask("echo-4-pause-2", key="live", stream=stream)
    async with open_service(postgres_dsn, {"limits": limits}) as service, trio.open_nursery() as nursery:
        answers = []

        async def request() -> None:
            answers.append(await post(service, body))

        async with open_raw(service) as first:
            await begin_paused(first, service, body)
            nursery.start_soon(request)
            await wait_looked(service)
        await service.simulator.wait_aborted("live")
        await service.simulator.wait_until(lambda counts: counts.paused == 1)
        service.simulator.resume_all()
        with trio.fail_after(WAIT_S):
            while not answers:
                await service.pool.fetchval("select 1")

        assert answers[0].status_code == 200
        assert not is_replay(answers[0])
        assert await counts(service) == (2, 2)
        states = await service.pool.fetch("select state from requests order by created_at")
        assert [row["state"] for row in states] == ["canceled", "completed"]
    if stream:
        read_valid_stream(answers[0].content.replace(PING, b""), body)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "blocking"])
async def test_a_repeat_that_has_waited_for_long_enough_may_come_again(postgres_dsn: str, stream: bool) -> None:
    body = ask("echo-4-pause-2", key="live", stream=stream)
    limits = QUICK | {"head_hold_s": WAIT_S, "idempotency_wait_s": 0.2}
    async with open_service(postgres_dsn, {"limits": limits}) as service, open_raw(service) as first:
        await begin_paused(first, service, body)

        refused = await post(service, body)

        assert refused.status_code == 409
        assert error_of(refused)["code"] == "idempotency_key_in_use"
        assert refused.headers["retry-after"] == "5"
        assert "x-should-retry" not in refused.headers
        assert await counts(service) == (1, 1)


@pytest.mark.slow
async def test_what_a_streamed_repeat_learns_after_its_head_is_an_error_event(postgres_dsn: str) -> None:
    body = ask("echo-4-pause-2", key="live", stream=True)
    limits = LATE | {"idempotency_wait_s": 0.4}
    async with open_service(postgres_dsn, {"limits": limits}) as service, open_raw(service) as first:
        await begin_paused(first, service, body)

        answer = await post(service, body)

        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert "idempotent-replayed" not in answer.headers
        assert PING in answer.content
        (data,) = data_of(answer.content)
        assert (data["type"], data["code"], data["sequence_number"]) == ("error", "idempotency_key_in_use", 0)
        assert answer.content.endswith(b"data: [DONE]\n\n")


@pytest.mark.slow
async def test_a_waiting_repeat_that_hangs_up_leaves_the_first_alone_and_gives_its_place_back(
    postgres_dsn: str,
) -> None:
    body = ask("echo-4-pause-2", key="live", stream=True)
    with trio.fail_after(WAIT_S):
        async with (
            open_service(postgres_dsn, {"limits": LATE | {"live_responses": 2}}) as service,
            open_raw(service) as first,
        ):
            await begin_paused(first, service, body)
            async with open_raw(service) as second:
                await second.send(as_request(body, KEY))
                await second.read_until(PING)
                full = await post(service, body)
            while (answer := await post(service, ask("echo-2"), "other")).status_code != 200:
                assert answer.status_code == 503
            service.simulator.resume_all()
            await first.read_until(b"response.completed")
            replayed = await post(service, body)

    assert full.status_code == 503, "a waiting repeat holds a place like any request"
    assert id_of(replayed) in first.received.decode()
    assert is_replay(replayed)


@pytest.mark.slow
async def test_a_repeat_over_another_process_finds_the_first(postgres_dsn: str) -> None:
    body = ask("echo-4-pause-2", key="live")
    async with (
        open_service(postgres_dsn, {"limits": QUICK}) as one,
        open_service(postgres_dsn, {"limits": QUICK}) as other,
        trio.open_nursery() as nursery,
    ):
        answers = []

        async def request(service: Service) -> None:
            answers.append(await post(service, body))

        nursery.start_soon(request, one)
        await one.simulator.wait_until(lambda counts: counts.paused == 1)
        nursery.start_soon(request, other)
        await wait_looked(other)
        one.simulator.resume_all()
        with trio.fail_after(WAIT_S):
            while len(answers) < 2:
                await one.pool.fetchval("select 1")

        assert answers[0].content == answers[1].content
        assert other.simulator.statistics().total == 0
