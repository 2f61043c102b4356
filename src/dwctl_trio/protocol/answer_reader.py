"""What reading any chat-completions answer has in common, be it a stream of events or one JSON document.

Rule 1: an answer is finished when the upstream says why it stopped; bytes that end without that are a failure.
Rule 2: what came before a failure is given out before the failure is raised.
Rule 3: after the finish only usage is waited for, and nothing can fail any more.

It knows no connection and no clock: feed it bytes, get items.
"""

from abc import ABC, abstractmethod
from typing import Final, Generic, TypeVar

from dwctl_trio.domain.errors import UpstreamError
from dwctl_trio.protocol.chat_chunks import Chunk, decode_chunk, read_error
from dwctl_trio.protocol.json import clean_text
from dwctl_trio.protocol.sse import SseDecoder, SseEventTooLarge, SseFrame

Item = TypeVar("Item")
"""What a reader makes of an answer."""

_DONE: Final = b"[DONE]"
_CHUNK_BYTES_MIN: Final = 16
"""What is shorter may be ``[DONE]`` or nothing at all."""


class AnswerBudget:
    """What one answer may hold; whoever reads a part of it counts here, and need not know the reader.

    Args:
        bytes_max: Bytes of its texts together, as UTF-8.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._taken = 0

    def take(self, count: int) -> None:
        """Count so many bytes of the answer.

        Raises:
            UpstreamError: They are too many.
        """
        self._taken += count
        if self._taken > self.bytes_max:
            raise too_large()

    def admit(self, text: str) -> str:
        """*text* cleaned and counted.

        Raises:
            UpstreamError: It is too much.
        """
        if text.isascii() and "\0" not in text:  # the bulk
            self.take(len(text))
            return text
        text = clean_text(text)
        self.take(len(text.encode()))
        return text


class AnswerReader(ABC, Generic[Item]):
    """Items out of an answer's bytes.

    Use ``feed`` for an event stream or ``feed_json`` once for a plain JSON body, then ``end``::

        async for data in body:
            items = reader.feed(data)
            ...
            if reader.is_complete:
                break
        items = reader.end()

    A failure that follows items in the same read is raised by the next call, so that they are not lost.

    Args:
        event_bytes_max: Bytes of one event.
        answer_bytes_max: Bytes of the answer, as its reader counts them.
    """

    def __init__(self, *, event_bytes_max: int, answer_bytes_max: int) -> None:
        self._decoder = SseDecoder(event_bytes_max=event_bytes_max)
        self._budget = AnswerBudget(answer_bytes_max)
        self._items: list[Item] = []
        """What the call under way has come to so far."""
        self._failure: UpstreamError | None = None
        self._is_finished = False
        self._is_over = False
        """Nothing that may still come is read."""

    @property
    def finished(self) -> bool:
        """The upstream has said why it stopped."""
        return self._is_finished

    @property
    def is_complete(self) -> bool:
        """Nothing more needs to be read: call ``end``, which raises if that is because of a failure."""
        return self._is_over or self._failure is not None

    def feed(self, data: bytes) -> list[Item]:
        """The items that the next *data* of an event stream brings, in order.

        Raises:
            UpstreamError: The answer is malformed, cut short or too large.
            UpstreamRejected: The upstream reports an error in the stream.
        """
        self._raise_failure()
        try:
            frames = self._decoder.feed(data)
        except SseEventTooLarge as too_large:
            return self._read_frames(too_large.frames, too_large)
        return self._read_frames(frames)

    def feed_json(self, body: bytes) -> list[Item]:
        """The items of a whole answer that came as plain JSON.

        Raises:
            UpstreamError: As in ``feed``.
        """
        self._raise_failure()
        if len(body) > self._budget.bytes_max:
            return self._read_frames([], too_large())
        return self._read_frames([SseFrame(None, body, None)])

    def end(self) -> list[Item]:
        """The items that the end of the bytes brings: a last event without its blank line, and usage held back.

        Raises:
            UpstreamError: As in ``feed``, and if the upstream never said why it stopped.
        """
        self._raise_failure()
        frames = [frame for frame in self._decoder.close() if _is_readable(frame)]
        items = self._read_frames(frames)
        self._raise_failure()  # nobody will call again, so what the last event brought is given up
        self._note_end()
        if not self._is_finished:
            self._failure = cut_short()
            raise self._failure
        self._report_usage()
        self._is_over = True
        return items

    @abstractmethod
    def _read_chunk(self, chunk: Chunk, data: bytes) -> None:
        """Add the items of *chunk*, which *data* is and which reports no error."""

    @abstractmethod
    def _report_usage(self) -> None:
        """Add the usage held back, if there is any; nothing more will come."""

    def _note_end(self) -> None:
        """The bytes have ended, or the upstream has said that there will be no more of them."""

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _read_frames(self, frames: list[SseFrame], failure: UpstreamError | None = None) -> list[Item]:
        """Read *frames*, after which comes *failure*; a failure waits for the next call if there are items."""
        items: list[Item] = []
        self._items = items
        try:
            for frame in frames:
                if self._is_over:
                    return items
                self._read_frame(frame)
            if failure is not None and not self._is_over:
                raise failure
        except UpstreamError as error:
            if self._is_finished:  # the model had its say: what is wrong behind it costs the usage at most
                self._report_usage()
                self._is_over = True
                return items
            self._failure = error
            if not items:
                raise
        return items

    def _read_frame(self, frame: SseFrame) -> None:
        data = frame.data
        if len(data) < _CHUNK_BYTES_MIN:
            data = data.strip()
            if not data:
                return  # a keep-alive
            if data == _DONE:
                self._read_done()
                return
        chunk = decode_chunk(data)
        if not chunk.choices or chunk.error is not None or frame.event is not None:
            rejected = read_error(chunk, is_error_event=frame.event == "error")
            if rejected is not None:
                raise rejected
        self._read_chunk(chunk, data)

    def _read_done(self) -> None:
        self._note_end()
        if not self._is_finished:
            raise cut_short()
        self._report_usage()
        self._is_over = True


def cut_short() -> UpstreamError:
    """The failure of an answer that ended before its end."""
    return UpstreamError("The model's server ended its answer without a finish reason.")


def too_large() -> UpstreamError:
    """The failure of an answer that is longer than allowed."""
    return UpstreamError("The model's server sent an answer that is too large.")


def _is_readable(frame: SseFrame) -> bool:
    """Whether an event without its blank line is at least a whole chunk."""
    try:
        decode_chunk(frame.data)
    except UpstreamError:
        return False
    return True
