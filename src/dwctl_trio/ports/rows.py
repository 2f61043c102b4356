"""What is written of a response, and what its rows tell."""

from typing import TypeAlias
from uuid import UUID, uuid4

import attrs

from dwctl_trio.domain import ids
from dwctl_trio.domain.chat import ChatRequest
from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.idempotency import IdempotencyKey
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.request import InputItem, ResponseRequest, ServiceTier
from dwctl_trio.domain.response import ResponseError
from dwctl_trio.domain.steps import Step
from dwctl_trio.domain.tools import OfferedTool
from dwctl_trio.protocol.trace_context import TraceContext


@attrs.frozen(kw_only=True)
class ResponseRow:
    """What every change of a row says of it, besides its guard."""

    response_id: UUID
    owner: str
    service_tier: ServiceTier
    stream: bool
    store: bool
    is_queued: bool = False
    """Whether the row is its lifetime, not a connection."""

    @property
    def keeps_steps(self) -> bool:
        """Whether what was said is in its steps while it is live: a queued response may be resumed from them."""
        return self.store or self.is_queued


@attrs.frozen(kw_only=True)
class EventSegment:
    """Consecutive events of one response, as they are stored together."""

    first_sequence: int
    last_sequence: int
    frames: bytes
    """As they go over the wire."""


@attrs.frozen(kw_only=True)
class NewResponse:
    """A response that is asked for."""

    response_id: UUID
    owner: str
    key_prefix: str | None
    request: ResponseRequest
    route: ModelRoute
    first_step_id: UUID
    trace: TraceContext | None = None
    """Where its work belongs in a trace; not stored."""
    idempotency: IdempotencyKey | None = None
    """Of the client's; while a row with it is live or has a response, its owner gets no second one."""
    tools: tuple[OfferedTool, ...] = ()
    """What the model is offered in every turn."""
    history: tuple[InputItem, ...] = ()
    """What the model is shown before the input, oldest first; not stored, for other rows hold it."""

    @property
    def previous_id(self) -> UUID | None:
        """Of the response that it goes on with, as its row names it; a response that is not stored names none."""
        request = self.request
        named = request.previous_response_id if request.store else None
        return None if named is None else ids.parse_response_id(named)

    @property
    def surface(self) -> Surface:
        """Which API it was asked for through."""
        return Surface.RESPONSES

    @property
    def row(self) -> ResponseRow:
        """Its row."""
        request = self.request
        return ResponseRow(
            response_id=self.response_id,
            owner=self.owner,
            service_tier=request.service_tier,
            stream=request.stream,
            store=request.store,
            is_queued=request.is_queued,
        )


@attrs.frozen(kw_only=True)
class NewChat:
    """A chat completion that is asked for, or another call whose answer is handed over."""

    response_id: UUID
    owner: str
    key_prefix: str | None
    request: ChatRequest
    route: ModelRoute
    first_step_id: UUID = attrs.field(factory=uuid4)
    """Of the call, if it is made at once; each attempt of the queue has its own."""
    trace: TraceContext | None = None
    """As of a response."""
    idempotency: IdempotencyKey | None = None
    """Of the client's, as for a response."""

    @property
    def surface(self) -> Surface:
        """Which API it was asked for through."""
        return self.request.surface

    @property
    def row(self) -> ResponseRow:
        """Its row."""
        request = self.request
        return ResponseRow(
            response_id=self.response_id,
            owner=self.owner,
            service_tier=request.service_tier,
            stream=request.stream,
            store=request.store and request.is_queued,
            is_queued=request.is_queued,
        )


@attrs.frozen(kw_only=True)
class QueuedResponse:
    """A response about to be enqueued."""

    row: ResponseRow
    surface: Surface
    key_prefix: str | None
    route: ModelRoute
    previous_id: UUID | None = None
    """As of a new response."""
    background: bool
    request: bytes
    """What was asked, validated, encoded."""
    tools: bytes | None
    """What the model is offered, encoded; None for nothing."""
    idempotency: IdempotencyKey | None
    created_at: float
    """By the database's clock, in Unix seconds, as ``read_clock`` gave it."""
    priority: int
    """0 is the most urgent."""
    deadline_s: float
    """From its creation; past it, it fails."""
    opening: EventSegment | None
    """Its first events; None for a surface without any."""


@attrs.frozen(kw_only=True)
class CallMetering:
    """What is recorded of one model call."""

    route: ModelRoute
    http_status: int | None
    """The upstream's; None when it gave none."""
    error_code: str | None
    """None for a call that succeeded."""
    started_ago_s: float
    """Seconds before the statement that records it."""
    first_token_ago_s: float | None


@attrs.frozen(kw_only=True)
class EndedStep:
    """A step that has just ended."""

    step: Step
    """Terminal, with its result."""
    metering: CallMetering | None
    """Of a model call; None for a tool call."""


@attrs.frozen(kw_only=True)
class Progress:
    """What has happened to a response since its last write, to be written at once."""

    row: ResponseRow
    epoch: int
    """The row's, as this process last saw it."""
    ended: tuple[EndedStep, ...]
    opened: tuple[Step, ...]
    """``processing``, about to be fired."""


