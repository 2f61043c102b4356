"""Which events are right within an output: the order of events of each item, as an executable specification.

Every item walks through ``_ITEM_ORDER`` by itself, so that items may interleave freely. The output of the response is
one such output; that of each sub-agent that is shown is another.

Rule: as in ``domain/event_grammar.py``, whose other half this is.
"""

from collections.abc import Mapping
from enum import Enum, auto
from typing import TypeAlias, assert_never

import attrs

from dwctl_trio.domain.event_rules import Rule, RuleBroken, require
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
    CallKind,
    ContentPart,
    CustomToolCall,
    FunctionCall,
    ItemStatus,
    McpCall,
    Message,
    OutputItem,
    Reasoning,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallItem,
    call_kind,
)

AddressedEvent: TypeAlias = (
    ContentPartAdded
    | ContentDelta
    | AnnotationAdded
    | ContentDone
    | ContentPartDone
    | ArgumentsDelta
    | ArgumentsDone
    | McpCallInProgress
    | McpCallCompleted
    | McpCallFailed
    | OutputItemDone
)
"""An event of an item that has been added before."""


class _ItemPhase(Enum):
    BETWEEN_PARTS = auto()
    IN_PART = auto()
    PART_DUE = auto()
    """The text of the open part is whole: the part's own end is next."""
    PROGRESS_DUE = auto()
    """The server will run the call: the next event says so."""
    IN_ARGUMENTS = auto()
    RUNNING = auto()
    """The server's tool runs, or will."""
    ITEM_DUE = auto()
    """All is said: the item's end is next."""
    CLOSED = auto()


_ITEM_ORDER: Mapping[_ItemPhase, Mapping[type[AddressedEvent], _ItemPhase]] = {
    _ItemPhase.BETWEEN_PARTS: {ContentPartAdded: _ItemPhase.IN_PART, OutputItemDone: _ItemPhase.CLOSED},
    _ItemPhase.IN_PART: {
        ContentDelta: _ItemPhase.IN_PART,
        AnnotationAdded: _ItemPhase.IN_PART,
        ContentDone: _ItemPhase.PART_DUE,
    },
    _ItemPhase.PART_DUE: {ContentPartDone: _ItemPhase.BETWEEN_PARTS},
    _ItemPhase.PROGRESS_DUE: {McpCallInProgress: _ItemPhase.IN_ARGUMENTS},
    _ItemPhase.IN_ARGUMENTS: {ArgumentsDelta: _ItemPhase.IN_ARGUMENTS, ArgumentsDone: _ItemPhase.ITEM_DUE},
    _ItemPhase.RUNNING: {
        McpCallCompleted: _ItemPhase.ITEM_DUE,
        McpCallFailed: _ItemPhase.ITEM_DUE,
        OutputItemDone: _ItemPhase.CLOSED,
    },
    _ItemPhase.ITEM_DUE: {OutputItemDone: _ItemPhase.CLOSED},
    _ItemPhase.CLOSED: {},
}


_EMPTY_PARTS: tuple[ContentPart, ...] = (TextPart(text=""), RefusalPart(refusal=""), ReasoningPart(text=""))


class OutputChecker:
    """The items of one output, checked as they grow."""

    def __init__(self, item_ids: set[str]) -> None:
        self._items: list[_Item] = []
        self._item_ids = item_ids
        """Of all outputs of the stream."""

    def check(self, event: ItemEvent) -> None:
        """Raise ``RuleBroken`` where the output does not allow *event* now."""
        if isinstance(event, OutputItemAdded):
            self._add(event)
            return
        known = 0 <= event.output_index < len(self._items)
        require(known, Rule.ITEM_ADDRESS, "no item has been added at its output index")
        item_id = event.item.id if isinstance(event, OutputItemDone) else event.item_id
        item = self._items[event.output_index]
        require(item_id == item.added.id, Rule.ITEM_ADDRESS, "the item at its output index has another id")
        item.check(event)

    def done(self) -> tuple[OutputItem, ...]:
        """The items, all of which must be closed."""
        done = tuple(item.done for item in self._items if item.done is not None)
        require(len(done) == len(self._items), Rule.OPEN_ITEM, "an item is still open")
        return done

    def is_running(self, item_id: str, name: str) -> bool:
        """Whether *item_id* is a call of *name* here that the server is running."""
        return any(item.added.id == item_id and item.is_running(name) for item in self._items)

    def _add(self, event: OutputItemAdded) -> None:
        item = event.item
        require(event.output_index == len(self._items), Rule.ITEM_ADDED, "its output index is not the next one")
        require(item.id not in self._item_ids, Rule.ITEM_ADDED, "its item's id is taken")
        require(item == as_added(item), Rule.ITEM_ADDED, "its item is not in progress or not empty")
        if isinstance(item, ToolCallItem):
            require(item.name != "" and item.call_id != "", Rule.ITEM_ADDED, "its call lacks a name or a call id")
        self._item_ids.add(item.id)
        self._items.append(_Item(item))


