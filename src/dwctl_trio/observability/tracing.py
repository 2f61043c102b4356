"""Spans: what a request and its model calls did and how long it took, told to whoever collects traces.

Rule 1: no word of a prompt, an output, a key or a URL is in a span; nobody can put one in through what is here.
Rule 2: without a collector a request only passes on the place in a trace that it came with.
Rule 3: telling never waits and never raises; spans that cannot be told are lost.

It does not know OpenTelemetry, which need not be installed; ``otlp.py`` beside it does.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol
from uuid import UUID

import attrs

from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.usage import Usage
from dwctl_trio.protocol.trace_context import TraceContext


class RequestSpan(Protocol):
    """A request that is being served."""

    @property
    def context(self) -> TraceContext | None:
        """The place in the trace below which its work belongs; None if it belongs to no trace."""

    def end(self, status: int | None) -> None:
        """Everything of the request has ended.

        Args:
            status: The HTTP status; None when the client left before there was one.
        """


CHAT = "chat"
"""OpenTelemetry's word for a model call of a response."""


@attrs.frozen(kw_only=True)
class TracedCall:
    """What is known of a model call when it begins."""

    model: str
    """As the client named it."""
    upstream: str
    """The upstream's name in the configuration; never its address."""
    response_id: UUID
    """Ours: the upstream's own is not kept."""
    operation: str = CHAT
    """OpenTelemetry's word for what it is."""


class CallSpan(Protocol):
    """A model call under way."""

    @property
    def context(self) -> TraceContext | None:
        """What the upstream is told of the trace; None for nothing."""

    def end(self, usage: Usage | None, error_type: str | None) -> None:
        """The call has ended.

        Args:
            usage: As far as it is known.
            error_type: A word of ours, or the upstream's status; None for a call that succeeded.
        """


class Tracing(Protocol):
    """Begins spans; never raises, never waits."""

    def start_request(self, method: str, route: str | None, parent: TraceContext | None) -> RequestSpan:
        """A request has come in.

        Args:
            method: As the client sent it.
            route: The template of its URL; None where no view serves it.
            parent: What the client said of a trace.
        """

    def start_call(self, call: TracedCall, parent: TraceContext | None) -> CallSpan:
        """A model call begins, below *parent*."""


@attrs.frozen
class _PassedOn:
    """A request or a call that nobody is told of."""

    context: TraceContext | None

    def end(self, *_: object) -> None:
        """Tell nobody."""


class NoTracing:
    """Keeps ``Tracing`` without a collector: the client's own trace goes on to the upstream."""

    def start_request(self, _method: str, _route: str | None, parent: TraceContext | None) -> RequestSpan:
        """See ``Tracing``."""
        return _PassedOn(parent)

    def start_call(self, _call: TracedCall, parent: TraceContext | None) -> CallSpan:
        """See ``Tracing``."""
        return _PassedOn(parent)


@asynccontextmanager
async def open_tracing(endpoint: str | None, limits: Limits) -> AsyncIterator[Tracing]:
    """Tracing for the time of the block; at its end the spans that wait are sent within ``tracing_flush_s``.

    Args:
        endpoint: The collector's base URL; None for no spans. With one, the extra ``tracing`` must be installed.
        limits: ``tracing_flush_s``.
    """
    if endpoint is None:
        yield NoTracing()
        return
    from dwctl_trio.observability.otlp import open_otlp_tracing  # noqa: PLC0415 - only there with the extra

    async with open_otlp_tracing(endpoint, limits) as tracing:
        yield tracing
