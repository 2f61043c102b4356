"""What the engine needs of the world, as protocols; each adapter keeps to one of them without inheriting it.

Every method is a checkpoint and may be cancelled unless it says otherwise. A cancelled write is either done or not
done, never half done; whoever must know asks again or leaves it to the rescuer.
"""

from collections.abc import AsyncIterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager
from decimal import Decimal
from typing import Protocol
from uuid import UUID

import attrs

from dwctl_trio.domain.idempotency import IdempotencyKey, KeyHolder
from dwctl_trio.domain.items import OutputItem
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.domain.response import Response, ResponseError
from dwctl_trio.domain.steps import Chain, Step
from dwctl_trio.domain.tools import HttpTool, OfferedTool
from dwctl_trio.domain.transitions import TurnPlan
from dwctl_trio.domain.turn import Fragment
from dwctl_trio.protocol.trace_context import TraceContext


@attrs.frozen(kw_only=True)
class NewResponse:
    """A warm response about to be opened."""

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

    new: NewResponse
    epoch: int
    """The row's, as this process last saw it."""
    ended: tuple[EndedStep, ...]
    opened: tuple[Step, ...]
    """``processing``, about to be fired."""


@attrs.frozen(kw_only=True)
class FinishedResponse:
    """A response with its terminal state, to be written at once."""

    new: NewResponse
    epoch: int
    """The row's, as this process last saw it."""
    state: RowState
    response_status: int
    """The HTTP status that the blocking path gives."""
    response: Response
    ended: tuple[EndedStep, ...]
    """The steps that have ended since the last write."""
    event_log: bytes | None
    """The frames as they went over the wire; None when none are to be kept."""
    last_sequence_number: int


@attrs.frozen(kw_only=True)
class ResumedResponse:
    """A response that this process has taken over, as its rows tell of it."""

    new: NewResponse
    epoch: int
    created_at: int
    """Unix seconds."""
    age_s: float
    """How long ago it was first worked on."""
    steps: tuple[Step, ...]
    """Of all its loops, in order; those that are open were interrupted."""


@attrs.frozen(kw_only=True)
class StoredResponse:
    """A row as its owner may read it."""

    response_id: UUID
    state: RowState
    created_at: int
    request: ResponseRequest | None
    """What was asked; None when there is a body, which echoes it."""
    tools: tuple[OfferedTool, ...]
    """What the model is offered, as far as *request* is there."""
    body: bytes | None
    """The final response, encoded, exactly as the terminal event carried it; None while there is none."""
    error: ResponseError | None


class ResponseStore(Protocol):
    """Rows of responses. Raises ``StoreUnavailable`` when PostgreSQL does not answer in time."""

    async def open_response(self, new: NewResponse) -> int:
        """Insert the row as ``processing`` with its first step; return ``created_at`` in Unix seconds.

        Not idempotent: the id must be new.

        Raises:
            IdempotencyKeyHeld: Another row holds the key; nothing was written.
        """

    async def find_key_holder(self, owner: str, key: str) -> KeyHolder | None:
        """The row that holds the idempotency key *key* of *owner*; None if the key is free."""

    async def advance_response(self, progress: Progress) -> None:
        """End steps, with their usage records, and open the next ones, all or nothing.

        Idempotent: steps that have ended or been opened already (a commit whose answer was lost) stay as they are.

        Raises:
            LeaseLost: The row is no longer this process's, or gone; nothing was written.
        """

    async def finish_response(self, finished: FinishedResponse) -> None:
        """Write the terminal state, the last steps, their usage records and the event log, all or nothing.

        Idempotent: a row that already carries this very ending (a commit whose answer was lost) is success.

        Raises:
            LeaseLost: The row is no longer this process's, or gone; nothing was written.
        """

    async def read_response(self, response_id: UUID, owner: str) -> StoredResponse | None:
        """The stored response, or None if there is none for this owner."""

    async def read_chain(self, response_id: UUID, owner: str) -> Chain:
        """The steps of a stored response in order; empty if there is none for this owner."""

    async def delete_response(self, response_id: UUID, owner: str) -> bool:
        """Delete a response; False if there is none for this owner.

        Raises:
            Conflict: It is still being worked on.
        """


