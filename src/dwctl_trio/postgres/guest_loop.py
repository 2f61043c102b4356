"""The small part of an asyncio event loop that asyncpg needs, run inside the Trio thread.

Rule 1: guest code, that is asyncio callbacks and tasks, runs inside ``GuestLoop.enter`` and nowhere else. It is a plain
function, so no Trio task ever sees a running asyncio loop, and Control-C cannot strike half-way.
Rule 2: sockets are served by Trio *system* tasks. They outlive the cancellation of whoever uses a connection, so that a
shielded write can end while everything around it is being cancelled. Who waits for a statement's answer borrows the
socket from them (``GuestCall``), and gives it back when it is cancelled.
Rule 3: nothing escapes from a system task, which would end the whole Trio run: it is logged and costs one connection.
Rule 4: a Trio abort function only asks for a callback; guest code never runs inside Trio's walk over its cancel scopes.

It does not know PostgreSQL, pools or deadlines. What asyncpg does not call raises NotImplementedError.

Source: Python's documentation, "Event Loop" and "Transports and Protocols"; Trio's reference, "Low-level operations".
"""

import asyncio
from asyncio.events import _get_running_loop, _set_running_loop
from asyncio.sslproto import SSLProtocol
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from functools import partial
from socket import socket
from ssl import SSLContext
from typing import Any, NoReturn, ParamSpec, TypeVar

import structlog
import trio

from dwctl_trio.postgres.guest_timers import GuestTimers
from dwctl_trio.postgres.guest_transport import GuestTransport, open_tcp_socket, open_unix_socket

HANDLES_MAX = 100
"""Callbacks run before Trio gets its turn: one statement needs about six, a bulk insert would never stop."""
CANCEL_AGAIN_S = 0.05
"""Between two cancellations of a guest task, for code that swallows the first, as asyncpg's ``executemany`` may."""
CLOSE_S_MAX = 1.0
"""For the loop's own end; everything it waits for has been told to stop and needs a few scheduler turns."""

_log = structlog.get_logger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")
_Connected = tuple[asyncio.Transport, Any]


@asynccontextmanager
async def open_guest_loop() -> AsyncIterator["GuestLoop"]:
    """A guest loop for the time of the block; at its end every connection is dropped and every guest task cancelled."""
    loop = GuestLoop()  # type: ignore[abstract]  # the rest raises NotImplementedError, as the class says
    loop.spawn(loop.run_timers)
    try:
        yield loop
    finally:
        with trio.move_on_after(CLOSE_S_MAX, shield=True) as scope:
            await loop.wind_up()
        if scope.cancelled_caught:
            _log.error("guest_loop_unfinished", tasks=len(asyncio.all_tasks(loop)))


