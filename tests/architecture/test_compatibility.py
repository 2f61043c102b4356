"""The compatibility page leaves out nothing of OpenAI's SDK, and what it says of each name is what the server does."""

import typing
from collections.abc import Iterable, Mapping
from typing import Any

import openai
import pytest
from docs.generator import absent, compatibility
from openai.resources.responses import Responses
from openai.types.responses import InputTokenCountParams, Response, ResponseOutputItem, ResponseStreamEvent
from tests.openapi.rules import is_rule_between_fields
from tests.protocol.openapi_document import document

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.protocol.absent_endpoints import ABSENT_ENDPOINTS
from dwctl_trio.protocol.openapi.operations import OPERATIONS
from dwctl_trio.protocol.parameters import (
    CONTENT_PARTS,
    CREATE_PARAMETERS,
    INCLUDES,
    INPUT_ITEMS,
    TOOL_CHOICES,
    TOOL_TYPES,
    Support,
    accepted,
    names,
)
from dwctl_trio.protocol.request_body import parse_request
from dwctl_trio.testing.service import open_service

EVENTS_OF_THE_SDK = 59
MINIMAL = {"model": "m", "input": "hello"}


def types_of(union: Any) -> set[str]:
    """The values of ``type`` in the members of an annotated union of models."""
    members = typing.get_args(typing.get_args(union)[0])
    return {value for member in members for value in typing.get_args(member.model_fields["type"].annotation)}


def assert_split(all_of_them: set[str], there: Iterable[str], missing: Iterable[str]) -> None:
    """Each of *all_of_them* is either *there* or *missing*, and beyond them there is only what is ours."""
    there, missing = {*there}, {*missing}
    assert not there & missing
    assert missing <= all_of_them
    assert all_of_them - there == missing
    assert all(compatibility.is_ours(name) for name in there - all_of_them)


def test_every_field_of_a_response_is_there_or_told_to_be_missing() -> None:
    assert_split({*Response.model_fields}, compatibility.response_fields(), absent.RESPONSE_FIELDS)


def test_what_counting_tokens_does_not_know_is_told() -> None:
    ours = {name.partition(".")[0] for name in CREATE_PARAMETERS}
    (operation,) = [one for one in OPERATIONS if one.path == "/v1/responses/input_tokens"]

    unknown = {*InputTokenCountParams.__annotations__} - ours

    assert unknown == {"personality"}
    assert "`personality` is an unknown parameter" in operation.note
    for body in ({"input": "hello"}, {"model": "m"}, {**MINIMAL, "personality": "friendly"}):
        with pytest.raises(InvalidRequest):
            parse_request(body)


def test_every_type_of_output_item_is_there_or_told_to_be_missing() -> None:
    assert_split(types_of(ResponseOutputItem), compatibility.output_items(), absent.OUTPUT_ITEMS)


def test_every_type_of_event_is_there_or_told_to_be_missing() -> None:
    of_the_sdk = types_of(ResponseStreamEvent)

    assert len(of_the_sdk) == EVENTS_OF_THE_SDK
    assert_split(of_the_sdk, compatibility.events(), absent.EVENTS)


def test_every_method_of_the_sdk_works_or_is_told_not_to() -> None:
    public = {name for name in dir(Responses) if not name.startswith(("_", "with_"))}

    assert_split({f"client.responses.{name}" for name in public}, compatibility.METHODS, absent.METHODS)


@pytest.mark.parametrize(
    "notes",
    [
        compatibility.METHODS,
        compatibility.response_fields(),
        compatibility.output_items(),
        compatibility.events(),
        ABSENT_ENDPOINTS,
        absent.METHODS,
        absent.RESPONSE_FIELDS,
        absent.OUTPUT_ITEMS,
        absent.EVENTS,
    ],
)
def test_every_name_has_a_note_in_whole_sentences(notes: Mapping[str, str]) -> None:
    assert {name: note for name, note in notes.items() if not note.endswith(".")} == {}


def sample(schema: Mapping[str, Any], name: str = "") -> Any:
    """A small value that fits *schema*."""
    match schema:
        case {"$ref": str(reference)}:
            return sample(document()["components"]["schemas"][reference.rpartition("/")[2]])
        case {"anyOf": [first, *_], **rest} if "properties" not in rest:
            return sample(first)
        case {"const": value} | {"enum": [value, *_]} | {"minimum": value}:
            return value
        case {"type": "object"}:
            return {field: sample(schema["properties"][field], field) for field in schema.get("required", ())}
        case {"type": "array"}:
            return [sample(schema["items"])] * schema.get("minItems", 0)
        case {"type": "boolean"}:
            return True
        case {"type": "string"}:
            return "dwctl" if name == "server_label" else "x"
    raise AssertionError(schema)


