"""The schemas of what the server answers: responses, their items, their events, errors, lists.

Rule: which fields there are is asked of the code that renders them, and all of them are always there; here stands only
what each may hold. A field without an entry is an error when the document is built.
"""

from collections.abc import Iterator, Mapping

from dwctl_trio.domain import items
from dwctl_trio.domain.items import ItemStatus
from dwctl_trio.domain.request import ServiceTier
from dwctl_trio.domain.response import ErrorCode, ErrorType, IncompleteReason, ResponseStatus
from dwctl_trio.domain.steps import ModelCall, Step, StepDescriptor, StepState, ToolCall
from dwctl_trio.domain.turn import FinishReason
from dwctl_trio.domain.usage import Usage
from dwctl_trio.protocol.event_samples import SAMPLE_RESPONSE, sample_events
from dwctl_trio.protocol.event_stream import render_event
from dwctl_trio.protocol.openapi.schema import (
    ANY_OBJECT,
    COUNT,
    FLAG,
    NULL,
    STRING,
    Schema,
    any_of,
    array,
    choice,
    constant,
    given,
    number,
    or_null,
    ref,
    tagged,
    text,
)
from dwctl_trio.protocol.output_items import render_item, render_part, render_tool_error
from dwctl_trio.protocol.response_object import render_response, render_usage
from dwctl_trio.protocol.step_list import render_step

