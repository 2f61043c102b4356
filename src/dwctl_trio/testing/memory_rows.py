"""The rows of the store as values in memory, how they come about, and which of them the schema refuses.

Rule 1: a row never changes; a change puts another in its place.
Rule 2: what the CHECK constraints of the schema refuse is refused here.

Source: ``postgres/sql/migrations``.
"""

from decimal import Decimal
from uuid import UUID

import attrs
import msgspec

from dwctl_trio.domain.errors import StoreError
from dwctl_trio.domain.lifecycle import LEASED_STATES, REQUIRED_COLUMNS, TERMINAL_STATES, RowState
from dwctl_trio.domain.response import ErrorCode, ErrorType, ResponseError
from dwctl_trio.domain.steps import ModelCall, Step, StepDescriptor, StepResult, StepState, ToolCall, ToolOutput
from dwctl_trio.domain.turn import ModelTurn
from dwctl_trio.ports import ApiKey, CallMetering, EventSegment, ResponseRow
from dwctl_trio.protocol import json
from dwctl_trio.protocol.response_object import parse_turn, render_turn

ABANDONED = ResponseError(
    type=ErrorType.STEP_ABANDONED,
    code=ErrorCode.SERVER_ERROR,
    message="The server process that worked on this response ended before it was done.",
)
"""What a row gets whose process died."""

_STEP_TERMINAL = frozenset({StepState.COMPLETED, StepState.FAILED, StepState.CANCELED})
_HTTP_STATUS_MIN = 100
_HTTP_STATUS_MAX = 599
_HTTP_ERROR_MIN = 400
_BIGINT_MAX = 2**63 - 1


@attrs.frozen(kw_only=True)
class MemoryRow:
    """A row of ``requests``; all moments are Unix seconds by the database's clock."""

    id: UUID
    owner: str
    key_prefix: str | None
    model: str
    upstream: str
    upstream_model: str
    service_tier: str
    stream: bool
    store: bool
    request: bytes | None
    """Encoded; None if nothing is kept."""
    tools: bytes | None
    """Encoded; None if nothing is kept, or without tools."""
    state: RowState
    daemon_id: UUID | None
    epoch: int
    lease_expires_at: float | None
    created_at: float
    started_at: float | None
    surface: str = "responses"
    previous_response_id: UUID | None = None
    background: bool = False
    priority: int = 0
    not_before: float | None = None
    deadline: float | None = None
    """None for a warm response."""
    attempt: int = 0
    reclaims: int = 0
    last_sequence: int | None = None
    """Of its stored events."""
    cancel_requested_at: float | None = None
    response_status: int | None = None
    response: bytes | None = None
    """Encoded, as the terminal event carried it."""
    error: ResponseError | None = None
    finished_at: float | None = None
    idempotency_key: str | None = None
    idempotency_digest: bytes | None = None

    @property
    def is_queued(self) -> bool:
        """Whether it is its lifetime, not a connection."""
        return self.deadline is not None

    @property
    def holds_key(self) -> bool:
        """Whether it keeps its idempotency key from others: it is live, or its client got a response."""
        has_error = self.response_status is not None and self.response_status >= _HTTP_ERROR_MIN
        return self.idempotency_key is not None and (self.background or not has_error)


@attrs.frozen(kw_only=True)
class MemoryStep:
    """A row of ``response_steps``."""

    id: UUID
    response_id: UUID
    sequence: int
    state: StepState
    started_at: float
    parent_step_id: UUID | None = None
    call_id: str | None = None
    """Of a tool call, as ``name``; None for a model call."""
    name: str | None = None
    request: bytes | None = None
    """The arguments of a tool call, encoded."""
    result: bytes | None = None
    """The turn or the output, encoded."""
    error: ResponseError | None = None
    finished_at: float | None = None


@attrs.frozen(kw_only=True)
class EventLog:
    """The rows of ``response_events`` of one response."""

    segments: tuple[EventSegment, ...]
    """In order; at least one."""

    @property
    def last_sequence(self) -> int:
        """Of all events."""
        return self.segments[-1].last_sequence

    @property
    def frames(self) -> bytes:
        """All events as they went over the wire."""
        return b"".join(segment.frames for segment in self.segments)


@attrs.frozen(kw_only=True)
class UsageRecord:
    """A row of ``usage_records``."""

    step_id: UUID
    response_id: UUID
    owner: str
    model: str
    upstream: str
    upstream_model: str
    service_tier: str
    stream: bool
    http_status: int | None
    error_code: str | None
    started_at: float
    first_token_at: float | None
    finished_at: float
    input_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    output_tokens: int | None = None
    input_price_per_million: Decimal | None = None
    output_price_per_million: Decimal | None = None
    currency: str | None = None


@attrs.frozen(kw_only=True)
class MemoryProcess:
    """A row of ``daemons``."""

    heartbeat_at: float
    stopped_at: float | None = None


@attrs.frozen(kw_only=True)
class MemoryKey:
    """A row of ``api_keys``."""

    key: ApiKey
    created_at: float
    revoked_at: float | None = None


# -- how they come about


def opened_step(response_id: UUID, step: Step, now: float, *, store: bool) -> MemoryStep:
    """The row of a *step* that is about to be fired."""
    call = step.descriptor if isinstance(step.descriptor, ToolCall) else None
    return MemoryStep(
        id=step.id,
        response_id=response_id,
        parent_step_id=step.parent_step_id,
        sequence=step.sequence,
        state=StepState.PROCESSING,
        call_id=call.call_id if call is not None else None,
        name=call.name if call is not None else None,
        request=json.encode(call.arguments) if call is not None and store else None,
        started_at=now,
    )


