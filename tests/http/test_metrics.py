"""What a running server counts: exactly what happened, in a bounded number of series, without a word of any client."""

from collections import Counter
from typing import Any

import httpx
import pytest
import trio
from tests.http.conftest import DELTA, WAIT_S, as_request, ask, open_raw
from tests.observability.scrapes import Scrape

from dwctl_trio.testing.service import Service, open_service
from dwctl_trio.testing.simulator_reply import CANARY

MODELS = [
    {"name": "known", "upstream": "simulator", "upstream_model": "reasoning-2-3"},
    {"name": "*", "upstream": "simulator"},
]
PLACES = 7
OVERRIDES = {"models": MODELS, "upstreams": {"simulator": {"max_concurrency": PLACES}}}
REQUESTS = ("method", "route", "status_class")
RESPONSES = ("model", "upstream", "status", "error_type")


async def scrape(service: Service, **headers: str) -> Scrape:
    answer = await service.client.get("/metrics", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Scrape(answer.text)


async def scrape_until(service: Service, name: str, total: float) -> Scrape:
    """The first scrape in which the values of *name* add up to *total*; asked for again and again."""
    with trio.fail_after(WAIT_S):
        while (seen := await scrape(service)).total(name) != total:
            pass
    return seen


async def create(service: Service, model: str, **fields: Any) -> httpx.Response:
    return await service.client.post("/v1/responses", json=ask(model, **fields))


async def leave_after_delta(service: Service) -> None:
    """Hang up in the middle of a stream."""
    async with open_raw(service) as client:
        await client.send(as_request(ask("pause-1-2", key="midway", stream=True)))
        await client.read_until(DELTA)
    await service.simulator.wait_aborted("midway")


async def leave_before_answer(service: Service) -> None:
    """Hang up while nothing has been answered."""
    async with open_raw(service) as client:
        await client.send(as_request(ask("hang", key="early")))
        await service.simulator.wait_until(lambda counts: counts.open == 1)
    await service.simulator.wait_aborted("early")


@pytest.mark.slow
async def test_a_scrape_after_known_traffic_says_exactly_what_happened(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, OVERRIDES) as service:
        done = await create(service, "known")
        await create(service, "known", stream=True)
        await create(service, "known", store=False)
        short = await create(service, "echo-2-length")
        await create(service, "error-500")
        await create(service, "error-429")
        await create(service, "echo-2-cut", stream=True)
        await leave_after_delta(service)
        await leave_before_answer(service)
        await service.client.post("/v1/responses", json={"input": "no model"})
        await service.client.get(f"/v1/responses/{done.json()['id']}")
        await service.client.get("/v1/responses/resp_unknown")
        await service.client.delete(f"/v1/responses/{done.json()['id']}")
        await service.client.get("/v1/secrets")
        await service.client.request("BREW", "/healthz")
        await service.client.get("/healthz")
        seen = await scrape_until(service, "dwctl_responses_total", 9)

    assert seen.rows("dwctl_responses_total", *RESPONSES) == {
        ("known", "simulator", "completed", ""): 3,
        ("*", "simulator", "incomplete", ""): 1,
        ("*", "simulator", "failed", "upstream_error"): 2,
        ("*", "simulator", "failed", "rate_limited"): 1,
        ("*", "simulator", "cancelled", ""): 2,
    }
    requests = seen.rows("dwctl_http_requests_total", *REQUESTS)
    requests.pop(("GET", "/metrics", "2xx"), None)
    assert requests == {
        ("POST", "/v1/responses", "2xx"): 6,
        ("POST", "/v1/responses", "4xx"): 2,
        ("POST", "/v1/responses", "5xx"): 1,
        ("POST", "/v1/responses", "unanswered"): 1,
        ("GET", "/v1/responses/<response_id>", "2xx"): 1,
        ("GET", "/v1/responses/<response_id>", "4xx"): 1,
        ("DELETE", "/v1/responses/<response_id>", "2xx"): 1,
        ("GET", "unmatched", "4xx"): 1,
        ("_OTHER", "unmatched", "4xx"): 1,
        ("GET", "/healthz", "2xx"): 1,
    }
    _check_tokens(seen, done.json()["usage"], short.json()["usage"])
    _check_times(seen)
    _check_rest(seen)


def _check_tokens(seen: Scrape, known: dict[str, Any], short: dict[str, Any]) -> None:
    """Three of the known model and one of another reported what they used; of one length each."""
    labels = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
    by_kind = {"input": "input_tokens", "output": "output_tokens"}
    sums = seen.rows("gen_ai_client_token_usage_sum", *labels, "gen_ai_token_type")
    assert sums == {
        ("chat", "simulator", model, kind): times * usage[field]
        for model, usage, times in (("known", known, 3), ("*", short, 1))
        for kind, field in by_kind.items()
    }
    reasoning = seen.rows("gen_ai_client_inference_usage_reasoning_output_tokens_total", *labels)
    assert known["output_tokens_details"]["reasoning_tokens"] == 2
    assert reasoning == {("chat", "simulator", "known"): 6, ("chat", "simulator", "*"): 0}


def _check_times(seen: Scrape) -> None:
    """As many durations as responses, as many first tokens as answers that began."""
    durations: Counter[str] = Counter()
    for labels, count in seen.samples("gen_ai_server_request_duration_seconds_count").items():
        durations[dict(labels)["error_type"]] += int(count)
    assert durations == {"": 4, "cancelled": 2, "upstream_error": 2, "rate_limited": 1}
    assert seen.total("gen_ai_server_time_to_first_token_seconds_count") == 6
    assert 0 < seen.total("gen_ai_server_time_to_first_token_seconds_sum") < WAIT_S


def _check_rest(seen: Scrape) -> None:
    """Nothing is under way, and nothing went wrong with the store."""
    assert seen.value("dwctl_live_responses") == 0
    assert seen.value("dwctl_upstream_free_places", {"upstream": "simulator"}) == PLACES
    assert seen.value("dwctl_upstream_places", {"upstream": "simulator"}) == PLACES
    assert seen.value("dwctl_pool_connections") == seen.value("dwctl_pool_connections_opened_total") > 0
    for name in ("opening_failures", "terminal_write_failures", "terminal_writes_given_up", "rescued_responses"):
        assert seen.total(f"dwctl_{name}_total") == 0
    assert seen.total("dwctl_build_info") == 1


async def test_a_response_under_way_is_live_and_holds_a_place(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, OVERRIDES) as service, open_raw(service) as client:
        await client.send(as_request(ask("pause-1-2", key="live", stream=True)))
        await client.read_until(DELTA)
        seen = await scrape(service)

    assert seen.value("dwctl_live_responses") == 1
    assert seen.value("dwctl_upstream_free_places", {"upstream": "simulator"}) == PLACES - 1


async def test_the_lag_of_the_event_loop_is_measured_while_the_server_runs(service: Service) -> None:
    with trio.fail_after(WAIT_S):
        while (await scrape(service)).value("dwctl_event_loop_timer_lag_seconds_count") < 1:
            pass


@pytest.mark.slow
async def test_a_thousand_model_names_and_paths_of_clients_add_no_series(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, OVERRIDES) as service:
        await _visit(service, "first")
        before = await scrape(service)
        for number in range(1000):
            await _visit(service, f"{number}-chosen")
        after = await scrape_until(service, "dwctl_responses_total", 1001)

    print(f"1,000 model names, paths and methods: {before.series()} series before, {after.series()} after")
    assert "chosen" not in after.text
    # the first scrape is counted after it was rendered, and adds its one series to the second
    assert after.series() <= before.series() + 1


async def _visit(service: Service, name: str) -> None:
    """A response, a path and a method that only this client has thought of."""
    with trio.fail_after(WAIT_S):
        assert (await create(service, name)).status_code == 200
        await service.client.get(f"/v1/{name}/{name}")
        await service.client.get(f"/v1/responses/{name}")
        await service.client.request(f"X{name.upper()}", f"/v1/models/{name}")


async def test_two_services_in_one_process_share_no_counts(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, OVERRIDES) as one, open_service(postgres_dsn, OVERRIDES) as other:
        await create(one, "known")
        seen_one, seen_other = await scrape(one), await scrape(other)

    assert seen_one.total("dwctl_responses_total") == 1
    assert seen_other.total("dwctl_responses_total") == 0
    assert seen_other.samples("gen_ai_client_token_usage_count") == {}


async def test_nothing_that_a_client_or_an_upstream_said_is_in_a_scrape(postgres_dsn: str) -> None:
    secret = "sk-canary-upstream-key"
    models = [{"name": "*", "upstream": "simulator"}]
    upstreams = {"simulator": {"api_key": secret, "headers": {"x-canary": "canary-header"}}}
    async with open_service(postgres_dsn, {"models": models, "upstreams": upstreams}) as service:
        key = {"authorization": "Bearer sk-canary-client-key"}
        for model in ("error-500", "echo-2-midstream", "html-503", "canary-model-name"):
            body = ask(model, key="canary-user", instructions="canary-instructions", metadata={"canary": "canary"})
            await service.client.post("/v1/responses?canary-query=1", json=body, headers=key)
        await service.client.get("/canary-path", headers=key)
        await service.client.get("/v1/responses/resp_canary-id", headers=key)
        seen = await scrape_until(service, "dwctl_responses_total", 4)
        address = service.simulator.origin.removeprefix("http://")

    for told in ("canary", CANARY, secret, address, "http:", "127.0.0.1", "postgresql:"):
        assert told.lower() not in seen.text.lower(), told


async def test_a_scrape_needs_no_key_and_knows_no_owner(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, OVERRIDES | {"auth": {"mode": "keys"}}) as service:
        refused = await create(service, "known")
        seen = await scrape(service)
        wrong = await scrape(service, authorization="Bearer wrong")

    assert refused.status_code == 401
    assert seen.rows("dwctl_http_requests_total", *REQUESTS)["POST", "/v1/responses", "4xx"] == 1
    assert seen.families() == wrong.families()
    assert "owner" not in seen.text
