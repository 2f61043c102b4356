"""The benchmarks run: each in its smallest form, with figures that can be figures."""

import json
import math
from pathlib import Path

import pytest
from benchmarks import __main__ as short_set
from benchmarks import budget, soak, workers
from benchmarks.compare import side_by_side
from benchmarks.rig.command import run
from benchmarks.rig.results import Measurement, Result, read_result, summarize, table, write_result


def assert_sound(result: Result) -> None:
    names = [measurement.name for measurement in result.measurements]
    assert len(set(names)) == len(names)
    assert all(math.isfinite(measurement.value) for measurement in result.measurements)


@pytest.mark.slow
def test_the_smallest_soak_finds_no_fault_and_writes_its_result(tmp_path: Path) -> None:
    path = tmp_path / "soak.json"
    result = soak.main(["--streams", "3", "--rate", "20", "--seconds", "2", "--tokens", "5", "--json", str(path)])
    assert_sound(result)
    written = {each["name"]: each for each in json.loads(path.read_text())["measurements"]}
    assert [written[name]["value"] for name in ("lost", "doubled", "invalid", "failed")] == [0, 0, 0, 0]
    assert written["responses"]["value"] >= 3
    assert written["events"]["value"] >= 3 * 5


@pytest.mark.long
def test_every_benchmark_runs_in_its_smallest_form() -> None:
    parts = (*short_set.SHORT_SET, budget.measure, workers.measure)
    for part in parts:
        assert_sound(run("Does it run?", part, arguments=["--effort", "0"]))


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
