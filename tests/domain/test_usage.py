"""Token counts add up, in any order and any grouping, and what nobody counted stays unknown."""

import attrs
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.domain.usage import Usage, add_usage, total_usage
from dwctl_trio.testing.domain_strategies import usages

_MAYBE = st.none() | usages()
_COUNTS = [field.name for field in attrs.fields(Usage)]


@given(first=_MAYBE, second=_MAYBE, third=_MAYBE)
def test_addition_is_associative(first: Usage | None, second: Usage | None, third: Usage | None) -> None:
    assert add_usage(add_usage(first, second), third) == add_usage(first, add_usage(second, third))


@given(left=_MAYBE, right=_MAYBE)
def test_addition_is_commutative(left: Usage | None, right: Usage | None) -> None:
    assert add_usage(left, right) == add_usage(right, left)


@given(usage=_MAYBE)
def test_the_unknown_usage_adds_nothing(usage: Usage | None) -> None:
    assert add_usage(usage, None) == usage
    assert add_usage(None, usage) == usage


@given(parts=st.lists(_MAYBE, max_size=5))
def test_the_total_of_each_count_is_the_sum_of_those_that_are_known(parts: list[Usage | None]) -> None:
    total = total_usage(parts)

    for name in _COUNTS:
        known = [getattr(part, name) for part in parts if part is not None and getattr(part, name) is not None]
        assert (None if total is None else getattr(total, name)) == (sum(known) if known else None)


@given(parts=st.lists(usages(), min_size=1, max_size=5))
def test_a_total_is_never_negative_nor_less_than_a_part(parts: list[Usage]) -> None:
    total = total_usage(parts)

    assert total is not None
    assert total.total_tokens >= max(part.total_tokens for part in parts) >= 0
    assert total.total_tokens == sum(part.total_tokens for part in parts)


def test_zero_tokens_are_known_and_stay() -> None:
    zero = Usage(input_tokens=0, output_tokens=0, cached_tokens=0)

    assert total_usage([None, zero]) == zero
    assert total_usage([]) is None
