"""What is counted, by itself: labels that no client can fill, registries of their own, pages that cost little."""

import re
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.observability.scrapes import Scrape

from dwctl_trio.domain.response import ErrorType, ResponseStatus
from dwctl_trio.domain.usage import Usage
from dwctl_trio.observability.loop_delay import LoopDelay
from dwctl_trio.observability.loop_lag import LoopLag
from dwctl_trio.observability.metrics import (
    OTHER_METHOD,
    UNANSWERED,
    UNMATCHED,
    EndedResponse,
    GivenUp,
    Metrics,
    Watched,
)
from dwctl_trio.observability.metrics_page import RENDERING_REST, MetricsPage

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
USAGE = Usage(input_tokens=7, output_tokens=20, cached_tokens=3, reasoning_tokens=5)
ENDED = EndedResponse(
    model="known",
    upstream="local",
    status=ResponseStatus.COMPLETED,
    error_type=None,
    duration_s=1.5,
    first_token_s=0.3,
    usage=USAGE,
)
GEN_AI = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "local", "gen_ai_request_model": "known"}


@attrs.frozen
class FakePool:
    """A pool that stands still; its figures are its own."""

    size: int = 5
    idle: int = 3
    in_use: int = 2
    waiting: int = 4
    opened_total: int = 9
    discarded_total: int = 1

    def statistics(self) -> "FakePool":
        return self


class FakeUpstreams:
    """Upstreams of a hundred places, of which as many are free as their names are long."""

    def free_places(self, name: str) -> int:
        return len(name)

    def all_places(self, name: str) -> int:
        return 100


def scrape(metrics: Metrics) -> Scrape:
    return Scrape(metrics.render().decode())


def make_metrics() -> Metrics:
    """Metrics with two routes, that watch everything."""
    metrics = Metrics(["known", "*"])
    upstreams, names = FakeUpstreams(), ("local", "remote")
    metrics.watch(
        Watched(
            live=[1, 2],
            loop_lag=LoopLag(),
            loop_delay=LoopDelay(),
            pool=FakePool(),
            upstreams=upstreams,
            upstream_names=names,
        )
    )
    return metrics


# -- responses


def test_a_response_is_counted_once_in_each_of_its_metrics() -> None:
    metrics = make_metrics()
    metrics.note_response(ENDED)
    seen = scrape(metrics)

    labels = ("model", "upstream", "status", "error_type")
    assert seen.rows("dwctl_responses_total", *labels) == {("known", "local", "completed", ""): 1}
    assert seen.value("gen_ai_server_request_duration_seconds_sum", GEN_AI | {"error_type": ""}) == 1.5
    assert seen.value("gen_ai_server_time_to_first_token_seconds_sum", GEN_AI) == 0.3
    assert seen.value("gen_ai_client_token_usage_sum", GEN_AI | {"gen_ai_token_type": "input"}) == 7
    assert seen.value("gen_ai_client_token_usage_sum", GEN_AI | {"gen_ai_token_type": "output"}) == 20
    assert seen.value("gen_ai_client_inference_usage_cache_read_input_tokens_total", GEN_AI) == 3
    assert seen.value("gen_ai_client_inference_usage_reasoning_output_tokens_total", GEN_AI) == 5


def test_a_token_that_never_came_and_a_usage_that_nobody_reported_are_not_counted_as_zero() -> None:
    metrics = make_metrics()
    metrics.note_response(
        attrs.evolve(
            ENDED, status=ResponseStatus.FAILED, error_type=ErrorType.UPSTREAM_ERROR, first_token_s=None, usage=None
        )
    )
    seen = scrape(metrics)

    assert seen.samples("gen_ai_server_time_to_first_token_seconds_count") == {}
    assert seen.samples("gen_ai_client_token_usage_count") == {}
    failed = GEN_AI | {"error_type": "upstream_error"}
    assert seen.value("gen_ai_server_request_duration_seconds_count", failed) == 1


def test_details_of_the_usage_that_nobody_reported_are_not_counted() -> None:
    metrics = make_metrics()
    metrics.note_response(attrs.evolve(ENDED, usage=Usage(input_tokens=1, output_tokens=1)))
    seen = scrape(metrics)

    assert seen.total("gen_ai_client_token_usage_count") == 2
    assert seen.samples("gen_ai_client_inference_usage_cache_read_input_tokens_total") == {}
    assert seen.samples("gen_ai_client_inference_usage_reasoning_output_tokens_total") == {}


# -- labels


@settings(max_examples=20)
@given(st.lists(st.text(max_size=30), max_size=20))
def test_no_model_name_of_a_client_makes_a_series_of_its_own(names: list[str]) -> None:
    metrics = make_metrics()
    for name in ("known", "first", *names):
        metrics.note_response(attrs.evolve(ENDED, model=name))

    models = {dict(labels)["model"] for labels in scrape(metrics).samples("dwctl_responses_total")}

    assert models == {"known", "*"}


