"""What the document says of a request is what the parser takes: no more, no less, but for rules between fields."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from tests.openapi.rules import is_rule_between_fields
from tests.protocol.openapi_document import document, validator

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.protocol.parameters import CREATE_PARAMETERS, names_below
from dwctl_trio.protocol.request_body import parse_request
from dwctl_trio.testing.request_strategies import request_bodies, spoiled_bodies


def refusal(body: Any) -> str | None:
    """Why the parser refuses *body*; None if it does not, or for what no schema can tell."""
    try:
        parse_request(body)
    except InvalidRequest as error:
        return None if is_rule_between_fields(error.message) else error.message
    return None


@given(request_bodies())
def test_every_valid_request_fits_the_document(body: dict[str, Any]) -> None:
    validator("CreateResponse").validate(body)


@given(spoiled_bodies())
def test_the_document_and_the_parser_refuse_the_same(body: dict[str, Any]) -> None:
    found = [error.message for error in validator("CreateResponse").iter_errors(body)]

    reason = refusal(body)

    if reason is not None:
        assert found, f"the document lets through: {reason}"
    elif found:
        with pytest.raises(InvalidRequest):  # for a rule between fields
            parse_request(body)


def test_the_document_tells_of_every_parameter() -> None:
    assert [*document()["components"]["schemas"]["CreateResponse"]["properties"]] == [
        *names_below(CREATE_PARAMETERS, "")
    ]


def bounds_of(schema: dict[str, Any]) -> Iterator[tuple[Any, bool]]:
    """Values at the bounds of *schema* and right behind them, with whether they fit."""
    for one in schema.get("anyOf", ()):
        yield from bounds_of(one)
    for name, step in (("minimum", -1), ("maximum", 1)):
        if name in schema:
            yield from ((schema[name], True), (schema[name] + step, False))
    if "maxLength" in schema:
        yield from (("x" * schema["maxLength"], True), ("x" * (schema["maxLength"] + 1), False))
    if "enum" in schema:
        yield from ((value, True) for value in schema["enum"])
        yield f"{schema['enum'][0]}?", False
    if schema.get("type") == "boolean":
        yield from ((True, True), (False, True), (1, False), ("true", False))


def places_of(schema: dict[str, Any], *path: str) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every parameter, and every field of those that are objects, with its schema."""
    for one in schema.get("anyOf", ()):
        yield from places_of(one, *path)
    for name, inner in schema.get("properties", {}).items():
        yield (*path, name), inner
        yield from places_of(inner, *path, name)


PLACES = {
    ".".join(path): (path, schema)
    for path, schema in places_of(document()["components"]["schemas"]["CreateResponse"])
    if [*bounds_of(schema)]
}


@pytest.mark.parametrize("name", PLACES)
def test_a_bound_in_the_document_is_the_parsers_own(name: str) -> None:
    path, schema = PLACES[name]
    for value, fits in bounds_of(schema):
        body: Any = {"model": "m", "input": "hello"}
        place = body
        for step in path[:-1]:
            place = place.setdefault(step, {})
        place[path[-1]] = value

        assert (refusal(body) is None, validator("CreateResponse").is_valid(body)) == (fits, fits), body


def test_bounds_are_looked_for_where_there_are_some() -> None:
    assert {"temperature", "max_output_tokens", "user", "service_tier", "reasoning.effort", "stream"} <= PLACES.keys()
