"""The SSE writer: the body of a streamed response.

Rule 1: whatever is ready goes out in one write; a frame is never split over two.
Rule 2: silence is broken by a comment with one newline: a blank line after it makes some SDKs parse an empty event.
Rule 3: the writer knows no events; it moves bytes from a channel to the connection.
Rule 4: a stream that was cut breaks its connection. An HTTP body that ends in good order is an end to every client,
and SDKs then return as if all had come; of a broken one they say so, and whoever reads it can come back.
"""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import trio
from quart.wrappers.response import ResponseBody

from dwctl_trio.http.connection import request_nursery
from dwctl_trio.protocol.sse import DONE, KEEP_ALIVE

WRITE_BYTES_MAX = 256 * 1024
"""When a client is behind, ready batches are joined up to this size; more would only lie in the kernel."""


def always_whole() -> bool:
    """For streams that end with their channel."""
    return True


class EventBody(ResponseBody):
    """Frames from a channel, then ``[DONE]``.

    Args:
        receive_frames: Whole frames; closed by the sender after the terminal event, or when it gives up.
        keep_alive_s: Longest silence.
        is_whole: Asked when the channel is closed: whether the stream has come to its end, or was cut.
    """

    def __init__(
        self,
        receive_frames: trio.MemoryReceiveChannel[bytes],
        *,
        keep_alive_s: float,
        is_whole: Callable[[], bool] = always_whole,
    ) -> None:
        self._receive_frames = receive_frames
        self._keep_alive_s = keep_alive_s
        self._is_whole = is_whole
        self._done = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._receive_frames.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """The next write: all frames that are ready, or a keep-alive comment."""
        if self._done:
            raise StopAsyncIteration
        try:
            frames = self._receive_frames.receive_nowait()
        except trio.WouldBlock:
            with trio.move_on_after(self._keep_alive_s) as silence:
                try:
                    frames = await self._receive_frames.receive()
                except trio.EndOfChannel:
                    return await self._end()
            if silence.cancelled_caught:
                return KEEP_ALIVE
        except trio.EndOfChannel:
            return await self._end()
        return self._join_ready(frames)

    async def pour(self, write_now: Callable[[bytes], bytes], write: Callable[[bytes], Awaitable[None]]) -> bytes:
        """Write what iterating gives, but for the last piece, which is returned.

        A timer that is set and taken back for every frame costs as much as the rest. This one runs on while frames
        come, and when it fires it is set again for what is left of the silence. It must not fire into a write: one
        that has to wait is made outside of it.

        Args:
            write_now: Writes what can be written without waiting, and returns the rest; asked first with what is ready
                at the beginning, even if that is nothing.
            write: Writes such a rest.
        """
        rest, written_at = write_now(self._join_ready()), trio.current_time()
        while True:
            if rest:
                await write(rest)
                rest, written_at = b"", trio.current_time()
            with trio.CancelScope(deadline=written_at + self._keep_alive_s) as timer:
                try:
                    while not rest:
                        rest = write_now(self._join_ready(await self._receive_frames.receive()))
                        written_at = trio.current_time()
                except trio.EndOfChannel:
                    break
            if timer.cancelled_caught and trio.current_time() >= written_at + self._keep_alive_s:
                rest, written_at = write_now(KEEP_ALIVE), trio.current_time()
        return await self._end()

    async def _end(self) -> bytes:
        """The last write; of a stream that was cut there is none, and the request ends here."""
        if not self._is_whole():
            request_nursery().cancel_scope.cancel()
            await trio.sleep_forever()
        self._done = True
        return DONE

    def _join_ready(self, first: bytes = b"") -> bytes:
        """*first* and whatever else is ready; what ends the channel is met by the next call."""
        ready, size = [first], len(first)
        while size < WRITE_BYTES_MAX:
            try:
                frames = self._receive_frames.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                break
            ready.append(frames)
            size += len(frames)
        return first if len(ready) == 1 else b"".join(ready)
