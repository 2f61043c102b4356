"""The request body of a model call: what the client asked for, in the upstream's words."""

import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.domain.items import CallKind
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
)
from dwctl_trio.domain.tools import FREE_CHOICE, ChoiceMode, Namespace, OfferedTool, ToolChoice, put_into
from dwctl_trio.domain.transitions import TurnPlan
from dwctl_trio.protocol.chat_request import DEFAULT_QUIRKS, Quirks, render_chat_request
from dwctl_trio.testing.request_strategies import offered_tools

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
parts = st.builds(InputPart, kind=st.sampled_from(PartKind), text=texts)
messages = st.builds(InputMessage, role=st.sampled_from(Role), content=st.lists(parts, max_size=3).map(tuple))
options = {
    "temperature": st.none() | st.floats(0, 2),
    "top_p": st.none() | st.floats(0, 1),
    "presence_penalty": st.none() | st.floats(-2, 2),
    "frequency_penalty": st.none() | st.floats(-2, 2),
    "max_output_tokens": st.none() | st.integers(16, 10**6),
    "verbosity": st.none() | st.sampled_from(["low", "high"]),
    "user": st.none() | texts,
    "instructions": st.none() | texts,
    "parallel_tool_calls": st.booleans(),
}
requests = st.builds(
    ResponseRequest, model=texts, input=st.lists(messages, min_size=1, max_size=4).map(tuple), **options
)
quirks = st.builds(
    Quirks,
    drop=st.frozensets(st.sampled_from(["temperature", "user", "stream_options", "verbosity"])),
    rename=st.sampled_from([(), (("max_tokens", "max_completion_tokens"),)]),
    developer_role=st.booleans(),
    stream_usage=st.booleans(),
)

USER = InputMessage(role=Role.USER, content=(InputPart(kind=PartKind.INPUT_TEXT, text="Hello"),))
FUNCTION = OfferedTool(kind=CallKind.FUNCTION, name="f")


def plan_for(request: ResponseRequest, *tools: OfferedTool, choice: ToolChoice = FREE_CHOICE) -> TurnPlan:
    return TurnPlan(tools=tools, tool_choice=choice, max_output_tokens=request.max_output_tokens)


def render(request=None, *tools, quirks=DEFAULT_QUIRKS, choice=FREE_CHOICE, **members) -> dict[str, Any]:
    request = request or ResponseRequest(model="alias", input=(USER,), **members)
    plan = plan_for(request, *tools, choice=choice)
    return json.loads(render_chat_request(request, (), plan, upstream_model="real-model", quirks=quirks))


def text_of(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@given(request=requests, quirks=quirks)
def test_every_text_is_sent_in_order_and_every_option_under_its_name(request, quirks):
    body = render(request, quirks=quirks)
    sent = [(message["role"], text_of(message["content"])) for message in body["messages"]]
    asked = [(message.role.value, "".join(part.text for part in message.content)) for message in request.input]
    if not quirks.developer_role:
        asked = [("system" if role == "developer" else role, text) for role, text in asked]
    if request.instructions is not None:
        asked.insert(0, ("system", request.instructions))
    assert sent == asked
    names = dict(quirks.rename)
    for ours, theirs in {"max_output_tokens": "max_tokens", "temperature": "temperature", "user": "user"}.items():
        value = getattr(request, ours)
        expected = None if theirs in quirks.drop else value
        assert body.get(names.get(theirs, theirs)) == expected
    assert not quirks.drop & set(body)
    assert (body["model"], body["stream"]) == ("real-model", True)


@given(request=requests, quirks=quirks)
def test_nothing_is_null_and_no_member_is_unknown_to_the_api(request, quirks):
    body = render(request, quirks=quirks)
    assert None not in body.values()
    assert set(body) <= {
        *("model", "messages", "stream", "stream_options", "temperature", "top_p", "presence_penalty"),
        *("frequency_penalty", "max_tokens", "max_completion_tokens", "verbosity", "user"),
    }, "and nothing of tools without any"


def test_the_smallest_request_asks_for_a_stream_with_usage():
    assert render() == {
        "model": "real-model",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_an_upstream_that_refuses_stream_options_gets_none():
    assert "stream_options" not in render(quirks=Quirks(stream_usage=False))


def test_what_only_the_client_cares_about_is_not_sent():
    private = {"metadata": (("a", "canary"),), "safety_identifier": "canary", "prompt_cache_key": "canary"}
    assert "canary" not in json.dumps(render(**private))


def test_several_parts_are_an_array_and_one_is_a_text():
    refusal = InputPart(kind=PartKind.REFUSAL, text="No.")
    message = InputMessage(role=Role.ASSISTANT, content=(*USER.content, refusal))
    request = ResponseRequest(model="alias", input=(message, attrs.evolve(message, content=(refusal,))))
    assert render(request)["messages"] == [
        {"role": "assistant", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "No."}]},
        {"role": "assistant", "content": "No."},
    ]


