"""The little Markdown that generated pages need."""

from collections.abc import Iterable, Iterator, Sequence


def code(text: str) -> str:
    """*text* as code in a line."""
    return f"`{text}`"


def table(heads: Sequence[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A table, one source line a row; bars inside cells are escaped."""
    yield _line(heads)
    yield _line(["---"] * len(heads))
    for row in rows:
        yield _line(cell.replace("|", "\\|").replace("``", "`") for cell in row)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
