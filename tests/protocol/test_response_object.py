"""The response object: every field that clients require, always; items, parts and turns there and back."""

from typing import Any
from uuid import UUID

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response as SdkResponse

from dwctl_trio.domain.items import (
    CallKind,
    CustomToolCall,
    FunctionCall,
    ItemStatus,
    McpCall,
    Message,
    OutputItem,
    Reasoning,
    ReasoningPart,
    RefusalPart,
    TextPart,
)
from dwctl_trio.domain.request import InputMessage, InputPart, PartKind, ResponseRequest, Role, ServiceTier
from dwctl_trio.domain.response import (
    TERMINAL_STATUSES,
    ErrorCode,
    ErrorType,
    IncompleteReason,
    Response,
    ResponseError,
    ResponseStatus,
)
from dwctl_trio.domain.turn import FinishReason, ModelTurn
from dwctl_trio.domain.usage import Usage
from dwctl_trio.protocol import json
from dwctl_trio.protocol.output_items import parse_item, parse_items, parse_part, render_item, render_part
from dwctl_trio.protocol.response_object import LOGPROBS_APART, parse_turn, render_response, render_turn, render_usage
from dwctl_trio.testing.request_strategies import offered_tools, response_requests, texts
from dwctl_trio.testing.wire import parse_response

