"""Hypothesis strategies for requests as clients send them: every value of ``ResponseRequest``, and JSON near it.

Rule 1: ``response_requests`` draws all that ``parse_request`` can give, and nothing else.
Rule 2: ``request_bodies`` draws valid bodies, ``spoiled_bodies`` bodies with one thing wrong, or perhaps not.

Each strategy is built once: building one costs more than drawing from it.
"""

from functools import cache
from typing import Any

import attrs
import msgspec
from hypothesis import strategies as st

from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.request import (
    InputItem,
    JsonObject,
    JsonSchema,
    PlainText,
    PromptCacheOptions,
    ReasoningOptions,
    RequestTool,
    ResponseRequest,
    ServerToolReference,
    ServiceTier,
)
from dwctl_trio.domain.tools import ALL_SERVER_TOOLS, ChoiceMode, Namespace, OfferedTool, ToolChoice, put_into
from dwctl_trio.protocol import json
from dwctl_trio.protocol.request_body import OUTPUT_TOKENS_MIN, SAFETY_IDENTIFIER_CHARACTERS_MAX, render_request
from dwctl_trio.protocol.request_options import (
    CACHE_LIFETIMES,
    CACHE_MODES,
    CACHE_RETENTIONS,
    EFFORTS,
    METADATA_KEY_CHARACTERS_MAX,
    METADATA_PAIRS_MAX,
    METADATA_VALUE_CHARACTERS_MAX,
    REASONING_CONTEXTS,
    SCHEMA_NAME,
    SUMMARIES,
    VERBOSITIES,
)
from dwctl_trio.testing.conversation_strategies import (
    SERVER_TOOL_NAMES,
    TOOL_NAMES,
    continuations,
    conversations,
    texts,
)

__all__ = [
    "SERVER_TOOL_NAMES",
    "json_schemas",
    "json_values",
    "offered_tools",
    "request_bodies",
    "request_tools",
    "response_requests",
    "spoiled_bodies",
    "texts",
]

_FIELD_NAMES = (
    *("model", "input", "instructions", "stream", "store", "temperature", "top_p", "presence_penalty", "text"),
    *("frequency_penalty", "max_output_tokens", "reasoning", "metadata", "background", "service_tier", "tools"),
    *("parallel_tool_calls", "tool_choice", "truncation", "user", "safety_identifier", "prompt_cache_key", "include"),
    *("stream_options", "max_tool_calls", "top_logprobs", "previous_response_id", "conversation", "type", "role"),
    *("content", "format", "verbosity", "name", "schema", "strict", "description", "effort", "summary", "refusal"),
    *("generate_summary", "include_obfuscation", "call_id", "arguments", "output", "status", "error", "parameters"),
    *("server_label", "allowed_tools", "require_approval", "mode", "id", "other", "prompt_cache_options", "ttl"),
    *("background_options", "completion_window", "image", "context_compression", "context", "prewarm"),
    *("encrypted_content", "image_url", "detail", "file_data", "filename", "file_id", "input_audio", "data"),
)
_WORDS = (
    *("user", "assistant", "system", "message", "reasoning", "input_text", "output_text", "refusal", "auto", "none"),
    *("required", "disabled", "json_schema", "json_object", "text", "function_call", "flex", "high", ""),
    *("input_image", "input_file", "input_audio", "item_reference", "mcp_list_tools", "web_search", "original"),
    *("function", "custom", "mcp", "dwctl", "dwctl:tool", "function_call_output", "completed", "call_0", "f"),
)
_NAMESPACED_CHARACTERS_MAX = 100
"""Of a name that has room for a namespace's before it."""
_NAMESPACES = (None, None, Namespace(name="crm", description=""), Namespace(name="a", description="b"))


@cache
def json_values(*, max_leaves: int = 6) -> st.SearchStrategy[Any]:
    """Any JSON value, as decoded; texts and names are often those that mean something in a request."""
    numbers = st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
    scalars = st.none() | st.booleans() | numbers | texts(max_size=6)
    names = st.sampled_from(_FIELD_NAMES)
    return st.recursive(
        scalars | st.sampled_from(_WORDS),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
        max_leaves=max_leaves,
    )


