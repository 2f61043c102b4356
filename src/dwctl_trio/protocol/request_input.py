"""The ``input`` of a request: the conversation so far, JSON to values, and back for the store.

Rule 1: a call and its output belong together: each output answers one earlier call, each call has one output.
Rule 2: a call id may be used again once it is answered, for some models count from 0 in every turn.
Rule 3: a call that was cut short may stay without an output, for nobody could have run it, and keeps no id from others.

Source: OpenAI Responses API reference, "Create a response", ``input``.
"""

from collections.abc import Sequence
from functools import partial
from typing import TypeAlias, TypeVar, assert_never

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.items import CustomToolCall, FunctionCall, ItemStatus, McpCall
from dwctl_trio.domain.request import (
    CustomToolCallOutput,
    FunctionCallOutput,
    InputItem,
    InputMessage,
    InputPart,
    InputReasoning,
    ItemReference,
    PartKind,
    Role,
)
from dwctl_trio.protocol import json
from dwctl_trio.protocol.fields import Fields, joined, shown_text, wrong_type
from dwctl_trio.protocol.output_items import render_item
from dwctl_trio.protocol.parameters import INPUT_ITEMS, Support, accepted, plain_note
from dwctl_trio.protocol.request_content import MESSAGE_PARTS, OUTPUT_PARTS, parse_parts, render_parts

_ClientCall: TypeAlias = FunctionCall | CustomToolCall
_CallOutput: TypeAlias = FunctionCallOutput | CustomToolCallOutput
_Call = TypeVar("_Call", FunctionCall, CustomToolCall)
_Output = TypeVar("_Output", FunctionCallOutput, CustomToolCallOutput)

STATUSES = ("in_progress", "completed", "incomplete")
PHASES = ("commentary", "final_answer")
ITEM_ID_CHARACTERS_MAX = 256
"""An id is a parameter of URLs as well. OpenAI's have 64 at the most, those of some servers in front of it more."""
MCP_STATUSES = ("in_progress", "calling", "completed", "incomplete", "failed")
_KNOWN_OF_CALLS = ("type", "id", "status", "call_id", "name", "namespace", "caller")
_UNSUPPORTED_OF_CALLS = ("async",)
"""Accepted only where they say nothing."""


