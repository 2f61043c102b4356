"""Tools and the choice among them: what a client may define, what it may name, and every way to get it wrong."""

from typing import Any

import msgspec
import pytest
from hypothesis import given

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.request import RequestTool, ServerToolReference
from dwctl_trio.domain.tools import ALL_SERVER_TOOLS, FREE_CHOICE, ChoiceMode, OfferedTool, ToolChoice
from dwctl_trio.protocol import json
from dwctl_trio.protocol.fields import Fields
from dwctl_trio.protocol.offered_tools import echo_tools, render_choice, render_request_tools
from dwctl_trio.protocol.parameters import TOOL_TYPES, Support, names, plain_note
from dwctl_trio.protocol.request_tools import (
    NAME_CHARACTERS_MAX,
    TOOLS_MAX,
    parse_request_tools,
    parse_tool_choice,
    parse_tools,
    render_tools,
)
from dwctl_trio.testing.request_strategies import offered_tools, request_tools

GROUP = {"type": "namespace", "name": "crm", "description": "Customers."}
FUNCTION = {"type": "function", "name": "f"}
OURS = {"type": "mcp", "server_label": "dwctl"}


def over_the_wire(value: object) -> Any:
    return msgspec.json.decode(json.encode(value))


def parse(*tools: object) -> tuple[RequestTool, ...] | None:
    return parse_request_tools(Fields({"tools": list(tools)}, ""))


def choose(choice: object, *tools: object) -> ToolChoice:
    fields = Fields({"tools": list(tools) or None, "tool_choice": choice}, "")
    return parse_tool_choice(fields, parse_request_tools(fields))


@given(drawn=request_tools())
def test_what_was_rendered_is_parsed_to_itself(drawn: tuple[tuple[RequestTool, ...] | None, ToolChoice]) -> None:
    tools, choice = drawn
    body = {"tools": render_request_tools(tools), "tool_choice": render_choice(choice, tools or ())}
    fields = Fields(over_the_wire(body), "")

    assert parse_request_tools(fields) == tools
    assert parse_tool_choice(fields, tools) == choice


@given(tools=offered_tools(*CallKind))
def test_the_tools_of_a_row_are_read_as_they_were(tools: tuple[OfferedTool, ...]) -> None:
    assert parse_tools(over_the_wire(render_tools(tools))) == tools


@given(tools=offered_tools(CallKind.FUNCTION, CallKind.CUSTOM))
def test_the_clients_tools_are_echoed_as_they_were_given(tools: tuple[OfferedTool, ...]) -> None:
    assert parse(*over_the_wire(echo_tools(tools))) == tools


def test_no_such_key_is_not_the_same_as_no_tools() -> None:
    assert parse_request_tools(Fields({}, "")) is None
    assert parse_request_tools(Fields({"tools": None}, "")) is None
    assert parse() == ()


def test_a_schema_and_a_grammar_stay_encoded() -> None:
    schema, grammar = {"type": "object", "x": [1.5, None]}, {"type": "grammar", "syntax": "lark", "definition": "a"}

    tools = parse(
        {**FUNCTION, "parameters": schema, "strict": True}, {"type": "custom", "name": "c", "format": grammar}
    )

    assert tools == (
        OfferedTool(kind=CallKind.FUNCTION, name="f", parameters=msgspec.json.encode(schema), strict=True),
        OfferedTool(kind=CallKind.CUSTOM, name="c", format=msgspec.json.encode(grammar)),
    )


def test_a_namespace_is_a_part_of_its_tools_names() -> None:
    tools = parse({**GROUP, "tools": [FUNCTION, {"type": "custom", "name": "c"}]}, FUNCTION)

    assert [tool.name for tool in tools] == ["crm__f", "crm__c", "f"]
    assert [tool.short_name for tool in tools if isinstance(tool, OfferedTool)] == ["f", "c", "f"]


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ({"type": "dwctl:tool", "name": "a"}, ["a"]),
        ({**OURS, "allowed_tools": ["a", "b"], "require_approval": "never"}, ["a", "b"]),
        ({**OURS, "allowed_tools": {"tool_names": ["a"]}, "server_description": "ours"}, ["a"]),
        ({**OURS, "allowed_tools": []}, []),
        (OURS, [ALL_SERVER_TOOLS]),
    ],
)
def test_the_servers_tools_are_named_one_by_one_or_all_at_once(entry: dict[str, Any], names: list[str]) -> None:
    assert parse(entry) == tuple(ServerToolReference(name=name) for name in names)


