"""Does the performance budget hold?

    python -m benchmarks.budget [--rounds N] [--effort SHARE] [--json FILE]

The rows of the budget with their bounds: a ratio to the reference, or a figure of ours. It counts on the median of five
rounds. The exit status is 1 if a row is missed.
"""

import sys

from benchmarks.blocking import measure_scenario as measure_blocking
from benchmarks.first_delta import AT_ONCE as FIRST_DELTA
from benchmarks.first_delta import OVER_UPSTREAM_MS_MAX, first_deltas
from benchmarks.memory import IDLE_KB_MAX, measure_idle
from benchmarks.rig.command import run, scaled
from benchmarks.rig.load import percentile
from benchmarks.rig.results import Measurement, compared
from benchmarks.rig.site import FLOOR, Site
from benchmarks.streaming import AT_ONCE, PACED, Scenario, measure_scenario

_EVENT_AT_ONCE_RATIO_MAX = 1.5
_EVENT_PACED_RATIO_MAX = 1.5
_BLOCKING_RATIO_MAX = 5.0
_BLOCKING_COUNT = 900
_WARM_UP = 5


async def measure(site: Site, effort: float) -> list[Measurement]:
    """One round."""
    return [
        await _cost_of_event(site, AT_ONCE, effort, _EVENT_AT_ONCE_RATIO_MAX),
        await _cost_of_event(site, PACED, effort, _EVENT_PACED_RATIO_MAX),
        await _cost_of_blocking(site, effort),
        await _first_delta(site, effort),
        compared("memory of an idle stream", "kB", await measure_idle(site, effort), at_most=IDLE_KB_MAX),
    ]


async def _cost_of_event(site: Site, scenario: Scenario, effort: float, ratio_max: float) -> Measurement:
    costs = await measure_scenario(site, scenario, effort)
    figures = {role: cost.us_per_event() for role, cost in costs.items()}
    return compared(f"{scenario.name}: CPU an event", "us", figures, at_most=ratio_max, bounds_ratio=True)


async def _cost_of_blocking(site: Site, effort: float) -> Measurement:
    costs = await measure_blocking(site, 1, scaled(_BLOCKING_COUNT, effort), warm_up=_WARM_UP)
    figures = {role: cost.ms_per_request() for role, cost in costs.items()}
    name = "small blocking response: CPU a request"
    return compared(name, "ms", figures, at_most=_BLOCKING_RATIO_MAX, bounds_ratio=True)


async def _first_delta(site: Site, effort: float) -> Measurement:
    name, model, count = FIRST_DELTA
    delays_ms = await first_deltas(site, model, scaled(count, effort), warm_up=_WARM_UP)
    medians = {role: percentile(values, 0.50) for role, values in delays_ms.items()}
    over = {role: median - medians[FLOOR] for role, median in medians.items() if role != FLOOR}
    return compared(f"{name}: first delta over the upstream's", "ms", over, at_most=OVER_UPSTREAM_MS_MAX)


if __name__ == "__main__":
    result = run(__doc__, measure)
    sys.exit(any(measurement.is_held is False for measurement in result.measurements))
