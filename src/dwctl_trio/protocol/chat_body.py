"""The bodies of calls whose answers are handed over: JSON to a validated request, and to what its upstream is sent.

They are those of ``POST /v1/chat/completions``, ``/v1/completions`` and ``/v1/embeddings``.

Rule 1: what we act on is checked; everything else is passed on as it is, for the upstream to judge.
Rule 2: whatever the JSON, the outcome is a value or an ``InvalidRequest`` that names the parameter.
Rule 3: the upstream is asked for the usage of a stream whether the client wants it or not: a call is metered.

Source: OpenAI API reference, "Create chat completion", "Create completion", "Create embeddings".
"""

import msgspec

from dwctl_trio.domain.chat import ChatRequest
from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.protocol import json
from dwctl_trio.protocol.chat_request import Quirks, apply_quirks
from dwctl_trio.protocol.fields import Fields, wrong_type
from dwctl_trio.protocol.request_body import parse_model
from dwctl_trio.protocol.request_options import parse_service_tier


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
    return ChatRequest(
        model=model,
        body=json.encode(body),
        stream=fields.flag("stream") or False,
        wants_usage=_wants_usage(fields),
        choices=_count_choices(fields.raw("n")),
        store=fields.flag("store") or False,
        service_tier=parse_service_tier(fields),
    )


def parse_completion(body: object) -> ChatRequest:
    """The completion of a text that *body*, decoded JSON, asks for.

    Raises:
        InvalidRequest: With the path of the parameter that is wrong.
    """
    fields = Fields(body, "")
    return ChatRequest(
        surface=Surface.COMPLETIONS,
        model=parse_model(fields),
        body=json.encode(body),
        stream=fields.flag("stream") or False,
        wants_usage=_wants_usage(fields),
        choices=_count_choices(fields.raw("n")) * _count_prompts(fields.raw("prompt")),
    )


def parse_embeddings(body: object) -> ChatRequest:
    """The embeddings that *body*, decoded JSON, asks for.

    Raises:
        InvalidRequest: With the path of the parameter that is wrong.
    """
    return ChatRequest(surface=Surface.EMBEDDINGS, model=parse_model(Fields(body, "")), body=json.encode(body))


def read_chat(request: bytes) -> ChatRequest:
    """The chat completion whose body, validated when it came, is *request*."""
    return parse_chat(msgspec.json.decode(request))


def render_chat(request: ChatRequest, *, upstream_model: str, quirks: Quirks) -> bytes:
    """The JSON body of the call.

    Args:
        request: What was asked.
        upstream_model: The model's name at the upstream.
        quirks: Of a chat completion, fields are dropped and then renamed, last of all.

    Returns:
        UTF-8 JSON on one line.
    """
    body = msgspec.json.decode(request.body)
    body["model"] = upstream_model
    if request.surface is Surface.CHAT:
        body.pop("service_tier", None)  # ours: the upstream knows no queue
    if not quirks.stream_usage:
        body.pop("stream_options", None)
    elif request.stream:
        body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    if request.surface is Surface.CHAT and not quirks.developer_role:
        body["messages"] = [_as_system(message) for message in body["messages"]]
    return json.encode(apply_quirks(body, quirks) if request.surface is Surface.CHAT else body)


def _as_system(message: dict[str, object]) -> dict[str, object]:
    return {**message, "role": "system"} if message.get("role") == "developer" else message


def _wants_usage(fields: Fields) -> bool:
    options = fields.object("stream_options")
    return (options.flag("include_usage") if options else None) or False


def _count_choices(value: object) -> int:
    """How many answers *value* asks for; whether so many are allowed is the upstream's to say."""
    return value if type(value) is int and value > 0 else 1


def _count_prompts(value: object) -> int:
    """How many prompts *value* is: a text or the tokens of one, or an array of such."""
    if not isinstance(value, list) or any(type(entry) is int for entry in value):
        return 1
    return max(1, len(value))
