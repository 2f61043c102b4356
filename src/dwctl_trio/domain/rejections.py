"""Why an upstream refused a request, as far as its client can do something about it.

Rule: nothing of the upstream's own words is in it.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import attrs

from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.response import ErrorCode


class RejectionReason(StrEnum):
    """What an upstream says is wrong with the client's own request."""

    CONTEXT_LENGTH = "context_length"
    """Input and answer do not fit into what the model can see at once."""
    CONTENT_POLICY = "content_policy"
    """Its rules forbid the input."""
    IMAGES = "images"
    """The model cannot see."""
    TOOLS = "tools"
    """The model, or how it is served, has no tools."""
    PARAMETER = "parameter"
    """It does not know a parameter, or does not take its value."""


@attrs.frozen(kw_only=True)
class Rejection:
    """Why an upstream refused a request, as far as its client can do something about it."""

    reason: RejectionReason | ErrorCode
    """A code where OpenAI has one of the same meaning: what is wrong with an image."""
    param: str | None = None
    """The upstream's name of the parameter that it is about."""


_INPUTS: Final[Mapping[Surface, str]] = {
    Surface.RESPONSES: "input",
    Surface.CHAT: "messages",
    Surface.COMPLETIONS: "prompt",
    Surface.EMBEDDINGS: "input",
}
OUTPUT_LIMITS: Final = frozenset({"max_tokens", "max_completion_tokens"})
"""What an upstream calls the most tokens that it may answer with."""
_OF_A_RESPONSE: Final[Mapping[str, str]] = {
    **{name: name for name in ("model", "temperature", "top_p", "presence_penalty", "frequency_penalty")},
    **{name: name for name in ("tools", "tool_choice", "parallel_tool_calls", "top_logprobs", "user")},
    **dict.fromkeys(OUTPUT_LIMITS, "max_output_tokens"),
    "messages": _INPUTS[Surface.RESPONSES],
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "include",
}
"""What we send for a response, and what of its client's request that comes from."""


def input_param(surface: Surface) -> str:
    """The parameter that holds what the model is to read."""
    return _INPUTS[surface]


def client_param(name: str, surface: Surface) -> str | None:
    """What the client called the parameter *name* of its upstream's; None where it comes from none of the client's.

    Only a response is translated: all other bodies reach the upstream with the names that they came with.
    """
    return _OF_A_RESPONSE.get(name) if surface is Surface.RESPONSES else name
