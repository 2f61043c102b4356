"""The body of a request, in one piece."""

from typing import Self

import httpx


class WholeBody(httpx.AsyncByteStream):
    """Gives *body* once and forgets it; httpx's own is a generator, which a cancelled send leaves to the collector."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self.size = len(body)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        body, self._body = self._body, None
        if body is None:
            raise StopAsyncIteration
        return body
