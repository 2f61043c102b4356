"""The retries of the official OpenAI SDK with an idempotency key: however often it asks, one response (I6)."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import openai
import pytest
import trio

from dwctl_trio.testing.service import Service, open_service
from dwctl_trio.testing.simulator_script import expected_text

SDK_S = 30.0
"""Bound of the SDK's own waits, those between its tries included."""
KEY = {"Idempotency-Key": "0c2d8c4e-5a3b-4e58-9e0e-6d6f5b7a1f00"}
STATES = "select state, idempotency_key from requests order by created_at"


@pytest.fixture
async def service(postgres_dsn: str) -> AsyncIterator[Service]:
    async with open_service(postgres_dsn) as service:
        yield service


class Wire(httpx.HTTPTransport):
    """A connection on which the first answers get lost, whole as they were; remembers what was asked."""

    def __init__(self, losses: int) -> None:
        super().__init__()
        self.losses = losses
        self.keys: list[str | None] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.keys.append(request.headers.get("idempotency-key"))
        answer = super().handle_request(request)
        if len(self.keys) <= self.losses:
            answer.read()
            raise httpx.ReadError("the connection broke")
        return answer


async def use(service: Service, work: Callable[[openai.OpenAI], Any], *, losses: int = 0) -> tuple[Any, Wire]:
    """Do *work* with a client of the SDK, in a thread, over a wire that loses the first answers."""
    wire = Wire(losses)

    def run() -> Any:
        http = httpx.Client(transport=wire)
        url = f"{service.url}/v1"
        with openai.OpenAI(base_url=url, api_key="unused", max_retries=2, timeout=SDK_S, http_client=http) as client:
            return work(client)

    with trio.fail_after(2 * SDK_S):
        return await trio.to_thread.run_sync(run, abandon_on_cancel=True), wire


async def states(service: Service) -> list[str]:
    return [row["state"] for row in await service.pool.fetch(STATES)]


@pytest.mark.slow
async def test_an_upstream_that_fails_once_costs_one_retry_and_makes_one_completed_response(service: Service) -> None:
    def work(client: openai.OpenAI) -> Any:
        return client.responses.create(model="flaky-1-3", input="hello key:once", extra_headers=KEY)

    response, wire = await use(service, work)

    assert (response.status, response.output_text) == ("completed", expected_text("echo-3"))
    assert wire.keys == list(KEY.values()) * 2, "the SDK sends the header with every try"
    assert await states(service) == ["failed", "completed"]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["blocking", "stream"])
async def test_an_answer_that_was_lost_on_the_way_is_given_again(service: Service, stream: bool) -> None:
    def work(client: openai.OpenAI) -> Any:
        made = client.responses.create(model="echo-5-each", input="hello", stream=stream, extra_headers=KEY)
        return list(made)[-1].response if stream else made

    response, wire = await use(service, work, losses=2)

    assert (response.status, response.output_text) == ("completed", expected_text("echo-5"))
    assert len(wire.keys) == 3
    assert await states(service) == ["completed"]
    assert service.simulator.statistics().total == 1


@pytest.mark.slow
async def test_without_a_key_every_retry_is_a_response_of_its_own(service: Service) -> None:
    _, wire = await use(service, lambda client: client.responses.create(model="echo-2", input="hello"), losses=2)

    assert wire.keys == [None] * 3, "the day the SDK sends one by itself, README can say so"
    assert await states(service) == ["completed"] * 3


@pytest.mark.slow
async def test_a_key_for_every_request_of_a_client_can_be_switched_on(service: Service) -> None:
    def work(client: openai.OpenAI) -> list[Any]:
        client._idempotency_header = "Idempotency-Key"
        return [client.responses.create(model="echo-2", input="hello").id for _ in range(2)]

    made, wire = await use(service, work, losses=1)

    assert len(set(made)) == 2
    assert len(wire.keys) == 3
    assert wire.keys[0] == wire.keys[1] != wire.keys[2], "one key for a request and its retry, another for the next"
    assert None not in wire.keys
    assert await states(service) == ["completed"] * 2


@pytest.mark.slow
async def test_one_key_for_all_requests_of_a_client_is_a_conflict_that_the_sdk_does_not_repeat(
    service: Service,
) -> None:
    def work(client: openai.OpenAI) -> openai.ConflictError:
        same = client.with_options(default_headers=KEY)
        same.responses.create(model="echo-2", input="hello")
        with pytest.raises(openai.ConflictError) as raised:
            same.responses.create(model="echo-2", input="something else")
        return raised.value

    conflict, wire = await use(service, work)

    assert (conflict.code, conflict.param) == ("idempotency_key_reused", "Idempotency-Key")
    assert "another body" in conflict.message
    assert len(wire.keys) == 2, "no retry can help"
    assert await states(service) == ["completed"]


@pytest.mark.slow
async def test_a_retry_of_a_call_that_is_handed_over_and_had_succeeded_is_a_conflict(service: Service) -> None:
    def work(client: openai.OpenAI) -> openai.ConflictError:
        with pytest.raises(openai.ConflictError) as raised:
            client.embeddings.create(model="echo-2", input="hello", extra_headers=KEY)
        return raised.value

    conflict, wire = await use(service, work, losses=1)

    assert conflict.code == "idempotency_replay_unavailable"
    assert len(wire.keys) == 2, "no retry can help"
    assert service.simulator.statistics().total == 1, "and none is paid for"


@pytest.mark.slow
async def test_the_sdk_raises_on_what_a_stream_learns_after_its_head(postgres_dsn: str) -> None:
    asked = {"model": "pause-1-2", "input": "hello", "stream": True}
    limits = {"idempotency_wait_s": 0.3, "idempotency_poll_s": 0.05, "head_hold_s": 0.05}
    async with (
        open_service(postgres_dsn, {"limits": limits}) as service,
        service.client.stream("POST", "/v1/responses", json=asked, headers=KEY) as first,
    ):
        await service.simulator.wait_until(lambda counts: counts.paused == 1)
        assert first.status_code == 200

        def work(client: openai.OpenAI) -> openai.APIError:
            with pytest.raises(openai.APIError, match="still under way") as raised:
                list(client.responses.create(**asked, extra_headers=KEY))
            return raised.value

        error, _ = await use(service, work)

    assert error.code == "idempotency_key_in_use"