@pytest.mark.parametrize(
    ("entry", "param", "code"),
    [
        ({"type": "web_search"}, "tools[0].type", "unsupported_value"),
        ({"name": "f"}, "tools[0].type", "missing_required_parameter"),
        ("f", "tools[0]", "invalid_type"),
        ({**GROUP, "tools": []}, "tools[0].tools", "empty_array"),
        ({**GROUP, "tools": [OURS]}, "tools[0].tools[0].type", "unsupported_value"),
        (
            {**GROUP, "tools": [{"type": "function", "name": "a" * 124}]},
            "tools[0].tools[0].name",
            "string_above_max_length",
        ),
        ({**GROUP, "name": "a b"}, "tools[0].name", "invalid_value"),
        ({"type": "namespace", "name": "crm"}, "tools[0].tools", "missing_required_parameter"),
        ({"type": "function"}, "tools[0].name", "missing_required_parameter"),
        ({"type": "function", "name": "a b"}, "tools[0].name", "invalid_value"),
        ({"type": "function", "name": ""}, "tools[0].name", "invalid_value"),
        ({"type": "function", "name": "f\n"}, "tools[0].name", "invalid_value"),
        ({"type": "function", "name": "a" * (NAME_CHARACTERS_MAX + 1)}, "tools[0].name", "string_above_max_length"),
        ({**FUNCTION, "parameters": True}, "tools[0].parameters", "invalid_type"),
        ({**FUNCTION, "strict": "yes"}, "tools[0].strict", "invalid_type"),
        ({**FUNCTION, "function": {}}, "tools[0].function", "unknown_parameter"),
        ({**FUNCTION, "defer_loading": True}, "tools[0].defer_loading", "unsupported_parameter"),
        ({"type": "custom", "name": "c", "format": {}}, "tools[0].format.type", "missing_required_parameter"),
        ({"type": "custom", "name": "c", "format": {"type": "xml"}}, "tools[0].format.type", "invalid_value"),
        (
            {"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "bnf", "definition": ""}},
            "tools[0].format.syntax",
            "invalid_value",
        ),
        (
            {"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "lark"}},
            "tools[0].format.definition",
            "missing_required_parameter",
        ),
        ({"type": "dwctl:tool", "name": ALL_SERVER_TOOLS}, "tools[0].name", "invalid_value"),
        ({"type": "dwctl:tool", "name": "a", "url": "x"}, "tools[0].url", "unknown_parameter"),
        ({"type": "mcp"}, "tools[0].server_label", "missing_required_parameter"),
        ({"type": "mcp", "server_label": "deepwiki"}, "tools[0].server_label", "unsupported_value"),
        ({**OURS, "server_url": "https://x"}, "tools[0].server_url", "unsupported_parameter"),
        ({**OURS, "require_approval": "always"}, "tools[0].require_approval", "unsupported_value"),
        ({**OURS, "require_approval": {"never": {}}}, "tools[0].require_approval", "unsupported_value"),
        ({**OURS, "allowed_tools": "a"}, "tools[0].allowed_tools", "invalid_type"),
        ({**OURS, "allowed_tools": [7]}, "tools[0].allowed_tools[0]", "invalid_type"),
        ({**OURS, "allowed_tools": ["a", "b b"]}, "tools[0].allowed_tools[1]", "invalid_value"),
        ({**OURS, "allowed_tools": {"read_only": True}}, "tools[0].allowed_tools.read_only", "unsupported_parameter"),
        ({"type": "function", "function": {"name": "f"}}, "tools[0].function", "unknown_parameter"),
        ({"type": "custom", "custom": {"name": "c"}}, "tools[0].custom", "unknown_parameter"),
        (
            {**FUNCTION, "allowed_callers": ["direct", "programmatic"]},
            "tools[0].allowed_callers[1]",
            "unsupported_value",
        ),
        ({**FUNCTION, "output_schema": 7}, "tools[0].output_schema", "invalid_type"),
    ],
)
def test_what_is_wrong_with_a_tool_is_named(entry: object, param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(entry)

    assert (caught.value.param, caught.value.code, caught.value.status) == (param, code, 400)
    assert f"'{param}'" in caught.value.message


@pytest.mark.parametrize("kind", names(TOOL_TYPES, Support.REFUSED))
def test_a_type_that_is_not_supported_is_told_which_are_and_what_to_do(kind: str) -> None:
    for attempt in (lambda: parse({"type": kind}), lambda: choose({"type": kind}, FUNCTION)):
        with pytest.raises(InvalidRequest, match=r"'function', 'custom', 'mcp'( or|,) 'dwctl:tool'") as caught:
            attempt()
        assert caught.value.message.endswith(plain_note(TOOL_TYPES[kind]))


def test_a_tool_may_say_what_holds_anyway() -> None:
    said = {"async": False, "defer_loading": False, "allowed_callers": ["direct"], "output_schema": {"type": "object"}}

    assert parse({**FUNCTION, **said}) == parse(FUNCTION)


@pytest.mark.parametrize(
    ("second", "param"),
    [
        (FUNCTION, "tools[1].name"),
        ({"type": "custom", "name": "f"}, "tools[1].name"),
        ({"type": "dwctl:tool", "name": "f"}, "tools[1].name"),
        ({**OURS, "allowed_tools": ["a", "f"]}, "tools[1].allowed_tools[1]"),
    ],
)
def test_a_name_stands_once_whatever_kind_of_tool_has_it(second: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(FUNCTION, second)

    assert caught.value.param == param


def test_the_server_is_named_whole_only_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(OURS, OURS)

    assert caught.value.param == "tools[1].server_label"


@pytest.mark.parametrize("packed", [False, True])
def test_there_are_as_many_tools_as_openai_allows_and_no_more(packed: bool) -> None:
    def entries(count: int) -> list[dict[str, Any]]:
        names = [f"t{number}" for number in range(count)]
        return [{**OURS, "allowed_tools": names}] if packed else [{"type": "dwctl:tool", "name": n} for n in names]

    assert len(parse(*entries(TOOLS_MAX)) or ()) == TOOLS_MAX
    with pytest.raises(InvalidRequest) as caught:
        parse(*entries(TOOLS_MAX + 1))
    assert (caught.value.param, caught.value.code) == ("tools", "array_above_max_length")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, FREE_CHOICE),
        ("auto", FREE_CHOICE),
        ("none", ToolChoice(mode=ChoiceMode.NONE)),
        ("required", ToolChoice(mode=ChoiceMode.REQUIRED)),
        (FUNCTION, ToolChoice(mode=ChoiceMode.REQUIRED, name="f")),
        ({"type": "custom", "name": "c"}, ToolChoice(mode=ChoiceMode.REQUIRED, name="c")),
        ({"type": "dwctl:tool", "name": "a"}, ToolChoice(mode=ChoiceMode.REQUIRED, name="a")),
        ({**OURS, "name": "a"}, ToolChoice(mode=ChoiceMode.REQUIRED, name="a")),
        (OURS, ToolChoice(mode=ChoiceMode.REQUIRED, name=ALL_SERVER_TOOLS)),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [OURS, FUNCTION]},
            ToolChoice(allowed=(ALL_SERVER_TOOLS, "f")),
        ),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [FUNCTION, {**OURS, "name": "a"}, FUNCTION]},
            ToolChoice(mode=ChoiceMode.REQUIRED, allowed=("f", "a")),
        ),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "c"}]},
            ToolChoice(allowed=("c",)),
        ),
    ],
)
@pytest.mark.parametrize("has_tools", [True, False])
def test_every_way_to_choose_is_understood(choice: object, expected: ToolChoice, has_tools: bool) -> None:
    tools = [FUNCTION, {"type": "custom", "name": "c"}, {"type": "dwctl:tool", "name": "a"}] if has_tools else []

    assert choose(choice, *tools) == expected


