"""Runs worth having in every test of events: one of each shape that matters, with all their events.

Rule: small, fixed and valid; ``tests/domain/test_event_grammar.py`` says so.
"""

from uuid import UUID

from dwctl_trio.domain.request import InputMessage, InputPart, PartKind, ResponseRequest, Role
from dwctl_trio.domain.response import (
    Cancelled,
    Completed,
    Ending,
    ErrorCode,
    ErrorType,
    Failed,
    Incomplete,
    IncompleteReason,
    Response,
    ResponseError,
    ResponseStatus,
)
from dwctl_trio.domain.steps import StepState
from dwctl_trio.domain.turn import (
    ContentFragment,
    FinishReason,
    ReasoningFragment,
    RefusalFragment,
    TextFragment,
    ToolCallFragment,
)
from dwctl_trio.domain.usage import Usage
from dwctl_trio.testing.domain_strategies import ABANDONED, PlayedTurn, Run, play_run

ERROR = ResponseError(type=ErrorType.UPSTREAM_ERROR, code=ErrorCode.SERVER_ERROR, message="The model failed.")
"""Why the failed example failed."""


def opening(status: ResponseStatus = ResponseStatus.IN_PROGRESS) -> Response:
    """A response to "hello", as it is created."""
    hello = InputMessage(role=Role.USER, content=(InputPart(kind=PartKind.INPUT_TEXT, text="hello"),))
    request = ResponseRequest(model="echo-16", input=(hello,))
    return Response(id=UUID(int=7), created_at=100, request=request, status=status)


def turn(
    *fragments: ContentFragment, reason: FinishReason = FinishReason.STOP, usage: Usage | None = None
) -> PlayedTurn:
    """A model call that goes to its end."""
    return PlayedTurn(fragments=fragments, finish_reason=reason, usage=usage)


def cut_short(*fragments: ContentFragment, error: ResponseError | None = None) -> PlayedTurn:
    """A model call that fails with *error*, or is cancelled if there is none."""
    state = StepState.CANCELED if error is None else StepState.FAILED
    return PlayedTurn(fragments=fragments, finish_reason=None, state=state, error=error)


def call(position: int, arguments: str) -> ToolCallFragment:
    """A piece of a call of ``search``."""
    return ToolCallFragment(position=position, call_id=f"call_{position}", name="search", arguments=arguments)


def run(ending: Ending, *turns: PlayedTurn, status: ResponseStatus = ResponseStatus.IN_PROGRESS) -> Run:
    """The run of *turns* that ends with *ending*, a second after it was created."""
    return play_run(opening(status), turns, ending, ended_at=101)


SILENT = run(Completed(), turn())
"""The model stops without a word."""

EVERY_KIND = run(
    Completed(),
    turn(
        ReasoningFragment("mm"),
        TextFragment("a"),
        TextFragment("b"),
        call(0, "{"),
        RefusalFragment("no"),
        call(1, ""),
        call(0, "}"),
        usage=Usage(input_tokens=3, output_tokens=5),
    ),
)
"""Reasoning, a message of two parts and two calls, interleaved; has every event that an item can have."""

TWO_TURNS = run(
    Incomplete(reason=IncompleteReason.MAX_OUTPUT_TOKENS),
    turn(call(0, "{}"), reason=FinishReason.TOOL_CALLS),
    turn(TextFragment("x"), reason=FinishReason.LENGTH),
)
"""A tool round, then a turn that meets its token limit."""

HANDED_OVER = run(
    Completed(),
    cut_short(TextFragment("ha"), error=ABANDONED),
    turn(TextFragment("hallo")),
    status=ResponseStatus.QUEUED,
)
"""Queued; the first attempt dies in the middle of a message, the second answers."""

FAILED_EMPTY = run(Failed(error=ERROR), cut_short(error=ERROR), status=ResponseStatus.QUEUED)
"""Queued; the upstream refuses the only call."""

CANCELLED = run(Cancelled(), cut_short(TextFragment("a")))
"""The client hangs up in the middle of a message."""

NEVER_RAN = run(Cancelled(), status=ResponseStatus.QUEUED)
"""Cancelled while it waits in the queue."""

EXPIRED = run(Failed(error=ERROR), status=ResponseStatus.QUEUED)
"""Failed while it waits in the queue, as its deadline has passed."""

EXAMPLE_RUNS = (SILENT, EVERY_KIND, TWO_TURNS, HANDED_OVER, FAILED_EMPTY, CANCELLED, NEVER_RAN, EXPIRED)
