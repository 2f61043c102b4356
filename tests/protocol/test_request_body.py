"""The body of a POST: a value or an error that names the parameter, and back without loss."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.request import (
    InputMessage,
    InputPart,
    JsonSchema,
    PartKind,
    ReasoningOptions,
    ResponseRequest,
    Role,
    ServiceTier,
)
from dwctl_trio.domain.tools import FREE_CHOICE
from dwctl_trio.protocol import json
from dwctl_trio.protocol.parameters import CREATE_PARAMETERS, Support, names, names_below
from dwctl_trio.protocol.request_body import MODEL_NAME, parse_request, render_request
from dwctl_trio.testing.request_strategies import json_values, request_bodies, response_requests, spoiled_bodies

MISSING = object()
OPENAIS_OWN_WORDS = ("No tool call found for", "No tool output found for", "Duplicate call_id", "Tool choice '")


def sent(**fields: object) -> dict[str, object]:
    return {"model": "gpt-4o", "input": "hello", **fields}


def refusal(body: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(body)
    return caught.value


def over_the_wire(value: object) -> Any:
    return json.decode_strict(json.encode(value), depth_max=64, brackets_max=10**6)


def follow(body: Any, path: str) -> Any:
    """What *path* leads to in *body*; MISSING if only its last step is not there; raises if more is not there."""
    if path.startswith("metadata."):  # its names are the client's and may hold anything
        return body["metadata"].get(path.removeprefix("metadata."), MISSING)
    steps = re.findall(r"\[(\d+)\]|([^.\[]+)", path)
    for number, (index, name) in enumerate(steps, start=1):
        if index:
            body = body[int(index)]
        elif name in body:
            body = body[name]
        else:
            assert number == len(steps), f"{path} leads nowhere"
            return MISSING
    return body


@given(request=response_requests())
def test_a_request_that_was_rendered_is_parsed_to_itself(request: ResponseRequest) -> None:
    assert parse_request(over_the_wire(render_request(request))) == request


@given(body=request_bodies())
def test_rendering_what_was_parsed_gives_the_same_body_again(body: dict[str, Any]) -> None:
    assert over_the_wire(render_request(parse_request(body))) == body


def outcome(body: Any) -> InvalidRequest | None:
    """None for a value, which is read again as written; an error must name what is in the body, or missing from it."""
    try:
        request = parse_request(body)
    except InvalidRequest as error:
        assert error.status == 400
        assert error.code
        if error.param is None:
            assert not isinstance(body, dict)
            return error
        assert f"'{error.param}'" in error.message or error.message.startswith(OPENAIS_OWN_WORDS)
        found = follow(body, error.param)
        if found is MISSING:
            assert error.code == "missing_required_parameter"
        return error
    assert parse_request(over_the_wire(render_request(request))) == request
    return None


@given(body=json_values(max_leaves=10))
@example(body=[])
@example(body={})
def test_any_json_is_a_request_or_an_error_that_names_a_parameter(body: Any) -> None:
    outcome(body)


@given(body=spoiled_bodies())
def test_a_request_with_one_thing_changed_is_a_request_or_an_error_that_names_a_parameter(body: Any) -> None:
    outcome(body)


def test_the_shortest_request_gets_the_defaults_that_openai_documents() -> None:
    request = parse_request({"model": "gpt-4o", "input": "hello"})

    assert request == ResponseRequest(
        model="gpt-4o",
        input=(InputMessage(role=Role.USER, content=(InputPart(kind=PartKind.INPUT_TEXT, text="hello"),)),),
        store=True,
        service_tier=ServiceTier.AUTO,
        parallel_tool_calls=True,
        tools=None,
        tool_choice=FREE_CHOICE,
        max_tool_calls=None,
        shows_sub_agents=False,
        truncation="disabled",
    )


@pytest.mark.parametrize("name", sorted({*names_below(CREATE_PARAMETERS, "")} - {"model", "input"}))
def test_null_is_the_same_as_absent(name: str) -> None:
    assert parse_request(sent(**{name: None})) == parse_request(sent())


@pytest.mark.parametrize("name", names(CREATE_PARAMETERS, Support.REFUSED))
def test_a_parameter_that_would_change_the_meaning_is_refused_by_name_and_with_advice(name: str) -> None:
    error = refusal(sent(**{name: {"anything": 1}}))

    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert error.message.startswith(f"Unsupported parameter: '{name}'. ")
    assert error.message.endswith(CREATE_PARAMETERS[name].note.replace("`", "'"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user", "u-1"),
        ("safety_identifier", "s-1"),
        ("prompt_cache_key", "k-1"),
        ("prompt_cache_retention", "24h"),
        ("prompt_cache_options", {"mode": "explicit", "ttl": "12h", "comparison_response_id": "resp_1"}),
        ("truncation", "auto"),
    ],
)
def test_a_hint_is_accepted_and_kept_to_be_echoed(name: str, value: object) -> None:
    assert CREATE_PARAMETERS[name].support is Support.HINT

    assert over_the_wire(render_request(parse_request(sent(**{name: value}))))[name] == value


@pytest.mark.parametrize(
    "hints",
    [
        {"stream_options": {"include_obfuscation": False}},
        {"background_options": {"completion_window": "soonest", "continuation_id": "c-1"}},
        {"image": {"context_compression": "auto"}},
        {"client_metadata": {"session_id": "s-1"}},
        {"reasoning": {"mode": "standard"}},
        {"prompt_cache_options": {"prewarm": False}},
        {"stream_options": {}, "background_options": {}, "image": {}},
    ],
)
def test_a_hint_that_nobody_echoes_is_accepted(hints: dict[str, object]) -> None:
    assert {*hints} <= {*CREATE_PARAMETERS}
    assert parse_request(sent(**hints)).input == parse_request(sent()).input


@pytest.mark.parametrize(
    ("asked", "tier"),
    [
        ("auto", ServiceTier.AUTO),
        ("default", ServiceTier.DEFAULT),
        ("flex", ServiceTier.FLEX),
        ("priority", ServiceTier.PRIORITY),
        ("fast", ServiceTier.PRIORITY),
        ("ultrafast", ServiceTier.PRIORITY),
        ("scale", ServiceTier.DEFAULT),
    ],
)
def test_every_tier_of_openais_is_one_of_ours(asked: str, tier: ServiceTier) -> None:
    assert parse_request(sent(service_tier=asked)).service_tier is tier


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": ""}, "model", "invalid_value"),
        ({"model": " "}, "model", "invalid_value"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": 7}, "model", "invalid_type"),
        ({"model": "m" * 257}, "model", "string_above_max_length"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": []}, "input", "empty_array"),
        ({"input": 7}, "input", "invalid_type"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "unsupported_value"),
        ({"input": ["hello"]}, "input[0]", "invalid_type"),
        ({"input": [{"content": "hello"}]}, "input[0].role", "missing_required_parameter"),
        ({"input": [{"role": "tool", "content": "hello"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        ({"input": [{"role": "user", "content": 7}]}, "input[0].content", "invalid_type"),
        ({"input": [{"role": "user", "content": "a", "name": "b"}]}, "input[0].name", "unknown_parameter"),
        ({"input": [{"role": "user", "content": [{}]}]}, "input[0].content[0].type", "missing_required_parameter"),
        (
            {"input": [{"role": "user", "content": [{"type": "reasoning_text"}]}]},
            "input[0].content[0].type",
            "unsupported_value",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
            "input[0].content[0].text",
            "missing_required_parameter",
        ),
        (
            {"input": [{"role": "assistant", "content": [{"type": "refusal"}]}]},
            "input[0].content[0].refusal",
            "missing_required_parameter",
        ),
        ({"input": [{"type": "", "role": "user", "content": "a"}]}, "input[0].type", "unsupported_value"),
        ({"input": [{"role": "user", "content": "a", "id": 1}]}, "input[0].id", "invalid_type"),
        ({"input": [{"role": "user", "content": "a", "status": "done"}]}, "input[0].status", "invalid_value"),
        ({"input": [{"role": "user", "content": "a", "phase": "end"}]}, "input[0].phase", "invalid_value"),
        (
            {"input": [{"role": "user", "content": [{"type": "output_text", "text": "a", "annotations": [1]}]}]},
            "input[0].content[0].annotations[0]",
            "invalid_type",
        ),
        ({"prompt_cache_retention": "1h"}, "prompt_cache_retention", "invalid_value"),
        ({"prompt_cache_options": "24h"}, "prompt_cache_options", "invalid_type"),
        ({"client_metadata": "s-1"}, "client_metadata", "invalid_type"),
        ({"prompt_cache_options": {"ttl": "1h"}}, "prompt_cache_options.ttl", "invalid_value"),
        ({"prompt_cache_options": {"prewarm": True}}, "prompt_cache_options.prewarm", "unsupported_value"),
        ({"prompt_cache_options": {"warm": True}}, "prompt_cache_options.warm", "unknown_parameter"),
        (
            {"background_options": {"completion_window": "2h"}},
            "background_options.completion_window",
            "unsupported_value",
        ),
        ({"image": {"context_compression": "enabled"}}, "image.context_compression", "unsupported_value"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode", "unsupported_value"),
        ({"reasoning": {"context": "none"}}, "reasoning.context", "invalid_value"),
        ({"truncation": "middle"}, "truncation", "invalid_value"),
        ({"safety_identifier": "s" * 129}, "safety_identifier", "string_above_max_length"),
        ({"previous_response_id": "r" * 65}, "previous_response_id", "string_above_max_length"),
        ({"reasoning": {"summary": "auto", "generate_summary": "poem"}}, "reasoning.generate_summary", "invalid_value"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}},
            "text.format.name",
            "invalid_value",
        ),
        ({"temperature": 2.01}, "temperature", "decimal_above_max_value"),
        ({"temperature": -1}, "temperature", "integer_below_min_value"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"max_output_tokens": 15}, "max_output_tokens", "integer_below_min_value"),
        ({"max_output_tokens": 16.0}, "max_output_tokens", "invalid_type"),
        ({"stream": "true"}, "stream", "invalid_type"),
        ({"service_tier": "slow"}, "service_tier", "invalid_value"),
        ({"max_tool_calls": 0}, "max_tool_calls", "integer_below_min_value"),
        ({"include": ["dwctl:agents"]}, "include[0]", "unsupported_parameter"),
        ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options.include_usage", "unknown_parameter"),
        ({"reasoning": {"effort": "extreme"}}, "reasoning.effort", "invalid_value"),
        ({"text": {"format": {}}}, "text.format.type", "missing_required_parameter"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
        ({"text": {"format": {"type": "text", "name": "a"}}}, "text.format.name", "unknown_parameter"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a"}}},
            "text.format.schema",
            "missing_required_parameter",
        ),
        (
            {"text": {"format": {"type": "json_schema", "schema": {}}}},
            "text.format.name",
            "missing_required_parameter",
        ),
        (
            {"text": {"format": {"type": "json_schema", "json_schema": {}}}},
            "text.format.json_schema",
            "unknown_parameter",
        ),
        ({"text": {"verbosity": "loud"}}, "text.verbosity", "invalid_value"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata", "object_above_max_properties"),
        ({"metadata": {"k" * 65: ""}}, "metadata", "string_above_max_length"),
        ({"metadata": {"a": "v" * 513}}, "metadata.a", "string_above_max_length"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"metadata": {"a": None}}, "metadata.a", "invalid_type"),
        ({"messages": []}, "messages", "unknown_parameter"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, object], param: str, code: str) -> None:
    error = refusal(sent(**fields))

    assert (error.param, error.code, error.status) == (param, code, 400)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"a": None}, "Invalid type for 'metadata.a': expected a string, but got null instead."),
        ({"a": "v" * 513}, "Invalid 'metadata.a': expected at most 512 characters, but got 513."),
        ({"k" * 65: ""}, f"Invalid 'metadata': expected keys of at most 64 characters, but '{'k' * 65}' has 65."),
        ({str(key): "" for key in range(17)}, "Invalid 'metadata': expected at most 16 pairs, but got 17."),
    ],
)
def test_what_is_wrong_with_metadata_is_told_with_what_is_allowed(metadata: dict[str, Any], message: str) -> None:
    assert refusal(sent(metadata=metadata)).message == message


@pytest.mark.parametrize("body", [None, [], "text", 7, True])
def test_a_body_that_is_no_object_is_an_error_of_no_parameter(body: object) -> None:
    error = refusal(body)

    assert (error.param, error.code) == (None, "invalid_type")
    assert "expected an object" in error.message


@pytest.mark.parametrize(
    ("role", "kind"),
    [("user", "input_text"), ("system", "input_text"), ("developer", "input_text"), ("assistant", "output_text")],
)
def test_a_message_that_is_one_string_is_one_part_of_its_roles_own_kind(role: str, kind: str) -> None:
    request = parse_request(sent(input=[{"role": role, "content": "hello"}]))

    assert request.input == (InputMessage(role=Role(role), content=(InputPart(kind=PartKind(kind), text="hello"),)),)


def test_what_may_be_included_is_accepted_and_only_the_sub_agents_change_anything() -> None:
    assert parse_request(sent(include=["reasoning.encrypted_content"])) == parse_request(sent())
    assert parse_request(sent(include=["dwctl:sub_agents"])).shows_sub_agents


def test_the_older_name_of_the_reasoning_summary_is_understood() -> None:
    request = parse_request(sent(reasoning={"generate_summary": "concise"}))

    assert request.reasoning == ReasoningOptions(summary="concise")


@given(schema=st.dictionaries(st.text('ab\u2028"\\', max_size=3), json_values(), max_size=3))
def test_a_schema_is_passed_on_with_every_value_as_it_was(schema: dict[str, Any]) -> None:
    asked = {"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}}

    request = parse_request(over_the_wire(sent(text=asked)))

    assert isinstance(request.text_format, JsonSchema)
    assert msgspec.json.decode(request.text_format.schema) == schema


def test_a_model_is_named_by_something_but_blanks() -> None:
    every = map(chr, range(0x3100))

    assert {letter for letter in every if not MODEL_NAME.search(letter)} == {
        chr(code) for code in range(0x110000) if chr(code).isspace()
    }
