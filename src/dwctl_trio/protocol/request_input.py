"""The ``input`` of a request: the conversation so far, JSON to values, and back for the store.

Rule 1: a call and its output belong together: each output answers one earlier call, each call has one output.
Rule 2: a call id may be used again once it is answered, for some models count from 0 in every turn.
Rule 3: a call that was cut short may stay without an output: nobody could have run it.

Source: OpenAI Responses API reference, "Create a response", ``input``.
"""

from collections.abc import Sequence
from typing import TypeAlias, TypeVar

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.items import CustomToolCall, FunctionCall, ItemStatus, McpCall
from dwctl_trio.domain.request import (
    CustomToolCallOutput,
    FunctionCallOutput,
    InputItem,
    InputMessage,
    InputPart,
    PartKind,
    Role,
)
from dwctl_trio.protocol import json
from dwctl_trio.protocol.fields import Fields, joined, shown_text, wrong_type
from dwctl_trio.protocol.output_items import render_item

ITEM_TYPES = (
    *("message", "reasoning", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"),
    "mcp_call",
)

_ClientCall: TypeAlias = FunctionCall | CustomToolCall
_CallOutput: TypeAlias = FunctionCallOutput | CustomToolCallOutput
_Call = TypeVar("_Call", FunctionCall, CustomToolCall)
_Output = TypeVar("_Output", FunctionCallOutput, CustomToolCallOutput)

_STATUSES = ("in_progress", "completed", "incomplete")
_PHASES = ("commentary", "final_answer")
_MCP_STATUSES = ("in_progress", "calling", "completed", "incomplete", "failed")
_UNSUPPORTED_OF_CALLS = ("namespace", "caller", "async")
"""Accepted only where they say nothing."""


def parse_input(fields: Fields) -> tuple[InputItem, ...]:
    """The ``input`` of a request body, whose calls and outputs are not yet matched: see ``check_calls``.

    Raises:
        InvalidRequest: With the path of what is wrong in it.
    """
    value = fields.raw("input")
    if value is None:
        raise InvalidRequest("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    if isinstance(value, str):
        return (InputMessage(role=Role.USER, content=(InputPart(kind=PartKind.INPUT_TEXT, text=value),)),)
    if not isinstance(value, list):
        raise wrong_type("input", "a string or an array", value)
    parsed = [_parse_item(Fields(item, f"input[{index}]")) for index, item in enumerate(value)]
    items = tuple(item for item in parsed if item is not None)
    if not items:
        raise InvalidRequest(
            "Invalid 'input': expected at least one message, but got none.", param="input", code="empty_array"
        )
    return items


def check_calls(items: Sequence[InputItem]) -> None:
    """Match the client's calls and outputs in *items*, the whole conversation, oldest first.

    Raises:
        InvalidRequest: An output without its call, a call without its output, or two open calls of the same id.
    """
    waiting: dict[str, _ClientCall] = {}
    for item in items:
        match item:
            case FunctionCall() | CustomToolCall():
                if item.call_id in waiting:
                    raise _mismatch(f"Duplicate call_id {shown_text(item.call_id)}: the earlier call has no output yet")
                waiting[item.call_id] = item
            case FunctionCallOutput() | CustomToolCallOutput():
                call = waiting.get(item.call_id)
                if call is None or _words(call) != _words(item):
                    shown = shown_text(item.call_id)
                    raise _mismatch(f"No tool call found for {_words(item)} output with call_id {shown}")
                del waiting[item.call_id]
            case _:
                pass
    for call in waiting.values():
        if call.status is not ItemStatus.INCOMPLETE:
            raise _mismatch(f"No tool output found for {_words(call)} {shown_text(call.call_id)}")


def _words(item: _ClientCall | _CallOutput) -> str:
    return "function call" if isinstance(item, FunctionCall | FunctionCallOutput) else "custom tool call"


def _mismatch(message: str) -> InvalidRequest:
    return InvalidRequest(f"{message}.", param="input")


def _parse_item(fields: Fields) -> InputItem | None:
    """One input item; None for reasoning, which a chat-completions upstream has no place for."""
    match "message" if fields.raw("type") is None else fields.text("type"):
        case "reasoning":
            return None
        case "message":
            return _parse_message(fields)
        case "function_call":
            return _parse_call(fields, FunctionCall, "arguments")
        case "custom_tool_call":
            return _parse_call(fields, CustomToolCall, "input")
        case "function_call_output":
            return _parse_output(fields, FunctionCallOutput)
        case "custom_tool_call_output":
            return _parse_output(fields, CustomToolCallOutput)
        case "mcp_call":
            return _parse_mcp_call(fields)
        case kind:
            path = fields.path("type")
            advice = " Send the item itself instead of a reference to it." if kind == "item_reference" else ""
            raise InvalidRequest(
                f"Unsupported '{path}': supported values are {joined(ITEM_TYPES)}.{advice}",
                param=path,
                code="unsupported_value",
            )


def _parse_message(fields: Fields) -> InputMessage:
    fields.refuse_unknown(("type", "role", "content", "id", "status", "phase"))
    fields.text("id")
    fields.choice("status", _STATUSES)
    fields.choice("phase", _PHASES)
    role = Role(fields.require("role", lambda name: fields.choice(name, [role.value for role in Role])))
    content, path = fields.require("content", fields.raw), fields.path("content")
    own_kind = PartKind.OUTPUT_TEXT if role is Role.ASSISTANT else PartKind.INPUT_TEXT
    if isinstance(content, str):
        return InputMessage(role=role, content=(InputPart(kind=own_kind, text=content),))
    if not isinstance(content, list):
        raise wrong_type(path, "a string or an array", content)
    parts = [
        _parse_part(Fields(part, f"{path}[{index}]"), [kind.value for kind in PartKind])
        for index, part in enumerate(content)
    ]
    return InputMessage(role=role, content=tuple(parts))


def _parse_part(fields: Fields, supported: Sequence[str]) -> InputPart:
    kind = fields.require("type", fields.text)
    if kind not in supported:
        path = fields.path("type")
        raise InvalidRequest(
            f"Unsupported '{path}': supported values are {joined(supported)}.", param=path, code="unsupported_value"
        )
    fields.refuse_unknown(("type", "text", "refusal", "annotations", "logprobs", "prompt_cache_breakpoint"))
    fields.object("prompt_cache_breakpoint")
    for listed in ("annotations", "logprobs"):
        for index, entry in enumerate(fields.items(listed) or ()):
            Fields(entry, f"{fields.path(listed)}[{index}]")
    name = "refusal" if kind == PartKind.REFUSAL else "text"
    return InputPart(kind=PartKind(kind), text=fields.require(name, fields.text))


def _parse_call(fields: Fields, make: type[_Call], text_name: str) -> _Call:
    fields.refuse_unknown(("type", "id", "status", "call_id", "name", text_name, *_UNSUPPORTED_OF_CALLS))
    fields.refuse_set(_UNSUPPORTED_OF_CALLS)
    return make(
        id=fields.text("id") or "",
        status=ItemStatus(fields.choice("status", _STATUSES) or "completed"),
        call_id=_require_filled(fields, "call_id"),
        name=_require_filled(fields, "name"),
        arguments=fields.require(text_name, fields.text),
    )


def _parse_output(fields: Fields, make: type[_Output]) -> _Output:
    fields.refuse_unknown(("type", "id", "status", "call_id", "name", "output", *_UNSUPPORTED_OF_CALLS))
    fields.refuse_set(_UNSUPPORTED_OF_CALLS)
    for name in ("id", "name"):
        fields.text(name)
    fields.choice("status", _STATUSES)
    call_id = _require_filled(fields, "call_id")
    output, path = fields.require("output", fields.raw), fields.path("output")
    if isinstance(output, list):
        parts = [_parse_part(Fields(part, f"{path}[{at}]"), ("input_text",)) for at, part in enumerate(output)]
        output = "\n".join(part.text for part in parts)
    if not isinstance(output, str):
        raise wrong_type(path, "a string or an array", output)
    return make(call_id=call_id, output=output)


def _parse_mcp_call(fields: Fields) -> McpCall:
    """A call that a server ran, this one or another; one that was never ended counts as broken off."""
    known = ("type", "id", "status", "server_label", "name", "arguments", "output", "error", "approval_request_id")
    fields.refuse_unknown(known)
    item_id = _require_filled(fields, "id")
    fields.require("server_label", fields.text)
    fields.text("approval_request_id")
    output, error = fields.text("output"), _parse_error(fields)
    said = fields.choice("status", _MCP_STATUSES)
    if said == "failed" or (said is None and error is not None):
        status, output, error = ItemStatus.FAILED, None, error or ""
    elif said == "completed" or (said is None and output is not None):
        status, output, error = ItemStatus.COMPLETED, output or "", None
    else:
        status, output, error = ItemStatus.INCOMPLETE, None, None
    return McpCall(
        id=item_id,
        status=status,
        call_id=item_id,
        name=_require_filled(fields, "name"),
        arguments=fields.require("arguments", fields.text),
        output=output,
        error=error,
    )


def _parse_error(fields: Fields) -> str | None:
    """What an ``mcp_call`` says of its failure: a text in older versions of the API, an object in newer ones."""
    value = fields.raw("error")
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise wrong_type(fields.path("error"), "a string or an object", value)
    content = value.get("content", value.get("message"))
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    read = [text for text in texts if isinstance(text, str)]
    return "\n".join(read) if len(read) == len(texts) else json.encode(value).decode()


def _require_filled(fields: Fields, name: str) -> str:
    text = fields.require(name, fields.text)
    if not text:
        path = fields.path(name)
        raise InvalidRequest(f"Invalid '{path}': it must not be empty.", param=path)
    return text


def render_input(items: Sequence[InputItem]) -> list[dict[str, object]]:
    """*items* in the client's vocabulary; ``parse_input`` gives them back."""
    return [_render_item(item) for item in items]


def _render_item(item: InputItem) -> dict[str, object]:
    match item:
        case InputMessage():
            parts = [
                {"type": part.kind.value, "refusal" if part.kind is PartKind.REFUSAL else "text": part.text}
                for part in item.content
            ]
            return {"type": "message", "role": item.role.value, "content": parts}
        case FunctionCallOutput():
            return {"type": "function_call_output", "call_id": item.call_id, "output": item.output}
        case CustomToolCallOutput():
            return {"type": "custom_tool_call_output", "call_id": item.call_id, "output": item.output}
        case FunctionCall() | CustomToolCall() | McpCall():
            rendered = render_item(item)
            return rendered if item.id else {name: value for name, value in rendered.items() if name != "id"}
