"""One call of an upstream whose answer is handed over: making it, and what is said of it when it has ended."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Self
from uuid import UUID

import attrs
import trio

from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.errors import UpstreamError
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.lifecycle import RowState, wire_status
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.response import ResponseError
from dwctl_trio.domain.turn import UsageReported
from dwctl_trio.engine.execution import traced_error
from dwctl_trio.engine.model_step import ModelStep
from dwctl_trio.engine.state import Services
from dwctl_trio.observability.log import get_logger
from dwctl_trio.observability.metrics import EndedResponse
from dwctl_trio.observability.tracing import CHAT, TracedCall
from dwctl_trio.ports import ChatCall, ChatExchange, ResponseRow
from dwctl_trio.protocol.trace_context import TraceContext

_OPERATIONS: Mapping[str, str] = {
    Surface.CHAT: CHAT,
    Surface.COMPLETIONS: "text_completion",
    Surface.EMBEDDINGS: "embeddings",
}
"""In OpenTelemetry's words."""

_log = get_logger(__name__)


class ChatChunks:
    """The chunks of an answer, a list for each read that brought any, or the whole answer as the only one.

    Args:
        call: Is told the times and the usage.
        exchange: The answer.
    """

    def __init__(self, call: ModelStep, exchange: ChatExchange) -> None:
        self._call = call
        self._reads = aiter(exchange)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[bytes]:
        """The chunks of the next read that holds any."""
        chunks: list[bytes] = []
        while not chunks:
            parts = await anext(self._reads)
            self._call.note_token()
            for part in parts:
                if isinstance(part, UsageReported):
                    self._call.usage = part.usage
                else:
                    chunks.append(part)
        return chunks


@asynccontextmanager
async def open_chat_call(
    services: Services, call: ModelStep, asked: ChatCall, response_id: UUID
) -> AsyncIterator[ChatChunks]:
    """Make the call, and wait for the head of its answer.

    Args:
        services: Where it goes.
        call: Is told the status, the times and the usage.
        asked: What is asked; the call is a part of its trace.
        response_id: Of the row that the call belongs to.

    Raises:
        DwctlError: It failed.
    """
    traced = TracedCall(
        model=asked.route.model,
        upstream=asked.route.upstream,
        response_id=response_id,
        operation=_OPERATIONS[asked.request.surface],
    )
    with tracing_call(services, call, traced, asked.trace) as trace:
        async with services.chat.open_chat(attrs.evolve(asked, trace=trace)) as exchange:
            call.http_status = exchange.http_status
            yield ChatChunks(call, exchange)


@contextmanager
def tracing_call(
    services: Services, call: ModelStep, traced: TracedCall, parent: TraceContext | None
) -> Iterator[TraceContext | None]:
    """Make the block the span of *call*, and note the status of the upstream's that ends it.

    Yields:
        What the upstream is told of the trace.
    """
    span = services.tracing.start_call(traced, parent)
    try:
        yield span.context
    except BaseException as error:
        if isinstance(error, UpstreamError) and call.http_status is None:
            call.http_status = error.status
        span.end(call.usage, traced_error(error))
        raise
    span.end(call.usage, None)


@attrs.frozen(kw_only=True)
class EndedCall:
    """What a call has come to, and the row that it was the work of."""

    kind: str
    """What was asked for: a surface, or a name for the log."""
    row: ResponseRow
    route: ModelRoute
    call: ModelStep
    state: RowState
    error: ResponseError | None
    """Of a failed row."""
    begun_at: float
    """By Trio's clock."""
    written: bool
    """Whether its row says so."""
    attempt: int = 1


def record_call(services: Services, ended: EndedCall) -> None:
    """The one canonical line of a call that is handed over, and its place in metrics and rates."""
    row, route, call = ended.row, ended.route, ended.call
    usage, status = call.usage, wire_status(ended.state)
    duration_s = trio.current_time() - ended.begun_at
    first_token_s = None if call.first_token_at is None else call.first_token_at - ended.begun_at
    error_type = ended.error.type if ended.error is not None else None
    _log.info(
        "call_finished",
        surface=ended.kind,
        response_id=response_id_text(row.response_id),
        owner=row.owner,
        model=route.model,
        upstream=route.upstream,
        stream=row.stream,
        status=status.value,
        error_type=error_type.value if error_type is not None else None,
        http_status=call.http_status,
        stored=ended.written,
        duration_s=round(duration_s, 4),
        first_token_s=None if first_token_s is None else round(first_token_s, 4),
        input_tokens=usage.input_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        attempt=ended.attempt,
    )
    services.metrics.note_response(
        EndedResponse(
            model=route.model,
            upstream=route.upstream,
            status=status,
            error_type=error_type,
            duration_s=duration_s,
            first_token_s=first_token_s,
            usage=usage,
            operation=_OPERATIONS.get(ended.kind, CHAT),
        )
    )
    if usage is not None:
        services.note_tokens(row.owner, usage.total_tokens)
