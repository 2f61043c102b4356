"""The response object, and the turns that it is made of as the rows keep them.

Rule: every field that OpenAI documents for a response is always present, null where there is nothing to say.

Source: OpenAI Responses API reference, "The response object"; Open Responses specification, required fields.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from dwctl_trio.domain import ids
from dwctl_trio.domain.items import McpCall, OutputItem
from dwctl_trio.domain.request import ServiceTier
from dwctl_trio.domain.response import Response, ResponseError
from dwctl_trio.domain.turn import FinishReason, ModelTurn
from dwctl_trio.domain.usage import Usage
from dwctl_trio.protocol import json
from dwctl_trio.protocol.offered_tools import echo_tools, render_choice
from dwctl_trio.protocol.output_items import parse_items, render_item
from dwctl_trio.protocol.request_options import render_cache_options, render_reasoning, render_text

LOGPROBS_APART: Final = "token_logprobs"
"""Of a stored turn; ``turn_size.sql`` and ``turn_rows.sql`` cut it off."""


_PLACE: Final = msgspec.Raw(b"\x00")
"""What no JSON holds: stands for a value that is put there later."""


def render_response(response: Response) -> dict[str, object]:
    """The response object as clients see it."""
    return _render_echo(response) | _render_progress(response)


def _render_progress(response: Response) -> dict[str, object]:
    """What changes from one moment of a response to another, in the order of the whole."""
    reason = response.incomplete_reason
    return {
        "completed_at": response.completed_at,
        "status": response.status.value,
        "error": render_error(response.error),
        "incomplete_details": None if reason is None else {"reason": reason.value},
        "output": [render_item(item) for item in response.output],
        "usage": render_usage(response.usage),
    }


def _render_echo(response: Response) -> dict[str, object]:
    """All fields, with a place for each that changes."""
    request = response.request
    return {
        "id": ids.response_id_text(response.id),
        "object": "response",
        "created_at": response.created_at,
        "completed_at": _PLACE,
        "status": _PLACE,
        "background": request.background,
        "error": _PLACE,
        "incomplete_details": _PLACE,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "model": request.model,
        "output": _PLACE,
        "parallel_tool_calls": request.parallel_tool_calls,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "prompt_cache_options": render_cache_options(request.prompt_cache_options),
        "prompt_cache_retention": request.prompt_cache_retention,
        "reasoning": render_reasoning(request.reasoning) or {"effort": None, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "flex" if request.service_tier is ServiceTier.FLEX else "default",
        "store": request.store,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "text": render_text(request),
        "tool_choice": render_choice(request.tool_choice, response.tools or request.tools or ()),
        "tools": echo_tools(response.tools),
        "top_logprobs": request.top_logprobs or 0,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "presence_penalty": request.presence_penalty or 0.0,
        "frequency_penalty": request.frequency_penalty or 0.0,
        "truncation": request.truncation,
        "usage": _PLACE,
        "user": request.user,
        "metadata": dict(request.metadata),
        # Nobody can ask for these here, and the request that tries is refused.
        "conversation": None,
        "moderation": None,
        "prompt": None,
    }


def encode_response(response: Response) -> bytes:
    """The response as JSON text, as GET answers."""
    return json.encode(render_response(response))


class ResponseEncoder:
    """Encodes the moments of one response: each of them once, and what they have in common once."""

    def __init__(self) -> None:
        self._encoded_of: Response | None = None
        self._encoded = b""
        self._template = b""
        """The response but for what changes."""

    def encode(self, response: Response) -> bytes:
        """As ``encode_response``."""
        last = self._encoded_of
        if response is not last:
            if last is None or not _is_same(response, last):
                echo = json.encode(_render_echo(response))
                self._template = echo.replace(b"%", b"%%").replace(_PLACE, b"%b")
            values = _render_progress(response).values()
            self._encoded = self._template % tuple(json.encode(value) for value in values)
            self._encoded_of = response
        return self._encoded


def _is_same(one: Response, other: Response) -> bool:
    """Whether these are two moments of the same response."""
    is_of_request = one.request is other.request and one.tools is other.tools
    return is_of_request and (one.id, one.created_at) == (other.id, other.created_at)


def render_usage(usage: Usage | None) -> dict[str, object] | None:
    """Token counts; details that the upstream did not give are 0, for the SDK's types demand numbers there."""
    if usage is None:
        return None
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens or 0,
            "cache_write_tokens": usage.cache_write_tokens or 0,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.total_tokens,
    }


def render_error(error: ResponseError | None) -> dict[str, object] | None:
    """Why a response failed, as clients see it."""
    return None if error is None else {"code": error.code.value, "message": error.message}


def render_turn(turn: ModelTurn) -> dict[str, object]:
    """A model turn as the step's row keeps it: with the model's ids of the server's calls, too.

    Log probabilities come last, and apart, so that who needs none can cut them off unread.
    """
    items = [_render_stored_item(item) for item in turn.items]
    return {
        "items": items,
        "finish_reason": None if turn.finish_reason is None else turn.finish_reason.value,
        "usage": None if turn.usage is None else {
            "input_tokens": turn.usage.input_tokens,
            "output_tokens": turn.usage.output_tokens,
            "cached_tokens": turn.usage.cached_tokens,
            "reasoning_tokens": turn.usage.reasoning_tokens,
            "cache_write_tokens": turn.usage.cache_write_tokens,
        },
        **_set_logprobs_apart(items),
    }  # fmt: skip


def _set_logprobs_apart(items: Sequence[dict[str, Any]]) -> dict[str, object]:
    """Take the log probabilities out of *items*: the places of each item and part that had some, and these."""
    apart = []
    for place, item in enumerate(items):
        for at, part in enumerate(item.get("content", ())):
            if part.get("logprobs"):
                apart.append((place, at, part["logprobs"]))
                part["logprobs"] = []
    return {LOGPROBS_APART: apart} if apart else {}


def _render_stored_item(item: OutputItem) -> dict[str, Any]:
    rendered = render_item(item)
    return rendered | {"call_id": item.call_id} if isinstance(item, McpCall) else rendered


def parse_turn(stored: Mapping[str, Any]) -> ModelTurn:
    """The turn that ``render_turn`` wrote; our own rows are trusted. *stored* is used up."""
    for place, at, logprobs in stored.get(LOGPROBS_APART, ()):
        stored["items"][place]["content"][at]["logprobs"] = logprobs
    reason, usage = stored["finish_reason"], stored["usage"]
    return ModelTurn(
        items=parse_items(stored["items"]),
        finish_reason=None if reason is None else FinishReason(reason),
        usage=None if usage is None else Usage(**usage),
    )