@attrs.frozen(kw_only=True)
class FinishedResponse:
    """A response with its terminal state, to be written at once."""

    row: ResponseRow
    epoch: int
    """The row's, as this process last saw it."""
    state: RowState
    response_status: int
    """The HTTP status that the blocking path gives."""
    body: bytes
    """The final response, encoded, exactly as the terminal event carries it; kept if the row keeps anything."""
    error: ResponseError | None
    """Of a failed response."""
    ended: tuple[EndedStep, ...]
    """The steps that have ended since the last write."""
    segments: tuple[EventSegment, ...]
    """The events that are not known to be stored, in order; none if none are kept."""


@attrs.frozen(kw_only=True)
class RequeuedResponse:
    """A response that its worker hands back, to be written at once."""

    row: ResponseRow
    epoch: int
    """The row's, as this process last saw it."""
    delay_s: float
    """Before it may be claimed again."""
    counts: bool
    """Whether the attempt counts; one that a stopping server broke off does not."""
    ended: tuple[EndedStep, ...]
    segments: tuple[EventSegment, ...]


@attrs.frozen(kw_only=True)
class ClaimedResponse:
    """A response that this process has made its own, as its rows tell of it."""

    new: NewResponse
    """Its first step's id is fresh; it has no price, trace or idempotency key."""
    epoch: int
    created_at: int
    """Unix seconds."""
    age_s: float
    """Since its creation."""
    deadline_in_s: float | None
    """Until its deadline, negative when it has passed; None for a warm response."""
    attempt: int = 1
    """Which one this is, from 1."""
    reclaims: int = 0
    """How often a process died over it."""
    is_cancel_requested: bool = False
    was_started: bool = False
    """Whether somebody has worked on it: only then is there more to read of it than its opening."""
    refusal: InvalidRequest | None = None
    """Why it can only be ended: what it goes on with is not there any more. Not from the claim, as the steps."""
    last_sequence: int = -1
    """Of its stored events; -1: none are."""
    steps: tuple[Step, ...] = ()
    """Of all its loops, in order; those that are open were interrupted. Not from the claim: who goes on reads them."""
    told: bytes = b""
    """The frames of all stored events if it was ever worked on; else nothing. Read as the steps are."""

    @property
    def row(self) -> ResponseRow:
        """Its row."""
        return self.new.row

    @property
    def route(self) -> ModelRoute:
        """Where it goes."""
        return self.new.route


@attrs.frozen(kw_only=True)
class ClaimedChat:
    """A chat completion that this process has claimed."""

    row: ResponseRow
    route: ModelRoute
    request: bytes
    """The client's body, validated, encoded."""
    epoch: int
    age_s: float
    """Since its creation."""
    deadline_in_s: float
    attempt: int
    reclaims: int
    is_cancel_requested: bool
    was_started: bool = False
    """As of a response."""
    last_sequence: int = -1
    """Of its stored chunks; -1: none are."""
    steps: tuple[Step, ...] = ()
    """Those of earlier attempts; an open one was interrupted. Not from the claim: who goes on reads them."""


@attrs.frozen(kw_only=True)
class ClaimedUnreadable:
    """A response that this process has made its own, and whose request it cannot read: another release wrote it."""

    row: ResponseRow
    route: ModelRoute
    epoch: int
    created_at: int
    """Unix seconds."""
    age_s: float
    """Since its creation."""
    deadline_in_s: float | None
    """As of a response that can be read."""
    attempt: int
    reclaims: int
    is_cancel_requested: bool
    last_sequence: int
    """Of its stored events; -1: none are."""


Claimed: TypeAlias = ClaimedResponse | ClaimedChat | ClaimedUnreadable


@attrs.frozen(kw_only=True)
class EventPage:
    """Some events of one response, and how it stood at that moment."""

    state: RowState
    is_queued: bool
    is_stored: bool
    """Whether GET may show it."""
    response_status: int | None
    """Of a row that has ended."""
    error: ResponseError | None
    """Of a failed row."""
    last_sequence: int | None
    """Of all stored events; None: none are kept, not yet or no more."""
    segments: tuple[EventSegment, ...]
    """Consecutive, the first of which holds the next event, or begins with it; none: there are no more now."""


@attrs.frozen(kw_only=True)
class RenewedLeases:
    """Those of some rows that are still this process's."""

    renewed: frozenset[UUID] = frozenset()
    """Their leases begin anew."""
    skipped: frozenset[UUID] = frozenset()
    """Somebody had them locked at the moment, mostly a commit of this process; their leases are as they were."""


@attrs.frozen(kw_only=True)
class LeaseWatch:
    """What has become of some rows of this process."""

    owned: frozenset[UUID]
    """Still its own."""
    cancel_requested: frozenset[UUID]
    """Those of them that somebody wants cancelled."""


@attrs.frozen(kw_only=True)
class StoredResponse:
    """A row as its owner may read it."""

    response_id: UUID
    state: RowState
    created_at: int
    request: ResponseRequest | None
    """What was asked; None when there is a body, which echoes it, and of a request that this release cannot read."""
    tools: tuple[OfferedTool, ...]
    """What the model is offered, as far as *request* is there."""
    body: bytes | None
    """The final response, encoded, exactly as the terminal event carried it; None while there is none."""
    error: ResponseError | None


@attrs.frozen(kw_only=True)
class WantedPage:
    """Which of an owner's responses are wanted."""

    limit: int
    """At the most, from 1."""
    after: UUID | None = None
    """The last one of the page before; None for the first page."""
    newest_first: bool = True


@attrs.frozen(kw_only=True)
class ResponsePage:
    """Some of an owner's responses."""

    responses: tuple[StoredResponse, ...]
    """In the wanted order."""
    has_more: bool
