"""Input items and responses as lists show them.

Source: OpenAI Responses API reference, "List input items"; OpenAI Python SDK, ``ResponseItem``.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec

from dwctl_trio.domain import ids
from dwctl_trio.domain.request import CustomToolCallOutput, FunctionCallOutput, InputItem, InputMessage, Role
from dwctl_trio.protocol import json
from dwctl_trio.protocol.request_input import render_input

LIMIT_DEFAULT, LIMIT_MAX = 20, 100
"""OpenAI's."""
ORDERS = ("asc", "desc")


def encode_item_list(items: Sequence[InputItem], *, has_more: bool) -> bytes:
    """A page of input items, each of which has an id."""
    names = [item.id or "" for item in items]
    rendered = zip(items, render_input(items), strict=True)
    return _encode_list([_show(item, fields) for item, fields in rendered], names, has_more=has_more)


def encode_response_list(bodies: Sequence[bytes], response_ids: Sequence[UUID], *, has_more: bool) -> bytes:
    """A page of responses, encoded already."""
    names = [ids.response_id_text(response_id) for response_id in response_ids]
    return _encode_list([msgspec.Raw(body) for body in bodies], names, has_more=has_more)


def _encode_list(entries: Sequence[object], names: Sequence[str], *, has_more: bool) -> bytes:
    first, last = (names[0], names[-1]) if names else (None, None)
    return json.encode({"object": "list", "data": entries, "has_more": has_more, "first_id": first, "last_id": last})


def _show(item: InputItem, rendered: dict[str, Any]) -> dict[str, Any]:
    """*rendered* with what an item has once it is stored: a status, and parts that its role may have."""
    match item:
        case InputMessage(role=Role.ASSISTANT):
            return rendered | {"status": "completed", "content": [_spoken(part) for part in rendered["content"]]}
        case InputMessage():
            return rendered | {"status": "completed", "content": [_written(part) for part in rendered["content"]]}
        case FunctionCallOutput() | CustomToolCallOutput():
            return rendered | {"status": "completed"}
        case _:
            return rendered


def _spoken(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of what the assistant said."""
    if part["type"] not in {"input_text", "output_text"}:
        return part
    return {"annotations": [], "logprobs": []} | dict(part) | {"type": "output_text"}


def _written(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of what anybody else wrote."""
    match part["type"]:
        case "output_text":
            return {"type": "input_text", "text": part["text"]}
        case "refusal":
            return {"type": "input_text", "text": part["refusal"]}
        case _:
            return part
