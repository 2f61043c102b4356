"""``Idempotency-Key`` over real sockets: one response, one row and one model call for each key and body (I6)."""

import json
from typing import Any

import httpx
import pytest
import trio
from tests.http.conftest import (
    DELTA,
    WAIT_S,
    as_request,
    ask,
    error_of,
    open_raw,
    output_text,
    read_valid_stream,
    wait_terminal,
)
from tests.observability.scrapes import Scrape

from dwctl_trio.testing.service import Service, open_service

QUICK = {"idempotency_poll_s": 0.02, "head_hold_s": 0.5}
LOOKED = "select count(*) from pg_stat_activity where query like '%idempotency_digest,%' and pid <> pg_backend_pid()"
"""Connections whose last statement was a look at who holds a key."""
ROWS = "select count(*) from requests where idempotency_key is not null"
RACERS = 50


@pytest.fixture
async def service(postgres_dsn: str) -> Any:
    async with open_service(postgres_dsn, {"limits": QUICK}) as service:
        yield service


async def post(service: Service, body: dict[str, Any], key: str = "k") -> httpx.Response:
    with trio.fail_after(WAIT_S):
        return await service.client.post("/v1/responses", json=body, headers={"Idempotency-Key": key})


def id_of(answer: httpx.Response) -> str:
    """The id of the response in an answer of either form."""
    if answer.headers["content-type"] == "application/json":
        return answer.json()["id"]
    first = next(line for line in answer.text.split("\n") if line.startswith("data: "))
    return json.loads(first.removeprefix("data: "))["response"]["id"]


def is_replay(answer: httpx.Response) -> bool:
    """Whether it says that it is one, and then of which response."""
    if "idempotent-replayed" not in answer.headers:
        return False
    assert answer.headers["idempotent-replayed"] == "true"
    assert answer.headers["x-response-id"] == id_of(answer)
    return True


async def counts(service: Service) -> tuple[int, int]:
    """Rows with a key, and model calls."""
    return await service.pool.fetchval(ROWS), service.simulator.statistics().total


async def wait_looked(service: Service) -> None:
    """Return when a repeat has seen that the first one is under way."""
    with trio.fail_after(WAIT_S):
        while not await service.pool.fetchval(LOOKED):
            await trio.lowlevel.checkpoint()


# -- after the end


@pytest.mark.parametrize("model", ["echo-5-each", "echo-3-length", "reasoning-2-3", "tools-2", "echo-3-cut"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "blocking"])
async def test_a_repeat_gets_what_the_first_was_told_byte_for_byte(service: Service, model: str, stream: bool) -> None:
    body = ask(model, stream=stream)

    first, second, third = [await post(service, body) for _ in range(3)]

    assert first.status_code == second.status_code == third.status_code == 200
    assert second.content == third.content == first.content
    assert [is_replay(answer) for answer in (first, second, third)] == [False, True, True]
    assert second.headers["content-type"] == first.headers["content-type"]
    assert await counts(service) == (1, 1)
    if stream:
        read_valid_stream(second.content, body)


async def test_the_order_of_the_keys_and_the_blanks_of_a_body_do_not_matter(service: Service) -> None:
    body = ask("echo-2", metadata={"a": "1", "b": "ü"}, text={"format": {"type": "text"}})
    turned = {name: body[name] for name in reversed(body)} | {"metadata": {"b": "ü", "a": "1"}}

    first = await post(service, body)
    headers = {"idempotency-key": "k", "content-type": "application/json"}
    second = await service.client.post("/v1/responses", content=json.dumps(turned, indent=3), headers=headers)

    assert second.content == first.content
    assert is_replay(second)


@pytest.mark.parametrize(
    "change",
    [{"input": "other"}, {"model": "echo-3"}, {"stream": True}, {"metadata": {"a": "1"}}, {"store": False}],
    ids=lambda change: next(iter(change)),
)
async def test_another_body_is_a_conflict_that_says_what_to_do(service: Service, change: dict[str, Any]) -> None:
    first = await post(service, ask("echo-2"))

    refused = await post(service, ask("echo-2") | change)

    assert refused.status_code == 409
    error = error_of(refused)
    assert (error["code"], error["param"]) == ("idempotency_key_reused", "Idempotency-Key")
    assert "another body" in error["message"]
    assert "new key" in error["message"]
    assert refused.headers["x-should-retry"] == "false", "or the SDKs would send it twice more"
    assert is_replay(await post(service, ask("echo-2"))), id_of(first)
    assert await counts(service) == (1, 1)


