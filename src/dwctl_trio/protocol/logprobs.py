"""The log probabilities of a text's tokens: from the upstream's words to OpenAI's, and back from our own rows.

Rule 1: everywhere between reading and writing, a token's are one JSON text of one form, the one that a part has.
Rule 2: what is malformed is left out; it never costs the answer.
Rule 3: events leave out ``bytes``, as OpenAI's do; what is read back from them has those of the token's text.

Source: OpenAI Chat Completions API reference, "The chat completion chunk object", ``logprobs``; OpenAI Python SDK,
``ResponseOutputText.logprobs`` and ``ResponseTextDeltaEvent.logprobs``.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from dwctl_trio.protocol import json
from dwctl_trio.protocol.json import clean_text

_TOP_MAX: Final = 20
"""What a client may ask for at the most."""
_IMPOSSIBLE: Final = -9999.0
"""OpenAI's number where there is none: JSON has no infinity."""
_BYTE_MAX: Final = 255


class _Told(msgspec.Struct):
    """A token as an event tells it."""

    token: str
    logprob: float | None
    """None: an infinity that somebody has written as JSON."""


class _ToldToken(_Told):
    top_logprobs: list[_Told]


class _Alternative(_Told):
    bytes: list[int] | None = None


class _Token(_Alternative):
    top_logprobs: list[_Alternative] = []


_EVENT_DECODER = msgspec.json.Decoder(_ToldToken)


def read_logprobs(value: object) -> list[bytes]:
    """The log probabilities in the ``logprobs`` of an upstream's choice, those of the visible text."""
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, list):
        return []
    return [token for token in map(_read_token, content) if token is not None]


def parse_logprobs(rendered: Iterable[Any] | None) -> tuple[bytes, ...]:
    """Those that ``render_logprobs`` or ``render_event_logprobs`` wrote."""
    return tuple(_encode(msgspec.convert(token, _Token)) for token in rendered or ())


def render_logprobs(logprobs: Sequence[bytes]) -> list[msgspec.Raw]:
    """As a part shows them."""
    return [msgspec.Raw(token) for token in logprobs]


def render_event_logprobs(logprobs: Sequence[bytes]) -> list[_ToldToken]:
    """As the events of a text show them."""
    return [_EVENT_DECODER.decode(token) for token in logprobs]


def _read_token(value: object) -> bytes | None:
    if isinstance(value, dict) and value.get("top_logprobs") is None:
        value = {**value, "top_logprobs": []}
    try:
        token = msgspec.convert(value, _Token)
    except msgspec.ValidationError:
        return None
    return _encode(token)


def _encode(token: _Token) -> bytes:
    token.top_logprobs = token.top_logprobs[:_TOP_MAX]
    for alternative in (token, *token.top_logprobs):
        _normalise(alternative)
    return json.encode(token)


def _normalise(alternative: _Alternative) -> None:
    alternative.token = clean_text(alternative.token)
    value = alternative.logprob
    alternative.logprob = (
        value + 0.0 if value is not None and math.isfinite(value) else _IMPOSSIBLE
    )  # never a negative zero
    held = alternative.bytes
    if held is None or not all(0 <= byte <= _BYTE_MAX for byte in held):
        alternative.bytes = list(alternative.token.encode())
