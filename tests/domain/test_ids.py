"""Ids: one spelling each, and never two things of one name."""

from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dwctl_trio.domain.ids import item_id, parse_response_id, response_id_text, synthetic_call_id

_CANONICAL = "resp_01234567-89ab-cdef-0123-456789abcdef"


@given(response_id=st.uuids())
def test_an_id_survives_the_way_to_the_client_and_back(response_id: UUID) -> None:
    assert parse_response_id(response_id_text(response_id)) == response_id


@given(text=st.text() | st.from_regex(r"resp_[0-9a-fA-F-]{0,40}\n?", fullmatch=True))
@example(text=_CANONICAL)
def test_any_text_is_the_one_spelling_of_an_id_or_none_at_all(text: str) -> None:
    parsed = parse_response_id(text)
    assert parsed is None or response_id_text(parsed) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "resp_",
        _CANONICAL.removeprefix("resp_"),
        _CANONICAL.replace("resp_", "msg_"),
        _CANONICAL.upper(),
        "resp_" + _CANONICAL.removeprefix("resp_").upper(),
        _CANONICAL.replace("-", ""),
        _CANONICAL + "\n",
        " " + _CANONICAL,
        _CANONICAL + "0",
        _CANONICAL.replace("0", "\u0660"),
        "resp_{01234567-89ab-cdef-0123-456789abcdef}",
    ],
)
def test_other_spellings_are_not_ids(text: str) -> None:
    assert parse_response_id(text) is None


_PLACES = st.tuples(st.uuids(), st.integers(min_value=0, max_value=2**20))


@given(left=_PLACES, right=_PLACES)
@example(left=(UUID(int=1), 1), right=(UUID(int=0x11), 0))
@example(left=(UUID(int=1), 1), right=(UUID(int=1), 0x11))
def test_two_places_never_share_an_item_id_or_a_call_id(left: tuple[UUID, int], right: tuple[UUID, int]) -> None:
    assert (item_id("msg", *left) == item_id("msg", *right)) is (left == right)
    assert (synthetic_call_id(*left) == synthetic_call_id(*right)) is (left == right)


def test_an_item_id_tells_its_kind_its_step_and_its_place() -> None:
    assert item_id("rs", UUID(int=0xABC), 31) == "rs_00000000000000000000000000000abc1f"
    assert synthetic_call_id(UUID(int=0xABC), 31) == "call_00000000000000000000000000000abc1f"
