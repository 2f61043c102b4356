"""The options of a request that are objects of their own, and the hints: JSON to values, and back for the store.

Rule 1: which fields there are, ``parameters`` says; here stands what may be in them.
Rule 2: a hint is checked like anything else, so that a program that works here works elsewhere.

Source: OpenAI Responses API reference, "Create a response"; OpenAI Python SDK, ``response_create_params``.
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.request import (
    JsonObject,
    JsonSchema,
    PlainText,
    PromptCacheOptions,
    ReasoningOptions,
    ResponseRequest,
    ServiceTier,
    TextFormat,
)
from dwctl_trio.protocol.fields import Fields, joined, shown_text, wrong_type
from dwctl_trio.protocol.parameters import (
    CREATE_PARAMETERS,
    INCLUDES,
    Support,
    accepted,
    names,
    names_below,
    plain_note,
)

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
SUMMARIES = ("auto", "concise", "detailed")
REASONING_CONTEXTS = ("auto", "current_turn", "all_turns")
VERBOSITIES = ("low", "medium", "high")
CACHE_RETENTIONS = ("in_memory", "24h")
CACHE_MODES = ("implicit", "explicit")
CACHE_LIFETIMES = ("30m", "12h")
REASONING_MODES = ("standard",)
COMPLETION_WINDOWS = ("soonest",)
IMAGE_COMPRESSIONS = ("auto", "disabled")
METADATA_PAIRS_MAX = 16
"""OpenAI's bound."""
METADATA_KEY_CHARACTERS_MAX = 64
"""OpenAI's bound."""
METADATA_VALUE_CHARACTERS_MAX = 512
"""OpenAI's bound."""
SCHEMA_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""OpenAI's rule."""
ID_CHARACTERS_MAX = 64
"""Ours have 41."""

SERVICE_TIERS: Final[Mapping[str, ServiceTier]] = {
    "auto": ServiceTier.AUTO,
    "default": ServiceTier.DEFAULT,
    "flex": ServiceTier.FLEX,
    "priority": ServiceTier.PRIORITY,
    "fast": ServiceTier.PRIORITY,
    "ultrafast": ServiceTier.PRIORITY,
    "scale": ServiceTier.DEFAULT,
}
"""The tiers that OpenAI has, and what they are here."""

_PARAMETERS: Final = frozenset(names_below(CREATE_PARAMETERS, ""))
_REFUSED: Final = names(CREATE_PARAMETERS, Support.REFUSED)
_FIELDS: Final = {name: frozenset(names_below(CREATE_PARAMETERS, f"{name}.")) for name in _PARAMETERS}
"""The fields of the parameters that are objects."""


def check_names(fields: Fields) -> None:
    """Raise for the first parameter of a request body that is unknown, or that is refused."""
    fields.refuse_unknown(_PARAMETERS)
    for name in _REFUSED:
        if fields.raw(name) is not None:
            raise InvalidRequest(
                f"Unsupported parameter: '{name}'. {plain_note(CREATE_PARAMETERS[name])}",
                param=name,
                code="unsupported_parameter",
            )


def parse_service_tier(fields: Fields) -> ServiceTier:
    """The ``service_tier`` of a request body; ``auto`` without one."""
    return SERVICE_TIERS[fields.choice("service_tier", SERVICE_TIERS) or "auto"]


def parse_include(fields: Fields) -> frozenset[str]:
    """What is asked for beyond the usual."""
    asked_for = fields.items("include") or ()
    for index, asked in enumerate(asked_for):
        check_included(asked, f"include[{index}]")
    return frozenset(str(asked) for asked in asked_for)


def check_included(asked: object, path: str) -> None:
    """Raise unless *asked*, which stands at *path*, may be asked for beyond the usual."""
    supported = accepted(INCLUDES)
    if asked not in supported:
        raise InvalidRequest(
            f"Unsupported '{path}': supported values are {joined(supported)}.", param=path, code="unsupported_parameter"
        )


def check_hints(fields: Fields) -> None:
    """Raise for what is wrong in the hints that nobody reads."""
    options = _object(fields, "stream_options")
    if options is not None:
        options.flag("include_obfuscation")
    fields.object("client_metadata")
    background = _object(fields, "background_options")
    if background is not None:
        _check_only(background, "completion_window", *COMPLETION_WINDOWS)
        background.text("continuation_id")
    image = _object(fields, "image")
    if image is not None:
        _check_only(image, "context_compression", *IMAGE_COMPRESSIONS)


def _object(fields: Fields, name: str) -> Fields | None:
    """The object *name* of the body, with no field but those that the table knows."""
    found = fields.object(name)
    if found is not None:
        found.refuse_unknown(_FIELDS[name])
    return found


