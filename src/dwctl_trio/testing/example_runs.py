"""Runs worth having in every test of events: one of each shape that matters, with all their events.

Rule: small, fixed and valid; ``tests/domain/test_event_grammar.py`` says so.
"""

from uuid import UUID

from dwctl_trio.domain.recovery import ABANDONED_CALL, ABANDONED_TURN
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
    AnnotationFragment,
    ContentFragment,
    FinishReason,
    ReasoningFragment,
    RefusalFragment,
    TextFragment,
    ToolCallFragment,
)
from dwctl_trio.domain.usage import Usage
from dwctl_trio.testing.played_runs import AGENT_NAME, OFFERED_TOOLS, PlayedCall, PlayedTurn, Run, cut_run, play_run

ERROR = ResponseError(type=ErrorType.UPSTREAM_ERROR, code=ErrorCode.SERVER_ERROR, message="The model failed.")
"""Why the failed example failed."""


def opening(
    status: ResponseStatus = ResponseStatus.IN_PROGRESS,
    *,
    max_tool_calls: int | None = None,
    shows_sub_agents: bool = True,
) -> Response:
    """A response to "hello", as it is created."""
    hello = InputMessage(role=Role.USER, content=(InputPart(kind=PartKind.INPUT_TEXT, text="hello"),))
    request = ResponseRequest(
        model="echo-16", input=(hello,), max_tool_calls=max_tool_calls, shows_sub_agents=shows_sub_agents
    )
    return Response(id=UUID(int=7), created_at=100, request=request, status=status, tools=OFFERED_TOOLS)


def turn(
    *fragments: ContentFragment,
    reason: FinishReason = FinishReason.STOP,
    usage: Usage | None = None,
    calls: tuple[PlayedCall, ...] = (),
) -> PlayedTurn:
    """A model call that goes to its end, and what becomes of the tools that it calls."""
    return PlayedTurn(fragments=fragments, finish_reason=reason, usage=usage, calls=calls)


def cut_short(*fragments: ContentFragment, error: ResponseError | None = None) -> PlayedTurn:
    """A model call that fails with *error*, or is cancelled if there is none."""
    state = StepState.CANCELED if error is None else StepState.FAILED
    return PlayedTurn(fragments=fragments, finish_reason=None, state=state, error=error)


def call(position: int, arguments: str, *, name: str = "get_weather") -> ToolCallFragment:
    """A piece of a call of *name*, which is the client's function if nothing else is said."""
    return ToolCallFragment(position=position, call_id=f"call_{position}", name=name, arguments=arguments)


def run(
    ending: Ending,
    *turns: PlayedTurn,
    status: ResponseStatus = ResponseStatus.IN_PROGRESS,
    schedule: tuple[int, ...] = (),
    max_tool_calls: int | None = None,
    shows_sub_agents: bool = True,
) -> Run:
    """The run of *turns* that ends with *ending*, a second after it was created."""
    asked = opening(status, max_tool_calls=max_tool_calls, shows_sub_agents=shows_sub_agents)
    return play_run(asked, turns, ending, ended_at=101, schedule=schedule)


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
        call(2, "x = 1", name="run_code"),
        usage=Usage(input_tokens=3, output_tokens=5),
    ),
)
"""Reasoning, a message of two parts and the client's calls, interleaved; has every event that items of a model have."""

TWO_TURNS = run(
    Incomplete(reason=IncompleteReason.MAX_OUTPUT_TOKENS),
    turn(call(0, "{}", name="search"), reason=FinishReason.TOOL_CALLS),
    turn(TextFragment("x"), reason=FinishReason.LENGTH),
)
"""A tool round, then a turn that meets its token limit."""

SIBLINGS = run(
    Completed(),
    turn(
        call(0, "{", name="search"),
        call(1, "{}", name="lookup"),
        call(0, "}", name="search"),
        call(2, "", name="search"),
        reason=FinishReason.TOOL_CALLS,
        calls=(PlayedCall(error=ABANDONED_CALL), PlayedCall(output="x"), PlayedCall()),
    ),
    turn(TextFragment("a")),
    schedule=(1, 1, 1),
    max_tool_calls=2,
)
"""Three parallel calls: the second ends first, the first was abandoned, the third is one too many."""

MIXED = run(Completed(), turn(call(0, "{}"), call(1, "{}", name="search"), call(2, "{}", name="run_code")))
"""A turn that calls two tools of the client's and one of the server's, which runs before the end."""

AGENTS = run(
    Completed(),
    turn(
        call(0, "{}", name=AGENT_NAME),
        call(1, "{}", name="search"),
        reason=FinishReason.TOOL_CALLS,
        calls=(
            PlayedCall(
                agent=(
                    turn(call(0, "[]", name=AGENT_NAME), calls=(PlayedCall(agent=(turn(TextFragment("c")),)),)),
                    turn(ReasoningFragment("m"), TextFragment("b")),
                )
            ),
        ),
    ),
    turn(TextFragment("a")),
    schedule=(0, 0, 0, 1, 1, 1),
)
"""A sub-agent that calls a sub-agent, beside a plain tool; all of it is shown."""

HANDED_OVER = run(
    Completed(),
    cut_short(TextFragment("ha"), error=ABANDONED_TURN),
    turn(TextFragment("hallo")),
    status=ResponseStatus.QUEUED,
)
"""Queued; the first attempt dies in the middle of a message, the second answers."""

FAILED_EMPTY = run(Failed(error=ERROR), cut_short(error=ERROR), status=ResponseStatus.QUEUED)
"""Queued; the upstream refuses the only call."""

CITED = run(
    Completed(),
    turn(
        AnnotationFragment(b'{"type":"file_path","file_id":"file_1","index":0}'),
        TextFragment("a", (b'{"token":"a","logprob":-0.25,"bytes":[97],"top_logprobs":[]}',)),
        AnnotationFragment(b'{"type":"file_path","file_id":"file_2","index":1}'),
        TextFragment("b", (b'{"token":"b","logprob":-1.5,"bytes":[98],"top_logprobs":[]}',)),
        RefusalFragment("c"),
    ),
)
"""A text with log probabilities and annotations, one of which came first."""

CANCELLED = run(Cancelled(), cut_short(TextFragment("a")))
"""The client hangs up in the middle of a message."""

TOOLS_CANCELLED = cut_run(AGENTS, 8, Cancelled())
"""The client hangs up while two tools run, one of which is an agent that is speaking."""

NEVER_RAN = run(Cancelled(), status=ResponseStatus.QUEUED)
"""Cancelled while it waits in the queue."""

EXPIRED = run(Failed(error=ERROR), status=ResponseStatus.QUEUED)
"""Failed while it waits in the queue, as its deadline has passed."""

EXAMPLE_RUNS = (
    *(SILENT, EVERY_KIND, TWO_TURNS, SIBLINGS, MIXED, AGENTS, CITED),
    *(HANDED_OVER, FAILED_EMPTY, CANCELLED, TOOLS_CANCELLED, NEVER_RAN, EXPIRED),
)