@pytest.mark.parametrize(
    ("text_format", "sent"),
    [
        (PlainText(), None),
        (JsonObject(), {"type": "json_object"}),
        (
            JsonSchema(name="city", schema=b'{"type":"object"}'),
            {
                "type": "json_schema",
                "json_schema": {"name": "city", "schema": {"type": "object"}, "strict": False},
            },
        ),
        (
            JsonSchema(name="city", schema=b"{}", description="A city.", strict=True),
            {
                "type": "json_schema",
                "json_schema": {"name": "city", "schema": {}, "description": "A city.", "strict": True},
            },
        ),
    ],
)
def test_the_text_format_becomes_the_response_format(text_format, sent):
    assert render(text_format=text_format).get("response_format") == sent


def test_the_reasoning_effort_is_passed_on_and_its_summary_is_not():
    body = render(reasoning=ReasoningOptions(effort="high", summary="auto"))
    assert body["reasoning_effort"] == "high"
    assert "summary" not in json.dumps(body)
    assert "reasoning_effort" not in render(reasoning=ReasoningOptions(summary="auto"))


def test_a_dropped_field_is_named_as_we_name_it_even_if_it_is_renamed():
    quirks = Quirks(drop=frozenset({"max_tokens"}), rename=(("max_tokens", "max_completion_tokens"),))
    assert render(max_output_tokens=16, quirks=quirks).keys() == {"model", "messages", "stream", "stream_options"}


def test_the_plan_bounds_the_answer_and_the_request_does_not() -> None:
    request = ResponseRequest(model="alias", input=(USER,), max_output_tokens=1000)
    plan = attrs.evolve(plan_for(request), max_output_tokens=7)

    body = json.loads(render_chat_request(request, (), plan, upstream_model="m", quirks=DEFAULT_QUIRKS))

    assert body["max_tokens"] == 7


@given(tools=offered_tools(*CallKind), mode=st.sampled_from(ChoiceMode), parallel=st.booleans())
def test_every_tool_is_offered_as_a_function_and_without_any_nothing_is_said_of_tools(tools, mode, parallel):
    body = render(None, *tools, choice=ToolChoice(mode=mode), parallel_tool_calls=parallel)

    if not tools:
        assert not body.keys() & {"tools", "tool_choice", "parallel_tool_calls"}
        return
    assert [tool["function"]["name"] for tool in body["tools"]] == [tool.name for tool in tools]
    assert {tool["type"] for tool in body["tools"]} == {"function"}
    assert all(isinstance(tool["function"]["parameters"], dict) for tool in body["tools"])
    assert body.get("tool_choice", "auto") == mode.value
    assert body.get("parallel_tool_calls", True) is parallel


def test_a_function_is_offered_as_the_client_described_it():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tool = attrs.evolve(FUNCTION, description="Does f.", parameters=json.dumps(schema).encode(), strict=True)

    assert render(None, tool, FUNCTION)["tools"] == [
        {
            "type": "function",
            "function": {"name": "f", "description": "Does f.", "parameters": schema, "strict": True},
        },
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}},
    ]


@pytest.mark.parametrize(
    ("description", "form", "sent"),
    [
        (None, None, None),
        ("Does c.", {"type": "text"}, "Does c."),
        (
            "Does c.",
            {"type": "grammar", "syntax": "lark", "definition": "start: /a+/"},
            "Does c.\n\nThe input must match this grammar (lark):\nstart: /a+/",
        ),
        (
            None,
            {"type": "grammar", "syntax": "regex", "definition": "a+"},
            "The input must match this grammar (regex):\na+",
        ),
    ],
)
def test_a_custom_tool_is_a_function_of_one_text(description, form, sent):
    encoded = None if form is None else json.dumps(form).encode()
    tool = OfferedTool(kind=CallKind.CUSTOM, name="c", description=description, format=encoded)

    (offered,) = render(None, tool)["tools"]

    assert offered["function"].get("description") == sent
    assert offered["function"]["parameters"]["properties"] == {"input": {"type": "string"}}
    assert offered["function"]["parameters"]["required"] == ["input"]


def test_a_tool_of_a_namespace_has_its_full_name_and_both_descriptions():
    tool = put_into(Namespace(name="crm", description="Customers."), attrs.evolve(FUNCTION, description="Does f."))

    (offered,) = render(None, tool)["tools"]

    assert offered["function"]["name"] == "crm__f"
    assert offered["function"]["description"] == "Customers.\n\nDoes f."


def test_the_one_tool_that_must_be_called_is_named():
    choice = ToolChoice(mode=ChoiceMode.REQUIRED, name="f")

    assert render(None, FUNCTION, choice=choice)["tool_choice"] == {"type": "function", "function": {"name": "f"}}


def test_the_body_is_one_line():
    line_ends = InputMessage(role=Role.USER, content=(InputPart(kind=PartKind.INPUT_TEXT, text="a\nb\u2028c"),))
    request = ResponseRequest(model="alias", input=(line_ends,))
    tool = attrs.evolve(FUNCTION, parameters='{"a":"\u2029"}'.encode())
    body = render_chat_request(request, (), plan_for(request, tool), upstream_model="m", quirks=DEFAULT_QUIRKS)
    assert len(body.decode().splitlines()) == 1