@given(st.text(min_size=1, max_size=30))
def test_no_method_of_a_client_makes_a_series_of_its_own(method: str) -> None:
    metrics = make_metrics()
    metrics.note_request(f"X{method}", None, 404)

    rows = scrape(metrics).rows("dwctl_http_requests_total", "method", "route", "status_class")

    assert rows == {(OTHER_METHOD, UNMATCHED, "4xx"): 1}


def test_a_request_without_an_answer_is_counted_as_that() -> None:
    metrics = make_metrics()
    metrics.note_request("POST", "/v1/responses", None)

    rows = scrape(metrics).rows("dwctl_http_requests_total", "method", "route", "status_class")

    assert rows == {("POST", "/v1/responses", UNANSWERED): 1}


# -- the whole


def test_two_applications_in_one_process_share_nothing() -> None:
    one, other = make_metrics(), make_metrics()
    one.note_response(ENDED)
    one.opening_failures.inc()

    assert scrape(other).samples("dwctl_responses_total") == {}
    assert scrape(other).value("dwctl_opening_failures_total") == 0
    assert scrape(one).value("dwctl_opening_failures_total") == 1


def test_what_is_a_state_is_read_at_the_moment_of_the_scrape() -> None:
    live: list[int] = []
    metrics = Metrics()
    upstreams, names = FakeUpstreams(), ("local", "remote")
    metrics.watch(
        Watched(
            live=live,
            loop_lag=LoopLag(),
            loop_delay=LoopDelay(),
            pool=FakePool(),
            upstreams=upstreams,
            upstream_names=names,
        )
    )
    live.append(1)
    seen = scrape(metrics)

    assert seen.value("dwctl_live_responses") == 1
    assert seen.rows("dwctl_upstream_free_places", "upstream") == {("local",): 5, ("remote",): 6}
    assert seen.rows("dwctl_upstream_places", "upstream") == {("local",): 100, ("remote",): 100}
    pool = {name: seen.value(f"dwctl_pool_{name}") for name in ("connections", "idle_connections", "used_connections")}
    assert pool == {"connections": 5, "idle_connections": 3, "used_connections": 2}
    assert seen.value("dwctl_pool_waiting") == 4
    assert seen.value("dwctl_pool_connections_opened_total") == 9
    assert seen.value("dwctl_pool_connections_discarded_total") == 1


def test_what_raises_an_alarm_is_there_before_it_has_happened() -> None:
    seen = scrape(Metrics())

    assert seen.rows("dwctl_terminal_writes_given_up_total", "reason") == {(reason.value,): 0 for reason in GivenUp}
    for name in ("opening_failures", "terminal_write_failures", "lease_renewal_failures", "rescued_responses"):
        assert set(seen.samples(f"dwctl_{name}_total").values()) == {0.0}


def test_no_series_tells_when_it_began() -> None:
    metrics = make_metrics()
    metrics.note_response(ENDED)

    assert "_created" not in scrape(metrics).text


# -- the page


@attrs.define
class SlowMetrics:
    """Metrics whose rendering takes a second on the clock of the test."""

    now: float = 0.0
    renderings: int = 0

    def clock(self) -> float:
        return self.now

    def render(self) -> bytes:
        self.now += 1.0
        self.renderings += 1
        return str(self.renderings).encode()


def test_scrapes_cost_a_tenth_of_the_time_at_the_most() -> None:
    slow = SlowMetrics()
    page = MetricsPage(slow, slow.clock)
    while slow.now < 1000.0:
        page.read()
        slow.now += 0.25

    assert slow.renderings == pytest.approx(1000.0 / (RENDERING_REST + 1), rel=0.05)


def test_a_page_that_has_rested_is_rendered_anew() -> None:
    slow = SlowMetrics()
    page = MetricsPage(slow, slow.clock)

    assert (page.read(), page.read()) == (b"1", b"1")
    slow.now += RENDERING_REST
    assert page.read() == b"2"


# -- the documentation


def test_the_reference_lists_exactly_the_metrics_that_there_are() -> None:
    metrics = make_metrics()
    metrics.note_response(ENDED)
    metrics.note_request("GET", "/healthz", 200)
    metrics.note_tool_call("get_weather", None, 0.5)
    text = scrape(metrics).text
    there = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, flags=re.MULTILINE):
        (labels,) = {
            frozenset(re.findall(r'(\w+)="', found)) - {"le"}
            for found in re.findall(rf"^{name}(?:_bucket|_sum|_count)?({{.*}})? ", text, flags=re.MULTILINE)
        }
        there.add((name, kind, labels))

    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    listed = {(name, kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}

    of_workers = {(name, kind, labels) for name, kind, labels in listed if name.startswith("dwctl_worker_")}
    assert of_workers == {
        ("dwctl_worker_up", "gauge", frozenset({"worker"})),
        ("dwctl_worker_starts_total", "counter", frozenset({"worker"})),
    }
    assert listed - of_workers == there
    assert len(rows) == len(listed)
