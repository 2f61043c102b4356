"""Which streams of events are right: the order of events as an executable specification.

A stream is two kinds of machine. The stream itself walks through ``_STREAM_ORDER``; each of its items walks through
``_ITEM_ORDER``, so that items may interleave freely while each keeps its own order. What a table cannot say (texts add
up, identities stay) is one small method per event.

Rule 1: every rule has a name in ``domain/event_rules.py``, and a violation names exactly one.
Rule 2: nothing here is shared with the code that makes events (``domain/turn_output.py``); each checks the other.

It knows neither turns nor steps: a response of many model calls is one stream.

Source: OpenAI Responses API reference, "Streaming events"; Open Responses specification 2026-04-24, stream grammar
per item; openai-python ``lib/streaming/responses/_responses.py`` for what clients enforce.
"""

from collections.abc import Iterable, Mapping
from enum import Enum, auto
from typing import TypeAlias, assert_never, get_args

import attrs

from dwctl_trio.domain.event_rules import Rule, RuleBroken, Violation, require
from dwctl_trio.domain.events import (
    ArgumentsDelta,
    ArgumentsDone,
    ContentDelta,
    ContentDone,
    ContentKind,
    ContentPartAdded,
    ContentPartDone,
    Event,
    OutputItemAdded,
    OutputItemDone,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseQueued,
    StreamEvent,
    TerminalEvent,
)
from dwctl_trio.domain.items import (
    ContentPart,
    FunctionCall,
    ItemStatus,
    Message,
    OutputItem,
    Reasoning,
    ReasoningPart,
    RefusalPart,
    TextPart,
)
from dwctl_trio.domain.response import Response, ResponseStatus


def check_stream(events: Iterable[StreamEvent], *, prefix: bool = False) -> Violation | None:
    """The first violation of *events*, or None.

    Args:
        events: The whole stream in order.
        prefix: Accept a stream that is right so far but has not ended, as a client has it that hung up.
    """
    checker = StreamChecker()
    for event in events:
        violation = checker.check(event)
        if violation is not None:
            return violation
    return None if prefix else checker.finish()


class _Phase(Enum):
    START = auto()
    QUEUE_DUE = auto()
    """Created with status ``queued``: the next event says so too."""
    QUEUED = auto()
    WORK_DUE = auto()
    """Created with status ``in_progress``: the next event says so too."""
    RUNNING = auto()
    NEVER_RAN = auto()
    """Ended in the queue."""
    ENDED = auto()


class _ItemPhase(Enum):
    BETWEEN_PARTS = auto()
    IN_PART = auto()
    PART_DUE = auto()
    """The text of the open part is whole: the part's own end is next."""
    IN_ARGUMENTS = auto()
    ITEM_DUE = auto()
    """The arguments are whole: the item's end is next."""
    CLOSED = auto()


_AddressedEvent: TypeAlias = (
    ContentPartAdded | ContentDelta | ContentDone | ContentPartDone | ArgumentsDelta | ArgumentsDone | OutputItemDone
)

_STREAM_ORDER: Mapping[_Phase, Mapping[type[Event], _Phase]] = {
    _Phase.START: {ResponseCreated: _Phase.WORK_DUE},  # or QUEUE_DUE, by its status
    _Phase.QUEUE_DUE: {ResponseQueued: _Phase.QUEUED},
    _Phase.QUEUED: {
        ResponseInProgress: _Phase.RUNNING,
        ResponseFailed: _Phase.NEVER_RAN,
        ResponseIncomplete: _Phase.NEVER_RAN,
    },
    _Phase.WORK_DUE: {ResponseInProgress: _Phase.RUNNING},
    _Phase.RUNNING: {
        OutputItemAdded: _Phase.RUNNING,
        **dict.fromkeys(get_args(_AddressedEvent), _Phase.RUNNING),
        ResponseCompleted: _Phase.ENDED,
        ResponseIncomplete: _Phase.ENDED,
        ResponseFailed: _Phase.ENDED,
    },
    _Phase.NEVER_RAN: {},
    _Phase.ENDED: {},
}

_ITEM_ORDER: Mapping[_ItemPhase, Mapping[type[_AddressedEvent], _ItemPhase]] = {
    _ItemPhase.BETWEEN_PARTS: {ContentPartAdded: _ItemPhase.IN_PART, OutputItemDone: _ItemPhase.CLOSED},
    _ItemPhase.IN_PART: {ContentDelta: _ItemPhase.IN_PART, ContentDone: _ItemPhase.PART_DUE},
    _ItemPhase.PART_DUE: {ContentPartDone: _ItemPhase.BETWEEN_PARTS},
    _ItemPhase.IN_ARGUMENTS: {ArgumentsDelta: _ItemPhase.IN_ARGUMENTS, ArgumentsDone: _ItemPhase.ITEM_DUE},
    _ItemPhase.ITEM_DUE: {OutputItemDone: _ItemPhase.CLOSED},
    _ItemPhase.CLOSED: {},
}

