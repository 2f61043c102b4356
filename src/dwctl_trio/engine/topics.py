"""What processes tell one another of; each is a hint (see ``ports.Wakeups``)."""

from uuid import UUID

QUEUE = "queue"
"""Something may be claimed."""
CANCEL = "cancel"
"""A response that is worked on is to be cancelled."""


def response_topic(response_id: UUID) -> str:
    """A response has new events, or has ended."""
    return response_id.hex
