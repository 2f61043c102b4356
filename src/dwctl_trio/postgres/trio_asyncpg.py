"""An asyncpg connection for Trio: asyncpg's own methods, in Trio's colour, with a deadline on each.

Rule 1: after a call that was cancelled or ran out of time the connection settles: the server is asked to stop, and an
empty SELECT shows that it did. Until then nobody gets at it, and if that takes too long it is closed.
Rule 2: what means "PostgreSQL is away or too slow" becomes StoreUnavailable, here and nowhere else; errors of SQL pass.
Rule 3: only asyncpg's public interface is used, so that a new release is a change of a version number.

It does not know pools, statements or tables.

Source: asyncpg's API reference; PostgreSQL's documentation, "Canceling Requests in Progress".
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Literal, TypeAlias

import asyncpg
import structlog
import trio

from dwctl_trio.domain.errors import StoreError, StoreUnavailable
from dwctl_trio.postgres.guest_call import GuestCall
from dwctl_trio.postgres.guest_loop import GuestLoop
from dwctl_trio.postgres.guest_transport import GuestTransport
from dwctl_trio.postgres.streams import Chunks, Cursor

SETTLE_S_MAX = 2.0
"""For the server to stop a cancelled statement: a few milliseconds, or it hangs and the connection is given up."""
BULK_SETTLE_S_MAX = 0.25
"""The same after ``executemany``, where the server may wait for the rest of a stream that will never come."""
ROLLBACK_S_MAX = 3.0
"""For the shielded ROLLBACK of a block that failed: the settling before it, and one round trip."""
CLOSE_S_MAX = 2.0
"""For a polite end of a connection; then its socket is simply closed."""
STATEMENTS_CACHED = 200
"""Prepared statements kept for each connection; the store has fewer, so that none is ever prepared twice."""

Isolation = Literal["read committed", "repeatable read", "serializable"]

_log = structlog.get_logger(__name__)
_Call: TypeAlias = "GuestCall[Any] | asyncio.Task[Any]"
_FOREIGN = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
_UNAVAILABLE = (
    OSError,  # refused, reset, timed out, TLS failed
    asyncpg.PostgresConnectionError,  # class 08: the connection is lost
    asyncpg.InsufficientResourcesError,  # class 53: too many connections, out of memory or disk
    asyncpg.OperatorInterventionError,  # class 57: shut down, starting up, cancelled by the server's own limits
    asyncpg.ReadOnlySQLTransactionError,  # 25006: a standby, for as long as a failover takes
)


async def connect(loop: GuestLoop, dsn: str, *, call_s: float, open_s: float | None = None) -> "Connection":
    """Open a connection.

    Args:
        loop: The guest loop it lives on; at that loop's end it is closed.
        dsn: A ``postgresql://`` URL; ``host=`` may be the directory of a UNIX socket, ``sslmode=`` and its kin hold.
        call_s: Bound in seconds for each later call.
        open_s: Bound in seconds for this one; None: the same.

    Raises:
        StoreUnavailable: No connection could be made in time.
        StoreError: The DSN makes no sense.

    Cancellation: nothing is left open.
    """
    scope = trio.CancelScope(deadline=trio.current_time() + (call_s if open_s is None else open_s))
    try:
        with scope:
            session = await loop.run(
                asyncpg.connect,
                dsn,
                loop=loop,
                connection_class=_Session,
                timeout=None,
                statement_cache_size=STATEMENTS_CACHED,
                max_cached_statement_lifetime=0,
            )
            return Connection(loop, session, call_s=call_s)
    except (OSError, asyncpg.PostgresError, asyncpg.InternalClientError) as exc:
        raise StoreUnavailable("the database accepts no connection") from exc
    except ValueError as exc:  # asyncpg's words may repeat a password
        raise StoreError("the database URL cannot be used: check its host, port and parameters") from exc
    raise StoreUnavailable("the database did not accept a connection in time")


class _Session(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """asyncpg's connection, which remembers its transport as well."""

    __slots__ = ("transport",)

    def __init__(self, protocol: Any, transport: Any, *rest: Any) -> None:
        super().__init__(protocol, transport, *rest)
        self.transport = transport