_WAITING = frozenset({_Phase.QUEUE_DUE, _Phase.QUEUED})

_ENDINGS: Mapping[tuple[type[TerminalEvent], ResponseStatus], tuple[str, ...]] = {
    (ResponseCompleted, ResponseStatus.COMPLETED): ("completed_at",),
    (ResponseIncomplete, ResponseStatus.INCOMPLETE): ("incomplete_reason",),
    (ResponseIncomplete, ResponseStatus.CANCELLED): (),
    (ResponseFailed, ResponseStatus.FAILED): ("error",),
}
"""Which statuses a terminal event may have, and which of ``_OUTCOME`` the response then has."""

_OUTCOME = ("error", "incomplete_reason", "completed_at")


class StreamChecker:
    """The same as ``check_stream``, one event at a time: the server's debug mode runs every stream through one."""

    def __init__(self) -> None:
        self._phase = _Phase.START
        self._seen = 0
        self._opening: Response | None = None
        self._items: list[_Item] = []
        self._item_ids: set[str] = set()
        self._violation: Violation | None = None

    def check(self, event: StreamEvent) -> Violation | None:
        """The violation that *event* is, or None; a broken stream stays broken and gives its first violation again."""
        if self._violation is None:
            try:
                self._check(event)
            except RuleBroken as broken:
                self._violation = Violation(
                    index=self._seen,
                    sequence_number=event.sequence_number,
                    rule=broken.rule,
                    message=f"{type(event.event).__name__}: {broken.message}",
                )
            self._seen += 1
        return self._violation

    def finish(self) -> Violation | None:
        """The first violation of the whole stream, now that nothing follows, or None."""
        if self._violation is None and _STREAM_ORDER[self._phase]:
            self._violation = Violation(
                index=self._seen, sequence_number=None, rule=Rule.ENDING, message="the stream has no terminal event"
            )
        return self._violation

    def _check(self, numbered: StreamEvent) -> None:
        require(numbered.sequence_number == self._seen, Rule.NUMBERS, "its number is not the next one")
        event = numbered.event
        phase = _STREAM_ORDER[self._phase].get(type(event))
        if phase is None:
            raise RuleBroken(Rule.STREAM_ORDER, f"not allowed in phase {self._phase.name.lower()}")
        self._phase = phase
        match event:
            case OutputItemAdded():
                self._item_added(event)
            case ResponseCreated() | ResponseQueued() | ResponseInProgress():
                self._snapshot(event)
            case ResponseCompleted() | ResponseIncomplete() | ResponseFailed():
                self._terminal(event)
            case _:
                self._item_event(event)

    def _snapshot(self, event: ResponseCreated | ResponseQueued | ResponseInProgress) -> None:
        response = event.response
        if self._opening is None:
            self._opening = response
            self._phase = _Phase.QUEUE_DUE if response.status is ResponseStatus.QUEUED else _Phase.WORK_DUE
        self._same_response(response)
        status = ResponseStatus.QUEUED if self._phase in _WAITING else ResponseStatus.IN_PROGRESS
        require(response.status is status, Rule.SNAPSHOT, "its response has another status")
        require(not response.output, Rule.SNAPSHOT, "its response already has output")
        require(response.usage is None, Rule.SNAPSHOT, "its response already has usage")
        require(_outcome(response) == (), Rule.SNAPSHOT, "its response already has an outcome")

    def _same_response(self, response: Response) -> None:
        opening = self._opening
        assert opening is not None, "the table lets nothing precede ResponseCreated"
        require(response.id == opening.id, Rule.IDENTITY, "its response has another id")
        require(response.created_at == opening.created_at, Rule.IDENTITY, "its response has another creation time")
        require(response.request == opening.request, Rule.IDENTITY, "its response has another request")

    def _item_added(self, event: OutputItemAdded) -> None:
        item = event.item
        require(event.output_index == len(self._items), Rule.ITEM_ADDED, "its output index is not the next one")
        require(item.id not in self._item_ids, Rule.ITEM_ADDED, "its item's id is taken")
        require(item == _as_added(item), Rule.ITEM_ADDED, "its item is not in progress or not empty")
        if isinstance(item, FunctionCall):
            require(item.name != "" and item.call_id != "", Rule.ITEM_ADDED, "its call lacks a name or a call id")
        self._item_ids.add(item.id)
        self._items.append(_Item(item))

    def _item_event(self, event: _AddressedEvent) -> None:
        known = 0 <= event.output_index < len(self._items)
        require(known, Rule.ITEM_ADDRESS, "no item has been added at its output index")
        item_id = event.item.id if isinstance(event, OutputItemDone) else event.item_id
        item = self._items[event.output_index]
        require(item_id == item.added.id, Rule.ITEM_ADDRESS, "the item at its output index has another id")
        item.check(event)

    def _terminal(self, event: TerminalEvent) -> None:
        response = event.response
        self._same_response(response)
        self._outcome_fits(event)
        done = tuple(item.done for item in self._items)
        require(None not in done, Rule.OPEN_ITEM, "an item is still open")
        require(response.output == done, Rule.OUTPUT, "its response's output is not the items that were done")
        handed_over = self._opening is not None and self._opening.status is ResponseStatus.QUEUED
        if response.status is ResponseStatus.COMPLETED and not handed_over:
            whole = all(item.status is ItemStatus.COMPLETED for item in response.output)
            require(whole, Rule.ITEM_OUTCOME, "its response is completed, one of its items is not")

    def _outcome_fits(self, event: TerminalEvent) -> None:
        response = event.response
        outcome = _ENDINGS.get((type(event), response.status))
        require(_outcome(response) == outcome, Rule.OUTCOME, "status, error, reason and end do not fit one another")
        if self._phase is _Phase.NEVER_RAN:
            ran = response.status is ResponseStatus.INCOMPLETE or response.usage is not None
            require(not ran, Rule.OUTCOME, "a limit or usage, but it was never worked on")


