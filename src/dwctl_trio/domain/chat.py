"""A call of an upstream that is asked for as it is, and whose answer is handed over as it comes.

Rule: of the client's body only what we act on is read; the rest belongs to the client and the upstream.
"""

import attrs

from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.request import ServiceTier


@attrs.frozen(kw_only=True)
class ChatRequest:
    """A validated ``POST /v1/chat/completions``, or one of its neighbours, as *surface* says."""

    surface: Surface = Surface.CHAT
    model: str
    """The alias as the client wrote it; the answer shows it."""
    body: bytes
    """All that the client sent, encoded."""
    stream: bool = False
    wants_usage: bool = False
    """Whether the client asked for the chunk that holds the usage."""
    choices: int = 1
    """Answers that were asked for side by side."""
    store: bool = False
    """OpenAI's default: what was said is gone when it has been handed over."""
    service_tier: ServiceTier = ServiceTier.AUTO
    """Of a chat completion; the others know none."""

    @property
    def is_queued(self) -> bool:
        """Whether a row in the queue is its lifetime, not the client's connection."""
        return self.service_tier is ServiceTier.FLEX
