"""Hypothesis strategies for requests as clients send them: every value of ``ResponseRequest``, and JSON near it.

Rule 1: ``response_requests`` draws all that ``parse_request`` can give, and nothing else.
Rule 2: ``request_bodies`` draws valid bodies, ``spoiled_bodies`` bodies with one thing wrong, or perhaps not.

Each strategy is built once: building one costs more than drawing from it.
"""

from functools import cache
from typing import Any

import msgspec
from hypothesis import strategies as st

from dwctl_trio.domain.request import (
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
)
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
    *("generate_summary", "include_obfuscation", "other"),
)
_WORDS = (
    *("user", "assistant", "system", "message", "reasoning", "input_text", "output_text", "refusal", "auto", "none"),
    *("required", "disabled", "json_schema", "json_object", "text", "function_call", "flex", "high", ""),
)


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
    return st.builds(
        ResponseRequest,
        model=texts(min_size=1, max_size=256).filter(str.strip),
        input=st.lists(input_messages(), min_size=1, max_size=3).map(tuple),
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
        tool_choice=st.sampled_from(["auto", "none"]),
        user=st.none() | texts(),
        safety_identifier=st.none() | texts(max_size=64),
        prompt_cache_key=st.none() | texts(),
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
