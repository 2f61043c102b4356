"""The body of ``POST /v1/responses``: JSON to a validated request, and back for the store.

What it says of the conversation is read in ``request_input``, what it says of tools in ``request_tools``.

Rule 1: a parameter is honoured, or a hint that is echoed, or refused because ignoring it would change the meaning.
Rule 2: whatever the JSON, the outcome is a value or an ``InvalidRequest`` that names the parameter.
Rule 3: ``parse_request(render_request(request)) == request``.

Source: OpenAI Responses API reference, "Create a response"; Open Responses specification, request body.
"""

import re
from collections.abc import Collection, Mapping

import msgspec

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.models import MODEL_CHARACTERS_MAX
from dwctl_trio.domain.request import (
    JsonObject,
    JsonSchema,
    PlainText,
    ReasoningOptions,
    ResponseRequest,
    ServiceTier,
    TextFormat,
)
from dwctl_trio.protocol import json
from dwctl_trio.protocol.fields import Fields, joined, shown_text, wrong_type
from dwctl_trio.protocol.offered_tools import render_choice
from dwctl_trio.protocol.request_input import check_calls, parse_input, render_input
from dwctl_trio.protocol.request_tools import parse_request_tools, parse_tool_choice, render_request_tools

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
SUMMARIES = ("auto", "concise", "detailed")
VERBOSITIES = ("low", "medium", "high")
CACHE_RETENTIONS = ("in_memory", "24h")
METADATA_PAIRS_MAX = 16
"""OpenAI's bound."""
METADATA_KEY_CHARACTERS_MAX = 64
"""OpenAI's bound."""
METADATA_VALUE_CHARACTERS_MAX = 512
"""OpenAI's bound."""
OUTPUT_TOKENS_MIN = 16
"""OpenAI's bound."""
SCHEMA_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""OpenAI's rule."""
SUB_AGENTS = "dwctl:sub_agents"
"""Ours, of ``include``: the stream tells what sub-agents do."""

_HONOURED = frozenset({
    "model", "input", "instructions", "stream", "store", "temperature", "top_p", "presence_penalty",
    "frequency_penalty", "max_output_tokens", "text", "reasoning", "metadata", "background", "service_tier",
    "parallel_tool_calls", "tool_choice", "tools", "truncation", "max_tool_calls", "include",
})  # fmt: skip
_HINTS = frozenset({
    "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
    "stream_options", "top_logprobs",
})  # fmt: skip
_REFUSED = frozenset({
    "previous_response_id", "conversation", "prompt", "moderation", "context_management", "background_options",
    "access_programs", "image",
})  # fmt: skip
_KNOWN = _HONOURED | _HINTS | _REFUSED

_NOTHING_TO_INCLUDE = (
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
)


def parse_request(body: object, *, server_tools: Collection[str] | None = None) -> ResponseRequest:
    """The request that *body*, decoded JSON, asks for.

    Args:
        body: What the client sent.
        server_tools: The names of the tools that it may name; None lets any name through.

    Raises:
        InvalidRequest: With the path of the parameter that is wrong, unknown, or not supported.
    """
    fields = Fields(body, "")
    fields.refuse_unknown(_KNOWN)
    _refuse_unsupported(fields)
    model = parse_model(fields)
    text = fields.object("text")
    conversation = parse_input(fields)
    check_calls(conversation)
    tools = parse_request_tools(fields, server_tools)
    return ResponseRequest(
        model=model,
        input=conversation,
        instructions=fields.text("instructions"),
        stream=fields.flag("stream") or False,
        background=fields.flag("background") or False,
        store=_default_true(fields.flag("store")),
        service_tier=ServiceTier(fields.choice("service_tier", [tier.value for tier in ServiceTier]) or "auto"),
        temperature=fields.number("temperature", minimum=0, maximum=2),
        top_p=fields.number("top_p", minimum=0, maximum=1),
        presence_penalty=fields.number("presence_penalty", minimum=-2, maximum=2),
        frequency_penalty=fields.number("frequency_penalty", minimum=-2, maximum=2),
        max_output_tokens=fields.integer("max_output_tokens", minimum=OUTPUT_TOKENS_MIN, maximum=2**31 - 1),
        text_format=_parse_format(text),
        verbosity=text.choice("verbosity", VERBOSITIES) if text else None,
        reasoning=_parse_reasoning(fields.object("reasoning")),
        metadata=_parse_metadata(fields.object("metadata")),
        parallel_tool_calls=_default_true(fields.flag("parallel_tool_calls")),
        tools=tools,
        tool_choice=parse_tool_choice(fields, tools),
        max_tool_calls=fields.integer("max_tool_calls", minimum=1, maximum=2**31 - 1),
        shows_sub_agents=_parse_include(fields),
        user=fields.text("user", length_max=512),
        safety_identifier=fields.text("safety_identifier", length_max=64),
        prompt_cache_key=fields.text("prompt_cache_key", length_max=512),
    )


