"""A response being worked on, in memory, and what it is worked on with."""

from collections.abc import Callable

import attrs
import trio

from dwctl_trio.domain.errors import IdempotencyKeyHeld, StoreUnavailable
from dwctl_trio.domain.events import ItemEvent
from dwctl_trio.domain.failures import Failure, describe_failure
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.response import Failed, Response, ResponseError, ResponseStatus
from dwctl_trio.domain.steps import ModelCall, Step, StepState
from dwctl_trio.domain.turn import FinishReason, ModelTurn
from dwctl_trio.domain.turn_output import TurnOutput
from dwctl_trio.domain.usage import Usage
from dwctl_trio.engine.emitter import Emitter
from dwctl_trio.engine.leases import LiveResponses
from dwctl_trio.observability.loop_lag import LoopLag
from dwctl_trio.observability.metrics import Metrics
from dwctl_trio.observability.tracing import NoTracing, Tracing
from dwctl_trio.ports import CallMetering, EventSink, NewResponse, ResponseStore, Upstream

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
    upstream: Upstream
    limits: Limits
    live: LiveResponses
    metrics: Metrics = attrs.field(factory=Metrics)
    tracing: Tracing = attrs.field(factory=NoTracing)
    loop_lag: LoopLag = attrs.field(factory=LoopLag)
    note_tokens: Callable[[str, int], None] = _count_nowhere
    """Told the owner and the tokens of each response that ends, as far as they are known."""


class ModelStep:
    """The model call under way: its output so far, and what is to be recorded of it.

    Args:
        step: The step as it was stored before the call.
        first_output_index: Where its items begin in the response.
    """

    def __init__(self, step: Step, *, first_output_index: int) -> None:
        self.step = step
        self.output = TurnOutput(step_id=step.id, first_output_index=first_output_index)
        self.finish_reason: FinishReason | None = None
        self.usage: Usage | None = None
        self.http_status: int | None = None
        self._started_at = trio.current_time()
        self._first_token_at: float | None = None

    def note_token(self) -> None:
        """Something of the answer has arrived."""
        if self._first_token_at is None:
            self._first_token_at = trio.current_time()

    def close_output(self) -> list[ItemEvent]:
        """Close what is open, and return the events of it; nothing if the turn had finished."""
        return [] if self.finish_reason is not None else self.output.close(None)

    def end(self, state: StepState, error: ResponseError | None = None) -> Step:
        """The step as it ends, with the turn as far as it got."""
        turn = ModelTurn(items=self.output.items(), finish_reason=self.finish_reason, usage=self.usage)
        return attrs.evolve(self.step, state=state, result=turn, error=error)

    def metering(self, error_code: str | None) -> CallMetering:
        """What is recorded of the call, as of now."""
        now = trio.current_time()
        return CallMetering(
            step_id=self.step.id,
            http_status=self.http_status,
            error_code=error_code,
            started_ago_s=now - self._started_at,
            first_token_ago_s=None if self._first_token_at is None else now - self._first_token_at,
        )


class Scope:
    """One response being worked on.

    Args:
        new: What was asked, by whom, and where it goes.
        sink: Whoever consumes its events.
        limits: How much of the stream is kept.
    """

    def __init__(self, new: NewResponse, sink: EventSink, limits: Limits) -> None:
        self.new = new
        self.emitter = Emitter(sink, log_bytes_max=limits.event_log_bytes if new.request.store else 0)
        self.started_at = trio.current_time()
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
        self.chain: list[Step] = []
        """The steps that have ended."""
        self.current = ModelStep(self._first_step(), first_output_index=0)
        """The model call under way or made last."""

    def make_opening(self, created_at: int) -> Response:
        """The response at its creation."""
        return Response(
            id=self.new.response_id,
            created_at=created_at,
            request=self.new.request,
            status=ResponseStatus.IN_PROGRESS,
        )

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
        """Return when the row is durable and ``response.created`` is on its way.

        Raises:
            StoreUnavailable: The row could not be opened.
        """
        await self.opened.wait()
        if self.opening is None:
            raise StoreUnavailable("the response's row could not be opened")

    def _first_step(self) -> Step:
        return Step(id=self.new.first_step_id, sequence=1, descriptor=ModelCall(), state=StepState.PROCESSING)
