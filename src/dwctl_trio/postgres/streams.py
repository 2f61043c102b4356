"""Streams into and out of a statement: a cursor's rows for Trio, and a COPY's chunks for asyncpg.

Rule 1: these are classes and not async generators, which Trio would adopt although asyncpg runs them, or which would be
finalized in the wrong colour.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any


class Cursor:
    """The rows of one query, for ``async for``; made by ``Connection.cursor``."""

    def __init__(self, call: Callable[..., Any], open_cursor: Callable[[], Any], rows: int) -> None:
        self._call = call
        self._open_cursor = open_cursor
        self._rows = rows
        self._cursor: Any = None
        self._batch: Iterator[Any] = iter(())

    def __aiter__(self) -> "Cursor":
        return self

    async def __anext__(self) -> Any:
        for row in self._batch:
            return row
        self._batch = iter(await self._call(self._fetch))
        for row in self._batch:
            return row
        raise StopAsyncIteration

    async def _fetch(self) -> Any:
        """Guest code: the next rows, the portal being opened before the first."""
        if self._cursor is None:
            self._cursor = await self._open_cursor()
        return await self._cursor.fetch(self._rows)


class Chunks:
    """An iterable in the asynchronous form that asyncpg asks for."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)

    def __aiter__(self) -> "Chunks":
        return self

    async def __anext__(self) -> bytes:
        for chunk in self._chunks:
            return chunk
        raise StopAsyncIteration
