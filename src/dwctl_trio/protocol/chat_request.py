"""A model call as a chat-completions request body.

Rule 1: the upstream gets what shapes the answer, and nothing that only the client cares about (metadata, cache hints).
Rule 2: what one provider does differently is a field of ``Quirks``, never a branch on a provider's name.
Rule 3: we always ask for a stream, whatever our own client asked for: one way to read answers.

Source: OpenAI Chat Completions API reference, "Create chat completion".
"""

from collections.abc import Sequence
from typing import Any, Final, assert_never

import attrs
import msgspec

from dwctl_trio.domain.items import CallKind, OutputItem
from dwctl_trio.domain.request import JsonObject, JsonSchema, PlainText, ReasoningOptions, ResponseRequest, TextFormat
from dwctl_trio.domain.tools import ChoiceMode, OfferedTool
from dwctl_trio.domain.transitions import TurnPlan
from dwctl_trio.protocol import json
from dwctl_trio.protocol.chat_history import INPUT_NAME, render_history

_ANY_PARAMETERS: Final = {"type": "object", "properties": {}}
_CUSTOM_PARAMETERS: Final = {
    "type": "object",
    "properties": {INPUT_NAME: {"type": "string"}},
    "required": [INPUT_NAME],
    "additionalProperties": False,
}


@attrs.frozen(kw_only=True)
class Quirks:
    """How an upstream differs from the API that it imitates."""

    drop: frozenset[str] = frozenset()
    """Top-level fields, by our names, that the upstream refuses and we therefore leave out."""
    rename: tuple[tuple[str, str], ...] = ()
    """Pairs of our name and theirs for a top-level field, as in ``("max_tokens", "max_completion_tokens")``."""
    developer_role: bool = True
    """False: the upstream does not know the role ``developer``; it gets ``system``."""
    stream_usage: bool = True
    """False: the upstream refuses ``stream_options``; usage is then what it volunteers."""
    named_tool_choice: bool = True
    """False: the upstream cannot be told which tool to call; it is offered that one only, and must call one."""
    reasoning_history: str | None = None
    """What the upstream calls the reasoning of an earlier turn; None: it takes none back."""
    efforts: tuple[tuple[str, str], ...] = ()
    """Pairs of a ``reasoning_effort`` of OpenAI's and the upstream's own word, as in ``("xhigh", "high")``."""


DEFAULT_QUIRKS = Quirks()
"""An upstream that differs in nothing."""


def render_chat_request(
    request: ResponseRequest, output: Sequence[OutputItem], plan: TurnPlan, *, upstream_model: str, quirks: Quirks
) -> bytes:
    """The JSON body of the next model call.

    Args:
        request: What was asked.
        output: What the loop has come to so far, oldest first.
        plan: What the model may do this time.
        upstream_model: The model's name at the upstream.
        quirks: Applied last: first dropped, then renamed.

    Returns:
        UTF-8 JSON on one line.
    """
    reasoning = request.reasoning or ReasoningOptions()
    messages = render_history(
        request.input,
        output,
        developer_role=quirks.developer_role,
        reasoning_field=quirks.reasoning_history,
        reasoning_context=reasoning.context,
    )
    if request.instructions is not None:
        messages.insert(0, {"role": "system", "content": request.instructions})
    body: dict[str, Any] = {"model": upstream_model, "messages": messages, "stream": True}
    if quirks.stream_usage:
        body["stream_options"] = {"include_usage": True}
    options = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        # The older name: every self-hosted engine knows it, not all know max_completion_tokens.
        "max_tokens": plan.max_output_tokens,
        "response_format": _response_format(request.text_format),
        "verbosity": request.verbosity,
        "reasoning_effort": dict(quirks.efforts).get(reasoning.effort or "", reasoning.effort),
        "user": request.user,
        "logprobs": request.asks_logprobs or None,
        "top_logprobs": request.top_logprobs or None,
    }
    body |= {name: value for name, value in options.items() if value is not None}
    body |= _tools(plan, parallel=request.parallel_tool_calls, can_name=quirks.named_tool_choice)
    return json.encode(apply_quirks(body, quirks))


def apply_quirks(body: dict[str, Any], quirks: Quirks) -> dict[str, Any]:
    """*body* without the fields that the upstream refuses, the others under its names."""
    if not quirks.drop and not quirks.rename:
        return body
    names = dict(quirks.rename)
    return {names.get(name, name): value for name, value in body.items() if name not in quirks.drop}


def _tools(plan: TurnPlan, *, parallel: bool, can_name: bool) -> dict[str, Any]:
    """The fields about tools; none of them without any tool, for upstreams refuse that."""
    tools, choice = plan.tools, plan.tool_choice
    if not tools:
        return {}
    if choice.name is not None and not can_name:
        tools, choice = tuple(tool for tool in tools if tool.name == choice.name), attrs.evolve(choice, name=None)
    fields: dict[str, Any] = {"tools": [{"type": "function", "function": _function(tool)} for tool in tools]}
    if choice.name is not None:
        fields["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif choice.mode is not ChoiceMode.AUTO:  # which is what upstreams do by themselves
        fields["tool_choice"] = choice.mode.value
    if not parallel:
        fields["parallel_tool_calls"] = False
    return fields


def _function(tool: OfferedTool) -> dict[str, Any]:
    """*tool* as a function; a custom one takes its text as the only argument."""
    texts = [tool.namespace.description if tool.namespace else None, tool.description, _format_advice(tool.format)]
    description = "\n\n".join(text for text in texts if text)
    if tool.kind is CallKind.CUSTOM:
        parameters: object = _CUSTOM_PARAMETERS
    else:
        parameters = _ANY_PARAMETERS if tool.parameters is None else msgspec.Raw(tool.parameters)
    function: dict[str, Any] = {"name": tool.name}
    if description:
        function["description"] = description
    function["parameters"] = parameters
    if tool.strict is not None:
        function["strict"] = tool.strict
    return function


def _format_advice(encoded: bytes | None) -> str | None:
    """What the input of a custom tool must look like, in words; nothing holds the model to it."""
    form = None if encoded is None else msgspec.json.decode(encoded)
    if form is None or form["type"] != "grammar":
        return None
    return f"The input must match this grammar ({form['syntax']}):\n{form['definition']}"


def _response_format(text_format: TextFormat) -> dict[str, Any] | None:
    match text_format:
        case PlainText():
            return None
        case JsonObject():
            return {"type": "json_object"}
        case JsonSchema():
            schema: dict[str, Any] = {"name": text_format.name, "schema": msgspec.Raw(text_format.schema)}
            if text_format.description is not None:
                schema["description"] = text_format.description
            schema["strict"] = text_format.strict
            return {"type": "json_schema", "json_schema": schema}
        case _ as never:
            assert_never(never)
