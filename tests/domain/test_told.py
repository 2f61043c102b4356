"""What a stream has said, summed up: how far each of its items is, wherever it stops."""

import pytest
from hypothesis import example, given
from tests.domain.successor import as_told

from dwctl_trio.domain.assembly import fold
from dwctl_trio.domain.events import (
    AnnotationAdded,
    ArgumentsDelta,
    ContentDelta,
    Event,
    OutputItemAdded,
    ResponseCreated,
    ResponseInProgress,
    ResponseQueued,
    SubAgentEvent,
)
from dwctl_trio.domain.items import ItemStatus, Message, TextPart
from dwctl_trio.domain.told import NOTHING_TOLD, Told, ToldItem, told_by
from dwctl_trio.testing.domain_strategies import runs
from dwctl_trio.testing.example_runs import AGENTS, EVERY_KIND, HANDED_OVER
from dwctl_trio.testing.played_runs import Run

_UNCOUNTED = (ContentDelta, ArgumentsDelta, AnnotationAdded)


@pytest.mark.slow
@given(run=runs())
@example(run=EVERY_KIND)
@example(run=AGENTS)
def test_what_was_told_adds_up_as_a_client_adds_it_up(run: Run) -> None:
    events = [numbered.event for numbered in run.events]
    for said in range(1, len(events) + 1):
        told = told_by(as_told(events[:said]))

        assert tuple(item.item for item in told.items) == fold(events[:said]).output or said == len(events)
        assert told.is_in_progress is any(isinstance(event, ResponseInProgress) for event in events[:said])
    whole = told_by(as_told(events))
    assert tuple(item.item for item in whole.items) == run.response.output
    assert all(item.is_whole for item in whole.items)


@pytest.mark.slow
@given(run=runs())
def test_every_event_of_an_item_is_counted_or_one_that_only_adds_to_its_text(run: Run) -> None:
    events = [numbered.event for numbered in run.events]
    told = told_by(as_told(events))
    marks: dict[tuple[str, int], int] = {}
    for event in events:
        inside, agent = (event.event, event.item_id) if isinstance(event, SubAgentEvent) else (event, "")
        if hasattr(inside, "output_index") and not isinstance(inside, _UNCOUNTED):
            marks[agent, inside.output_index] = marks.get((agent, inside.output_index), 0) + 1

    counted = {("", index): item.events for index, item in enumerate(told.items)}
    for agent, items in told.agents.items():
        counted |= {(agent, index): item.events for index, item in enumerate(items)}
    assert counted == marks


def test_the_text_of_an_open_part_is_what_was_told_since_it_began() -> None:
    events: list[Event] = [numbered.event for numbered in HANDED_OVER.events]
    delta = next(place for place, event in enumerate(events) if isinstance(event, ContentDelta))
    first, kind = events[delta], events[delta].kind  # type: ignore[union-attr]
    more = ContentDelta(kind, 0, first.item_id, 0, "llo")  # type: ignore[union-attr]

    (item,) = told_by(as_told([*events[: delta + 1], more])).items

    folded = Message(id=item.item.id, status=ItemStatus.IN_PROGRESS, content=(TextPart(text="hallo"),))
    assert item == ToldItem(item=folded, events=2, text="hallo")
    assert not item.is_whole


def test_before_the_work_begins_nothing_is_told() -> None:
    opening = HANDED_OVER.opening

    assert told_by(as_told([ResponseCreated(opening), ResponseQueued(opening)])) == NOTHING_TOLD == Told()
    assert told_by([ResponseInProgress]) == Told(is_in_progress=True)
    assert not any(isinstance(event, OutputItemAdded) for event in as_told([ResponseCreated(opening)]))
