"""How many events a second do one worker and two serve, at what cost each, and what bounds them?

    python -m benchmarks.workers [--rounds N] [--effort SHARE] [--json FILE]

``serve --workers 1`` and ``serve --workers 2``, each under more load than it bears: tokens that come at once, and
paced ones of so many streams that a worker is late for all. CPU is that of the supervisor and its workers together.

What bounds them is seen by what the machine's cores are busy with: as long as one is idle, it is the server; when none
is, it is the machine, which upstream, load and PostgreSQL share with it. Then CPU an event says what two workers with
cores for themselves would serve.
"""

import os

import attrs

from benchmarks.rig.command import run, scaled
from benchmarks.rig.load import Answer, Target, run_streams
from benchmarks.rig.results import Measurement
from benchmarks.rig.site import Cost, Site, measure_costs, open_server, responses_target

CPU_AN_EVENT_RATIO_MAX = 1.1

_ONE, _TWO = "1 worker", "2 workers"


@attrs.frozen(kw_only=True)
class Scenario:
    """A load that is too much."""

    name: str
    model: str
    concurrent: int
    count: int
    """Requests of each server in a full round."""


SCENARIOS = (
    Scenario(name="200 tokens at once, 64 streams", model="echo-200", concurrent=64, count=1200),
    Scenario(name="50 tokens 20 ms apart, 400 streams", model="slow-50-20", concurrent=400, count=1200),
)


async def measure(site: Site, effort: float) -> list[Measurement]:
    """One round."""
    measurements = []
    async with open_server(site, "--workers", "1") as one, open_server(site, "--workers", "2") as two:
        targets = {_ONE: responses_target(one), _TWO: responses_target(two)}
        for scenario in SCENARIOS:
            measurements += await _measure_scenario(site, scenario, targets, effort)
    return measurements


async def _measure_scenario(
    site: Site, scenario: Scenario, targets: dict[str, Target], effort: float
) -> list[Measurement]:
    concurrent = scaled(scenario.concurrent, effort, at_least=4)

    async def load(target: Target, count: int) -> list[Answer]:
        request = target.request(scenario.model, stream=True)
        return await run_streams(target, request, concurrent=concurrent, count=count)

    count = scaled(scenario.count, effort, at_least=concurrent)
    costs = await measure_costs(site, targets, load, count=count, warm_up=concurrent)
    one, two = costs[_ONE], costs[_TWO]
    prefix = f"{scenario.name}: "
    return [
        *(each for name, cost in costs.items() for each in _of_one(f"{prefix}{name}, ", cost)),
        Measurement(name=f"{prefix}events a second, 2 workers to 1", unit="x", value=_rate(two) / _rate(one)),
        Measurement(
            name=f"{prefix}CPU an event, 2 workers to 1",
            unit="x",
            value=two.us_per_event() / one.us_per_event(),
            at_most=CPU_AN_EVENT_RATIO_MAX,
        ),
    ]


def _of_one(prefix: str, cost: Cost) -> list[Measurement]:
    whole_s = cost.elapsed_s * len(os.sched_getaffinity(0)) / 100
    return [
        Measurement(name=f"{prefix}events", unit="/s", value=_rate(cost)),
        Measurement(name=f"{prefix}CPU an event", unit="us", value=cost.us_per_event()),
        Measurement(name=f"{prefix}of all cores, everything", unit="%", value=cost.machine_s / whole_s),
        Measurement(name=f"{prefix}of all cores, the server", unit="%", value=cost.target_s / whole_s),
        Measurement(name=f"{prefix}of all cores, the upstream", unit="%", value=cost.upstream_s / whole_s),
        Measurement(name=f"{prefix}of all cores, the load", unit="%", value=cost.load_s / whole_s),
    ]


def _rate(cost: Cost) -> float:
    """Events a second."""
    return cost.events / cost.elapsed_s


if __name__ == "__main__":
    run(__doc__, measure)
