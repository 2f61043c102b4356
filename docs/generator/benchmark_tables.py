"""Tables of ``explanation/performance.md``, from the results in ``benchmarks/results``."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import attrs
from benchmarks.rig.results import Result, circumstances, read_result, table

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
BUDGET, SHORT_SET, SOAK, WORKERS = "budget.json", "short_set.json", "soak.json", "workers.json"
PARTS = ("streaming", "first_delta", "blocking", "tool_rounds", "memory", "queued", "growth", "micro")
"""Of the short set."""


def insets() -> dict[str, Callable[[], Iterator[str]]]:
    """What goes into the page, by the title of its place."""
    whole = {name.removesuffix(".json"): partial(whole_table, name) for name in (BUDGET, SOAK, WORKERS)}
    return {**whole, **{part: partial(part_table, part) for part in PARTS}}


def whole_table(name: str) -> Iterator[str]:
    """All of a result."""
    yield from _lines(read_result(RESULTS / name))


def part_table(part: str) -> Iterator[str]:
    """What one benchmark of the short set measured."""
    result = read_result(RESULTS / SHORT_SET)
    chosen = tuple(measurement for measurement in result.measurements if measurement.part == part)
    yield from _lines(attrs.evolve(result, measurements=chosen))


def _lines(result: Result) -> Iterator[str]:
    yield from table(result).splitlines()
    yield ""
    yield circumstances(result)
