"""The schemas of what clients send: the bodies of POST requests, by the bounds of the parsers that read them.

Rule 1: a bound has one place, the parser's own; ``tests/protocol/test_openapi_bodies.py`` asks the parsers whether they
hold what is said here.
Rule 2: what depends on two fields at once stands in words: that an output follows its call, that a choice names a tool
that is offered.
"""

from collections.abc import Collection, Mapping

from dwctl_trio.domain.models import MODEL_CHARACTERS_MAX
from dwctl_trio.domain.request import Role
from dwctl_trio.domain.tools import ChoiceMode
from dwctl_trio.protocol import parameters, request_input, request_tools
from dwctl_trio.protocol import request_body as bounds
from dwctl_trio.protocol import request_content as content
from dwctl_trio.protocol import request_options as options
from dwctl_trio.protocol.openapi.schema import (
    ANY_OBJECT,
    FLAG,
    NULL,
    STRING,
    Schema,
    any_of,
    array,
    choice,
    constant,
    integer,
    number,
    or_null,
    ref,
    taken,
    text,
)
from dwctl_trio.protocol.output_items import SERVER_LABEL

_FILLED = text(least=1)
_ITEM_ID = text(most=request_input.ITEM_ID_CHARACTERS_MAX)
_STATUS = choice(request_input.STATUSES)
_TOOL_NAME = text(least=1, most=request_tools.NAME_CHARACTERS_MAX, pattern=f"^{request_tools.NAME.pattern}$")
_IMAGE_ADDRESS = text(pattern=f"^({content.IMAGE_ADDRESS})$")
_SCHEMA_NAME = text(pattern=f"^{options.SCHEMA_NAME.pattern}$")
_MODEL = text(least=1, most=MODEL_CHARACTERS_MAX, pattern=bounds.MODEL_NAME.pattern)


def body_schemas() -> dict[str, Schema]:
    """All of them, by the names that the document refers to."""
    return {
        "CreateResponse": _create_response(),
        "CountInputTokens": _count_input_tokens(),
        **_input_items(),
        **_tools(),
        "CreateChatCompletion": _passed_on(_STREAMED | _CHAT, "messages"),
        "CreateCompletion": _passed_on(_STREAMED),
        "CreateEmbeddings": _passed_on({}),
    }


def _create_response() -> Schema:
    begins: Schema = {"required": ["input"], "properties": {"input": {"not": NULL}}}
    goes_on: Schema = {"required": ["previous_response_id"], "properties": {"previous_response_id": STRING}}
    return _parameters("", ["model"]) | {
        "anyOf": [begins, goes_on],
        "description": "`input` is needed unless `previous_response_id` is given. No string may hold U+0000.",
    }


def _count_input_tokens() -> Schema:
    """The same, but for what asks for a response and not for a number."""
    schema = _create_response()
    never = dict.fromkeys(("stream", "background"), or_null({"const": False}))
    return schema | {"properties": schema["properties"] | never}


_CREATE: Mapping[str, Schema] = {
    "model": _MODEL,
    "input": any_of(STRING, array(ref("InputItem"))),
    "instructions": STRING,
    "previous_response_id": text(most=options.ID_CHARACTERS_MAX),
    "service_tier": choice(options.SERVICE_TIERS),
    "temperature": number(*bounds.TEMPERATURES),
    "top_p": number(*bounds.TOP_PS),
    "presence_penalty": number(*bounds.PENALTIES),
    "frequency_penalty": number(*bounds.PENALTIES),
    "max_output_tokens": integer(bounds.OUTPUT_TOKENS_MIN, bounds.TOKENS_MAX),
    "max_tool_calls": integer(1, bounds.TOKENS_MAX),
    "text.format": ref("TextFormat"),
    "text.verbosity": choice(options.VERBOSITIES),
    "reasoning.effort": choice(options.EFFORTS),
    "reasoning.context": choice(options.REASONING_CONTEXTS),
    "reasoning.summary": choice(options.SUMMARIES),
    "reasoning.generate_summary": choice(options.SUMMARIES),
    "reasoning.mode": choice(options.REASONING_MODES),
    "tools": array(ref("Tool"), most=request_tools.TOOLS_MAX),
    "tool_choice": ref("ToolChoice"),
    "include": array(choice(parameters.accepted(parameters.INCLUDES))),
    "top_logprobs": integer(0, bounds.TOP_LOGPROBS_MAX),
    "metadata": {
        "type": "object",
        "maxProperties": options.METADATA_PAIRS_MAX,
        "propertyNames": {"maxLength": options.METADATA_KEY_CHARACTERS_MAX},
        "additionalProperties": text(most=options.METADATA_VALUE_CHARACTERS_MAX),
    },
    "truncation": choice(bounds.TRUNCATIONS),
    "user": text(most=bounds.USER_CHARACTERS_MAX),
    "safety_identifier": text(most=bounds.SAFETY_IDENTIFIER_CHARACTERS_MAX),
    "prompt_cache_key": text(most=bounds.CACHE_KEY_CHARACTERS_MAX),
    "prompt_cache_retention": choice(options.CACHE_RETENTIONS),
    "prompt_cache_options.mode": choice(options.CACHE_MODES),
    "prompt_cache_options.ttl": choice(options.CACHE_LIFETIMES),
    "prompt_cache_options.comparison_response_id": text(most=options.ID_CHARACTERS_MAX),
    "prompt_cache_options.prewarm": {"const": False},
    "client_metadata": ANY_OBJECT,
    "stream_options.include_obfuscation": FLAG,
    "background_options.completion_window": choice(options.COMPLETION_WINDOWS),
    "background_options.continuation_id": STRING,
    "image.context_compression": choice(options.IMAGE_COMPRESSIONS),
    **dict.fromkeys(("stream", "background", "store", "parallel_tool_calls"), FLAG),
}
"""What each parameter may be that is accepted; an object is told by its fields."""