@pytest.mark.parametrize(
    ("choice", "param", "code"),
    [
        (7, "tool_choice", "invalid_type"),
        ("any", "tool_choice", "invalid_value"),
        ({}, "tool_choice.type", "missing_required_parameter"),
        ({"type": "web_search_preview"}, "tool_choice.type", "unsupported_value"),
        ({"type": "function"}, "tool_choice.name", "missing_required_parameter"),
        ({"type": "function", "function": {"name": "f"}}, "tool_choice.function", "unknown_parameter"),
        ({"type": "mcp", "server_label": "x", "name": "f"}, "tool_choice.server_label", "unsupported_value"),
        ({"type": "allowed_tools", "tools": [FUNCTION]}, "tool_choice.mode", "missing_required_parameter"),
        ({"type": "allowed_tools", "mode": "none", "tools": [FUNCTION]}, "tool_choice.mode", "invalid_value"),
        ({"type": "allowed_tools", "mode": "auto", "tools": []}, "tool_choice.tools", "empty_array"),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "image_generation"}]},
            "tool_choice.tools[0].type",
            "unsupported_value",
        ),
    ],
)
def test_what_is_wrong_with_a_choice_is_named(choice: object, param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        choose(choice, FUNCTION)

    assert (caught.value.param, caught.value.code) == (param, code)
    assert f"'{param}'" in caught.value.message


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "name": "g"},
        {"type": "allowed_tools", "mode": "auto", "tools": [{**OURS, "name": "g"}]},
    ],
)
def test_a_choice_of_what_is_not_offered_is_refused_in_openais_words(choice: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        choose(choice, FUNCTION)

    assert caught.value.message == "Tool choice 'g' not found in 'tools' parameter."
    assert caught.value.param == "tool_choice"
    assert choose(choice, FUNCTION, OURS) == choose(choice), "only the server knows what it has"


def test_a_choice_of_the_servers_tools_where_none_is_named_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="Tool choice 'mcp' not found"):
        choose(OURS, FUNCTION)


