"""One attempt at a chat completion in memory: its call, and what is not yet written of it."""

from collections.abc import Sequence
from uuid import uuid4

import attrs
import trio

from dwctl_trio.domain.failures import Failure
from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.response import ErrorCode, ErrorType, ResponseError
from dwctl_trio.domain.steps import ModelCall, Step, StepState
from dwctl_trio.engine.handing_back import Unfinished
from dwctl_trio.engine.model_step import ModelStep
from dwctl_trio.ports import ClaimedChat, EndedStep, EventSegment, Progress
from dwctl_trio.protocol.sse import encode_frame

BROKEN_OFF = Failure(
    error=ResponseError(
        type=ErrorType.STEP_ABANDONED,
        code=ErrorCode.SERVER_ERROR,
        message="The server ended in the middle of this completion. Please try again.",
    ),
    http_status=500,
)
CANCELLED = Failure(
    error=ResponseError(type=ErrorType.CANCELLED, code=ErrorCode.SERVER_ERROR, message="The completion was cancelled."),
    http_status=499,
)
"""As a row has it; no client is answered with this status."""


@attrs.define(eq=False)
class ChatLog:
    """The frames of a chat completion that are not known to be stored, numbered one by one; an ``EventLog``."""

    next_number: int = 0
    logged_bytes: int = 0
    """See ``EventLog``."""
    _frames: list[bytes] = attrs.field(factory=list)
    _taken: EventSegment | None = None

    def append(self, frames: list[bytes]) -> None:
        """Number *frames*."""
        self._frames += frames
        self.next_number += len(frames)
        self.logged_bytes += sum(map(len, frames))

    def take_segment(self) -> EventSegment | None:
        """See ``EventLog``."""
        if self._taken is None:
            self._taken, self._frames = self._rest(), []
        return self._taken

    def confirm_segment(self) -> None:
        """See ``EventLog``."""
        self._taken = None

    @property
    def unstored_bytes(self) -> int:
        """See ``EventLog``."""
        return sum(map(len, self._frames)) + (len(self._taken.frames) if self._taken is not None else 0)

    def unstored(self) -> tuple[EventSegment, ...]:
        """All frames that are not known to be stored, in order."""
        return tuple(segment for segment in (self._taken, self._rest()) if segment is not None)

    def _rest(self) -> EventSegment | None:
        first, last = self.next_number - len(self._frames), self.next_number - 1
        if not self._frames:
            return None
        return EventSegment(first_sequence=first, last_sequence=last, frames=b"".join(self._frames))


class ChatAttempt:
    """One attempt at a chat completion, in memory.

    Args:
        claimed: What is asked, and the steps that earlier attempts left open.
    """

    def __init__(self, claimed: ClaimedChat) -> None:
        self.row, self.epoch = claimed.row, claimed.epoch
        self.log = ChatLog(next_number=claimed.last_sequence + 1)
        self.begun_at = trio.current_time()
        self.deadline = self.begun_at + claimed.deadline_in_s
        self.completion: bytes | None = None
        """The whole answer, to a client that asked for it whole."""
        sequence = max((step.sequence for step in claimed.steps), default=0) + 1
        step = Step(id=uuid4(), sequence=sequence, descriptor=ModelCall(), state=StepState.PROCESSING)
        self.call = self._make_call(claimed, step)
        self.unstored: list[tuple[Step, ModelStep]] = [
            (self._make_call(claimed, step).end(StepState.FAILED, BROKEN_OFF.error), self._make_call(claimed, step))
            for step in claimed.steps
            if step.is_open
        ]
        """Steps that have ended and are not yet written as such."""
        self.is_open = False
        """Whether the call's step is stored, and has not ended."""

    @property
    def is_told(self) -> bool:
        """Whether somebody may have read a part of the answer."""
        return self.log.next_number > 0

    def open_call(self) -> Progress:
        """The write that begins the call; the calls that were broken off earlier are recorded with it."""
        return Progress(row=self.row, epoch=self.epoch, ended=self.ended_steps(), opened=(self.call.step,))

    def note_opened(self) -> None:
        """The write that begins the call is done."""
        self.unstored.clear()
        self.is_open = True

    def end_call(self, failure: Failure | None) -> None:
        """Take the call for ended, if it has begun and has not ended."""
        if not self.is_open:
            return
        self.is_open = False
        match failure:
            case None:
                ended = self.call.end(StepState.COMPLETED)
            case Failure() if failure is CANCELLED:
                ended = self.call.end(StepState.CANCELED)
            case Failure(error=error):
                ended = self.call.end(StepState.FAILED, error)
        self.unstored.append((ended, self.call))

    def take(self, chunks: Sequence[bytes]) -> bytes:
        """Take what one read brought; return the frames to be told of it now."""
        if not self.row.stream:
            self.completion = chunks[-1]
            return b""
        frames = [encode_frame(None, chunk) for chunk in chunks]
        self.log.append(frames)
        return b"".join(frames)

    def ended_steps(self) -> tuple[EndedStep, ...]:
        """What is not yet written, its times counting back from now."""
        return tuple(EndedStep(step=step, metering=call.metering(_error_code(step))) for step, call in self.unstored)

    def unfinished(self) -> Unfinished:
        """What is stored of it when it goes back into the queue."""
        return Unfinished(row=self.row, epoch=self.epoch, ended_steps=self.ended_steps, segments=self.log.unstored())

    @staticmethod
    def _make_call(claimed: ClaimedChat, step: Step) -> ModelStep:
        return ModelStep(step, route=claimed.route, first_output_index=0, kind_of=lambda _: CallKind.FUNCTION)


def _error_code(step: Step) -> str | None:
    """What a usage record says of a call."""
    if step.error is not None:
        return step.error.type.value
    return ErrorType.CANCELLED.value if step.state is StepState.CANCELED else None
