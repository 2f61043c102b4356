"""A response being worked on, in memory, and what it is worked on with."""

import math
from collections.abc import Callable
from functools import partial
from uuid import UUID

import attrs
import trio

from dwctl_trio.domain.assembly import running_calls
from dwctl_trio.domain.errors import IdempotencyKeyHeld, StoreUnavailable
from dwctl_trio.domain.failures import Failure, describe_failure
from dwctl_trio.domain.items import CallKind, McpCall
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.domain.response import Ending, ErrorType, Failed, Response, ResponseStatus
from dwctl_trio.domain.steps import Chain, ModelCall, Step, StepState, ToolCall
from dwctl_trio.domain.tools import OfferedTool, ToolCatalog, kind_of_call
from dwctl_trio.domain.transitions import TurnPlan
from dwctl_trio.engine.emitter import Emitter
from dwctl_trio.engine.leases import LiveResponses
from dwctl_trio.engine.model_step import ModelStep
from dwctl_trio.engine.wakeups import LocalWakeups
from dwctl_trio.observability.loop_lag import LoopLag
from dwctl_trio.observability.metrics import Metrics
from dwctl_trio.observability.tracing import NoTracing, Tracing
from dwctl_trio.ports import (
    ChatUpstream,
    ConversationStore,
    EndedStep,
    EventSink,
    EventStore,
    NewResponse,
    QueueStore,
    ResponseStore,
    ToolRunner,
    Upstream,
    Wakeups,
)

_DECIDED_STATUS = 500
"""The HTTP status of a response that the loop gave up: a bound of ours."""
FIRST_EPOCH = 1
"""The epoch of a warm row: the process that inserts it is its only worker."""


def _count_nowhere(_owner: str, _tokens: int) -> None:
    """For services without rates."""


@attrs.frozen(kw_only=True)
class Services:
    """What every response is worked on with."""

    store: ResponseStore
    conversations: ConversationStore
    queue: QueueStore
    events: EventStore
    upstream: Upstream
    chat: ChatUpstream
    tools: ToolRunner
    catalog: ToolCatalog
    """The server's tools, by name."""
    limits: Limits
    live: LiveResponses
    wakeups: Wakeups = attrs.field(factory=LocalWakeups)
    metrics: Metrics = attrs.field(factory=Metrics)
    tracing: Tracing = attrs.field(factory=NoTracing)
    loop_lag: LoopLag = attrs.field(factory=LoopLag)
    note_tokens: Callable[[str, int], None] = _count_nowhere
    """Told the owner and the tokens of each response that ends, as far as they are known."""


@attrs.define(eq=False, kw_only=True)
class AgentLoop:
    """One agent at work: the response's own, or a sub-agent that one of its steps is."""

    request: ResponseRequest
    """What it was asked; the response's own loop, with the history before it."""
    route: ModelRoute
    tools: tuple[OfferedTool, ...]
    parent: Step | None = None
    """The tool step that it is; None for the response's own."""
    item_id: str = ""
    """Of a sub-agent: the item that shows the call that it is."""
    depth: int = 0
    model_step: ModelStep | None = None
    """The model call under way or made last."""
    calls: dict[str, tuple[int, McpCall]] = attrs.field(factory=dict)
    """The server's calls that are shown and not yet ended, with their places in the output, by call id."""
    ending: Ending | None = None

    @property
    def name(self) -> str:
        """The agent's, by which its events are told apart."""
        return self.parent.descriptor.name if self.parent and isinstance(self.parent.descriptor, ToolCall) else ""

    def make_model_step(self, step: Step, *, first_output_index: int, plan: TurnPlan | None = None) -> ModelStep:
        """The model call that *step* is, whose items begin at *first_output_index*; none to be made has no *plan*."""
        kind_of: Callable[[str], CallKind] = _always_server
        if self.parent is None and plan is not None:  # nobody but the server could run what a sub-agent calls
            kind_of = partial(kind_of_call, self.tools, plan.callable_tools, choice=plan.tool_choice)
        namespaces = {tool.name: tool.namespace.name for tool in self.tools if tool.namespace is not None}
        return ModelStep(
            step, route=self.route, first_output_index=first_output_index, kind_of=kind_of, namespaces=namespaces
        )


def _always_server(_name: str) -> CallKind:
    return CallKind.SERVER


@attrs.define(eq=False)
class _Unstored:
    """A step that has ended and is not yet written as such, with its model call if it is one."""

    step: Step
    call: ModelStep | None


