"""One model turn: the fragments it arrives in and what it is in the end.

Rule: a fragment is small and final; nothing in it is revised by a later one.
"""

from enum import StrEnum
from typing import TypeAlias

import attrs

from dwctl_trio.domain.items import OutputItem
from dwctl_trio.domain.usage import Usage
from dwctl_trio.domain.values import hot_value


class FinishReason(StrEnum):
    """Why the model stopped."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    TOOL_CALLS = "tool_calls"


@hot_value
class TextFragment:
    """More of the visible text; never empty."""

    text: str
    logprobs: tuple[bytes, ...] = ()
    """Those of its tokens, as ``TextPart`` has them."""


@attrs.frozen
class AnnotationFragment:
    """Something that the visible text refers to."""

    annotation: bytes
    """As ``TextPart`` has it."""


@hot_value
class RefusalFragment:
    """More of a refusal; never empty."""

    text: str


@hot_value
class ReasoningFragment:
    """More of the reasoning; never empty."""

    text: str


@attrs.frozen(kw_only=True)
class ToolCallFragment:
    """More of one tool call's arguments; the first for a position also tells who is called."""

    position: int
    """The call's place in the turn, from 0 in order of appearance."""
    call_id: str
    """The same in every fragment of the call."""
    name: str
    """The same in every fragment of the call."""
    arguments: str
    """The next piece of JSON text; may be empty in the first fragment of a call."""


@attrs.frozen
class TurnFinished:
    """The model has stopped; only usage may follow."""

    reason: FinishReason


@attrs.frozen
class UsageReported:
    """The upstream's own count for the whole turn."""

    usage: Usage


ContentFragment: TypeAlias = TextFragment | AnnotationFragment | RefusalFragment | ReasoningFragment | ToolCallFragment
Fragment: TypeAlias = ContentFragment | TurnFinished | UsageReported


@attrs.frozen(kw_only=True)
class ModelTurn:
    """What one model call produced, whole or cut short."""

    items: tuple[OutputItem, ...]
    """In order of output; the last may be incomplete."""
    finish_reason: FinishReason | None
    """None when the turn was cut short by a failure or a cancellation."""
    usage: Usage | None
    """None when the upstream reported none."""
