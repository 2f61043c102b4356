"""Why an upstream refused a request, found in the words of its error.

Rule 1: codes count first, then words; what is not understood is None, and the status says the rest.
Rule 2: none of the upstream's words comes out: only a reason of ours, and the name of a parameter that OpenAI has.

Source: OpenAI API reference, "Error codes"; observed: vLLM, SGLang, llama.cpp, TGI, Ollama, Azure OpenAI, OpenRouter.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from dwctl_trio.domain.rejections import Rejection, RejectionReason
from dwctl_trio.domain.response import IMAGE_CODES, ErrorCode

_CODES: Final[Mapping[str, RejectionReason | ErrorCode]] = {
    **{code.value: code for code in IMAGE_CODES},
    "context_length_exceeded": RejectionReason.CONTEXT_LENGTH,
    "exceed_context_size_error": RejectionReason.CONTEXT_LENGTH,
    "string_above_max_length": RejectionReason.CONTEXT_LENGTH,
    "content_filter": RejectionReason.CONTENT_POLICY,
    "content_policy_violation": RejectionReason.CONTENT_POLICY,
    "moderation_blocked": RejectionReason.CONTENT_POLICY,
    "cyber_policy_violation": RejectionReason.CONTENT_POLICY,
    "ResponsibleAIPolicyViolation": RejectionReason.CONTENT_POLICY,
}
_WORDS: Final = (
    (
        RejectionReason.CONTEXT_LENGTH,
        re.compile(
            r"context (?:length|window|size)|prompt is too long|input is too long|too many (?:input )?tokens"
            r"|inputs?`? tokens .{0,60}must be <|maximum (?:number of tokens|input length)",
            re.IGNORECASE,
        ),
    ),
    (
        RejectionReason.IMAGES,
        re.compile(
            r"not a multimodal model|(?:not support|no|without) (?:image|vision|multimodal)"
            r"|image input is not supported",
            re.IGNORECASE,
        ),
    ),
    (
        RejectionReason.TOOLS,
        re.compile(r"not support (?:tools|tool use|function calling)|enable-auto-tool-choice", re.IGNORECASE),
    ),
    (
        ErrorCode.INVALID_IMAGE,
        re.compile(r"cannot identify image|(?:invalid|load|decode|process) (?:the )?image", re.IGNORECASE),
    ),
    (
        RejectionReason.CONTENT_POLICY,
        re.compile(r"content (?:management )?policy|usage polic(?:y|ies)|flagged", re.IGNORECASE),
    ),
)
_TEXT_MAX: Final = 4096
"""Characters of a message that are looked at: a provider may repeat the whole prompt in it."""
_PARAMS: Final = frozenset({
    "model", "messages", "prompt", "input", "suffix", "user", "metadata", "store", "temperature", "top_p", "seed",
    "presence_penalty", "frequency_penalty", "logit_bias", "stop", "n", "best_of", "echo", "max_tokens",
    "max_completion_tokens", "logprobs", "top_logprobs", "response_format", "verbosity", "reasoning_effort", "tools",
    "tool_choice", "parallel_tool_calls", "functions", "function_call", "modalities", "audio", "prediction",
    "web_search_options", "dimensions", "encoding_format",
})  # fmt: skip
"""Of the three APIs that an upstream has; those that we may have put in ourselves are left out."""
_NAME = re.compile(r"[a-z_]+")


def read_rejection(body: bytes) -> Rejection | None:
    """Why the request was refused, as an error's *body* says it; None when that is unknown."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return None
    return find_rejection(value.get("error") or value)


def find_rejection(error: object) -> Rejection | None:
    """The same, as an *error* says it: an object, as a rule, or only its message."""
    fields: Mapping[str, Any] = error if isinstance(error, dict) else {"message": error}
    inner = fields.get("innererror")
    codes = (fields.get("code"), fields.get("type"), inner.get("code") if isinstance(inner, dict) else None)
    for code in codes:
        reason = _CODES.get(code) if isinstance(code, str) else None
        if reason is not None:
            return Rejection(reason=reason)
    for text in (fields.get("message"), fields.get("detail")):
        if isinstance(text, str):
            for reason, words in _WORDS:
                if words.search(text, 0, _TEXT_MAX):
                    return Rejection(reason=reason)
    return _find_param(fields.get("param"))


def _find_param(param: object) -> Rejection | None:
    name = _NAME.match(param) if isinstance(param, str) else None
    if name is None or name[0] not in _PARAMS:
        return None
    return Rejection(reason=RejectionReason.PARAMETER, param=name[0])