OPEN_RESPONSES_REQUIRED = {
    *("id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "previous_response_id"),
    *("instructions", "output", "error", "tools", "tool_choice", "truncation", "parallel_tool_calls", "text", "top_p"),
    *("presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "reasoning", "usage"),
    *("max_output_tokens", "max_tool_calls", "store", "background", "service_tier", "metadata"),
    *("safety_identifier", "prompt_cache_key"),
}
MAY_BE_NULL = {
    *("completed_at", "incomplete_details", "previous_response_id", "instructions", "error", "reasoning", "usage"),
    *("max_output_tokens", "max_tool_calls", "safety_identifier", "prompt_cache_key", "user"),
    *("prompt_cache_options", "prompt_cache_retention", "conversation", "moderation", "prompt"),
}
REQUIRED_OF_ITEM = {
    "message": {"type", "id", "status", "role", "content"},
    "reasoning": {"type", "id", "status", "summary", "content"},
    "function_call": {"type", "id", "call_id", "name", "arguments", "status"},
    "custom_tool_call": {"type", "id", "call_id", "name", "input", "status"},
    "mcp_call": {
        *("type", "id", "server_label", "name", "arguments", "status", "output", "error", "approval_request_id"),
    },
}

statuses = st.sampled_from([status for status in ItemStatus if status is not ItemStatus.FAILED])
identifiers = st.text("abc123_", min_size=1, max_size=8)
ANNOTATIONS = (
    b'{"type":"url_citation","url":"https://a.example/","title":"A","start_index":0,"end_index":3}',
    b'{"type":"file_citation","file_id":"file_1","filename":"a.txt","index":0}',
    b'{"type":"container_file_citation","container_id":"c","file_id":"f","filename":"a","start_index":0,"end_index":1}',
    b'{"type":"file_path","file_id":"file_1","index":2}',
)
TOKENS = (
    b'{"token":"a","logprob":-0.25,"bytes":[97],"top_logprobs":[]}',
    b'{"token":"b","logprob":-9999.0,"bytes":[255],"top_logprobs":[{"token":"a","logprob":0.0,"bytes":[97]}]}',
)
text_parts = st.builds(
    TextPart,
    text=texts(),
    annotations=st.lists(st.sampled_from(ANNOTATIONS), max_size=2).map(tuple),
    logprobs=st.lists(st.sampled_from(TOKENS), max_size=2).map(tuple),
)
refusal_parts = st.builds(RefusalPart, refusal=texts())
reasoning_parts = st.builds(ReasoningPart, text=texts())
parts = text_parts | refusal_parts | reasoning_parts
messages = st.builds(
    Message, id=identifiers, status=statuses, content=st.lists(text_parts | refusal_parts, max_size=3).map(tuple)
)
thoughts = st.builds(
    Reasoning, id=identifiers, status=statuses, content=st.lists(reasoning_parts, max_size=3).map(tuple)
)
client_calls = st.one_of(
    st.builds(make, id=identifiers, status=statuses, call_id=identifiers, name=identifiers, arguments=texts())
    for make in (FunctionCall, CustomToolCall)
)
mcp_calls = st.one_of(
    st.builds(
        McpCall,
        id=identifiers,
        status=st.just(status),
        call_id=identifiers,
        name=identifiers,
        arguments=texts(),
        output=texts() if status is ItemStatus.COMPLETED else st.none(),
        error=texts() if status is ItemStatus.FAILED else st.none(),
    )
    for status in ItemStatus
)
items: st.SearchStrategy[OutputItem] = messages | thoughts | client_calls | mcp_calls
outputs = st.lists(items, max_size=3).map(tuple)
counts = st.integers(0, 2**40)
usages = st.builds(
    Usage,
    input_tokens=counts,
    output_tokens=counts,
    cached_tokens=st.none() | counts,
    reasoning_tokens=st.none() | counts,
    cache_write_tokens=st.none() | counts,
)
turns = st.builds(
    ModelTurn, items=outputs, finish_reason=st.none() | st.sampled_from(FinishReason), usage=st.none() | usages
)


failures = st.builds(
    ResponseError, type=st.sampled_from(ErrorType), code=st.sampled_from(ErrorCode), message=st.just("why")
)
outcomes: dict[ResponseStatus, dict[str, st.SearchStrategy[Any]]] = {
    ResponseStatus.QUEUED: {},
    ResponseStatus.IN_PROGRESS: {},
    ResponseStatus.COMPLETED: {"completed_at": counts},
    ResponseStatus.INCOMPLETE: {"incomplete_reason": st.sampled_from(IncompleteReason)},
    ResponseStatus.FAILED: {"error": failures},
    ResponseStatus.CANCELLED: {},
}
responses = st.one_of(
    st.builds(
        Response,
        id=st.uuids(),
        created_at=counts,
        request=response_requests(),
        status=st.just(status),
        tools=offered_tools(*CallKind),
        output=outputs,
        usage=st.none() | usages,
        **outcome,
    )
    for status, outcome in outcomes.items()
)


def on_the_wire(rendered: object) -> Any:
    return msgspec.json.decode(json.encode(rendered))


@given(response=responses)
def test_every_field_that_the_specification_requires_is_there(response: Response) -> None:
    rendered = on_the_wire(render_response(response))

    assert rendered.keys() >= OPEN_RESPONSES_REQUIRED
    assert {name for name, value in rendered.items() if value is None} <= MAY_BE_NULL
    assert rendered["object"] == "response"
    is_flex = response.request.service_tier is ServiceTier.FLEX
    assert rendered["service_tier"] == ("flex" if is_flex else "default")
    for item in rendered["output"]:
        assert item.keys() >= REQUIRED_OF_ITEM[item["type"]]


@given(response=responses)
def test_the_official_sdks_strict_types_accept_it(response: Response) -> None:
    parsed = SdkResponse.model_validate(on_the_wire(render_response(response)), strict=True)

    assert parsed.id == f"resp_{response.id}"
    assert parsed.output_text == "".join(
        part.text
        for item in response.output
        if isinstance(item, Message)
        for part in item.content
        if isinstance(part, TextPart)
    )
    assert (parsed.usage is None) == (response.usage is None)


@given(response=responses)
def test_what_was_asked_is_echoed(response: Response) -> None:
    request, rendered = response.request, on_the_wire(render_response(response))

    for name in ("model", "instructions", "store", "background", "user", "safety_identifier", "prompt_cache_key"):
        assert rendered[name] == getattr(request, name)
    for name in ("parallel_tool_calls", "max_tool_calls"):
        assert rendered[name] == getattr(request, name)
    assert isinstance(rendered["tool_choice"], str) == (
        request.tool_choice.name is None and request.tool_choice.allowed is None
    )
    assert rendered["metadata"] == dict(request.metadata)
    assert list(rendered["metadata"]) == [key for key, _ in request.metadata]
    assert rendered["temperature"] == (1.0 if request.temperature is None else request.temperature)
    assert rendered["text"].get("verbosity") == request.verbosity


@given(response=responses)
def test_status_error_and_reason_are_what_the_response_says(response: Response) -> None:
    rendered = on_the_wire(render_response(response))

    assert rendered["status"] == response.status.value
    assert (rendered["error"] is not None) == (response.error is not None)
    assert (rendered["incomplete_details"] is not None) == (response.incomplete_reason is not None)
    assert rendered["completed_at"] == response.completed_at


def make_opening() -> Response:
    message = InputMessage(role=Role.USER, content=(InputPart(kind=PartKind.INPUT_TEXT, text="hello"),))
    request = ResponseRequest(model="gpt-4o", input=(message,))
    return Response(id=UUID(int=1), created_at=1, request=request, status=ResponseStatus.IN_PROGRESS)


def test_an_error_shows_clients_its_code_and_never_its_kind() -> None:
    error = ResponseError(type=ErrorType.STEP_ABANDONED, code=ErrorCode.SERVER_ERROR, message="why")
    opening = make_opening()

    rendered = render_response(attrs.evolve(opening, status=ResponseStatus.FAILED, error=error))

    assert rendered["error"] == {"code": "server_error", "message": "why"}


@pytest.mark.parametrize("status", sorted(TERMINAL_STATUSES))
def test_the_terminal_statuses_are_those_of_openai(status: str) -> None:
    assert status in {"completed", "incomplete", "failed", "cancelled"}


def as_clients_know_it(item: OutputItem) -> OutputItem:
    """*item* without what is not on the wire."""
    return attrs.evolve(item, call_id=item.id) if isinstance(item, McpCall) else item


@given(item=items)
def test_an_item_that_was_rendered_is_parsed_to_what_clients_know_of_it(item: OutputItem) -> None:
    assert parse_item(on_the_wire(render_item(item))) == as_clients_know_it(item)


@given(output=outputs)
def test_items_keep_their_order(output: tuple[OutputItem, ...]) -> None:
    known = tuple(as_clients_know_it(item) for item in output)

    assert parse_items(on_the_wire([render_item(item) for item in output])) == known


@pytest.mark.parametrize(
    ("members", "shown"),
    [
        ({"status": ItemStatus.IN_PROGRESS}, {"status": "in_progress", "output": None, "error": None}),
        (
            {"status": ItemStatus.COMPLETED, "output": "out"},
            {"status": "completed", "output": "out", "error": None},
        ),
        (
            {"status": ItemStatus.FAILED, "error": "why"},
            {
                "status": "failed",
                "output": None,
                "error": {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "why"}]},
            },
        ),
    ],
)
def test_a_call_of_the_servers_is_one_receipt_without_the_models_own_id(
    members: dict[str, Any], shown: dict[str, Any]
) -> None:
    call = McpCall(id="mcp_1", call_id="call_1", name="s", arguments="{}", **members)

    assert render_item(call) == {
        "id": "mcp_1",
        "type": "mcp_call",
        "server_label": "dwctl",
        "name": "s",
        "arguments": "{}",
        "approval_request_id": None,
        **shown,
    }


