"""The arguments of a call: what is refused, in which words, and that what is sent is what was checked."""

import json
import string
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.config.schema import compile_schema
from dwctl_trio.domain.errors import ToolFailed
from dwctl_trio.domain.response import ErrorType
from dwctl_trio.tools.arguments import read_arguments

DEPTH = 64
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 5},
            "days": {"type": "array", "items": {"type": "integer", "minimum": 1}},
            "unit": {"enum": ["c", "f"]},
            "place": {"type": "object", "required": ["x"]},
            "any": {},
        },
        "required": ["city"],
        "additionalProperties": False,
    }
).encode()


def read(arguments: str, schema: bytes = SCHEMA, bytes_max: int = 100_000) -> str:
    return read_arguments(schema, arguments, bytes_max=bytes_max, depth_max=DEPTH).decode()


def problem_of(arguments: str, schema: bytes = SCHEMA, bytes_max: int = 100_000) -> str:
    with pytest.raises(ToolFailed) as caught:
        read(arguments, schema, bytes_max)
    assert caught.value.kind is ErrorType.TOOL_ARGUMENTS_INVALID
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("{}", 'At the top: "city" is a required property (rule: required).'),
        ("[]", 'At the top: the value is not of type "object" (rule: type).'),
        ('{"city": 1}', 'city: the value is not of type "string" (rule: type).'),
        ('{"city": "Bergen"}', "city: the value is longer than 5 characters (rule: maxLength)."),
        ('{"city": "Oslo", "days": [1, 0]}', "days[1]: the value is less than the minimum of 1 (rule: minimum)."),
        ('{"city": "Oslo", "unit": "k"}', 'unit: the value is not one of "c" or "f" (rule: enum).'),
        ('{"city": "Oslo", "place": {}}', 'place: "x" is a required property (rule: required).'),
        (
            '{"city": "Oslo", "town": 1}',
            "At the top: Additional properties are not allowed ('town' was unexpected) (rule: additionalProperties).",
        ),
    ],
)
def test_a_problem_names_the_path_and_the_rule(arguments: str, problem: str) -> None:
    assert problem_of(arguments) == f"The arguments do not fit the tool. {problem}"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("{", "The arguments are not valid JSON: Input data was truncated."),
        ('{"city": NaN}', "The arguments are not valid JSON: JSON is malformed: invalid character (byte 9)."),
        ('{"any": 1e999}', "The arguments are not valid JSON: Number out of range - at `$[...]`."),
        ('{"city": "\ud800"}', "The arguments are not valid Unicode."),
    ],
)
def test_what_is_not_json_is_told_as_such(arguments: str, problem: str) -> None:
    assert problem_of(arguments) == problem


def test_arguments_are_bounded_in_bytes_and_not_in_characters() -> None:
    assert read('{"city":"ææ"}', bytes_max=15) == '{"city":"ææ"}'
    assert problem_of('{"city":"ææ"}', bytes_max=14) == "The arguments are too long: at most 14 bytes are allowed."


@pytest.mark.parametrize("depth", [DEPTH + 1, 300, 5000, 50_000])
def test_arguments_that_are_nested_too_deeply_are_refused_on_every_python(depth: int) -> None:
    schema = b'{"type":"object"}'
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        problem = problem_of(f'{{"a":{opening * (depth - 1)}1{closing * (depth - 1)}}}', schema, bytes_max=10**6)
        assert problem == "The arguments are nested too deeply: at most 64 levels are allowed."

    assert read('{"a":' + "[" * (DEPTH - 1) + "1" + "]" * (DEPTH - 1) + "}", schema)


def test_a_message_is_bounded_however_much_is_wrong() -> None:
    schema = json.dumps(
        {"type": "object", "additionalProperties": {"enum": [f"value {number}" for number in range(5000)]}}
    ).encode()

    problem = problem_of(json.dumps({f"{number}{'k' * 1000}": 1 for number in range(50)}), schema)

    assert len(problem) < 2000
    assert problem.count("…") == 5


