"""What the transports of this package have in common."""

from abc import abstractmethod
from typing import Self

import attrs
import httpx


@attrs.frozen(kw_only=True)
class TransportOptions:
    """The bounds of a transport."""

    connect_s: float
    """To resolve a name, connect and agree on keys."""
    idle_connections: int
    """Connections kept open at rest."""
    idle_s: float
    """For one of them; then it is closed, when the next request comes or goes."""


class AnswerStream(httpx.AsyncByteStream):
    """The body of an answer as it arrives: an iterator, to be closed when nobody reads on."""

    def __aiter__(self) -> Self:
        return self

    @property
    @abstractmethod
    def is_over(self) -> bool:
        """Whether nothing more comes, and a read would not wait to learn so; False also if that is not known."""

    @abstractmethod
    async def __anext__(self) -> bytes:
        """The next piece.

        Raises:
            httpx.ReadError: The connection broke.
            httpx.RemoteProtocolError: It was closed too early, or what came is not HTTP.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Break the answer off, by closing its connection, unless it has ended; waits a second at most."""
