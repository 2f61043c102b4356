"""Whether a queued response that failed is tried again, and when.

Rule 1: nothing here reads a clock or a random source.
Rule 2: what the client has to change is never tried again; what may pass is, until attempts or time run out.
Rule 3: a busy model's server, ours or its own bound, costs no attempt: the response waits for it until its deadline.
"""

from typing import TypeAlias

import attrs

from dwctl_trio.domain.failures import Failure
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.response import ErrorCode


@attrs.frozen(kw_only=True)
class RetryLater:
    """Put the response back into the queue."""

    delay_s: float
    counts: bool = True
    """Whether it was an attempt: a model's server that was busy has not tried it."""


@attrs.frozen
class GiveUp:
    """The failure stands."""

    reason: str
    """For the operator: ``final``, ``attempts`` or ``deadline``."""


Decision: TypeAlias = RetryLater | GiveUp


def decide_retry(failure: Failure, *, attempt: int, deadline_in_s: float, jitter: float, limits: Limits) -> Decision:
    """What becomes of a response that failed.

    Args:
        failure: How.
        attempt: Which one this was, from 1.
        deadline_in_s: Until the response's deadline.
        jitter: Uniform in [0, 1).
        limits: How often, and how long to wait.

    Returns:
        ``RetryLater`` with a delay that ends before the deadline, or ``GiveUp``.
    """
    if not failure.is_retryable:
        return GiveUp("final")
    is_busy = failure.error.code is ErrorCode.RATE_LIMIT_EXCEEDED
    if attempt >= limits.queue_attempts and not is_busy:
        return GiveUp("attempts")
    delay_s = backoff_s(attempt, jitter=jitter, limits=limits)
    if failure.retry_after_s is not None:  # what the other side asks for is the least
        delay_s = max(delay_s, failure.retry_after_s)
    elif is_busy:
        delay_s = max(delay_s, limits.queue_busy_s / 2 * (1 + jitter))
    return RetryLater(delay_s=delay_s, counts=not is_busy) if delay_s < deadline_in_s else GiveUp("deadline")


def backoff_s(attempt: int, *, jitter: float, limits: Limits) -> float:
    """Seconds to wait before try number *attempt* + 1.

    Args:
        attempt: Tries made so far, from 1.
        jitter: Uniform in [0, 1).
        limits: First and longest wait.

    Returns:
        A delay in [half, whole] of the first wait, doubled with every try, and never more than the longest; for a
        fixed jitter, non-decreasing in *attempt*.

    Source: AWS Architecture Blog, "Exponential Backoff And Jitter" (equal jitter).
    """
    doublings = min(attempt - 1, 62)
    whole = min(limits.queue_retry_cap_s, limits.queue_retry_s * 2.0**doublings)
    return whole / 2 + whole / 2 * jitter


def find_exhaustion(*, attempt: int, reclaims: int, limits: Limits) -> str | None:
    """Why a response that was claimed is not to be worked on once more; None if it is.

    Args:
        attempt: Which one this would be, from 1.
        reclaims: How often a process died over it.
        limits: How often either may be.
    """
    if reclaims > limits.queue_reclaims:
        return f"The server processes that worked on this response ended {reclaims} times before it was done."
    if attempt > limits.queue_attempts:
        return f"The response was not done after {attempt - 1} attempts."
    return None
