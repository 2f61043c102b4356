"""The form of a result: measurements, the median of rounds, a table of them, and their JSON.

Rule 1: a ratio is taken within a round, and the median of rounds is of ratios: what a neighbour cost, both sides paid.
Rule 2: a result says what it was measured on, and neither where nor by whom.
"""

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs


@attrs.frozen(kw_only=True)
class Measurement:
    """One figure of ours, with what it is to be compared with."""

    name: str
    """Unique in a result."""
    unit: str
    """``us``, ``ms``, ``kB``, ``MB``, ``MB/min``, ``/s``, ``x`` or ``%``; empty for a number of things."""
    value: float
    """Ours."""
    reference: float | None = None
    """The bare Trio reference's, under the same load, within the same minute."""
    ratio: float | None = None
    """``value`` to ``reference``."""
    floor: float | None = None
    """The same straight to the upstream. A floor of CPU is the upstream's own."""
    at_most: float | None = None
    """What ours may be: a ratio if ``bounds_ratio``, else in ``unit``."""
    bounds_ratio: bool = False
    part: str = ""
    """The benchmark of a set that it is from; empty if the result is all from one."""

    @property
    def is_held(self) -> bool | None:
        """Whether it keeps its bound; None if it has none."""
        if self.at_most is None:
            return None
        measured = self.ratio if self.bounds_ratio else self.value
        return measured is not None and measured <= self.at_most


@attrs.frozen(kw_only=True)
class Machine:
    """What a result was measured on."""

    python: str
    cores: int
    system: str


@attrs.frozen(kw_only=True)
class Result:
    """What a run of a benchmark says."""

    question: str
    rounds: int
    """Each figure is the median of so many."""
    machine: Machine
    measurements: tuple[Measurement, ...]


def compared(
    name: str, unit: str, figures: dict[str, float], *, at_most: float | None = None, bounds_ratio: bool = False
) -> Measurement:
    """A measurement whose *figures* are by role: of ``server``, and of ``reference`` and ``floor`` if there are."""
    reference = figures.get("reference")
    return Measurement(
        name=name,
        unit=unit,
        value=figures["server"],
        reference=reference,
        ratio=figures["server"] / reference if reference else None,
        floor=figures.get("floor"),
        at_most=at_most,
        bounds_ratio=bounds_ratio,
    )


def summarize(question: str, rounds: Sequence[Sequence[Measurement]]) -> Result:
    """The result of several rounds of the same measurements: the median of each figure."""
    return Result(
        question=question,
        rounds=len(rounds),
        machine=Machine(python=platform.python_version(), cores=len(os.sched_getaffinity(0)), system=platform.system()),
        measurements=tuple(_median(same) for same in zip(*rounds, strict=True)),
    )


def _median(same: Sequence[Measurement]) -> Measurement:
    assert len({measurement.name for measurement in same}) == 1, "rounds measure the same, in the same order"

    def median(figures: Iterable[float | None]) -> float | None:
        present = [figure for figure in figures if figure is not None]
        return statistics.median(present) if present else None

    return attrs.evolve(
        same[0],
        value=statistics.median(measurement.value for measurement in same),
        reference=median(measurement.reference for measurement in same),
        ratio=median(measurement.ratio for measurement in same),
        floor=median(measurement.floor for measurement in same),
    )


def write_result(result: Result, path: Path) -> None:
    """Write *result* as JSON, figures to four digits."""
    document = attrs.asdict(result)
    for fields, measurement in zip(document["measurements"], result.measurements, strict=True):
        fields["is_held"] = measurement.is_held
        for name in ("value", "reference", "ratio", "floor"):
            fields[name] = _rounded(fields[name])
    path.write_text(json.dumps(document, indent=1) + "\n")


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else float(f"{figure:.4g}")


def read_result(path: Path) -> Result:
    """The result that ``write_result`` wrote."""
    document = json.loads(path.read_text())
    for fields in document["measurements"]:
        del fields["is_held"]
    return Result(
        question=document["question"],
        rounds=document["rounds"],
        machine=Machine(**document["machine"]),
        measurements=tuple(Measurement(**fields) for fields in document["measurements"]),
    )


def table(result: Result) -> str:
    """*result* as a Markdown table, with only the columns that it fills."""
    rows = [_cells(measurement) for measurement in result.measurements]
    heads = ("", "ours", "reference", "ratio", "floor", "at most", "held")
    used = [column for column in range(len(heads)) if column < 2 or any(row[column] for row in rows)]
    return layout([list(heads), *rows], used)


def circumstances(result: Result) -> str:
    """How often and on what *result* was measured, in one line."""
    machine = result.machine
    rounds = "One round" if result.rounds == 1 else f"Medians of {result.rounds} rounds"
    return f"{rounds}; {machine.cores} cores, Python {machine.python}, {machine.system}."


def _cells(measurement: Measurement) -> list[str]:
    unit = measurement.unit
    bound = "" if measurement.at_most is None else f"{measurement.at_most:g}"
    return [
        measurement.name,
        shown(measurement.value, unit),
        shown(measurement.reference, unit),
        shown(measurement.ratio, "x"),
        shown(measurement.floor, unit),
        bound and (f"{bound} x" if measurement.bounds_ratio else f"{bound} {unit}".rstrip()),
        {True: "held", False: "missed", None: ""}[measurement.is_held],
    ]


def shown(figure: float | None, unit: str) -> str:
    """*figure* to three digits, with its unit."""
    if figure is None:
        return ""
    digits = f"{figure:.3g}" if abs(figure) < 1000 else f"{figure:,.0f}"
    return f"{digits} {unit}".rstrip()


def layout(rows: Sequence[Sequence[str]], columns: Iterable[int]) -> str:
    """The *columns* of *rows*, of which the first are the heads, as a Markdown table whose columns are aligned."""
    chosen = [[row[column] for column in columns] for row in rows]
    widths = [max(len(row[column]) for row in chosen) for column in range(len(chosen[0]))]
    lines = ["| " + " | ".join(_pad(row, widths)) + " |" for row in chosen]
    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def _pad(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.rjust(width) if place else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