class Scope:
    """One response being worked on.

    Args:
        new: What was asked, by whom, and where it goes.
        sink: Whoever consumes its events.
        limits: How much of the stream is kept, and how much runs at once.
        first_number: Of its next event; those before it are stored.
    """

    def __init__(self, new: NewResponse, sink: EventSink, limits: Limits, *, first_number: int = 0) -> None:
        self.new = new
        self.epoch = FIRST_EPOCH
        log_bytes_max = limits.event_log_bytes if new.request.store else 0
        self.emitter = Emitter(
            sink, log_bytes_max=math.inf if new.request.is_queued else log_bytes_max, first_number=first_number
        )
        self.started_at = trio.current_time()
        self.first_token_at: float | None = None
        """When the first of its models began to answer."""
        self.opened = trio.Event()
        """Set when the row is durable and told of, or when it is known that it could not be opened."""
        self.opening: Response | None = None
        """The response as it was created; None until its row is durable."""
        self.key_held: IdempotencyKeyHeld | None = None
        """Set before ``opened`` if there is no row because another one holds the idempotency key."""
        self.head = trio.Event()
        """Set when the upstream has answered, or when the response is over."""
        self.refusal: Failure | None = None
        """Set before ``head`` if the response failed before the upstream had answered."""
        self.failure: Failure | None = None
        """Why the response failed, if it did."""
        self.tells_cancel = False
        """Set when it ends as cancelled while its consumer is still there."""
        self.steps: dict[UUID, Step] = {}
        """The steps of all loops in order of ``sequence``, by id."""
        self.unstored: list[_Unstored] = []
        """What goes with the next write."""
        self.writing = trio.Lock()
        """Held from a decision until it is durable, so that the rows are the memory at some moment."""
        self.running_tools = trio.CapacityLimiter(limits.tool_concurrency)
        self.running_agents = trio.CapacityLimiter(limits.agent_concurrency)
        asked = attrs.evolve(new.request, input=(*new.history, *new.request.input)) if new.history else new.request
        self.top = AgentLoop(request=asked, route=new.route, tools=new.tools)
        self.loops: list[AgentLoop] = [self.top]
        """All that have begun."""
        self.add_step(Step(id=new.first_step_id, sequence=1, descriptor=ModelCall(), state=StepState.PROCESSING))

    def make_opening(self, created_at: int) -> Response:
        """The response at its creation."""
        return Response(
            id=self.new.response_id,
            created_at=created_at,
            request=self.new.request,
            status=ResponseStatus.IN_PROGRESS,
            tools=self.new.tools,
        )

    @property
    def tree(self) -> Chain:
        """The steps of all loops."""
        return list(self.steps.values())

    def chain_of(self, loop: AgentLoop) -> Chain:
        """The steps of one loop."""
        parent_id = loop.parent.id if loop.parent is not None else None
        return [step for step in self.steps.values() if step.parent_step_id == parent_id]

    def add_step(self, step: Step) -> None:
        """Remember a step that is open, or that was read from its row."""
        self.steps[step.id] = step

    def end_step(self, step: Step, call: ModelStep | None = None) -> None:
        """Remember how a step ended; its row says so after the next write."""
        self.steps[step.id] = step
        self.unstored.append(_Unstored(step, call))

    def break_off(self, loop: AgentLoop, ending: Ending | None = None) -> None:
        """End whatever is open in *loop* and in the sub-agents under it, in memory.

        Args:
            loop: None of it is being worked on any more.
            ending: Of the response, when that is what ends: a turn of its own that failed is a failed step.
        """
        inside = {loop.parent.id if loop.parent is not None else None}
        calls = {one.model_step.step.id: one.model_step for one in self.loops if one.model_step is not None}
        for step in self.tree:
            if step.parent_step_id not in inside:
                continue
            inside.add(step.id)
            call = calls.get(step.id)
            if step.is_open and call is not None:
                error = ending.error if isinstance(ending, Failed) and step.parent_step_id is None else None
                self.end_step(call.end(StepState.FAILED if error else StepState.CANCELED, error), call)
            elif step.is_open:
                self.end_step(attrs.evolve(step, state=StepState.CANCELED))

    def ended_steps(self) -> tuple[EndedStep, ...]:
        """What is not yet written, its times counting back from now."""
        return tuple(
            EndedStep(
                step=ended.step,
                metering=None if ended.call is None else ended.call.metering(_error_code(ended.step)),
            )
            for ended in self.unstored
        )

    def show_calls(self, loop: AgentLoop) -> None:
        """Take the calls of the loop's last turn for shown and not yet ended."""
        loop.calls = running_calls(self.chain_of(loop))

    def note_token(self, call: ModelStep) -> None:
        """Something of an answer has arrived."""
        call.note_token()
        if self.first_token_at is None:
            self.first_token_at = call.first_token_at

    def fail(self, error: Exception) -> Failed:
        """The ending that *error* is; the first failure stays."""
        if self.failure is None:
            self.failure = describe_failure(error)
        return Failed(error=self.failure.error)

    def note_failure(self, failed: Failed) -> None:
        """Remember a failure that the loop decided on by itself, where no error came first."""
        if self.failure is None:
            self.failure = Failure(error=failed.error, http_status=_DECIDED_STATUS)

    async def wait_opened(self) -> None:
        """Return when the row is durable and ``response.created`` is on its way; no checkpoint where it is already.

        Raises:
            StoreUnavailable: The row could not be opened.
        """
        if not self.opened.is_set():
            await self.opened.wait()
        if self.opening is None:
            raise StoreUnavailable("the response's row could not be opened")


def _error_code(step: Step) -> str | None:
    """What a usage record says of a model call."""
    if step.error is not None:
        return step.error.type.value
    return ErrorType.CANCELLED.value if step.state is StepState.CANCELED else None