@cache
def json_schemas() -> st.SearchStrategy[JsonSchema]:
    """Structured outputs with any JSON object as their schema, in the one encoding that we keep it in."""
    schemas = st.dictionaries(texts(max_size=6), json_values(max_leaves=4), max_size=3).map(msgspec.json.encode)
    return st.builds(
        JsonSchema,
        name=st.from_regex(SCHEMA_NAME, fullmatch=True),
        schema=schemas,
        description=st.none() | texts(),
        strict=st.booleans(),
    )


def _perhaps_in(namespace: Namespace | None, tool: OfferedTool) -> OfferedTool:
    """*tool* in *namespace*, if it may be in one and its name has room for that."""
    is_free = tool.kind is CallKind.SERVER or len(tool.name) > _NAMESPACED_CHARACTERS_MAX
    return tool if namespace is None or is_free else put_into(namespace, tool)


@cache
def offered_tools(*kinds: CallKind) -> st.SearchStrategy[tuple[OfferedTool, ...]]:
    """Tools of any of *kinds* under different names, with any schema or format."""
    schemas = st.none() | st.dictionaries(texts(max_size=6), json_values(max_leaves=3), max_size=2).map(
        msgspec.json.encode
    )
    descriptions = st.none() | texts()
    grammars = st.builds(
        lambda syntax, text: {"type": "grammar", "syntax": syntax, "definition": text},
        st.sampled_from(["lark", "regex"]),
        texts(),
    )
    formats = st.none() | (st.just({"type": "text"}) | grammars).map(msgspec.json.encode)
    tools = {
        CallKind.FUNCTION: st.builds(
            OfferedTool,
            kind=st.just(CallKind.FUNCTION),
            name=st.sampled_from(TOOL_NAMES),
            description=descriptions,
            parameters=schemas,
            strict=st.none() | st.booleans(),
        ),
        CallKind.CUSTOM: st.builds(
            OfferedTool,
            kind=st.just(CallKind.CUSTOM),
            name=st.sampled_from(TOOL_NAMES),
            description=descriptions,
            format=formats,
        ),
        CallKind.SERVER: st.builds(
            OfferedTool,
            kind=st.just(CallKind.SERVER),
            name=st.sampled_from(TOOL_NAMES),
            description=descriptions,
            parameters=schemas,
        ),
    }
    one = st.builds(_perhaps_in, st.sampled_from(_NAMESPACES), st.one_of([tools[kind] for kind in kinds]))
    return st.lists(one, max_size=3, unique_by=lambda tool: tool.name).map(tuple)


@st.composite
def request_tools(draw: st.DrawFn) -> tuple[tuple[RequestTool, ...] | None, ToolChoice]:
    """The tools of a request with a choice among them."""
    tools: tuple[RequestTool, ...] | None = None
    if draw(st.booleans()):
        own = draw(offered_tools(CallKind.FUNCTION, CallKind.CUSTOM))
        free = [name for name in (*SERVER_TOOL_NAMES, ALL_SERVER_TOOLS) if name not in {tool.name for tool in own}]
        references = st.lists(st.builds(ServerToolReference, name=st.sampled_from(free)), max_size=2, unique=True)
        tools = (*own, *draw(references))
    modes = [ChoiceMode.AUTO, ChoiceMode.REQUIRED]
    choices = [st.builds(ToolChoice, mode=st.sampled_from(ChoiceMode))]
    known = {ALL_SERVER_TOOLS} if tools is None else {tool.name for tool in tools}
    if ALL_SERVER_TOOLS in known:
        known |= {*SERVER_TOOL_NAMES}
    elif any(isinstance(tool, ServerToolReference) for tool in tools or ()):
        known |= {ALL_SERVER_TOOLS}
    names = sorted(known)
    if names:
        picked = st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True).map(tuple)
        choices.append(st.builds(ToolChoice, mode=st.just(ChoiceMode.REQUIRED), name=st.sampled_from(names)))
        choices.append(st.builds(ToolChoice, mode=st.sampled_from(modes), allowed=picked))
    return tools, draw(st.one_of(choices))