class _Item:
    """One item of the output, from its added event to its done event."""

    def __init__(self, added: OutputItem) -> None:
        self.added = added
        self.done: OutputItem | None = None
        self._phase = _first_phase(added)
        self._parts: list[ContentPart] = []
        self._kind: ContentKind | None = None
        self._pieces: list[str] = []
        """The deltas of the open part, or of the arguments."""
        self._logprobs: list[bytes] = []
        self._annotations: list[bytes] = []
        """Both of the open part."""
        self._outcome: ItemStatus | None = None
        """What was said of the tool that the server ran."""

    def is_running(self, name: str) -> bool:
        """Whether it is a call of *name* that the server is running."""
        return self._phase is _ItemPhase.RUNNING and isinstance(self.added, McpCall) and self.added.name == name

    def check(self, event: AddressedEvent) -> None:
        """Raise ``RuleBroken`` where the item does not allow *event* now."""
        phase = _ITEM_ORDER[self._phase].get(type(event))
        if phase is None:
            raise RuleBroken(Rule.ITEM_ORDER, f"not allowed in an item in phase {self._phase.name.lower()}")
        self._phase = phase
        match event:
            case ContentDelta():
                self._delta(event)
            case ContentPartAdded():
                self._part_added(event)
            case AnnotationAdded():
                self._annotation(event)
            case ContentDone(kind, _, _, content_index, text, logprobs):
                self._repeats(content_index, kind, text, logprobs)
            case ContentPartDone(_, _, content_index, part):
                logprobs, annotations = (part.logprobs, part.annotations) if isinstance(part, TextPart) else ((), ())
                self._repeats(content_index, *_read(part), logprobs)
                whole = annotations == tuple(self._annotations)
                require(whole, Rule.DONE, "its annotations are not those that were added")
                self._parts.append(part)
            case ArgumentsDelta(kind, _, _, delta):
                require(kind is self._call_kind(), Rule.DELTA, "it is of another kind than its call")
                self._grow(delta)
            case ArgumentsDone():
                self._arguments_done(event)
            case McpCallInProgress():
                pass
            case McpCallCompleted():
                self._outcome = ItemStatus.COMPLETED
            case McpCallFailed():
                self._outcome = ItemStatus.FAILED
            case OutputItemDone():
                self._item_done(event)
            case _ as never:
                assert_never(never)

    def _part_added(self, event: ContentPartAdded) -> None:
        kind, _ = _read(event.part)
        is_reasoning = isinstance(self.added, Reasoning)
        require(event.content_index == len(self._parts), Rule.PART_ADDED, "its content index is not the next one")
        require((kind is ContentKind.REASONING) is is_reasoning, Rule.PART_ADDED, "its part does not fit its item")
        require(event.part in _EMPTY_PARTS, Rule.PART_ADDED, "its part is not empty")
        self._kind, self._pieces, self._logprobs, self._annotations = kind, [], [], []

    def _delta(self, event: ContentDelta) -> None:
        require(event.content_index == len(self._parts), Rule.DELTA, "its content index is not the open part's")
        require(event.kind is self._kind, Rule.DELTA, "it is of another kind than the open part")
        self._note_logprobs(event.kind, event.logprobs)
        self._grow(event.delta)

    def _note_logprobs(self, kind: ContentKind, logprobs: tuple[bytes, ...]) -> None:
        require(not logprobs or kind is ContentKind.TEXT, Rule.DELTA, "only text has log probabilities")
        self._logprobs += logprobs

    def _annotation(self, event: AnnotationAdded) -> None:
        require(self._kind is ContentKind.TEXT, Rule.ANNOTATION, "the open part is not text")
        require(event.content_index == len(self._parts), Rule.ANNOTATION, "its content index is not the open part's")
        next_one = event.annotation_index == len(self._annotations)
        require(next_one, Rule.ANNOTATION, "its annotation index is not the next one")
        self._annotations.append(event.annotation)

    def _grow(self, delta: str) -> None:
        require(delta != "", Rule.DELTA, "it is empty")
        self._pieces.append(delta)

    def _repeats(self, content_index: int, kind: ContentKind, text: str, logprobs: tuple[bytes, ...]) -> None:
        require(content_index == len(self._parts), Rule.DONE, "its content index is not the open part's")
        require(kind is self._kind, Rule.DONE, "it is of another kind than the open part")
        require(text == "".join(self._pieces), Rule.DONE, "its text is not the sum of the deltas")
        whole = logprobs == tuple(self._logprobs)
        require(whole, Rule.DONE, "its log probabilities are not those of the deltas")

    def _call_kind(self) -> CallKind:
        assert isinstance(self.added, ToolCallItem), "the table sends arguments to calls only"
        return call_kind(self.added)

    def _arguments_done(self, event: ArgumentsDone) -> None:
        require(event.kind is self._call_kind(), Rule.DONE, "it is of another kind than its call")
        assert isinstance(self.added, ToolCallItem), "the table sends arguments to calls only"
        require(event.name == self.added.name, Rule.DONE, "its name is not the one that was added")
        require(event.arguments == "".join(self._pieces), Rule.DONE, "its arguments are not the sum of the deltas")
        if isinstance(self.added, McpCall):
            self._phase = _ItemPhase.RUNNING

    def _item_done(self, event: OutputItemDone) -> None:
        item = event.item
        require(item.status is not ItemStatus.IN_PROGRESS, Rule.ITEM_DONE, "its item is still in progress")
        require(as_added(item) == self.added, Rule.ITEM_DONE, "its item is not the one that was added")
        if isinstance(item, ToolCallItem):
            whole = item.arguments == "".join(self._pieces)
        else:
            whole = item.content == tuple(self._parts)
        require(whole, Rule.ITEM_DONE, "its item is not the sum of its events")
        if isinstance(item, McpCall):
            self._outcome_fits(item)
        else:
            require(item.status is not ItemStatus.FAILED, Rule.ITEM_DONE, "its item cannot fail")
        if item.status is ItemStatus.COMPLETED and not isinstance(item, ToolCallItem):
            filled = bool(item.content) and all(_read(part)[1] for part in item.content)
            require(filled, Rule.ITEM_DONE, "its item is completed, but empty or with an empty part")
        self.done = item

    def _outcome_fits(self, call: McpCall) -> None:
        said = self._outcome or ItemStatus.INCOMPLETE
        require(call.status is said, Rule.ITEM_DONE, "its call's status is not what was said of it")
        has_output, has_error = call.output is not None, call.error is not None
        fits = has_output is (said is ItemStatus.COMPLETED) and has_error is (said is ItemStatus.FAILED)
        require(fits, Rule.ITEM_DONE, "its call's output and error do not fit its status")


