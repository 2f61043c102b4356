"""Two ways to the same response: from the stored chain, and from the streamed events.

Rule: ``fold(events) == assemble(…chain…)`` for every run; what was streamed is what GET returns.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import assert_never

import attrs

from dwctl_trio.domain.events import (
    AnnotationAdded,
    ArgumentsDelta,
    ArgumentsDone,
    ContentDelta,
    ContentDone,
    ContentPartAdded,
    ContentPartDone,
    Event,
    ItemEvent,
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
    SubAgentEvent,
    TerminalEvent,
)
from dwctl_trio.domain.items import (
    ContentPart,
    ItemStatus,
    McpCall,
    Message,
    OutputItem,
    Reasoning,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallItem,
)
from dwctl_trio.domain.response import (
    Cancelled,
    Completed,
    Ending,
    Failed,
    Incomplete,
    Response,
    ResponseStatus,
)
from dwctl_trio.domain.steps import Chain, Step, StepState, ToolCall, ToolOutput
from dwctl_trio.domain.transitions import is_superseded
from dwctl_trio.domain.turn import ModelTurn
from dwctl_trio.domain.usage import total_usage


def assemble(opening: Response, chain: Chain, ending: Ending, *, ended_at: int) -> Response:
    """The final response that *chain* amounts to.

    Args:
        opening: The response as it was created; identity and request are taken from it.
        chain: All steps, each terminal; a cut-short model call keeps the part it had in its result. Those of
            sub-agents count for the usage, not for the output.
        ending: How it ended.
        ended_at: Unix seconds; used only for a completed response.
    """
    end = partial(
        attrs.evolve,
        opening,
        output=chain_output([step for step in chain if step.parent_step_id is None]),
        usage=total_usage(step.result.usage for step in chain if isinstance(step.result, ModelTurn)),
    )
    match ending:
        case Completed():
            return end(status=ResponseStatus.COMPLETED, completed_at=ended_at)
        case Incomplete(reason=reason):
            return end(status=ResponseStatus.INCOMPLETE, incomplete_reason=reason)
        case Failed(error=error):
            return end(status=ResponseStatus.FAILED, error=error)
        case Cancelled():
            return end(status=ResponseStatus.CANCELLED)
        case _ as never:
            assert_never(never)


def chain_output(chain: Chain) -> tuple[OutputItem, ...]:
    """The items of one loop in order, the calls of server tools with what became of them."""
    return tuple(item for item, _ in chain_items(chain))


def output_length(chain: Chain) -> int:
    """How many items ``chain_output`` has."""
    return sum(len(step.result.items) for step in chain if isinstance(step.result, ModelTurn))


def history_output(chain: Chain) -> tuple[OutputItem, ...]:
    """Of ``chain_output`` what the model is shown when it is asked again: nothing of a superseded turn."""
    return chain_output([step for step in chain if not is_superseded(step)])


def chain_items(chain: Chain) -> Iterator[tuple[OutputItem, Step | None]]:
    """The items of ``chain_output``, each call of a server tool with the step that it is, if it has one."""
    for place, step in enumerate(chain):
        if isinstance(step.result, ModelTurn):
            outcomes = _outcomes(chain, place)
            for item in step.result.items:
                outcome = outcomes.get(item.call_id) if isinstance(item, McpCall) else None
                yield (end_call(item, outcome) if isinstance(item, McpCall) else item), outcome


def running_calls(chain: Chain) -> dict[str, tuple[int, McpCall]]:
    """The calls of the last turn whose tools have not ended, with their places in the output, by call id.

    All steps that follow from a turn are stored together: a call that then has none is never made.
    """
    place = next((at for at in reversed(range(len(chain))) if isinstance(chain[at].result, ModelTurn)), None)
    if place is None or is_superseded(chain[place]):
        return {}
    turn = chain[place].result
    assert isinstance(turn, ModelTurn), "that is how it was found"
    first = output_length(chain) - len(turn.items)
    outcomes = _outcomes(chain, place)
    return {
        item.call_id: (index, item)
        for index, item in enumerate(turn.items, start=first)
        if isinstance(item, McpCall) and item.status is ItemStatus.IN_PROGRESS
        and (outcomes[item.call_id].is_open if item.call_id in outcomes else place == len(chain) - 1)
    }  # fmt: skip


def end_call(call: McpCall, step: Step | None) -> McpCall:
    """*call* as it ends when its step is *step*; without one that has come to an end of its own, it is incomplete."""
    output, error = call.output, call.error
    if step is None or step.is_open or step.state is StepState.CANCELED:
        status = ItemStatus.INCOMPLETE
    elif step.state is StepState.FAILED:
        assert step.error is not None, "a failed step has an error"
        status, error = ItemStatus.FAILED, step.error.message
    else:
        assert isinstance(step.result, ToolOutput), "a completed tool step has an output"
        status, output = ItemStatus.COMPLETED, step.result.output
    # Not evolved, which costs four times as much: all calls of a response are ended anew for each of its turns.
    return McpCall(
        id=call.id,
        status=status,
        call_id=call.call_id,
        name=call.name,
        arguments=call.arguments,
        output=output,
        error=error,
    )


def _outcomes(chain: Chain, place: int) -> dict[str, Step]:
    """The tool steps between the turn at *place* and the next, by the call they answer."""
    outcomes: dict[str, Step] = {}
    for at in range(place + 1, len(chain)):
        step = chain[at]
        if not isinstance(step.descriptor, ToolCall):
            break
        outcomes[step.descriptor.call_id] = step
    return outcomes


def terminal_event(response: Response) -> TerminalEvent:
    """The event that ends the stream of *response*, which must be in a terminal status."""
    match response.status:
        case ResponseStatus.COMPLETED:
            return ResponseCompleted(response)
        case ResponseStatus.INCOMPLETE | ResponseStatus.CANCELLED:
            return ResponseIncomplete(response)
        case ResponseStatus.FAILED:
            return ResponseFailed(response)
        case _:
            raise AssertionError(f"no terminal event for {response.status}")


def fold(events: Iterable[Event]) -> Response:
    """The response that a client rebuilds which only adds up what it is told.

    The output is built from the item events alone; only what no other event tells (status, usage, error) is
    taken from the last snapshot. For streams that pass ``event_grammar.check_stream``; meaningless for others.
    """
    response: Response | None = None
    output: dict[int, OutputItem] = {}
    for event in events:
        match event:
            case ResponseCreated() | ResponseQueued() | ResponseInProgress():
                response = event.response
            case ResponseCompleted() | ResponseIncomplete() | ResponseFailed():
                response = event.response
            case SubAgentEvent():
                pass  # the response is whole without it
            case _:
                output[event.output_index] = fold_item(output.get(event.output_index), event)
    assert response is not None, "a stream has a first event"
    return attrs.evolve(response, output=tuple(output[index] for index in sorted(output)))


def fold_item(item: OutputItem | None, event: ItemEvent) -> OutputItem:
    """*item* with what *event*, its next, adds to it; None before its first."""
    if isinstance(event, OutputItemAdded):
        return event.item
    assert item is not None, "an item is added first"
    match event:
        case OutputItemDone(item=done):
            return _with_outcome_of(item, done)
        case ContentPartAdded(part=part):
            return _with_part(item, part)
        case ContentDelta():
            return _with_part(item, _with_delta(_last_part(item), event), replace=1)
        case AnnotationAdded(annotation=annotation):
            part = _last_part(item)
            assert isinstance(part, TextPart), "only text is annotated"
            return _with_part(item, attrs.evolve(part, annotations=(*part.annotations, annotation)), replace=1)
        case ArgumentsDelta(delta=delta):
            assert isinstance(item, ToolCallItem)
            return attrs.evolve(item, arguments=item.arguments + delta)
        case ContentDone() | ContentPartDone() | ArgumentsDone():
            return item  # they repeat what the deltas said; the grammar checks that they do
        case McpCallInProgress() | McpCallCompleted() | McpCallFailed():
            return item  # the item's own end says it, too
        case _ as never:
            assert_never(never)


def _with_outcome_of(folded: OutputItem, done: OutputItem) -> OutputItem:
    """*folded* with what only the end of an item tells."""
    if isinstance(folded, McpCall) and isinstance(done, McpCall):
        return attrs.evolve(folded, status=done.status, output=done.output, error=done.error)
    return attrs.evolve(folded, status=done.status)


def _last_part(item: OutputItem) -> ContentPart:
    assert isinstance(item, Message | Reasoning)
    return item.content[-1]


def _with_delta(part: ContentPart, more: ContentDelta) -> ContentPart:
    """*part* as it is with *more*."""
    match part:
        case TextPart():
            return attrs.evolve(part, text=part.text + more.delta, logprobs=(*part.logprobs, *more.logprobs))
        case RefusalPart():
            return attrs.evolve(part, refusal=part.refusal + more.delta)
        case ReasoningPart():
            return attrs.evolve(part, text=part.text + more.delta)
        case _ as never:
            assert_never(never)


def _with_part(item: OutputItem, part: ContentPart, *, replace: int = 0) -> OutputItem:
    """*item* with *part* at its end, in place of its last *replace* parts."""
    match item:
        case Message(content=content):
            assert not isinstance(part, ReasoningPart)
            return attrs.evolve(item, content=(*content[: len(content) - replace], part))
        case Reasoning(content=reasoning):
            assert isinstance(part, ReasoningPart)
            return attrs.evolve(item, content=(*reasoning[: len(reasoning) - replace], part))
        case _:
            raise AssertionError("only messages and reasoning have parts")
