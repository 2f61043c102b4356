"""The body of ``POST /v1/responses``: JSON to a validated request, and back for the store.

What it says of the conversation is read in ``request_input``, what it says of tools in ``request_tools``, and its
other objects in ``request_options``; what is supported at all stands in ``parameters``.

Rule 1: a parameter is honoured, or a hint that is echoed, or refused because ignoring it would change the meaning.
Rule 2: whatever the JSON, the outcome is a value or an ``InvalidRequest`` that names the parameter.
Rule 3: ``parse_request(render_request(request)) == request``.

Source: OpenAI Responses API reference, "Create a response"; Open Responses specification, request body.
"""

import re
from collections.abc import Collection
from typing import Final

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.models import MODEL_CHARACTERS_MAX
from dwctl_trio.domain.request import ItemReference, ResponseRequest
from dwctl_trio.protocol import json
from dwctl_trio.protocol.fields import Fields
from dwctl_trio.protocol.offered_tools import render_choice, render_request_tools
from dwctl_trio.protocol.parameters import LOGPROBS, SUB_AGENTS
from dwctl_trio.protocol.request_input import check_calls, parse_input, render_input
from dwctl_trio.protocol.request_options import (
    CACHE_RETENTIONS,
    ID_CHARACTERS_MAX,
    check_hints,
    check_names,
    parse_cache_options,
    parse_include,
    parse_metadata,
    parse_reasoning,
    parse_service_tier,
    parse_text,
    render_cache_options,
    render_reasoning,
    render_text,
)
from dwctl_trio.protocol.request_tools import parse_request_tools, parse_tool_choice

MODEL_NAME: Final = re.compile("[^\\x09-\\x0d\\x1c-\\x20\\x85\\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
"""Something but blanks, in words that every dialect of regular expressions reads alike, as it does not read ``\\S``."""
TEMPERATURES = (0, 2)
"""OpenAI's bounds."""
TOP_PS = (0, 1)
"""OpenAI's bounds."""
PENALTIES = (-2, 2)
"""Open Responses' bounds."""
TOKENS_MAX = 2**31 - 1
"""What every upstream can read; OpenAI names no bound."""
TOP_LOGPROBS_MAX = 20
"""OpenAI's bound."""
TRUNCATIONS = ("auto", "disabled")
USER_CHARACTERS_MAX = 512
CACHE_KEY_CHARACTERS_MAX = 512
OUTPUT_TOKENS_MIN = 16
"""OpenAI's bound."""
SAFETY_IDENTIFIER_CHARACTERS_MAX = 128
"""OpenAI's bound."""


def parse_request(
    body: object, *, server_tools: Collection[str] | None = None, ignores_hosted_tools: bool = False
) -> ResponseRequest:
    """The request that *body*, decoded JSON, asks for.

    Args:
        body: What the client sent.
        server_tools: The names of the tools that it may name; None lets any name through.
        ignores_hosted_tools: See ``parse_request_tools``.

    Returns:
        The request. Where it goes on with an earlier response or refers to items of one, its calls and outputs are
        not matched yet: whoever has put the history together calls ``check_calls``.

    Raises:
        InvalidRequest: With the path of the parameter that is wrong, unknown, or not supported.
    """
    fields = Fields(body, "")
    check_names(fields)
    model = parse_model(fields)
    text_format, verbosity = parse_text(fields)
    previous = fields.text("previous_response_id", length_max=ID_CHARACTERS_MAX)
    conversation = parse_input(fields, may_be_empty=previous is not None)
    if previous is None and not any(isinstance(item, ItemReference) for item in conversation):
        check_calls(conversation)
    tools = parse_request_tools(fields, server_tools, ignores_hosted=ignores_hosted_tools)
    included = parse_include(fields)
    check_hints(fields)
    return ResponseRequest(
        model=model,
        input=conversation,
        instructions=fields.text("instructions"),
        stream=fields.flag("stream") or False,
        background=fields.flag("background") or False,
        store=_default_true(fields.flag("store")),
        service_tier=parse_service_tier(fields),
        temperature=fields.number("temperature", minimum=TEMPERATURES[0], maximum=TEMPERATURES[1]),
        top_p=fields.number("top_p", minimum=TOP_PS[0], maximum=TOP_PS[1]),
        presence_penalty=fields.number("presence_penalty", minimum=PENALTIES[0], maximum=PENALTIES[1]),
        frequency_penalty=fields.number("frequency_penalty", minimum=PENALTIES[0], maximum=PENALTIES[1]),
        max_output_tokens=fields.integer("max_output_tokens", minimum=OUTPUT_TOKENS_MIN, maximum=TOKENS_MAX),
        text_format=text_format,
        verbosity=verbosity,
        reasoning=parse_reasoning(fields),
        metadata=parse_metadata(fields),
        parallel_tool_calls=_default_true(fields.flag("parallel_tool_calls")),
        tools=tools,
        tool_choice=parse_tool_choice(fields, tools),
        max_tool_calls=fields.integer("max_tool_calls", minimum=1, maximum=TOKENS_MAX),
        shows_sub_agents=SUB_AGENTS in included,
        previous_response_id=previous,
        top_logprobs=fields.integer("top_logprobs", minimum=0, maximum=TOP_LOGPROBS_MAX),
        wants_logprobs=LOGPROBS in included,
        truncation=fields.choice("truncation", TRUNCATIONS) or "disabled",
        user=fields.text("user", length_max=USER_CHARACTERS_MAX),
        safety_identifier=fields.text("safety_identifier", length_max=SAFETY_IDENTIFIER_CHARACTERS_MAX),
        prompt_cache_key=fields.text("prompt_cache_key", length_max=CACHE_KEY_CHARACTERS_MAX),
        prompt_cache_retention=fields.choice("prompt_cache_retention", CACHE_RETENTIONS),
        prompt_cache_options=parse_cache_options(fields),
    )


def parse_model(fields: Fields) -> str:
    """The name of the model.

    Raises:
        InvalidRequest: There is none, or it is too long.
    """
    model = fields.require("model", lambda name: fields.text(name, length_max=MODEL_CHARACTERS_MAX))
    if not MODEL_NAME.search(model):
        raise InvalidRequest("Invalid 'model': it must not be empty.", param="model", code="invalid_value")
    return model


def _default_true(flag: bool | None) -> bool:
    return True if flag is None else flag


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
        "include": _render_include(request) or None,
        "previous_response_id": request.previous_response_id,
        "top_logprobs": request.top_logprobs,
        "truncation": request.truncation,
        "user": request.user,
        "safety_identifier": request.safety_identifier,
        "prompt_cache_key": request.prompt_cache_key,
        "prompt_cache_retention": request.prompt_cache_retention,
        "prompt_cache_options": render_cache_options(request.prompt_cache_options),
    }
    return {name: value for name, value in body.items() if value is not None}


def _render_include(request: ResponseRequest) -> list[str]:
    return [LOGPROBS] * request.wants_logprobs + [SUB_AGENTS] * request.shows_sub_agents
