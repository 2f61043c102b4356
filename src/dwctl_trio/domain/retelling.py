"""The events of what is already there: a chain told again to somebody who has heard nothing of it.

Rule: the grammar holds, and it folds to the chain's output; only where one delta ended and the next began is lost.
"""

from typing import assert_never

from dwctl_trio.domain.assembly import chain_items, running_calls
from dwctl_trio.domain.events import (
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
from dwctl_trio.domain.turn_output import close_call, make_part


def retell(chain: Chain, agents: Chain = ()) -> list[ItemEvent | SubAgentEvent]:
    """The events of all items of *chain*; calls whose tools have not ended stay open.

    Args:
        chain: The steps of one loop.
        agents: Steps of which those under *chain* are told as the sub-agents that they belong to; none: they are not.
    """
    running = {index for index, _ in running_calls(chain).values()}
    events: list[ItemEvent | SubAgentEvent] = []
    for index, (item, step) in enumerate(chain_items(chain)):
        begun, ended = _retell_item(index, item)
        inside = [] if step is None else _retell_agent(item.id, step, agents)
        events += [*begun, *inside, *([] if index in running else ended)]
    return events


def _retell_agent(item_id: str, step: Step, agents: Chain) -> list[SubAgentEvent]:
    """The events of the sub-agent that *step* is, shown as the item *item_id*."""
    assert isinstance(step.descriptor, ToolCall), "only tools are agents"
    name = step.descriptor.name
    own = [inner for inner in agents if inner.parent_step_id == step.id]
    return [
        event if isinstance(event, SubAgentEvent) else SubAgentEvent(name, item_id, event)
        for event in retell(own, agents)
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
    match part:
        case TextPart(text=text):
            kind = ContentKind.TEXT
        case RefusalPart(refusal=text):
            kind = ContentKind.REFUSAL
        case ReasoningPart(text=text):
            kind = ContentKind.REASONING
        case _ as never:
            assert_never(never)
    events: list[ItemEvent] = [ContentPartAdded(index, item_id, place, make_part(kind, ""))]
    if text:
        events.append(ContentDelta(kind, index, item_id, place, text))
    return [*events, ContentDone(kind, index, item_id, place, text), ContentPartDone(index, item_id, place, part)]