def _check_only(fields: Fields, name: str, *values: str) -> None:
    """Raise for a value of OpenAI's that means what cannot be had here."""
    value, path = fields.text(name), fields.path(name)
    if value is not None and value not in values:
        raise InvalidRequest(
            f"Unsupported '{path}': supported values are {joined(values)}. {plain_note(CREATE_PARAMETERS[path])}",
            param=path,
            code="unsupported_value",
        )


def parse_cache_options(fields: Fields) -> PromptCacheOptions | None:
    """The ``prompt_cache_options`` of a request body, with OpenAI's defaults."""
    options = _object(fields, "prompt_cache_options")
    if options is None:
        return None
    if options.flag("prewarm"):
        path = options.path("prewarm")
        raise InvalidRequest(
            f"Unsupported '{path}'. {plain_note(CREATE_PARAMETERS[path])}", param=path, code="unsupported_value"
        )
    return PromptCacheOptions(
        mode=options.choice("mode", CACHE_MODES) or "implicit",
        ttl=options.choice("ttl", CACHE_LIFETIMES) or "30m",
        comparison_response_id=options.text("comparison_response_id", length_max=ID_CHARACTERS_MAX),
    )


def parse_text(fields: Fields) -> tuple[TextFormat, str | None]:
    """The ``text`` of a request body: the format of the output, and how verbose it is to be."""
    text = _object(fields, "text")
    return (PlainText(), None) if text is None else (_parse_format(text), text.choice("verbosity", VERBOSITIES))


def _parse_format(text: Fields) -> TextFormat:
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
    if "json_schema" in fields.names():
        path = fields.path("json_schema")
        raise InvalidRequest(
            f"Unknown parameter: '{path}'. Here 'name', 'schema' and 'strict' stand beside 'type'; only chat "
            "completions nest them.",
            param=path,
            code="unknown_parameter",
        )
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
        strict=fields.flag("strict") or False,
    )


def parse_reasoning(body: Fields) -> ReasoningOptions | None:
    """The ``reasoning`` of a request body."""
    fields = _object(body, "reasoning")
    if fields is None:
        return None
    _check_only(fields, "mode", *REASONING_MODES)
    older_summary = fields.choice("generate_summary", SUMMARIES)
    return ReasoningOptions(
        effort=fields.choice("effort", EFFORTS),
        summary=fields.choice("summary", SUMMARIES) or older_summary,
        context=fields.choice("context", REASONING_CONTEXTS),
    )


def parse_metadata(body: Fields) -> tuple[tuple[str, str], ...]:
    """The ``metadata`` of a request body, in the client's order."""
    fields = body.object("metadata")
    if fields is None:
        return ()
    keys = list(fields.names())
    if len(keys) > METADATA_PAIRS_MAX:
        raise InvalidRequest(
            f"Invalid 'metadata': expected at most {METADATA_PAIRS_MAX} pairs, but got {len(keys)}.",
            param="metadata",
            code="object_above_max_properties",
        )
    for key in keys:
        if len(key) > METADATA_KEY_CHARACTERS_MAX:
            raise InvalidRequest(
                f"Invalid 'metadata': expected keys of at most {METADATA_KEY_CHARACTERS_MAX} characters, "
                f"but '{shown_text(key)}' has {len(key)}.",
                param="metadata",
                code="string_above_max_length",
            )
    return tuple((key, _metadata_value(fields, key)) for key in keys)


def _metadata_value(fields: Fields, name: str) -> str:
    """A value, which unlike a parameter cannot be left out by giving null."""
    value = fields.text(name, length_max=METADATA_VALUE_CHARACTERS_MAX)
    if value is None:
        raise wrong_type(fields.path(name), "a string", None)
    return value


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
            # All four are always there, as Open Responses demands.
            form = {"type": "json_schema", "name": asked.name, "description": asked.description}
            form |= {"schema": schema, "strict": asked.strict}
    return {"format": form} if request.verbosity is None else {"format": form, "verbosity": request.verbosity}


def render_reasoning(reasoning: ReasoningOptions | None) -> Mapping[str, object] | None:
    """The ``reasoning`` object, or None where none was sent."""
    if reasoning is None:
        return None
    rendered = {"effort": reasoning.effort, "summary": reasoning.summary}
    return rendered if reasoning.context is None else rendered | {"context": reasoning.context}


def render_cache_options(options: PromptCacheOptions | None) -> Mapping[str, object] | None:
    """The ``prompt_cache_options`` object, or None where none was sent."""
    if options is None:
        return None
    rendered = {"mode": options.mode, "ttl": options.ttl}
    compared = options.comparison_response_id
    return rendered if compared is None else rendered | {"comparison_response_id": compared}
