"""The body of ``POST /v1/responses``: JSON to a validated request, and back for the store.

Rule 1: a parameter is honoured, or a hint that is echoed, or refused because ignoring it would change the meaning.
Rule 2: whatever the JSON, the outcome is a value or an ``InvalidRequest`` that names the parameter.
Rule 3: ``parse_request(render_request(request)) == request``.

Source: OpenAI Responses API reference, "Create a response"; Open Responses specification, request body.
"""

import re
from collections.abc import Mapping

import msgspec

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.models import MODEL_CHARACTERS_MAX
from dwctl_trio.domain.request import (
    InputItem,
    InputMessage,
    InputPart,
    JsonObject,
    JsonSchema,
    PartKind,
    PlainText,
    ReasoningOptions,
    ResponseRequest,
    Role,
    ServiceTier,
    TextFormat,
)
from dwctl_trio.protocol.fields import Fields, joined, shown, wrong_type

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
SUMMARIES = ("auto", "concise", "detailed")
VERBOSITIES = ("low", "medium", "high")
STATUSES = ("in_progress", "completed", "incomplete")
PHASES = ("commentary", "final_answer")
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

_HONOURED = frozenset({
    "model", "input", "instructions", "stream", "store", "temperature", "top_p", "presence_penalty",
    "frequency_penalty", "max_output_tokens", "text", "reasoning", "metadata", "background", "service_tier",
    "parallel_tool_calls", "tool_choice", "tools", "truncation",
})  # fmt: skip
_HINTS = frozenset({
    "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
    "stream_options", "include", "max_tool_calls", "top_logprobs",
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


def parse_request(body: object) -> ResponseRequest:
    """The request that *body*, decoded JSON, asks for.

    Raises:
        InvalidRequest: With the path of the parameter that is wrong, unknown, or not supported.
    """
    fields = Fields(body, "")
    fields.refuse_unknown(_KNOWN)
    _refuse_unsupported(fields)
    model = fields.require("model", lambda name: fields.text(name, length_max=MODEL_CHARACTERS_MAX))
    if not model.strip():
        raise InvalidRequest("Invalid 'model': it must not be empty.", param="model", code="invalid_value")
    text = fields.object("text")
    return ResponseRequest(
        model=model,
        input=_parse_input(fields),
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
        tool_choice=fields.choice("tool_choice", ("auto", "none")) or "auto",
        user=fields.text("user", length_max=512),
        safety_identifier=fields.text("safety_identifier", length_max=64),
        prompt_cache_key=fields.text("prompt_cache_key", length_max=512),
    )


def _default_true(flag: bool | None) -> bool:
    return True if flag is None else flag


def _unsupported(path: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=path, code="unsupported_parameter")


def _refuse_unsupported(fields: Fields) -> None:
    """Raise for what we know but cannot do yet; silence would change the meaning of the request."""
    for name in sorted(_REFUSED):
        if fields.raw(name) is not None:
            raise _unsupported(name, f"Unsupported parameter: '{name}' is not supported by this server.")
    if fields.items("tools"):
        raise _unsupported("tools", "Unsupported parameter: 'tools' is not supported by this server yet.")
    choice = fields.raw("tool_choice")
    if isinstance(choice, dict) or choice == "required":
        raise _unsupported("tool_choice", "Unsupported 'tool_choice': without tools only 'auto' and 'none' make sense.")
    if fields.choice("truncation", ("auto", "disabled")) == "auto":
        raise _unsupported("truncation", "Unsupported 'truncation': this server never drops input; use 'disabled'.")
    if fields.integer("top_logprobs", minimum=0, maximum=20):
        raise _unsupported("top_logprobs", "Unsupported parameter: 'top_logprobs' is not supported by this server yet.")
    for index, asked in enumerate(fields.items("include") or ()):
        if asked not in _NOTHING_TO_INCLUDE:
            path = f"include[{index}]"
            raise _unsupported(path, f"Unsupported '{path}': supported values are {joined(_NOTHING_TO_INCLUDE)}.")
    fields.integer("max_tool_calls", minimum=1)
    fields.choice("prompt_cache_retention", CACHE_RETENTIONS)
    fields.object("prompt_cache_options")
    options = fields.object("stream_options")
    if options is not None:
        options.refuse_unknown(("include_obfuscation",))
        options.flag("include_obfuscation")


def _parse_input(fields: Fields) -> tuple[InputItem, ...]:
    value = fields.raw("input")
    if value is None:
        raise InvalidRequest("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    if isinstance(value, str):
        return (InputMessage(role=Role.USER, content=(InputPart(kind=PartKind.INPUT_TEXT, text=value),)),)
    if not isinstance(value, list):
        raise wrong_type("input", "a string or an array", value)
    parsed = [_parse_item(item, f"input[{index}]") for index, item in enumerate(value)]
    messages = tuple(message for message in parsed if message is not None)
    if not messages:
        raise InvalidRequest(
            "Invalid 'input': expected at least one message, but got none.", param="input", code="empty_array"
        )
    return messages


def _parse_item(value: object, path: str) -> InputMessage | None:
    """One input item; None for reasoning, which a chat-completions upstream has no place for."""
    fields = Fields(value, path)
    kind = "message" if fields.raw("type") is None else fields.text("type")
    if kind == "reasoning":
        return None
    if kind != "message":
        raise InvalidRequest(
            f"Unsupported '{path}.type': supported values are 'message' and 'reasoning'.",
            param=f"{path}.type",
            code="unsupported_value",
        )
    fields.refuse_unknown(("type", "role", "content", "id", "status", "phase"))
    fields.text("id")
    fields.choice("status", STATUSES)
    fields.choice("phase", PHASES)
    role = Role(fields.require("role", lambda name: fields.choice(name, [role.value for role in Role])))
    content = fields.raw("content")
    own_kind = PartKind.OUTPUT_TEXT if role is Role.ASSISTANT else PartKind.INPUT_TEXT
    if isinstance(content, str):
        return InputMessage(role=role, content=(InputPart(kind=own_kind, text=content),))
    if content is None:
        raise InvalidRequest(
            f"Missing required parameter: '{path}.content'.",
            param=f"{path}.content",
            code="missing_required_parameter",
        )
    if not isinstance(content, list):
        raise wrong_type(f"{path}.content", "a string or an array", content)
    parts = [_parse_part(part, f"{path}.content[{index}]") for index, part in enumerate(content)]
    return InputMessage(role=role, content=tuple(parts))


def _parse_part(value: object, path: str) -> InputPart:
    fields = Fields(value, path)
    kind = fields.require("type", fields.text)
    if kind not in [known.value for known in PartKind]:
        raise InvalidRequest(
            f"Unsupported '{path}.type': supported values are {joined([known.value for known in PartKind])}.",
            param=f"{path}.type",
            code="unsupported_value",
        )
    fields.refuse_unknown(("type", "text", "refusal", "annotations", "logprobs", "prompt_cache_breakpoint"))
    fields.object("prompt_cache_breakpoint")
    for name in ("annotations", "logprobs"):
        for index, item in enumerate(fields.items(name) or ()):
            Fields(item, f"{path}.{name}[{index}]")
    name = "refusal" if kind == PartKind.REFUSAL else "text"
    return InputPart(kind=PartKind(kind), text=fields.require(name, fields.text))


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
                f"but '{shown(name)}' has {len(name)}.",
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


def render_request(request: ResponseRequest) -> dict[str, object]:
    """*request* in the client's vocabulary; ``parse_request`` gives it back."""
    body: dict[str, object] = {
        "model": request.model,
        "input": [_render_message(item) for item in request.input],
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
        "tool_choice": request.tool_choice,
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


def _render_message(message: InputItem) -> dict[str, object]:
    parts = [
        {"type": part.kind.value, "refusal" if part.kind is PartKind.REFUSAL else "text": part.text}
        for part in message.content
    ]
    return {"type": "message", "role": message.role.value, "content": parts}