def schema_of(path: str) -> Mapping[str, Any]:
    """Of a parameter, by its path."""
    schema = document()["components"]["schemas"]["CreateResponse"]
    for step in path.split("."):
        objects, *_ = [one for one in [schema, *schema.get("anyOf", ())] if step in one.get("properties", {})]
        schema = objects["properties"][step]
    return schema


def with_parameter(path: str, value: Any) -> dict[str, Any]:
    """A request in which nothing but this parameter is remarkable."""
    body: dict[str, Any] = {**MINIMAL, "tools": [{"type": "function", "name": "x"}]}
    *outer, last = path.split(".")
    place = body
    for step in outer:
        place = place.setdefault(step, {})
    place[last] = value
    return body


@pytest.mark.parametrize("name", accepted(CREATE_PARAMETERS))
def test_a_parameter_that_is_told_to_be_supported_is_accepted(name: str) -> None:
    value = sample(schema_of(name))

    assert value is not None
    assert parse_request(with_parameter(name, value))


async def assert_refused(service: Any, body: dict[str, Any], param: str, code: str) -> None:
    answer = await service.client.post("/v1/responses", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error"), body
    assert (error["param"], error["code"]) == (param, code), error


@pytest.mark.slow
async def test_what_is_told_to_be_refused_is_refused_by_the_running_server(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn) as service:
        for name in names(CREATE_PARAMETERS, Support.REFUSED):
            for value in ("x", {"x": 1}, [1], True, 1):
                await assert_refused(service, with_parameter(name, value), name, "unsupported_parameter")
        for kind in names(INPUT_ITEMS, Support.REFUSED):
            body = MINIMAL | {"input": [{"type": kind, "id": "x"}]}
            await assert_refused(service, body, "input[0].type", "unsupported_value")
        for kind in names(CONTENT_PARTS, Support.REFUSED):
            body = MINIMAL | {"input": [{"role": "user", "content": [{"type": kind}]}]}
            await assert_refused(service, body, "input[0].content[0].type", "unsupported_value")
        for kind in names(TOOL_TYPES, Support.REFUSED):
            body = MINIMAL | {"tools": [{"type": kind}]}
            await assert_refused(service, body, "tools[0].type", "unsupported_value")


def described_types(component: str) -> set[str]:
    """The values of ``type`` that the document lets through for *component*."""
    found = set()
    for one in document()["components"]["schemas"][component]["anyOf"]:
        kind = one.get("properties", {}).get("type", {})
        found |= {value["const"] for value in [kind, *kind.get("anyOf", ())] if "const" in value}
    return found


def test_the_document_takes_what_the_tables_say_is_supported() -> None:
    assert described_types("InputItem") == {*accepted(INPUT_ITEMS)}
    assert described_types("Tool") == {*accepted(TOOL_TYPES)}
    assert {*accepted(TOOL_CHOICES)} == {
        *described_types("ToolChoice"),
        *document()["components"]["schemas"]["ToolChoice"]["anyOf"][0]["enum"],
    }


@pytest.mark.parametrize("component", ["InputItem", "Tool"])
def test_each_type_that_is_supported_is_accepted(component: str) -> None:
    for one in document()["components"]["schemas"][component]["anyOf"]:
        value = sample(one)
        body: dict[str, Any] = MINIMAL | {"input" if component == "InputItem" else "tools": [value]}
        try:
            parse_request(body)
        except InvalidRequest as error:
            assert is_rule_between_fields(error.message), error.message


def test_everything_that_may_be_included_is_accepted() -> None:
    assert parse_request(MINIMAL | {"include": accepted(INCLUDES)})


@pytest.mark.slow
async def test_an_endpoint_that_is_told_to_be_missing_is_not_there(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn) as service:
        for name in ABSENT_ENDPOINTS:
            method, _, path = name.rpartition(" ")
            if method == "WebSocket" or "?" in path:
                continue
            answer = await service.client.request(method or "GET", path, json={} if method == "POST" else None)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (404, "unsupported_endpoint"), name
            assert error["message"].endswith(ABSENT_ENDPOINTS[name].replace("`", "'"))
            assert "allow" not in answer.headers


def test_the_page_names_the_version_of_the_sdk_that_it_was_compared_with() -> None:
    page = "\n".join(compatibility.compatibility_page())

    assert f"Python SDK {'.'.join(openai.__version__.split('.')[:2])} " in page