class Connection:
    """A session with PostgreSQL, for one task at a time; made by ``connect``.

    Every async method is a checkpoint and bounded by ``call_s``, after it has settled (rule 1). It raises
    StoreUnavailable when the server is away or too slow, and asyncpg's own ``PostgresError`` when it refuses the
    statement. A call that is cancelled raises ``Cancelled`` at once; what it was to do may or may not be done.
    """

    def __init__(self, loop: GuestLoop, session: _Session, *, call_s: float) -> None:
        self._loop = loop
        self._session = session
        self._call_s = call_s
        self.server_pid: int = session.get_server_pid()
        """The process id of the server's side, as in ``pg_stat_activity``."""
        self._under_way: dict[_Call, float] = {}
        self._late: set[_Call] = set()
        self._timed = False
        self._transactions = 0
        self._listening = False
        self._settled: trio.Event | None = None
        self._settle_s = SETTLE_S_MAX
        self._closed = trio.Event()
        self._after_settling: list[Callable[[], object]] = []
        self._transport: GuestTransport = session.transport.get_extra_info("guest_transport")
        session.add_termination_listener(lambda _: self._closed.set())

    # -- statements

    async def fetch(self, query: str, *args: Any) -> list[Any]:
        """All rows of *query*, in the server's order."""
        rows: list[Any] = await self._ask(self._session.fetch, query, *args)
        return rows

    async def fetchrow(self, query: str, *args: Any) -> Any:
        """The first row of *query*, None when there is none."""
        return await self._ask(self._session.fetchrow, query, *args)

    async def fetchval(self, query: str, *args: Any) -> Any:
        """The first column of the first row, None when there is none."""
        return await self._ask(self._session.fetchval, query, *args)

    async def execute(self, query: str, *args: Any) -> str:
        """Run *query* and return its status, as in ``INSERT 0 1``; without *args* it may be several statements."""
        status: str = await self._ask(self._session.execute, query, *args)
        return status

    async def executemany(self, query: str, args: Iterable[Sequence[Any]]) -> None:
        """Run *query* once for each of *args*, all or none.

        Cancellation: asyncpg may be in the middle of its stream of messages; then the connection is closed.
        """
        self._settle_s = BULK_SETTLE_S_MAX
        try:
            await self._call(self._session.executemany, query, args)
        finally:
            self._settle_s = SETTLE_S_MAX

    def cursor(self, query: str, *args: Any, rows: int = 50) -> Cursor:
        """The rows of *query* one by one, fetched *rows* at a time; within a transaction only."""
        return Cursor(self._call, partial(self._session.cursor, query, *args), rows)

    # -- bulk data

    async def copy_records(self, table: str, records: Iterable[Sequence[Any]], **options: Any) -> str:
        """Fill *table* with *records* by a binary COPY; options as for asyncpg's ``copy_records_to_table``."""
        status: str = await self._call(self._session.copy_records_to_table, table, records=records, **options)
        return status

    async def copy_in(self, table: str, chunks: Iterable[bytes], **options: Any) -> str:
        """Fill *table* with text in COPY's format; options as for asyncpg's ``copy_to_table``."""
        status: str = await self._call(self._session.copy_to_table, table, source=Chunks(chunks), **options)
        return status

    async def copy_out(self, query: str, *args: Any, write: Callable[[bytes], object], **options: Any) -> str:
        """Give the rows of *query* to *write* in COPY's format; options as for asyncpg's ``copy_from_query``."""

        async def output(chunk: bytes) -> None:  # a coroutine function is what asyncpg takes
            write(chunk)

        status: str = await self._call(self._session.copy_from_query, query, *args, output=output, **options)
        return status

    # -- transactions

    @asynccontextmanager
    async def transaction(self, isolation: Isolation | None = None) -> AsyncIterator[None]:
        """A transaction for the block; inside another one a savepoint, for which *isolation* must be None.

        Cancellation: rolled back, for at most ``ROLLBACK_S_MAX``; a connection that cannot is closed, so that the
        server does it. When COMMIT itself is cancelled, it may have happened.
        """
        depth = self._transactions
        if depth:
            assert isolation is None, "only the outermost transaction has an isolation level"
            begin, commit, roll_back = (f"{verb} s{depth}" for verb in ("SAVEPOINT", "RELEASE", "ROLLBACK TO"))
        else:
            begin, commit, roll_back = "BEGIN", "COMMIT", "ROLLBACK"
            if isolation is not None:
                begin += f" ISOLATION LEVEL {isolation}"
        await trio.lowlevel.checkpoint_if_cancelled()  # from here on there may be something to roll back
        self._transactions += 1
        try:
            await self.execute(begin)
            yield
            await self.execute(commit)
        except BaseException:
            await self._roll_back(roll_back)
            raise
        finally:
            self._transactions = depth

    async def _roll_back(self, query: str) -> None:
        with trio.move_on_after(ROLLBACK_S_MAX, shield=True):
            await self._wait_settled()
            if self.is_closed() or not self._session.is_in_transaction():
                return
            try:
                await self.execute(query)
            except asyncpg.InvalidSavepointSpecificationError:
                return  # it was never made; the transaction around it has failed, or has by this
            except (StoreUnavailable, *_FOREIGN):
                _log.info("rollback_failed")  # the reason is known: it is what ended the block, or the lost server
            else:
                return
        self.terminate()

    # -- notifications

    async def add_listener(self, channel: str, callback: Callable[[str], object]) -> None:
        """Call *callback* with the payload of each notification on *channel*, in the Trio thread, until the end.

        The callback must not block; what it raises is logged. Notifications end silently with the connection: whoever
        listens also waits for ``wait_closed``.
        """
        self._listening = True
        await self._call(self._session.add_listener, channel, lambda *notification: callback(notification[3]))

    async def wait_closed(self) -> None:
        """Wait until the connection is closed, by whichever side."""
        self._transport.give_back()
        await self._closed.wait()

    # -- state and end

    def is_closed(self) -> bool:
        """Whether no call can succeed any more."""
        closed: bool = self._session.is_closed()
        return closed

    @property
    def in_use(self) -> bool:
        """Whether a call is under way, or the connection still settles after one."""
        return bool(self._under_way) or self._settled is not None

    def is_reusable(self) -> bool:
        """Whether somebody else could go on with it: open, at rest, outside transactions, not listening."""
        return not (self.in_use or self._listening or self.is_closed() or self._session.is_in_transaction())

    def is_stale(self) -> bool:
        """Whether an idle connection has become useless: closed, or the server has said something nobody asked for."""
        return self.is_closed() or self._transport.has_unread()

    async def aclose(self, timeout_s: float = CLOSE_S_MAX) -> None:
        """Cancel what is under way, say goodbye and close, within *timeout_s* even when it is being cancelled."""
        self._transport.give_back()
        with trio.move_on_after(timeout_s, shield=True):
            try:
                await self._loop.run(self._session.close)
            except _FOREIGN:
                _log.debug("connection_close_failed", exc_info=True)
        self.terminate()
        await trio.lowlevel.checkpoint_if_cancelled()

    def terminate(self) -> None:
        """Close now; the server ends what is under way when it notices."""
        self._loop.enter(self._session.terminate)

    # -- how a call is made

    @trio.lowlevel.enable_ki_protection
    async def _ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a statement, for which this task itself waits at the socket, unless others are told what comes there."""
        if self._listening:
            return await self._call(function, *args)
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._wait_usable()
        call = GuestCall(self._loop, self._transport, function(*args))
        return await self._wait(call, call.wait())

    @trio.lowlevel.enable_ki_protection
    async def _call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Run whatever else asyncpg does, as an asyncio task."""
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._wait_usable()
        self._transport.give_back()
        task = self._loop.start(function(*args, **options))
        return await self._wait(task, self._loop.wait(task))

    async def _wait(self, call: "_Call", answer: Awaitable[Any]) -> Any:
        """Wait for the *answer* of *call*, for ``call_s`` at the most."""
        self._limit(call)
        try:
            return await answer
        except (*_FOREIGN, AttributeError) as exc:  # the last is what asyncpg meets when it is closed during a call
            if call in self._late:
                self._settle()
                raise StoreUnavailable("the database did not answer in time") from None
            refused = isinstance(exc, asyncpg.PostgresError) and not isinstance(exc, _UNAVAILABLE)
            if refused or not (isinstance(exc, _UNAVAILABLE) or self.is_closed()):
                raise
            raise StoreUnavailable("the connection to the database failed") from exc
        except BaseException:  # Cancelled and KeyboardInterrupt, which left the statement half-way
            self._settle()
            raise
        finally:
            del self._under_way[call]
            self._late.discard(call)

    def _limit(self, call: "_Call") -> None:
        """Bound *call* by ``call_s``, with one timer for many calls: a scope for each would cost a quarter of it."""
        self._under_way[call] = deadline = trio.current_time() + self._call_s
        if not self._timed:
            self._timed = True
            self._loop.call_at(deadline, self._check_deadlines)

    def _check_deadlines(self) -> None:
        """Guest code: cancel what is late, and look again at the next deadline, if there is one."""
        self._timed = False
        for call, deadline in self._under_way.items():
            if deadline > trio.current_time():
                self._timed = True
                self._loop.call_at(deadline, self._check_deadlines)
                return
            self._late.add(call)
            if isinstance(call, GuestCall):
                call.cancel()
            else:
                self._loop.cancel(call)

    def _settle(self) -> None:
        """Start to bring the connection into a known state; asyncpg has sent, or is sending, the cancel request."""
        if self._settled is None and not self.is_closed():
            self._transport.give_back()
            self._settled = trio.Event()
            self._loop.start(self._probe(self._settle_s)).add_done_callback(self._end_settling)

    async def _probe(self, timeout_s: float) -> None:
        """Guest code: asyncpg first waits for the cancelled statement's end; then any answer is a sign of life."""
        with suppress(asyncpg.PostgresError):
            await self._session.execute("SELECT", timeout=timeout_s)

    def _end_settling(self, probe: "asyncio.Task[None]") -> None:
        if probe.cancelled() or probe.exception() is not None:
            self._session.terminate()
        if self._settled is not None:
            self._settled.set()
            self._settled = None
        after, self._after_settling = self._after_settling, []
        for callback in after:
            callback()

    async def _wait_usable(self) -> None:
        await self._wait_settled()
        if self.is_closed():
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise StoreUnavailable("the connection to the database is closed")

    async def _wait_settled(self) -> None:
        if self._settled is not None:
            await self._settled.wait()

    def when_settled(self, callback: Callable[[], object]) -> bool:
        """Whether the connection settles; then *callback* is called, once, when it has, or when it is closed."""
        if self._settled is None:
            return False
        self._after_settling.append(callback)
        return True
