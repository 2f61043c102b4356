"""Every error over HTTP has OpenAI's one shape, the right status, and nothing that is not the client's."""

import math
from typing import Any

import httpx
import msgspec
import openai
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dwctl_trio.domain import errors
from dwctl_trio.domain.errors import (
    AttemptsExhausted,
    AuthenticationFailed,
    Conflict,
    DeadlineExceeded,
    DwctlError,
    IdempotencyConflict,
    IdempotencyKeyHeld,
    InvalidRequest,
    LeaseLost,
    LimitExceeded,
    NotFound,
    Overloaded,
    ResponseCancelled,
    ServerStopping,
    StoreError,
    StoreUnavailable,
    ToolFailed,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from dwctl_trio.domain.failures import Failure, describe_failure
from dwctl_trio.domain.response import ErrorCode, ErrorType, ResponseError
from dwctl_trio.protocol.error_body import HttpError, error_body, error_event, failure_error, http_error
from dwctl_trio.protocol.sse import SseDecoder
from dwctl_trio.testing.request_strategies import texts

CANARY = "c4n4ry"


class OneAnswer(httpx.BaseTransport):
    """A server that has one answer."""

    def __init__(self, answer: HttpError) -> None:
        self.answer = answer

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(self.answer.status, headers=self.answer.headers(), content=self.answer.body)


def fields_of(error: HttpError) -> dict[str, Any]:
    body = msgspec.json.decode(error.body)
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    fields: dict[str, Any] = body["error"]
    return fields


@given(message=texts(), kind=texts(), param=st.none() | texts(), code=st.none() | texts())
def test_the_four_keys_are_always_there(message: str, kind: str, param: str | None, code: str | None) -> None:
    decoded = msgspec.json.decode(error_body(message, kind, param=param, code=code))

    assert decoded == {"error": {"message": message, "type": kind, "param": param, "code": code}}


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (InvalidRequest("no", param="model"), 400, "invalid_request_error", "invalid_value"),
        (InvalidRequest("no", code="request_too_large", status=413), 413, "invalid_request_error", "request_too_large"),
        (AuthenticationFailed("no"), 401, "invalid_request_error", "invalid_api_key"),
        (NotFound("no"), 404, "invalid_request_error", "not_found"),
        (Conflict("no"), 409, "invalid_request_error", "conflict"),
        (IdempotencyKeyHeld("no"), 409, "invalid_request_error", "conflict"),
        (IdempotencyConflict("no"), 409, "invalid_request_error", "idempotency_key_reused"),
        (LimitExceeded("no", retry_after_s=1), 429, "rate_limit_error", "rate_limit_exceeded"),
        (Overloaded("no", retry_after_s=1), 503, "server_error", "server_error"),
        (UpstreamRejected("no", status=429), 429, "rate_limit_error", "rate_limit_exceeded"),
        (UpstreamRejected("no", status=400), 400, "invalid_request_error", "invalid_prompt"),
        (UpstreamRejected("no", status=413), 400, "invalid_request_error", "invalid_prompt"),
        (UpstreamRejected("no", status=404), 404, "invalid_request_error", "model_not_found"),
        (UpstreamRejected("no", status=401), 502, "server_error", "upstream_error"),
        (UpstreamRejected("no", status=503), 502, "server_error", "upstream_error"),
        (UpstreamRejected("no", status=504), 504, "server_error", "upstream_error"),
        (UpstreamTimeout("no"), 504, "server_error", "upstream_error"),
        (UpstreamUnreachable("no"), 502, "server_error", "upstream_error"),
        (UpstreamError("no"), 502, "server_error", "upstream_error"),
        (StoreUnavailable("no"), 503, "server_error", "server_error"),
        (LeaseLost("no"), 500, "server_error", "server_error"),
        (ServerStopping("no"), 503, "server_error", "server_error"),
        (DeadlineExceeded("no"), 504, "server_error", "server_error"),
        (AttemptsExhausted("no"), 500, "server_error", "server_error"),
        (ResponseCancelled("no"), 500, "server_error", "server_error"),
        (ToolFailed(ErrorType.TOOL_TIMEOUT, "no"), 500, "server_error", "server_error"),
        (DwctlError("no"), 500, "server_error", "server_error"),
        (RuntimeError(CANARY), 500, "server_error", "server_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_each_error_has_its_status_its_type_and_its_code(error: Exception, status: int, kind: str, code: str) -> None:
    answer = http_error(error)

    fields = fields_of(answer)
    assert (answer.status, fields["type"], fields["code"]) == (status, kind, code)
    assert fields["message"]


def test_the_table_above_knows_every_error_there_is() -> None:
    known = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, DwctlError)}
    marks = test_each_error_has_its_status_its_type_and_its_code.pytestmark  # type: ignore[attr-defined]
    tested = {type(row[0]) for row in marks[0].args[1]}

    assert known - tested == {StoreError}
    assert http_error(StoreError("no")).status == 503


