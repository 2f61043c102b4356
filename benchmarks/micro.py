"""What does each pure part of the hot path cost, and how does that grow?

    python -m benchmarks.micro [--rounds N] [--json FILE] [--only TEXT]

CPU is the least of many rounds in microseconds. Instructions are the bytecode instructions that were executed: the
same in every run of one Python version on any machine, but blind to what is written in C. The ratio is that of the CPU
to the bare reference: stdlib's ``json.loads`` of a chunk and ``json.dumps`` of its event.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import trio

from benchmarks.micro_cases import Case, Run, cases
from benchmarks.rig.results import Measurement
from benchmarks.rig.site import Site

_ROUND_NS_MIN = 2_000_000
"""A round lasts at least so long, or what the clock costs would show."""


_PART_ROUNDS = 20
"""In the short set."""


@attrs.frozen(kw_only=True)
class Cost:
    """Of one unit of a case."""

    name: str
    unit: str
    cpu_us: float
    instructions: float
    """Bytecode instructions."""
    ratio: float
    """Of the CPU to the bare reference's for one token."""


def count_instructions(case: Case) -> float:
    """The bytecode instructions that one unit of *case* executes, once everything is warm."""
    case.prepare()()
    return _count(case.prepare()) / case.units


if sys.version_info >= (3, 12):

    def _count(run: Run) -> int:
        monitoring, tool, counted = sys.monitoring, sys.monitoring.PROFILER_ID, count(0)
        monitoring.use_tool_id(tool, __name__)
        monitoring.register_callback(tool, monitoring.events.INSTRUCTION, lambda _code, _at: next(counted))
        monitoring.set_events(tool, monitoring.events.INSTRUCTION)
        try:
            run()
        finally:
            monitoring.set_events(tool, 0)
            monitoring.free_tool_id(tool)
        return next(counted)

else:

    def _count(run: Run) -> int:
        counted = count(0)

        def trace(frame: FrameType, event: str, _arg: object) -> Any:
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            if event == "opcode":
                next(counted)
            return trace

        traced_before = sys.gettrace()
        sys.settrace(trace)
        try:
            run()
        finally:
            sys.settrace(traced_before)
        return next(counted)


def measure_cpu_us(case: Case, rounds: int) -> float:
    """The CPU that one unit of *case* takes at the least, in microseconds."""
    repeats = 1
    while _round_ns(case, repeats) < _ROUND_NS_MIN:
        repeats *= 2
    return min(_round_ns(case, repeats) for _ in range(rounds)) / repeats / case.units / 1000


def _round_ns(case: Case, repeats: int) -> int:
    runs = [case.prepare() for _ in range(repeats)]
    begun_ns = time.thread_time_ns()
    for run in runs:
        run()
    return time.thread_time_ns() - begun_ns


def measure(chosen: Sequence[Case], rounds: int) -> list[Cost]:
    """What *chosen*, the first of which is the bare reference, cost."""
    costs: list[Cost] = []
    for case in chosen:
        cpu_us = measure_cpu_us(case, rounds)
        ratio = cpu_us / (costs[0].cpu_us if costs else cpu_us)
        costs.append(
            Cost(name=case.name, unit=case.unit, cpu_us=cpu_us, instructions=count_instructions(case), ratio=ratio)
        )
    return costs


def report(costs: Sequence[Cost]) -> str:
    """The table."""
    lines = [f"Python {platform.python_version()}", f"{'':<50}{'CPU us':>9}{'instructions':>14}{'ratio':>8}  per"]
    lines += [
        f"{cost.name:<50}{cost.cpu_us:>9.2f}{cost.instructions:>14.1f}{cost.ratio:>7.2f}x  {cost.unit}"
        for cost in costs
    ]
    return "\n".join(lines)


async def measure_part(_site: Site, effort: float) -> list[Measurement]:
    """One round of the short set, which needs no site: CPU with the bare reference's, and the instructions."""
    reference, *costs = await _measure(max(1, round(_PART_ROUNDS * effort)), "")
    return [
        measurement
        for cost in costs
        for measurement in (
            Measurement(
                name=f"{cost.name}: CPU a {cost.unit}",
                unit="us",
                value=cost.cpu_us,
                reference=reference.cpu_us,
                ratio=cost.ratio,
            ),
            Measurement(name=f"{cost.name}: instructions a {cost.unit}", unit="", value=cost.instructions),
        )
    ]


async def _measure(rounds: int, only: str) -> list[Cost]:
    reference, *others = cases()
    return measure([reference, *(case for case in others if only in case.name)], rounds)


def main() -> None:
    """Measure, print the table, write the JSON if asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--only", default="", help="measure the cases whose names hold this")
    options = parser.parse_args()
    costs = trio.run(_measure, options.rounds, options.only)
    print(report(costs))
    if options.json is not None:
        options.json.write_text(json.dumps([attrs.asdict(cost) for cost in costs], indent=1) + "\n")


if __name__ == "__main__":
    main()
