"""One chat-completions chunk: its shape, and how each of its values is read.

Rule 1: a member has any type until it is read; a strange one that carries no content is ignored.
Rule 2: content of a strange type, and what is not JSON at all, is a failure of the upstream.
Rule 3: no text of a provider gets into an exception, its chain included.

Chunks and whole answers have the same shape, but for ``delta`` being called ``message``.

Source: OpenAI Chat Completions API reference, "The chat completion chunk object"; observed: vLLM, SGLang, llama.cpp,
OpenRouter, Gemini, Mistral.
"""

import json as stdlib_json
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from dwctl_trio.domain.errors import UpstreamError, UpstreamRejected
from dwctl_trio.domain.turn import FinishReason
from dwctl_trio.domain.usage import Usage
from dwctl_trio.protocol.json import clean_text
from dwctl_trio.protocol.rejections import find_rejection


class Delta(msgspec.Struct, gc=False):
    """What one chunk adds to the message, or the whole message."""

    content: Any = None
    refusal: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    reasoning_details: Any = None
    tool_calls: Any = None
    function_call: Any = None
    annotations: Any = None


class Choice(msgspec.Struct, gc=False):
    """One of the answers that the model gives in parallel; we read the one with index 0."""

    index: Any = 0
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: Any = None
    logprobs: Any = None


class Chunk(msgspec.Struct, gc=False):
    """One event's data, or a whole answer."""

    choices: list[Choice] | None = None
    model: Any = None
    usage: Any = None
    error: Any = None
    object: Any = None
    code: Any = None


class _TextDelta(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    content: str
    role: Any = None
    refusal: None = None
    reasoning_content: None = None
    reasoning: None = None
    reasoning_details: None = None
    tool_calls: None = None
    function_call: None = None
    annotations: None = None


class _TextChoice(msgspec.Struct, gc=False):
    delta: _TextDelta
    message: None = None
    index: Literal[0] | None = None
    finish_reason: None = None


class _TextChunk(msgspec.Struct, gc=False):
    """A chunk that brings some text and nothing else."""

    choices: tuple[_TextChoice]
    usage: None = None
    error: None = None


_DECODER = msgspec.json.Decoder(Chunk)
_TEXT_DECODER = msgspec.json.Decoder(_TextChunk)

_STATUS_MIN, _STATUS_MAX = 400, 599
_STATUS_DIGITS = 3
_COUNT_MAX = 2**53 - 1
"""The largest integer that every JSON reader understands."""

_STATUS_BY_NAME = {
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "BadRequestError": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "insufficient_credits": 402,
    "permission_error": 403,
    "model_not_found": 404,
    "not_found_error": 404,
    "NotFoundError": 404,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "insufficient_quota": 429,
    "server_error": 500,
    "api_error": 500,
    "internal_error": 500,
    "internal_server_error": 500,
    "InternalServerError": 500,
    "overloaded_error": 503,
    "service_unavailable": 503,
    "timeout": 504,
}

_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
}
_NOT_FINISHED = frozenset({None, "", "null"})
_GAVE_UP = frozenset({"error", "abort"})


def decode_chunk(data: bytes) -> Chunk:
    """The chunk in *data*.

    Raises:
        UpstreamError: Not JSON, or not of a chunk's shape.
    """
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # and go on outside of this block: the exception holds the provider's text
    value = decode_leniently(data)
    try:
        return msgspec.convert(value, Chunk)
    except (msgspec.ValidationError, RecursionError):
        pass
    raise UpstreamError("The model's server sent JSON that is not a chat completion.")


def read_text_chunk(data: bytes) -> str | None:
    """The text in *data* if it is a chunk that brings text and nothing else; log probabilities do not count."""
    try:
        return _TEXT_DECODER.decode(data).choices[0].delta.content
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def read_error(chunk: Chunk, *, is_error_event: bool) -> UpstreamRejected | None:
    """The error that the upstream reports in *chunk*, in our words; None when there is none.

    Args:
        chunk: Any chunk.
        is_error_event: The event itself was named ``error``.
    """
    error = chunk.error
    is_error = bool(error) or isinstance(error, dict)
    if not (is_error or is_error_event or chunk.object == "error"):  # the last: older vLLM, without an envelope
        return None
    names = (error.get("code"), error.get("status"), error.get("type")) if isinstance(error, dict) else (error,)
    for name in (*names, chunk.code):
        status = _read_status(name)
        if status is not None:
            message = f"The model's server reported an error (status {status})."
            return UpstreamRejected(message, status=status, rejection=find_rejection(error))
    return UpstreamRejected("The model's server reported an error.", rejection=find_rejection(error))


