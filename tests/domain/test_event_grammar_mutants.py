"""Every stream that differs from a valid one in one event is noticed, unless it says the same.

What a mutant says is computed here, by a fold of its own that shares nothing with ``domain/assembly.py`` and takes
output from item events only, never from a snapshot.

A mutant that passes both the grammar and the fold must *say the same*, which means exactly one of:

1. Its item events are interleaved differently, each item's own events in their own order, and text is cut into
   deltas, and annotated between them, differently. The sequence of snapshots and the order in which items were added
   are the original's; so it is for the items of each sub-agent.
2. It lacks the ``ResponseInProgress`` of a queued response that failed or was cancelled without output and usage:
   whether work had begun is not told.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import pytest
from hypothesis import example, given

from dwctl_trio.domain.event_grammar import check_stream
from dwctl_trio.domain.event_rules import Rule
from dwctl_trio.domain.events import (
    AnnotationAdded,
    ArgumentsDelta,
    ContentDelta,
    ContentPartAdded,
    Event,
    ItemEvent,
    McpCallCompleted,
    McpCallFailed,
    OutputItemAdded,
    OutputItemDone,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseQueued,
    SubAgentEvent,
)
from dwctl_trio.domain.items import McpCall, ToolCallItem
from dwctl_trio.domain.response import ResponseStatus
from dwctl_trio.testing.domain_strategies import runs
from dwctl_trio.testing.example_runs import (
    AGENTS,
    CANCELLED,
    CITED,
    EVERY_KIND,
    FAILED_EMPTY,
    HANDED_OVER,
    MIXED,
    NEVER_RAN,
    SIBLINGS,
    TOOLS_CANCELLED,
    TWO_TURNS,
)
from dwctl_trio.testing.played_runs import Run, number
from dwctl_trio.testing.stream_mutants import MutantKind, mutants

_TERMINAL = ResponseCompleted | ResponseIncomplete | ResponseFailed
_SNAPSHOT = ResponseCreated | ResponseQueued | ResponseInProgress | _TERMINAL


@pytest.mark.slow
def test_every_mutant_of_a_valid_stream_is_noticed_unless_it_says_the_same() -> None:
    noticed: Counter[tuple[MutantKind, str]] = Counter()
    rules: set[Rule] = set()

    @given(run=runs(max_fragments=2, depth=0))
    @example(run=EVERY_KIND)
    @example(run=TWO_TURNS)
    @example(run=SIBLINGS)
    @example(run=MIXED)
    @example(run=AGENTS)
    @example(run=TOOLS_CANCELLED)
    @example(run=HANDED_OVER)
    @example(run=FAILED_EMPTY)
    @example(run=CITED)
    @example(run=CANCELLED)
    @example(run=NEVER_RAN)
    def try_all_mutants_of_one(run: Run) -> None:
        events = tuple(numbered.event for numbered in run.events)
        original_meaning, original_orders = _meaning(events), _told_orders(events)
        for mutant in mutants(events):
            violation = check_stream(number(mutant.events))
            if violation is not None:
                rules.add(violation.rule)
                noticed[mutant.kind, "grammar"] += 1
            elif _meaning(mutant.events) != original_meaning:
                noticed[mutant.kind, "fold"] += 1
            else:
                noticed[mutant.kind, "same"] += 1
                assert _told_orders(mutant.events) in _said_the_same(original_orders, run), mutant

    try_all_mutants_of_one()

    _print_table(noticed)
    assert rules >= set(Rule) - {Rule.NUMBERS, Rule.ITEM_OUTCOME}, "mutants are renumbered and single"
    assert all(noticed[kind, "grammar"] > 100 for kind in MutantKind)
    assert noticed[MutantKind.ALTER, "fold"] > 100


def _print_table(noticed: Counter[tuple[MutantKind, str]]) -> None:
    sys.stdout.write("\nmutants noticed by the grammar, by the fold, and those that say the same:\n")
    for kind in MutantKind:
        counts = "".join(f"{noticed[kind, by]:9}" for by in ("grammar", "fold", "same"))
        sys.stdout.write(f"{kind:14}{counts}\n")


def _outputs(events: Iterable[Event]) -> dict[tuple[str, str], list[ItemEvent]]:
    """The item events of the response, and those of each sub-agent under its item and name."""
    outputs: dict[tuple[str, str], list[ItemEvent]] = {("", ""): []}
    for event in events:
        match event:
            case SubAgentEvent(name, item_id, inner):
                outputs.setdefault((item_id, name), []).append(inner)
            case _ if not isinstance(event, _SNAPSHOT):
                outputs["", ""].append(event)
    return outputs


def _meaning(events: Sequence[Event]) -> object:
    """What *events* add up to for a client: output from item events alone, the outcome from the terminal event."""
    outcome = [attrs.evolve(event.response, output=()) for event in events if isinstance(event, _TERMINAL)]
    return {key: _add_up(output) for key, output in _outputs(events).items()}, outcome


def _add_up(events: Sequence[ItemEvent]) -> list[list[Any]]:
    items: dict[int, list[Any]] = {}
    for event in events:
        match event:
            case OutputItemAdded(index, item) if isinstance(item, ToolCallItem):
                items[index] = [type(item), item.id, item.call_id, item.name, "", None, None]
            case OutputItemAdded(index, item):
                items[index] = [type(item), item.id, [], None, None]
            case ContentPartAdded(index, _, _, part):
                items[index][2].append([type(part), "", (), ()])
            case ContentDelta(_, index, _, content_index, delta, logprobs):
                items[index][2][content_index][1] += delta
                items[index][2][content_index][2] += logprobs
            case AnnotationAdded(index, _, content_index, _, annotation):
                items[index][2][content_index][3] += (annotation,)
            case ArgumentsDelta(_, index, _, delta):
                items[index][4] += delta
            case McpCallCompleted(index) | McpCallFailed(index):
                items[index][-2] = type(event)
            case OutputItemDone(index, item):
                outcome = (item.output, item.error) if isinstance(item, McpCall) else None
                items[index][-1] = item.status, outcome
    return [items[index] for index in sorted(items)]


_Orders = tuple[list[Event], dict[tuple[str, str], tuple[list[ItemEvent], dict[int, list[ItemEvent]]]]]


def _told_orders(events: Sequence[Event]) -> _Orders:
    """The snapshots, and of each output the added items, and each item's own events with its deltas joined."""
    snapshots = [event for event in events if isinstance(event, _SNAPSHOT)]
    return snapshots, {key: _told_of(output) for key, output in _outputs(events).items()}


