"""Executing a model call, whose answer is streamed as it arrives.

Rule 1: the first call may begin before the row is durable, for it has no side effect; nothing is told before. With an
idempotency key the row comes first: a request that only repeats another one costs no call.
Rule 2: a failure of the upstream becomes the step's error, never an exception of the loop.
Rule 3: items close when the model stops, but for calls that the server runs; usage that comes later only adds to the
step.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import trio

from dwctl_trio.domain.assembly import end_call, history_output, output_length
from dwctl_trio.domain.errors import LimitExceeded, UpstreamError, UpstreamRejected
from dwctl_trio.domain.events import ItemEvent, SubAgentEvent
from dwctl_trio.domain.failures import describe_failure
from dwctl_trio.domain.response import ErrorType, ResponseError
from dwctl_trio.domain.steps import Step, StepState, ToolCall
from dwctl_trio.domain.transitions import plan_turn
from dwctl_trio.domain.turn import Fragment, TextFragment, TurnFinished, UsageReported
from dwctl_trio.domain.turn_output import close_call
from dwctl_trio.engine.model_step import ModelStep
from dwctl_trio.engine.progress import settle
from dwctl_trio.engine.state import AgentLoop, Scope, Services
from dwctl_trio.observability.tracing import CallSpan, TracedCall
from dwctl_trio.ports import UpstreamCall


async def execute_model_call(services: Services, scope: Scope, loop: AgentLoop, step: Step) -> None:
    """Make the model call that *step* is, tell its events as they come, and settle its end.

    Raises:
        StoreError: The row could not be opened, or the step's end not be stored.
        trio.BrokenResourceError: The consumer has left.
    """
    if scope.new.idempotency is not None:  # who loses the race for a key must not call the model
        await scope.wait_opened()
    chain = [earlier for earlier in scope.chain_of(loop) if not earlier.is_open]
    plan = plan_turn(
        chain, tools=loop.tools, choice=loop.request.tool_choice, request=scope.new.request, tree=scope.tree
    )
    first = output_length(chain)
    current = loop.model_step = loop.make_model_step(step, first_output_index=first, plan=plan)
    span = _start_span(services, scope, loop)
    call = UpstreamCall(
        route=loop.route,
        request=loop.request,
        output=history_output(chain),
        plan=plan,
        step_id=step.id,
        trace=span.context,
    )
    error = await _stream_turn(services, scope, loop, call, span)
    if error is None:
        ended = current.end(StepState.COMPLETED)
    else:
        closing = current.close_output()
        if closing:
            await tell(scope, loop, closing)
        ended = current.end(StepState.FAILED, error)
    await settle(services, scope, loop, ended, current)


async def end_calls_not_made(scope: Scope, loop: AgentLoop) -> None:
    """Tell that calls of the last turn are over which a bound of the request forbids; the next turn is told, too.

    Raises:
        trio.BrokenResourceError: The consumer has left.
    """
    made = {
        step.descriptor.call_id
        for step in scope.chain_of(loop)
        if isinstance(step.descriptor, ToolCall) and step.is_open
    }
    for call_id in [call_id for call_id in loop.calls if call_id not in made]:
        output_index, call = loop.calls.pop(call_id)
        await tell(scope, loop, close_call(output_index, end_call(call, None)))


async def _stream_turn(
    services: Services, scope: Scope, loop: AgentLoop, call: UpstreamCall, span: CallSpan
) -> ResponseError | None:
    """Read the whole turn; return why it failed, if it did."""
    current = loop.model_step
    assert current is not None, "the call belongs to it"
    try:
        async with (
            scope.running_agents if loop.depth else nullcontext(),
            services.upstream.open_turn(call) as stream,
        ):
            current.http_status = stream.http_status
            await scope.wait_opened()
            scope.head.set()
            async for fragments in stream:
                if current.first_token_at is None:
                    scope.note_token(current)
                events = apply_fragments(current, fragments)
                if events:
                    await tell(scope, loop, events)
    except (UpstreamError, LimitExceeded) as error:
        span.end(current.usage, traced_error(error))
        if isinstance(error, UpstreamError) and current.http_status is None:
            current.http_status = error.status
        await scope.wait_opened()
        return describe_failure(error).error if loop.depth else scope.fail(error).error
    except BaseException as error:
        span.end(current.usage, traced_error(error))
        raise
    span.end(current.usage, None)
    return None


async def tell(scope: Scope, loop: AgentLoop, events: Sequence[ItemEvent]) -> None:
    """Tell *events* of *loop* to the consumer; a sub-agent's only if the client asked for them.

    Raises:
        trio.BrokenResourceError: The consumer has left.
    """
    if loop.parent is None:
        await scope.emitter.emit(events)
    elif scope.new.request.shows_sub_agents:
        await scope.emitter.emit([SubAgentEvent(loop.name, loop.item_id, event) for event in events])


def _start_span(services: Services, scope: Scope, loop: AgentLoop) -> CallSpan:
    new = scope.new
    traced = TracedCall(model=loop.request.model, upstream=loop.route.upstream, response_id=new.response_id)
    return services.tracing.start_call(traced, new.trace)


def traced_error(error: BaseException) -> str:
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
    output = current.output
    for fragment in fragments:
        if isinstance(fragment, TextFragment):  # the bulk
            events += output.feed_text(fragment)
            continue
        match fragment:
            case TurnFinished(reason):
                events += output.close(reason)
                current.finish_reason = reason
            case UsageReported(usage):
                current.usage = usage
            case _:
                events += output.feed(fragment)
    return events