def parse_input(fields: Fields, *, may_be_empty: bool = False) -> tuple[InputItem, ...]:
    """The ``input`` of a request body, whose calls and outputs are not yet matched: see ``check_calls``.

    Args:
        fields: The body.
        may_be_empty: Whether there need not be any, for the conversation has begun before.

    Raises:
        InvalidRequest: With the path of what is wrong in it.
    """
    value = fields.raw("input")
    if value is None and may_be_empty:
        return ()
    if value is None:
        raise InvalidRequest("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    if isinstance(value, str):
        return (InputMessage(role=Role.USER, content=(InputPart(kind=PartKind.INPUT_TEXT, text=value),)),)
    if not isinstance(value, list):
        raise wrong_type("input", "a string or an array", value)
    parsed = [_parse_item(Fields(item, f"input[{index}]")) for index, item in enumerate(value)]
    items = tuple(item for item in parsed if item is not None)
    if not items and not may_be_empty:
        raise InvalidRequest(
            "Invalid 'input': expected at least one message, but got none.", param="input", code="empty_array"
        )
    return items


def check_calls(items: Sequence[InputItem]) -> None:
    """Match the client's calls and outputs in *items*, the whole conversation, oldest first.

    Every reference among them has been resolved: what is referred to may be a call or an output.

    Raises:
        InvalidRequest: An output without its call, a call without its output, or two open calls of the same id.
    """
    waiting: dict[str, _ClientCall] = {}
    for item in items:
        match item:
            case FunctionCall() | CustomToolCall():
                if item.call_id in waiting and waiting[item.call_id].status is not ItemStatus.INCOMPLETE:
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
    """One input item; None for one that says nothing here."""
    kind = _type_of(fields)
    _check_type(kind, fields.path("type"))
    match kind:
        case "reasoning":
            return _parse_reasoning(fields)
        case "item_reference":
            fields.refuse_unknown(("type", "id"))
            return ItemReference(id=fields.filled("id", length_max=ITEM_ID_CHARACTERS_MAX))
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
        case "mcp_list_tools":
            return None
        case _:
            raise AssertionError(f"no parser for the item type {kind}")


def _check_type(kind: str, path: str) -> None:
    """Raise unless the table has *kind*, and does not refuse it."""
    entry = INPUT_ITEMS.get(kind)
    if entry is None or entry.support is Support.REFUSED:
        why = "" if entry is None else f" {plain_note(entry)}"
        raise InvalidRequest(
            f"Unsupported '{path}': supported values are {joined(accepted(INPUT_ITEMS))}.{why}",
            param=path,
            code="unsupported_value",
        )


def _type_of(fields: Fields) -> str:
    """The type of an item; without one it is a message, or a reference if it has nothing but an id."""
    kind = fields.text("type")
    if kind is not None:
        return kind
    is_reference = {name for name in fields.names() if fields.raw(name) is not None} == {"id"}
    return "item_reference" if is_reference else "message"


def _item_id(fields: Fields) -> str | None:
    """The id of an item that needs none; an empty one is none."""
    return fields.text("id", length_max=ITEM_ID_CHARACTERS_MAX) or None


def _parse_reasoning(fields: Fields) -> InputReasoning:
    fields.refuse_unknown(("type", "id", "summary", "content", "encrypted_content", "status"))
    status = fields.choice("status", STATUSES)
    return InputReasoning(
        id=_item_id(fields),
        summary=_parse_thoughts(fields, "summary", "summary_text") or (),
        content=_parse_thoughts(fields, "content", "reasoning_text"),
        encrypted_content=fields.text("encrypted_content"),
        status=None if status is None else ItemStatus(status),
    )


def _parse_thoughts(fields: Fields, name: str, kind: str) -> tuple[str, ...] | None:
    """The texts of a list of parts that are all of *kind*."""
    entries = fields.items(name)
    if entries is None:
        return None
    parts = [Fields(entry, f"{fields.path(name)}[{index}]") for index, entry in enumerate(entries)]
    for part in parts:
        part.require("type", partial(part.choice, allowed=(kind,)))
        part.refuse_unknown(("type", "text"))
    return tuple(part.require("text", part.text) for part in parts)


def _parse_message(fields: Fields) -> InputMessage:
    fields.refuse_unknown(("type", "role", "content", "id", "status", "phase"))
    item_id = _item_id(fields)
    fields.choice("status", STATUSES)
    fields.choice("phase", PHASES)
    role = Role(fields.require("role", lambda name: fields.choice(name, [role.value for role in Role])))
    content, path = fields.require("content", fields.raw), fields.path("content")
    own_kind = PartKind.OUTPUT_TEXT if role is Role.ASSISTANT else PartKind.INPUT_TEXT
    if isinstance(content, str):
        return InputMessage(role=role, content=(InputPart(kind=own_kind, text=content),), id=item_id)
    if not isinstance(content, list):
        raise wrong_type(path, "a string or an array", content)
    return InputMessage(role=role, content=parse_parts(content, path, MESSAGE_PARTS), id=item_id)


def _check_caller(fields: Fields) -> None:
    """Raise for a call that was not made by the model itself, which is all that a chat completion knows."""
    fields.refuse_set(_UNSUPPORTED_OF_CALLS)
    caller = fields.object("caller")
    if caller is not None:
        caller.require("type", lambda name: caller.choice(name, ("direct",)))
        caller.refuse_unknown(("type",))


def _parse_call(fields: Fields, make: type[_Call], text_name: str) -> _Call:
    fields.refuse_unknown((*_KNOWN_OF_CALLS, text_name, *_UNSUPPORTED_OF_CALLS))
    _check_caller(fields)
    return make(
        id=_item_id(fields) or "",
        status=ItemStatus(fields.choice("status", STATUSES) or "completed"),
        call_id=fields.filled("call_id"),
        name=fields.filled("name"),
        arguments=fields.require(text_name, fields.text),
        namespace=None if fields.raw("namespace") is None else fields.filled("namespace"),
    )


def _parse_output(fields: Fields, make: type[_Output]) -> _Output:
    fields.refuse_unknown((*_KNOWN_OF_CALLS, "output", *_UNSUPPORTED_OF_CALLS))
    _check_caller(fields)
    for name in ("name", "namespace"):  # which call it answers, its id alone says
        fields.text(name)
    fields.choice("status", STATUSES)
    call_id = fields.filled("call_id")
    output, path = fields.require("output", fields.raw), fields.path("output")
    item_id = _item_id(fields)
    if isinstance(output, list):
        return make(call_id=call_id, output=parse_parts(output, path, OUTPUT_PARTS), id=item_id)
    if not isinstance(output, str):
        raise wrong_type(path, "a string or an array", output)
    return make(call_id=call_id, output=output, id=item_id)


def _parse_mcp_call(fields: Fields) -> McpCall:
    """A call that a server ran, this one or another; one that was never ended counts as broken off."""
    known = ("type", "id", "status", "server_label", "name", "arguments", "output", "error", "approval_request_id")
    fields.refuse_unknown(known)
    item_id = fields.filled("id", length_max=ITEM_ID_CHARACTERS_MAX)
    fields.require("server_label", fields.text)
    fields.text("approval_request_id")
    output, error = fields.text("output"), _parse_error(fields)
    said = fields.choice("status", MCP_STATUSES)
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
        name=fields.filled("name"),
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


def render_input(items: Sequence[InputItem]) -> list[dict[str, object]]:
    """*items* in the client's vocabulary; ``parse_input`` gives them back."""
    return [_render_item(item) for item in items]


def _render_item(item: InputItem) -> dict[str, object]:
    """*item* with the id that the client sent, and with none if it sent none."""
    rendered = _render_fields(item)
    return {"id": item.id} | rendered if item.id else rendered


def _render_fields(item: InputItem) -> dict[str, object]:
    match item:
        case InputMessage():
            return {"type": "message", "role": item.role.value, "content": render_parts(item.content)}
        case FunctionCallOutput() | CustomToolCallOutput():
            kind = "function_call_output" if isinstance(item, FunctionCallOutput) else "custom_tool_call_output"
            output = item.output if isinstance(item.output, str) else render_parts(item.output)
            return {"type": kind, "call_id": item.call_id, "output": output}
        case FunctionCall() | CustomToolCall() | McpCall():
            return {name: value for name, value in render_item(item).items() if name != "id"}
        case InputReasoning():
            fields: dict[str, object] = {
                "type": "reasoning",
                "summary": [{"type": "summary_text", "text": text} for text in item.summary],
            }
            if item.content is not None:
                fields["content"] = [{"type": "reasoning_text", "text": text} for text in item.content]
            if item.encrypted_content is not None:
                fields["encrypted_content"] = item.encrypted_content
            if item.status is not None:
                fields["status"] = item.status.value
            return fields
        case ItemReference():
            return {"type": "item_reference"}
        case _ as never:
            assert_never(never)