def _first_phase(added: OutputItem) -> _ItemPhase:
    if isinstance(added, McpCall):
        return _ItemPhase.PROGRESS_DUE
    return _ItemPhase.IN_ARGUMENTS if isinstance(added, ToolCallItem) else _ItemPhase.BETWEEN_PARTS


def _read(part: ContentPart) -> tuple[ContentKind, str]:
    match part:
        case TextPart(text=text):
            return ContentKind.TEXT, text
        case RefusalPart(refusal=text):
            return ContentKind.REFUSAL, text
        case ReasoningPart(text=text):
            return ContentKind.REASONING, text
        case _ as never:
            assert_never(never)


def as_added(item: OutputItem) -> OutputItem:
    """*item* as the event that adds it shows it."""
    match item:
        case Message(id=item_id):
            return Message(id=item_id, status=ItemStatus.IN_PROGRESS)
        case Reasoning(id=item_id):
            return Reasoning(id=item_id, status=ItemStatus.IN_PROGRESS)
        case McpCall():
            return attrs.evolve(item, status=ItemStatus.IN_PROGRESS, arguments="", output=None, error=None)
        case FunctionCall() | CustomToolCall():
            return attrs.evolve(item, status=ItemStatus.IN_PROGRESS, arguments="")
        case _ as never:
            assert_never(never)
