"""How do two results differ?

python -m benchmarks.compare BEFORE.json AFTER.json

Figures of ours side by side, with the relation of the second to the first: of the ratios to the reference where there
are any, as those two were measured in the same minutes, else of the figures themselves.
"""

import argparse
from pathlib import Path

from benchmarks.rig.results import Measurement, Result, layout, read_result, shown

_HEADS = ("", "before", "after", "ratio before", "ratio after", "after / before")


def side_by_side(before: Result, after: Result) -> str:
    """The measurements that both have, as a Markdown table, then the names of those that only one has."""
    old = {measurement.name: measurement for measurement in before.measurements}
    new = {measurement.name: measurement for measurement in after.measurements}
    rows = [_row(old[name], new[name]) for name in old if name in new]
    lines = [layout([_HEADS, *rows], range(len(_HEADS)))]
    lines += [f"only before: {name}" for name in old if name not in new]
    lines += [f"only after: {name}" for name in new if name not in old]
    return "\n".join(lines)


def relation(before: Measurement, after: Measurement) -> float | None:
    """What *after* is to *before*; below 1 is cheaper. None if it was nothing."""
    if before.ratio and after.ratio:
        return after.ratio / before.ratio
    return after.value / before.value if before.value else None


def _row(before: Measurement, after: Measurement) -> list[str]:
    return [
        before.name,
        shown(before.value, before.unit),
        shown(after.value, after.unit),
        shown(before.ratio, "x"),
        shown(after.ratio, "x"),
        shown(relation(before, after), "x"),
    ]


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    print(side_by_side(read_result(options.before), read_result(options.after)))


if __name__ == "__main__":
    main()
