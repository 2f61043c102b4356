"""Which streams of events are right: the order of events as an executable specification.

A stream is two kinds of machine. The stream itself walks through ``_STREAM_ORDER``; each of its items walks through the
order of ``domain/item_grammar.py``, so that items may interleave freely while each keeps its own order. What a table
cannot say (texts add up, identities stay) is one small method per event.

Rule 1: every rule has a name in ``domain/event_rules.py``, and a violation names exactly one.
Rule 2: nothing here is shared with the code that makes events (``domain/turn_output.py``); each checks the other.

It knows neither turns nor steps: a response of many model calls is one stream.

Source: OpenAI Responses API reference, "Streaming events"; Open Responses specification 2026-04-24, stream grammar
per item; openai-python ``lib/streaming/responses/_responses.py`` for what clients enforce.
"""

from collections.abc import Iterable, Mapping
from enum import Enum, auto
from typing import get_args

from dwctl_trio.domain.event_rules import Rule, RuleBroken, Violation, require
from dwctl_trio.domain.events import (
    Event,
    ItemEvent,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseQueued,
    StreamEvent,
    SubAgentEvent,
    TerminalEvent,
)
from dwctl_trio.domain.item_grammar import OutputChecker
from dwctl_trio.domain.items import ItemStatus, McpCall, OutputItem
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
        **dict.fromkeys(get_args(ItemEvent), _Phase.RUNNING),
        SubAgentEvent: _Phase.RUNNING,
        ResponseCompleted: _Phase.ENDED,
        ResponseIncomplete: _Phase.ENDED,
        ResponseFailed: _Phase.ENDED,
    },
    _Phase.NEVER_RAN: {},
    _Phase.ENDED: {},
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
        self._item_ids: set[str] = set()
        self._output = OutputChecker(self._item_ids)
        self._agents: dict[str, OutputChecker] = {}
        """The outputs of the sub-agents that are shown, by the item that each works on."""
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
            case ResponseCreated() | ResponseQueued() | ResponseInProgress():
                self._snapshot(event)
            case ResponseCompleted() | ResponseIncomplete() | ResponseFailed():
                self._terminal(event)
            case SubAgentEvent():
                self._sub_agent_event(event)
            case _:
                self._output.check(event)

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
        require(response.tools == opening.tools, Rule.IDENTITY, "its response offers other tools")

    def _sub_agent_event(self, event: SubAgentEvent) -> None:
        outputs = (self._output, *self._agents.values())
        running = any(output.is_running(event.item_id, event.agent_name) for output in outputs)
        require(running, Rule.SUB_AGENT, "the call that it names is not running")
        self._agents.setdefault(event.item_id, OutputChecker(self._item_ids)).check(event.event)

    def _terminal(self, event: TerminalEvent) -> None:
        response = event.response
        self._same_response(response)
        self._outcome_fits(event)
        done = self._output.done()
        require(response.output == done, Rule.OUTPUT, "its response's output is not the items that were done")
        handed_over = self._opening is not None and self._opening.status is ResponseStatus.QUEUED
        if response.status is ResponseStatus.COMPLETED and not handed_over:
            whole = all(_is_whole(item) for item in response.output)
            require(whole, Rule.ITEM_OUTCOME, "its response is completed, one of its items is not")

    def _outcome_fits(self, event: TerminalEvent) -> None:
        response = event.response
        outcome = _ENDINGS.get((type(event), response.status))
        require(_outcome(response) == outcome, Rule.OUTCOME, "status, error, reason and end do not fit one another")
        if self._phase is _Phase.NEVER_RAN:
            ran = response.status is ResponseStatus.INCOMPLETE or response.usage is not None
            require(not ran, Rule.OUTCOME, "a limit or usage, but it was never worked on")


def _is_whole(item: OutputItem) -> bool:
    """Whether a completed response may have *item*: what the server's tools failed at, the model has read."""
    return item.status is ItemStatus.COMPLETED or isinstance(item, McpCall)


def _outcome(response: Response) -> tuple[str, ...]:
    return tuple(name for name in _OUTCOME if getattr(response, name) is not None)
