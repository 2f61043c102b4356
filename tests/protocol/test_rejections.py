"""Why an upstream refused a request: found in the words of servers in the field, never repeated."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.errors import UpstreamRejected
from dwctl_trio.domain.failures import Failure, describe_failure
from dwctl_trio.domain.rejections import Rejection, RejectionReason
from dwctl_trio.domain.response import IMAGE_CODES, ErrorCode
from dwctl_trio.protocol.error_body import failure_error, http_error
from dwctl_trio.protocol.rejections import find_rejection, read_rejection
from dwctl_trio.testing.chat_scripts import PROVIDER_CANARY

_OPENAI = {"message": PROVIDER_CANARY, "type": "invalid_request_error", "param": None, "code": None}
_VLLM = {"object": "error", "type": "BadRequestError", "param": None, "code": 400}

SAYINGS = [
    ({"error": _OPENAI | {"code": "context_length_exceeded", "param": "messages"}}, RejectionReason.CONTEXT_LENGTH),
    ({**_VLLM, "message": "This model's maximum context length is 4096 tokens."}, RejectionReason.CONTEXT_LENGTH),
    ({"error": {"code": 400, "type": "exceed_context_size_error", "n_ctx": 8}}, RejectionReason.CONTEXT_LENGTH),
    (
        {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096", "error_type": "v"},
        RejectionReason.CONTEXT_LENGTH,
    ),
    ({"error": {"type": "invalid_request_error", "message": "prompt is too long: 9"}}, RejectionReason.CONTEXT_LENGTH),
    ({"error": {"code": "content_filter", "innererror": {"code": "x"}}}, RejectionReason.CONTENT_POLICY),
    (
        {"error": {"code": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
        RejectionReason.CONTENT_POLICY,
    ),
    ({**_VLLM, "message": "m is not a multimodal model"}, RejectionReason.IMAGES),
    ({**_VLLM, "message": "cannot identify image file <_io.BytesIO>"}, ErrorCode.INVALID_IMAGE),
    ({"error": {"message": "registry.ollama.ai/m does not support tools"}}, RejectionReason.TOOLS),
    (
        {**_VLLM, "message": '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser'},
        RejectionReason.TOOLS,
    ),
    ([{"error": {"code": 400, "message": "exceeds the maximum number of tokens"}}], RejectionReason.CONTEXT_LENGTH),
    *(({"error": _OPENAI | {"code": code.value}}, code) for code in sorted(IMAGE_CODES)),
]


@pytest.mark.parametrize(("said", "reason"), SAYINGS)
def test_what_servers_say_is_understood(said: object, reason: RejectionReason | ErrorCode) -> None:
    assert read_rejection(json.dumps(said).encode()) == Rejection(reason=reason)


_NAMED: list[tuple[str, str, str | None]] = [
    ("temperature", "temperature", "temperature"),
    ("max_tokens", "max_tokens", "max_output_tokens"),
    ("max_completion_tokens", "max_completion_tokens", "max_output_tokens"),
    ("messages[3].content", "messages", "input"),
    ("prompt", "prompt", None),
    ("response_format.json_schema", "response_format", "text.format"),
    ("reasoning_effort", "reasoning_effort", "reasoning.effort"),
    ("tools.0.function", "tools", "tools"),
    ("logprobs", "logprobs", "include"),
    ("stop", "stop", None),
    ("dimensions", "dimensions", None),
]
"""What an upstream names, what that parameter is called there, and what for a response."""


@pytest.mark.parametrize(("named", "theirs", "of_a_response"), _NAMED)
@pytest.mark.parametrize("surface", Surface)
def test_a_parameter_is_called_what_the_client_called_it(
    surface: Surface, named: str, theirs: str, of_a_response: str | None
) -> None:
    rejection = read_rejection(json.dumps({"error": _OPENAI | {"param": named}}).encode())
    shown = of_a_response if surface is Surface.RESPONSES else theirs

    failure = describe_failure(UpstreamRejected("x", status=400, rejection=rejection), surface)

    assert rejection == Rejection(reason=RejectionReason.PARAMETER, param=theirs)
    assert (failure.param, failure.http_status) == (shown, 400)
    assert (f"does not accept {shown} as it is" in failure.error.message) == (shown is not None)


@pytest.mark.parametrize(
    ("surface", "param"),
    [
        *((Surface.RESPONSES, "input"), (Surface.CHAT, "messages")),
        *((Surface.COMPLETIONS, "prompt"), (Surface.EMBEDDINGS, "input")),
    ],
)
@pytest.mark.parametrize(
    "reason",
    [RejectionReason.CONTEXT_LENGTH, RejectionReason.CONTENT_POLICY, RejectionReason.IMAGES, *sorted(IMAGE_CODES)],
)
def test_an_input_is_called_what_the_client_called_it(
    reason: RejectionReason | ErrorCode, surface: Surface, param: str
) -> None:
    failure = describe_failure(UpstreamRejected("x", status=400, rejection=Rejection(reason=reason)), surface)
    stored = Failure(error=failure.error, http_status=400)  # a row does not keep the parameter

    shown = {json.loads(failure_error(told, surface).body)["error"]["param"] for told in (failure, stored)}

    assert failure.param == param
    assert shown == {param} if reason is not RejectionReason.IMAGES else shown == {param, None}


@pytest.mark.parametrize("body", [b"", b"<html>", b"null", b"[]", b"7", b"\xff", b"[" * 100_000, b'{"error": null}'])
def test_what_is_not_understood_is_none(body: bytes) -> None:
    assert read_rejection(body) is None


_VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=8) | st.sampled_from(["context_length_exceeded", "messages"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "code", "type", "param", "message", "innererror"]), inner)
    ),
    max_leaves=8,
)


@given(value=_VALUES)
def test_any_error_is_read_without_a_failure(value: object) -> None:
    find_rejection(value)
    read_rejection(json.dumps(value).encode())


@pytest.mark.parametrize("reason", [*RejectionReason, *sorted(IMAGE_CODES)])
@pytest.mark.parametrize("status", [None, 400, 403, 413, 422])
def test_a_request_that_its_client_can_mend_is_a_400_that_says_how(
    reason: RejectionReason | ErrorCode, status: int | None
) -> None:
    error = UpstreamRejected(PROVIDER_CANARY, status=status, rejection=Rejection(reason=reason))

    failure, answer = describe_failure(error), http_error(error)

    body = json.loads(answer.body)["error"]
    assert (answer.status, body["type"], failure.is_retryable) == (400, "invalid_request_error", False)
    assert body["param"] in {"input", "tools"}
    assert PROVIDER_CANARY not in answer.body.decode()


@pytest.mark.parametrize(("status", "shown"), [(401, 502), (402, 502), (404, 404), (429, 429), (500, 502), (503, 502)])
def test_what_is_not_the_clients_fault_is_not_laid_at_its_door(status: int, shown: int) -> None:
    rejection = Rejection(reason=RejectionReason.CONTEXT_LENGTH)

    assert http_error(UpstreamRejected("x", status=status, rejection=rejection)).status == shown
