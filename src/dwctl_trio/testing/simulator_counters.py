"""What the simulator saw: counts that tests wait for and compare.

Rule 1: ``total == open + completed + aborted_by_client + failed``, always.
Rule 2: a wait ends at the change that fulfils it; nothing polls.
"""

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import attrs
import trio

MODELS_MAX = 1000
"""Model names counted one by one; further ones are counted as ``*``."""

Outcome: TypeAlias = Literal["completed", "aborted_by_client", "failed"]


@attrs.frozen(kw_only=True)
class Statistics:
    """The counts at one moment."""

    open: int
    """Requests being answered now."""
    open_max: int
    """The most that were answered at once."""
    paused: int
    """Of these, waiting to be resumed."""
    connections: int
    """TCP connections that are open now, idle ones included."""
    total: int
    """Requests received, however they ended."""
    completed: int
    """Answered to the end, with a finish reason."""
    aborted_by_client: int
    """Left by their client before the end."""
    failed: int
    """Spoiled by their script: an error status, a cut, an end without finish reason."""
    tokens_sent: int
    prompt_tokens: int
    completion_tokens_reported: int
    """Sum of ``usage.completion_tokens`` that clients were told."""
    by_model: Mapping[str, int]
    """Requests received, by the model name they gave."""


class Counters:
    """The counts as they change; the attributes are those of ``Statistics``."""

    def __init__(self) -> None:
        self._changes = trio.lowlevel.ParkingLot()
        self.open = self.paused = self.connections = 0
        self.reset()

    def reset(self) -> None:
        """Start again; what is under way stays counted."""
        self.total = self.open_max = self.open
        self.completed = self.aborted_by_client = self.failed = 0
        self.tokens_sent = self.prompt_tokens = self.completion_tokens_reported = 0
        self.by_model: dict[str, int] = {}
        self.notify()

    def statistics(self) -> Statistics:
        """The counts now."""
        counts = {field: getattr(self, field) for field in _FIELDS}
        return Statistics(**{**counts, "by_model": dict(self.by_model)})

    async def wait_until(self, predicate: Callable[[Statistics], bool]) -> Statistics:
        """Wait until the counts fulfil a predicate, and return them as they then were."""
        await trio.lowlevel.checkpoint()
        while not predicate(statistics := self.statistics()):
            await self._changes.park()
        return statistics

    def notify(self) -> None:
        """Let everybody who waits look again."""
        if self._changes:
            self._changes.unpark_all()

    def start_request(self, model: str, *, prompt_tokens: int) -> None:
        """A request has been received."""
        self.open += 1
        self.open_max = max(self.open_max, self.open)
        self.total += 1
        self.prompt_tokens += prompt_tokens
        name = model if model in self.by_model or len(self.by_model) < MODELS_MAX else "*"
        self.by_model[name] = self.by_model.get(name, 0) + 1
        self.notify()

    def end_request(self, outcome: Outcome, *, usage_tokens: int) -> None:
        """A request has ended; *usage_tokens* were reported to its client."""
        self.open -= 1
        self.completion_tokens_reported += usage_tokens
        setattr(self, outcome, getattr(self, outcome) + 1)
        self.notify()

    def add(self, *, paused: int = 0, connections: int = 0, tokens_sent: int = 0) -> None:
        """Change a count by a number."""
        self.paused += paused
        self.connections += connections
        self.tokens_sent += tokens_sent
        self.notify()


_FIELDS = tuple(field.name for field in attrs.fields(Statistics))
