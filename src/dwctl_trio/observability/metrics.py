"""What one application counts, in the text format of Prometheus.

Rule 1: each application has a registry of its own; nothing is global.
Rule 2: a label's value comes from the configuration, from our own code or from a closed set, never from a client: a
model that only the route ``*`` serves is counted as ``*``, an unknown path as ``unmatched``.
Rule 3: a response is counted once, when it has ended; nothing is counted per event or token.
Rule 4: what is a state and not a count is read at the moment of the scrape.

Names are OpenTelemetry's where it has one, in the form that Prometheus gives them, and begin with ``dwctl_`` otherwise.

Source: OpenTelemetry, "Semantic conventions for generative AI metrics" and "… inference token metrics".
"""

from collections.abc import Collection, Iterable, Sized
from enum import StrEnum
from functools import cache
from importlib.metadata import version
from typing import Protocol

import attrs
from prometheus_client import CollectorRegistry, Counter, Histogram, Info, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dwctl_trio.domain.response import ErrorType, ResponseStatus
from dwctl_trio.domain.usage import Usage
from dwctl_trio.observability.loop_delay import LoopDelay
from dwctl_trio.observability.loop_lag import LoopLag
from dwctl_trio.observability.metrics_page import Uncreated
from dwctl_trio.observability.pruning import PruneCounters
from dwctl_trio.observability.queue_metrics import QueueMetrics
from dwctl_trio.observability.tracing import CHAT

ANY_MODEL = "*"
"""The route that serves every name without a route of its own."""
UNMATCHED = "unmatched"
"""The route of a request that no view serves."""
UNANSWERED = "unanswered"
"""The status class of a request whose client left before the answer."""
OTHER_METHOD = "_OTHER"
"""OpenTelemetry's word for a method that is not one of HTTP's own."""

_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_GEN_AI_LABELS = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")

DURATION_BUCKETS_S = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    *(163.84, 327.68, 655.36, 1310.72, 3600.0),
)
"""OpenTelemetry's, and on to the hour that a call may take at the most."""
FIRST_TOKEN_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0),
)
"""OpenTelemetry's, and on past the two minutes that an upstream has for its first byte."""
TOKEN_BUCKETS = tuple(float(4**power) for power in range(14))
"""OpenTelemetry's: 1 to 67,108,864 in steps of four."""
LOOP_LAG_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""From what a timer of the kernel is late by itself to what loses leases."""


def known_method(method: str) -> str:
    """*method*, or ``OTHER_METHOD`` for one that is not HTTP's own."""
    return method if method in _METHODS else OTHER_METHOD


class GivenUp(StrEnum):
    """Why a terminal write was not done."""

    LEASE_LOST = "lease_lost"
    """The row belongs to somebody else."""
    REFUSED = "refused"
    """PostgreSQL will never take it."""
    TIMEOUT = "timeout"
    """PostgreSQL did not take it in time."""


@attrs.frozen(kw_only=True)
class EndedResponse:
    """What is counted of a response."""

    model: str
    """As the client named it."""
    upstream: str
    status: ResponseStatus
    """As the client was told."""
    error_type: ErrorType | None
    """The kind of the failure; None for a response that did not fail."""
    duration_s: float
    """From the beginning of the request to the end of the terminal write."""
    first_token_s: float | None
    """To the first token; None when none came."""
    usage: Usage | None
    """As the upstream reported it; None when it did not."""
    operation: str = CHAT
    """OpenTelemetry's word for what it was."""


class PoolFigures(Protocol):
    """The state of a pool of connections at one moment."""

    @property
    def size(self) -> int:
        """Open connections."""

    @property
    def idle(self) -> int:
        """Those that nobody uses."""

    @property
    def in_use(self) -> int:
        """Those that somebody uses."""

    @property
    def waiting(self) -> int:
        """Tasks that wait for one."""

    @property
    def opened_total(self) -> int:
        """Connections opened so far."""

    @property
    def discarded_total(self) -> int:
        """Connections closed so far."""


class WatchedPool(Protocol):
    """A pool of connections."""

    def statistics(self) -> PoolFigures:
        """Its state now."""


class WatchedUpstreams(Protocol):
    """Upstreams with a bounded number of places each."""

    def free_places(self, name: str) -> int:
        """Calls of upstream *name* that could begin now."""

    def all_places(self, name: str) -> int:
        """Calls of upstream *name* that may be under way at once."""


