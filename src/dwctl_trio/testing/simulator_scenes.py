"""What a simulated model can do: its answers, endings, paces and faults, as values.

Rule 1: a scene answers one request; a script is the scenes of one model.
Rule 2: values out of range cannot be made (ValueError).

It does not know how a script is spelled (``simulator_script``) or what goes over the wire (``simulator_chat``).
"""

from enum import StrEnum
from typing import Any, Literal, TypeAlias

import attrs

_TOKENS_MAX = 100_000
_MILLISECONDS_MAX = 3_600_000
_BYTES_MAX = 64 * 1024 * 1024
_CALLS_MAX = 1000


def _number(maximum: int, *, minimum: int = 0, default: Any = attrs.NOTHING) -> Any:
    """A field whose value lies in ``[minimum, maximum]``, or is the None that is its default."""
    bounds = attrs.validators.and_(attrs.validators.ge(minimum), attrs.validators.le(maximum))
    validator = attrs.validators.optional(bounds) if default is None else bounds
    return attrs.field(default=default, validator=validator)


@attrs.frozen(kw_only=True)
class Text:
    """Words, as ``delta.content``."""

    tokens: int = _number(_TOKENS_MAX)


@attrs.frozen(kw_only=True)
class Refusal:
    """Words, as ``delta.refusal``."""

    tokens: int = _number(_TOKENS_MAX)


@attrs.frozen(kw_only=True)
class Reasoning:
    """Reasoning words, then content words."""

    reasoning_tokens: int = _number(_TOKENS_MAX)
    tokens: int = _number(_TOKENS_MAX)
    field: Literal["reasoning_content", "reasoning"] = "reasoning_content"
    """The name of the delta's member; providers disagree."""


@attrs.frozen(kw_only=True)
class ToolCalls:
    """Parallel tool calls in one turn."""

    calls: int = _number(_CALLS_MAX, minimum=1)
    shape: Literal["tools", "toolslate", "toolsnoid", "toolsbad", "toolsasked"] = "tools"
    """``toolslate``: ids in the last fragment; ``toolsnoid``: never; ``toolsbad``: arguments that are not JSON;
    ``toolsasked``: what the last user message asks for."""


@attrs.frozen(kw_only=True)
class Parrot:
    """The last user message, word by word."""


@attrs.frozen(kw_only=True)
class Inspect:
    """The request body that was received, as JSON text in one token."""


@attrs.frozen(kw_only=True)
class Big:
    """One token of many bytes."""

    size_bytes: int = _number(_BYTES_MAX)


@attrs.frozen(kw_only=True)
class HttpError:
    """An HTTP error before the stream, with an OpenAI-shaped body."""

    status: int = _number(599, minimum=400)
    retry_after_s: int | None = _number(86_400, default=None)


class Complaint(StrEnum):
    """What an upstream may dislike about a request."""

    TOO_LONG = "toolong"
    TOO_LONG_WORDS = "toolongwords"
    POLICY = "policy"
    IMAGE = "badimage"
    NO_IMAGES = "noimages"
    NO_TOOLS = "notools"
    PARAMETER = "badparam"


@attrs.frozen(kw_only=True)
class Refused:
    """An HTTP 400 before the stream that says what is wrong with the request."""

    complaint: Complaint


@attrs.frozen(kw_only=True)
class HtmlPage:
    """An HTML page where JSON or SSE was expected."""

    status: int = _number(599, minimum=200)


@attrs.frozen(kw_only=True)
class EmptyBody:
    """A body of 0 bytes."""

    status: int = _number(599, minimum=200)


@attrs.frozen(kw_only=True)
class Silence:
    """Nothing, until the client leaves."""

    head: bool
    """Whether the HTTP head is sent first."""


Answer: TypeAlias = (
    Text
    | Refusal
    | Reasoning
    | ToolCalls
    | Parrot
    | Inspect
    | Big
    | HttpError
    | Refused
    | HtmlPage
    | EmptyBody
    | Silence
)


class Ending(StrEnum):
    """What comes after the last token."""

    STOP = "stop"
    LENGTH = "length"
    FILTER = "filter"
    CUT = "cut"
    RESET = "reset"
    EOF = "eof"
    STALL = "stall"
    MIDSTREAM = "midstream"
    GARBAGE = "garbage"
    BAD_UTF8 = "badutf8"
    BINARY = "binary"


class Flag(StrEnum):
    """An option without a number."""

    GATE = "gate"
    JSON = "json"
    CRLF = "crlf"
    CR = "cr"
    COMMENTS = "comments"
    UNICODE = "unicode"
    NUL = "nul"
    ROLE = "role"
    NO_ROLE = "norole"
    NO_USAGE = "nousage"
    USAGE_INLINE = "usageinline"
    NO_DONE = "nodone"
    TWO_FINISHES = "twofinish"
    CITES = "cites"
    """Annotations after the text: one of each kind, a malformed one, and one a second time."""


@attrs.frozen(kw_only=True)
class Scene:
    """What one request is answered with."""

    answer: Answer
    ending: Ending = Ending.STOP
    interval_ms: int | None = _number(_MILLISECONDS_MAX, default=None)
    """None: all tokens in one write; 0: a write for each; else milliseconds before each token."""
    pause_after: int | None = _number(_TOKENS_MAX, default=None)
    """Tokens before the wait to be resumed; None: no wait."""
    split_seed: int | None = _number(999_999_999, default=None)
    """Seed of the places where the bytes are split into small writes; None: not split."""
    cut_byte: int | None = _number(_BYTES_MAX, default=None)
    """Bytes of the body after which the connection is cut; None: not cut."""
    delay_ms: int = _number(_MILLISECONDS_MAX, default=0)
    """Milliseconds before the HTTP head."""
    failures: int = _number(_CALLS_MAX, default=0)
    """So many first requests of the same model and key get a 500 instead."""
    flags: frozenset[Flag] = frozenset()


@attrs.frozen(kw_only=True)
class Script:
    """The scenes of a model: one for each model turn since the last user message."""

    scenes: tuple[Scene, ...]
