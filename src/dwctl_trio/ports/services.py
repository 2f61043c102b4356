"""Everything else outside: models, tools, consumers of events, and the other processes."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol
from uuid import UUID

import attrs

from dwctl_trio.domain.chat import ChatRequest
from dwctl_trio.domain.items import OutputItem
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.domain.tools import HttpTool
from dwctl_trio.domain.transitions import TurnPlan
from dwctl_trio.domain.turn import Fragment
from dwctl_trio.protocol.chat_answer import ChatPart
from dwctl_trio.protocol.trace_context import TraceContext


@attrs.frozen(kw_only=True)
class UpstreamCall:
    """One model call to make."""

    route: ModelRoute
    request: ResponseRequest
    output: tuple[OutputItem, ...]
    """What the loop has come to so far, calls with their outcomes; oldest first."""
    plan: TurnPlan
    """What the model may do this time."""
    step_id: UUID
    trace: TraceContext | None = None
    """What the upstream is told of the trace; None for nothing."""


class TurnStream(Protocol):
    """A model call whose head has arrived; iterate it for what each read brought."""

    http_status: int
    """The upstream's HTTP status."""

    def __aiter__(self) -> AsyncIterator[Sequence[Fragment]]:
        """Batches of fragments, one for each network read that held any; ends when the turn is complete.

        Raises:
            UpstreamError: The stream broke, timed out, or ended without a finish reason.
        """


class Upstream(Protocol):
    """The servers of the models."""

    def open_turn(self, call: UpstreamCall) -> AbstractAsyncContextManager[TurnStream]:
        """Send the call and wait for the head; leaving the context closes the connection at once if it is not done.

        Raises:
            LimitExceeded: No place at the upstream became free in time.
            UpstreamError: It could not be reached, refused the call, or was too slow.
        """


@attrs.frozen(kw_only=True)
class ChatCall:
    """One chat completion to ask for."""

    route: ModelRoute
    request: ChatRequest
    trace: TraceContext | None = None
    """What the upstream is told of the trace; None for nothing."""


class ChatExchange(Protocol):
    """A chat completion whose head has arrived; iterate it for what each read brought."""

    http_status: int
    """The upstream's HTTP status."""

    def __aiter__(self) -> AsyncIterator[Sequence[ChatPart]]:
        """Batches of chunks, or the whole completion, each as the upstream gave it; and what the call has used.

        Raises:
            UpstreamError: The answer broke, timed out, or ended without a finish reason.
        """


class ChatUpstream(Protocol):
    """The servers of the models, for answers that are handed over as they are."""

    def open_chat(self, call: ChatCall) -> AbstractAsyncContextManager[ChatExchange]:
        """Send the call and wait for the head; see ``Upstream.open_turn``."""


@attrs.frozen(kw_only=True)
class ToolInvocation:
    """One call of a tool of the server's."""

    tool: HttpTool
    arguments: str
    """JSON text as the model wrote it, not yet validated."""
    response_id: UUID
    step_id: UUID
    """The same whenever the call is made again after a crash."""


class ToolRunner(Protocol):
    """The tools that the server runs."""

    async def run_tool(self, invocation: ToolInvocation) -> str:
        """The output of the tool, as the model will read it; within the tool's own time.

        Raises:
            ToolFailed: There is none; the model is told why.
        """


class EventSink(Protocol):
    """Whoever consumes the events of one response."""

    def send_nowait(self, frames: bytes) -> None:
        """Take all frames that one upstream read produced.

        Raises:
            trio.WouldBlock: The consumer is behind; it has not taken them, and ``send`` waits for it.
            trio.BrokenResourceError: The consumer has left.
        """

    async def send(self, frames: bytes) -> None:
        """Take the frames; waits while the consumer is behind.

        Raises:
            trio.BrokenResourceError: The consumer has left.
        """


class Wakeup(Protocol):
    """Somebody's wait for one topic."""

    async def wait(self) -> None:
        """Return once the topic was told since the last return, or since the beginning; it may return for nothing.

        For one task at a time. Cancellation: what was told stays told, so the next call returns at once.
        """


class Wakeups(Protocol):
    """How processes wake one another. A hint that may be lost on the way: whoever waits looks by himself as well.

    A topic is ``queue`` or the id of a response in hex: 1 to 36 small letters, digits, ``_`` or ``-``.
    """

    def tell(self, topic: str) -> None:
        """Wake whoever waits for *topic*, in every process; to be called after the commit. Never blocks or fails."""

    def listen(self, topic: str) -> AbstractContextManager[Wakeup]:
        """A wait for *topic* from now on, for the time of the block."""
