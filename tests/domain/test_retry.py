"""``domain/retry.py``: what is tried again, when, and for how long."""

import attrs
from hypothesis import example, given
from hypothesis import strategies as st

from dwctl_trio.domain.errors import (
    AttemptsExhausted,
    DeadlineExceeded,
    DwctlError,
    LimitExceeded,
    Overloaded,
    ServerStopping,
    StoreUnavailable,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from dwctl_trio.domain.failures import describe_failure
from dwctl_trio.domain.limits import DEFAULT_LIMITS
from dwctl_trio.domain.retry import GiveUp, RetryLater, backoff_s, decide_retry, find_exhaustion

_JITTERS = st.floats(min_value=0, max_value=1, exclude_max=True)
_ATTEMPTS = st.integers(min_value=1, max_value=2000)
_HOUR_S = 3600.0

_PASSING = [
    UpstreamTimeout("slow"),
    UpstreamUnreachable("gone"),
    UpstreamError("broke in the middle"),
    LimitExceeded("no place", retry_after_s=1.0),
    Overloaded("too much", retry_after_s=1.0),
    ServerStopping("stops"),
    StoreUnavailable("gone"),
    *(UpstreamRejected("no", status=status) for status in (408, 409, 425, 429, 500, 502, 503, 504, 599)),
]
_FINAL = [
    *(UpstreamRejected("no", status=status) for status in (400, 401, 403, 404, 413, 418, 422, 451)),
    DeadlineExceeded("late"),
    AttemptsExhausted("often"),
    DwctlError("more events than are kept"),
    RuntimeError("a fault of ours"),
]


def test_what_may_pass_is_tried_again_and_what_the_client_has_to_change_is_not() -> None:
    retryable = {repr(error): describe_failure(error).is_retryable for error in (*_PASSING, *_FINAL)}

    assert retryable == {repr(error): True for error in _PASSING} | {repr(error): False for error in _FINAL}


@given(_ATTEMPTS, _JITTERS)
@example(2000, 0.0)
@example(1, 0.0)
def test_a_wait_lies_between_half_and_the_whole_of_its_step_and_never_beyond_the_longest(
    attempt: int, jitter: float
) -> None:
    wait_s = backoff_s(attempt, jitter=jitter, limits=DEFAULT_LIMITS)

    assert DEFAULT_LIMITS.queue_retry_s / 2 <= wait_s <= DEFAULT_LIMITS.queue_retry_cap_s
    assert wait_s <= backoff_s(attempt + 1, jitter=jitter, limits=DEFAULT_LIMITS)


def test_waits_double_until_they_are_capped() -> None:
    waits = [backoff_s(attempt, jitter=0.0, limits=DEFAULT_LIMITS) for attempt in range(1, 10)]

    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


@given(_ATTEMPTS, _JITTERS, st.floats(min_value=0, max_value=7200), st.none() | st.floats(min_value=0, max_value=7200))
def test_a_retry_waits_as_long_as_the_upstream_asks_for_and_ends_before_the_deadline(
    attempt: int, jitter: float, deadline_in_s: float, retry_after_s: float | None
) -> None:
    failure = describe_failure(UpstreamRejected("busy", status=503, retry_after_s=retry_after_s))
    limits = attrs.evolve(DEFAULT_LIMITS, queue_attempts=1000)

    decision = decide_retry(failure, attempt=attempt, deadline_in_s=deadline_in_s, jitter=jitter, limits=limits)

    wait_s = max(backoff_s(attempt, jitter=jitter, limits=limits), retry_after_s or 0.0)
    if attempt >= limits.queue_attempts:
        assert decision == GiveUp("attempts")
    elif wait_s >= deadline_in_s:
        assert decision == GiveUp("deadline")
    else:
        assert decision == RetryLater(delay_s=wait_s)


@given(_ATTEMPTS, _JITTERS, st.none() | st.floats(min_value=0, max_value=60))
def test_a_busy_model_costs_no_attempt_until_the_deadline(
    attempt: int, jitter: float, retry_after_s: float | None
) -> None:
    rejected = UpstreamRejected("busy", status=429, retry_after_s=retry_after_s)

    again = decide_retry(
        describe_failure(rejected), attempt=attempt, deadline_in_s=_HOUR_S, jitter=jitter, limits=DEFAULT_LIMITS
    )
    too_late = decide_retry(
        describe_failure(rejected), attempt=attempt, deadline_in_s=0.1, jitter=jitter, limits=DEFAULT_LIMITS
    )

    assert isinstance(again, RetryLater)
    assert not again.counts
    assert again.delay_s >= (DEFAULT_LIMITS.queue_busy_s / 2 if retry_after_s is None else retry_after_s)
    assert too_late == GiveUp("deadline")


def test_a_final_failure_is_never_tried_again() -> None:
    for error in _FINAL:
        decision = decide_retry(
            describe_failure(error), attempt=1, deadline_in_s=_HOUR_S, jitter=0.5, limits=DEFAULT_LIMITS
        )
        assert decision == GiveUp("final")


def test_a_response_over_which_processes_die_is_given_up() -> None:
    limits = attrs.evolve(DEFAULT_LIMITS, queue_attempts=5, queue_reclaims=3)

    assert find_exhaustion(attempt=5, reclaims=3, limits=limits) is None
    assert "4 times" in (find_exhaustion(attempt=5, reclaims=4, limits=limits) or "")
    assert "5 attempts" in (find_exhaustion(attempt=6, reclaims=0, limits=limits) or "")
