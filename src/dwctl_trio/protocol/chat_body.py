"""The body of ``POST /v1/chat/completions``: JSON to a validated request, and to what its upstream is sent.

Rule 1: what we act on is checked; everything else is passed on as it is, for the upstream to judge.
Rule 2: whatever the JSON, the outcome is a value or an ``InvalidRequest`` that names the parameter.
Rule 3: the upstream is asked for the usage of a stream whether the client wants it or not: a call is metered.

Source: OpenAI Chat Completions API reference, "Create chat completion".
"""

import msgspec

from dwctl_trio.domain.chat import ChatRequest
from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.request import ServiceTier
from dwctl_trio.protocol import json
from dwctl_trio.protocol.chat_request import Quirks, apply_quirks
from dwctl_trio.protocol.fields import Fields, wrong_type
from dwctl_trio.protocol.request_body import parse_model


def parse_chat(body: object) -> ChatRequest:
    """The chat completion that *body*, decoded JSON, asks for.

    Raises:
        InvalidRequest: With the path of the parameter that is wrong.
    """
    fields = Fields(body, "")
    model = parse_model(fields)
    messages = fields.require("messages", fields.items)
    if not messages:
        raise InvalidRequest("Invalid 'messages': expected at least one message.", param="messages", code="empty_array")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise wrong_type(f"messages[{index}]", "an object", message)
    options = fields.object("stream_options")
    wants_usage = options.flag("include_usage") if options else None
    return ChatRequest(
        model=model,
        body=json.encode(body),
        stream=fields.flag("stream") or False,
        wants_usage=wants_usage or False,
        choices=_count_choices(fields.raw("n")),
        store=fields.flag("store") or False,
        service_tier=ServiceTier(fields.choice("service_tier", [tier.value for tier in ServiceTier]) or "auto"),
    )


def read_chat(request: bytes) -> ChatRequest:
    """The chat completion whose body, validated when it came, is *request*."""
    return parse_chat(msgspec.json.decode(request))


def render_chat(request: ChatRequest, *, upstream_model: str, quirks: Quirks) -> bytes:
    """The JSON body of the call.

    Args:
        request: What was asked.
        upstream_model: The model's name at the upstream.
        quirks: Applied last: first dropped, then renamed.

    Returns:
        UTF-8 JSON on one line.
    """
    body = msgspec.json.decode(request.body)
    body.pop("service_tier", None)  # ours: the upstream knows no queue
    body["model"] = upstream_model
    if not quirks.stream_usage:
        body.pop("stream_options", None)
    elif request.stream:
        body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    if not quirks.developer_role:
        body["messages"] = [_as_system(message) for message in body["messages"]]
    return json.encode(apply_quirks(body, quirks))


def _as_system(message: dict[str, object]) -> dict[str, object]:
    return {**message, "role": "system"} if message.get("role") == "developer" else message


def _count_choices(value: object) -> int:
    """How many answers *value* asks for; whether so many are allowed is the upstream's to say."""
    return value if type(value) is int and value > 0 else 1
