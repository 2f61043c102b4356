"""What does a small request cost that is answered in one body?

    python -m benchmarks.blocking [--rounds N] [--effort SHARE] [--json FILE]

10 tokens, on connections that are kept alive. CPU of the target's process; PostgreSQL is not in it.
"""

from collections.abc import Sequence

from benchmarks.rig.command import run, scaled
from benchmarks.rig.load import Answer, Target, percentile, run_blockings
from benchmarks.rig.results import Measurement, compared
from benchmarks.rig.site import Costs, Site, measure_costs

_MODEL = "echo-10"
_SCENARIOS = (("blocking, 1 at a time", 1, 900), ("blocking, 32 at a time", 32, 1800))
"""Name, how many at a time, and how many of each target in a full round."""


async def measure_scenario(site: Site, concurrent: int, count: int, *, warm_up: int) -> Costs:
    """The costs by role."""

    async def load(target: Target, count: int) -> list[Answer]:
        request = target.request(_MODEL, stream=False)
        return await run_blockings(target, request, concurrent=concurrent, count=count)

    return await measure_costs(site, site.targets(), load, count=count, warm_up=warm_up)


async def measure(site: Site, effort: float) -> list[Measurement]:
    """One round."""
    measurements = []
    for name, concurrent, count in _SCENARIOS:
        warm_up = 2 * concurrent if effort else 0
        costs = await measure_scenario(site, concurrent, scaled(count, effort), warm_up=warm_up)
        for label, figures in (
            ("CPU a request", {role: cost.ms_per_request() for role, cost in costs.items()}),
            ("upstream's CPU", {role: cost.upstream_s * 1e3 / len(cost.answers) for role, cost in costs.items()}),
            ("load's CPU", {role: cost.load_s * 1e3 / len(cost.answers) for role, cost in costs.items()}),
            ("time, median", {role: _time_ms(cost.answers) for role, cost in costs.items()}),
        ):
            measurements.append(compared(f"{name}: {label}", "ms", figures))
    return measurements


def _time_ms(answers: Sequence[Answer]) -> float:
    return percentile([answer.total_s * 1e3 for answer in answers], 0.50)


if __name__ == "__main__":
    run(__doc__, measure)
