"""Which path a POST takes, as one table.

Rule: warm means that the connection is the lifetime; queued means that the row is.
"""

from enum import StrEnum

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.request import ResponseRequest, ServiceTier


class Path(StrEnum):
    """How a POST is served."""

    WARM_STREAM = "warm_stream"
    """The loop runs in the request's nursery; its events are streamed."""
    WARM_BLOCKING = "warm_blocking"
    """The loop runs in the request's nursery; its events are folded into one JSON."""
    QUEUED_AT_ONCE = "queued_at_once"
    """Enqueue, answer with status ``queued``."""
    QUEUED_FOLLOW = "queued_follow"
    """Enqueue, stream the run; hanging up does not stop it."""
    FLEX_BLOCKING = "flex_blocking"
    """Enqueue, wait, answer with the finished object."""
    FLEX_STREAM = "flex_stream"
    """Enqueue, answer 200 at once, keep alive while queued, then stream the run."""


def refuse_unreadable(request: ResponseRequest) -> None:
    """Refuse what nobody could ever read.

    Raises:
        InvalidRequest: It is to run in the background, and not to be stored.
    """
    if request.background and not request.store:
        raise InvalidRequest(
            "Invalid value for 'store': a response with 'background': true must be stored, or it could never be read. "
            "Leave 'store' out, or ask without 'background'.",
            param="store",
        )


def choose_path(request: ResponseRequest) -> Path:
    """The path of a ``POST /v1/responses``."""
    if request.background:
        return Path.QUEUED_FOLLOW if request.stream else Path.QUEUED_AT_ONCE
    if request.service_tier is ServiceTier.FLEX:
        return Path.FLEX_STREAM if request.stream else Path.FLEX_BLOCKING
    return Path.WARM_STREAM if request.stream else Path.WARM_BLOCKING
