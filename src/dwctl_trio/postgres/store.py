"""The rows of one process in PostgreSQL: everything that the ports ask of them, as one object."""

from dwctl_trio.postgres.conversations import PostgresConversations
from dwctl_trio.postgres.leases import PostgresLeases
from dwctl_trio.postgres.queue import PostgresQueue
from dwctl_trio.postgres.responses import PostgresResponses


class PostgresStore(PostgresResponses, PostgresConversations, PostgresLeases, PostgresQueue):
    """Keeps the ports of rows, conversations, leases, the queue and events for one process."""