def parse_model(fields: Fields) -> str:
    """The name of the model.

    Raises:
        InvalidRequest: There is none, or it is too long.
    """
    model = fields.require("model", lambda name: fields.text(name, length_max=MODEL_CHARACTERS_MAX))
    if not model.strip():
        raise InvalidRequest("Invalid 'model': it must not be empty.", param="model", code="invalid_value")
    return model


def _default_true(flag: bool | None) -> bool:
    return True if flag is None else flag


def _unsupported(path: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=path, code="unsupported_parameter")


def _refuse_unsupported(fields: Fields) -> None:
    """Raise for what we know but cannot do yet; silence would change the meaning of the request."""
    for name in sorted(_REFUSED):
        if fields.raw(name) is not None:
            raise _unsupported(name, f"Unsupported parameter: '{name}' is not supported by this server.")
    if fields.choice("truncation", ("auto", "disabled")) == "auto":
        raise _unsupported("truncation", "Unsupported 'truncation': this server never drops input; use 'disabled'.")
    if fields.integer("top_logprobs", minimum=0, maximum=20):
        raise _unsupported("top_logprobs", "Unsupported parameter: 'top_logprobs' is not supported by this server yet.")
    fields.choice("prompt_cache_retention", CACHE_RETENTIONS)
    fields.object("prompt_cache_options")
    options = fields.object("stream_options")
    if options is not None:
        options.refuse_unknown(("include_obfuscation",))
        options.flag("include_obfuscation")


def _parse_include(fields: Fields) -> bool:
    """Whether the sub-agents are to be shown; of what else may be asked for there is never any."""
    supported = (*_NOTHING_TO_INCLUDE, SUB_AGENTS)
    asked_for = fields.items("include") or ()
    for index, asked in enumerate(asked_for):
        if asked not in supported:
            path = f"include[{index}]"
            raise _unsupported(path, f"Unsupported '{path}': supported values are {joined(supported)}.")
    return SUB_AGENTS in asked_for


def _parse_format(text: Fields | None) -> TextFormat:
    if text is None:
        return PlainText()
    text.refuse_unknown(("format", "verbosity"))
    fields = text.object("format")
    if fields is None:
        return PlainText()
    kind = fields.require("type", lambda name: fields.choice(name, ("text", "json_object", "json_schema")))
    if kind == "text":
        fields.refuse_unknown(("type",))
        return PlainText()
    if kind == "json_object":
        fields.refuse_unknown(("type",))
        return JsonObject()
    fields.refuse_unknown(("type", "name", "schema", "description", "strict"))
    fields.require("schema", fields.object)
    name = fields.require("name", lambda name: fields.text(name, length_max=64))
    if not SCHEMA_NAME.fullmatch(name):
        path = fields.path("name")
        raise InvalidRequest(
            f"Invalid '{path}': expected 1 to 64 letters, digits, underscores and dashes.",
            param=path,
            code="invalid_value",
        )
    return JsonSchema(
        name=name,
        schema=msgspec.json.encode(fields.raw("schema")),
        description=fields.text("description"),
        strict=fields.flag("strict"),
    )


