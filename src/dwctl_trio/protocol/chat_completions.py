"""The protocol towards an upstream: a chat-completions request out, a model turn back in.

Rule 1: a turn is finished when the upstream says why it stopped; bytes that end without that are a failure.
Rule 2: how the bytes were split, into reads or into chunks, changes no text, call, reason or count.
Rule 3: what came before a failure is given out before the failure is raised.
Rule 4: after the finish only usage is read; it is reported once, when it is final, and nothing can fail any more.

It knows no connection and no clock: feed it bytes, get fragments.

Source: OpenAI Chat Completions API reference, "Streaming"; observed: see ``chat_chunks`` and ``chat_tool_calls``.
"""

from collections.abc import Set as AbstractSet
from typing import Final
from uuid import UUID

from dwctl_trio.domain.errors import UpstreamError
from dwctl_trio.domain.turn import (
    Fragment,
    ReasoningFragment,
    RefusalFragment,
    TextFragment,
    TurnFinished,
    UsageReported,
)
from dwctl_trio.domain.usage import Usage
from dwctl_trio.protocol.chat_chunks import (
    Choice,
    decode_chunk,
    read_error,
    read_finish_reason,
    read_reasoning,
    read_texts,
    read_usage,
)
from dwctl_trio.protocol.chat_request import DEFAULT_QUIRKS, Quirks, render_chat_request
from dwctl_trio.protocol.chat_tool_calls import ToolCallAssembler
from dwctl_trio.protocol.json import clean_text
from dwctl_trio.protocol.sse import SseDecoder, SseEventTooLarge, SseFrame

__all__ = ["DEFAULT_QUIRKS", "ChunkReassembler", "Quirks", "render_chat_request"]

_DONE: Final = b"[DONE]"
_CHUNK_BYTES_MIN: Final = 16
"""What is shorter may be ``[DONE]`` or nothing at all."""


