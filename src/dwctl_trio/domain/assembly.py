"""Two ways to the same response: from the stored chain, and from the streamed events.

Rule: ``fold(events) == assemble(…chain…)`` for every run; what was streamed is what GET returns.
"""

from collections.abc import Iterable
from typing import assert_never

import attrs

from dwctl_trio.domain.events import (
    ArgumentsDelta,
    ArgumentsDone,
    ContentDelta,
    ContentDone,
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
    TerminalEvent,
)
from dwctl_trio.domain.items import (
    ContentPart,
    FunctionCall,
    Message,
    OutputItem,
    Reasoning,
    ReasoningPart,
    RefusalPart,
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
from dwctl_trio.domain.steps import Chain
from dwctl_trio.domain.turn import ModelTurn
from dwctl_trio.domain.turn_output import make_part
from dwctl_trio.domain.usage import total_usage


def assemble(opening: Response, chain: Chain, ending: Ending, *, ended_at: int) -> Response:
    """The final response that *chain* amounts to.

    Args:
        opening: The response as it was created; identity and request are taken from it.
        chain: All steps, each terminal; a cut-short model call keeps the part it had in its result.
        ending: How it ended.
        ended_at: Unix seconds; used only for a completed response.
    """
    turns = [step.result for step in chain if isinstance(step.result, ModelTurn)]
    ended = attrs.evolve(
        opening,
        output=tuple(item for turn in turns for item in turn.items),
        usage=total_usage(turn.usage for turn in turns),
    )
    match ending:
        case Completed():
            return attrs.evolve(ended, status=ResponseStatus.COMPLETED, completed_at=ended_at)
        case Incomplete(reason=reason):
            return attrs.evolve(ended, status=ResponseStatus.INCOMPLETE, incomplete_reason=reason)
        case Failed(error=error):
            return attrs.evolve(ended, status=ResponseStatus.FAILED, error=error)
        case Cancelled():
            return attrs.evolve(ended, status=ResponseStatus.CANCELLED)
        case _ as never:
            assert_never(never)


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
            case OutputItemAdded(index, item):
                output[index] = item
            case OutputItemDone(index, item):
                output[index] = _with_status_of(output[index], item)
            case ContentPartAdded(index, _, _, part):
                output[index] = _with_part(output[index], part)
            case ContentDelta(kind, index, _, _, delta):
                output[index] = _with_part(output[index], make_part(kind, _last_text(output[index]) + delta), replace=1)
            case ArgumentsDelta(index, _, delta):
                call = output[index]
                assert isinstance(call, FunctionCall)
                output[index] = attrs.evolve(call, arguments=call.arguments + delta)
            case ContentDone() | ContentPartDone() | ArgumentsDone():
                pass  # they repeat what the deltas said; the grammar checks that they do
            case _ as never:
                assert_never(never)
    assert response is not None, "a stream has a first event"
    return attrs.evolve(response, output=tuple(output[index] for index in sorted(output)))


def _with_status_of(folded: OutputItem, done: OutputItem) -> OutputItem:
    return attrs.evolve(folded, status=done.status)


def _last_text(item: OutputItem) -> str:
    assert not isinstance(item, FunctionCall)
    part = item.content[-1]
    return part.refusal if isinstance(part, RefusalPart) else part.text


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
