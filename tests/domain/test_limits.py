"""Every bound is in a range of its own, which its default obeys and a configured value must."""

import math

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.domain.limits import DEFAULT_LIMITS, LIMIT_RULES, LimitRule, Limits

_FIELDS = [pytest.param(field, id=field.name) for field in attrs.fields(Limits)]


@pytest.mark.parametrize("field", _FIELDS)
def test_the_ends_of_the_range_and_the_default_are_allowed(field: attrs.Attribute) -> None:
    minimum, maximum = field.metadata["minimum"], field.metadata["maximum"]

    assert minimum <= getattr(DEFAULT_LIMITS, field.name) <= maximum
    for value in (minimum, maximum):
        assert getattr(attrs.evolve(DEFAULT_LIMITS, **{field.name: value}), field.name) == value


@pytest.mark.parametrize("field", _FIELDS)
def test_a_value_outside_the_range_is_refused_and_the_field_is_named(field: attrs.Attribute) -> None:
    step = 1 if isinstance(field.default, int) else 0.001
    for value in (field.metadata["minimum"] - step, field.metadata["maximum"] + step):
        with pytest.raises(ValueError, match=field.name):
            Limits(**{field.name: value})


@pytest.mark.parametrize("field", _FIELDS)
def test_a_value_of_another_type_is_refused(field: attrs.Attribute) -> None:
    other = "7" if isinstance(field.default, float) else 7.5
    with pytest.raises(TypeError, match=field.name):
        Limits(**{field.name: other})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [field.name for field in attrs.fields(Limits) if isinstance(field.default, float)])
def test_only_finite_times_are_times(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: value})


@pytest.mark.parametrize("field", _FIELDS)
def test_seconds_are_fractional_and_counts_are_whole(field: attrs.Attribute) -> None:
    assert isinstance(field.default, float) is field.name.endswith("_s")


@given(data=st.data())
def test_any_values_in_range_make_limits(data: st.DataObject) -> None:
    chosen = {}
    for field in attrs.fields(Limits):
        numbers = st.floats if isinstance(field.default, float) else st.integers
        chosen[field.name] = data.draw(numbers(field.metadata["minimum"], field.metadata["maximum"]), label=field.name)

    assert attrs.asdict(Limits(**chosen)) == chosen


@pytest.mark.parametrize("rule", LIMIT_RULES, ids=str)
def test_the_defaults_keep_every_rule_and_the_sum_itself_breaks_it(rule: LimitRule) -> None:
    total = sum(getattr(DEFAULT_LIMITS, name) for name in rule.smaller)

    assert rule.is_kept(DEFAULT_LIMITS)
    assert not rule.is_kept(attrs.evolve(DEFAULT_LIMITS, **{rule.larger: total}))


def test_the_defaults_leave_time_to_renew_a_lease_twice_before_it_is_lost() -> None:
    limits = DEFAULT_LIMITS
    assert 2 * limits.lease_renewal_s <= limits.lease_give_up_s < limits.lease_s
    assert limits.lease_s + limits.rescue_interval_s <= 60
