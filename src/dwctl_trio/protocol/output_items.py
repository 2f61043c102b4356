"""The items of an output: values to JSON, and back from our own rows and streams.

Rule 1: this is the only place that knows how an item looks on the wire; rows, events, requests and GET all use it.
Rule 2: the model's own id of a server's call is not on the wire; where it is missing, the item's id stands for it.

Source: OpenAI Responses API reference, "The response object", ``output``; OpenAI Python SDK, ``McpToolCallError``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, assert_never

from dwctl_trio.domain.items import (
    ContentPart,
    CustomToolCall,
    FunctionCall,
    ItemStatus,
    McpCall,
    Message,
    OutputItem,
    Reasoning,
    ReasoningPart,
    RefusalPart,
    TextPart,
)
from dwctl_trio.protocol.annotations import parse_annotations, render_annotations
from dwctl_trio.protocol.logprobs import parse_logprobs, render_logprobs

SERVER_LABEL: Final = "dwctl"
"""What the server's own tools go by where OpenAI has the label of an MCP server."""


def render_item(item: OutputItem) -> dict[str, object]:
    """One output item."""
    match item:
        case Message():
            content = [render_part(part) for part in item.content]
            return {
                "id": item.id, "type": "message", "status": item.status.value, "role": "assistant", "content": content,
            }  # fmt: skip
        case Reasoning():
            content = [render_part(part) for part in item.content]
            return {"id": item.id, "type": "reasoning", "status": item.status.value, "summary": [], "content": content}
        case FunctionCall():
            return {
                "id": item.id, "type": "function_call", "status": item.status.value, "call_id": item.call_id,
                "name": item.name, "arguments": item.arguments, **_namespace(item),
            }  # fmt: skip
        case CustomToolCall():
            return {
                "id": item.id, "type": "custom_tool_call", "status": item.status.value, "call_id": item.call_id,
                "name": item.name, "input": item.arguments, **_namespace(item),
            }  # fmt: skip
        case McpCall():
            return {
                "id": item.id, "type": "mcp_call", "status": item.status.value, "server_label": SERVER_LABEL,
                "name": item.name, "arguments": item.arguments, "output": item.output,
                "error": render_tool_error(item.error), "approval_request_id": None,
            }  # fmt: skip
        case _ as never:
            assert_never(never)


def _namespace(call: FunctionCall | CustomToolCall) -> dict[str, object]:
    return {} if call.namespace is None else {"namespace": call.namespace}


def render_part(part: ContentPart) -> dict[str, object]:
    """One part of a message or of reasoning."""
    match part:
        case TextPart(text=text, annotations=annotations, logprobs=logprobs):
            return {
                "type": "output_text", "text": text,
                "annotations": render_annotations(annotations), "logprobs": render_logprobs(logprobs),
            }  # fmt: skip
        case RefusalPart(refusal=refusal):
            return {"type": "refusal", "refusal": refusal}
        case ReasoningPart(text=text):
            return {"type": "reasoning_text", "text": text}
        case _ as never:
            assert_never(never)


def render_tool_error(message: str | None) -> dict[str, object] | None:
    """Why a server's tool gave no output, in the shape that MCP has for a tool that failed."""
    if message is None:
        return None
    return {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": message}]}


def parse_items(rendered: Sequence[Mapping[str, Any]]) -> tuple[OutputItem, ...]:
    """The items that ``render_item`` wrote."""
    return tuple(parse_item(item) for item in rendered)


def parse_item(rendered: Mapping[str, Any]) -> OutputItem:
    """The item that ``render_item`` wrote."""
    item_id, status = rendered["id"], ItemStatus(rendered["status"])
    match rendered["type"]:
        case "message":
            parts = tuple(parse_part(part) for part in rendered["content"])
            message_parts = tuple(part for part in parts if not isinstance(part, ReasoningPart))
            return Message(id=item_id, status=status, content=message_parts)
        case "reasoning":
            thoughts = tuple(ReasoningPart(text=part["text"]) for part in rendered["content"])
            return Reasoning(id=item_id, status=status, content=thoughts)
        case "function_call":
            return FunctionCall(
                id=item_id,
                status=status,
                call_id=rendered["call_id"],
                name=rendered["name"],
                arguments=rendered["arguments"],
                namespace=rendered.get("namespace"),
            )
        case "custom_tool_call":
            return CustomToolCall(
                id=item_id,
                status=status,
                call_id=rendered["call_id"],
                name=rendered["name"],
                arguments=rendered["input"],
                namespace=rendered.get("namespace"),
            )
        case "mcp_call":
            error = rendered["error"]
            return McpCall(
                id=item_id,
                status=status,
                call_id=rendered.get("call_id", item_id),
                name=rendered["name"],
                arguments=rendered["arguments"],
                output=rendered["output"],
                error=None if error is None else error["content"][0]["text"],
            )
        case kind:
            raise ValueError(f"no such item type: {kind}")


def parse_part(rendered: Mapping[str, Any]) -> ContentPart:
    """The part that ``render_part`` wrote."""
    match rendered["type"]:
        case "output_text":
            return TextPart(
                text=rendered["text"],
                annotations=parse_annotations(rendered.get("annotations")),
                logprobs=parse_logprobs(rendered.get("logprobs")),
            )
        case "refusal":
            return RefusalPart(refusal=rendered["refusal"])
        case "reasoning_text":
            return ReasoningPart(text=rendered["text"])
        case kind:
            raise ValueError(f"no such part type: {kind}")
