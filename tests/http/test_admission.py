"""Who may begin: bounds on what is under way, and rates per owner."""

import pytest
import trio

from dwctl_trio.domain.errors import LimitExceeded, Overloaded
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.rates import OwnerRates
from dwctl_trio.http.admission import Admission
from dwctl_trio.testing.service import Service, open_service

pytestmark = pytest.mark.usefixtures("each_server_at_length")

PAUSED = {"model": "pause-1-2", "input": "key:held", "stream": True}
WAIT_S = 10.0


async def _hold_stream(service: Service, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    """A stream that is under way until it is cancelled."""
    with trio.CancelScope() as scope:
        while True:
            async with service.client.stream("POST", "/v1/responses", json=PAUSED) as answer:
                if answer.status_code == 200:  # and not 503: a place is given back a moment after an answer
                    task_status.started(scope)
                    await trio.sleep_forever()


async def _ask(service: Service, model: str = "echo-2"):
    return await service.client.post("/v1/responses", json={"model": model, "input": "hello"})


async def _ask_until_served(service: Service) -> None:
    with trio.fail_after(WAIT_S):
        while (await _ask(service)).status_code != 200:
            await trio.lowlevel.checkpoint()


# -- what is under way


async def test_a_process_with_as_much_as_it_can_bear_answers_503_until_a_place_is_free(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": {"live_responses": 2}}) as service, trio.open_nursery() as nursery:
        held = [await nursery.start(_hold_stream, service) for _ in range(2)]

        refused = await _ask(service)
        others = [await service.client.get("/v1/models"), await service.client.get("/readyz")]
        held[0].cancel()
        await _ask_until_served(service)
        held[1].cancel()

    assert refused.status_code == 503
    assert refused.json()["error"].keys() == {"message", "type", "param", "code"}
    assert 1000 <= int(refused.headers["retry-after-ms"]) <= 5000
    assert [answer.status_code for answer in others] == [200, 200]


async def test_an_owner_with_as_much_as_it_may_have_is_told_so(postgres_dsn: str) -> None:
    async with (
        open_service(postgres_dsn, {"limits": {"owner_responses": 1}}) as service,
        trio.open_nursery() as nursery,
    ):
        held = await nursery.start(_hold_stream, service)

        refused = await _ask(service)
        held.cancel()
        await _ask_until_served(service)

    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.headers["retry-after-ms"] == "1000"


async def test_every_way_in_which_a_request_ends_gives_its_place_back(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": {"live_responses": 1}}) as service:
        statuses = []
        for _ in range(3):
            for body in (
                {"model": "echo-2", "input": "hello", "stream": True},
                {"model": "error-500", "input": "hello", "stream": True},
                {"model": "cut-1", "input": "hello"},
                {"model": "echo-2"},
                ["no object"],
            ):
                with trio.fail_after(WAIT_S):
                    while (answer := await service.client.post("/v1/responses", json=body)).status_code == 503:
                        await trio.lowlevel.checkpoint()  # a place is given back a moment after the answer
                statuses.append(answer.status_code)
                await service.simulator.wait_idle()
            async with trio.open_nursery() as nursery:
                (await nursery.start(_hold_stream, service)).cancel()
            await _ask_until_served(service)

    assert statuses == [200, 502, 200, 400, 400] * 3


async def test_a_full_queue_for_an_upstream_is_refused_at_once(postgres_dsn: str) -> None:
    overrides = {
        "upstreams": {"simulator": {"max_concurrency": 1}},
        "limits": {"upstream_waiting": 0, "upstream_wait_s": 600},
    }
    async with open_service(postgres_dsn, overrides) as service, trio.open_nursery() as nursery:
        held = await nursery.start(_hold_stream, service)

        with trio.fail_after(WAIT_S):
            refused = await _ask(service)
        held.cancel()
        await _ask_until_served(service)

    assert refused.status_code == 429


def test_a_late_event_loop_lets_nobody_in_but_a_few_until_it_has_caught_up() -> None:
    delay_s = 0.0
    admission = Admission(Limits(loop_delay_s=0.5, calm_responses=2), {}, lambda: delay_s)

    async def main() -> None:
        nonlocal delay_s
        delay_s = 0.6
        releases = [admission.admit("blue")]
        assert admission.find_overload() is None
        releases.append(admission.admit("blue"))
        assert isinstance(admission.find_overload(), Overloaded)
        delay_s = 0.4
        releases.pop()()
        assert admission.find_overload() is None
        releases.pop()()

    trio.run(main)
    assert admission.under_way == 0


async def test_after_an_overload_more_is_let_in_only_by_and_by(autojump_clock) -> None:
    delay_s = 0.0
    admission = Admission(Limits(loop_delay_s=0.5, calm_responses=1), {}, lambda: delay_s)
    for _ in range(10):
        admission.admit("blue")
    delay_s = 0.6
    assert admission.find_overload() is not None
    delay_s = 0.0

    let_in = []
    for _ in range(3):
        while admission.find_overload() is None:
            admission.admit("blue")
        let_in.append(admission.under_way)
        await trio.sleep(2.0)
    await trio.sleep(60.0)
    while admission.under_way < 400:
        assert admission.find_overload() is None
        admission.admit("blue")

    assert let_in == [10, 20, 40]


async def test_those_who_came_in_count_before_they_have_asked_for_a_place(autojump_clock) -> None:
    admission = Admission(Limits(live_responses=2), {})

    leave = [admission.enter() for _ in range(2)]
    refused = admission.find_overload()
    leave[0]()
    leave[0]()

    assert isinstance(refused, Overloaded)
    assert admission.find_overload() is None
    admission.enter()
    assert isinstance(admission.find_overload(), Overloaded)


async def test_a_server_that_shall_never_be_busy_opens_again_all_the_same(autojump_clock) -> None:
    delay_s = 0.6
    admission = Admission(Limits(loop_delay_s=0.5, calm_responses=0), {}, lambda: delay_s)
    assert admission.find_overload() is not None
    delay_s = 0.0

    await trio.sleep(2.0)

    assert admission.find_overload() is None


# -- rates


async def test_an_owner_over_its_rate_of_requests_waits_for_the_next(autojump_clock) -> None:
    admission = Admission(Limits(), {"*": OwnerRates(requests_per_minute=60)})

    for _ in range(60):
        admission.admit("blue")()
    with pytest.raises(LimitExceeded, match="60 requests per minute") as refused:
        admission.admit("blue")
    admission.admit("red")()
    await trio.sleep(refused.value.retry_after_s)
    admission.admit("blue")()

    assert refused.value.retry_after_s == pytest.approx(1.0)
    with pytest.raises(LimitExceeded):
        admission.admit("blue")


async def test_tokens_count_once_they_are_known_and_may_be_owed(autojump_clock) -> None:
    admission = Admission(Limits(), {"blue": OwnerRates(tokens_per_minute=600)})

    release = admission.admit("blue")
    admission.note_tokens("blue", 1200)
    release()
    with pytest.raises(LimitExceeded, match="600 tokens per minute") as refused:
        admission.admit("blue")
    await trio.sleep(refused.value.retry_after_s)

    admission.admit("blue")()
    assert refused.value.retry_after_s == pytest.approx(60.1)


async def test_an_owner_is_told_what_is_left_of_its_rates(autojump_clock) -> None:
    admission = Admission(Limits(), {"blue": OwnerRates(requests_per_minute=10, tokens_per_minute=1000)})

    admission.admit("blue")()
    admission.note_tokens("blue", 300)

    assert admission.headers("blue") == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "6.000s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "700",
        "x-ratelimit-reset-tokens": "18.000s",
    }
    assert admission.headers("red") == {}


async def test_nothing_is_kept_of_owners_about_whom_there_is_nothing_to_know(autojump_clock) -> None:
    admission = Admission(Limits(), {"*": OwnerRates(requests_per_minute=60)})

    for number in range(1000):
        admission.admit(f"owner-{number}")()
    await trio.sleep(60)
    for number in range(1000):
        admission.headers(f"owner-{number}")

    assert admission.owners_known == 0


async def test_the_rates_of_the_configuration_reach_the_client(postgres_dsn: str) -> None:
    overrides = {"owners": {"local": {"requests_per_minute": 2, "tokens_per_minute": 1000}}}
    async with open_service(postgres_dsn, overrides) as service:
        first, second, third = [await _ask(service) for _ in range(3)]

    assert [first.status_code, second.status_code, third.status_code] == [200, 200, 429]
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert int(second.headers["x-ratelimit-remaining-tokens"]) < 1000
    assert 0 < int(third.headers["retry-after-ms"]) <= 30_000
