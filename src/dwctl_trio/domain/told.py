"""What a stream has said so far, as far as whoever goes on with it must know.

The events of one item come in one order only, but for where one delta ends and the next begins, and where between them
its text is annotated; so how far an item has been told is a number of events, and what of the open part since.

Rule: it sums up streams that pass ``domain/event_grammar.py``; meaningless for others.
"""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import attrs

from dwctl_trio.domain.assembly import fold_item
from dwctl_trio.domain.events import (
    AnnotationAdded,
    ArgumentsDelta,
    ContentDelta,
    ItemEvent,
    OutputItemAdded,
    ResponseInProgress,
    SnapshotEvent,
    SubAgentEvent,
)
from dwctl_trio.domain.items import ItemStatus, Message, OutputItem, TextPart

ToldEvent: TypeAlias = ItemEvent | SubAgentEvent | type[SnapshotEvent]
"""An event as it is remembered: of a snapshot only which it was, for whoever goes on has the response itself."""


@attrs.frozen(kw_only=True)
class ToldItem:
    """How far an item has been told."""

    item: OutputItem
    """What was told of it, added up; ``in_progress`` until its end was told."""
    events: int
    """How many of its events were told, without deltas and annotations; at least 1."""
    text: str
    """The deltas that were told after the last of these, joined."""

    @property
    def is_whole(self) -> bool:
        """Whether its end was told."""
        return self.item.status is not ItemStatus.IN_PROGRESS

    @property
    def last_text(self) -> TextPart | None:
        """What was told of its last part, if that is text."""
        content = self.item.content if isinstance(self.item, Message) else ()
        return content[-1] if content and isinstance(content[-1], TextPart) else None


@attrs.frozen(kw_only=True)
class Told:
    """What a stream has said."""

    is_in_progress: bool = False
    """Whether it has said that the response is worked on."""
    items: tuple[ToldItem, ...] = ()
    """Of the response, by output index."""
    agents: Mapping[str, tuple[ToldItem, ...]] = attrs.field(factory=dict)
    """Of the sub-agents that are shown, by the item of the call that each is, be it the response's or a sub-agent's."""


NOTHING_TOLD = Told()
"""Of a stream that has not begun."""


def told_by(events: Iterable[ToldEvent]) -> Told:
    """What *events*, a stream from its beginning, have said."""
    listener = Listener()
    listener.note(events)
    return listener.told()


class Listener:
    """Sums up a stream, from its beginning, as it comes."""

    def __init__(self) -> None:
        self._is_in_progress = False
        self._items: list[_Item] = []
        self._agents: dict[str, list[_Item]] = {}

    def note(self, events: Iterable[ToldEvent]) -> None:
        """Further *events*."""
        for event in events:
            if isinstance(event, type):
                self._is_in_progress = self._is_in_progress or event is ResponseInProgress
            elif isinstance(event, SubAgentEvent):
                _note(self._agents.setdefault(event.item_id, []), event.event)
            else:
                _note(self._items, event)

    def told(self) -> Told:
        """What the stream has said so far."""
        agents = {item_id: _values(items) for item_id, items in self._agents.items()}
        return Told(is_in_progress=self._is_in_progress, items=_values(self._items), agents=agents)


class _Item:
    """An item that is being summed up; deltas are joined first, so that a long text costs no more than its length."""

    def __init__(self) -> None:
        self._item: OutputItem | None = None
        self._events = 0
        self._delta: ContentDelta | ArgumentsDelta | None = None
        """The last one since the last other event."""
        self._pieces: list[str] = []
        self._logprobs: list[bytes] = []
        self._annotations: list[AnnotationAdded] = []
        """All since the last other event."""

    def note(self, event: ItemEvent) -> None:
        if isinstance(event, ContentDelta | ArgumentsDelta):
            self._delta = event
            self._pieces.append(event.delta)
            if isinstance(event, ContentDelta) and event.logprobs:
                self._logprobs += event.logprobs
            return
        if isinstance(event, AnnotationAdded):
            self._annotations.append(event)
            return
        self._item = fold_item(self._folded(), event)
        self._events += 1
        self._delta = None
        for noted in (self._pieces, self._logprobs, self._annotations):
            noted.clear()

    def value(self) -> ToldItem:
        item = self._folded()
        assert item is not None, "it was added"
        return ToldItem(item=item, events=self._events, text="".join(self._pieces))

    def _folded(self) -> OutputItem | None:
        item, text = self._item, "".join(self._pieces)
        match self._delta:
            case ContentDelta(kind, index, item_id, content_index):
                whole = ContentDelta(kind, index, item_id, content_index, text, tuple(self._logprobs))
                item = fold_item(item, whole)
            case ArgumentsDelta(call_kind, index, item_id):
                item = fold_item(item, ArgumentsDelta(call_kind, index, item_id, text))
            case None:
                pass
        for annotation in self._annotations:
            item = fold_item(item, annotation)
        return item


def _note(items: list[_Item], event: ItemEvent) -> None:
    if isinstance(event, OutputItemAdded):
        items.append(_Item())
    items[event.output_index].note(event)


def _values(items: list[_Item]) -> tuple[ToldItem, ...]:
    return tuple(item.value() for item in items)
