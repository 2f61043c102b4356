"""Writing to a client in time.

Rule 1: a write is shielded, so that no cancellation leaves half a frame; a client that takes nothing of it for
``write_progress_s`` counts as gone.
Rule 2: most writes fit into the kernel at once. They cost one system call, and neither a timer nor a task switch.
"""

import socket

import trio

_PIECE_BYTES = 64 * 1024
"""A write that must wait is cut into pieces of this size, so that the deadline is one on progress."""


class ClientGoneError(Exception):
    """The client takes nothing any more; the connection is closed."""


class ClientWriter:
    """The sending side of one connection; one task at a time writes.

    Args:
        connection: The socket.
        stream: The same, for writes that must wait.
        write_progress_s: Longest wait for the client to take anything.
    """

    def __init__(self, connection: socket.socket, stream: trio.SocketStream, write_progress_s: float) -> None:
        self._connection = connection
        self._stream = stream
        self._write_progress_s = write_progress_s

    def write_now(self, data: bytes) -> bytes:
        """Write what the kernel takes at once, and return the rest, which must be written next.

        Raises:
            ClientGoneError: The client has left.
        """
        try:
            sent = self._connection.send(data)
        except BlockingIOError:
            return data
        except OSError:
            self._stream.socket.close()
            raise ClientGoneError from None
        return data[sent:]

    async def write(self, data: bytes) -> None:
        """Write all of *data*; it is a checkpoint only if there is something to wait for.

        Raises:
            ClientGoneError: The client does not take it.
        """
        rest = self.write_now(data)
        if rest and not await write_in_time(self._stream, rest, self._write_progress_s):
            self._stream.socket.close()
            raise ClientGoneError


async def write_in_time(stream: trio.SocketStream, data: bytes, write_progress_s: float) -> bool:
    """Whether the client took all of *data*, each piece within *write_progress_s* seconds.

    Cancellation:
        The piece under way is written; then the connection is closed, for nothing can follow half of a write.
    """
    view = memoryview(data)
    for start in range(0, len(view), _PIECE_BYTES):
        if start > 0:
            await _end_here_if_cancelled(stream)
        with trio.move_on_after(write_progress_s, shield=True) as scope:
            try:
                await stream.send_all(view[start : start + _PIECE_BYTES])
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return False
            except trio.BusyResourceError:  # nobody else writes, so somebody is closing the connection
                return False
        if scope.cancelled_caught:
            return False
    return True


async def _end_here_if_cancelled(stream: trio.SocketStream) -> None:
    try:
        await trio.lowlevel.checkpoint_if_cancelled()
    except trio.Cancelled:
        await trio.aclose_forcefully(stream)
        raise
