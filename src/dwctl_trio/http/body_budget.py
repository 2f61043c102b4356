"""How many bytes of request bodies the process holds at once, and who holds them.

A body is several things in turn: raw bytes, texts, the row, the upstream's request. At its worst moment it takes some
five times its size, and its texts live as long as its response. What is counted is the raw size, from the moment when
it is known until the request has ended.

Rule 1: bytes are counted as they arrive: who announces much and sends nothing takes nothing from others. A body whose
announced length has no room is refused before it is waited for.
Rule 2: what does not fit is refused at once, and nothing more of it is kept.
Rule 3: what is read for a request, a conversation that it goes on with, is counted like its body, once it is known.
Rule 4: small bodies are not counted: ``live_responses`` bounds them, and no flood of large ones keeps them out.
"""

import trio
from quart_trio.wrappers.request import TrioBody

from dwctl_trio.domain.errors import Overloaded
from dwctl_trio.http.admission import spread_retry_s
from dwctl_trio.http.connection import at_request_end

SMALL_BYTES = 64 * 1024
"""Bodies up to this size are not counted: all that 1,000 responses under way can hold are 64 MB of them."""


class BodyBudget:
    """The bytes of one process.

    Args:
        bytes_max: More are refused.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.held_bytes = 0
        """What is counted at the moment."""

    def check(self, held: int, size: int) -> None:
        """Raise if a body that is counted as *held* bytes has no room to be one of *size*.

        Raises:
            Overloaded: It has none.
        """
        more = (size if size > SMALL_BYTES else 0) - held
        if more > 0 and self.held_bytes + more > self._bytes_max:
            raise Overloaded("The server holds as much of requests' bodies as it can.", retry_after_s=spread_retry_s())

    def grow(self, held: int, size: int) -> int:
        """Count a body that was counted as *held* bytes as one of *size*; return as what it is counted now.

        Raises:
            Overloaded: There is no room; it is counted as before.
        """
        self.check(held, size)
        counted = max(held, size if size > SMALL_BYTES else 0)
        self.held_bytes += counted - held
        return counted

    def give_back(self, held: int) -> None:
        """A body that was counted as *held* bytes is gone, with all that became of it."""
        self.held_bytes -= held


class BudgetedBody(TrioBody):
    """The body of one request, on a budget until the request has ended.

    Args:
        budget: Whose bytes it takes.
        expected_content_length: As the client told it.
        max_content_length: Longer bodies are 413.
    """

    def __init__(self, budget: BodyBudget, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(expected_content_length, max_content_length)
        self._budget = budget
        self._held = 0
        self._held_besides = 0
        self._announced = expected_content_length or 0
        at_request_end(lambda: self._budget.give_back(self._held + self._held_besides))

    def append(self, data: bytes) -> None:
        """Take what has arrived."""
        if self._must_raise is None:
            self._grow(len(self._data) + len(data))
        super().append(data)

    def hold_besides(self, size: int) -> None:
        """Count *size* more bytes, which were read for this request, until it has ended.

        Raises:
            Overloaded: There is no room for them.
        """
        self._held_besides += self._budget.grow(0, size)

    @property
    def is_settled(self) -> bool:
        """Whether it is whole, or refused: nothing is to be waited for."""
        return self._must_raise is not None or self._complete.is_set()

    async def wait_settled(self, within_s: float) -> None:
        """Return when it is whole, or refused.

        Raises:
            trio.TooSlowError: It did not arrive within *within_s* seconds.
            Overloaded: There is no room for what was announced.
        """
        self._budget.check(self._held, self._announced)
        with trio.fail_after(within_s):
            await self._complete.wait()

    def take(self) -> bytearray:
        """The whole body, which is settled; nobody else has it then.

        Raises:
            Overloaded: There was no room for it.
            RequestEntityTooLarge: It is too long.
        """
        if self._must_raise is not None:
            raise self._must_raise
        taken, self._data = self._data, bytearray()
        return taken

    def _grow(self, size: int) -> None:
        try:
            self._held = self._budget.grow(self._held, size)
        except Overloaded as error:
            self._must_raise = error
            self._data = bytearray()
            self.set_complete()