class _Item:
    """One item of the output, from its added event to its done event."""

    def __init__(self, added: OutputItem) -> None:
        self.added = added
        self.done: OutputItem | None = None
        self._phase = _ItemPhase.IN_ARGUMENTS if isinstance(added, FunctionCall) else _ItemPhase.BETWEEN_PARTS
        self._parts: list[ContentPart] = []
        self._kind: ContentKind | None = None
        self._pieces: list[str] = []
        """The deltas of the open part, or of the arguments."""

    def check(self, event: _AddressedEvent) -> None:
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
            case ContentDone(kind, _, _, content_index, text):
                self._repeats(content_index, kind, text)
            case ContentPartDone(_, _, content_index, part):
                self._repeats(content_index, *_read(part))
                self._parts.append(part)
            case ArgumentsDelta(_, _, delta):
                self._grow(delta)
            case ArgumentsDone():
                self._arguments_done(event)
            case OutputItemDone():
                self._item_done(event)
            case _ as never:
                assert_never(never)

    def _part_added(self, event: ContentPartAdded) -> None:
        kind, text = _read(event.part)
        is_reasoning = isinstance(self.added, Reasoning)
        require(event.content_index == len(self._parts), Rule.PART_ADDED, "its content index is not the next one")
        require((kind is ContentKind.REASONING) is is_reasoning, Rule.PART_ADDED, "its part does not fit its item")
        require(text == "", Rule.PART_ADDED, "its part already has text")
        self._kind, self._pieces = kind, []

    def _delta(self, event: ContentDelta) -> None:
        require(event.content_index == len(self._parts), Rule.DELTA, "its content index is not the open part's")
        require(event.kind is self._kind, Rule.DELTA, "it is of another kind than the open part")
        self._grow(event.delta)

    def _grow(self, delta: str) -> None:
        require(delta != "", Rule.DELTA, "it is empty")
        self._pieces.append(delta)

    def _repeats(self, content_index: int, kind: ContentKind, text: str) -> None:
        require(content_index == len(self._parts), Rule.DONE, "its content index is not the open part's")
        require(kind is self._kind, Rule.DONE, "it is of another kind than the open part")
        require(text == "".join(self._pieces), Rule.DONE, "its text is not the sum of the deltas")

    def _arguments_done(self, event: ArgumentsDone) -> None:
        assert isinstance(self.added, FunctionCall), "the table sends arguments to calls only"
        require(event.name == self.added.name, Rule.DONE, "its name is not the one that was added")
        require(event.arguments == "".join(self._pieces), Rule.DONE, "its arguments are not the sum of the deltas")

    def _item_done(self, event: OutputItemDone) -> None:
        item = event.item
        require(item.status is not ItemStatus.IN_PROGRESS, Rule.ITEM_DONE, "its item is still in progress")
        require(_as_added(item) == self.added, Rule.ITEM_DONE, "its item is not the one that was added")
        if isinstance(item, FunctionCall):
            whole = item.arguments == "".join(self._pieces)
        else:
            whole = item.content == tuple(self._parts)
        require(whole, Rule.ITEM_DONE, "its item is not the sum of its events")
        if item.status is ItemStatus.COMPLETED and not isinstance(item, FunctionCall):
            filled = bool(item.content) and all(_read(part)[1] for part in item.content)
            require(filled, Rule.ITEM_DONE, "its item is completed, but empty or with an empty part")
        self.done = item


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


def _as_added(item: OutputItem) -> OutputItem:
    match item:
        case Message(id=item_id):
            return Message(id=item_id, status=ItemStatus.IN_PROGRESS)
        case Reasoning(id=item_id):
            return Reasoning(id=item_id, status=ItemStatus.IN_PROGRESS)
        case FunctionCall():
            return attrs.evolve(item, status=ItemStatus.IN_PROGRESS, arguments="")
        case _ as never:
            assert_never(never)


def _outcome(response: Response) -> tuple[str, ...]:
    return tuple(name for name in _OUTCOME if getattr(response, name) is not None)
