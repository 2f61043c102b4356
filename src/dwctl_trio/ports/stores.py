"""The database, as several ports: each a handful of verbs, for those who need no more of it."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal
from typing import Protocol
from uuid import UUID

import attrs

from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.conversation import Conversation
from dwctl_trio.domain.idempotency import KeyHolder
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.retention import RetentionKind
from dwctl_trio.domain.steps import Chain
from dwctl_trio.ports.rows import (
    Claimed,
    EventPage,
    EventSegment,
    FinishedResponse,
    LeaseWatch,
    NewChat,
    NewResponse,
    Progress,
    QueuedResponse,
    RenewedLeases,
    RequeuedResponse,
    ResponsePage,
    StoredResponse,
    WantedPage,
)


class ResponseStore(Protocol):
    """Rows of responses. Raises ``StoreUnavailable`` when PostgreSQL does not answer in time."""

    async def open_response(self, new: NewResponse | NewChat) -> int:
        """Insert the row as ``processing`` with its first step; return ``created_at`` in Unix seconds.

        Not idempotent: the id must be new. Of a call that is handed over, *new* is not queued and nothing is kept.

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


class ConversationStore(Protocol):
    """Stored responses with one another. Raises ``StoreUnavailable`` when PostgreSQL does not answer in time."""

    async def read_conversation(self, response_id: UUID, owner: str) -> Conversation | None:
        """The stored response and all that it goes on with, of the same owner; None if there is none for this owner.

        Read back to its beginning, or to a response that is not there, or as far as ``conversation_turns``,
        ``conversation_items`` and ``conversation_bytes`` allow; the response itself in any case. Log probabilities are
        left out.

        Raises:
            Exception: Another release wrote a step that cannot be read.
        """

    async def find_turns(self, maker_ids: Sequence[UUID], owner: str) -> Conversation | None:
        """The stored responses of this owner that are named, or have one of the steps named; None if there are none.

        In no order, each once; those that go beyond ``conversation_items`` or ``conversation_bytes`` are left out, and
        the gap says so. So are log probabilities.

        Raises:
            Exception: Another release wrote a step that cannot be read.
        """

    async def list_responses(self, wanted: WantedPage, owner: str) -> ResponsePage | None:
        """A page of this owner's stored responses by the time of their creation, at the most of ``list_bytes``.

        There is at least one if there are any behind ``wanted.after``; None if that is not one of this owner's.
        """


class LeaseStore(Protocol):
    """Ownership of rows by processes. Raises ``StoreUnavailable`` when PostgreSQL does not answer in time."""

    async def register_process(self) -> None:
        """Make this process known as an owner; once, before any row is opened."""

    async def renew_leases(self, response_ids: AbstractSet[UUID]) -> RenewedLeases:
        """Renew the leases of those of *response_ids* that this process still owns. Idempotent.

        A row that is locked at the moment is not waited for; it must be asked for again soon.
        """

    async def rescue_expired(self) -> Sequence[UUID]:
        """Free rows whose lease has expired; return their ids. Idempotent.

        A queued row goes back to ``pending``, a warm one has failed.
        """

    async def watch_leases(self, response_ids: AbstractSet[UUID]) -> LeaseWatch:
        """Look whether those of *response_ids* are still this process's, and wanted. Changes nothing."""

    async def stop_process(self) -> None:
        """Say that this process ends in good order. Idempotent."""

    async def ping(self) -> None:
        """Return if the database answers."""


class QueueStore(Protocol):
    """Rows that wait for a worker. Raises ``StoreUnavailable`` when PostgreSQL does not answer in time."""

    async def read_clock(self) -> float:
        """The database's time in Unix seconds."""

    async def enqueue_response(self, queued: QueuedResponse) -> None:
        """Insert the row as ``pending`` with its first events. Idempotent: a row that is there is left as it is.

        Raises:
            IdempotencyKeyHeld: Another row holds the key; nothing was written.
        """

    async def claim_responses(self, demand: ClaimDemand) -> Sequence[Claimed]:
        """Make rows this process's, ``claimed``, at most ``demand.rows``, in the order of their urgency.

        First what is past its deadline, whatever the capacities, for it is only to be ended. Then by priority; then
        owners take turns, those with less under way first; then by deadline. No capacity of *demand* is overshot,
        whoever else claims. None may mean that there is nothing to claim. A row that cannot be read is told as such,
        and stops no other; the steps and events of a row are not read here.

        Cancellation: rows may have been claimed that nobody works on; their leases expire.
        """

    async def append_events(self, response_id: UUID, epoch: int, segment: EventSegment) -> None:
        """Store the next events of a response that this process works on. Idempotent.

        Raises:
            LeaseLost: The row is no longer this process's, or gone; nothing was written.
        """

    async def requeue_response(self, requeued: RequeuedResponse) -> None:
        """Hand a row back as ``pending``, with its last steps, their usage records and its last events.

        Idempotent in that a second try finds the row no longer its own.

        Raises:
            LeaseLost: The row is no longer this process's, or gone; nothing was written.
        """

    async def request_cancel(self, response_id: UUID, owner: str) -> RowState | None:
        """Note that the response is to end; return its state, None if there is none for this owner. Idempotent.

        Its worker ends it; a terminal row stays as it is.
        """

    async def take_over(self, response_id: UUID, *, patience_s: float) -> Claimed | None:
        """Make a response that is to be cancelled this process's, to end it; None if there is none to be had.

        Args:
            response_id: It waits in the queue, or its lease has expired, or its worker has let *patience_s* pass.
            patience_s: Since it was asked for.
        """


class EventStore(Protocol):
    """What has happened to responses, for whoever follows or goes on. Raises ``StoreUnavailable`` as the others."""

    async def read_events(self, response_id: UUID, owner: str, after: int) -> EventPage | None:
        """The events behind number *after*, some of them; None if there is no such response of this owner.

        Also of a response that is not stored: only whoever asked for it knows its id then.
        """

    async def read_told(self, response_id: UUID) -> bytes:
        """The frames of all stored events, for who goes on with them; nothing if there are none."""

    async def read_claimed_steps(self, response_id: UUID) -> Chain:
        """All steps in order, whether or not they are to be stored, for who goes on with them.

        Raises:
            Exception: Another release wrote one that cannot be read.
        """


@attrs.frozen(kw_only=True)
class PrunedBatch:
    """What one batch came to."""

    count: int
    """What was pruned: responses, usage records or processes."""
    is_full: bool
    """Whether there may be more at once."""


class RetentionStore(Protocol):
    """What is kept for some time only. Raises ``StoreUnavailable`` as the others."""

    async def prune(self, kind: RetentionKind, rows: int) -> PrunedBatch:
        """Delete the oldest of *kind* that are past their age, all or nothing; nothing live is touched. Idempotent.

        Does nothing while another process prunes the same kind.

        Args:
            kind: What to delete.
            rows: Rows to look at, from 1.
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
