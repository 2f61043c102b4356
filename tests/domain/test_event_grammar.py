"""The grammar of event streams: valid streams pass, and each rule is broken at least once."""

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.domain.event_grammar import StreamChecker, check_stream
from dwctl_trio.domain.event_rules import Rule
from dwctl_trio.domain.events import (
    ArgumentsDelta,
    ArgumentsDone,
    ContentDelta,
    ContentDone,
    ContentKind,
    ContentPartAdded,
    ContentPartDone,
    Event,
    McpCallCompleted,
    McpCallFailed,
    McpCallInProgress,
    OutputItemAdded,
    OutputItemDone,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseQueued,
    StreamEvent,
    SubAgentEvent,
)
from dwctl_trio.domain.items import CallKind, ItemStatus, Message, ReasoningPart, TextPart
from dwctl_trio.domain.response import Cancelled, Completed, IncompleteReason, ResponseStatus
from dwctl_trio.domain.usage import Usage
from dwctl_trio.testing import example_runs
from dwctl_trio.testing.domain_strategies import runs, streams
from dwctl_trio.testing.example_runs import (
    AGENTS,
    CANCELLED,
    ERROR,
    EVERY_KIND,
    EXAMPLE_RUNS,
    FAILED_EMPTY,
    HANDED_OVER,
    MIXED,
    NEVER_RAN,
    SIBLINGS,
    SILENT,
    TOOLS_CANCELLED,
    TWO_TURNS,
    call,
    cut_short,
    opening,
    turn,
)
from dwctl_trio.testing.played_runs import Run, number

_TERMINAL = ResponseCompleted | ResponseIncomplete | ResponseFailed
_OUTCOME = McpCallCompleted | McpCallFailed


# -- valid streams


@pytest.mark.slow
@given(run=runs())
def test_every_stream_that_the_engine_can_emit_is_valid(run: Run) -> None:
    assert check_stream(run.events) is None


@pytest.mark.slow
@given(run=runs())
def test_a_valid_stream_has_one_terminal_event_and_it_is_the_last(run: Run) -> None:
    terminal = [index for index, numbered in enumerate(run.events) if isinstance(numbered.event, _TERMINAL)]
    assert terminal == [len(run.events) - 1]


@pytest.mark.slow
@given(events=streams(max_fragments=4))
def test_every_beginning_of_a_valid_stream_is_accepted_as_a_beginning_and_refused_as_a_whole(
    events: tuple[StreamEvent, ...],
) -> None:
    for length in range(len(events)):
        assert check_stream(events[:length], prefix=True) is None
        violation = check_stream(events[:length])
        assert violation is not None
        assert (violation.rule, violation.index, violation.sequence_number) == (Rule.ENDING, length, None)


@pytest.mark.parametrize("run", EXAMPLE_RUNS)
def test_the_example_runs_are_valid(run: Run) -> None:
    assert check_stream(run.events) is None


def test_a_response_may_end_in_the_queue_without_ever_having_run() -> None:
    assert [type(numbered.event) for numbered in NEVER_RAN.events] == [
        ResponseCreated,
        ResponseQueued,
        ResponseIncomplete,
    ]
    assert check_stream(NEVER_RAN.events) is None


def test_an_item_left_by_a_dead_attempt_may_stand_in_a_completed_response_that_was_queued() -> None:
    assert HANDED_OVER.response.output[0].status is ItemStatus.INCOMPLETE
    assert check_stream(HANDED_OVER.events) is None


def test_a_completed_response_may_have_calls_of_the_server_that_failed_or_were_not_made() -> None:
    statuses = [item.status for item in SIBLINGS.response.output]

    assert statuses == [ItemStatus.FAILED, ItemStatus.COMPLETED, ItemStatus.INCOMPLETE, ItemStatus.COMPLETED]
    assert SIBLINGS.response.status is ResponseStatus.COMPLETED
    assert check_stream(SIBLINGS.events) is None


def test_siblings_may_end_in_another_order_than_they_were_called() -> None:
    ended = [event.event.item_id for event in SIBLINGS.events if isinstance(event.event, _OUTCOME)]
    assert ended == [SIBLINGS.response.output[1].id, SIBLINGS.response.output[0].id]


