"""Idempotency keys: what a request gets that repeats the key of an earlier one.

Rule 1: a row holds its key while it is live, and after it has ended with a response. A row that ended with an HTTP
error gave its client nothing to repeat, and lets the key go, as does one that is deleted. A background response was
given before it ended, so that its row keeps the key.
Rule 2: what a repeat gets is what the first request was told, byte for byte, or an error that says why not.
"""

from uuid import UUID

import attrs

from dwctl_trio.domain.errors import IdempotencyConflict
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.lifecycle import TERMINAL_STATES, RowState

IDEMPOTENCY_KEY = "Idempotency-Key"
"""The header, which is also the parameter that errors name."""
KEY_CHARACTERS_MAX = 255
"""As with Stripe, whose header it was first."""


@attrs.frozen(kw_only=True)
class IdempotencyKey:
    """A client's name for one request, however often it is sent."""

    text: str
    """1 to ``KEY_CHARACTERS_MAX`` visible ASCII characters."""
    body_digest: bytes
    """SHA-256 of the body in one canonical form, 32 bytes."""


@attrs.frozen(kw_only=True)
class KeyHolder:
    """The row that holds a key."""

    response_id: UUID
    state: RowState
    is_stored: bool
    """Whether what was said can be read from it, still."""
    body_digest: bytes
    """Of the request that came first."""
    told: bytes | None
    """What the first client was told: the JSON body, or the frames of the stream; None while live, or if not kept."""


@attrs.frozen(kw_only=True)
class Replay:
    """What the first request was told, for one that repeats it."""

    response_id: UUID
    told: bytes
    """As in ``KeyHolder``."""


def check_same_body(key: IdempotencyKey, holder: KeyHolder) -> None:
    """Refuse a request with *key* that is not the one of *holder*.

    Raises:
        IdempotencyConflict: It has another body.
    """
    if holder.body_digest != key.body_digest:
        raise IdempotencyConflict(
            f"This '{IDEMPOTENCY_KEY}' was used with another body. "
            "Send the very same body to repeat that request, or a new key with this one.",
            code="idempotency_key_reused",
        )


def answer_repeat(key: IdempotencyKey, holder: KeyHolder) -> Replay | None:
    """What a request with *key* gets while *holder* holds it; None if it must wait for the holder's end.

    Raises:
        IdempotencyConflict: It cannot have the response of the first.
    """
    check_same_body(key, holder)
    if holder.state not in TERMINAL_STATES:
        return None
    if holder.told is not None:
        return Replay(response_id=holder.response_id, told=holder.told)
    name = response_id_text(holder.response_id)
    if holder.is_stored:
        raise IdempotencyConflict(
            f"The request with this '{IDEMPOTENCY_KEY}' has ended. Its response is stored, but its stream was too "
            f"long to keep, or is too old: read the response with GET /v1/responses/{name}.",
            code="idempotency_replay_unavailable",
        )
    raise IdempotencyConflict(
        f"The request with this '{IDEMPOTENCY_KEY}' has ended as {name}, which was not stored ('store: false'), or is "
        "too old, and cannot be given again. Send a new key for a new response.",
        code="idempotency_replay_unavailable",
    )


def kept_nowhere() -> IdempotencyConflict:
    """The error of a repeat of a call that was handed over, and has ended: its answer is kept for nobody."""
    return IdempotencyConflict(
        f"The request with this '{IDEMPOTENCY_KEY}' has ended. The answers of such calls go to their client and are "
        "kept nowhere, so that this one cannot be given again. Send a new key to have the call made once more.",
        code="idempotency_replay_unavailable",
    )


def still_under_way(retry_after_s: float) -> IdempotencyConflict:
    """The error of a repeat that has waited for long enough."""
    return IdempotencyConflict(
        f"The request with this '{IDEMPOTENCY_KEY}' is still under way. Repeat this one later with the same key.",
        code="idempotency_key_in_use",
        retry_after_s=retry_after_s,
    )