def ended_step(row: MemoryStep, step: Step, now: float, *, store: bool) -> MemoryStep:
    """The *row* once it has ended as *step*."""
    result: bytes | None = None
    if isinstance(step.result, ModelTurn):
        result = json.encode(render_turn(step.result))
    elif isinstance(step.result, ToolOutput):
        result = json.encode(step.result.output)
    ended = attrs.evolve(row, state=step.state, result=result, error=step.error, finished_at=now)
    return ended if store else forgotten_step(ended)


def forgotten_step(row: MemoryStep) -> MemoryStep:
    """The *row* without what was said."""
    error = None if row.error is None else attrs.evolve(row.error, message="")
    return attrs.evolve(row, request=None, result=None, error=error)


def usage_record(row: ResponseRow, step: Step, metering: CallMetering, now: float) -> UsageRecord:
    """What is recorded of a model call."""
    usage = step.result.usage if isinstance(step.result, ModelTurn) else None
    route, first_token_ago_s = metering.route, metering.first_token_ago_s
    price = route.price
    return UsageRecord(
        step_id=step.id,
        response_id=row.response_id,
        owner=row.owner,
        model=route.model,
        upstream=route.upstream,
        upstream_model=route.upstream_model,
        service_tier=row.service_tier.value,
        stream=row.stream,
        http_status=metering.http_status,
        error_code=metering.error_code,
        started_at=now - metering.started_ago_s,
        first_token_at=None if first_token_ago_s is None else now - first_token_ago_s,
        finished_at=now,
        input_tokens=usage.input_tokens if usage else None,
        cached_tokens=usage.cached_tokens if usage else None,
        reasoning_tokens=usage.reasoning_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        input_price_per_million=price.input_per_million if price else None,
        output_price_per_million=price.output_per_million if price else None,
        currency=price.currency if price else None,
    )


def abandoned_record(row: MemoryRow, step: MemoryStep, now: float) -> UsageRecord:
    """What the rescuer records of a model call whose process died."""
    return UsageRecord(
        step_id=step.id,
        response_id=row.id,
        owner=row.owner,
        model=row.model,
        upstream=row.upstream,
        upstream_model=row.upstream_model,
        service_tier=row.service_tier,
        stream=row.stream,
        http_status=None,
        error_code=ABANDONED.type.value,
        started_at=step.started_at,
        first_token_at=None,
        finished_at=now,
    )


def step_value(row: MemoryStep) -> Step:
    """The step that a row holds."""
    descriptor: StepDescriptor
    result: StepResult | None = None
    if row.call_id is None or row.name is None:
        descriptor = ModelCall()
        result = None if row.result is None else parse_turn(msgspec.json.decode(row.result))
    else:
        arguments = "" if row.request is None else msgspec.json.decode(row.request, type=str)
        descriptor = ToolCall(call_id=row.call_id, name=row.name, arguments=arguments)
        result = None if row.result is None else ToolOutput(output=msgspec.json.decode(row.result, type=str))
    return Step(
        id=row.id,
        sequence=row.sequence,
        descriptor=descriptor,
        state=row.state,
        parent_step_id=row.parent_step_id,
        result=result,
        error=row.error,
    )


# -- what the schema refuses


def check_row(row: MemoryRow) -> None:
    """Refuse what the CHECK constraints of ``requests`` refuse.

    Raises:
        StoreError: The row's state and its other columns do not agree.
    """
    terminal = row.state in TERMINAL_STATES
    leased = row.state in LEASED_STATES
    missing = [column for column in REQUIRED_COLUMNS[row.state] if getattr(row, column) is None]
    unowned = leased == (row.daemon_id is not None) == (row.lease_expires_at is not None)
    ended = terminal == (row.finished_at is not None) == (row.response_status is not None)
    status_known = row.response_status is None or _HTTP_STATUS_MIN <= row.response_status <= _HTTP_STATUS_MAX
    error_known = (row.state is RowState.FAILED) == (row.error is not None)
    forgotten = row.store or not terminal or row.request is row.tools is row.response is None
    waiting = row.not_before is None or row.state is RowState.PENDING
    keyed = (row.idempotency_key is None) == (row.idempotency_digest is None)
    if missing or not (
        unowned and ended and status_known and error_known and forgotten and waiting and keyed and row.owner
    ):
        raise refusal("a CHECK constraint of requests")


def check_step(step: MemoryStep) -> None:
    """Refuse what the CHECK constraints of ``response_steps`` refuse.

    Raises:
        StoreError: The step's state and its other columns do not agree.
    """
    ended = (step.state in _STEP_TERMINAL) == (step.finished_at is not None)
    error_known = (step.state is StepState.FAILED) == (step.error is not None)
    if not (ended and error_known):
        raise refusal("a CHECK constraint of response_steps")


def check_usage(record: UsageRecord) -> None:
    """Refuse what the CHECK constraints of ``usage_records`` refuse.

    Raises:
        StoreError: A count is negative, or beyond a ``bigint``.
    """
    counts = (record.input_tokens, record.cached_tokens, record.reasoning_tokens, record.output_tokens)
    if any(count is not None and not 0 <= count <= _BIGINT_MAX for count in counts):
        raise refusal("a CHECK constraint of usage_records")


def refusal(what: str) -> StoreError:
    """The error of a statement that PostgreSQL would not take."""
    return StoreError(f"the statement was refused: {what}")