class LeaseStore(Protocol):
    """Ownership of rows by processes. Raises ``StoreUnavailable`` when PostgreSQL does not answer in time."""

    async def register_process(self) -> None:
        """Make this process known as an owner; once, before any row is opened."""

    async def renew_leases(self, response_ids: AbstractSet[UUID]) -> frozenset[UUID]:
        """Renew the leases of those of *response_ids* that this process still owns; return them. Idempotent.

        A row that is locked at the moment is returned without being renewed.
        """

    async def rescue_expired(self) -> Sequence[UUID]:
        """End rows whose lease has expired; return their ids. Idempotent."""

    async def take_over(self, response_id: UUID) -> ResumedResponse | None:
        """Make a row whose lease has expired this process's, to be resumed; None if there is none to be had.

        Only a stored response can be resumed: of others the rows do not know what was asked.
        """

    async def stop_process(self) -> None:
        """Say that this process ends in good order. Idempotent."""

    async def ping(self) -> None:
        """Return if the database answers."""


@attrs.frozen(kw_only=True)
class UpstreamCall:
    """One model call to make."""

    route: ModelRoute
    request: ResponseRequest
    output: tuple[OutputItem, ...]
    """What the loop has come to so far, calls with their outcomes; oldest first."""
    plan: TurnPlan
    """What the model may do this time."""
    step_id: UUID
    trace: TraceContext | None = None
    """What the upstream is told of the trace; None for nothing."""


class TurnStream(Protocol):
    """A model call whose head has arrived; iterate it for what each read brought."""

    http_status: int
    """The upstream's HTTP status."""

    def __aiter__(self) -> AsyncIterator[Sequence[Fragment]]:
        """Batches of fragments, one for each network read that held any; ends when the turn is complete.

        Raises:
            UpstreamError: The stream broke, timed out, or ended without a finish reason.
        """


class Upstream(Protocol):
    """The servers of the models."""

    def open_turn(self, call: UpstreamCall) -> AbstractAsyncContextManager[TurnStream]:
        """Send the call and wait for the head; leaving the context closes the connection at once if it is not done.

        Raises:
            LimitExceeded: No place at the upstream became free in time.
            UpstreamError: It could not be reached, refused the call, or was too slow.
        """


@attrs.frozen(kw_only=True)
class ToolInvocation:
    """One call of a tool of the server's."""

    tool: HttpTool
    arguments: str
    """JSON text as the model wrote it, not yet validated."""
    response_id: UUID
    step_id: UUID
    """The same whenever the call is made again after a crash."""


class ToolRunner(Protocol):
    """The tools that the server runs."""

    async def run_tool(self, invocation: ToolInvocation) -> str:
        """The output of the tool, as the model will read it; within the tool's own time.

        Raises:
            ToolFailed: There is none; the model is told why.
        """


class EventSink(Protocol):
    """Whoever consumes the events of one response."""

    async def send(self, frames: bytes) -> None:
        """Take all frames that one upstream read produced; waits while the consumer is behind.

        Raises:
            trio.BrokenResourceError: The consumer has left.
        """


@attrs.frozen(kw_only=True)
class ApiKey:
    """What is known of an API key; the key itself is shown once and kept by nobody."""

    prefix: str
    """Its first characters, by which people tell keys apart."""
    owner: str


class KeyStore(Protocol):
    """API keys by digest. Raises ``StoreUnavailable`` when PostgreSQL does not answer in time."""

    async def find_key(self, digest: bytes) -> ApiKey | None:
        """The live key with this SHA-256 digest; None if there is none, or it is revoked."""


@attrs.frozen(kw_only=True)
class UsageLine:
    """What one model or owner used."""

    subject: str
    calls: int
    failures: int
    """Calls that failed or were cancelled; their tokens may be unknown."""
    input_tokens: int | None
    """None when no call reported any."""
    cached_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    cost: Decimal | None
    """None when no price or no token count is known."""
    currency: str | None
