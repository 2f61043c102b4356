"""The one shape of every HTTP error: ``{"error": {"message", "type", "param", "code"}}``, all four keys always.

Source: OpenAI API reference, "Error codes"; the official SDKs' error classes.
"""

import math

import attrs
import msgspec

from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.errors import (
    AuthenticationFailed,
    Conflict,
    IdempotencyConflict,
    InvalidRequest,
    NotFound,
    StoreError,
)
from dwctl_trio.domain.failures import Failure, describe_failure
from dwctl_trio.domain.idempotency import IDEMPOTENCY_KEY
from dwctl_trio.domain.rejections import input_param
from dwctl_trio.domain.response import IMAGE_CODES, ErrorCode, ErrorType
from dwctl_trio.protocol import json
from dwctl_trio.protocol.sse import encode_frame

_ABOUT_INPUT = frozenset({ErrorType.CONTEXT_LENGTH_EXCEEDED, ErrorType.CONTENT_POLICY_VIOLATION})


@attrs.frozen(kw_only=True)
class HttpError:
    """An error as it goes out over HTTP."""

    status: int
    body: bytes
    retry_after_s: float | None = None
    is_final: bool = False
    """Whether the same request can never succeed, although SDKs repeat after this status."""

    def headers(self) -> list[tuple[str, str]]:
        """Content type, and whether and when to try again in the words that the SDKs read."""
        headers = [("content-type", "application/json")]
        if self.retry_after_s is not None:
            headers.append(("retry-after", str(math.ceil(self.retry_after_s))))
            headers.append(("retry-after-ms", str(math.ceil(self.retry_after_s * 1000))))
        if self.is_final:
            headers.append(("x-should-retry", "false"))
        return headers


def error_body(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """The JSON body of an error."""
    return json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_event(error: HttpError) -> bytes:
    """*error* as the only event of a stream whose head went out before it was known.

    Its fields are those of the event ``error``; the object within is what the official Python SDK raises on.
    """
    fields = msgspec.json.decode(error.body)["error"]
    data = {"type": "error", "sequence_number": 0, **{name: fields[name] for name in ("code", "message", "param")}}
    return encode_frame("error", json.encode({**data, "error": fields}), 0)


def http_error(error: Exception) -> HttpError:
    """The answer to *error*; whatever we do not know is a 500 that says nothing of its cause."""
    match error:
        case InvalidRequest():
            body = error_body(error.message, "invalid_request_error", param=error.param, code=error.code)
            return HttpError(status=error.status, body=body)
        case AuthenticationFailed():
            body = error_body(str(error), "invalid_request_error", code="invalid_api_key")
            return HttpError(status=401, body=body)
        case NotFound():
            return HttpError(status=404, body=error_body(str(error), "invalid_request_error", code="not_found"))
        case IdempotencyConflict():
            body = error_body(str(error), "invalid_request_error", param=IDEMPOTENCY_KEY, code=error.code)
            retry_after_s = error.retry_after_s
            return HttpError(status=409, body=body, retry_after_s=retry_after_s, is_final=retry_after_s is None)
        case Conflict():
            return HttpError(status=409, body=error_body(str(error), "invalid_request_error", code="conflict"))
        case StoreError():
            failure = describe_failure(error)
            message = "The server's database is not available. Please try again later."
            return failure_error(attrs.evolve(failure, error=attrs.evolve(failure.error, message=message)))
        case _:
            return failure_error(describe_failure(error))


def failure_error(failure: Failure, surface: Surface = Surface.RESPONSES) -> HttpError:
    """The answer that *failure* is while there is no output to hand over, to a client that used *surface*."""
    error, status = failure.error, failure.http_status
    is_about_input = error.type in _ABOUT_INPUT or error.code in IMAGE_CODES
    if error.code is ErrorCode.RATE_LIMIT_EXCEEDED:
        kind, code = "rate_limit_error", "rate_limit_exceeded"
    elif status < 500:  # noqa: PLR2004 - the class of client errors
        kind, code = "invalid_request_error", "model_not_found" if status == 404 else error.code.value  # noqa: PLR2004
        if error.type is ErrorType.CONTEXT_LENGTH_EXCEEDED:
            code = error.type.value  # OpenAI's over HTTP, though no response may have it
    else:
        kind, code = "server_error", error.type.value if error.type is ErrorType.UPSTREAM_ERROR else error.code.value
    param = failure.param or (input_param(surface) if is_about_input else None)
    body = error_body(error.message, kind, param=param, code=code)
    return HttpError(status=status, body=body, retry_after_s=failure.retry_after_s, is_final=failure.is_final)