class GuestLoop(asyncio.AbstractEventLoop):
    """An asyncio event loop that Trio drives: it never blocks, never polls and owns no thread."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._ready: deque[asyncio.Handle] = deque()
        self._timers = GuestTimers()
        self._transports: set[GuestTransport] = set()
        self._system_tasks = 0
        self._closed = False

    # -- Trio's side

    @trio.lowlevel.enable_ki_protection
    async def run(self, function: Callable[_P, Coroutine[Any, Any, _T]], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run an asyncio coroutine function to its end and wait for it as a Trio task; as ``start``, then ``wait``."""
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self.wait(self.start(function(*args, **kwargs)))

    def start(self, coroutine: Coroutine[Any, Any, _T]) -> "asyncio.Task[_T]":
        """Start a guest task; it runs at once, until it waits for something.

        Raises:
            ConnectionAbortedError: The loop is closed.
        """
        if self._closed:
            coroutine.close()
            raise ConnectionAbortedError("the guest loop is closed")
        return self.enter(partial(asyncio.Task, loop=self), coroutine)

    @trio.lowlevel.enable_ki_protection
    async def wait(self, task: "asyncio.Task[_T]") -> _T:
        """Wait for a guest task.

        Returns:
            What it returned, also when a cancellation came too late to stop it.

        Raises:
            ConnectionAbortedError: It was cancelled by somebody else, or the loop was closed.

        Cancellation: asked of the task by ``cancel``; only when it has ended, ``Cancelled`` is raised.
        """
        try:
            raise_cancel = None
            if task.done():
                await trio.lowlevel.cancel_shielded_checkpoint()
            else:
                raise_cancel = await self._park_until_done(task)
            if not task.cancelled():
                return task.result()
            if raise_cancel is not None:
                raise_cancel()
            raise ConnectionAbortedError("the guest task was cancelled")
        finally:
            del task  # with the exception it holds it would be a reference cycle

    async def _park_until_done(self, task: "asyncio.Task[Any]") -> Callable[[], NoReturn] | None:
        """Park this Trio task until *task* is done; returns how to raise a cancellation that came meanwhile."""
        parked = trio.lowlevel.current_task()
        cancelled_by: Callable[[], NoReturn] | None = None

        def wake(_: object) -> None:
            trio.lowlevel.reschedule(parked)

        def abort(raise_cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
            nonlocal cancelled_by
            cancelled_by = raise_cancel
            self._token.run_sync_soon(self.enter, self.cancel, task)
            return trio.lowlevel.Abort.FAILED

        task.add_done_callback(wake)
        await trio.lowlevel.wait_task_rescheduled(abort)
        return cancelled_by

    def cancel(self, task: "asyncio.Task[Any]") -> None:
        """Cancel a guest task, again every ``CANCEL_AGAIN_S`` until it has ended; called as guest code."""
        if not task.done():
            task.cancel()
            self.call_later(CANCEL_AGAIN_S, self.cancel, task)

    @trio.lowlevel.enable_ki_protection
    def enter(self, callback: Callable[..., _T], *args: Any) -> _T:
        """Run *callback*, and whatever becomes ready by it, as guest code."""
        outer = _get_running_loop()
        if outer is self:
            return callback(*args)
        _set_running_loop(self)
        try:
            return callback(*args)
        finally:
            try:
                self._run_ready()
            finally:
                _set_running_loop(outer)
                if self._ready:  # too many for one turn, or queued by a finalizer in this very moment
                    self._ask_for_a_turn()

    def _run_ready(self) -> None:
        ready = self._ready
        for _ in range(HANDLES_MAX):
            if not ready:
                return
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()  # noqa: SLF001 - what an event loop is for; it logs every Exception through us

    def _ask_for_a_turn(self) -> None:
        with suppress(trio.RunFinishedError):  # nobody is left to run callbacks for
            self._token.run_sync_soon(self.enter, _nothing, idempotent=True)

    def spawn(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a system task that cannot bring Trio down."""
        trio.lowlevel.spawn_system_task(self._supervise, function, *args, name=function)
        self._system_tasks += 1

    async def _supervise(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        try:
            await function(*args)
        except Exception as exc:  # noqa: BLE001 - supervision boundary: the guest loop round its system tasks
            self.call_exception_handler({"message": "system task failed", "exception": exc})
        finally:
            self._system_tasks -= 1

    async def run_timers(self) -> None:
        """The system task that makes timers ready when they are due, until the loop is closed."""
        while not self._closed:
            await self._timers.wait_due()
            self.enter(self._make_timers_ready)

    def _make_timers_ready(self) -> None:
        self._ready.extend(self._timers.pop_due())

    async def wind_up(self) -> None:
        """Close the loop: drop all transports, cancel all guest tasks, end all system tasks."""
        self._closed = True
        while True:
            self.enter(self._drop_everything)
            await trio.lowlevel.checkpoint()
            if not (self._ready or self._system_tasks or self._transports or asyncio.all_tasks(self)):
                return

    def _drop_everything(self) -> None:
        for transport in list(self._transports):
            transport.abort()
        for task in asyncio.all_tasks(self):
            task.cancel()
        self._timers.clear()

    # -- asyncio's side: futures, tasks, callbacks and timers

    def create_future(self) -> "asyncio.Future[Any]":
        """An asyncio future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> Any:
        """An asyncio task of this loop."""
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Queue *callback*; also safe from other threads and from ``__del__``, where Trio is asked for a turn."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        if _get_running_loop() is not self:
            self._ask_for_a_turn()
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Queue *callback* for *delay* seconds from now."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Queue *callback* for the time *when* of Trio's clock."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers.add(timer)
        return timer

    def _timer_handle_cancelled(self, _handle: asyncio.TimerHandle) -> None:
        """Called by ``TimerHandle.cancel``."""
        self._timers.count_cancelled()

    def time(self) -> float:
        """Trio's clock, in seconds."""
        return trio.current_time()

    def is_running(self) -> bool:
        """Whether callbacks are still run."""
        return not self._closed

    def is_closed(self) -> bool:
        """Whether the block of ``open_guest_loop`` has ended."""
        return self._closed

    def get_debug(self) -> bool:
        """Always false: asyncio's debug mode measures a loop that polls."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Log what a callback or task raised and nobody waits for."""
        _log.error("guest_loop_exception", message=context.get("message"), exc_info=context.get("exception"))

    default_exception_handler = call_exception_handler

    # -- asyncio's side: connections

    async def create_unix_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], Any], path: str, **_options: Any
    ) -> _Connected:
        """Connect to a UNIX socket."""
        return await self._connect(protocol_factory, partial(open_unix_socket, path))

    async def create_connection(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], Any],
        host: str,
        port: int,
        *,
        ssl: SSLContext | None = None,
        **_options: Any,
    ) -> _Connected:
        """Connect over TCP; with *ssl*, TLS starts at once (``sslnegotiation=direct``)."""
        dial = partial(open_tcp_socket, host, port)
        if ssl is None:
            return await self._connect(protocol_factory, dial)
        protocol, secured = protocol_factory(), self.create_future()
        tls = SSLProtocol(self, protocol, ssl, secured, server_side=False, server_hostname=host)
        transport, _ = await self._connect(lambda: tls, dial)
        return await _when_secured(tls, secured, transport), protocol

    async def start_tls(  # type: ignore[override]
        self,
        transport: asyncio.Transport,
        protocol: asyncio.Protocol,
        sslcontext: SSLContext,
        *,
        server_hostname: str | None = None,
        **_options: Any,
    ) -> asyncio.Transport | None:
        """Put TLS between *transport* and *protocol*; None when the peer left during the handshake."""
        if transport.is_closing():
            return None
        secured = self.create_future()
        tls = SSLProtocol(
            self,
            protocol,
            sslcontext,
            secured,
            server_side=False,
            server_hostname=server_hostname,
            call_connection_made=False,
        )
        transport.set_protocol(tls)
        tls.connection_made(transport)
        return await _when_secured(tls, secured, transport)

    async def _connect(self, protocol_factory: Callable[[], Any], dial: Callable[[], Awaitable[socket]]) -> _Connected:
        dialled = self.create_future()
        scope = trio.CancelScope()
        dialled.add_done_callback(lambda _: scope.cancel())
        self.spawn(self._dial, dial, dialled, scope)
        try:
            sock = await dialled
        except asyncio.CancelledError:
            if dialled.done() and not dialled.cancelled() and dialled.exception() is None:
                dialled.result().close()  # connected and cancelled in the same turn: nobody else knows the socket
            raise
        protocol = protocol_factory()
        transport = GuestTransport(self, sock, protocol)
        self._transports.add(transport)
        protocol.connection_made(transport)
        self.spawn(transport.serve_reads)
        return transport, protocol

    async def _dial(
        self, dial: Callable[[], Awaitable[socket]], dialled: "asyncio.Future[socket]", scope: trio.CancelScope
    ) -> None:
        with scope:
            try:
                sock = await dial()
            except (OSError, ValueError) as exc:  # ValueError: a host name that no resolver accepts
                self.enter(_fail, dialled, exc)
            else:
                self.enter(_hand_over, dialled, sock)

    def forget(self, transport: GuestTransport) -> None:
        """Called by a transport whose socket is closed."""
        self._transports.discard(transport)


async def _when_secured(
    tls: SSLProtocol, secured: "asyncio.Future[None]", transport: asyncio.Transport
) -> asyncio.Transport:
    try:
        await secured
    except BaseException:
        transport.close()
        raise
    return tls._app_transport  # noqa: SLF001 - as asyncio's own start_tls does


def _hand_over(dialled: "asyncio.Future[socket]", sock: socket) -> None:
    if dialled.done():
        sock.close()
    else:
        dialled.set_result(sock)


def _fail(dialled: "asyncio.Future[socket]", exc: Exception) -> None:
    if not dialled.done():
        dialled.set_exception(exc)


def _nothing() -> None:
    """What a turn of the loop starts with when only queued callbacks are to run."""
