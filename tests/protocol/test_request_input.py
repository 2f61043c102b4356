"""The conversation in a request: calls and outputs that belong together, and every way in which they may not."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.items import CustomToolCall, FunctionCall, ItemStatus, McpCall
from dwctl_trio.domain.request import CustomToolCallOutput, FunctionCallOutput, InputItem
from dwctl_trio.protocol import json
from dwctl_trio.protocol.fields import Fields
from dwctl_trio.protocol.request_body import parse_request
from dwctl_trio.protocol.request_input import check_calls, parse_input, render_input
from dwctl_trio.testing.request_strategies import conversations

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


def test_an_output_in_parts_is_one_text() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]

    assert parse(CALL, {**OUTPUT, "output": parts})[1] == FunctionCallOutput(call_id="call_1", output="a\nb")


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


@pytest.mark.parametrize(
    ("item", "param", "code"),
    [
        ({"type": "item_reference", "id": "msg_1"}, "input[0].type", "unsupported_value"),
        ({**CALL, "call_id": ""}, "input[0].call_id", "invalid_value"),
        ({**CALL, "call_id": None}, "input[0].call_id", "missing_required_parameter"),
        ({**CALL, "name": ""}, "input[0].name", "invalid_value"),
        ({**CALL, "arguments": {}}, "input[0].arguments", "invalid_type"),
        ({**CALL, "status": "failed"}, "input[0].status", "invalid_value"),
        ({**CALL, "namespace": "n"}, "input[0].namespace", "unsupported_parameter"),
        ({**CALL, "input": "text"}, "input[0].input", "unknown_parameter"),
        ({**CUSTOM, "input": None}, "input[0].input", "missing_required_parameter"),
        ({"type": "function_call_output", "output": "x"}, "input[0].call_id", "missing_required_parameter"),
        ({**OUTPUT, "output": None}, "input[0].output", "missing_required_parameter"),
        ({**OUTPUT, "output": 7}, "input[0].output", "invalid_type"),
        ({**OUTPUT, "output": ["x"]}, "input[0].output[0]", "invalid_type"),
        ({**OUTPUT, "output": [{"type": "input_image"}]}, "input[0].output[0].type", "unsupported_value"),
        ({**MCP, "id": ""}, "input[0].id", "invalid_value"),
        ({**MCP, "error": 7}, "input[0].error", "invalid_type"),
        ({**MCP, "status": "done"}, "input[0].status", "invalid_value"),
    ],
)
def test_what_is_wrong_with_an_item_is_named(item: dict[str, Any], param: str, code: str) -> None:
    error = refusal(item)

    assert (error.param, error.code) == (param, code)
    assert f"'{param}'" in error.message


def test_a_reference_is_told_what_to_send_instead() -> None:
    assert "Send the item itself" in refusal({"type": "item_reference", "id": "msg_1"}).message