def read_finish_reason(value: object) -> FinishReason | None:
    """Why the model stopped; None while it has not. An unknown reason counts as a plain stop.

    Raises:
        UpstreamError: The upstream gave up on the answer, or the reason is no text.
    """
    if value is None or (isinstance(value, str) and value in _NOT_FINISHED):
        return None
    if not isinstance(value, str):
        raise UpstreamError("The model's server sent a finish reason of a wrong type.")
    if value in _GAVE_UP:
        raise UpstreamError("The model's server gave up on the answer.")
    return _FINISH_REASONS.get(value, FinishReason.STOP)


def read_usage(value: object) -> Usage | None:
    """The usage in *value*; None when it does not hold both counts."""
    if not isinstance(value, dict):
        return None
    input_tokens = _read_count(value, "prompt_tokens")
    output_tokens = _read_count(value, "completion_tokens")
    if input_tokens is None or output_tokens is None:
        return None
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_tokens=_read_count(value.get("prompt_tokens_details"), "cached_tokens"),
        reasoning_tokens=_read_count(value.get("completion_tokens_details"), "reasoning_tokens"),
        cache_write_tokens=_read_count(value.get("prompt_tokens_details"), "cache_write_tokens"),
    )


def read_texts(value: object) -> Iterable[str]:
    """The texts in a content value: a text, null, or an array of parts; parts that hold no text are passed over.

    Raises:
        UpstreamError: It is something else.
    """
    if value is None:
        return
    if isinstance(value, str):
        yield value
        return
    if not isinstance(value, list):
        raise UpstreamError("The model's server sent content of a wrong type.")
    for part in value:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str):
            yield text
        elif text is not None or not isinstance(part, dict):
            raise UpstreamError("The model's server sent content of a wrong type.")


def read_reasoning(delta: Delta) -> list[str]:
    """The reasoning texts in *delta*; providers say the same under up to three names, which is then one text."""
    texts: list[str] = []
    details = delta.reasoning_details if isinstance(delta.reasoning_details, list) else []
    told = [detail.get("text") or detail.get("summary") for detail in details if isinstance(detail, dict)]
    for text in (delta.reasoning_content, delta.reasoning, "".join(text for text in told if isinstance(text, str))):
        if isinstance(text, str) and text and text not in texts:
            texts.append(text)
    return texts


def _read_count(counts: object, name: str) -> int | None:
    value = counts.get(name) if isinstance(counts, dict) else None
    is_count = type(value) is int and 0 <= value <= _COUNT_MAX  # a bool is an int to isinstance
    return value if is_count else None


def _read_status(name: object) -> int | None:
    """The HTTP status that an error's code stands for: a number, a number as text, or a known name."""
    status: object = name
    if isinstance(name, str):
        is_number = len(name) == _STATUS_DIGITS and name.isascii() and name.isdigit()
        status = int(name) if is_number else _STATUS_BY_NAME.get(name)
    is_status = type(status) is int and _STATUS_MIN <= status <= _STATUS_MAX
    return status if is_status else None  # type: ignore[return-value]


def decode_leniently(data: bytes) -> object:
    """What stdlib makes of *data*: it takes lone surrogates, which models do emit; the texts come out clean.

    Raises:
        UpstreamError: It is not JSON.
    """
    try:
        return _clean(stdlib_json.loads(data.decode(errors="replace")))
    except (ValueError, RecursionError):
        pass  # and go on outside of this block: the exception holds the provider's text
    raise UpstreamError("The model's server sent something that is not JSON.")


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [_clean(child) for child in value]
    if isinstance(value, dict):
        return {clean_text(key): _clean(child) for key, child in value.items()}
    return value