def test_of_a_key_that_stands_twice_the_checked_value_is_sent() -> None:
    assert read('{"city": 7, "city": "Oslo"}') == '{"city":"Oslo"}'


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ({"properties": {"a": {"pattern": "^(a+)+$"}}}, {"a": "a" * 50_000 + "b"}),
        ({"properties": {"a": {"pattern": "^(?=a)(a|aa)+$"}}}, {"a": "a" * 50_000 + "b"}),
        (
            {"properties": {"a": {"uniqueItems": True}}},
            {"a": [{"x": number} for number in range(9000)] + [{"x": 8999}]},
        ),
        ({"properties": {"a": {"items": {"type": "string"}}}}, {"a": list(range(15_000))}),
    ],
    ids=["nested-repeats", "look-ahead", "unique-objects", "many-problems"],
)
def test_no_arguments_make_a_check_take_long(schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    begun_at = time.thread_time()

    problem_of(json.dumps(arguments), json.dumps({"type": "object", **schema}).encode(), bytes_max=256 * 1024)

    assert time.thread_time() - begun_at < 1.0


def test_a_schema_is_compiled_once() -> None:
    assert compile_schema(SCHEMA) is compile_schema(bytes(SCHEMA))


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:1/schema.json"},
        {"properties": {"a": {"$ref": "https://schemas.example/a.json#/b"}}},
        {"properties": {"a": {"$ref": "file:///etc/passwd"}}},
        {"properties": {"a": {"$ref": "other.json"}}},
        {"$dynamicRef": "http://127.0.0.1:1/schema.json"},
    ],
)
def test_a_reference_that_leads_out_of_the_schema_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="leads out of the schema"):
        compile_schema(json.dumps({"type": "object", **schema}).encode())


@pytest.mark.parametrize("schema", [{"type": "objekt"}, {"properties": []}, {"pattern": "("}, {"$ref": "#/nowhere"}, 7])
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(ValueError):
        compile_schema(json.dumps(schema).encode())


def test_a_schema_may_refer_to_itself() -> None:
    tree = {"type": "object", "$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}, "required": ["v"]}}}
    schema = json.dumps({**tree, "properties": {"root": {"$ref": "#/$defs/n"}}}).encode()

    assert read('{"root":{"v":1,"next":{"v":2}}}', schema)
    assert '"v" is a required property' in problem_of('{"root":{"v":1,"next":{}}}', schema)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(string.ascii_letters, max_size=3), inner),
    max_leaves=12,
)


@given(arguments=st.dictionaries(st.text(max_size=4), json_values, max_size=4))
def test_what_is_sent_is_what_the_model_meant(arguments: dict[str, Any]) -> None:
    assert json.loads(read(json.dumps(arguments), b'{"type":"object"}')) == arguments


@given(arguments=st.text() | st.text('{}[]":,0123456789.eE+-tfn \\u', max_size=30))
def test_whatever_a_model_writes_is_sent_or_told_as_invalid(arguments: str) -> None:
    try:
        sent = read(arguments)
    except ToolFailed as failure:
        assert failure.kind is ErrorType.TOOL_ARGUMENTS_INVALID
        assert len(str(failure)) < 2000
    else:
        assert isinstance(json.loads(sent), dict)


def test_why_a_deep_value_does_not_fit_a_recursive_schema_is_not_looked_for() -> None:
    leaf = {"type": "object", "properties": {"field": {"type": "string"}}, "required": ["field"]}
    node = {"type": "object", "properties": {"args": {"type": "array", "items": {"$ref": "#/$defs/e"}}}}
    branches = [{**node, "required": ["args", name]} for name in ("and", "or", "not")]
    schema = {"$ref": "#/$defs/e", "$defs": {"e": {"anyOf": [*branches, leaf]}}, "type": "object"}
    value: dict[str, Any] = {"feild": "x"}
    for _ in range(20):
        value = {"and": True, "args": [value]}
    begun_at = time.process_time()

    assert (
        problem_of(json.dumps(value), json.dumps(schema).encode()) == "The arguments do not fit the tool's JSON Schema."
    )

    assert time.process_time() - begun_at < 1.0
