"""What becomes of an error: its words for the client, its kind for the operator, its HTTP status.

Rule 1: every ``DwctlError`` has an answer here; anything else is ours and says nothing of its cause.
Rule 2: no text of a provider, no address and no key passes through.
"""

import attrs

from dwctl_trio.domain.errors import (
    AttemptsExhausted,
    DeadlineExceeded,
    DwctlError,
    LeaseLost,
    LimitExceeded,
    Overloaded,
    ServerStopping,
    StoreError,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
)
from dwctl_trio.domain.response import ErrorCode, ErrorType, ResponseError

_REQUEST_REFUSED = frozenset({400, 413, 422})
_NOT_FOUND = 404
_TIMEOUTS = frozenset({408, 504})
_CLIENT_ERRORS = range(400, 500)
_PASSING = frozenset({408, 409, 425})
"""Statuses below 500 that another time may not give."""
_TOO_MANY_REQUESTS = 429
_RETRY_AFTER_S = 1.0


@attrs.frozen(kw_only=True)
class Failure:
    """How a failed response looks from each side."""

    error: ResponseError
    http_status: int
    """What the blocking path answers while there is no output to hand over."""
    retry_after_s: float | None = None
    """When trying again makes sense, in seconds; None where nobody can know."""
    is_final: bool = False
    """Whether the client's own repeating makes no sense: the server has tried as often as it may."""
    is_retryable: bool = False
    """Whether the same may succeed at another time without anybody changing it."""


def describe_failure(error: Exception) -> Failure:
    """The failure that *error* is, for row, log, stream and HTTP answer alike."""
    match error:
        case LimitExceeded():
            return _rate_limited(str(error), error.retry_after_s)
        case UpstreamError():
            return _describe_upstream(error)
        case StoreError():
            return Failure(
                error=ResponseError(
                    type=ErrorType.PERSIST_FAILED,
                    code=ErrorCode.SERVER_ERROR,
                    message="The response could not be stored. Please try again later.",
                ),
                http_status=500 if isinstance(error, LeaseLost) else 503,
                retry_after_s=None if isinstance(error, LeaseLost) else _RETRY_AFTER_S,
                is_retryable=True,
            )
        case Overloaded():
            overloaded = _server_error(ErrorType.RATE_LIMITED, str(error))
            return attrs.evolve(overloaded, http_status=503, retry_after_s=error.retry_after_s, is_retryable=True)
        case ServerStopping():
            stopping = _server_error(ErrorType.SERVER_STOPPING, "The server is shutting down. Please try again.")
            return attrs.evolve(stopping, http_status=503, retry_after_s=_RETRY_AFTER_S, is_retryable=True)
        case DeadlineExceeded():
            return attrs.evolve(_server_error(ErrorType.DEADLINE_EXCEEDED, str(error)), http_status=504)
        case AttemptsExhausted():
            return _server_error(ErrorType.STEP_ABANDONED, str(error))
        case DwctlError():
            return _server_error(ErrorType.LOOP_ERROR, str(error))
        case _:
            return _server_error(ErrorType.LOOP_ERROR, "The server had an error while processing the response.")


def _describe_upstream(error: UpstreamError) -> Failure:
    status = error.status
    if status == _TOO_MANY_REQUESTS:
        return _rate_limited("The model's server is over its rate limit.", error.retry_after_s)
    if isinstance(error, UpstreamRejected) and status in _REQUEST_REFUSED:
        message = f"The model's server refused the request (status {status}). Check the input and the parameters."
        refused = ResponseError(type=ErrorType.UPSTREAM_ERROR, code=ErrorCode.INVALID_PROMPT, message=message)
        return Failure(error=refused, http_status=400)
    if isinstance(error, UpstreamRejected) and status == _NOT_FOUND:
        message = "The model's server does not know this model."
        unknown = ResponseError(type=ErrorType.UPSTREAM_ERROR, code=ErrorCode.INVALID_PROMPT, message=message)
        return Failure(error=unknown, http_status=404)
    http_status = 504 if isinstance(error, UpstreamTimeout) or status in _TIMEOUTS else 502
    failed = ResponseError(type=ErrorType.UPSTREAM_ERROR, code=ErrorCode.SERVER_ERROR, message=str(error))
    is_refusal = isinstance(error, UpstreamRejected) and status in _CLIENT_ERRORS and status not in _PASSING
    return Failure(
        error=failed, http_status=http_status, retry_after_s=error.retry_after_s, is_retryable=not is_refusal
    )


def _rate_limited(message: str, retry_after_s: float | None) -> Failure:
    error = ResponseError(type=ErrorType.RATE_LIMITED, code=ErrorCode.RATE_LIMIT_EXCEEDED, message=message)
    return Failure(error=error, http_status=_TOO_MANY_REQUESTS, retry_after_s=retry_after_s, is_retryable=True)


def _server_error(kind: ErrorType, message: str) -> Failure:
    return Failure(error=ResponseError(type=kind, code=ErrorCode.SERVER_ERROR, message=message), http_status=500)
