"""The answer of a chat-completions server as it arrives, whatever its reader makes of it.

Rule 1: the clock of the upstream stands still while we wait for our own client.
Rule 2: once the model has stopped, nothing is late and nothing can fail any more.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Generic

import httpx
import trio

from dwctl_trio.domain.errors import UpstreamError
from dwctl_trio.domain.limits import Limits
from dwctl_trio.protocol.answer_reader import AnswerReader, Item
from dwctl_trio.upstream.deadline import CallDeadline
from dwctl_trio.upstream.transport import AnswerStream


class HttpAnswer(Generic[Item]):
    """A model call whose head has arrived; keeps ``ports.TurnStream`` and ``ports.ChatExchange``.

    Args:
        response: Its head; its stream is an ``AnswerStream``.
        reader: What makes items of its bytes.
        deadline: Of the call.
        limits: The upstream's.
    """

    def __init__(
        self, response: httpx.Response, reader: AnswerReader[Item], deadline: CallDeadline, limits: Limits
    ) -> None:
        self.http_status = response.status_code
        self._chunks = body_of(response)
        self._reader = reader
        self._deadline = deadline
        self._limits = limits
        self._is_json = _is_json(response.headers)
        self._body = bytearray()
        self._at_end = False

    def __aiter__(self) -> AsyncIterator[Sequence[Item]]:
        """See the ports."""
        return self

    async def __anext__(self) -> Sequence[Item]:
        """The items of the next read that holds any."""
        while not self._at_end:
            data = await self._read()
            if data is None:
                self._at_end = True
                items = self._end()
            elif self._is_json:
                items = self._collect(data)
            else:
                items = self._reader.feed(data)
            if items:
                return items
        raise StopAsyncIteration

    async def _read(self) -> bytes | None:
        """The next bytes; None at the end of the body, or when nothing more is of interest."""
        if self._reader.finished:
            return await self._read_rest()
        self._deadline.expect_chunk()
        try:
            return await anext(self._chunks, None)
        except httpx.TransportError as error:
            raise UpstreamError("The connection to the model's server broke in the middle of its answer.") from error
        finally:
            self._deadline.pause()

    async def _read_rest(self) -> bytes | None:
        """The next bytes once the model has stopped."""
        self._deadline.lift()
        if self._chunks.is_over:
            return None
        if self._reader.is_complete:
            with trio.move_on_after(self._limits.upstream_drain_s):
                await self._drain()
            return None
        return await self._read_usage()

    async def _read_usage(self) -> bytes | None:
        """The next bytes after the model has stopped: the answer is whole, so nothing can fail any more."""
        with trio.move_on_after(self._limits.upstream_usage_s):
            try:
                return await anext(self._chunks, None)
            except httpx.TransportError:
                return None
        return None

    async def _drain(self) -> None:
        """Read to the end of the body, for only then can the connection be used again."""
        try:
            while await anext(self._chunks, None) is not None:
                pass
        except httpx.TransportError:
            pass  # the answer is whole; the connection is not used again

    def _collect(self, data: bytes) -> Sequence[Item]:
        self._body += data
        if len(self._body) > self._limits.upstream_answer_bytes:
            raise UpstreamError("The answer of the model's server is too large.")
        return ()

    def _end(self) -> Sequence[Item]:
        if self._is_json:
            return [*self._reader.feed_json(bytes(self._body)), *self._reader.end()]
        return self._reader.end()


async def read_error(response: httpx.Response, limits: Limits) -> bytes:
    """The beginning of the body of *response*, an error, as much as there is in the time it is given."""
    body, chunks = bytearray(), body_of(response)
    with trio.move_on_after(limits.upstream_error_s), suppress(httpx.TransportError):
        while len(body) < limits.upstream_error_bytes and (chunk := await anext(chunks, None)) is not None:
            body += chunk
    return bytes(body[: limits.upstream_error_bytes])


def body_of(response: httpx.Response) -> AnswerStream:
    """The pieces of *response*'s body, as they arrive."""
    assert isinstance(response.stream, AnswerStream), "so the transports of this package answer"
    return response.stream


def _is_json(headers: httpx.Headers) -> bool:
    """Whether the answer is one JSON document instead of the stream that was asked for.

    Raises:
        UpstreamError: It is neither.
    """
    media_type = headers.get("content-type", "text/event-stream").partition(";")[0].strip().lower()
    if media_type == "application/json":
        return True
    if media_type in {"text/event-stream", "text/plain", "application/octet-stream"}:
        return False
    raise UpstreamError("The model's server answered with something that is neither a stream nor JSON.", status=200)
