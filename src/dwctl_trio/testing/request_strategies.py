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

from dwctl_trio.domain.items import CallKind, CustomToolCall, FunctionCall, ItemStatus, McpCall
from dwctl_trio.domain.request import (
    CustomToolCallOutput,
    FunctionCallOutput,
    InputItem,
    InputMessage,
    InputPart,
    JsonObject,
    JsonSchema,
    PartKind,
    PlainText,
    ReasoningOptions,
    RequestTool,
    ResponseRequest,
    Role,
    ServerToolReference,
    ServiceTier,
)
from dwctl_trio.domain.tools import ALL_SERVER_TOOLS, ChoiceMode, OfferedTool, ToolChoice
from dwctl_trio.protocol import json
from dwctl_trio.protocol.request_body import (
    EFFORTS,
    METADATA_KEY_CHARACTERS_MAX,
    METADATA_PAIRS_MAX,
    METADATA_VALUE_CHARACTERS_MAX,
    OUTPUT_TOKENS_MIN,
    SCHEMA_NAME,
    SUMMARIES,
    VERBOSITIES,
    render_request,
)

_FIELD_NAMES = (
    *("model", "input", "instructions", "stream", "store", "temperature", "top_p", "presence_penalty", "text"),
    *("frequency_penalty", "max_output_tokens", "reasoning", "metadata", "background", "service_tier", "tools"),
    *("parallel_tool_calls", "tool_choice", "truncation", "user", "safety_identifier", "prompt_cache_key", "include"),
    *("stream_options", "max_tool_calls", "top_logprobs", "previous_response_id", "conversation", "type", "role"),
    *("content", "format", "verbosity", "name", "schema", "strict", "description", "effort", "summary", "refusal"),
    *("generate_summary", "include_obfuscation", "call_id", "arguments", "output", "status", "error", "parameters"),
    *("server_label", "allowed_tools", "require_approval", "mode", "id", "other"),
)
_WORDS = (
    *("user", "assistant", "system", "message", "reasoning", "input_text", "output_text", "refusal", "auto", "none"),
    *("required", "disabled", "json_schema", "json_object", "text", "function_call", "flex", "high", ""),
    *("function", "custom", "mcp", "dwctl", "dwctl:tool", "function_call_output", "completed", "call_0", "f"),
)
SERVER_TOOL_NAMES = ("f", "get_weather", "run-code")
"""Those of the server's tools that requests name."""
_TOOL_NAMES = (*SERVER_TOOL_NAMES, "A" * 128)
_ITEM_IDS = ("", "item_1", "fc_0193a4d6000070008000000000000001a")


@cache
def texts(*, min_size: int = 0, max_size: int = 20) -> st.SearchStrategy[str]:
    """Any text that a client's JSON can hold: no NUL and no half of a surrogate pair."""
    characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    return st.text(characters | st.sampled_from('"\\\n\r\u2028\u2029\u0085😀'), min_size=min_size, max_size=max_size)


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
def input_messages() -> st.SearchStrategy[InputMessage]:
    """Messages of every role, with any parts."""
    parts = st.builds(InputPart, kind=st.sampled_from(PartKind), text=texts())
    return st.builds(InputMessage, role=st.sampled_from(Role), content=st.lists(parts, max_size=3).map(tuple))


@cache
def json_schemas() -> st.SearchStrategy[JsonSchema]:
    """Structured outputs with any JSON object as their schema, in the one encoding that we keep it in."""
    schemas = st.dictionaries(texts(max_size=6), json_values(max_leaves=4), max_size=3).map(msgspec.json.encode)
    return st.builds(
        JsonSchema,
        name=st.from_regex(SCHEMA_NAME, fullmatch=True),
        schema=schemas,
        description=st.none() | texts(),
        strict=st.none() | st.booleans(),
    )


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
            name=st.sampled_from(_TOOL_NAMES),
            description=descriptions,
            parameters=schemas,
            strict=st.none() | st.booleans(),
        ),
        CallKind.CUSTOM: st.builds(
            OfferedTool,
            kind=st.just(CallKind.CUSTOM),
            name=st.sampled_from(_TOOL_NAMES),
            description=descriptions,
            format=formats,
        ),
        CallKind.SERVER: st.builds(
            OfferedTool,
            kind=st.just(CallKind.SERVER),
            name=st.sampled_from(_TOOL_NAMES),
            description=descriptions,
            parameters=schemas,
        ),
    }
    one = st.one_of([tools[kind] for kind in kinds])
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
        known = (known - {ALL_SERVER_TOOLS}) | set(SERVER_TOOL_NAMES)
    names = sorted(known)
    if names:
        picked = st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True).map(tuple)
        choices.append(st.builds(ToolChoice, mode=st.just(ChoiceMode.REQUIRED), name=st.sampled_from(names)))
        choices.append(st.builds(ToolChoice, mode=st.sampled_from(modes), allowed=picked))
    return tools, draw(st.one_of(choices))


