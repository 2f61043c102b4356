"""The command line that every benchmark has: how often, how much, and where to write the result."""

import argparse
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import attrs
import trio

from benchmarks.rig.results import Measurement, Result, circumstances, summarize, table, write_result
from benchmarks.rig.site import Site, open_site

Measure: TypeAlias = Callable[[Site, float], Awaitable[list[Measurement]]]
"""One round on a site. The second argument is the effort: 1 for figures to publish, 0 for the least that runs."""


def scaled(count: int, effort: float, *, at_least: int = 1) -> int:
    """How many of the *count* requests of a full round to make."""
    return max(at_least, round(count * effort))


def run(document: str, *parts: Measure, arguments: Sequence[str] | None = None) -> Result:
    """Run a benchmark as its command line says, print the table, and write the JSON if asked for.

    Args:
        document: The module's docstring; its first line is the question.
        parts: Each measured in every round, one after the other.
        arguments: Instead of those of the process.
    """
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="the figures are medians of so many")
    parser.add_argument("--effort", type=float, default=1.0, help="the share of the requests of a full round")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args(arguments)
    result = trio.run(_run, document.splitlines()[0], parts, options.rounds, options.effort)
    conclude(result, options.json)
    return result


def conclude(result: Result, path: Path | None) -> None:
    """Print the table of *result*, and write its JSON to *path* if there is one."""
    print(f"\n{result.question}\n")
    print(table(result))
    print(f"\n{circumstances(result)}")
    if path is not None:
        write_result(result, path)


async def _run(question: str, parts: Sequence[Measure], rounds: int, effort: float) -> Result:
    measured: list[list[Measurement]] = []
    async with open_site() as site:
        for number in range(rounds):
            measurements: list[Measurement] = []
            for part in parts:
                tell(f"round {number + 1} of {rounds}: {name_of(part)}")
                measurements += [attrs.evolve(each, part=name_of(part)) for each in await part(site, effort)]
            measured.append(measurements)
    return summarize(question, measured)


def name_of(part: Measure) -> str:
    """The module of a part, by which its files are called, too."""
    specification = sys.modules[part.__module__].__spec__
    assert specification is not None, "it was run with -m"
    return specification.name.removeprefix("benchmarks.")


def tell(line: str) -> None:
    """Say on standard error how it goes."""
    print(line, file=sys.stderr, flush=True)
