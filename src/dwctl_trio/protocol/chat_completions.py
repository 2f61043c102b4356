"""The protocol towards an upstream: a chat-completions request out, a model turn back in.

Rule 1: how the bytes were split, into reads or into chunks, changes no text, call, reason or count.
Rule 2: after the finish only usage is read; it is reported once, when it is final.

Source: OpenAI Chat Completions API reference, "Streaming"; observed: see ``chat_chunks`` and ``chat_tool_calls``.
"""

from collections.abc import Set as AbstractSet
from typing import Final
from uuid import UUID

import attrs

from dwctl_trio.domain.turn import (
    AnnotationFragment,
    Fragment,
    ReasoningFragment,
    RefusalFragment,
    TextFragment,
    TurnFinished,
    UsageReported,
)
from dwctl_trio.domain.usage import Usage
from dwctl_trio.protocol.annotations import read_annotations
from dwctl_trio.protocol.answer_reader import AnswerReader
from dwctl_trio.protocol.chat_chunks import (
    Choice,
    Chunk,
    Delta,
    read_finish_reason,
    read_reasoning,
    read_text_chunk,
    read_texts,
    read_usage,
)
from dwctl_trio.protocol.chat_request import DEFAULT_QUIRKS, Quirks, render_chat_request
from dwctl_trio.protocol.chat_tool_calls import ToolCallAssembler
from dwctl_trio.protocol.logprobs import read_logprobs
from dwctl_trio.protocol.sse import SseFrame

__all__ = ["DEFAULT_QUIRKS", "ChunkReassembler", "Quirks", "TurnBounds", "render_chat_request"]


_MISSES_MAX: Final = 8
"""So often text that was expected may not come alone; then the upstream is one that always sends something with it."""


@attrs.frozen(kw_only=True)
class TurnBounds:
    """How much one model turn may bring."""

    event_bytes: int
    """Of one event."""
    answer_bytes: int
    """Of the answer's texts together, as UTF-8, with what was told of their tokens and of what they refer to."""
    tool_calls: int
    annotations: int
    """More are left out."""


class ChunkReassembler(AnswerReader[Fragment]):
    """The fragments of one model turn out of an answer's bytes.

    Args:
        step_id: The model step; call ids that the upstream leaves out are derived from it.
        bounds: How much of it there may be.
        custom_tools: Names of the tools that take text instead of JSON.
        wants_logprobs: Whether log probabilities are read.
    """

    def __init__(
        self,
        step_id: UUID,
        *,
        bounds: TurnBounds,
        custom_tools: AbstractSet[str] = frozenset(),
        wants_logprobs: bool = False,
    ) -> None:
        super().__init__(event_bytes_max=bounds.event_bytes, answer_bytes_max=bounds.answer_bytes)
        self._tool_calls = ToolCallAssembler(
            step_id=step_id, calls_max=bounds.tool_calls, admit=self._budget.admit, custom_tools=custom_tools
        )
        self._usage: Usage | None = None
        """The latest seen, until it is reported."""
        self._wants_logprobs = wants_logprobs
        self._logprobs: list[bytes] = []
        """Of tokens whose text is still to come."""
        self._may_go_on = False
        """Whether it was text that came last, so that it is worth trying whether there is more."""
        self._misses_left = _MISSES_MAX
        self._annotations_max = bounds.annotations
        self._annotations: set[bytes] = set()
        """All so far: some upstreams send them again with every chunk."""

    def _read_frame(self, frame: SseFrame) -> None:
        if self._may_go_on and frame.event is None:  # with text, the bulk of every turn
            text = read_text_chunk(frame.data)
            if text:
                self._items.append(TextFragment(self._budget.admit(text)))
                return
            self._may_go_on = False
            self._misses_left -= 1
        super()._read_frame(frame)

    def _read_chunk(self, chunk: Chunk, data: bytes) -> None:  # noqa: ARG002 - of the answer only the values count
        for choice in chunk.choices or ():
            if not choice.index and not self._is_finished:
                self._read_choice(choice)
        if chunk.usage is not None:
            self._read_usage(chunk.usage)

    def _read_choice(self, choice: Choice) -> None:
        delta = choice.delta if choice.delta is not None else choice.message
        if delta is not None:
            if delta.reasoning_content or delta.reasoning or delta.reasoning_details:
                self._items += [ReasoningFragment(self._budget.admit(text)) for text in read_reasoning(delta)]
            if self._wants_logprobs:
                self._read_text(delta, choice.logprobs)
            elif delta.content is not None:
                self._items += [TextFragment(self._budget.admit(text)) for text in read_texts(delta.content) if text]
                self._may_go_on = self._misses_left > 0
            if delta.annotations:
                self._read_annotations(delta.annotations)
            if delta.refusal is not None:
                self._items += [RefusalFragment(self._budget.admit(text)) for text in read_texts(delta.refusal) if text]
            if delta.tool_calls is not None:
                self._items += self._tool_calls.feed(delta.tool_calls)
            if delta.function_call is not None:
                self._items += self._tool_calls.feed_legacy(delta.function_call)
        if choice.finish_reason is not None:
            self._read_finish(choice.finish_reason)

    def _read_text(self, delta: Delta, logprobs: object) -> None:
        """The text of *delta* with the log probabilities of its tokens; those of other content are left out."""
        told = read_logprobs(logprobs)
        self._budget.take(sum(map(len, told)))
        self._logprobs += told
        for text in read_texts(delta.content):
            if text:
                self._items.append(TextFragment(self._budget.admit(text), tuple(self._logprobs)))
                self._logprobs.clear()
        if delta.tool_calls or delta.refusal or delta.reasoning or delta.reasoning_content:
            self._logprobs.clear()

    def _read_annotations(self, value: object) -> None:
        for annotation in read_annotations(value):
            if annotation not in self._annotations and len(self._annotations) < self._annotations_max:
                self._budget.take(len(annotation))
                self._annotations.add(annotation)
                self._items.append(AnnotationFragment(annotation))

    def _read_finish(self, value: object) -> None:
        reason = read_finish_reason(value)
        if reason is not None:
            self._items += self._tool_calls.finish()
            self._items.append(TurnFinished(reason))
            self._is_finished = True
            self._may_go_on = False

    def _read_usage(self, value: object) -> None:
        """Take a count: final if it comes with the finish or after it, as some upstreams count along all the way."""
        usage = read_usage(value)
        if usage is not None:
            self._usage = usage
            if self._is_finished:
                self._report_usage()
                self._is_over = True

    def _report_usage(self) -> None:
        if self._usage is not None:
            self._items.append(UsageReported(self._usage))
            self._usage = None
