"""A model call as a chat-completions request body.

Rule 1: the upstream gets what shapes the answer, and nothing that only the client cares about (metadata, cache hints).
Rule 2: what one provider does differently is a field of ``Quirks``, never a branch on a provider's name.
Rule 3: we always ask for a stream, whatever our own client asked for: one way to read answers.

Source: OpenAI Chat Completions API reference, "Create chat completion".
"""

from collections.abc import Iterable, Sequence
from typing import Any, assert_never

import attrs
import msgspec

from dwctl_trio.domain.items import FunctionCall, Message, RefusalPart
from dwctl_trio.domain.request import (
    InputMessage,
    JsonObject,
    JsonSchema,
    PlainText,
    ResponseRequest,
    Role,
    TextFormat,
)
from dwctl_trio.domain.turn import ModelTurn
from dwctl_trio.protocol import json


@attrs.frozen(kw_only=True)
class Quirks:
    """How an upstream differs from the API that it imitates."""

    drop: frozenset[str] = frozenset()
    """Top-level fields, by our names, that the upstream refuses and we therefore leave out."""
    rename: tuple[tuple[str, str], ...] = ()
    """Pairs of our name and theirs for a top-level field, as in ``("max_tokens", "max_completion_tokens")``."""
    developer_role: bool = True
    """False: the upstream does not know the role ``developer``; it gets ``system``."""
    stream_usage: bool = True
    """False: the upstream refuses ``stream_options``; usage is then what it volunteers."""


DEFAULT_QUIRKS = Quirks()
"""An upstream that differs in nothing."""


def render_chat_request(
    request: ResponseRequest, turns: Sequence[ModelTurn], *, upstream_model: str, quirks: Quirks
) -> bytes:
    """The JSON body of the next model call.

    Args:
        request: What the client asked for.
        turns: The turns that the model has already had in this response, oldest first.
        upstream_model: The model's name at the upstream.
        quirks: Applied last: first dropped, then renamed.

    Returns:
        UTF-8 JSON on one line.
    """
    messages = [*_input_messages(request, quirks), *_turn_messages(turns)]
    body: dict[str, Any] = {"model": upstream_model, "messages": messages, "stream": True}
    if quirks.stream_usage:
        body["stream_options"] = {"include_usage": True}
    options = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        # The older name: every self-hosted engine knows it, not all know max_completion_tokens.
        "max_tokens": request.max_output_tokens,
        "response_format": _response_format(request.text_format),
        "verbosity": request.verbosity,
        "reasoning_effort": request.reasoning.effort if request.reasoning else None,
        "user": request.user,
    }
    body |= {name: value for name, value in options.items() if value is not None}
    return json.encode(_apply_quirks(body, quirks))


def _apply_quirks(body: dict[str, Any], quirks: Quirks) -> dict[str, Any]:
    if not quirks.drop and not quirks.rename:
        return body
    names = dict(quirks.rename)
    return {names.get(name, name): value for name, value in body.items() if name not in quirks.drop}


def _input_messages(request: ResponseRequest, quirks: Quirks) -> Iterable[dict[str, Any]]:
    if request.instructions is not None:
        yield {"role": "system", "content": request.instructions}
    for message in request.input:
        is_renamed = message.role is Role.DEVELOPER and not quirks.developer_role
        role = Role.SYSTEM if is_renamed else message.role
        yield {"role": role.value, "content": _content(message)}


def _content(message: InputMessage) -> str | list[dict[str, str]]:
    """The message's parts in order; an earlier refusal is text too, which every engine's template understands."""
    if not message.content:
        return ""
    if len(message.content) == 1:
        return message.content[0].text
    return [{"type": "text", "text": part.text} for part in message.content]


def _turn_messages(turns: Sequence[ModelTurn]) -> Iterable[dict[str, Any]]:
    """One assistant message a turn; reasoning is not given back, as chat completions has no place for it."""
    for turn in turns:
        text = "".join(
            part.refusal if isinstance(part, RefusalPart) else part.text
            for item in turn.items
            if isinstance(item, Message)
            for part in item.content
        )
        calls = [_tool_call(item) for item in turn.items if isinstance(item, FunctionCall)]
        if calls:
            yield {"role": "assistant", "content": text or None, "tool_calls": calls}
        elif text:
            yield {"role": "assistant", "content": text}


def _tool_call(call: FunctionCall) -> dict[str, Any]:
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _response_format(text_format: TextFormat) -> dict[str, Any] | None:
    match text_format:
        case PlainText():
            return None
        case JsonObject():
            return {"type": "json_object"}
        case JsonSchema():
            schema: dict[str, Any] = {"name": text_format.name, "schema": msgspec.Raw(text_format.schema)}
            if text_format.description is not None:
                schema["description"] = text_format.description
            if text_format.strict is not None:
                schema["strict"] = text_format.strict
            return {"type": "json_schema", "json_schema": schema}
        case _ as never:
            assert_never(never)
