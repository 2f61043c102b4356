"""Token buckets."""

from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.domain.rates import Bucket

rates = st.integers(1, 1_000_000)
moments = st.floats(0, 1e6)
uses = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 2e6)), max_size=20)


def used(per_minute: int, steps: list[tuple[float, float]]) -> Bucket:
    bucket = Bucket.full(per_minute, 0.0)
    now_s = 0.0
    for passed_s, amount in steps:
        now_s += passed_s
        bucket = bucket.at(now_s).take(amount)
    return bucket


@given(per_minute=rates, steps=uses, later_s=st.floats(0, 1e5))
def test_a_bucket_never_holds_more_than_a_minutes_worth_and_only_gains_by_time(per_minute, steps, later_s) -> None:
    bucket = used(per_minute, steps)
    later = bucket.at(bucket.at_s + later_s)

    assert bucket.level <= per_minute
    assert bucket.level <= later.level <= per_minute
    assert 0 <= later.remaining <= per_minute


@given(per_minute=rates, steps=uses)
def test_a_bucket_may_be_taken_from_when_it_says_and_is_full_when_it_says(per_minute, steps) -> None:
    bucket = used(per_minute, steps)

    assert bucket.may_take == (bucket.ready_in_s == 0)
    assert bucket.at(bucket.at_s + bucket.ready_in_s + 1e-3 + bucket.ready_in_s * 1e-9).may_take
    assert bucket.at(bucket.at_s + bucket.full_in_s + 1e-3 + bucket.full_in_s * 1e-9).level >= per_minute - 1e-3


@given(per_minute=rates, steps=uses, first_s=st.floats(0, 1e4), second_s=st.floats(0, 1e4))
def test_looking_at_a_bucket_in_between_changes_nothing(per_minute, steps, first_s, second_s) -> None:
    bucket = used(per_minute, steps)
    once = bucket.at(bucket.at_s + first_s + second_s)
    twice = bucket.at(bucket.at_s + first_s).at(bucket.at_s + first_s + second_s)

    assert abs(once.level - twice.level) <= 1e-6 * max(1.0, per_minute, abs(once.level))


@given(per_minute=rates, back_s=st.floats(0, 1e4))
def test_a_clock_that_went_backwards_takes_nothing_away(per_minute, back_s) -> None:
    bucket = Bucket.full(per_minute, 1e5).take(per_minute)

    assert bucket.at(1e5 - back_s).level == bucket.level
