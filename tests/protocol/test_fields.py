"""Reading an object field by field: nothing is coerced, absent is null, and every error names its path."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.protocol.fields import Fields, joined, json_kind, wrong_type
from dwctl_trio.testing.request_strategies import json_values

READERS: dict[str, Any] = {
    "text": lambda fields: fields.text("field"),
    "flag": lambda fields: fields.flag("field"),
    "number": lambda fields: fields.number("field", minimum=-(10**400), maximum=10**400),
    "integer": lambda fields: fields.integer("field", minimum=-(10**400)),
    "items": lambda fields: fields.items("field"),
    "object": lambda fields: fields.object("field"),
}
ACCEPTS: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "flag": (bool,),
    "number": (int, float),
    "integer": (int,),
    "items": (list,),
    "object": (dict,),
}


def is_accepted(kind: str, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "flag"
    return isinstance(value, ACCEPTS[kind])


@pytest.mark.parametrize("kind", READERS)
@given(value=json_values())
@example(value=True)
@example(value=1)
@example(value=1.0)
@example(value="1")
def test_a_value_of_the_right_type_is_read_as_it_is_and_any_other_is_an_error_with_its_path(
    kind: str, value: Any
) -> None:
    fields = Fields({"field": value}, "outer[3]")

    if value is None:
        assert READERS[kind](fields) is None
    elif is_accepted(kind, value):
        read = READERS[kind](fields)
        assert isinstance(read, Fields) or read == value
    else:
        with pytest.raises(InvalidRequest) as caught:
            READERS[kind](fields)
        assert (caught.value.param, caught.value.code) == ("outer[3].field", "invalid_type")


@pytest.mark.parametrize("kind", READERS)
def test_absent_is_null(kind: str) -> None:
    assert READERS[kind](Fields({}, "")) is None


@given(value=st.integers() | st.floats(allow_nan=False), low=st.integers(-10, 0), high=st.integers(1, 10))
def test_a_number_within_its_range_is_read_and_one_outside_names_the_bound(value: float, low: int, high: int) -> None:
    fields = Fields({"field": value}, "")

    if low <= value <= high:
        assert fields.number("field", minimum=low, maximum=high) == value
    else:
        with pytest.raises(InvalidRequest) as caught:
            fields.number("field", minimum=low, maximum=high)
        bound = f">= {low}" if value < low else f"<= {high}"
        assert f"Invalid 'field': expected a value {bound}, but got {value}" in caught.value.message
        assert caught.value.code.endswith("below_min_value" if value < low else "above_max_value")


def test_an_integer_without_an_upper_bound_has_none() -> None:
    assert Fields({"field": 10**18}, "").integer("field", minimum=1) == 10**18


@given(text=st.text(max_size=12), length_max=st.integers(0, 8))
def test_a_text_is_as_long_as_it_may_be(text: str, length_max: int) -> None:
    fields = Fields({"field": text}, "a")

    if len(text) <= length_max:
        assert fields.text("field", length_max=length_max) == text
    else:
        with pytest.raises(InvalidRequest) as caught:
            fields.text("field", length_max=length_max)
        assert (caught.value.param, caught.value.code) == ("a.field", "string_above_max_length")
        assert f"at most {length_max} characters, but got {len(text)}" in caught.value.message


def test_a_choice_outside_the_list_names_the_whole_list() -> None:
    with pytest.raises(InvalidRequest) as caught:
        Fields({"field": "d"}, "").choice("field", ("a", "b", "c"))

    assert caught.value.message == "Invalid value for 'field': supported values are 'a', 'b' or 'c'."


def test_the_first_unknown_field_is_the_one_that_is_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        Fields({"a": 1, "c": 2, "d": 3}, "text").refuse_unknown(("a", "b"))

    assert (caught.value.param, caught.value.code) == ("text.c", "unknown_parameter")


def test_known_fields_are_all_let_through() -> None:
    fields = Fields({"a": 1, "b": None}, "")

    fields.refuse_unknown(("a", "b", "c"))

    assert list(fields.names()) == ["a", "b"]


@pytest.mark.parametrize("value", [{}, {"field": None}])
def test_what_is_required_may_be_neither_absent_nor_null(value: dict[str, None]) -> None:
    fields = Fields(value, "text.format")

    with pytest.raises(InvalidRequest) as caught:
        fields.require("field", fields.text)

    assert caught.value.message == "Missing required parameter: 'text.format.field'."
    assert (caught.value.param, caught.value.code) == ("text.format.field", "missing_required_parameter")


@pytest.mark.parametrize("value", ["", False, 0])
def test_what_is_required_may_be_empty(value: object) -> None:
    assert Fields({"field": value}, "").require("field", lambda name: value) == value


def test_an_inner_object_knows_where_it_stands() -> None:
    inner = Fields({"text": {"format": {"type": 7}}}, "").object("text")
    assert inner is not None
    form = inner.object("format")
    assert form is not None

    with pytest.raises(InvalidRequest) as caught:
        form.text("type")

    assert caught.value.param == "text.format.type"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *(("", "a string"), (True, "a boolean"), (1, "an integer"), (1.0, "a number")),
        *(([], "an array"), ({}, "an object"), (None, "null"), (b"", "something else")),
    ],
)
def test_errors_speak_of_types_in_the_words_of_json(value: object, kind: str) -> None:
    assert json_kind(value) == kind
    assert wrong_type("field", "a date", value).message == (
        f"Invalid type for 'field': expected a date, but got {kind} instead."
    )


@pytest.mark.parametrize(
    ("names", "text"), [(["a"], "'a'"), (["a", "b"], "'a' or 'b'"), (["a", "b", "c"], "'a', 'b' or 'c'")]
)
def test_a_list_of_names_reads_like_a_sentence(names: list[str], text: str) -> None:
    assert joined(names) == text


def test_what_a_client_wrote_is_repeated_only_in_part() -> None:
    with pytest.raises(InvalidRequest) as unknown:
        Fields({"x" * 1_000_000: 1}, "").refuse_unknown(("y",))
    with pytest.raises(InvalidRequest) as large:
        Fields({"n": 10**4000}, "").integer("n", minimum=0, maximum=5)

    for caught in (unknown, large):
        assert len(caught.value.message) < 300
        assert len(caught.value.param or "") < 200
