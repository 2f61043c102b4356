"""The events of what is already there: what a stream has still to say to be where a chain is.

Rule 1: what was told is not told again; what is missing follows it, item by item.
Rule 2: the grammar holds, and it folds to the chain's output; only where one delta ended and the next began is lost.
"""

from collections.abc import Sequence
from typing import assert_never

from dwctl_trio.domain.assembly import chain_items, running_calls
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
    McpCallInProgress,
    OutputItemAdded,
    OutputItemDone,
    SubAgentEvent,
)
from dwctl_trio.domain.item_grammar import as_added
from dwctl_trio.domain.items import (
    ContentPart,
    CustomToolCall,
    FunctionCall,
    McpCall,
    Message,
    OutputItem,
    Reasoning,
    ReasoningPart,
    RefusalPart,
    TextPart,
    call_kind,
)
from dwctl_trio.domain.steps import Chain, Step, ToolCall
from dwctl_trio.domain.told import NOTHING_TOLD, Told, ToldItem
from dwctl_trio.domain.turn_output import close_call, make_part


def retell(chain: Chain, agents: Chain = (), told: Told = NOTHING_TOLD) -> list[ItemEvent | SubAgentEvent]:
    """The events of the items of *chain* that were not told; calls whose tools have not ended stay open.

    Args:
        chain: The steps of one loop, as ``recover_chain`` left them.
        agents: Steps of which those under *chain* are told as the sub-agents that they belong to; none: they are not.
        told: What the stream has said.
    """
    return _retell_loop(chain, agents, told, told.items)


def _retell_loop(chain: Chain, agents: Chain, told: Told, heard: Sequence[ToldItem]) -> list[ItemEvent | SubAgentEvent]:
    """The events of the items of *chain*, of which *heard* were told."""
    running = {index for index, _ in running_calls(chain).values()}
    events: list[ItemEvent | SubAgentEvent] = []
    for index, (item, step) in enumerate(chain_items(chain)):
        begun, ended = _retell_item(index, item)
        if index in running:
            ended = []
        missing = _missing([*begun, *ended], heard[index] if index < len(heard) else None)
        ends_at = len(missing) - len(ended)
        if step is not None and ends_at >= 0:  # once a call is said to have ended, nobody hears of what went on inside
            missing[ends_at:ends_at] = _retell_agent(item.id, step, agents, told)
        events += missing
    return events


def _missing(events: list[ItemEvent], told: ToldItem | None) -> list[ItemEvent | SubAgentEvent]:
    """What *events*, all those of an item, say beyond what was *told* of it."""
    if told is None:
        return [*events]
    missing: list[ItemEvent | SubAgentEvent] = []
    passed = 0
    for event in events:
        if isinstance(event, ContentDelta | ArgumentsDelta):
            if passed == told.events:
                event = _rest_of(event, told)  # noqa: PLW2901
            if passed >= told.events and event.delta:
                missing.append(event)
        elif isinstance(event, AnnotationAdded):
            heard = len(told.last_text.annotations) if passed == told.events and told.last_text else 0
            if passed >= told.events and event.annotation_index >= heard:
                missing.append(event)
        else:
            passed += 1
            if passed > told.events:
                missing.append(event)
    return missing


def _rest_of(event: ContentDelta | ArgumentsDelta, told: ToldItem) -> ContentDelta | ArgumentsDelta:
    """*event*, all of a part or of the arguments, without what was *told* of it."""
    assert event.delta.startswith(told.text), "what was told is the beginning of what is stored"
    text = event.delta[len(told.text) :]
    if isinstance(event, ArgumentsDelta):
        return ArgumentsDelta(event.kind, event.output_index, event.item_id, text)
    logprobs = event.logprobs
    if logprobs and told.last_text is not None:
        logprobs = logprobs[len(told.last_text.logprobs) :]
    return ContentDelta(event.kind, event.output_index, event.item_id, event.content_index, text, logprobs)


def _retell_agent(item_id: str, step: Step, agents: Chain, told: Told) -> list[SubAgentEvent]:
    """The events of the sub-agent that *step* is, shown as the item *item_id*."""
    assert isinstance(step.descriptor, ToolCall), "only tools are agents"
    name = step.descriptor.name
    own = [inner for inner in agents if inner.parent_step_id == step.id]
    return [
        event if isinstance(event, SubAgentEvent) else SubAgentEvent(name, item_id, event)
        for event in _retell_loop(own, agents, told, told.agents.get(item_id, ()))
    ]


def _retell_item(index: int, item: OutputItem) -> tuple[list[ItemEvent], list[ItemEvent]]:
    """The events of *item*, and those that end it."""
    events: list[ItemEvent] = [OutputItemAdded(index, as_added(item))]
    match item:
        case Message() | Reasoning():
            for place, part in enumerate(item.content):
                events += _retell_part(index, item.id, place, part)
        case FunctionCall() | CustomToolCall() | McpCall():
            kind = call_kind(item)
            if isinstance(item, McpCall):
                events.append(McpCallInProgress(index, item.id))
            if item.arguments:
                events.append(ArgumentsDelta(kind, index, item.id, item.arguments))
            events.append(ArgumentsDone(kind, index, item.id, item.name, item.arguments))
        case _ as never:
            assert_never(never)
    return events, close_call(index, item) if isinstance(item, McpCall) else [OutputItemDone(index, item)]


def _retell_part(index: int, item_id: str, place: int, part: ContentPart) -> list[ItemEvent]:
    logprobs: tuple[bytes, ...] = ()
    annotations: tuple[bytes, ...] = ()
    match part:
        case TextPart(text=text, annotations=annotations, logprobs=logprobs):
            kind = ContentKind.TEXT
        case RefusalPart(refusal=text):
            kind = ContentKind.REFUSAL
        case ReasoningPart(text=text):
            kind = ContentKind.REASONING
        case _ as never:
            assert_never(never)
    events: list[ItemEvent] = [ContentPartAdded(index, item_id, place, make_part(kind, ""))]
    if text:
        events.append(ContentDelta(kind, index, item_id, place, text, logprobs))
    events += [AnnotationAdded(index, item_id, place, *numbered) for numbered in enumerate(annotations)]
    done = ContentDone(kind, index, item_id, place, text, logprobs)
    return [*events, done, ContentPartDone(index, item_id, place, part)]
