"""The protocol towards an upstream: a chat-completions request out, a model turn back in.

Rule 1: how the bytes were split, into reads or into chunks, changes no text, call, reason or count.
Rule 2: after the finish only usage is read; it is reported once, when it is final.

Source: OpenAI Chat Completions API reference, "Streaming"; observed: see ``chat_chunks`` and ``chat_tool_calls``.
"""

from collections.abc import Set as AbstractSet
from uuid import UUID

from dwctl_trio.domain.turn import (
    Fragment,
    ReasoningFragment,
    RefusalFragment,
    TextFragment,
    TurnFinished,
    UsageReported,
)
from dwctl_trio.domain.usage import Usage
from dwctl_trio.protocol.answer_reader import AnswerReader
from dwctl_trio.protocol.chat_chunks import (
    Choice,
    Chunk,
    read_finish_reason,
    read_reasoning,
    read_texts,
    read_usage,
)
from dwctl_trio.protocol.chat_request import DEFAULT_QUIRKS, Quirks, render_chat_request
from dwctl_trio.protocol.chat_tool_calls import ToolCallAssembler
from dwctl_trio.protocol.json import clean_text

__all__ = ["DEFAULT_QUIRKS", "ChunkReassembler", "Quirks", "render_chat_request"]


class ChunkReassembler(AnswerReader[Fragment]):
    """The fragments of one model turn out of an answer's bytes.

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
        super().__init__(event_bytes_max=event_bytes_max, answer_bytes_max=answer_bytes_max)
        self._tool_calls = ToolCallAssembler(
            step_id=step_id, calls_max=tool_calls_max, admit=self._admit, custom_tools=custom_tools
        )
        self._usage: Usage | None = None
        """The latest seen, until it is reported."""

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
                self._items += [ReasoningFragment(self._admit(text)) for text in read_reasoning(delta)]
            content = delta.content
            if type(content) is str:  # the hot path
                if content:
                    self._items.append(TextFragment(self._admit(content)))
            elif content is not None:
                self._items += [TextFragment(self._admit(text)) for text in read_texts(content) if text]
            if delta.refusal is not None:
                self._items += [RefusalFragment(self._admit(text)) for text in read_texts(delta.refusal) if text]
            if delta.tool_calls is not None:
                self._items += self._tool_calls.feed(delta.tool_calls)
            if delta.function_call is not None:
                self._items += self._tool_calls.feed_legacy(delta.function_call)
        if choice.finish_reason is not None:
            self._read_finish(choice.finish_reason)

    def _read_finish(self, value: object) -> None:
        reason = read_finish_reason(value)
        if reason is not None:
            self._items += self._tool_calls.finish()
            self._items.append(TurnFinished(reason))
            self._is_finished = True

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

    def _admit(self, text: str) -> str:
        """*text* cleaned and counted."""
        text = clean_text(text)
        self._admit_bytes(len(text) if text.isascii() else len(text.encode()))
        return text
