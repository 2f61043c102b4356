"""The requests of this process that wait for what others work on: followers of streams, and clients that block.

Rule: none of them keeps a stopping server from its end: what they wait for goes on without them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio


@attrs.define(eq=False)
class Watchers:
    """All that wait at the moment."""

    _scopes: set[trio.CancelScope] = attrs.field(factory=set)
    _idle: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self._idle.set()

    def __len__(self) -> int:
        return len(self._scopes)

    @contextmanager
    def watching(self) -> Iterator[trio.CancelScope]:
        """A wait for the time of the block; its scope tells whether a stopping server has ended it."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            if self._idle.is_set():
                self._idle = trio.Event()
            try:
                yield scope
            finally:
                self._scopes.discard(scope)
                if not self._scopes:
                    self._idle.set()

    async def wait_idle(self) -> None:
        """Return when nobody waits."""
        await self._idle.wait()

    def stop_all(self) -> None:
        """End every wait."""
        for scope in self._scopes:
            scope.cancel()
