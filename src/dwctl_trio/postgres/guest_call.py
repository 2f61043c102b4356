"""One statement of asyncpg's, driven by the Trio task that wants its answer.

Rule 1: the caller steps the coroutine and reads the socket itself: no asyncio task, no callback and no second Trio task
stands between the answer and whoever waits for it.
Rule 2: only for a coroutine that waits for nothing but answers on its own socket, as a statement does.
Rule 3: when the caller is cancelled, the socket is given back to the task that serves it, which hears the server out.

It does not know PostgreSQL, deadlines or what is done about a cancellation.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar, cast

import trio

from dwctl_trio.postgres.guest_loop import GuestLoop
from dwctl_trio.postgres.guest_transport import GuestTransport

_T = TypeVar("_T")


class GuestCall(Generic[_T]):
    """A coroutine that has begun.

    Args:
        loop: Runs guest code.
        transport: The socket that all of the answer comes from.
        coroutine: Not yet started; it runs at once, until it waits.

    Raises:
        ConnectionAbortedError: The loop is closed.
    """

    def __init__(self, loop: GuestLoop, transport: GuestTransport, coroutine: Coroutine[Any, Any, _T]) -> None:
        self._loop = loop
        self._transport = transport
        self._coroutine = coroutine
        self._waits_for: asyncio.Future[Any] | None = None
        self._is_over = False
        self._value: _T | None = None
        self._error: BaseException | None = None
        if loop.is_closed():
            coroutine.close()
            raise ConnectionAbortedError("the guest loop is closed")
        transport.lend()
        loop.enter(self._advance)

    async def wait(self) -> _T:
        """What the coroutine returns or raises.

        Raises:
            ConnectionAbortedError: It was cancelled by somebody else.

        Cancellation: the coroutine is cancelled and has ended; the connection is in the middle of something.
        """
        try:
            if self._is_over:
                await trio.lowlevel.cancel_shielded_checkpoint()
            while not self._is_over:
                if self._transport.is_lent:
                    await self._transport.read()
                else:
                    await self._wait_for_reader()
                if self._waits_for is None or self._waits_for.done():
                    self._loop.enter(self._advance)
        except BaseException:  # Cancelled and KeyboardInterrupt
            self._transport.give_back()
            self._loop.enter(self._end)
            raise
        error, self._error = self._error, None
        try:
            match error:
                case None:
                    return cast("_T", self._value)
                case asyncio.CancelledError():
                    raise ConnectionAbortedError("the guest call was cancelled")
                case _:
                    raise error
        finally:
            del error  # it would be a reference cycle

    async def _wait_for_reader(self) -> None:
        """Wait until others have read the answer: somebody closes the connection, and has asked for the socket."""
        answered = trio.Event()
        assert self._waits_for is not None, "it would be over otherwise"
        self._waits_for.add_done_callback(lambda _: answered.set())
        await answered.wait()

    def cancel(self) -> None:
        """Cancel the coroutine; called as guest code, by somebody else than who waits."""
        if self._waits_for is not None and self._waits_for.cancel():
            self._transport.wake_reader()

    def _advance(self) -> None:
        """Guest code: step the coroutine, until it waits for an answer that is not there."""
        try:
            while self._waits_for is None or self._waits_for.done():
                self._waits_for = self._coroutine.send(None)
                self._waits_for._asyncio_future_blocking = False  # noqa: SLF001 - as asyncio's own tasks do
        except StopIteration as stop:
            self._is_over, self._value = True, stop.value
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            self._is_over, self._error = True, error

    def _end(self) -> None:
        """Guest code: have the coroutine cancelled and over."""
        if not self._is_over:
            self._advance()  # it may have been answered in the same moment, and wait for the next answer now
        if not self._is_over and self._waits_for is not None:
            self._waits_for.cancel()
            self._advance()
        self._coroutine.close()
