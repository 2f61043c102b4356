"""The store in memory: a verified fake with PostgreSQL's rules, for tests on a mock clock.

Rule 1: a method does its whole change between two checkpoints, so that a cancellation leaves it done or not done.
Rule 2: guards and errors are those of ``postgres/store.py``; ``tests/conformance`` runs one suite on both.
Rule 3: what is kept is encoded, so that what comes back has been through the same JSON.

It never fails by itself; ``faulty_store.py`` makes it.
"""

from dwctl_trio.testing.memory_conversations import MemoryConversations
from dwctl_trio.testing.memory_leases import MemoryLeases
from dwctl_trio.testing.memory_queue import MemoryQueue
from dwctl_trio.testing.memory_responses import MemoryResponses


class MemoryStore(MemoryResponses, MemoryConversations, MemoryLeases, MemoryQueue):
    """Keeps the ports of rows, conversations, leases, the queue and events for one process."""
