"""``domain/claiming.py``: what a process wants of the queue."""

from dwctl_trio.domain.claiming import ClaimDemand, deadline_of, make_demand, priority_of
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.request import ServiceTier

_LIMITS = Limits(queue_model_concurrency=7, queue_owner_concurrency=3)


def _route(name: str, concurrency: int | None = None) -> ModelRoute:
    return ModelRoute(model=name, upstream="local", upstream_model=name, queue_concurrency=concurrency)


def test_every_tier_has_its_urgency_and_flex_is_the_least_urgent() -> None:
    priorities = {tier: priority_of(tier) for tier in ServiceTier}

    assert sorted(priorities, key=lambda tier: (priorities[tier], tier)) == ["priority", "auto", "default", "flex"]
    assert priorities[ServiceTier.AUTO] == priorities[ServiceTier.DEFAULT]


def test_only_flex_has_the_short_deadline() -> None:
    short = [tier for tier in ServiceTier if deadline_of(tier, _LIMITS) == _LIMITS.flex_deadline_s]

    assert short == [ServiceTier.FLEX]


def test_a_process_demands_for_each_route_its_own_bound_or_the_usual_one() -> None:
    demand = make_demand((_route("a", 2), _route("b")), _LIMITS, rows=4)

    assert demand == ClaimDemand(rows=4, models={"a": 2, "b": 7}, other_models=0, owner_rows=3)


def test_a_route_for_all_serves_each_other_name_with_its_bound() -> None:
    demand = make_demand((_route("a"), _route("*", 5)), _LIMITS, rows=1)

    assert (demand.models, demand.other_models) == ({"a": 7}, 5)


def test_of_two_routes_with_one_name_the_first_counts_as_it_does_for_requests() -> None:
    demand = make_demand((_route("a", 1), _route("a", 9)), _LIMITS, rows=1)

    assert demand.models == {"a": 1}