async def test_other_keys_and_no_key_make_other_responses(service: Service) -> None:
    answers = [await post(service, ask("echo-2"), key) for key in ("k", "K", "k2")]
    answers += [await service.client.post("/v1/responses", json=ask("echo-2")) for _ in range(2)]

    assert len({id_of(answer) for answer in answers}) == 5
    assert not any(is_replay(answer) for answer in answers)
    assert await counts(service) == (3, 5)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "blocking"])
async def test_a_response_that_was_not_stored_cannot_be_given_again(service: Service, stream: bool) -> None:
    body = ask("echo-2", store=False, stream=stream)
    first = await post(service, body)

    refused = await post(service, body)

    assert (first.status_code, refused.status_code) == (200, 409)
    error = error_of(refused)
    assert error["code"] == "idempotency_replay_unavailable"
    assert id_of(first) in error["message"]
    assert "not stored" in error["message"]
    assert await counts(service) == (1, 1)


async def test_a_stream_that_was_too_long_to_keep_is_named_for_get(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": QUICK | {"event_log_bytes": 1000}}) as service:
        body = ask("echo-40-each", stream=True)
        first = await post(service, body)

        refused = await post(service, body)

        assert refused.status_code == 409
        assert error_of(refused)["code"] == "idempotency_replay_unavailable"
        assert f"GET /v1/responses/{id_of(first)}" in error_of(refused)["message"]
        assert (await service.client.get(f"/v1/responses/{id_of(first)}")).status_code == 200


async def test_a_long_stream_is_replayed_whole(service: Service) -> None:
    body = ask("big-800000", stream=True)

    first, second = [await post(service, body) for _ in range(2)]

    assert len(first.content) > 800_000
    assert second.content == first.content


async def test_a_replay_is_counted_and_is_no_response_of_its_own(service: Service) -> None:
    for _ in range(3):
        await post(service, ask("echo-2"))

    seen = Scrape((await service.client.get("/metrics")).text)

    assert seen.value("dwctl_idempotent_replays_total") == 2
    assert seen.total("dwctl_responses_total") == 1
    assert seen.value("dwctl_opening_failures_total") == 0


# -- what a key may be


@pytest.mark.parametrize("key", ["", "a b", "a\tb", "x" * 256, "ü", "a\x7fb"])
async def test_what_is_no_key_is_refused(service: Service, key: str) -> None:
    headers = [(b"idempotency-key", key.encode())]

    refused = await service.client.post("/v1/responses", json=ask("echo-2"), headers=headers)

    assert refused.status_code == 400
    error = error_of(refused)
    assert (error["param"], error["code"]) == ("Idempotency-Key", "invalid_value")
    assert "255 visible ASCII characters" in error["message"]
    assert service.simulator.statistics().total == 0


async def test_two_keys_are_refused(service: Service) -> None:
    headers = [("idempotency-key", "a"), ("idempotency-key", "b")]

    refused = await service.client.post("/v1/responses", json=ask("echo-2"), headers=headers)

    assert refused.status_code == 400
    assert error_of(refused)["param"] == "Idempotency-Key"


@pytest.mark.parametrize("key", ["x", "x" * 255, '"quoted"', "~!@#$%^&*()", "0c2d8c4e-5a3b-4e58-9e0e-6d6f5b7a1f00"])
async def test_any_visible_ascii_is_a_key(service: Service, key: str) -> None:
    first, second = [await post(service, ask("echo-2"), key) for _ in range(2)]

    assert second.content == first.content


# -- what releases a key


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "blocking"])
async def test_a_refusal_by_the_upstream_releases_the_key(service: Service, stream: bool) -> None:
    body = ask("flaky-1-3", key="released", stream=stream)

    refused, made, replayed = [await post(service, body) for _ in range(3)]

    assert [answer.status_code for answer in (refused, made, replayed)] == [502, 200, 200]
    assert [is_replay(answer) for answer in (made, replayed)] == [False, True]
    assert replayed.content == made.content
    assert refused.headers["x-response-id"] != id_of(made)
    assert await counts(service) == (2, 2)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "blocking"])
