"""What becomes of an error: its words for the client, its kind for the operator, its HTTP status.

Rule 1: every ``DwctlError`` has an answer here; anything else is ours and says nothing of its cause.
Rule 2: no text of a provider, no address and no key passes through.
"""

from typing import assert_never

import attrs

from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.errors import (
    AttemptsExhausted,
    DeadlineExceeded,
    DwctlError,
    InvalidRequest,
    LeaseLost,
    LimitExceeded,
    Overloaded,
    ServerStopping,
    StoreError,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
)
from dwctl_trio.domain.rejections import Rejection, RejectionReason, client_param, input_param
from dwctl_trio.domain.response import ErrorCode, ErrorType, ResponseError

_REQUEST_REFUSED = frozenset({400, 413, 415, 422})
_OURS = frozenset({401, 402, 404, *range(500, 600)})
"""Statuses that are not about the client's input, whatever else the upstream says."""
_NOT_FOUND = 404
_NOT_SERVED = frozenset({404, 405, 501})
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
    param: str | None = None
    """The client's name of the parameter that the upstream refused."""
    is_final: bool = False
    """Whether the client's own repeating makes no sense: the server has tried as often as it may."""
    is_retryable: bool = False
    """Whether the same may succeed at another time without anybody changing it."""


def describe_failure(error: Exception, surface: Surface = Surface.RESPONSES) -> Failure:
    """The failure that *error* is, for row, log, stream and HTTP answer alike.

    Args:
        error: What was raised.
        surface: Which API the client used, for its names of parameters.
    """
    match error:
        case LimitExceeded():
            return _rate_limited(str(error), error.retry_after_s)
        case UpstreamError():
            return _describe_upstream(error, surface)
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
        case InvalidRequest():  # known only now: what it goes on with was deleted while it waited in the queue
            lost = ResponseError(type=ErrorType.HISTORY_LOST, code=ErrorCode.INVALID_PROMPT, message=error.message)
            return Failure(error=lost, http_status=400)
        case DwctlError():
            return _server_error(ErrorType.LOOP_ERROR, str(error))
        case _:
            return _server_error(ErrorType.LOOP_ERROR, "The server had an error while processing the response.")


def _describe_upstream(error: UpstreamError, surface: Surface) -> Failure:
    status = error.status
    if status == _TOO_MANY_REQUESTS:
        return _rate_limited("The model's server is over its rate limit.", error.retry_after_s)
    if isinstance(error, UpstreamRejected) and error.rejection is not None and status not in _OURS:
        rejected = _describe_rejection(error.rejection, surface)
        if rejected is not None:
            return rejected
    if isinstance(error, UpstreamRejected) and status in _REQUEST_REFUSED:
        message = f"The model's server refused the request (status {status}). Check the input and the parameters."
        refused = ResponseError(type=ErrorType.UPSTREAM_ERROR, code=ErrorCode.INVALID_PROMPT, message=message)
        return Failure(error=refused, http_status=400)
    if isinstance(error, UpstreamRejected) and status in _NOT_SERVED:
        message = (
            "The model's server does not know this model, or does not serve this kind of request."
            if status == _NOT_FOUND
            else f"The model's server does not serve this kind of request (status {status})."
        )
        unknown = ResponseError(type=ErrorType.UPSTREAM_ERROR, code=ErrorCode.INVALID_PROMPT, message=message)
        return Failure(error=unknown, http_status=404)
    http_status = 504 if isinstance(error, UpstreamTimeout) or status in _TIMEOUTS else 502
    failed = ResponseError(type=ErrorType.UPSTREAM_ERROR, code=ErrorCode.SERVER_ERROR, message=str(error))
    is_refusal = isinstance(error, UpstreamRejected) and status in _CLIENT_ERRORS and status not in _PASSING
    return Failure(
        error=failed, http_status=http_status, retry_after_s=error.retry_after_s, is_retryable=not is_refusal
    )


def _describe_rejection(rejection: Rejection, surface: Surface) -> Failure | None:
    """The failure of a request that its client can mend; None where it is about nothing of the client's."""
    kind, code = ErrorType.UPSTREAM_ERROR, ErrorCode.INVALID_PROMPT
    param: str | None = input_param(surface)
    match rejection.reason:
        case ErrorCode() as image_code:
            code, message = image_code, f"The model's server cannot read an image of the input ({image_code.value})."
        case RejectionReason.CONTEXT_LENGTH:
            kind = ErrorType.CONTEXT_LENGTH_EXCEEDED
            message = "The input is longer than the model can read. Shorten the input, or ask for a shorter answer."
        case RejectionReason.CONTENT_POLICY:
            kind = ErrorType.CONTENT_POLICY_VIOLATION
            message = "The model's server does not allow this input. Change the input."
        case RejectionReason.IMAGES:
            message = "The model cannot read images. Leave them out of the input, or name another model."
        case RejectionReason.TOOLS:
            param, message = "tools", "The model cannot call tools. Leave out tools, or name another model."
        case RejectionReason.PARAMETER:
            param = client_param(rejection.param, surface) if rejection.param is not None else param
            if param is None:
                return None
            message = f"The model's server does not accept {param} as it is. Change it, or leave it out."
        case _ as never:
            assert_never(never)
    return Failure(error=ResponseError(type=kind, code=code, message=message), http_status=400, param=param)


def _rate_limited(message: str, retry_after_s: float | None) -> Failure:
    error = ResponseError(type=ErrorType.RATE_LIMITED, code=ErrorCode.RATE_LIMIT_EXCEEDED, message=message)
    return Failure(error=error, http_status=_TOO_MANY_REQUESTS, retry_after_s=retry_after_s, is_retryable=True)


def _server_error(kind: ErrorType, message: str) -> Failure:
    return Failure(error=ResponseError(type=kind, code=ErrorCode.SERVER_ERROR, message=message), http_status=500)
