"""Executing one step: a model call whose answer is streamed as it arrives.

Rule 1: the call may begin before the row is durable, for it has no side effect; nothing is told before. With an
idempotency key the row comes first: a request that only repeats another one costs no call.
Rule 2: a failure of the upstream becomes the step's error, never an exception of the loop.
Rule 3: items close when the model stops; usage that comes later only adds to the step.
"""

from collections.abc import Sequence

import trio

from dwctl_trio.domain.errors import LimitExceeded, UpstreamError, UpstreamRejected
from dwctl_trio.domain.events import ItemEvent
from dwctl_trio.domain.failures import describe_failure
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.response import ErrorType
from dwctl_trio.domain.steps import StepState
from dwctl_trio.domain.turn import Fragment, TurnFinished, UsageReported
from dwctl_trio.engine.state import ModelStep, Scope, Services
from dwctl_trio.observability.tracing import CallSpan, TracedCall
from dwctl_trio.ports import UpstreamCall


async def execute_model_call(services: Services, scope: Scope) -> None:
    """Make the current model call, tell its events as they come, and append the ended step to the chain.

    Raises:
        StoreUnavailable: The row could not be opened.
        trio.BrokenResourceError: The consumer has left.
    """
    current = scope.current
    if scope.new.idempotency is not None:  # who loses the race for a key must not call the model
        await scope.wait_opened()
    span = _start_span(services, scope)
    call = UpstreamCall(
        route=scope.new.route, request=scope.new.request, turns=(), step_id=current.step.id, trace=span.context
    )
    try:
        async with services.upstream.open_turn(call) as stream:
            current.http_status = stream.http_status
            await scope.wait_opened()
            scope.head.set()
            async for fragments in stream:
                current.note_token()
                events = apply_fragments(current, fragments)
                if events:
                    await scope.emitter.emit(events)
    except (UpstreamError, LimitExceeded) as error:
        span.end(current.usage, _error_type(error))
        failed = scope.fail(error)
        if isinstance(error, UpstreamError) and current.http_status is None:
            current.http_status = error.status
        await scope.wait_opened()
        closing = current.close_output()
        if closing:
            await scope.emitter.emit(closing)
        scope.chain.append(current.end(StepState.FAILED, failed.error))
    except BaseException as error:
        span.end(current.usage, _error_type(error))
        raise
    else:
        span.end(current.usage, None)
        scope.chain.append(current.end(StepState.COMPLETED))


def _start_span(services: Services, scope: Scope) -> CallSpan:
    new = scope.new
    traced = TracedCall(
        model=new.request.model, upstream=new.route.upstream, response_id=response_id_text(new.response_id)
    )
    return services.tracing.start_call(traced, new.trace)


def _error_type(error: BaseException) -> str:
    """What a span says of a call that did not succeed."""
    match error:
        case UpstreamRejected(status=int(status)):
            return str(status)
        case Exception() if not isinstance(error, trio.BrokenResourceError):
            return describe_failure(error).error.type.value
        case _:  # the client has left, or the work was stopped
            return ErrorType.CANCELLED.value


def apply_fragments(current: ModelStep, fragments: Sequence[Fragment]) -> list[ItemEvent]:
    """Add what one read brought to the step; return the events of it in order."""
    events: list[ItemEvent] = []
    for fragment in fragments:
        match fragment:
            case TurnFinished(reason):
                events += current.output.close(reason)
                current.finish_reason = reason
            case UsageReported(usage):
                current.usage = usage
            case _:
                events += current.output.feed(fragment)
    return events