def test_the_servers_tools_are_echoed_as_one_entry_that_tells_their_names_only() -> None:
    secret = OfferedTool(kind=CallKind.SERVER, name="a", description="canary", parameters=b'{"canary":1}')
    tools = (secret, OfferedTool(kind=CallKind.FUNCTION, name="f"), OfferedTool(kind=CallKind.SERVER, name="b"))

    assert over_the_wire(echo_tools(tools)) == [
        {"type": "function", "name": "f", "description": None, "parameters": None, "strict": None},
        {"type": "mcp", "server_label": "dwctl", "allowed_tools": ["a", "b"], "require_approval": "never"},
    ]


def test_an_operator_may_have_tools_left_out_that_nobody_here_runs() -> None:
    own = {"type": "function", "name": "own"}
    hosted = [{"type": kind} for kind in names(TOOL_TYPES, Support.REFUSED)]
    body = {"tools": [hosted[0] | {"external_web_access": False}, own, *hosted]}

    parsed = parse_request_tools(Fields(body, ""), ignores_hosted=True)

    assert parsed is not None
    assert [tool.name for tool in parsed] == ["own"]
    for entry in hosted:
        with pytest.raises(InvalidRequest, match="Unsupported 'tools"):
            parse_request_tools(Fields({"tools": [entry]}, ""))
    with pytest.raises(InvalidRequest, match="tools"):
        parse_request_tools(Fields({"tools": [{"type": "teleport"}]}, ""), ignores_hosted=True)
