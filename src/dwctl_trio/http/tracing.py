"""The span of each request to ``/v1``, from its head to the end of everything in its nursery."""

import structlog
from quart import Response as HttpResponse
from quart import g, request
from quart_trio import QuartTrio

from dwctl_trio.http.connection import at_request_end
from dwctl_trio.observability.tracing import Tracing
from dwctl_trio.protocol.trace_context import TraceContext, parse_trace_context

_TRACED = "/v1/"


def current_trace() -> TraceContext | None:
    """The place in a trace below which the work of the current request belongs; None if it belongs to none."""
    context: TraceContext | None = g.trace
    return context


def add_tracing(app: QuartTrio, tracing: Tracing) -> None:
    """Begin and end the spans of *app*'s requests, and name their trace in all that is logged of them."""

    @app.before_request
    async def begin_span() -> None:
        if not request.path.startswith(_TRACED):
            return
        headers, rule = request.headers, request.url_rule
        parent = parse_trace_context(headers.getlist("traceparent"), headers.getlist("tracestate"))
        span = tracing.start_request(request.method, None if rule is None else str(rule.rule), parent)
        g.trace = span.context
        if span.context is not None:
            structlog.contextvars.bind_contextvars(trace_id=span.context.trace_id)
        answered = g.answered = list[int]()
        at_request_end(lambda: span.end(answered[0] if answered else None))

    @app.after_request
    async def note_status(answer: HttpResponse) -> HttpResponse:
        if "answered" in g:
            g.answered.append(answer.status_code)
        return answer
