"""The benchmarks run: each in its smallest form, with figures that can be figures."""

import math
import os
from pathlib import Path

import pytest
from benchmarks.compare import side_by_side
from benchmarks.rig.command import run
from benchmarks.rig.processes import Process
from benchmarks.rig.results import Measurement, Result, read_result, summarize, table, write_result
from benchmarks.rig.site import Site

from benchmarks import __main__ as short_set
from benchmarks import budget, soak, workers
from dwctl_trio.postgres.embedded import EmbeddedPostgres


def assert_sound(result: Result) -> None:
    names = [measurement.name for measurement in result.measurements]
    assert len(set(names)) == len(names)
    assert all(math.isfinite(measurement.value) for measurement in result.measurements)


@pytest.mark.slow
async def test_the_smallest_soak_finds_no_fault(postgres_server: EmbeddedPostgres, tmp_path: Path) -> None:
    other = Process(pid=os.getpid(), url="http://127.0.0.1:1")
    site = Site(
        folder=tmp_path,
        postgres_dsn=postgres_server.dsn,
        upstream=other,
        tools=other,
        reference=other,
        reference_each=other,
        server=other,
    )
    measurements = await soak.run_soak(site, soak.Soak(streams=3, rate=20, seconds=1, tokens=5))
    result = summarize("Does it run?", [measurements])
    assert_sound(result)
    values = {measurement.name: measurement.value for measurement in measurements}
    assert [values[name] for name in ("lost", "doubled", "invalid", "failed")] == [0, 0, 0, 0]
    assert values["responses"] >= 3
    assert values["events"] >= 3 * 5


@pytest.mark.long
def test_every_benchmark_runs_in_its_smallest_form() -> None:
    for parts in (short_set.SHORT_SET, (budget.measure,), (workers.measure,)):
        assert_sound(run("Does it run?", *parts, arguments=["--effort", "0"]))


def test_a_result_is_read_as_it_was_written_and_compared_with_another(tmp_path: Path) -> None:
    held = Measurement(name="an event", unit="us", value=12.0, reference=8.0, ratio=1.5, at_most=1.5, bounds_ratio=True)
    missed = Measurement(name="memory", unit="kB", value=120.0, at_most=100.0, part="memory")
    before = summarize("How much?", [[held, missed]])
    write_result(before, tmp_path / "before.json")
    assert read_result(tmp_path / "before.json") == before
    assert "| missed |" in table(before)
    after = summarize("How much?", [[Measurement(name="memory", unit="kB", value=60.0)]])
    compared = side_by_side(before, after)
    assert "0.5 x" in compared
    assert "only before: an event" in compared
