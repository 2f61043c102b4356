"""Who waits for what in this process, and a wait that ends in time.

Rule 1: a wake-up is a level, not an edge: what is told between two waits ends the second one at once.
Rule 2: nothing is kept of a topic that nobody listens to.
Rule 3: a wake-up is a hint. Whoever waits looks at the store after each wait, told or not.

Source: invariant I23.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

from dwctl_trio.ports import Wakeup

TOPIC_CHARACTERS_MAX = 36
"""A UUID with its hyphens; short topics let many of them travel together."""

_TOPIC = re.compile(rf"[0-9a-z_-]{{1,{TOPIC_CHARACTERS_MAX}}}")


def is_topic(text: str) -> bool:
    """Whether *text* may be a topic, as ``ports.Wakeups`` has it."""
    return _TOPIC.fullmatch(text) is not None


@attrs.define(eq=False)
class _LocalWakeup:
    """Keeps ``ports.Wakeup``."""

    _told: trio.Event = attrs.field(factory=trio.Event)

    def tell(self) -> None:
        self._told.set()

    async def wait(self) -> None:
        await self._told.wait()
        self._told = trio.Event()


class LocalWakeups:
    """Keeps ``ports.Wakeups`` for one process."""

    def __init__(self) -> None:
        self._listeners: dict[str, set[_LocalWakeup]] = {}

    def __len__(self) -> int:
        """How many topics are listened to."""
        return len(self._listeners)

    def tell(self, topic: str) -> None:
        """See ``ports.Wakeups``."""
        assert is_topic(topic), f"{topic!r} is no topic"
        for listener in self._listeners.get(topic, ()):
            listener.tell()

    def tell_all(self) -> None:
        """Wake everybody: anything may have happened."""
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.tell()

    @contextmanager
    def listen(self, topic: str) -> Iterator[Wakeup]:
        """See ``ports.Wakeups``."""
        assert is_topic(topic), f"{topic!r} is no topic"
        listener = _LocalWakeup()
        listeners = self._listeners.setdefault(topic, set())
        listeners.add(listener)
        try:
            yield listener
        finally:
            listeners.remove(listener)
            if not listeners:
                del self._listeners[topic]


async def wait_for(wakeup: Wakeup, seconds: float) -> None:
    """Wait until *wakeup* was told, or for *seconds*; none or less is a glance. A checkpoint in any case."""
    with trio.move_on_after(max(0.0, seconds)):
        await wakeup.wait()
