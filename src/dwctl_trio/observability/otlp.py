"""Spans for a collector, over OTLP/HTTP: the one module that knows OpenTelemetry; needs the extra ``tracing``.

Rule 1: a request only appends to a queue: the SDK's own, bounded, whose oldest spans are dropped when it is full.
Rule 2: a thread of the SDK sends the queue; a collector that is slow or gone holds nobody up but that thread.
Rule 3: nothing is global but loggers: no provider is registered, no context is attached, no fork is needed.
Rule 4: what these libraries log is logged without its values: they may be headers, which hold the collector's key.

The names of attributes are those of OpenTelemetry, and the variables ``OTEL_*`` hold wherever the SDK reads them.

Source: OpenTelemetry, "Semantic conventions for HTTP spans" and "… for generative client AI spans".
"""

import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog
import trio
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)

from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.response import ErrorType
from dwctl_trio.domain.usage import Usage
from dwctl_trio.observability.metrics import OTHER_METHOD, known_method
from dwctl_trio.observability.tracing import CallSpan, RequestSpan, TracedCall
from dwctl_trio.protocol.trace_context import TRACESTATE_CHARACTERS_MAX, TraceContext

_log = structlog.get_logger(__name__)

_PATH = "v1/traces"
_SERVICE = "dwctl-trio"
_SERVER_ERROR = 500
_LOGGERS = ("opentelemetry", "urllib3")
_LOG_INTERVAL_S = 10.0
"""A collector that is gone is worth a line now and then, not one for every try."""


class OtlpTracing:
    """Keeps ``tracing.Tracing``.

    Args:
        tracer: Of OpenTelemetry.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def start_request(self, method: str, route: str | None, parent: TraceContext | None) -> RequestSpan:
        """See ``tracing.Tracing``; the URL's path is left out, for a client may write anything there."""
        known = known_method(method)
        attributes = {"http.request.method": known, "url.scheme": "http"}
        if route is not None:
            attributes["http.route"] = route
        verb = "HTTP" if known == OTHER_METHOD else known
        name = verb if route is None else f"{verb} {route}"
        return _RequestSpan(self._start(name, SpanKind.SERVER, attributes, parent))

    def start_call(self, call: TracedCall, parent: TraceContext | None) -> CallSpan:
        """See ``tracing.Tracing``; ``server.address`` is left out, for the upstream's address is nobody's business."""
        attributes = {
            "gen_ai.operation.name": call.operation,
            "gen_ai.provider.name": call.upstream,
            "gen_ai.request.model": call.model,
            "gen_ai.response.id": response_id_text(call.response_id),
        }
        return _CallSpan(self._start(f"{call.operation} {call.model}", SpanKind.CLIENT, attributes, parent))

    def _start(self, name: str, kind: SpanKind, attributes: Mapping[str, str], parent: TraceContext | None) -> Span:
        return self._tracer.start_span(name, context=_enter(parent), kind=kind, attributes=attributes)


class _TracedSpan:
    """A span of OpenTelemetry.

    Args:
        span: Begun.
    """

    def __init__(self, span: Span) -> None:
        self._span = span
        self.context = _leave(span.get_span_context())

    def _end(self, attributes: Mapping[str, str | int], error_type: str | None) -> None:
        self._span.set_attributes(attributes)
        if error_type is not None:
            self._span.set_attribute("error.type", error_type)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class _RequestSpan(_TracedSpan):
    """Keeps ``tracing.RequestSpan``."""

    def end(self, status: int | None) -> None:
        """See ``tracing.RequestSpan``."""
        if status is None:
            self._end({}, ErrorType.CANCELLED.value)
        else:
            self._end({"http.response.status_code": status}, str(status) if status >= _SERVER_ERROR else None)


class _CallSpan(_TracedSpan):
    """Keeps ``tracing.CallSpan``."""

    def end(self, usage: Usage | None, error_type: str | None) -> None:
        """See ``tracing.CallSpan``."""
        tokens = {}
        if usage is not None:
            tokens["gen_ai.usage.input_tokens"] = usage.input_tokens
            tokens["gen_ai.usage.output_tokens"] = usage.output_tokens
        self._end(tokens, error_type)


def _enter(parent: TraceContext | None) -> Context:
    """*parent* as OpenTelemetry knows it; never what happens to be current."""
    if parent is None:
        return Context()
    span_context = SpanContext(
        trace_id=int(parent.trace_id, 16),
        span_id=int(parent.span_id, 16),
        is_remote=parent.is_remote,
        trace_flags=TraceFlags(parent.flags),
        trace_state=TraceState.from_header([parent.tracestate]) if parent.tracestate else None,
    )
    return set_span_in_context(NonRecordingSpan(span_context), Context())


def _leave(context: SpanContext) -> TraceContext | None:
    """The place in a trace of a span that was begun; None when the SDK is switched off and no trace came in."""
    if not context.is_valid:
        return None
    tracestate = context.trace_state.to_header()
    return TraceContext(
        trace_id=format_trace_id(context.trace_id),
        span_id=format_span_id(context.span_id),
        flags=context.trace_flags,
        tracestate=tracestate if 0 < len(tracestate) <= TRACESTATE_CHARACTERS_MAX else None,
    )


@asynccontextmanager
async def open_otlp_tracing(endpoint: str, limits: Limits) -> AsyncIterator[OtlpTracing]:
    """See ``tracing.open_tracing``."""
    _adopt_loggers()
    exporter = OTLPSpanExporter(endpoint=f"{endpoint}/{_PATH}")
    own = Resource.create({SERVICE_NAME: _SERVICE, SERVICE_VERSION: version(_SERVICE)})
    provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield OtlpTracing(provider.get_tracer(_SERVICE, version(_SERVICE)))
    finally:
        # The SDK's own shutdown waits for its thread, for 30 s: not in the thread of the event loop.
        with trio.move_on_after(limits.tracing_flush_s, shield=True) as flush:
            await trio.to_thread.run_sync(provider.shutdown, abandon_on_cancel=True)
        if flush.cancelled_caught:
            _log.warning("tracing_flush_given_up")
            exporter.shutdown()  # type: ignore[no-untyped-call]  # ends its wait for the next try


class _ToStructlog(logging.Handler):
    """What the libraries log goes where our logs go, seldom, and without any value; also from the SDK's thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next_at = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on what *record* says without its values, of which only numbers and the kinds of errors are told."""
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + _LOG_INTERVAL_S
        values = (*(record.args or ()), *(record.exc_info or ()))
        errors = [type(value).__name__ for value in values if isinstance(value, BaseException)]
        numbers = [value for value in values if isinstance(value, int | float)]
        message = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
        _log.warning("tracing_fault", source=record.name, message=message, errors=errors, numbers=numbers)


def _adopt_loggers() -> None:
    handler = _ToStructlog()
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.handlers = [handler]