def _parameters(path: str, required: Collection[str] = ()) -> Schema:
    """The object at *path* by the table of all parameters, with the table's notes."""
    table = parameters.CREATE_PARAMETERS
    properties: dict[str, Schema] = {}
    for name in parameters.names_below(table, path):
        entry = table[path + name]
        if entry.name in _CREATE:
            schema = _CREATE[entry.name]
        elif entry.support is parameters.Support.REFUSED:
            schema = NULL
        else:
            schema = _parameters(f"{entry.name}.")
        properties[name] = schema | {"description": entry.note}
    return taken(properties, required)


def _input_items() -> dict[str, Schema]:
    parts = _parts()
    call_output = {
        "id": _ITEM_ID,
        "status": _STATUS,
        "call_id": _FILLED,
        "name": STRING,
        "namespace": STRING,
        "output": any_of(STRING, array(any_of(*(parts[kind] for kind in content.OUTPUT_PARTS)))),
    }
    items = {
        "message": taken(
            {
                "type": constant("message"),
                "role": choice([role.value for role in Role]),
                "content": any_of(STRING, array(any_of(*(parts[kind] for kind in content.MESSAGE_PARTS)))),
                "id": _ITEM_ID,
                "status": _STATUS,
                "phase": choice(request_input.PHASES),
            },
            ["role", "content"],
        ),
        "reasoning": _item("reasoning", _reasoning()),
        "function_call": _item("function_call", _call("arguments"), "call_id", "name", "arguments"),
        "function_call_output": _item("function_call_output", call_output, "call_id", "output"),
        "custom_tool_call": _item("custom_tool_call", _call("input"), "call_id", "name", "input"),
        "custom_tool_call_output": _item("custom_tool_call_output", call_output, "call_id", "output"),
        "mcp_call": _item("mcp_call", _mcp_call(), "id", "server_label", "name", "arguments"),
        "mcp_list_tools": {"type": "object", "properties": {"type": constant("mcp_list_tools")}, "required": ["type"]},
        "item_reference": taken({"type": constant("item_reference"), "id": _ITEM_ID | {"minLength": 1}}, ["id"]),
    }
    return {"InputItem": any_of(*(items[kind] for kind in parameters.accepted(parameters.INPUT_ITEMS)))}


def _parts() -> dict[str, Schema]:
    """The parts of messages and of outputs, by their type."""
    hint = {"mode": choice(content.BREAKPOINT_MODES), "ttl": choice(content.BREAKPOINT_LIFETIMES)}
    marks: Schema = {content.CACHE_BREAKPOINT: taken(hint, ["mode"])}
    said = marks | {"text": STRING, "annotations": array(ANY_OBJECT), "logprobs": array(ANY_OBJECT)}
    audio = taken({"data": _FILLED, "format": choice(content.AUDIO_FORMATS)}, ["data", "format"])
    image = marks | {"image_url": _IMAGE_ADDRESS, "detail": choice(content.IMAGE_DETAILS)}
    file = marks | {"file_data": _FILLED, "filename": STRING, "detail": choice(content.FILE_DETAILS)}
    parts = {
        "input_text": _item("input_text", said, "text"),
        "input_image": _item("input_image", image, "image_url"),
        "input_file": _item("input_file", file, "file_data"),
        "input_audio": _item("input_audio", marks | {"input_audio": audio}, "input_audio"),
        "output_text": _item("output_text", said, "text"),
        "refusal": _item("refusal", marks | {"refusal": STRING}, "refusal"),
    }
    return {kind: parts[kind] for kind in parameters.accepted(parameters.CONTENT_PARTS)}


