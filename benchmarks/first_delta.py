"""How much later does the first delta come, and what does an event cost, compared with no server and a bare one?

    python -m benchmarks.first_delta [--rounds N] [--json FILE]

Load, upstream, reference and server are processes of their own; PostgreSQL is outside the server's. CPU is the server's
alone. Each round measures every target, one after the other, so that a noisy neighbour meets them all.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs
import trio
import yaml

from benchmarks.load import StreamTiming, Target, percentile, run_streams
from benchmarks.processes import Process, open_process
from dwctl_trio.config import parse_config
from dwctl_trio.postgres.database import open_database
from dwctl_trio.postgres.embedded import open_embedded_postgres

_CHAT_BODY = {
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
    "stream_options": {"include_usage": True},
}
_RESPONSES_BODY = {"input": "hi", "stream": True}
_DELTA = b"response.output_text.delta"


@attrs.frozen(kw_only=True)
class Scenario:
    """A load."""

    name: str
    model: str
    concurrent: int
    count: int


SCENARIOS = (
    Scenario(name="200 tokens at once, 1 stream at a time", model="echo-200", concurrent=1, count=60),
    Scenario(name="200 tokens at once, 32 streams at a time", model="echo-200", concurrent=32, count=160),
    Scenario(name="50 tokens, 20 ms apart, 100 streams at a time", model="slow-50-20", concurrent=100, count=100),
)


@attrs.frozen(kw_only=True)
class Row:
    """One target under one load."""

    scenario: str
    target: str
    first_delta_p50_ms: float
    first_delta_p99_ms: float
    cpu_us_per_event: float
    cpu_ms_per_request: float
    failed: int


async def _measure(target: Target, process: Process, scenario: Scenario) -> Row:
    await run_streams(target, scenario.model, concurrent=scenario.concurrent, count=scenario.concurrent)
    cpu_before = process.cpu_s()
    timings = await run_streams(target, scenario.model, concurrent=scenario.concurrent, count=scenario.count)
    return _row(target, scenario, timings, process.cpu_s() - cpu_before)


def _row(target: Target, scenario: Scenario, timings: Sequence[StreamTiming], cpu_s: float) -> Row:
    first = [timing.first_delta_s * 1000 for timing in timings]
    return Row(
        scenario=scenario.name,
        target=target.name,
        first_delta_p50_ms=percentile(first, 0.50),
        first_delta_p99_ms=percentile(first, 0.99),
        cpu_us_per_event=cpu_s * 1e6 / sum(timing.events for timing in timings),
        cpu_ms_per_request=cpu_s * 1e3 / len(timings),
        failed=sum(not timing.is_whole for timing in timings),
    )


async def _run(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="dwctl-bench-") as directory:
        folder = Path(directory)
        folder.chmod(0o711)  # noqa: ASYNC240 - once, before anything is measured
        async with (
            open_embedded_postgres(folder / "data") as postgres,
            open_process("-m", "dwctl_trio", "simulator", "--port", "0") as upstream,
            open_process("-m", "benchmarks.reference_server", upstream.url.removeprefix("http://")) as reference,
        ):
            config = _write_config(folder, postgres.dsn, upstream.url)
            async with (
                open_database(parse_config(yaml.safe_load(config.read_text())), migrating=True),
                open_process("-m", "dwctl_trio", "serve", "--config", str(config)) as server,
            ):
                targets = (
                    (
                        _target("upstream itself", upstream, "/v1/chat/completions", b'"content":"w', _CHAT_BODY),
                        upstream,
                    ),
                    (_target("bare Trio reference", reference, "/v1/responses", _DELTA, _RESPONSES_BODY), reference),
                    (_target("dwctl-trio", server, "/v1/responses", _DELTA, _RESPONSES_BODY), server),
                )
                return [
                    await _measure(target, process, scenario)
                    for _ in range(rounds)
                    for scenario in SCENARIOS
                    for target, process in targets
                ]


def _target(name: str, process: Process, path: str, first_delta: bytes, body: dict[str, object]) -> Target:
    return Target(name=name, url=process.url, path=path, first_delta=first_delta, body=body)


def _write_config(folder: Path, dsn: str, upstream_url: str) -> Path:
    config = folder / "config.yaml"
    document = {
        "port": 0,
        "auth": {"mode": "none"},
        "database_url": dsn,
        "upstreams": {"simulator": {"base_url": f"{upstream_url}/v1"}},
        "models": [{"name": "*", "upstream": "simulator"}],
        "log_level": "info",
    }
    config.write_text(yaml.safe_dump(document))
    return config


def _median(rows: Sequence[Row], scenario: Scenario, target: str) -> Row:
    chosen = [row for row in rows if (row.scenario, row.target) == (scenario.name, target)]
    numbers = ("first_delta_p50_ms", "first_delta_p99_ms", "cpu_us_per_event", "cpu_ms_per_request")
    medians = {name: statistics.median(getattr(row, name) for row in chosen) for name in numbers}
    return Row(scenario=scenario.name, target=target, failed=sum(row.failed for row in chosen), **medians)


def _report(rows: Sequence[Row], rounds: int) -> str:
    lines = [f"Medians of {rounds} rounds. CPU is the target's own process; ratios are to the bare Trio reference."]
    for scenario in SCENARIOS:
        names = list(dict.fromkeys(row.target for row in rows))
        medians = [_median(rows, scenario, name) for name in names]
        floor = next(row for row in medians if row.target == "bare Trio reference")
        direct = next(row for row in medians if row.target == "upstream itself")
        lines += ["", scenario.name]
        heads = ("", "first delta p50", "p99", "over upstream p50", "CPU/event", "ratio", "CPU/request", "failed")
        lines.append("  {:<22}{:>16}{:>12}{:>19}{:>12}{:>8}{:>13}{:>8}".format(*heads))
        for row in medians:
            over = row.first_delta_p50_ms - direct.first_delta_p50_ms
            ratio = row.cpu_us_per_event / floor.cpu_us_per_event
            lines.append(
                f"  {row.target:<22}{row.first_delta_p50_ms:>13.2f} ms{row.first_delta_p99_ms:>9.2f} ms{over:>16.2f} ms"
                f"{row.cpu_us_per_event:>9.1f} us{ratio:>7.2f}x{row.cpu_ms_per_request:>10.2f} ms{row.failed:>8}"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the JSON if asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    rows = trio.run(_run, options.rounds)
    print(_report(rows, options.rounds))
    if options.json is not None:
        options.json.write_text(json.dumps([attrs.asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
