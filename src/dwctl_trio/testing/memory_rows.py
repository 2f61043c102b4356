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
from dwctl_trio.domain.steps import ModelCall, Step, StepState
from dwctl_trio.domain.turn import ModelTurn
from dwctl_trio.ports import ApiKey, FinishedResponse
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
    """Encoded; None with ``store: false``."""
    state: RowState
    daemon_id: UUID | None
    epoch: int
    lease_expires_at: float | None
    created_at: float
    started_at: float | None
    background: bool = False
    reclaims: int = 0
    response_status: int | None = None
    response: bytes | None = None
    """Encoded, as the terminal event carried it."""
    error: ResponseError | None = None
    finished_at: float | None = None
    idempotency_key: str | None = None
    idempotency_digest: bytes | None = None

    @property
    def holds_key(self) -> bool:
        """Whether it keeps its idempotency key from others: it is live, or its client got a response."""
        released = self.response_status is not None and self.response_status >= _HTTP_ERROR_MIN
        return self.idempotency_key is not None and not released


@attrs.frozen(kw_only=True)
class MemoryStep:
    """A row of ``response_steps``: the model call that every warm response consists of."""

    id: UUID
    response_id: UUID
    sequence: int
    state: StepState
    started_at: float
    result: bytes | None = None
    """The turn, encoded."""
    error: ResponseError | None = None
    finished_at: float | None = None


@attrs.frozen(kw_only=True)
class EventLog:
    """The row of ``response_events`` of one response."""

    last_sequence: int
    frames: bytes


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


def ended_step(step: MemoryStep, last: Step, now: float, *, store: bool) -> MemoryStep:
    """The row of *step* once it has ended as *last*."""
    turn = last.result if store and isinstance(last.result, ModelTurn) else None
    result = None if turn is None else json.encode(render_turn(turn))
    return attrs.evolve(step, state=last.state, result=result, error=last.error, finished_at=now)


def usage_record(finished: FinishedResponse, now: float) -> UsageRecord:
    """What the terminal write records of the model call."""
    new, metering, result = finished.new, finished.metering, finished.last_step.result
    usage = result.usage if isinstance(result, ModelTurn) else None
    price = new.route.price
    first_token_ago_s = metering.first_token_ago_s
    return UsageRecord(
        step_id=finished.last_step.id,
        response_id=new.response_id,
        owner=new.owner,
        model=new.request.model,
        upstream=new.route.upstream,
        upstream_model=new.route.upstream_model,
        service_tier=new.request.service_tier.value,
        stream=new.request.stream,
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


def step_value(step: MemoryStep) -> Step:
    """The step that a row holds."""
    return Step(
        id=step.id,
        sequence=step.sequence,
        descriptor=ModelCall(),
        state=step.state,
        result=None if step.result is None else parse_turn(msgspec.json.decode(step.result)),
        error=step.error,
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
    forgotten = row.store or not terminal or (row.request is None and row.response is None)
    keyed = (row.idempotency_key is None) == (row.idempotency_digest is None)
    if missing or not (unowned and ended and status_known and error_known and forgotten and keyed and row.owner):
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