async def test_a_hang_up_releases_the_key(service: Service, stream: bool) -> None:
    body = ask("echo-3-pause-2", key="left", stream=stream)
    async with open_raw(service) as client:
        await client.send(as_request(body, "Idempotency-Key: k"))
        await service.simulator.wait_until(lambda counts: counts.paused == 1)
        if stream:
            await client.read_until(DELTA)
    assert (await wait_terminal(service, "left"))["state"] == "canceled"

    async with trio.open_nursery() as nursery:

        async def resume() -> None:
            await service.simulator.wait_until(lambda counts: counts.paused == 1)
            service.simulator.resume_all()

        nursery.start_soon(resume)
        answer = await post(service, body)

    assert answer.status_code == 200
    assert not is_replay(answer)
    assert await counts(service) == (2, 2)


async def test_a_deleted_response_releases_the_key(service: Service) -> None:
    first = await post(service, ask("echo-2"))
    await service.client.delete(f"/v1/responses/{id_of(first)}")

    second = await post(service, ask("echo-2"))

    assert id_of(second) != id_of(first)
    assert not is_replay(second)


async def test_a_body_that_is_refused_takes_no_key(service: Service) -> None:
    refused = await post(service, ask("echo-2", temperature=9))
    assert refused.status_code == 400

    assert (await post(service, ask("echo-2"))).status_code == 200


async def test_an_answer_whose_client_left_after_the_model_had_finished_is_given_to_the_repeat(
    service: Service,
) -> None:
    """The case that keys are for: the response is there, and the connection is not."""
    body = ask("echo-3", key="unread")
    async with open_raw(service) as client:
        await client.send(as_request(body, "Idempotency-Key: k"))
        row = await wait_terminal(service, "unread")
    assert row["state"] == "completed"

    repeated = await post(service, body)

    assert is_replay(repeated)
    assert output_text(repeated.json()) == "word0 word1 word2 "
    assert await counts(service) == (1, 1)


# -- races


@pytest.mark.slow
@pytest.mark.parametrize("racers", [2, RACERS])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "blocking"])
async def test_of_many_at_once_one_is_run_and_all_get_its_response(service: Service, stream: bool, racers: int) -> None:
    body = ask("echo-4-gate", key="race", stream=stream)
    answers: list[httpx.Response] = []

    async def race() -> None:
        answers.append(await post(service, body))

    began_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(racers):
            nursery.start_soon(race)
        await service.simulator.wait_until(lambda counts: counts.open == 1)
        await wait_looked(service)
        service.simulator.resume_all()

    assert [answer.status_code for answer in answers] == [200] * racers
    assert len({answer.content for answer in answers}) == 1
    assert await counts(service) == (1, 1)
    seconds = trio.current_time() - began_at
    print(f"{racers} at once, {'streamed' if stream else 'blocking'}: 1 row, 1 model call, {seconds:.2f} s")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "blocking"])
async def test_a_repeat_that_runs_after_all_goes_on_with_what_the_first_went_on_with(
    service: Service, stream: bool
) -> None:
    before = (await service.client.post("/v1/responses", json=ask("echo-2"))).json()["id"]
    body = ask("echo-3-pause-2", key="left", previous_response_id=before, stream=stream)
    answers: list[httpx.Response] = []

    async def race() -> None:
        answers.append(await post(service, body))

    async with trio.open_nursery() as nursery, open_raw(service) as client:
        await client.send(as_request(body, "Idempotency-Key: k"))
        await service.simulator.wait_until(lambda counts: counts.paused == 1)
        nursery.start_soon(race)
        await wait_looked(service)
        await client.hang_up()
        await service.simulator.wait_until(lambda counts: counts.total == 3 and counts.paused == 1)
        service.simulator.resume_all()

    assert [(answer.status_code, is_replay(answer)) for answer in answers] == [(200, False)]
    assert [one["role"] for one in service.simulator.requests[-1].body["messages"]] == ["user", "assistant", "user"]
