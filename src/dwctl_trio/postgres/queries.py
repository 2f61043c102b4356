"""The SQL of the system: one statement a file, named parameters, loaded once.

Rule 1: no SQL outside ``sql/``; a file's first line is ``-- name``, its second says what it is for.
Rule 2: ``:name`` is a parameter wherever it stands in the statement; ``::type`` is PostgreSQL's cast.
Rule 3: ``-- include name`` in a line of its own, with or without a comma, stands for ``sql/parts/<name>.sql``, a piece
that several statements share.
Rule 4: a statement that PostgreSQL refuses is a StoreError, for whoever sent it.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import asyncpg
import attrs

from dwctl_trio.domain.errors import StoreError

_PARAMETER = re.compile(r"(?<![:\w]):([a-z_][a-z0-9_]*)")
_COMMENT = re.compile(r"--[^\n]*")
_INCLUDE = re.compile(r"^-- include ([a-z_]+)(,?)$", re.MULTILINE)


@attrs.frozen(kw_only=True)
class Query:
    """One statement."""

    name: str
    purpose: str
    text: str
    """As PostgreSQL takes it, with ``$1``, ``$2``, …"""
    parameters: tuple[str, ...]
    """The names in the order of their numbers."""

    def arguments(self, values: Mapping[str, object]) -> list[object]:
        """*values* in the statement's order.

        Raises:
            KeyError: A parameter has no value.
            ValueError: A value has no parameter.
        """
        if len(values) > len(self.parameters):
            raise ValueError(f"{self.name} has no parameter {sorted(values.keys() - set(self.parameters))}")
        return list(map(values.__getitem__, self.parameters))


def parse_query(source: str) -> Query:
    """The query in *source*, the text of one file.

    Raises:
        ValueError: The header is not ``-- name`` followed by a line that says what the statement is for.
    """
    lines = source.splitlines()
    if len(lines) < 3 or not re.fullmatch(r"-- [a-z_]+", lines[0]) or not lines[1].startswith("-- "):  # noqa: PLR2004
        raise ValueError("a query begins with '-- name' and a comment that says what it is for")
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        if found[1] not in names:
            names.append(found[1])
        return f"${names.index(found[1]) + 1}"

    statement = _COMMENT.sub("", "\n".join(lines[2:])).strip()
    text = _PARAMETER.sub(number, statement)
    return Query(name=lines[0][3:], purpose=lines[1][3:], text=text, parameters=tuple(names))


@cache
def load_query(name: str) -> Query:
    """The query in ``sql/queries/<name>.sql``."""
    source = _INCLUDE.sub(lambda found: _read("parts", found[1]).rstrip() + found[2], _read("queries", name))
    query = parse_query(source)
    assert query.name == name, f"the file of {name} calls itself {query.name}"
    return query


def _read(folder: str, name: str) -> str:
    return files("dwctl_trio.postgres").joinpath("sql", folder, f"{name}.sql").read_text(encoding="utf-8")


@attrs.frozen
class refusals:  # noqa: N801 - it is called like a function, as every context manager
    """Translate what PostgreSQL says of a statement in the block; its words go to the log's traceback only.

    A class, for it is entered twice in each response: a generator costs twice as much.

    Args:
        name: Of the statement.

    Raises:
        StoreError: PostgreSQL refused the statement.
    """

    _name: str

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        match error:
            case asyncpg.PostgresError():
                raise StoreError(f"PostgreSQL refused the statement {self._name} ({error.sqlstate})") from error
            case asyncpg.InterfaceError() | asyncpg.InternalClientError():
                raise StoreError(f"the driver could not run the statement {self._name}") from error