def test_a_sub_agent_that_is_broken_off_may_leave_its_items_open() -> None:
    told = [event.event.event for event in TOOLS_CANCELLED.events if isinstance(event.event, SubAgentEvent)]

    assert any(isinstance(event, OutputItemAdded) for event in told)
    assert not any(isinstance(event, OutputItemDone) for event in told)
    assert check_stream(TOOLS_CANCELLED.events) is None


# -- the checker


@pytest.mark.slow
@given(run=runs(max_fragments=4, depth=0), place=st.integers(min_value=0))
def test_a_broken_stream_stays_broken(run: Run, place: int) -> None:
    events = [numbered.event for numbered in run.events]
    place %= len(events)
    broken = number([*events[:place], events[place - 1], *events[place - 1 :]])
    checker = StreamChecker()

    answers = [checker.check(event) for event in broken]

    first = next(answer for answer in answers if answer is not None)
    assert first == check_stream(broken)
    assert answers == [None] * first.index + [first] * (len(broken) - first.index)
    assert checker.finish() == first


@given(events=streams(max_fragments=4), place=st.integers(min_value=0), other=st.integers(min_value=-2, max_value=40))
def test_a_wrong_number_is_found_where_it_stands(events: tuple[StreamEvent, ...], place: int, other: int) -> None:
    place %= len(events)
    renumbered = [*events]
    renumbered[place] = attrs.evolve(events[place], sequence_number=other + (other >= place))

    violation = check_stream(renumbered)

    assert violation is not None
    assert (violation.rule, violation.index) == (Rule.NUMBERS, place)
    assert violation.sequence_number == other + (other >= place)


def test_a_violation_tells_the_rule_and_the_event_but_no_text_of_the_model() -> None:
    events = list(EVERY_KIND.events)
    place = next(index for index, numbered in enumerate(events) if isinstance(numbered.event, ContentDone))
    events[place] = attrs.evolve(events[place], event=attrs.evolve(events[place].event, text="secret"))

    violation = check_stream(events)

    assert violation is not None
    assert violation.rule is Rule.DONE
    assert violation.message.startswith("ContentDone: ")
    assert "secret" not in violation.message


# -- one example per rule

_Edit = Callable[[list[Event]], list[Event]]


def _edit(kind_of_event: type[Event], /, **fields: Any) -> _Edit:
    """Change fields of the first event of that kind; ``item__…``, ``part__…`` and ``response__…`` reach into it."""

    def edit(events: list[Event]) -> list[Event]:
        place = next(index for index, event in enumerate(events) if isinstance(event, kind_of_event))
        event: Any = events[place]
        for name, value in fields.items():
            outer, _, inner = name.partition("__")
            change = {outer: attrs.evolve(getattr(event, outer), **{inner: value})} if inner else {outer: value}
            event = attrs.evolve(event, **change)
        return [*events[:place], event, *events[place + 1 :]]

    return edit


def _drop(kind: type[Event]) -> _Edit:
    def drop(events: list[Event]) -> list[Event]:
        place = next(index for index, event in enumerate(events) if isinstance(event, kind))
        return [*events[:place], *events[place + 1 :]]

    return drop


def _replace(kind: type[Event], make: Callable[[Any], Event]) -> _Edit:
    def replace(events: list[Event]) -> list[Event]:
        place = next(index for index, event in enumerate(events) if isinstance(event, kind))
        return [*events[:place], make(events[place]), *events[place + 1 :]]

    return replace


def _repeat_at_the_end(kind: type[Event]) -> _Edit:
    def repeat(events: list[Event]) -> list[Event]:
        return [*events[:-1], next(event for event in events if isinstance(event, kind)), events[-1]]

    return repeat


def _empty_completed_message(events: list[Event]) -> list[Event]:
    opened = Message(id="msg_1", status=ItemStatus.IN_PROGRESS)
    closed = Message(id="msg_1", status=ItemStatus.COMPLETED)
    return _with_item(events, [OutputItemAdded(0, opened), OutputItemDone(0, closed)], closed)


