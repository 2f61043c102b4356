"""How much later than the upstream's does the first delta come, one stream at a time?

    python -m benchmarks.first_delta [--rounds N] [--effort SHARE] [--json FILE]

Medians of requests made in turn of the upstream itself, the reference and the server, each on a connection of its own.
The reference sends every event by itself. With all tokens at once a server that sends once for each read has to encode
them all before the first is seen; with paced tokens it is the delay alone.
"""

from benchmarks.rig.command import run, scaled
from benchmarks.rig.load import percentile, run_stream
from benchmarks.rig.results import Measurement, compared
from benchmarks.rig.site import FLOOR, Site

AT_ONCE = ("200 tokens at once", "echo-200", 200)
SCENARIOS = (AT_ONCE, ("5 tokens 20 ms apart", "slow-5-20", 60))
"""Name, model, and requests of each target in a full round."""

OVER_UPSTREAM_MS_MAX = 2.0
_WARM_UP = 5


async def first_deltas(site: Site, model: str, count: int, *, warm_up: int) -> dict[str, list[float]]:
    """Milliseconds from a request to its first delta, by role."""
    targets = site.targets(each=True)
    requests = {role: target.request(model, stream=True) for role, target in targets.items()}
    delays_ms: dict[str, list[float]] = {role: [] for role in targets}
    for number in range(-warm_up, count):
        for role, target in targets.items():
            answer = await run_stream(target, requests[role])
            if number >= 0:
                delays_ms[role].append(answer.first_delta_s * 1e3)
    return delays_ms


async def measure(site: Site, effort: float) -> list[Measurement]:
    """One round."""
    measurements = []
    for name, model, count in SCENARIOS:
        delays_ms = await first_deltas(site, model, scaled(count, effort), warm_up=_WARM_UP if effort else 0)
        for label, share in (("median", 0.50), ("p99", 0.99)):
            whole = {role: percentile(values, share) for role, values in delays_ms.items()}
            measurements.append(compared(f"{name}: first delta, {label}", "ms", whole))
        medians = {role: percentile(values, 0.50) for role, values in delays_ms.items()}
        over = {role: median - medians[FLOOR] for role, median in medians.items() if role != FLOOR}
        measurements.append(compared(f"{name}: first delta over the upstream's", "ms", over))
    return measurements


if __name__ == "__main__":
    run(__doc__, measure)
