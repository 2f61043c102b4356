"""The conversation in a request: calls and outputs that belong together, and every way in which they may not."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.protocol.openapi_document import validator

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.items import CustomToolCall, FunctionCall, ItemStatus, McpCall
from dwctl_trio.domain.request import (
    CustomToolCallOutput,
    FunctionCallOutput,
    InputImage,
    InputItem,
    InputPart,
    InputReasoning,
    ItemReference,
    PartKind,
)
from dwctl_trio.protocol import json
from dwctl_trio.protocol.chat_history import render_history
from dwctl_trio.protocol.fields import Fields
from dwctl_trio.protocol.parameters import INPUT_ITEMS, Support, accepted, names, plain_note
from dwctl_trio.protocol.request_body import parse_request
from dwctl_trio.protocol.request_input import ITEM_ID_CHARACTERS_MAX, check_calls, parse_input, render_input
from dwctl_trio.testing.conversation_strategies import conversations

CALL = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "done"}
CUSTOM = {"type": "custom_tool_call", "call_id": "call_2", "name": "c", "input": "text"}
CUSTOM_OUTPUT = {"type": "custom_tool_call_output", "call_id": "call_2", "output": "done"}
MCP = {"type": "mcp_call", "id": "mcp_1", "server_label": "x", "name": "s", "arguments": "{}"}


def parse(*items: object) -> tuple[InputItem, ...]:
    return parse_request({"model": "m", "input": list(items)}).input


def refusal(*items: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(*items)
    return caught.value


@given(items=conversations())
def test_a_conversation_that_was_rendered_is_parsed_to_itself(items: tuple[InputItem, ...]) -> None:
    rendered = msgspec.json.decode(json.encode(render_input(items)))

    check_calls(items)
    assert parse_input(Fields({"input": rendered}, "")) == items


@given(items=conversations(), data=st.data())
def test_no_output_can_be_taken_away_or_given_twice(items: tuple[InputItem, ...], data: st.DataObject) -> None:
    places = [at for at, item in enumerate(items) if isinstance(item, FunctionCallOutput | CustomToolCallOutput)]
    if not places:
        return
    place = data.draw(st.sampled_from(places), label="place")
    output = items[place]
    assert isinstance(output, FunctionCallOutput | CustomToolCallOutput)
    calls = [item for item in items[:place] if isinstance(item, FunctionCall | CustomToolCall)]
    answered = [call for call in calls if call.call_id == output.call_id][-1]

    if answered.status is not ItemStatus.INCOMPLETE:
        with pytest.raises(InvalidRequest, match=r"No tool output found|Duplicate call_id"):
            check_calls((*items[:place], *items[place + 1 :]))
    with pytest.raises(InvalidRequest, match="No tool call found"):
        check_calls((*items[:place], output, *items[place:]))


def test_calls_and_outputs_are_read_field_for_field() -> None:
    assert parse({**CALL, "id": "fc_1", "status": "completed"}, CUSTOM, CUSTOM_OUTPUT, OUTPUT) == (
        FunctionCall(id="fc_1", status=ItemStatus.COMPLETED, call_id="call_1", name="f", arguments="{}"),
        CustomToolCall(id="", status=ItemStatus.COMPLETED, call_id="call_2", name="c", arguments="text"),
        CustomToolCallOutput(call_id="call_2", output="done"),
        FunctionCallOutput(call_id="call_1", output="done"),
    )


def test_an_output_in_parts_keeps_them() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "https://a.example/b"}]

    assert parse(CALL, {**OUTPUT, "output": parts})[1] == FunctionCallOutput(
        call_id="call_1",
        output=(InputPart(kind=PartKind.INPUT_TEXT, text="a"), InputImage(url="https://a.example/b")),
    )


@pytest.mark.parametrize(
    ("url", "fits"),
    [
        ("https://a.example/b%20c?d=é", True),
        ("HTTP://a.example", True),
        ("data:image/png;base64,iVBORw0KGgo=", True),
        ("Data:Image/svg+xml;charset=utf-8;BASE64,aaaa", True),
        ("https://a.example/b c", False),
        ("https://a.example/b\n", False),
        ("https://a.example/b\r\nx: y", False),
        ("https://a.example/b\x7f", False),
        ("data:image/png;base64,", False),
        ("data:image/png;base64,iVBO Rw0", False),
        ("data:image/png;base64,iVBORw0=aa", False),
        ("data:image/png;base64,…", False),
        ("data:image/png;base64,aaaa\n", False),
    ],
)
def test_an_image_is_at_an_address_or_in_base64(url: str, fits: bool) -> None:
    message = {"role": "user", "content": [{"type": "input_image", "image_url": url}]}

    assert validator("InputItem").is_valid(message) == fits or url.endswith("\n")  # Python's $ takes one more line end
    if fits:
        assert parse(message)
    else:
        assert refusal(message).param == "input[0].content[0].image_url"


def test_an_id_may_be_as_long_as_can_be_named_in_a_url() -> None:
    assert parse({"role": "user", "content": "hello", "id": "é" * ITEM_ID_CHARACTERS_MAX})
    assert parse({"role": "user", "content": "hello", "id": ""})[0].id is None


def test_what_a_server_once_listed_says_nothing_here() -> None:
    listed = {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "x", "tools": []}

    assert len(parse(listed, {"role": "user", "content": "hello"})) == 1
    assert refusal(listed).code == "empty_array"


@pytest.mark.parametrize("kind", names(INPUT_ITEMS, Support.REFUSED))
def test_an_item_of_what_we_have_not_is_refused_with_what_we_have_and_advice(kind: str) -> None:
    error = refusal({"type": kind})

    assert (error.param, error.code) == ("input[0].type", "unsupported_value")
    assert "'message', 'function_call'" in error.message
    assert error.message.endswith(plain_note(INPUT_ITEMS[kind]))


def test_every_type_of_item_that_is_not_refused_has_a_parser() -> None:
    for kind in accepted(INPUT_ITEMS):
        try:
            parse({"type": kind})
        except InvalidRequest as error:
            assert error.param != "input[0].type"


@pytest.mark.parametrize(
    ("members", "status", "output", "error"),
    [
        ({"status": "completed", "output": "out", "error": None}, ItemStatus.COMPLETED, "out", None),
        ({"output": "out"}, ItemStatus.COMPLETED, "out", None),
        ({"status": "completed"}, ItemStatus.COMPLETED, "", None),
        ({"status": "failed", "error": "why"}, ItemStatus.FAILED, None, "why"),
        ({"error": {"type": "http_error", "code": 500, "message": "why"}}, ItemStatus.FAILED, None, "why"),
        (
            {"error": {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "why"}, "so"]}},
            ItemStatus.FAILED,
            None,
            "why\nso",
        ),
        (
            {"error": {"type": "mcp_tool_execution_error", "content": [{"type": "image"}]}},
            ItemStatus.FAILED,
            None,
            '{"type":"mcp_tool_execution_error","content":[{"type":"image"}]}',
        ),
        ({"status": "failed"}, ItemStatus.FAILED, None, ""),
        ({"status": "calling", "output": "half"}, ItemStatus.INCOMPLETE, None, None),
        ({}, ItemStatus.INCOMPLETE, None, None),
    ],
)  # fmt: skip
def test_a_call_that_a_server_ran_brings_its_outcome(
    members: dict[str, Any], status: ItemStatus, output: str | None, error: str | None
) -> None:
    assert parse({**MCP, **members}) == (
        McpCall(id="mcp_1", status=status, call_id="mcp_1", name="s", arguments="{}", output=output, error=error),
    )


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([OUTPUT], "No tool call found for function call output with call_id call_1."),
        ([OUTPUT, CALL], "No tool call found for function call output with call_id call_1."),
        ([CALL, OUTPUT, OUTPUT], "No tool call found for function call output with call_id call_1."),
        ([MCP, {**OUTPUT, "call_id": "mcp_1"}], "No tool call found for function call output with call_id mcp_1."),
        ([CUSTOM_OUTPUT], "No tool call found for custom tool call output with call_id call_2."),
        ([{**CUSTOM, "call_id": "call_1"}, OUTPUT], "No tool call found for function call output with call_id call_1."),
        ([CALL], "No tool output found for function call call_1."),
        ([CALL, CUSTOM, OUTPUT], "No tool output found for custom tool call call_2."),
        ([CALL, CALL, OUTPUT, OUTPUT], "Duplicate call_id call_1: the earlier call has no output yet."),
        ([{**CALL, "call_id": "x" * 1000}], f"No tool output found for function call {'x' * 100}…."),
    ],
)
def test_what_does_not_belong_together_is_refused_in_openais_words(items: list[object], message: str) -> None:
    error = refusal(*items)

    assert (error.message, error.param, error.status) == (message, "input", 400)


def test_a_call_id_may_be_used_again_once_it_is_answered() -> None:
    assert len(parse(CALL, OUTPUT, CALL, OUTPUT)) == 4


def test_a_call_that_was_cut_short_may_stay_unanswered() -> None:
    assert len(parse({**CALL, "status": "incomplete"})) == 1


def test_a_call_that_was_cut_short_keeps_no_id_from_a_later_one_which_the_output_answers() -> None:
    half = {**CALL, "status": "incomplete", "arguments": '{"half": 1}'}
    messages = render_history(parse(half, half, CALL, OUTPUT), (), developer_role=True)

    assert [message["role"] for message in messages] == ["assistant", "tool"]
    (call,) = messages[0]["tool_calls"]
    assert call["function"]["arguments"] == CALL["arguments"]
    assert messages[1]["content"] == OUTPUT["output"]
    assert refusal(half, CALL, CALL, OUTPUT).message.startswith("Duplicate call_id")


@pytest.mark.parametrize(
    ("item", "param", "code"),
    [
        ({"type": "item_reference"}, "input[0].id", "missing_required_parameter"),
        ({"type": "item_reference", "id": ""}, "input[0].id", "invalid_value"),
        ({"type": "item_reference", "id": "msg_1", "role": "user"}, "input[0].role", "unknown_parameter"),
        ({"type": "reasoning", "summary": [{"text": "x"}]}, "input[0].summary[0].type", "missing_required_parameter"),
        ({"type": "reasoning", "content": [{"type": "summary_text"}]}, "input[0].content[0].type", "invalid_value"),
        ({"type": "reasoning", "encrypted_content": 7}, "input[0].encrypted_content", "invalid_type"),
        ({**CALL, "call_id": ""}, "input[0].call_id", "invalid_value"),
        ({**CALL, "call_id": None}, "input[0].call_id", "missing_required_parameter"),
        ({**CALL, "name": ""}, "input[0].name", "invalid_value"),
        ({**CALL, "arguments": {}}, "input[0].arguments", "invalid_type"),
        ({**CALL, "status": "failed"}, "input[0].status", "invalid_value"),
        ({**CALL, "namespace": 1}, "input[0].namespace", "invalid_type"),
        ({**CALL, "namespace": ""}, "input[0].namespace", "invalid_value"),
        ({**CALL, "input": "text"}, "input[0].input", "unknown_parameter"),
        ({**CUSTOM, "input": None}, "input[0].input", "missing_required_parameter"),
        ({"type": "function_call_output", "output": "x"}, "input[0].call_id", "missing_required_parameter"),
        ({**OUTPUT, "output": None}, "input[0].output", "missing_required_parameter"),
        ({**OUTPUT, "output": 7}, "input[0].output", "invalid_type"),
        ({**OUTPUT, "output": ["x"]}, "input[0].output[0]", "invalid_type"),
        ({**OUTPUT, "output": [{"type": "input_audio"}]}, "input[0].output[0].type", "unsupported_value"),
        ({**MCP, "id": ""}, "input[0].id", "invalid_value"),
        ({**MCP, "error": 7}, "input[0].error", "invalid_type"),
        ({**MCP, "status": "done"}, "input[0].status", "invalid_value"),
    ],
)
def test_what_is_wrong_with_an_item_is_named(item: dict[str, Any], param: str, code: str) -> None:
    error = refusal(item)

    assert (error.param, error.code) == (param, code)
    assert f"'{param}'" in error.message


@pytest.mark.parametrize(
    "item", [{"type": "item_reference", "id": "msg_1"}, {"type": None, "id": "msg_1"}, {"id": "msg_1"}]
)
def test_an_item_with_nothing_but_an_id_is_a_reference(item: dict[str, Any]) -> None:
    assert parse(item) == (ItemReference(id="msg_1"),)


def test_calls_are_matched_later_where_not_all_of_the_conversation_is_here() -> None:
    assert len(parse(OUTPUT, {"id": "fc_1"})) == 2
    assert parse_request({"model": "m", "input": [OUTPUT], "previous_response_id": "resp_1"}).input


@pytest.mark.parametrize("members", [{}, {"input": None}, {"input": []}])
def test_who_goes_on_with_a_response_need_not_say_more(members: dict[str, Any]) -> None:
    assert parse_request({"model": "m", "previous_response_id": "resp_1", **members}).input == ()


def test_reasoning_is_kept_as_it_was_sent() -> None:
    sent = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "short"}],
        "content": [{"type": "reasoning_text", "text": "long"}],
        "encrypted_content": "gAAA",
        "status": "completed",
    }

    (item,) = parse(sent)

    assert item == InputReasoning(
        id="rs_1", summary=("short",), content=("long",), encrypted_content="gAAA", status=ItemStatus.COMPLETED
    )
    assert render_input([item]) == [sent]
