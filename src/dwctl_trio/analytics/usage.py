"""What was used and what it cost, for people to read."""

import re
from collections.abc import Sequence

from dwctl_trio.ports import UsageLine

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SINCE = re.compile(r"([0-9]{1,6})([smhd])")
_UNKNOWN = "?"
_TOOL = "tool"
_TOOL_COLUMNS = 3
"""What is known of calls of tools: which, how many, and how many of them failed."""

BY = ("model", "owner", _TOOL)
"""What a report can have a line for each of."""


def parse_since(text: str) -> float:
    """Seconds that *text*, as in ``90s``, ``30m``, ``24h`` or ``7d``, stands for.

    Raises:
        ValueError: It is something else.
    """
    found = _SINCE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"expected a number and s, m, h or d, as in 24h, but got {text!r}")
    return float(int(found[1]) * _SECONDS[found[2]])


def render_usage_report(lines: Sequence[UsageLine], *, by: str) -> str:
    """*lines* as a table for people; by ``tool`` they are calls of tools, which have no tokens."""
    if not lines:
        return f"No {'tool' if by == _TOOL else 'model'} calls in this time."
    heads = (by, "calls", "failed", "input", "cached", "output", "reasoning", "cost")
    table = [heads, *(_cells(line) for line in lines)]
    if by == _TOOL:
        table = [row[:_TOOL_COLUMNS] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rendered = []
    for row in table:
        numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        rendered.append("  ".join([row[0].ljust(widths[0]), *numbers]).rstrip())
    return "\n".join(rendered)


def _cells(line: UsageLine) -> tuple[str, ...]:
    counts = (line.input_tokens, line.cached_tokens, line.output_tokens, line.reasoning_tokens)
    cost = _UNKNOWN if line.cost is None else f"{line.cost:.6f} {line.currency or ''}".strip()
    tokens = (_UNKNOWN if count is None else f"{count:,}" for count in counts)
    return (printable(line.subject), f"{line.calls:,}", f"{line.failures:,}", *tokens, cost)


def printable(text: str) -> str:
    """*text* on one line: what others wrote, as the name of a model, must not reach the terminal as commands."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