class ChunkReassembler:
    """The fragments of one model turn out of an answer's bytes.

    Use ``feed`` for an event stream or ``feed_json`` once for a plain JSON body, then ``end``::

        async for data in body:
            fragments = reassembler.feed(data)
            ...
            if reassembler.is_complete:
                break
        fragments = reassembler.end()

    A failure that follows fragments in the same read is raised by the next call, so that they are not lost.

    Args:
        step_id: The model step; call ids that the upstream leaves out are derived from it.
        event_bytes_max: Bytes of one event.
        answer_bytes_max: Bytes of the answer's texts together, as UTF-8.
        tool_calls_max: Tool calls in the turn.
        custom_tools: Names of the tools that take text instead of JSON.
    """

    def __init__(
        self,
        step_id: UUID,
        *,
        event_bytes_max: int,
        answer_bytes_max: int,
        tool_calls_max: int,
        custom_tools: AbstractSet[str] = frozenset(),
    ) -> None:
        self._decoder = SseDecoder(event_bytes_max=event_bytes_max)
        self._answer_bytes_max = answer_bytes_max
        self._answer_bytes = 0
        self._tool_calls = ToolCallAssembler(
            step_id=step_id, calls_max=tool_calls_max, admit=self._admit, custom_tools=custom_tools
        )
        self._fragments: list[Fragment] = []
        self._failure: UpstreamError | None = None
        self._usage: Usage | None = None
        """The latest seen, until it is reported."""
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

    def feed(self, data: bytes) -> list[Fragment]:
        """The fragments that the next *data* of an event stream brings, in order.

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

    def feed_json(self, body: bytes) -> list[Fragment]:
        """The fragments of a whole answer that came as plain JSON.

        Raises:
            UpstreamError: As in ``feed``.
        """
        self._raise_failure()
        if len(body) > self._answer_bytes_max:
            return self._read_frames([], _too_large())
        return self._read_frames([SseFrame(None, body, None)])

    def end(self) -> list[Fragment]:
        """The fragments that the end of the bytes brings: a last event without its blank line, and usage held back.

        Raises:
            UpstreamError: As in ``feed``, and if the upstream never said why it stopped.
        """
        self._raise_failure()
        frames = [frame for frame in self._decoder.close() if _is_readable(frame)]
        fragments = self._read_frames(frames)
        self._raise_failure()  # nobody will call again, so what the last event brought is given up
        if not self._is_finished:
            self._failure = _cut_short()
            raise self._failure
        self._report_usage()
        self._is_over = True
        return fragments

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _read_frames(self, frames: list[SseFrame], failure: UpstreamError | None = None) -> list[Fragment]:
        """Read *frames*, after which comes *failure*; a failure waits for the next call if there are fragments."""
        fragments: list[Fragment] = []
        self._fragments = fragments
        try:
            for frame in frames:
                if self._is_over:
                    return fragments
                self._read_frame(frame)
            if failure is not None and not self._is_over:
                raise failure
        except UpstreamError as error:
            if self._is_finished:  # the model had its say: what is wrong behind it costs the usage at most
                self._report_usage()
                self._is_over = True
                return fragments
            self._failure = error
            if not fragments:
                raise
        return fragments

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
        for choice in chunk.choices or ():
            if not choice.index and not self._is_finished:
                self._read_choice(choice)
        if chunk.usage is not None:
            self._read_usage(chunk.usage)

    def _read_choice(self, choice: Choice) -> None:
        delta = choice.delta if choice.delta is not None else choice.message
        if delta is not None:
            if delta.reasoning_content or delta.reasoning or delta.reasoning_details:
                self._fragments += [ReasoningFragment(self._admit(text)) for text in read_reasoning(delta)]
            content = delta.content
            if type(content) is str:  # the hot path
                if content:
                    self._fragments.append(TextFragment(self._admit(content)))
            elif content is not None:
                self._fragments += [TextFragment(self._admit(text)) for text in read_texts(content) if text]
            if delta.refusal is not None:
                self._fragments += [RefusalFragment(self._admit(text)) for text in read_texts(delta.refusal) if text]
            if delta.tool_calls is not None:
                self._fragments += self._tool_calls.feed(delta.tool_calls)
            if delta.function_call is not None:
                self._fragments += self._tool_calls.feed_legacy(delta.function_call)
        if choice.finish_reason is not None:
            self._read_finish(choice.finish_reason)

    def _read_finish(self, value: object) -> None:
        reason = read_finish_reason(value)
        if reason is not None:
            self._fragments += self._tool_calls.finish()
            self._fragments.append(TurnFinished(reason))
            self._is_finished = True

    def _read_usage(self, value: object) -> None:
        """Take a count: final if it comes with the finish or after it, as some upstreams count along all the way."""
        usage = read_usage(value)
        if usage is not None:
            self._usage = usage
            if self._is_finished:
                self._report_usage()
                self._is_over = True

    def _read_done(self) -> None:
        if not self._is_finished:
            raise _cut_short()
        self._report_usage()
        self._is_over = True

    def _report_usage(self) -> None:
        if self._usage is not None:
            self._fragments.append(UsageReported(self._usage))
            self._usage = None

    def _admit(self, text: str) -> str:
        """*text* cleaned and counted."""
        text = clean_text(text)
        self._answer_bytes += len(text) if text.isascii() else len(text.encode())
        if self._answer_bytes > self._answer_bytes_max:
            raise _too_large()
        return text


def _is_readable(frame: SseFrame) -> bool:
    """Whether an event without its blank line is at least a whole chunk."""
    try:
        decode_chunk(frame.data)
    except UpstreamError:
        return False
    return True


def _cut_short() -> UpstreamError:
    return UpstreamError("The model's server ended its answer without a finish reason.")


def _too_large() -> UpstreamError:
    return UpstreamError("The model's server sent an answer that is too large.")
