"""What does a streamed event cost, and a streamed request, with 1, 32 and 100 streams at once?

    python -m benchmarks.streaming [--rounds N] [--effort SHARE] [--json FILE]

CPU of the target's process; PostgreSQL is not in it. Tokens come from the upstream all at once, where the reference
sends once for each of its reads, or one every 20 ms, where it sends once an event. The upstream's and the load
generator's CPU during each target's turn are given, too.
"""

import attrs

from benchmarks.rig.command import run, scaled
from benchmarks.rig.load import Answer, Target, run_streams
from benchmarks.rig.results import Measurement, compared
from benchmarks.rig.site import Costs, Site, measure_costs


@attrs.frozen(kw_only=True)
class Scenario:
    """A load."""

    name: str
    model: str
    """As the simulator understands it."""
    concurrent: int
    count: int
    """Requests of each target in a full round."""
    is_paced: bool = False


AT_ONCE = Scenario(name="200 tokens at once, 1 stream", model="echo-200", concurrent=1, count=300)
PACED = Scenario(
    name="50 tokens 20 ms apart, 100 streams", model="slow-50-20", concurrent=100, count=300, is_paced=True
)
SCENARIOS = (
    AT_ONCE,
    Scenario(name="200 tokens at once, 32 streams", model="echo-200", concurrent=32, count=384),
    Scenario(name="200 tokens at once, 100 streams", model="echo-200", concurrent=100, count=600),
    Scenario(name="50 tokens 20 ms apart, 1 stream", model="slow-50-20", concurrent=1, count=15, is_paced=True),
    Scenario(name="50 tokens 20 ms apart, 32 streams", model="slow-50-20", concurrent=32, count=192, is_paced=True),
    PACED,
)


async def measure_scenario(site: Site, scenario: Scenario, effort: float) -> Costs:
    """The costs of *scenario* by role."""
    concurrent = scenario.concurrent if effort else 1

    async def load(target: Target, count: int) -> list[Answer]:
        request = target.request(scenario.model, stream=True)
        return await run_streams(target, request, concurrent=concurrent, count=count)

    return await measure_costs(
        site,
        site.targets(each=scenario.is_paced),
        load,
        count=scaled(scenario.count, effort, at_least=concurrent),
        warm_up=concurrent if effort else 0,
    )


async def measure(site: Site, effort: float) -> list[Measurement]:
    """One round."""
    measurements = []
    for scenario in SCENARIOS:
        costs = await measure_scenario(site, scenario, effort)
        for name, figures in (
            ("CPU an event", {role: cost.us_per_event() for role, cost in costs.items()}),
            ("upstream's CPU an event", {role: cost.upstream_s * 1e6 / cost.events for role, cost in costs.items()}),
            ("load's CPU an event", {role: cost.load_s * 1e6 / cost.events for role, cost in costs.items()}),
        ):
            measurements.append(compared(f"{scenario.name}: {name}", "us", figures))
        per_request = {role: cost.ms_per_request() for role, cost in costs.items()}
        measurements.append(compared(f"{scenario.name}: CPU a request", "ms", per_request))
    return measurements


if __name__ == "__main__":
    run(__doc__, measure)
