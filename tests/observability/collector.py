"""A collector of traces: a real HTTP server that takes OTLP, and may be slow, unwilling or silent."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import h11
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

SERVER, CLIENT = 2, 3
"""Kinds of spans, as OTLP numbers them."""
OK, ERROR = 0, 2
"""Codes of a span's status; the first is no status at all."""


@attrs.frozen(kw_only=True)
class SeenSpan:
    """A span as it was told."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for the first span of a trace."""
    tracestate: str
    attributes: Mapping[str, Any]
    status: int
    duration_s: float
    resource: Mapping[str, Any]
    events: int


@attrs.define(eq=False)
class Collector:
    """What has been told, and how it answers."""

    endpoint: str = ""
    status: int = 200
    bodies: list[bytes] = attrs.Factory(list)
    requests: list[tuple[str, Mapping[str, str]]] = attrs.Factory(list)
    """Path and headers of each request, by lower-case name."""
    answering: trio.Event = attrs.field(factory=trio.Event)
    """It says nothing before this is set."""
    _changed: trio.Event = attrs.Factory(trio.Event)

    @property
    def spans(self) -> list[SeenSpan]:
        """All spans told so far, by the time at which they began."""
        found = [
            (span.start_time_unix_nano, _read_span(span, _read_attributes(of_resource.resource.attributes)))
            for body in self.bodies
            for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]
        return [span for _, span in sorted(found, key=lambda pair: pair[0])]

    async def wait_asked(self) -> None:
        """Return when a request has come; the caller bounds it."""
        while not self.bodies:
            await self._changed.wait()

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer one connection to its end."""
        connection = h11.Connection(h11.SERVER)
        head, body = None, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Request):
                head, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                headers = {name.decode(): value.decode() for name, value in head.headers}
                self.requests.append((head.target.decode(), headers))
                self.bodies.append(body)
                self._changed.set()
                self._changed = trio.Event()
                await self.answering.wait()
                answer = h11.Response(status_code=self.status, headers=[("content-length", "0")])
                await stream.send_all((connection.send(answer) or b"") + (connection.send(h11.EndOfMessage()) or b""))
                connection.start_next_cycle()
            else:
                return


@asynccontextmanager
async def open_collector(*, answering: bool = True) -> AsyncIterator[Collector]:
    """A collector on a free port of this machine, for the time of the block."""
    collector = Collector()
    if answering:
        collector.answering.set()

    async def serve(stream: trio.SocketStream) -> None:
        try:
            await collector.serve(stream)
        except trio.BrokenResourceError:
            pass  # whoever told us has left
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        collector.endpoint = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        yield collector
        nursery.cancel_scope.cancel()


def _read_span(span: Any, resource: Mapping[str, Any]) -> SeenSpan:
    return SeenSpan(
        name=span.name,
        kind=span.kind,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        tracestate=span.trace_state,
        attributes=_read_attributes(span.attributes),
        status=span.status.code,
        duration_s=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        resource=resource,
        events=len(span.events) + len(span.links) + len(span.status.message),
    )


def _read_attributes(attributes: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}
