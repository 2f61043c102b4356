"""How many tokens the input of a response would have: the upstream is asked, for nobody else knows.

A chat-completions server counts what it is sent. So the first call of the response is made, with one token to answer,
and its usage read; the answer is thrown away. It is a call like any other: metered, bounded, and paid for.
"""

from functools import partial

import attrs

from dwctl_trio.domain.errors import UpstreamError, UpstreamRejected
from dwctl_trio.domain.rejections import OUTPUT_LIMITS
from dwctl_trio.domain.request import ServiceTier
from dwctl_trio.domain.transitions import plan_turn
from dwctl_trio.domain.turn import UsageReported
from dwctl_trio.engine.chat_call import tracing_call
from dwctl_trio.engine.proxied import ProxiedCall, begin_call, raise_failure, run_call
from dwctl_trio.engine.state import Services
from dwctl_trio.observability.tracing import TracedCall
from dwctl_trio.ports import NewResponse, UpstreamCall

_KIND = "input_tokens"


async def count_input_tokens(services: Services, new: NewResponse) -> int:
    """The tokens that the first model call of *new* would be charged for; nothing of *new* is kept.

    Raises:
        ResponseRefused: The upstream could not be asked, or does not say.
        IdempotencyKeyHeld: It was not asked.
    """
    asked = attrs.evolve(new.request, max_output_tokens=1, store=False, service_tier=ServiceTier.AUTO)
    new = attrs.evolve(new, request=asked)
    counting = begin_call(new, _KIND)
    await run_call(services, counting, partial(_ask, services, counting, new))
    raise_failure(counting)
    usage = counting.call.usage
    assert usage is not None, "or it has failed"
    return usage.input_tokens


async def _ask(services: Services, counting: ProxiedCall, new: NewResponse) -> None:
    try:
        await _count(services, counting, new)
    except UpstreamRejected as error:
        if error.rejection is None or error.rejection.param not in OUTPUT_LIMITS:
            raise
        status = error.status
    else:
        return
    raise UpstreamError(  # what is refused is ours, and none of the client's
        "The model's server refuses an answer of one token, so nobody can say how many tokens the input has.",
        status=status,
    )


async def _count(services: Services, counting: ProxiedCall, new: NewResponse) -> None:
    call = counting.call
    request = attrs.evolve(new.request, input=(*new.history, *new.request.input))
    plan = plan_turn([], tools=new.tools, choice=request.tool_choice, request=request, tree=[])
    traced = TracedCall(model=new.route.model, upstream=new.route.upstream, response_id=new.response_id)
    with tracing_call(services, call, traced, new.trace) as trace:
        asked = UpstreamCall(
            route=new.route, request=request, output=(), plan=plan, step_id=new.first_step_id, trace=trace
        )
        async with services.upstream.open_turn(asked) as answer:
            call.http_status = answer.http_status
            async for fragments in answer:
                call.note_token()
                for fragment in fragments:
                    if isinstance(fragment, UsageReported):
                        call.usage = fragment.usage
        if call.usage is None:
            raise UpstreamError(
                "The model's server does not say how many tokens the input has.", status=call.http_status
            )