@cache
def mcp_calls() -> st.SearchStrategy[McpCall]:
    """Calls of server tools as a later request repeats them, whatever became of them."""
    ids = st.sampled_from([f"mcp_{'0' * 31}{turn}{place}" for turn in (1, 2) for place in (0, 1)] + ["mcp_x"])
    common = {"name": st.sampled_from(_TOOL_NAMES), "arguments": texts(max_size=6) | st.just('{"a": [1]}')}
    made = st.one_of(
        st.builds(McpCall, id=ids, status=st.just(ItemStatus.COMPLETED), call_id=st.just(""), output=texts(), **common),
        st.builds(McpCall, id=ids, status=st.just(ItemStatus.FAILED), call_id=st.just(""), error=texts(), **common),
        st.builds(McpCall, id=ids, status=st.just(ItemStatus.INCOMPLETE), call_id=st.just(""), **common),
    )
    return made.map(lambda call: attrs.evolve(call, call_id=call.id))


@cache
def _client_calls() -> st.SearchStrategy[FunctionCall | CustomToolCall]:
    fields: dict[str, st.SearchStrategy[Any]] = {
        "id": st.sampled_from(_ITEM_IDS),
        "status": st.sampled_from([ItemStatus.COMPLETED, ItemStatus.IN_PROGRESS, ItemStatus.INCOMPLETE]),
        "call_id": st.just(""),
        "name": st.sampled_from(_TOOL_NAMES),
        "arguments": texts(max_size=6) | st.just('{"a": [1]}'),
    }
    return st.builds(FunctionCall, **fields) | st.builds(CustomToolCall, **fields)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[InputItem, ...]:
    """The input of a request: messages and calls, every call of the client's with its output somewhere behind it."""
    items: list[InputItem] = []
    waiting: list[FunctionCall | CustomToolCall] = []

    def answer(call: FunctionCall | CustomToolCall) -> None:
        waiting.remove(call)
        make = FunctionCallOutput if isinstance(call, FunctionCall) else CustomToolCallOutput
        items.append(make(call_id=call.call_id, output=draw(texts(max_size=6))))

    for _ in range(draw(st.integers(1, 5))):
        free = [call_id for call_id in ("call_0", "call_1", "call_2") if call_id not in {c.call_id for c in waiting}]
        match draw(st.sampled_from(["message", "message", "call", "call", "server", "output"])):
            case "call" if free:
                call = attrs.evolve(draw(_client_calls()), call_id=draw(st.sampled_from(free)))
                items.append(call)
                waiting.append(call)
            case "server":
                items.append(draw(mcp_calls()))
            case "output" if waiting:
                answer(draw(st.sampled_from(waiting)))
            case _:
                items.append(draw(input_messages()))
    for call in draw(st.permutations(waiting)):
        if call.status is not ItemStatus.INCOMPLETE or draw(st.booleans()):
            answer(call)
    return tuple(items)


@cache
def response_requests() -> st.SearchStrategy[ResponseRequest]:
    """Every validated request."""
    pairs = st.dictionaries(
        texts(max_size=METADATA_KEY_CHARACTERS_MAX),
        texts(max_size=METADATA_VALUE_CHARACTERS_MAX),
        max_size=METADATA_PAIRS_MAX,
    )
    reasoning = st.builds(
        ReasoningOptions, effort=st.none() | st.sampled_from(EFFORTS), summary=st.none() | st.sampled_from(SUMMARIES)
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
        safety_identifier=st.none() | texts(max_size=64),
        prompt_cache_key=st.none() | texts(),
    )
    return st.builds(
        lambda request, tools: attrs.evolve(request, tools=tools[0], tool_choice=tools[1]), requests, request_tools()
    )


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