_SMALL = ItemStatus.COMPLETED
_ITEMS: Mapping[str, items.OutputItem] = {
    "OutputMessage": items.Message(id="", status=_SMALL),
    "ReasoningItem": items.Reasoning(id="", status=_SMALL),
    "FunctionCall": items.FunctionCall(id="", status=_SMALL, call_id="", name=""),
    "CustomToolCall": items.CustomToolCall(id="", status=_SMALL, call_id="", name=""),
    "McpCall": items.McpCall(id="", status=_SMALL, call_id="", name=""),
}
_PARTS: Mapping[str, items.ContentPart] = {
    "OutputText": items.TextPart(text=""),
    "Refusal": items.RefusalPart(refusal=""),
    "ReasoningText": items.ReasoningPart(text=""),
}
_TYPED: Schema = given({"type": STRING}) | {"additionalProperties": True}
"""Whatever has a type; what else is in it is told elsewhere."""
_EVENT_FIELDS: Mapping[str, Schema] = {
    "response": ref("Response"),
    "item": ref("OutputItem"),
    "part": ref("ContentPart"),
    "annotation": ANY_OBJECT,
    "logprobs": array(ANY_OBJECT),
    "agent": given({"agent_name": STRING}),
    "event": _TYPED,
    **dict.fromkeys(("output_index", "content_index", "summary_index", "annotation_index"), COUNT),
    **dict.fromkeys(("item_id", "delta", "text", "refusal", "name", "arguments", "input", "obfuscation"), STRING),
}
_ITEM_FIELDS: Mapping[str, Schema] = {
    "status": choice([status.value for status in ItemStatus]),
    "role": constant("assistant"),
    "content": array(ref("ContentPart")),
    "summary": array(given({"type": constant("summary_text"), "text": STRING})),
    "output": or_null(STRING),
    "error": or_null(ref("McpToolError")),
    **dict.fromkeys(("approval_request_id", "encrypted_content"), or_null(STRING)),
    **dict.fromkeys(("id", "call_id", "name", "arguments", "input", "server_label"), STRING),
}
_PART_FIELDS: Mapping[str, Schema] = {
    "text": STRING,
    "refusal": STRING,
    "annotations": array(ANY_OBJECT),
    "logprobs": array(ANY_OBJECT),
}
_RESPONSE_FIELDS: Mapping[str, Schema] = {
    "id": text(pattern="^resp_"),
    "object": constant("response"),
    "created_at": COUNT,
    "completed_at": or_null(COUNT),
    "status": choice([status.value for status in ResponseStatus]),
    "error": or_null(ref("ResponseError")),
    "incomplete_details": or_null(given({"reason": choice([reason.value for reason in IncompleteReason])})),
    "output": array(ref("OutputItem")),
    "reasoning": any_of(given({"effort": or_null(STRING), "summary": or_null(STRING)}), NULL),
    "prompt_cache_options": or_null(ANY_OBJECT),
    "service_tier": choice([tier.value for tier in ServiceTier]),
    "temperature": number(0, 2),
    "text": ANY_OBJECT,
    "tool_choice": any_of(STRING, ANY_OBJECT),
    "tools": array(_TYPED),
    "top_logprobs": COUNT,
    "top_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "truncation": STRING,
    "usage": or_null(ref("Usage")),
    "metadata": {"type": "object", "additionalProperties": STRING},
    **dict.fromkeys(("background", "parallel_tool_calls", "store"), FLAG),
    **dict.fromkeys(("max_output_tokens", "max_tool_calls"), or_null(COUNT)),
    **dict.fromkeys(
        (
            *("instructions", "previous_response_id", "prompt_cache_key", "prompt_cache_retention"),
            *("safety_identifier", "user"),
        ),
        or_null(STRING),
    ),
    "model": STRING,
    **dict.fromkeys(("conversation", "moderation", "prompt"), NULL),
}
_RESPONSE_NOTES: Mapping[str, str] = {
    "id": "`resp_` and a UUID.",
    "object": "`response`.",
    "created_at": "Unix seconds, by the clock of the database.",
    "completed_at": "Unix seconds; `null` unless it is `completed`.",
    "status": "All of OpenAI's.",
    "background": "As asked.",
    "error": "`null` unless it is `failed`.",
    "incomplete_details": "`null` unless it was ended early by a limit or a filter.",
    "instructions": "As sent.",
    "max_output_tokens": "As asked.",
    "max_tool_calls": "As asked.",
    "model": "The name that the request gave, not the upstream's.",
    "output": "The items below.",
    "parallel_tool_calls": "As asked.",
    "previous_response_id": "As asked.",
    "prompt_cache_key": "As sent.",
    "prompt_cache_options": "As sent, with OpenAI's defaults.",
    "prompt_cache_retention": "As sent.",
    "reasoning": "As asked; `null` in its fields where nothing was.",
    "safety_identifier": "As sent.",
    "service_tier": "The tier that served it: `flex`, or `default` for all others.",
    "store": "As asked; of Open Responses.",
    "temperature": "As asked, or 1.",
    "text": "As asked.",
    "tool_choice": "As asked.",
    "tools": "The client's as they were given, and the server's as one `mcp` entry with their names.",
    "top_logprobs": "As asked, or 0.",
    "top_p": "As asked, or 1.",
    "presence_penalty": "As asked, or 0; of Open Responses.",
    "frequency_penalty": "As asked, or 0; of Open Responses.",
    "truncation": "As asked.",
    "usage": "Summed over all model calls, sub-agents' included; `null` where the upstream gave none.",
    "user": "As sent.",
    "metadata": "As sent.",
    "conversation": "Always `null`: this server keeps no conversations.",
    "moderation": "Always `null`: nothing is moderated here.",
    "prompt": "Always `null`: this server keeps no prompt templates.",
}
_ITEM_NOTES: Mapping[str, str] = {
    "OutputMessage": "What the model says: `output_text` and `refusal`.",
    "ReasoningItem": "What the model thought, as `reasoning_text` in `content`, where the upstream shows it.",
    "FunctionCall": "A call of the client's function: the client runs it, and sends the output in its next request.",
    "CustomToolCall": "The same with plain text.",
    "McpCall": "A call of the server's own tool, with its output or its error.",
}
_STEP_FIELDS: Mapping[str, Schema] = {
    "id": STRING,
    "object": constant("response.step"),
    "sequence": {"type": "integer", "minimum": 1},
    "status": choice([state.value for state in StepState]),
    "parent_step_id": or_null(STRING),
    "error": or_null(given({"type": choice([kind.value for kind in ErrorType]), "message": STRING})),
    "output": any_of(array(ref("OutputItem")), STRING, NULL),
    "finish_reason": or_null(choice([reason.value for reason in FinishReason])),
    "usage": or_null(ref("Usage")),
    **dict.fromkeys(("call_id", "name", "arguments"), STRING),
}


