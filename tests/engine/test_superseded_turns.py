"""A turn that came to nothing: its items keep their places in the output, and the model is not shown them."""

from contextlib import AbstractAsyncContextManager
from uuid import uuid4

import attrs
import pytest

from dwctl_trio.domain.events import OutputItemAdded
from dwctl_trio.domain.items import ItemStatus, McpCall, Message, TextPart
from dwctl_trio.domain.recovery import ABANDONED_TURN
from dwctl_trio.domain.response import ResponseError
from dwctl_trio.domain.steps import ModelCall, StepState
from dwctl_trio.domain.turn import FinishReason, ModelTurn
from dwctl_trio.engine.execution import execute_model_call
from dwctl_trio.engine.progress import open_steps, settle
from dwctl_trio.engine.sinks import NoSink
from dwctl_trio.engine.state import Scope
from dwctl_trio.ports import TurnStream, Upstream, UpstreamCall
from dwctl_trio.protocol.event_reading import read_events
from dwctl_trio.testing.domain_strategies import RETRIED_TURN
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_store import MemoryStore
from dwctl_trio.testing.request_bench import make_new, open_request_bench

_ITEMS = (
    Message(id="msg_a", status=ItemStatus.INCOMPLETE, content=(TextPart(text="ha"),)),
    McpCall(id="mcp_a", status=ItemStatus.IN_PROGRESS, call_id="call_0", name="look", arguments="{}"),
)


@attrs.define(eq=False)
class _ListeningUpstream:
    upstream: Upstream
    calls: list[UpstreamCall] = attrs.field(factory=list)

    def open_turn(self, call: UpstreamCall) -> AbstractAsyncContextManager[TurnStream]:
        self.calls.append(call)
        return self.upstream.open_turn(call)


@pytest.mark.parametrize("error", [ABANDONED_TURN, RETRIED_TURN])
async def test_the_model_is_asked_again_as_if_it_had_not_answered(error: ResponseError) -> None:
    store = MemoryStore(MemoryDatabase(), daemon_id=uuid4())
    await store.register_process()
    async with open_request_bench(store) as bench:
        upstream = _ListeningUpstream(bench.services.upstream)
        services = attrs.evolve(bench.services, upstream=upstream)
        new = make_new("echo-1", stream=False)
        await store.open_response(new)
        scope = Scope(new, NoSink(), services.limits)
        scope.opened.set()
        scope.opening = scope.make_opening(0)
        first = scope.steps[new.first_step_id]
        turn = ModelTurn(items=_ITEMS, finish_reason=FinishReason.TOOL_CALLS, usage=None)
        superseded = attrs.evolve(first, state=StepState.FAILED, result=turn, error=error)
        await settle(services, scope, scope.top, superseded, scope.top.make_model_step(first, first_output_index=0))
        (opened,) = open_steps(scope, scope.top)
        assert opened.descriptor == ModelCall()
        await execute_model_call(services, scope, scope.top, opened)
        (segment,) = scope.emitter.unstored()
    log = segment.frames

    assert scope.top.calls == {}
    assert [call.output for call in upstream.calls] == [()]
    assert log is not None
    assert [event.output_index for event in read_events([log]) if isinstance(event, OutputItemAdded)] == [2]