@pytest.mark.parametrize(("retry_after_s", "told"), [(None, "false"), (5.0, None)])
def test_a_conflict_that_stays_is_not_to_be_sent_again(retry_after_s: float | None, told: str | None) -> None:
    answer = http_error(IdempotencyConflict("no", retry_after_s=retry_after_s))

    assert dict(answer.headers()).get("x-should-retry") == told
    assert dict(answer.headers()).get("retry-after") == (None if retry_after_s is None else "5")
    assert fields_of(answer)["param"] == "Idempotency-Key"


def test_an_error_in_a_stream_has_the_fields_of_its_event_and_the_object_that_sdks_raise_on() -> None:
    error = http_error(IdempotencyConflict("no"))
    (frame,) = SseDecoder(event_bytes_max=1024).feed(error_event(error))

    data = msgspec.json.decode(frame.data)
    assert frame.event == data["type"] == "error"
    assert data["sequence_number"] == 0
    assert {name: data[name] for name in ("message", "param", "code")} == {
        name: value for name, value in fields_of(error).items() if name != "type"
    }
    assert data["error"] == fields_of(error)


def test_the_parameter_is_named_where_there_is_one() -> None:
    fields = fields_of(http_error(InvalidRequest("no", param="input[0].role", code="invalid_value")))

    assert fields["param"] == "input[0].role"


@pytest.mark.parametrize(
    "error", [RuntimeError(CANARY), KeyError(CANARY), StoreError(CANARY), StoreUnavailable(CANARY), LeaseLost(CANARY)]
)
def test_the_cause_of_a_fault_of_ours_is_nobodys_business(error: Exception) -> None:
    answer = http_error(error)

    assert answer.status >= 500
    assert CANARY.encode() not in answer.body


@pytest.mark.parametrize("status", [400, 404, 413, 422, 429])
def test_the_words_of_an_upstream_that_refused_stay_with_it(status: int) -> None:
    assert CANARY.encode() not in http_error(UpstreamRejected(CANARY, status=status)).body


@given(
    status=st.none() | st.integers(100, 599),
    retry_after_s=st.none() | st.floats(0, 86400),
    kind=st.sampled_from([UpstreamError, UpstreamTimeout, UpstreamRejected, UpstreamUnreachable]),
)
@example(status=429, retry_after_s=0.001, kind=UpstreamRejected)
def test_whatever_an_upstream_does_the_answer_is_an_error_that_the_sdk_has_a_class_for(
    status: int | None, retry_after_s: float | None, kind: type[UpstreamError]
) -> None:
    answer = http_error(kind("no", status=status, retry_after_s=retry_after_s))

    fields = fields_of(answer)
    assert answer.status in {400, 404, 429, 502, 504}
    assert (answer.status >= 500) == (fields["type"] == "server_error")


@given(retry_after_s=st.floats(0, 86400))
def test_when_to_try_again_is_said_in_both_units_and_never_too_early(retry_after_s: float) -> None:
    headers = dict(http_error(LimitExceeded("busy", retry_after_s=retry_after_s)).headers())

    assert headers["content-type"] == "application/json"
    assert retry_after_s <= int(headers["retry-after"]) <= retry_after_s + 1
    assert retry_after_s * 1000 <= int(headers["retry-after-ms"]) <= retry_after_s * 1000 + 1
    assert int(headers["retry-after"]) == math.ceil(retry_after_s)


def test_where_nobody_knows_when_to_try_again_nothing_is_said_of_it() -> None:
    assert http_error(NotFound("no")).headers() == [("content-type", "application/json")]


@pytest.mark.parametrize("code", ErrorCode)
@pytest.mark.parametrize("kind", ErrorType)
def test_every_failure_of_a_response_can_be_answered(kind: ErrorType, code: ErrorCode) -> None:
    failure = Failure(error=ResponseError(type=kind, code=code, message="why"), http_status=500)

    fields = fields_of(failure_error(failure))

    assert fields["message"] == "why"
    assert fields["type"] in {"invalid_request_error", "rate_limit_error", "server_error"}


def test_the_row_and_the_answer_tell_of_the_same_failure() -> None:
    error = UpstreamTimeout("the upstream was too slow")

    failure, fields = describe_failure(error), fields_of(http_error(error))

    assert fields["message"] == failure.error.message == "the upstream was too slow"
    assert http_error(error).status == failure.http_status


@pytest.mark.parametrize(
    ("error", "sdk_class"),
    [
        (InvalidRequest("no"), openai.BadRequestError),
        (AuthenticationFailed("no"), openai.AuthenticationError),
        (NotFound("no"), openai.NotFoundError),
        (Conflict("no"), openai.ConflictError),
        (LimitExceeded("no", retry_after_s=1), openai.RateLimitError),
        (UpstreamError("no"), openai.InternalServerError),
        (StoreUnavailable("no"), openai.InternalServerError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_the_official_client_raises_the_class_that_its_users_catch(
    error: Exception, sdk_class: type[openai.APIStatusError]
) -> None:
    answer = http_error(error)
    http_client = httpx.Client(transport=OneAnswer(answer))
    client = openai.OpenAI(base_url="http://server/v1", api_key="k", max_retries=0, http_client=http_client)

    with client, pytest.raises(sdk_class) as caught:
        client.responses.retrieve("resp_1")

    assert caught.value.status_code == answer.status
    assert caught.value.body == fields_of(answer)
