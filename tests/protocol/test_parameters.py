"""The tables of what is supported: they know everything that OpenAI's SDK does, and nothing else but what is ours."""

import typing
from typing import Any

import pytest
from openai.types.responses import response_create_params, response_includable, tool_choice_types_param, tool_param
from openai.types.responses.response_create_params import ResponseCreateParamsBase, ResponseCreateParamsStreaming
from openai.types.responses.response_input_item_param import ResponseInputItemParam
from openai.types.responses.response_text_config_param import ResponseTextConfigParam
from openai.types.shared_params.reasoning import Reasoning

from dwctl_trio.protocol.parameters import (
    CONTENT_PARTS,
    CREATE_PARAMETERS,
    INCLUDES,
    INPUT_ITEMS,
    TOOL_CHOICES,
    TOOL_TYPES,
    Support,
    Table,
    accepted,
    names,
    names_below,
    plain_note,
)

OURS = {"client_metadata", "presence_penalty", "frequency_penalty", "dwctl:sub_agents", "dwctl:tool"}
"""Of Open Responses, of the Codex CLI, and of this server."""


def fields_of(typed: Any) -> set[str]:
    return {*typing.get_type_hints(typed)}


def types_of(union: Any) -> set[str]:
    """The values of ``type`` in the members of *union*."""
    found: set[str] = set()
    for member in typing.get_args(union):
        literal = typing.get_type_hints(member).get("type")
        found |= {value for value in literals(literal) if isinstance(value, str)}
    return found


def literals(annotation: Any) -> set[Any]:
    """All values of the literals anywhere in *annotation*."""
    if typing.get_origin(annotation) is typing.Literal:
        return {*typing.get_args(annotation)}
    return {value for part in typing.get_args(annotation) for value in literals(part)}


def test_the_table_has_every_parameter_of_the_sdk() -> None:
    expected = fields_of(ResponseCreateParamsBase) | fields_of(ResponseCreateParamsStreaming)

    assert {*names_below(CREATE_PARAMETERS, "")} - OURS == expected


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("text", ResponseTextConfigParam),
        ("reasoning", Reasoning),
        ("stream_options", response_create_params.StreamOptions),
        ("prompt_cache_options", response_create_params.PromptCacheOptions),
        ("background_options", response_create_params.BackgroundOptions),
        ("image", response_create_params.Image),
    ],
)
def test_the_table_has_every_field_of_a_parameter_that_is_an_object(name: str, typed: Any) -> None:
    assert {*names_below(CREATE_PARAMETERS, f"{name}.")} == fields_of(typed)


def test_the_table_has_every_type_of_item_of_the_sdk() -> None:
    assert {*INPUT_ITEMS} == types_of(ResponseInputItemParam)


def test_the_table_has_every_type_of_tool_of_the_sdk() -> None:
    chosen = literals(typing.get_type_hints(tool_choice_types_param.ToolChoiceTypesParam)["type"])

    assert {*TOOL_TYPES} - OURS == types_of(tool_param.ToolParam) | chosen


def test_the_table_has_everything_that_the_sdk_can_include() -> None:
    assert {*INCLUDES} - OURS == {*typing.get_args(response_includable.ResponseIncludable)}


@pytest.mark.parametrize("table", [CREATE_PARAMETERS, INPUT_ITEMS, CONTENT_PARTS, TOOL_TYPES, TOOL_CHOICES, INCLUDES])
def test_every_entry_says_in_a_sentence_how_or_why_not(table: Table) -> None:
    for name, entry in table.items():
        assert entry.name == name
        assert entry.note.endswith(".")
        assert entry.note.count("`") % 2 == 0
        assert "`" not in plain_note(entry)
    assert {*accepted(table)} | {*names(table, Support.REFUSED)} == {*table}