@given(response=responses)
def test_a_response_is_read_back_with_all_that_is_on_the_wire(response: Response) -> None:
    rendered = on_the_wire(render_response(response))

    parsed = parse_response(rendered, response.request)

    assert on_the_wire(render_response(parsed)) == rendered
    assert parsed.output == tuple(as_clients_know_it(item) for item in response.output)
    assert [tool.name for tool in parsed.tools if tool.kind is CallKind.SERVER] == [
        tool.name for tool in response.tools if tool.kind is CallKind.SERVER
    ]


@given(part=parts)
def test_a_part_that_was_rendered_is_parsed_to_itself(part: TextPart | RefusalPart | ReasoningPart) -> None:
    assert parse_part(on_the_wire(render_part(part))) == part


@given(turn=turns)
def test_a_turn_that_was_stored_is_read_as_it_was(turn: ModelTurn) -> None:
    assert parse_turn(on_the_wire(render_turn(turn))) == turn


@given(turn=turns)
def test_the_log_probabilities_of_a_stored_turn_can_be_cut_off(turn: ModelTurn) -> None:
    said, mark, _ = json.encode(render_turn(turn)).partition(f',"{LOGPROBS_APART}":['.encode())

    read = parse_turn(msgspec.json.decode(said + b"}" if mark else said))
    assert read == attrs.evolve(turn, items=tuple(map(without_logprobs, turn.items)))


def without_logprobs(item: OutputItem) -> OutputItem:
    if not isinstance(item, Message):
        return item
    parts = (attrs.evolve(part, logprobs=()) if isinstance(part, TextPart) else part for part in item.content)
    return attrs.evolve(item, content=tuple(parts))


@given(usage=usages)
def test_usage_has_every_number_that_the_sdk_demands_and_they_add_up(usage: Usage) -> None:
    rendered = render_usage(usage)

    assert rendered == {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens or 0,
            "cache_write_tokens": usage.cache_write_tokens or 0,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def test_unknown_usage_is_null_and_not_zero() -> None:
    assert render_usage(None) is None


@pytest.mark.parametrize("rendered", [{"type": "new_item", "id": "x", "status": "completed"}])
def test_an_item_that_we_never_write_is_not_guessed(rendered: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="new_item"):
        parse_item(rendered)
    with pytest.raises(ValueError, match="new_item"):
        parse_part(rendered)
