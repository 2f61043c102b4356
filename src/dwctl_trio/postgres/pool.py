"""The pool of connections: a bounded number of them, handed out in the order in which they were asked for.

Rule 1: a slot is taken before a connection and given back after it, by functions that cannot be cancelled half-way.
Rule 2: no round trip is made to hand out or take back a connection. The session is not reset: who changes a setting,
takes an advisory lock or makes a temporary table undoes it.
Rule 3: a connection is taken back only in a known state; a cancelled one first settles, with its slot still taken.
Rule 4: a connection that died at rest is noticed by asking the kernel, not the server, and is replaced.

It does not know statements or tables.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import structlog
import trio

from dwctl_trio.domain.errors import StoreUnavailable
from dwctl_trio.postgres.guest_loop import GuestLoop
from dwctl_trio.postgres.trio_asyncpg import Connection, connect

CLOSE_S_MAX = 2.0
"""For cancelling the statements under way when the pool ends; idle connections close at once."""

_log = structlog.get_logger(__name__)
Setup = Callable[[Connection], Awaitable[None]]


@attrs.frozen(kw_only=True)
class PoolStatistics:
    """The state of a pool at one moment."""

    size: int
    """Open connections, idle or in use."""
    idle: int
    """Open connections that nobody uses."""
    in_use: int
    """Open connections that somebody uses, or that settle after a cancellation."""
    waiting: int
    """Tasks that wait for a slot."""
    opened_total: int
    """Connections opened since the pool began."""
    discarded_total: int
    """Connections closed since then, for whatever reason."""


@asynccontextmanager
async def open_pool(  # noqa: PLR0913 - what a pool is; an options value would be built and unpacked in one breath
    loop: GuestLoop,
    dsn: str,
    *,
    connections_max: int,
    wait_s: float,
    call_s: float,
    setup: Setup | None = None,
) -> AsyncIterator["Pool"]:
    """A pool for the time of the block; connections are opened when they are first needed.

    Args:
        loop: The guest loop of the connections.
        dsn: As for ``connect``.
        connections_max: Slots; each holds one connection at most.
        wait_s: Bound in seconds for a slot to become free and its connection to open.
        call_s: Bound in seconds for each call on a connection.
        setup: Called once with each new connection, before anybody gets it.

    Cancellation: every connection is closed, within ``CLOSE_S_MAX``.
    """

    async def open_connection() -> Connection:
        connection = await connect(loop, dsn, call_s=call_s)
        try:
            if setup is not None:
                await setup(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    pool = Pool(open_connection, connections_max=connections_max, wait_s=wait_s)
    try:
        yield pool
    finally:
        await pool.aclose()


class Pool:
    """Connections to one database; made by ``open_pool``."""

    def __init__(
        self, open_connection: Callable[[], Awaitable[Connection]], *, connections_max: int, wait_s: float
    ) -> None:
        self._open_connection = open_connection
        self._wait_s = wait_s
        self._slots = trio.Semaphore(connections_max, max_value=connections_max)
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._opened_total = 0
        self._discarded_total = 0
        self._closed = False

    # -- use

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for the block, exclusively.

        Raises:
            StoreUnavailable: No slot became free, or no connection could be opened, within ``wait_s``.

        Cancellation: the connection goes back, or is closed when its state is unknown; the slot is never lost.
        """
        await trio.lowlevel.checkpoint()
        connection = await self._check_out()
        try:
            yield connection
        finally:
            self._check_in(connection)

    @asynccontextmanager
    async def open_dedicated(self) -> AsyncIterator[Connection]:
        """A connection of its own for the block, beside the slots: for what a shared one cannot do, such as LISTEN.

        Raises:
            StoreUnavailable: It could not be opened within ``wait_s``.

        Cancellation: it is closed, without a wait; the server notices by itself.
        """
        connection = None
        with trio.move_on_after(self._wait_s):
            connection = await self._open_connection()
        if connection is None:
            raise StoreUnavailable("no connection to the database could be opened in time")
        try:
            yield connection
        finally:
            connection.terminate()

    async def fetch(self, query: str, *args: Any, retry: bool = False) -> list[Any]:
        """``Connection.fetch`` on any connection; *retry* as for ``execute``."""
        rows: list[Any] = await self._run(Connection.fetch, query, args, retry=retry)
        return rows

    async def fetchrow(self, query: str, *args: Any, retry: bool = False) -> Any:
        """``Connection.fetchrow`` on any connection; *retry* as for ``execute``."""
        return await self._run(Connection.fetchrow, query, args, retry=retry)

    async def fetchval(self, query: str, *args: Any, retry: bool = False) -> Any:
        """``Connection.fetchval`` on any connection; *retry* as for ``execute``."""
        return await self._run(Connection.fetchval, query, args, retry=retry)

    async def execute(self, query: str, *args: Any, retry: bool = False) -> str:
        """``Connection.execute`` on any connection.

        Args:
            query: One statement; several only without *args*.
            args: Its parameters.
            retry: Whether doing it twice is as good as once. When the connection breaks during the statement, nobody
                knows whether it took effect; with *retry* it is sent once more, on a new connection.
        """
        status: str = await self._run(Connection.execute, query, args, retry=retry)
        return status

    async def _run(
        self, method: Callable[..., Awaitable[Any]], query: str, args: tuple[Any, ...], *, retry: bool
    ) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        connection = await self._check_out()
        try:
            try:
                return await method(connection, query, *args)
            except StoreUnavailable:
                if not retry or not connection.is_closed():
                    raise
            _log.info("database_call_retried")
            self._discard(connection)
            connection = await self._connect()
            return await method(connection, query, *args)
        finally:
            self._check_in(connection)

    # -- out and in

    async def _check_out(self) -> Connection:
        """A slot and its connection. Not a checkpoint when an idle one is there: the caller's statement is."""
        deadline = math.inf
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            deadline = await self._wait_for_slot()
        try:
            while self._idle:
                connection = self._idle.pop()
                if not connection.is_stale():
                    return connection
                self._discard(connection)
            return await self._connect(deadline)
        except BaseException:
            self._slots.release()
            raise

    async def _wait_for_slot(self) -> float:
        """Take a slot, in turn; returns when the wait for its connection must end as well."""
        deadline = trio.current_time() + self._wait_s
        with trio.move_on_at(deadline):
            await self._slots.acquire()
            return deadline
        raise StoreUnavailable("no connection to the database became free in time")

    async def _connect(self, deadline: float = math.inf) -> Connection:
        """A new connection for a slot that is taken, by *deadline* and within ``wait_s``."""
        with trio.move_on_at(min(deadline, trio.current_time() + self._wait_s)):
            if self._closed:
                raise StoreUnavailable("the pool is closed")
            connection = await self._open_connection()
            self._opened_total += 1
            self._open.add(connection)
            if self._closed:
                self._discard(connection)
                raise StoreUnavailable("the pool was closed")
            return connection
        raise StoreUnavailable("no connection to the database could be opened in time")

    def _check_in(self, connection: Connection) -> None:
        """Give a connection and its slot back, later if it has to settle first; never raises, never waits."""
        if connection.when_settled(lambda: self._check_in(connection)):
            return
        if connection.is_reusable() and not self._closed:
            self._idle.append(connection)
        else:
            self._discard(connection)
        self._slots.release()

    def _discard(self, connection: Connection) -> None:
        connection.terminate()
        if connection in self._open:
            self._open.remove(connection)
            self._discarded_total += 1

    # -- the whole

    def statistics(self) -> PoolStatistics:
        """The state of the pool now."""
        idle = len(self._idle)
        return PoolStatistics(
            size=len(self._open),
            idle=idle,
            in_use=len(self._open) - idle,
            waiting=self._slots.statistics().tasks_waiting,
            opened_total=self._opened_total,
            discarded_total=self._discarded_total,
        )

    async def aclose(self) -> None:
        """Close every connection, those in use too, within ``CLOSE_S_MAX``; who waits or asks gets StoreUnavailable."""
        self._closed = True
        while self._idle:
            self._discard(self._idle.pop())
        with trio.move_on_after(CLOSE_S_MAX, shield=True):
            async with trio.open_nursery() as nursery:
                for connection in self._open:
                    nursery.start_soon(connection.aclose, CLOSE_S_MAX, name="close a database connection")
        for connection in list(self._open):
            self._discard(connection)
        await trio.lowlevel.checkpoint_if_cancelled()