@attrs.frozen(kw_only=True)
class Watched:
    """What a scrape looks at."""

    live: Sized
    """The responses being worked on."""
    loop_lag: LoopLag
    loop_delay: LoopDelay
    pool: WatchedPool
    upstreams: WatchedUpstreams
    upstream_names: tuple[str, ...]


class Metrics:
    """All metrics of one application.

    Args:
        model_names: The names that routes of the configuration have; any other is counted as ``*``.
    """

    def __init__(self, model_names: Collection[str] = ()) -> None:
        self._model_names = frozenset(model_names)
        registry = self.registry = CollectorRegistry()
        self._child = cache(lambda metric, *values: metric.labels(*values))  # looking one up costs more than counting
        self._requests = Counter(
            "dwctl_http_requests", "HTTP requests.", ("method", "route", "status_class"), registry=registry
        )
        self._add_responses(registry)
        self._add_tokens(registry)
        self.replays = Counter(
            "dwctl_idempotent_replays", "Requests answered with the response of an earlier one.", registry=registry
        )
        self._tool_duration = Histogram(
            "gen_ai_execute_tool_duration_seconds",
            "Time that a call of a server tool took; an agent's with all its own calls.",
            ("gen_ai_tool_name", "error_type"),
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self.opening_failures = Counter(
            "dwctl_opening_failures", "Responses whose row could not be inserted.", registry=registry
        )
        self.terminal_write_failures = Counter(
            "dwctl_terminal_write_failures", "Tries of a terminal write that failed.", registry=registry
        )
        self.step_write_failures = Counter(
            "dwctl_step_write_failures", "Tries of a write between two steps that failed.", registry=registry
        )
        self._terminal_writes_given_up = Counter(
            "dwctl_terminal_writes_given_up", "Terminal writes that were not done.", ("reason",), registry=registry
        )
        self.lease_renewal_failures = Counter(
            "dwctl_lease_renewal_failures", "Tries to renew the leases that failed.", registry=registry
        )
        self.rescued_responses = Counter(
            "dwctl_rescued_responses",
            "Rows of other processes, dead or stuck, that were ended here.",
            registry=registry,
        )
        self.rescue_failures = Counter(
            "dwctl_rescue_failures", "Sweeps for expired leases that failed.", registry=registry
        )
        self.pruning = PruneCounters(registry)
        self.notify_statements = Counter("dwctl_notify_statements", "NOTIFYs to other processes.", registry=registry)
        self.notify_failures = Counter("dwctl_notify_failures", "NOTIFYs that were lost.", registry=registry)
        self.listen_failures = Counter("dwctl_listen_failures", "Ends of connections that listen.", registry=registry)
        self.loop_lag = Histogram(
            "dwctl_event_loop_timer_lag_seconds",
            "How late a timer of 100 ms fired.",
            buckets=LOOP_LAG_BUCKETS_S,
            registry=registry,
        )
        self.queue = QueueMetrics(registry)
        Info("dwctl_build", "The release.", registry=registry).info({"version": version("dwctl-trio")})
        for reason in GivenUp:  # a count that is not there before it is 1 cannot be alerted on
            self._terminal_writes_given_up.labels(reason.value)

    def _add_responses(self, registry: CollectorRegistry) -> None:
        self._responses = Counter(
            "dwctl_responses",
            "Responses that ended, as the client was told.",
            ("model", "upstream", "status", "error_type"),
            registry=registry,
        )
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "Time from a request for a response to its terminal write.",
            (*_GEN_AI_LABELS, "error_type"),
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Time from a request for a response to its first token.",
            _GEN_AI_LABELS,
            buckets=FIRST_TOKEN_BUCKETS_S,
            registry=registry,
        )

    def _add_tokens(self, registry: CollectorRegistry) -> None:
        self._tokens = Histogram(
            "gen_ai_client_token_usage",
            "Tokens that a response used, as the upstream counted them.",
            (*_GEN_AI_LABELS, "gen_ai_token_type"),
            buckets=TOKEN_BUCKETS,
            registry=registry,
        )
        self._cached_tokens = Counter(
            "gen_ai_client_inference_usage_cache_read_input_tokens",
            "Input tokens that came from the upstream's cache.",
            _GEN_AI_LABELS,
            registry=registry,
        )
        self._reasoning_tokens = Counter(
            "gen_ai_client_inference_usage_reasoning_output_tokens",
            "Output tokens that were spent on reasoning.",
            _GEN_AI_LABELS,
            registry=registry,
        )

    def watch(self, watched: Watched) -> None:
        """Look at *watched*, too, in every scrape; once."""
        self.registry.register(_States(watched))

    def note_request(self, method: str, route: str | None, status: int | None) -> None:
        """A request was answered, or has ended without an answer.

        Args:
            method: As the client sent it.
            route: The template of the URL, None where no view serves it.
            status: The HTTP status; None when the client left before there was one.
        """
        status_class = UNANSWERED if status is None else f"{status // 100}xx"
        self._child(self._requests, known_method(method), route or UNMATCHED, status_class).inc()

    def note_response(self, ended: EndedResponse) -> None:
        """A response has ended."""
        model = ended.model if ended.model in self._model_names else ANY_MODEL
        error_type = ended.error_type.value if ended.error_type else ""
        self._child(self._responses, model, ended.upstream, ended.status.value, error_type).inc()
        labels = (ended.operation, ended.upstream, model)
        if ended.status is ResponseStatus.CANCELLED:  # for OpenTelemetry an error like any other
            error_type = ErrorType.CANCELLED.value
        self._child(self._duration, *labels, error_type).observe(ended.duration_s)
        if ended.first_token_s is not None:
            self._child(self._first_token, *labels).observe(ended.first_token_s)
        usage = ended.usage
        if usage is None:
            return
        self._child(self._tokens, *labels, "input").observe(usage.input_tokens)
        self._child(self._tokens, *labels, "output").observe(usage.output_tokens)
        if usage.cached_tokens is not None:
            self._child(self._cached_tokens, *labels).inc(usage.cached_tokens)
        if usage.reasoning_tokens is not None:
            self._child(self._reasoning_tokens, *labels).inc(usage.reasoning_tokens)

    def note_tool_call(self, name: str, error_type: ErrorType | None, duration_s: float) -> None:
        """A call of a server tool has ended.

        Args:
            name: Of a tool of the configuration.
            error_type: None if it gave an output.
            duration_s: How long it took.
        """
        self._child(self._tool_duration, name, error_type.value if error_type else "").observe(duration_s)

    def note_given_up(self, reason: GivenUp) -> None:
        """A terminal write was not done."""
        self._terminal_writes_given_up.labels(reason.value).inc()

    def render(self) -> bytes:
        """Everything, as of now, as it is scraped."""
        return generate_latest(Uncreated(self.registry))