def _parse_reasoning(fields: Fields | None) -> ReasoningOptions | None:
    if fields is None:
        return None
    fields.refuse_unknown(("effort", "summary", "generate_summary"))
    older_summary = fields.choice("generate_summary", SUMMARIES)
    return ReasoningOptions(
        effort=fields.choice("effort", EFFORTS), summary=fields.choice("summary", SUMMARIES) or older_summary
    )


def _parse_metadata(fields: Fields | None) -> tuple[tuple[str, str], ...]:
    if fields is None:
        return ()
    names = list(fields.names())
    if len(names) > METADATA_PAIRS_MAX:
        raise InvalidRequest(
            f"Invalid 'metadata': expected at most {METADATA_PAIRS_MAX} pairs, but got {len(names)}.",
            param="metadata",
            code="object_above_max_properties",
        )
    for name in names:
        if len(name) > METADATA_KEY_CHARACTERS_MAX:
            raise InvalidRequest(
                f"Invalid 'metadata': expected keys of at most {METADATA_KEY_CHARACTERS_MAX} characters, "
                f"but '{shown_text(name)}' has {len(name)}.",
                param="metadata",
                code="string_above_max_length",
            )
    return tuple((name, _metadata_value(fields, name)) for name in names)


def _metadata_value(fields: Fields, name: str) -> str:
    """A value, which unlike a parameter cannot be left out by giving null."""
    value = fields.text(name, length_max=METADATA_VALUE_CHARACTERS_MAX)
    if value is None:
        raise wrong_type(fields.path(name), "a string", None)
    return value


def encode_request(request: ResponseRequest) -> bytes:
    """The request as a row keeps it."""
    return json.encode(render_request(request))


def render_request(request: ResponseRequest) -> dict[str, object]:
    """*request* in the client's vocabulary; ``parse_request`` gives it back."""
    body: dict[str, object] = {
        "model": request.model,
        "input": render_input(request.input),
        "instructions": request.instructions,
        "stream": request.stream,
        "background": request.background,
        "store": request.store,
        "service_tier": request.service_tier.value,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "max_output_tokens": request.max_output_tokens,
        "text": render_text(request),
        "reasoning": render_reasoning(request.reasoning),
        "metadata": dict(request.metadata),
        "parallel_tool_calls": request.parallel_tool_calls,
        "tools": render_request_tools(request.tools),
        "tool_choice": render_choice(request.tool_choice, request.tools or ()),
        "max_tool_calls": request.max_tool_calls,
        "include": [SUB_AGENTS] if request.shows_sub_agents else None,
        "truncation": request.truncation,
        "user": request.user,
        "safety_identifier": request.safety_identifier,
        "prompt_cache_key": request.prompt_cache_key,
    }
    return {name: value for name, value in body.items() if value is not None}


def render_text(request: ResponseRequest) -> Mapping[str, object]:
    """The ``text`` object: the format asked for, and the verbosity where one was."""
    form: dict[str, object]
    match request.text_format:
        case PlainText():
            form = {"type": "text"}
        case JsonObject():
            form = {"type": "json_object"}
        case JsonSchema() as asked:
            schema = msgspec.Raw(asked.schema)
            form = {"type": "json_schema", "name": asked.name, "schema": schema, "strict": asked.strict}
            if asked.description is not None:
                form["description"] = asked.description
    return {"format": form} if request.verbosity is None else {"format": form, "verbosity": request.verbosity}


def render_reasoning(reasoning: ReasoningOptions | None) -> Mapping[str, object] | None:
    """The ``reasoning`` object, or None where none was sent."""
    return None if reasoning is None else {"effort": reasoning.effort, "summary": reasoning.summary}