def _told_of(events: Sequence[ItemEvent]) -> tuple[list[ItemEvent], dict[int, list[ItemEvent]]]:
    added: list[ItemEvent] = [event for event in events if isinstance(event, OutputItemAdded)]
    own: dict[int, list[ItemEvent]] = {event.output_index: [] for event in added}
    for event in events:
        told = own[event.output_index]
        if isinstance(event, ContentDelta | ArgumentsDelta):
            _tell_delta(told, event)
        else:
            told.append(event)
    return added, own


def _tell_delta(told: list[ItemEvent], event: ContentDelta | ArgumentsDelta) -> None:
    """Join *event* to the delta that *told* ends with; where between deltas a text is annotated says nothing."""
    at = len(told)
    while at and isinstance(told[at - 1], AnnotationAdded):
        at -= 1
    last = told[at - 1] if at else None
    if type(last) is not type(event):
        told.insert(at, event)
        return
    joined = attrs.evolve(last, delta=last.delta + event.delta)
    if isinstance(joined, ContentDelta):
        joined = attrs.evolve(joined, logprobs=last.logprobs + event.logprobs)
    told[at - 1] = joined


def _said_the_same(orders: _Orders, run: Run) -> list[_Orders]:
    """The orders that a mutant with the original's meaning may have: points 1 and 2 of this module's docstring."""
    snapshots, outputs = orders
    queued = run.opening.status is ResponseStatus.QUEUED
    ended_early = run.response.status in {ResponseStatus.FAILED, ResponseStatus.CANCELLED}
    if queued and ended_early and not run.response.output and run.response.usage is None:
        unbegun = [event for event in snapshots if not isinstance(event, ResponseInProgress)]
        return [orders, (unbegun, outputs)]
    return [orders]