def _empty_completed_part(events: list[Event]) -> list[Event]:
    opened = Message(id="msg_1", status=ItemStatus.IN_PROGRESS)
    part = TextPart(text="")
    closed = Message(id="msg_1", status=ItemStatus.COMPLETED, content=(part,))
    item_events: list[Event] = [
        OutputItemAdded(0, opened),
        ContentPartAdded(0, "msg_1", 0, part),
        ContentDone(ContentKind.TEXT, 0, "msg_1", 0, ""),
        ContentPartDone(0, "msg_1", 0, part),
        OutputItemDone(0, closed),
    ]
    return _with_item(events, item_events, closed)


def _with_item(events: list[Event], item_events: list[Event], item: Message) -> list[Event]:
    terminal = events[-1]
    assert isinstance(terminal, _TERMINAL)
    ended = attrs.evolve(terminal, response=attrs.evolve(terminal.response, output=(item,)))
    return [*events[:-1], *item_events, ended]


def _as_limited(events: list[Event]) -> list[Event]:
    fields = {
        "response__status": ResponseStatus.INCOMPLETE,
        "response__incomplete_reason": IncompleteReason.CONTENT_FILTER,
    }
    return _edit(ResponseIncomplete, **fields)(events)


_OTHER_REQUEST = attrs.evolve(opening().request, model="other")
_RULE_EXAMPLES: Sequence[tuple[str, Rule, Run, _Edit]] = [
    ("no_created", Rule.STREAM_ORDER, SILENT, _drop(ResponseCreated)),
    ("no_in_progress", Rule.STREAM_ORDER, SILENT, _drop(ResponseInProgress)),
    ("no_queued", Rule.STREAM_ORDER, HANDED_OVER, _drop(ResponseQueued)),
    ("two_terminals", Rule.STREAM_ORDER, SILENT, lambda events: [*events, events[-1]]),
    ("created_completed", Rule.SNAPSHOT, SILENT, _edit(ResponseCreated, response__status=ResponseStatus.COMPLETED)),
    (
        "early_usage",
        Rule.SNAPSHOT,
        SILENT,
        _edit(ResponseCreated, response__usage=Usage(input_tokens=1, output_tokens=1)),
    ),
    ("early_error", Rule.SNAPSHOT, SILENT, _edit(ResponseInProgress, response__error=ERROR)),
    ("early_output", Rule.SNAPSHOT, SILENT, _edit(ResponseInProgress, response__output=EVERY_KIND.response.output)),
    ("other_id", Rule.IDENTITY, SILENT, _edit(ResponseInProgress, response__id=UUID(int=8))),
    ("other_time", Rule.IDENTITY, SILENT, _edit(ResponseInProgress, response__created_at=101)),
    ("other_request", Rule.IDENTITY, SILENT, _edit(ResponseCompleted, response__request=_OTHER_REQUEST)),
    ("other_tools", Rule.IDENTITY, SILENT, _edit(ResponseCompleted, response__tools=())),
    ("index_skipped", Rule.ITEM_ADDED, EVERY_KIND, _edit(OutputItemAdded, output_index=1)),
    ("added_done", Rule.ITEM_ADDED, EVERY_KIND, _edit(OutputItemAdded, item__status=ItemStatus.COMPLETED)),
    ("added_full", Rule.ITEM_ADDED, TWO_TURNS, _edit(OutputItemAdded, item__arguments="{}")),
    ("nameless_call", Rule.ITEM_ADDED, TWO_TURNS, _edit(OutputItemAdded, item__name="")),
    ("call_without_id", Rule.ITEM_ADDED, TWO_TURNS, _edit(OutputItemAdded, item__call_id="")),
    ("unknown_index", Rule.ITEM_ADDRESS, EVERY_KIND, _edit(ContentDelta, output_index=9)),
    ("negative_index", Rule.ITEM_ADDRESS, EVERY_KIND, _edit(ContentDelta, output_index=-1)),
    ("foreign_id", Rule.ITEM_ADDRESS, EVERY_KIND, _edit(ArgumentsDelta, item_id="msg_9")),
    ("no_part_added", Rule.ITEM_ORDER, EVERY_KIND, _drop(ContentPartAdded)),
    ("no_content_done", Rule.ITEM_ORDER, EVERY_KIND, _drop(ContentDone)),
    ("no_part_done", Rule.ITEM_ORDER, EVERY_KIND, _drop(ContentPartDone)),
    ("no_arguments_done", Rule.ITEM_ORDER, TWO_TURNS, _drop(ArgumentsDone)),
    ("no_call_in_progress", Rule.ITEM_ORDER, TWO_TURNS, _drop(McpCallInProgress)),
    ("call_outcome_twice", Rule.ITEM_ORDER, TWO_TURNS, _repeat_at_the_end(McpCallCompleted)),
    ("call_progress_twice", Rule.ITEM_ORDER, TWO_TURNS, _repeat_at_the_end(McpCallInProgress)),
    ("part_index", Rule.PART_ADDED, EVERY_KIND, _edit(ContentPartAdded, content_index=1)),
    ("text_in_reasoning", Rule.PART_ADDED, EVERY_KIND, _edit(ContentPartAdded, part=TextPart(text=""))),
    ("part_with_text", Rule.PART_ADDED, EVERY_KIND, _edit(ContentPartAdded, part__text="a")),
    ("empty_delta", Rule.DELTA, EVERY_KIND, _edit(ContentDelta, delta="")),
    ("empty_arguments", Rule.DELTA, EVERY_KIND, _edit(ArgumentsDelta, delta="")),
    ("delta_kind", Rule.DELTA, EVERY_KIND, _edit(ContentDelta, kind=ContentKind.TEXT)),
    ("delta_place", Rule.DELTA, EVERY_KIND, _edit(ContentDelta, content_index=1)),
    ("arguments_kind", Rule.DELTA, TWO_TURNS, _edit(ArgumentsDelta, kind=CallKind.FUNCTION)),
    ("done_kind", Rule.DONE, TWO_TURNS, _edit(ArgumentsDone, kind=CallKind.CUSTOM)),
    ("done_text", Rule.DONE, EVERY_KIND, _edit(ContentDone, text="other")),
    ("done_part", Rule.DONE, EVERY_KIND, _edit(ContentPartDone, part__text="other")),
    ("done_arguments", Rule.DONE, EVERY_KIND, _edit(ArgumentsDone, arguments="other")),
    ("done_name", Rule.DONE, EVERY_KIND, _edit(ArgumentsDone, name="other")),
    ("delta_changed", Rule.DONE, EVERY_KIND, _edit(ContentDelta, delta="other")),
    ("item_in_progress", Rule.ITEM_DONE, EVERY_KIND, _edit(OutputItemDone, item__status=ItemStatus.IN_PROGRESS)),
    ("item_without_parts", Rule.ITEM_DONE, EVERY_KIND, _edit(OutputItemDone, item__content=())),
    ("item_other_part", Rule.ITEM_DONE, EVERY_KIND, _edit(OutputItemDone, item__content=(ReasoningPart(text="m"),))),
    ("item_other_arguments", Rule.ITEM_DONE, TWO_TURNS, _edit(OutputItemDone, item__arguments="{")),
    ("item_other_call", Rule.ITEM_DONE, TWO_TURNS, _edit(OutputItemDone, item__call_id="call_9")),
    ("no_call_outcome", Rule.ITEM_DONE, TWO_TURNS, _drop(McpCallCompleted)),
    (
        "other_call_outcome",
        Rule.ITEM_DONE,
        TWO_TURNS,
        _replace(McpCallCompleted, lambda event: McpCallFailed(event.output_index, event.item_id)),
    ),
    ("call_without_output", Rule.ITEM_DONE, TWO_TURNS, _edit(OutputItemDone, item__output=None)),
    ("completed_call_with_error", Rule.ITEM_DONE, TWO_TURNS, _edit(OutputItemDone, item__error="no")),
    ("call_not_made_with_output", Rule.ITEM_DONE, SIBLINGS, _edit(OutputItemDone, item__output="x")),
    ("call_not_made_completed", Rule.ITEM_DONE, SIBLINGS, _edit(OutputItemDone, item__status=ItemStatus.COMPLETED)),
    ("clients_call_failed", Rule.ITEM_DONE, MIXED, _edit(OutputItemDone, item__status=ItemStatus.FAILED)),
    ("agent_of_no_call", Rule.SUB_AGENT, AGENTS, _edit(SubAgentEvent, item_id="mcp_9")),
    ("agent_of_another_name", Rule.SUB_AGENT, AGENTS, _edit(SubAgentEvent, agent_name="search")),
    ("agent_after_its_call", Rule.SUB_AGENT, AGENTS, _repeat_at_the_end(SubAgentEvent)),
    ("agents_own_index", Rule.ITEM_ADDED, AGENTS, _edit(SubAgentEvent, event__output_index=1)),
    ("empty_message", Rule.ITEM_DONE, SILENT, _empty_completed_message),
    ("empty_part", Rule.ITEM_DONE, SILENT, _empty_completed_part),
    ("open_item", Rule.OPEN_ITEM, TWO_TURNS, _drop(OutputItemDone)),
    ("no_output", Rule.OUTPUT, EVERY_KIND, _edit(ResponseCompleted, response__output=())),
    ("no_end", Rule.OUTCOME, SILENT, _edit(ResponseCompleted, response__completed_at=None)),
    ("completed_error", Rule.OUTCOME, SILENT, _edit(ResponseCompleted, response__error=ERROR)),
    ("failed_status", Rule.OUTCOME, SILENT, _edit(ResponseCompleted, response__status=ResponseStatus.FAILED)),
    ("no_error", Rule.OUTCOME, FAILED_EMPTY, _edit(ResponseFailed, response__error=None)),
    ("no_reason", Rule.OUTCOME, TWO_TURNS, _edit(ResponseIncomplete, response__incomplete_reason=None)),
    ("queue_limit", Rule.OUTCOME, NEVER_RAN, _as_limited),
    (
        "queue_usage",
        Rule.OUTCOME,
        NEVER_RAN,
        _edit(ResponseIncomplete, response__usage=Usage(input_tokens=1, output_tokens=1)),
    ),
]