class _States(Collector):
    """What is read and not counted."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    def collect(self) -> Iterable[Metric]:
        watched, pool = self._watched, self._watched.pool.statistics()
        yield GaugeMetricFamily("dwctl_live_responses", "Responses being worked on.", len(watched.live))
        yield GaugeMetricFamily(
            "dwctl_event_loop_lag_seconds",
            "How late the event loop has been of late: a maximum that loses half in a second.",
            watched.loop_lag.seconds,
        )
        yield GaugeMetricFamily(
            "dwctl_event_loop_delay_seconds",
            "How long a task waits for its turn, on average of late.",
            watched.loop_delay.seconds,
        )
        all_places = GaugeMetricFamily(
            "dwctl_upstream_places", "Calls that may be under way at once.", labels=("upstream",)
        )
        free_places = GaugeMetricFamily(
            "dwctl_upstream_free_places", "Calls that could begin without waiting.", labels=("upstream",)
        )
        for name in watched.upstream_names:
            all_places.add_metric((name,), watched.upstreams.all_places(name))
            free_places.add_metric((name,), watched.upstreams.free_places(name))
        yield all_places
        yield free_places
        yield GaugeMetricFamily("dwctl_pool_connections", "Open connections to PostgreSQL.", pool.size)
        yield GaugeMetricFamily("dwctl_pool_idle_connections", "Open connections that nobody uses.", pool.idle)
        yield GaugeMetricFamily("dwctl_pool_used_connections", "Open connections that somebody uses.", pool.in_use)
        yield GaugeMetricFamily("dwctl_pool_waiting", "Tasks that wait for a connection.", pool.waiting)
        yield CounterMetricFamily("dwctl_pool_connections_opened", "Connections opened.", pool.opened_total)
        yield CounterMetricFamily("dwctl_pool_connections_discarded", "Connections closed.", pool.discarded_total)