def answer_schemas() -> dict[str, Schema]:
    """All of them, by the names that the document refers to."""
    response = render_response(SAMPLE_RESPONSE)
    return {
        "Error": given({"error": _ERROR}),
        "Response": _described(response, _RESPONSE_FIELDS, _RESPONSE_NOTES),
        "ResponseError": given({"code": choice([code.value for code in ErrorCode]), "message": STRING}),
        "Usage": _usage(),
        **{
            name: _described(render_item(item), _ITEM_FIELDS) | {"description": _ITEM_NOTES[name]}
            for name, item in _ITEMS.items()
        },
        "OutputItem": tagged({str(render_item(item)["type"]): name for name, item in _ITEMS.items()}),
        **{name: _described(render_part(part), _PART_FIELDS) for name, part in _PARTS.items()},
        "ContentPart": tagged({str(render_part(part)["type"]): name for name, part in _PARTS.items()}),
        "McpToolError": _described(
            render_tool_error("") or {},
            {"content": array(given({"type": constant("text"), "text": STRING}))},
        ),
        **dict(_events()),
        "ErrorEvent": given(
            {"type": constant("error"), "sequence_number": COUNT, "message": STRING, **_ERROR_PLACE, "error": _ERROR}
        ),
        "ResponseStreamEvent": tagged({kind: name for name, kind in _event_names()} | {"error": "ErrorEvent"}),
        "DeletedResponse": given({"id": STRING, "object": constant("response"), "deleted": {"const": True}}),
        "ModelCallStep": _step(ModelCall()),
        "ToolCallStep": _step(ToolCall(call_id="", name="", arguments="")),
        "StepList": list_of(any_of(ref("ModelCallStep"), ref("ToolCallStep"))),
        "InputItemList": list_of(given({"type": STRING, "id": STRING}) | {"additionalProperties": True}),
        "ResponseList": list_of(ref("Response")),
        "Model": given({"id": STRING, "object": constant("model"), "created": COUNT, "owned_by": STRING}),
        "ModelList": given({"object": constant("list"), "data": array(ref("Model"))}),
        "InputTokens": given({"object": constant("response.input_tokens"), "input_tokens": COUNT}),
        "Completion": ANY_OBJECT | {"description": "As the upstream gave it, under the model's name here."},
        "CompletionChunk": ANY_OBJECT | {"description": "As the upstream gave it, or an `Error`."},
        "Embeddings": ANY_OBJECT | {"description": "As the upstream gave it, under the model's name here."},
        "ChatCompletion": ANY_OBJECT | {"description": "As the upstream gave it."},
        "ChatCompletionChunk": ANY_OBJECT | {"description": "As the upstream gave it, or an `Error`."},
        "Health": given({"status": STRING}),
    }


_ERROR_PLACE = dict.fromkeys(("param", "code"), or_null(STRING))
_ERROR = given(dict.fromkeys(("message", "type"), STRING) | _ERROR_PLACE)


def list_of(element: Schema) -> Schema:
    """A page of a list."""
    ends = dict.fromkeys(("first_id", "last_id"), or_null(STRING))
    return given({"object": constant("list"), "data": array(element), **ends, "has_more": FLAG})


def _described(
    rendered: Mapping[str, object], fields: Mapping[str, Schema], notes: Mapping[str, str] | None = None
) -> Schema:
    """The schema of an object like *rendered*, whose ``type`` is its own; with notes, every field needs one."""
    kind = {"type": constant(str(rendered["type"]))} if "type" in rendered else {}
    properties = {name: kind[name] if name in kind else fields[name] for name in rendered}
    if notes is None:
        return given(properties)
    return given({name: schema | {"description": notes[name]} for name, schema in properties.items()})


def _step(descriptor: StepDescriptor) -> Schema:
    step = Step(id=SAMPLE_RESPONSE.id, sequence=1, descriptor=descriptor, state=StepState.COMPLETED)
    return _described(render_step(step), _STEP_FIELDS)


def _usage() -> Schema:
    """Counts, some of them within details."""
    rendered = render_usage(Usage(input_tokens=0, output_tokens=0)) or {}
    details = {name: given(dict.fromkeys(value, COUNT)) for name, value in rendered.items() if isinstance(value, dict)}
    return given({name: details.get(name, COUNT) for name in rendered})


def _event_names() -> Iterator[tuple[str, str]]:
    """The name of each event's schema, with its ``type``."""
    for event in sample_events():
        kind, _ = render_event(event)
        words = kind.removeprefix("response.").replace(":", "_").replace(".", "_").split("_")
        yield "".join(word.capitalize() for word in words) + "Event", kind


def _events() -> Iterator[tuple[str, Schema]]:
    for event, (name, kind) in zip(sample_events(), _event_names(), strict=True):
        _, fields = render_event(event)
        place = {"type": constant(kind), "sequence_number": COUNT}
        yield name, given({**place, **{field: _EVENT_FIELDS[field] for field in fields}})