def _item(kind: str, fields: Schema, *required: str) -> Schema:
    return taken({"type": constant(kind)} | fields, ["type", *required])


def _call(text_name: str) -> Schema:
    named = {"name": _FILLED, "namespace": _FILLED}
    return {"id": _ITEM_ID, "status": _STATUS, "call_id": _FILLED, **named, text_name: STRING}


def _reasoning() -> Schema:
    def thoughts(kind: str) -> Schema:
        return array(taken({"type": constant(kind), "text": STRING}, ["type", "text"]))

    return {
        "id": _ITEM_ID,
        "summary": thoughts("summary_text"),
        "content": thoughts("reasoning_text"),
        "encrypted_content": STRING,
        "status": _STATUS,
    }


def _mcp_call() -> Schema:
    return {
        "id": _ITEM_ID | {"minLength": 1},
        "status": choice(request_input.MCP_STATUSES),
        "server_label": STRING,
        "name": _FILLED,
        "arguments": STRING,
        "output": STRING,
        "error": any_of(STRING, ANY_OBJECT),
        "approval_request_id": STRING,
    }


def _tools() -> dict[str, Schema]:
    grammar = {"type": constant("grammar"), "syntax": choice(request_tools.SYNTAXES), "definition": STRING}
    form = any_of(taken({"type": constant("text")}, ["type"]), taken(grammar, list(grammar)))
    named: Schema = {"name": _TOOL_NAME, "description": STRING}
    callers: Schema = {"allowed_callers": array(choice(request_tools.CALLERS))}
    names = array(_TOOL_NAME)
    ours: Schema = {
        "server_label": constant(SERVER_LABEL),
        "server_description": STRING,
        "allowed_tools": any_of(names, taken({"tool_names": names}, ["tool_names"])),
        "require_approval": constant("never"),
    }
    function = named | callers | {"parameters": ANY_OBJECT, "strict": FLAG, "output_schema": ANY_OBJECT}
    tools = {
        "function": _item("function", function, "name"),
        "custom": _item("custom", named | callers | {"format": form}, "name"),
        "mcp": _item("mcp", ours | callers, "server_label"),
        "dwctl:tool": _item("dwctl:tool", {"name": _TOOL_NAME}, "name"),
    }
    members = array(any_of(tools["function"], tools["custom"]), least=1)
    tools["namespace"] = _item("namespace", named | {"tools": members}, "name", "tools")
    chosen = {kind: _item(kind, {"name": _TOOL_NAME}, "name") for kind in tools if kind != "namespace"}
    chosen["mcp"] = _item("mcp", {"server_label": constant(SERVER_LABEL), "name": _TOOL_NAME}, "server_label")
    some = {
        "mode": choice(request_tools.ALLOWED_MODES),
        "tools": array(any_of(*chosen.values()), least=1),
    }
    return {
        "Tool": any_of(*(tools[kind] for kind in parameters.accepted(parameters.TOOL_TYPES))),
        "ToolChoice": any_of(
            choice([mode.value for mode in ChoiceMode]),
            *chosen.values(),
            _item("allowed_tools", some, "mode", "tools"),
        ),
        "TextFormat": any_of(
            taken({"type": choice(["text", "json_object"])}, ["type"]),
            _item(
                "json_schema",
                {"name": _SCHEMA_NAME, "schema": ANY_OBJECT, "description": STRING, "strict": FLAG},
                *("name", "schema"),
            ),
        ),
    }


_STREAMED: Schema = {
    "stream": FLAG,
    "stream_options": {"type": "object", "properties": {"include_usage": or_null(FLAG)}},
}
_CHAT: Schema = {
    "messages": array(ANY_OBJECT, least=1),
    "store": FLAG,
    "service_tier": choice(options.SERVICE_TIERS),
}


def _passed_on(fields: Schema, *required: str) -> Schema:
    """A body of which *fields* are acted on here; everything else goes to the upstream, for it to judge."""
    return taken({"model": _MODEL} | fields, ["model", *required]) | {"additionalProperties": True}