@cache
def response_requests() -> st.SearchStrategy[ResponseRequest]:
    """Every validated request."""
    pairs = st.dictionaries(
        texts(max_size=METADATA_KEY_CHARACTERS_MAX),
        texts(max_size=METADATA_VALUE_CHARACTERS_MAX),
        max_size=METADATA_PAIRS_MAX,
    )
    reasoning = st.builds(
        ReasoningOptions,
        effort=st.none() | st.sampled_from(EFFORTS),
        summary=st.none() | st.sampled_from(SUMMARIES),
        context=st.none() | st.sampled_from(REASONING_CONTEXTS),
    )
    cache_options = st.builds(
        PromptCacheOptions,
        mode=st.sampled_from(CACHE_MODES),
        ttl=st.sampled_from(CACHE_LIFETIMES),
        comparison_response_id=st.none() | st.just("resp_1"),
    )
    penalties = st.none() | st.floats(-2, 2)
    requests = st.builds(
        ResponseRequest,
        model=texts(min_size=1, max_size=256).filter(str.strip),
        input=conversations(),
        instructions=st.none() | texts(),
        stream=st.booleans(),
        background=st.booleans(),
        store=st.booleans(),
        service_tier=st.sampled_from(ServiceTier),
        temperature=st.none() | st.floats(0, 2),
        top_p=st.none() | st.floats(0, 1),
        presence_penalty=penalties,
        frequency_penalty=penalties,
        max_output_tokens=st.none() | st.integers(OUTPUT_TOKENS_MIN, 2**31 - 1),
        text_format=st.just(PlainText()) | st.just(JsonObject()) | json_schemas(),
        verbosity=st.none() | st.sampled_from(VERBOSITIES),
        reasoning=st.none() | reasoning,
        metadata=pairs.map(lambda found: tuple(found.items())),
        parallel_tool_calls=st.booleans(),
        max_tool_calls=st.none() | st.integers(1, 2**31 - 1),
        shows_sub_agents=st.booleans(),
        user=st.none() | texts(),
        top_logprobs=st.none() | st.integers(0, 20),
        wants_logprobs=st.booleans(),
        truncation=st.sampled_from(["auto", "disabled"]),
        safety_identifier=st.none() | texts(max_size=SAFETY_IDENTIFIER_CHARACTERS_MAX),
        prompt_cache_key=st.none() | texts(),
        prompt_cache_retention=st.none() | st.sampled_from(CACHE_RETENTIONS),
        prompt_cache_options=st.none() | cache_options,
    )
    return st.builds(_put_together, requests, request_tools(), continuations())


def _put_together(
    request: ResponseRequest,
    tools: tuple[tuple[RequestTool, ...] | None, ToolChoice],
    continued: tuple[str | None, tuple[InputItem, ...] | None],
) -> ResponseRequest:
    previous, items = continued
    request = attrs.evolve(request, tools=tools[0], tool_choice=tools[1], previous_response_id=previous)
    return request if items is None else attrs.evolve(request, input=items)


@cache
def request_bodies() -> st.SearchStrategy[dict[str, Any]]:
    """Valid bodies, as decoded."""
    return response_requests().map(lambda request: msgspec.json.decode(json.encode(render_request(request))))


@st.composite
def spoiled_bodies(draw: st.DrawFn) -> dict[str, Any]:
    """A valid body in which one value, anywhere in it, is replaced, added or taken away."""
    body = draw(request_bodies())
    place: Any = body
    while True:
        keys: list[Any] = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys)) if keys else None
        inner = None if key is None else place[key]
        if isinstance(inner, dict | list) and draw(st.integers(0, 3)):
            place = inner
            continue
        if isinstance(place, list):
            place.append(draw(json_values()))
        elif key is None or draw(st.booleans()):
            place[draw(st.sampled_from(_FIELD_NAMES))] = draw(json_values())
        elif draw(st.booleans()):
            del place[key]
        else:
            place[key] = draw(json_values())
        return body