@pytest.mark.parametrize(("rule", "run", "edit"), [pytest.param(*rest, id=name) for name, *rest in _RULE_EXAMPLES])
def test_a_stream_that_breaks_a_rule_is_told_which(rule: Rule, run: Run, edit: _Edit) -> None:
    assert check_stream(run.events) is None

    broken = number(edit([numbered.event for numbered in run.events]))
    violation = check_stream(broken)

    assert violation is not None
    assert violation.rule is rule
    assert check_stream(broken, prefix=True) == violation


def test_a_completed_response_that_was_never_queued_has_no_incomplete_item() -> None:
    events = [numbered.event for numbered in CANCELLED.events]
    completed = attrs.evolve(events[-1].response, status=ResponseStatus.COMPLETED, completed_at=101)

    violation = check_stream(number([*events[:-1], ResponseCompleted(completed)]))

    assert violation is not None
    assert violation.rule is Rule.ITEM_OUTCOME


def test_two_items_cannot_share_an_id() -> None:
    events = [numbered.event for numbered in example_runs.run(Completed(), turn(call(0, ""), call(1, ""))).events]
    taken = events[2].item.id

    violation = check_stream(
        number([*events[:3], attrs.evolve(events[3], item=attrs.evolve(events[3].item, id=taken))])
    )

    assert violation is not None
    assert violation.rule is Rule.ITEM_ADDED


def test_a_sub_agents_item_cannot_have_the_id_of_one_of_the_responses() -> None:
    events = [numbered.event for numbered in AGENTS.events]
    taken = AGENTS.response.output[1].id
    place = next(index for index, event in enumerate(events) if isinstance(event, SubAgentEvent))
    added = events[place].event

    events[place] = attrs.evolve(events[place], event=attrs.evolve(added, item=attrs.evolve(added.item, id=taken)))
    violation = check_stream(number(events))

    assert violation is not None
    assert (violation.rule, violation.index) == (Rule.ITEM_ADDED, place)


def test_an_incomplete_item_may_be_empty_for_it_was_cut_before_its_first_delta() -> None:
    events = [numbered.event for numbered in example_runs.run(Cancelled(), cut_short()).events]
    opened = Message(id="msg_1", status=ItemStatus.IN_PROGRESS)
    closed = attrs.evolve(opened, status=ItemStatus.INCOMPLETE)

    whole = _with_item(events, [OutputItemAdded(0, opened), OutputItemDone(0, closed)], closed)

    assert check_stream(number(whole)) is None
