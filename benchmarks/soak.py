"""Does one process serve 1,000 streams for 10 minutes without a fault, in time, and without growing?

    python -m benchmarks.soak [--streams N] [--rate EVENTS_A_SECOND] [--seconds S] [--tokens N] [--json FILE]

On every stream one response follows the other, each on a new connection. Every token says which it is and when the
upstream sent it; every stream is checked by the event grammar after its end. The streams begin one after the other
within the time of one response, 30 s at the most; CPU counts from then on. What is under way when the time is over is
read to its end.

A response's events are kept in memory until its end: 1,000 responses of 1,200 tokens grow for ten minutes by design,
those of the default, 60 tokens, take each other's places.

Memory is flat if it is, in the last minute, at most 5 % or 10 MB above that of the second minute; minutes are a fifth
of the time if that is less. The exit status is 1 if a bound is missed.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import attrs
import trio

from benchmarks.rig.clock import clock_model
from benchmarks.rig.command import conclude, tell
from benchmarks.rig.load import percentile
from benchmarks.rig.processes import Process, open_process
from benchmarks.rig.recording import Findings, examine, record
from benchmarks.rig.results import Measurement, Result, summarize
from benchmarks.rig.site import Site, open_server, open_site, responses_target
from dwctl_trio.protocol.request_body import parse_request

DELAY_MS_MAX = 250.0
CORE_PERCENT_MAX = 80.0
GROWTH_SHARE_MAX, GROWTH_MB_MAX = 0.05, 10.0

_SPREAD_S_MAX = 30.0
_PROGRESS_S = 30.0
_SAMPLES = 120
_LATE_S_MAX = 60.0
_PROBLEMS_SHOWN = 5
_FAULTS = ("lost", "doubled", "invalid", "failed")


@attrs.frozen(kw_only=True)
class Soak:
    """How much, how fast, how long."""

    streams: int = 1000
    rate: float = 2.0
    """Tokens a second on each stream."""
    seconds: float = 600.0
    tokens: int = 60
    """Of each response."""

    @property
    def response_s(self) -> float:
        """How long a response takes."""
        return self.tokens / self.rate

    @property
    def spread_s(self) -> float:
        """Within how long all streams begin."""
        return min(self.response_s, _SPREAD_S_MAX, self.seconds / 2)

    @property
    def minute_s(self) -> float:
        """What counts as a minute of memory."""
        return min(60.0, self.seconds / 5)

    def limits(self) -> dict[str, int]:
        """What of the defaults a user has to raise, as one owner has all streams and the next begins as one ends."""
        return dict.fromkeys(("live_responses", "owner_responses", "calm_responses"), max(1000, 2 * self.streams))


@attrs.define(eq=False)
class Tally:
    """What the streams were so far."""

    counts: Counter[str] = attrs.field(factory=Counter)
    delays_us: list[int] = attrs.field(factory=list)
    problems: list[str] = attrs.field(factory=list)
    """The first ones."""

    def add(self, findings: Findings) -> None:
        """Count a stream that has ended."""
        self.counts["responses"] += 1
        self.counts["events"] += findings.events
        self.counts["lost"] += findings.lost
        self.counts["doubled"] += findings.doubled
        self.counts["invalid"] += findings.violation is not None
        self.counts["failed"] += findings.failure is not None
        self.delays_us.extend(findings.delays_us)
        problem = findings.failure or findings.violation
        if problem and len(self.problems) < _PROBLEMS_SHOWN:
            self.problems.append(problem)


@attrs.frozen(kw_only=True)
class _Sample:
    at_s: float
    """Since the beginning."""
    server_s: float
    """CPU, like the next two."""
    upstream_s: float
    load_s: float
    memory_mb: float


@attrs.frozen(kw_only=True)
class _Run:
    soak: Soak
    server: Process
    upstream: Process
    began_at: float
    tally: Tally = attrs.field(factory=Tally)
    samples: list[_Sample] = attrs.field(factory=list)

    def elapsed_s(self) -> float:
        return trio.current_time() - self.began_at

    def percent(self, of: str) -> float:
        """The share of a core that a field of the samples has been since all streams had begun."""
        last = self.samples[-1]
        first = next((sample for sample in self.samples if sample.at_s >= self.soak.spread_s), last)
        elapsed_s = last.at_s - first.at_s
        return 100 * (getattr(last, of) - getattr(first, of)) / elapsed_s if elapsed_s else 0.0


async def run_soak(site: Site, soak: Soak) -> list[Measurement]:
    """Soak a server of its own."""
    tell(f"limits raised above their defaults: {soak.limits()}; the upstream's max_concurrency too")
    async with (
        open_process("-m", "benchmarks.rig.clock") as upstream,
        open_server(attrs.evolve(site, upstream=upstream), **soak.limits()) as server,
    ):
        run = _Run(soak=soak, server=server, upstream=upstream, began_at=trio.current_time())
        async with trio.open_nursery() as nursery:
            for number in range(soak.streams):
                nursery.start_soon(_run_stream, run, number)
            await _watch(run)
    for problem in run.tally.problems:
        tell(problem)
    return _measurements(run)


async def _run_stream(run: _Run, number: int) -> None:
    """One response after the other until the time is over."""
    soak, target = run.soak, responses_target(run.server)
    model = clock_model(soak.tokens, round(1000 / soak.rate))
    asked = parse_request({**target.body, "model": model, "stream": True})
    request = target.request(model, stream=True)
    await trio.sleep_until(run.began_at + soak.spread_s * number / soak.streams)
    while run.elapsed_s() < soak.seconds:
        recording = await record(target, request, soak.response_s + _LATE_S_MAX)
        run.tally.add(examine(recording, asked, soak.tokens))


async def _watch(run: _Run) -> None:
    """Sample until the time is over, and tell how it goes."""
    told_s, seconds = 0.0, run.soak.seconds
    while True:
        sample = _Sample(
            at_s=run.elapsed_s(),
            server_s=run.server.cpu_s(),
            upstream_s=run.upstream.cpu_s(),
            load_s=time.process_time(),
            memory_mb=run.server.memory_bytes() / 1e6,
        )
        run.samples.append(sample)
        if sample.at_s >= told_s + _PROGRESS_S:
            told_s = sample.at_s
            counts = ", ".join(f"{run.tally.counts[name]:,} {name}" for name in ("events", *_FAULTS))
            tell(f"{told_s:.0f} s: {counts}; {sample.memory_mb:.0f} MB, {run.percent('server_s'):.0f} % of a core")
        if sample.at_s >= seconds:
            return
        await trio.sleep_until(run.began_at + min(sample.at_s + seconds / _SAMPLES, seconds))


def _measurements(run: _Run) -> list[Measurement]:
    soak, tally = run.soak, run.tally
    delays_ms = [delay_us / 1000 for delay_us in tally.delays_us] or [float("inf")]
    return [
        Measurement(name="streams at once", unit="", value=soak.streams),
        Measurement(name="responses", unit="", value=tally.counts["responses"]),
        Measurement(name="events", unit="", value=tally.counts["events"]),
        *(Measurement(name=name, unit="", value=tally.counts[name], at_most=0) for name in _FAULTS),
        Measurement(name="added delay, median", unit="ms", value=percentile(delays_ms, 0.5)),
        Measurement(name="added delay, p99", unit="ms", value=percentile(delays_ms, 0.99), at_most=DELAY_MS_MAX),
        Measurement(name="added delay, most", unit="ms", value=max(delays_ms)),
        Measurement(name="of a core", unit="%", value=run.percent("server_s"), at_most=CORE_PERCENT_MAX),
        Measurement(name="of a core, the upstream", unit="%", value=run.percent("upstream_s")),
        Measurement(name="of a core, the load and its checks", unit="%", value=run.percent("load_s")),
        *_memory(soak, run.samples),
    ]


def _memory(soak: Soak, samples: Sequence[_Sample]) -> list[Measurement]:
    minute_s = soak.minute_s
    settled = [sample for sample in samples if sample.at_s >= minute_s]
    second = statistics.median(sample.memory_mb for sample in settled if sample.at_s <= 2 * minute_s)
    last = statistics.median(sample.memory_mb for sample in settled if sample.at_s >= soak.seconds - minute_s)
    slope = statistics.linear_regression(
        [sample.at_s / 60 for sample in settled], [sample.memory_mb for sample in settled]
    ).slope
    growth_mb_max = max(GROWTH_MB_MAX, GROWTH_SHARE_MAX * second)
    return [
        Measurement(name="memory after the first minute", unit="MB", value=settled[0].memory_mb),
        Measurement(name="memory, median of the second minute", unit="MB", value=second),
        Measurement(name="memory, median of the last minute", unit="MB", value=last),
        Measurement(name="memory, last minute over second", unit="MB", value=last - second, at_most=growth_mb_max),
        Measurement(name="memory, slope after the first minute", unit="MB/min", value=slope),
    ]


async def _run(soak: Soak) -> Result:
    async with open_site() as site:
        return summarize(__doc__.splitlines()[0], [await run_soak(site, soak)])


def main(arguments: Sequence[str] | None = None) -> Result:
    """Run the soak as the command line says, print the table, and write the JSON if asked for."""
    defaults = Soak()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=defaults.streams)
    parser.add_argument("--rate", type=float, default=defaults.rate, help="tokens a second on each stream")
    parser.add_argument("--seconds", type=float, default=defaults.seconds)
    parser.add_argument("--tokens", type=int, default=defaults.tokens, help="of each response")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = vars(parser.parse_args(arguments))
    path = options.pop("json")
    result = trio.run(_run, Soak(**options))
    conclude(result, path)
    return result


if __name__ == "__main__":
    sys.exit(any(measurement.is_held is False for measurement in main().measurements))
