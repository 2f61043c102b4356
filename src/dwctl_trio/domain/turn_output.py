"""From the fragments of a model turn to the items and events of a response's output.

Rule 1: a message stays open until the turn ends; its parts follow one another, never overlap.
Rule 2: reasoning closes as soon as something else begins; later reasoning is a new item.
Rule 3: every tool call is an item of its own and stays open until the turn ends, so that parallel calls may interleave;
one that the server runs stays open until ``close_call``.
Rule 4: an annotation belongs to the text that is open, or to the next one; without any it is dropped.
Rule 5: whatever is open when the turn is cut short is closed as ``incomplete``: nothing that was shown vanishes.

Source: OpenAI Responses API reference, "Streaming events"; Open Responses specification, items and their states.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import assert_never
from uuid import UUID

import attrs

from dwctl_trio.domain import ids
from dwctl_trio.domain.events import (
    AnnotationAdded,
    ArgumentsDelta,
    ArgumentsDone,
    ContentDelta,
    ContentDone,
    ContentKind,
    ContentPartAdded,
    ContentPartDone,
    ItemEvent,
    McpCallCompleted,
    McpCallFailed,
    McpCallInProgress,
    OutputItemAdded,
    OutputItemDone,
)
from dwctl_trio.domain.items import (
    CALL_TYPES,
    CallKind,
    ContentPart,
    ItemStatus,
    McpCall,
    Message,
    MessagePart,
    OutputItem,
    Reasoning,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallItem,
    full_name,
)
from dwctl_trio.domain.turn import (
    AnnotationFragment,
    ContentFragment,
    FinishReason,
    ReasoningFragment,
    RefusalFragment,
    TextFragment,
    ToolCallFragment,
)

_TEXT = ContentKind.TEXT
_CUT_SHORT = frozenset({FinishReason.LENGTH, FinishReason.CONTENT_FILTER})
_ID_PREFIXES: Mapping[CallKind, str] = {CallKind.FUNCTION: "fc", CallKind.CUSTOM: "ctc", CallKind.SERVER: "mcp"}


def make_part(
    kind: ContentKind, text: str, *, logprobs: Sequence[bytes] = (), annotations: Sequence[bytes] = ()
) -> ContentPart:
    """The part of *kind* that holds *text*; the rest is of text only."""
    match kind:
        case ContentKind.TEXT:
            return TextPart(text=text, annotations=tuple(annotations), logprobs=tuple(logprobs))
        case ContentKind.REFUSAL:
            return RefusalPart(refusal=text)
        case ContentKind.REASONING:
            return ReasoningPart(text=text)
        case _ as never:
            assert_never(never)


@attrs.define(eq=False)
class _OpenContent:
    """A message or reasoning item that is still growing; the last three are of its open part."""

    output_index: int
    id: str
    is_reasoning: bool
    parts: list[ContentPart] = attrs.field(factory=list)
    kind: ContentKind | None = None
    deltas: list[str] = attrs.field(factory=list)
    logprobs: list[bytes] = attrs.field(factory=list)
    annotations: list[bytes] = attrs.field(factory=list)

    def value(self, status: ItemStatus) -> OutputItem:
        parts = list(self.parts)
        if self.kind is not None:
            parts.append(self._open_part(self.kind))
        if self.is_reasoning:
            reasoning: tuple[ReasoningPart, ...] = tuple(p for p in parts if isinstance(p, ReasoningPart))
            return Reasoning(id=self.id, status=status, content=reasoning)
        content: tuple[MessagePart, ...] = tuple(p for p in parts if not isinstance(p, ReasoningPart))
        return Message(id=self.id, status=status, content=content)

    def close_part(self) -> list[ItemEvent]:
        if self.kind is None:
            return []
        part, index = self._open_part(self.kind), len(self.parts)
        done: list[ItemEvent] = [
            ContentDone(self.kind, self.output_index, self.id, index, "".join(self.deltas), tuple(self.logprobs)),
            ContentPartDone(self.output_index, self.id, index, part),
        ]
        self.parts.append(part)
        self.kind, self.deltas, self.logprobs, self.annotations = None, [], [], []
        return done

    def _open_part(self, kind: ContentKind) -> ContentPart:
        return make_part(kind, "".join(self.deltas), logprobs=self.logprobs, annotations=self.annotations)


@attrs.define(eq=False)
class _OpenCall:
    """A tool call whose arguments are still growing."""

    output_index: int
    kind: CallKind
    id: str
    call_id: str
    name: str
    namespace: str | None
    deltas: list[str] = attrs.field(factory=list)

    def value(self, status: ItemStatus) -> ToolCallItem:
        call = CALL_TYPES[self.kind](
            id=self.id, status=status, call_id=self.call_id, name=self.name, arguments="".join(self.deltas)
        )
        return call if isinstance(call, McpCall) else attrs.evolve(call, namespace=self.namespace)


def close_call(output_index: int, call: McpCall) -> list[ItemEvent]:
    """The events that end *call*, which carries its outcome, as the item at *output_index*."""
    done = OutputItemDone(output_index, call)
    match call.status:
        case ItemStatus.COMPLETED:
            return [McpCallCompleted(output_index, call.id), done]
        case ItemStatus.FAILED:
            return [McpCallFailed(output_index, call.id), done]
        case _:
            return [done]


class TurnOutput:
    """The items of one turn as they grow; feed it fragments, get events.

    Args:
        step_id: The model step; the items' ids follow from it.
        first_output_index: Where this turn's items begin in the response's output.
        kind_of: Who runs a call of a name.
        namespaces: The namespaces of the client's tools, by full name; the others have none.
    """

    def __init__(
        self,
        *,
        step_id: UUID,
        first_output_index: int,
        kind_of: Callable[[str], CallKind],
        namespaces: Mapping[str, str] | None = None,
    ) -> None:
        self._step_id = step_id
        self._kind_of = kind_of
        self._namespaces = namespaces or {}
        self._first_output_index = first_output_index
        self._items: list[OutputItem | _OpenContent | _OpenCall] = []
        self._message: _OpenContent | None = None
        self._reasoning: _OpenContent | None = None
        self._calls: dict[int, _OpenCall] = {}
        self._annotations: list[bytes] = []
        """Those that came before their text."""

    def feed(self, fragment: ContentFragment) -> list[ItemEvent]:
        """The events that *fragment* causes, in order; none for no arguments of a known call, or for what must wait."""
        match fragment:
            case TextFragment():
                return self.feed_text(fragment)
            case ReasoningFragment(text):
                return self._feed_reasoning(text)
            case RefusalFragment(text):
                return self._feed_message(ContentKind.REFUSAL, text)
            case ToolCallFragment():
                return self._feed_call(fragment)
            case AnnotationFragment(annotation):
                return self._feed_annotation(annotation)
            case _ as never:
                assert_never(never)

    def feed_text(self, fragment: TextFragment) -> list[ItemEvent]:
        """As ``feed``, of the bulk of every turn."""
        message, text, logprobs = self._message, fragment.text, fragment.logprobs
        if message is None or message.kind is not _TEXT or self._reasoning is not None:
            return self._feed_message(_TEXT, text, logprobs)
        message.deltas.append(text)
        if logprobs:
            message.logprobs += logprobs
        return [ContentDelta(_TEXT, message.output_index, message.id, len(message.parts), text, logprobs)]

    def close(self, finish_reason: FinishReason | None) -> list[ItemEvent]:
        """Close what is open: as ``completed`` if the model stopped by itself, else as ``incomplete``.

        A call that the server will run stays open; its arguments are whole.

        Args:
            finish_reason: None when the turn was cut short by a failure or a cancellation.
        """
        cut_short = finish_reason is None or finish_reason in _CUT_SHORT
        status = ItemStatus.INCOMPLETE if cut_short else ItemStatus.COMPLETED
        events: list[ItemEvent] = []
        for entry in self._items:
            if isinstance(entry, _OpenContent):
                events += self._close_content(entry, status)
            elif isinstance(entry, _OpenCall):
                events += self._end_arguments(entry, status)
        self._message = self._reasoning = None
        self._calls.clear()
        return events

    def items(self) -> tuple[OutputItem, ...]:
        """All items so far, in order; those still open as ``incomplete``."""
        return tuple(
            entry.value(ItemStatus.INCOMPLETE) if isinstance(entry, _OpenContent | _OpenCall) else entry
            for entry in self._items
        )

    def _feed_message(self, kind: ContentKind, text: str, logprobs: tuple[bytes, ...] = ()) -> list[ItemEvent]:
        events = self._close_reasoning()
        message = self._message
        if message is None:
            message = self._message = self._open_content("msg", is_reasoning=False)
            opened = Message(id=message.id, status=ItemStatus.IN_PROGRESS)
            events.append(OutputItemAdded(message.output_index, opened))
        events += self._continue_content(message, kind, text, logprobs)
        if kind is ContentKind.TEXT and self._annotations:
            events += [self._annotate(message, annotation) for annotation in self._annotations]
            self._annotations.clear()
        return events

    def _feed_annotation(self, annotation: bytes) -> list[ItemEvent]:
        if self._message is not None and self._message.kind is ContentKind.TEXT:
            return [self._annotate(self._message, annotation)]
        self._annotations.append(annotation)
        return []

    @staticmethod
    def _annotate(message: _OpenContent, annotation: bytes) -> AnnotationAdded:
        index = len(message.annotations)
        message.annotations.append(annotation)
        return AnnotationAdded(message.output_index, message.id, len(message.parts), index, annotation)

    def _feed_reasoning(self, text: str) -> list[ItemEvent]:
        events: list[ItemEvent] = []
        reasoning = self._reasoning
        if reasoning is None:
            reasoning = self._reasoning = self._open_content("rs", is_reasoning=True)
            opened = Reasoning(id=reasoning.id, status=ItemStatus.IN_PROGRESS)
            events.append(OutputItemAdded(reasoning.output_index, opened))
        return events + self._continue_content(reasoning, ContentKind.REASONING, text)

    def _feed_call(self, fragment: ToolCallFragment) -> list[ItemEvent]:
        events = self._close_reasoning()
        call = self._calls.get(fragment.position)
        if call is None:
            index = self._first_output_index + len(self._items)
            kind = self._kind_of(fragment.name)
            item_id = ids.item_id(_ID_PREFIXES[kind], self._step_id, len(self._items))
            namespace = None if kind is CallKind.SERVER else self._namespaces.get(fragment.name)
            name = fragment.name if namespace is None else fragment.name.removeprefix(full_name(namespace, ""))
            call = _OpenCall(index, kind, item_id, fragment.call_id, name, namespace)
            self._calls[fragment.position] = call
            self._items.append(call)
            events.append(OutputItemAdded(index, call.value(ItemStatus.IN_PROGRESS)))
            if kind is CallKind.SERVER:
                events.append(McpCallInProgress(index, item_id))
        if fragment.arguments:
            call.deltas.append(fragment.arguments)
            events.append(ArgumentsDelta(call.kind, call.output_index, call.id, fragment.arguments))
        return events

    def _open_content(self, prefix: str, *, is_reasoning: bool) -> _OpenContent:
        position = len(self._items)
        item_id = ids.item_id(prefix, self._step_id, position)
        opened = _OpenContent(self._first_output_index + position, item_id, is_reasoning)
        self._items.append(opened)
        return opened

    @staticmethod
    def _continue_content(
        item: _OpenContent, kind: ContentKind, text: str, logprobs: tuple[bytes, ...] = ()
    ) -> list[ItemEvent]:
        events: list[ItemEvent] = []
        if item.kind is not kind:
            events += item.close_part()
            item.kind = kind
            events.append(ContentPartAdded(item.output_index, item.id, len(item.parts), make_part(kind, "")))
        item.deltas.append(text)
        item.logprobs += logprobs
        events.append(ContentDelta(kind, item.output_index, item.id, len(item.parts), text, logprobs))
        return events

    def _close_reasoning(self) -> list[ItemEvent]:
        if self._reasoning is None:
            return []
        events = self._close_content(self._reasoning, ItemStatus.COMPLETED)
        self._reasoning = None
        return events

    def _close_content(self, item: _OpenContent, status: ItemStatus) -> list[ItemEvent]:
        events = item.close_part()
        closed = item.value(status)
        self._items[item.output_index - self._first_output_index] = closed
        events.append(OutputItemDone(item.output_index, closed))
        return events

    def _end_arguments(self, call: _OpenCall, status: ItemStatus) -> list[ItemEvent]:
        is_to_run = call.kind is CallKind.SERVER and status is ItemStatus.COMPLETED
        ended = call.value(ItemStatus.IN_PROGRESS if is_to_run else status)
        self._items[call.output_index - self._first_output_index] = ended
        events: list[ItemEvent] = [
            ArgumentsDone(call.kind, call.output_index, call.id, call.name, ended.arguments),
        ]
        return events if is_to_run else [*events, OutputItemDone(call.output_index, ended)]
