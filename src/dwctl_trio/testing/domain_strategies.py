"""Hypothesis strategies for values of the domain: fragments, turns, requests, and whole runs with their events.

Rule 1: what is drawn could have happened; a test of the impossible spoils a value by itself.
Rule 2: sizes are small (a run has at most four turns), so that exhaustive tests over one value stay cheap.
Rule 3: each strategy is built once: building one costs more than drawing from it.

How a run comes from what is drawn is in ``testing/played_runs.py``.
"""

from functools import cache
from typing import TypeAlias, TypeVar

import attrs
from hypothesis import strategies as st

from dwctl_trio.domain.events import StreamEvent
from dwctl_trio.domain.recovery import ABANDONED_CALL, ABANDONED_TURN
from dwctl_trio.domain.request import (
    InputMessage,
    InputPart,
    JsonObject,
    JsonSchema,
    PartKind,
    PlainText,
    ReasoningOptions,
    ResponseRequest,
    Role,
    ServiceTier,
)
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
from dwctl_trio.testing.played_runs import OFFERED_TOOLS, PlayedCall, PlayedTurn, Run, cut_run, play_run

_CALLED = ("researcher", "search", "lookup", "researcher", "get_weather", "run_code")
"""The tools that the calls of a turn call, by slot; the server's come first."""
_SERVER_SLOTS = 4
_AGENT_DEPTH = 2

_LOGPROBS = (
    b'{"token":"a","logprob":-0.25,"bytes":[97],"top_logprobs":[]}',
    b'{"token":"b","logprob":-1.5,"bytes":[98],"top_logprobs":[{"token":"a","logprob":-0.5,"bytes":[97]}]}',
)
_ANNOTATIONS = (
    b'{"type":"url_citation","url":"https://a.example/","title":"","start_index":0,"end_index":1}',
    b'{"type":"file_path","file_id":"file_1","index":0}',
)

TOOL_FAILURES = (
    ErrorType.TOOL_NOT_FOUND,
    ErrorType.TOOL_ARGUMENTS_INVALID,
    ErrorType.TOOL_TIMEOUT,
    ErrorType.EXECUTOR_ERROR,
    ErrorType.MAX_DEPTH_EXCEEDED,
)
"""Why a call of a server tool may fail, but for a crash."""

RETRIED_TURN = ResponseError(
    type=ErrorType.STEP_RETRIED, code=ErrorCode.SERVER_ERROR, message="The model's server failed."
)
"""Why a turn failed after which the response was queued again."""

TURN_LIMIT = ResponseError(
    type=ErrorType.MAX_ITERATIONS_EXCEEDED, code=ErrorCode.SERVER_ERROR, message="Too many turns."
)
"""The error of a response that a bound of the server's ended."""

_Element = TypeVar("_Element")
_Slot: TypeAlias = tuple[int, str]
"""A piece of arguments for one of the calls of a turn; the first slot met is position 0, and so on."""
_Piece: TypeAlias = ContentFragment | _Slot


@cache
def texts() -> st.SearchStrategy[str]:
    """Text of a model, never empty; a small alphabet, so that equal and prefixing pieces are common."""
    return st.text(alphabet="ab é\n{😀", min_size=1, max_size=4)


@cache
def usages() -> st.SearchStrategy[Usage]:
    """Token counts as an upstream reports them."""
    counts = st.integers(min_value=0, max_value=10**9)
    return st.builds(
        Usage,
        input_tokens=counts,
        output_tokens=counts,
        cached_tokens=st.none() | counts,
        reasoning_tokens=st.none() | counts,
    )


@cache
def requests() -> st.SearchStrategy[ResponseRequest]:
    """Validated requests of every path."""
    parts = st.builds(InputPart, kind=st.sampled_from(PartKind), text=texts())
    messages = st.builds(InputMessage, role=st.sampled_from(Role), content=_tuples(parts, min_size=1))
    schemas = st.builds(JsonSchema, name=st.just("answer"), schema=st.just(b"{}"), strict=st.booleans())
    reasoning = st.builds(ReasoningOptions, effort=st.sampled_from([None, "low", "high"]))
    return st.builds(
        ResponseRequest,
        model=st.sampled_from(["echo-16", "gpt-oss"]),
        input=_tuples(messages, min_size=1),
        instructions=st.none() | texts(),
        stream=st.booleans(),
        background=st.booleans(),
        store=st.booleans(),
        service_tier=st.sampled_from(ServiceTier),
        temperature=st.none() | st.floats(min_value=0, max_value=2),
        max_output_tokens=st.none() | st.integers(min_value=16, max_value=100_000),
        text_format=st.just(PlainText()) | st.just(JsonObject()) | schemas,
        reasoning=st.none() | reasoning,
        metadata=_tuples(st.tuples(texts(), texts())),
        max_tool_calls=st.none() | st.integers(min_value=1, max_value=4),
        shows_sub_agents=st.booleans(),
    )


@cache
def errors() -> st.SearchStrategy[ResponseError]:
    """Why a response or a model step failed; never that its process died."""
    types = st.sampled_from([ErrorType.UPSTREAM_ERROR, ErrorType.RATE_LIMITED, ErrorType.PERSIST_FAILED])
    return st.builds(ResponseError, type=types, code=st.sampled_from(ErrorCode), message=texts())


@cache
def tool_errors() -> st.SearchStrategy[ResponseError]:
    """Why a call of a server tool failed, of every kind; also that its process died."""
    kinds = st.sampled_from(TOOL_FAILURES)
    failures = st.builds(ResponseError, type=kinds, code=st.just(ErrorCode.SERVER_ERROR), message=texts())
    return failures | st.just(ABANDONED_CALL)


@cache
def endings() -> st.SearchStrategy[Ending]:
    """Every way in which a response can end."""
    return st.one_of(
        st.just(Completed()),
        st.builds(Incomplete, reason=st.sampled_from(IncompleteReason)),
        _failures(),
        st.just(Cancelled()),
    )


@cache
def fragments(*, max_size: int = 8) -> st.SearchStrategy[tuple[ContentFragment, ...]]:
    """The content of a turn as it arrives: kinds in any order, calls interleaved, positions in order of appearance."""
    return st.lists(_pieces(0, len(_CALLED)), max_size=max_size).map(_place_calls)


@cache
def tool_rounds(*, max_size: int = 8) -> st.SearchStrategy[tuple[ContentFragment, ...]]:
    """The content of a turn after which the model is asked again: server tools are called, the client's are not."""
    return _with_one_of(_slots(0, _SERVER_SLOTS), _pieces(0, _SERVER_SLOTS), max_size)


@cache
def answers(*, max_size: int = 8) -> st.SearchStrategy[tuple[ContentFragment, ...]]:
    """The content of a turn after which a response is completed: no calls, or at least one that is the client's."""
    mixed = _with_one_of(_slots(_SERVER_SLOTS, len(_CALLED)), _pieces(0, len(_CALLED)), max_size)
    return st.lists(_content(), max_size=max_size).map(_place_calls) | mixed


@cache
def played_calls(*, depth: int = _AGENT_DEPTH) -> st.SearchStrategy[PlayedCall]:
    """What becomes of a call of a server tool; where it is an agent, that may call agents up to *depth*."""
    plain = st.builds(PlayedCall, output=texts()) | st.builds(PlayedCall, error=tool_errors())
    if depth == 0:
        return plain
    rounds = st.builds(
        PlayedTurn,
        fragments=tool_rounds(max_size=2),
        finish_reason=st.just(FinishReason.TOOL_CALLS),
        usage=st.none() | usages(),
        calls=_tuples(played_calls(depth=depth - 1)),
    )
    words = st.lists(_content(), max_size=2).map(_place_calls)
    answer = st.builds(PlayedTurn, fragments=words, finish_reason=st.just(FinishReason.STOP))
    broken = PlayedTurn(fragments=(), finish_reason=None)
    failed = st.builds(attrs.evolve, st.just(broken), fragments=words, state=st.just(StepState.FAILED), error=errors())
    late = st.builds(attrs.evolve, st.just(broken), fragments=words, state=st.just(StepState.CANCELED))
    earlier = st.lists(rounds, max_size=1).map(tuple)
    agents = st.one_of(
        st.builds(_play_agent, earlier, answer, st.none()),
        st.builds(_play_agent, earlier, failed, st.just(ErrorType.EXECUTOR_ERROR)),
        st.builds(_play_agent, earlier, late, st.just(ErrorType.TOOL_TIMEOUT)),
    )
    return plain | agents


@cache
def openings(*, queued: bool | None = None) -> st.SearchStrategy[Response]:
    """Responses as they are created.

    Args:
        queued: Whether they wait in the queue; None draws it.
    """
    statuses = {
        None: [ResponseStatus.QUEUED, ResponseStatus.IN_PROGRESS],
        True: [ResponseStatus.QUEUED],
        False: [ResponseStatus.IN_PROGRESS],
    }
    return st.builds(
        Response,
        id=st.uuids(),
        created_at=st.integers(min_value=0, max_value=2**40),
        request=requests(),
        status=st.sampled_from(statuses[queued]),
        tools=st.just(OFFERED_TOOLS),
    )


@cache
def runs(*, max_fragments: int = 8, depth: int = _AGENT_DEPTH) -> st.SearchStrategy[Run]:
    """Whole runs: up to three tool rounds or dead attempts (if queued), then the end, or cut short anywhere.

    Args:
        max_fragments: The most fragments in one turn.
        depth: How deep agents call agents; 0: agents do nothing.
    """
    earlier = st.lists(st.tuples(_rounds(max_fragments, depth), _dead_attempts(max_fragments), _COIN), max_size=3)
    lasts = _last_turns(max_fragments, depth)
    breaks = st.just(Cancelled()) | _failures()

    @st.composite
    def draw_run(draw: st.DrawFn) -> Run:
        opening = draw(openings())
        queued = opening.status is ResponseStatus.QUEUED
        ended_at = opening.created_at + draw(_SECONDS)
        if queued and draw(_COIN) and draw(_COIN):
            return play_run(opening, (), draw(breaks), ended_at=ended_at)
        turns = [dead if queued and dies else tool_round for tool_round, dead, dies in draw(earlier)]
        last, ending = draw(lasts)
        run = play_run(opening, (*turns, last), ending, ended_at=ended_at, schedule=draw(_SCHEDULES))
        cut = draw(_CUTS)
        return run if cut is None else cut_run(run, cut % run.points + 1, draw(breaks))

    return draw_run()


_COIN = st.booleans()
_SECONDS = st.integers(0, 3600)
_SCHEDULES = st.lists(st.integers(0, 3), max_size=12).map(tuple)
_CUTS = st.none() | st.integers(min_value=0, max_value=100)


def streams(*, max_fragments: int = 8, depth: int = _AGENT_DEPTH) -> st.SearchStrategy[tuple[StreamEvent, ...]]:
    """Whole valid streams of events."""
    return runs(max_fragments=max_fragments, depth=depth).map(lambda run: run.events)


def _rounds(max_fragments: int, depth: int) -> st.SearchStrategy[PlayedTurn]:
    """Turns that call server tools, which are then run."""
    return st.builds(
        PlayedTurn,
        fragments=tool_rounds(max_size=max_fragments),
        finish_reason=st.sampled_from([FinishReason.TOOL_CALLS, FinishReason.STOP]),
        usage=st.none() | usages(),
        calls=st.lists(played_calls(depth=depth), max_size=3).map(tuple),
    )


def _dead_attempts(max_fragments: int) -> st.SearchStrategy[PlayedTurn]:
    """Turns whose process died, or that failed and were asked for again."""
    return st.builds(
        PlayedTurn,
        fragments=fragments(max_size=max_fragments),
        finish_reason=st.none(),
        state=st.just(StepState.FAILED),
        error=st.sampled_from([ABANDONED_TURN, RETRIED_TURN]),
    )


def _last_turns(max_fragments: int, depth: int) -> st.SearchStrategy[tuple[PlayedTurn, Ending]]:
    """The last turns of responses that are not cut short, and how these end."""
    usage = st.none() | usages()
    rounds = _rounds(max_fragments, depth)
    content = fragments(max_size=max_fragments)
    answered = st.builds(
        PlayedTurn,
        fragments=answers(max_size=max_fragments),
        finish_reason=st.sampled_from([FinishReason.TOOL_CALLS, FinishReason.STOP]),
        usage=usage,
        calls=st.lists(played_calls(depth=depth), max_size=3).map(tuple),
    )
    long = st.builds(PlayedTurn, fragments=content, finish_reason=st.just(FinishReason.LENGTH), usage=usage)
    filtered = st.builds(attrs.evolve, long, finish_reason=st.just(FinishReason.CONTENT_FILTER))
    too_long = st.just(Incomplete(reason=IncompleteReason.MAX_OUTPUT_TOKENS))
    broken = st.builds(PlayedTurn, fragments=content, finish_reason=st.none(), usage=usage)
    return st.one_of(
        st.tuples(answered, st.just(Completed())),
        st.tuples(long | rounds, too_long),  # the model has used them up, in one turn or in all
        st.tuples(filtered, st.just(Incomplete(reason=IncompleteReason.CONTENT_FILTER))),
        st.builds(_fail, broken | rounds, errors()),  # while the model answers, or when it has
        st.tuples(st.builds(attrs.evolve, rounds, is_last=st.just(True)), st.just(Failed(error=TURN_LIMIT))),
    )


def _fail(turn: PlayedTurn, error: ResponseError) -> tuple[PlayedTurn, Ending]:
    return attrs.evolve(turn, state=StepState.FAILED, error=error), Failed(error=error)


@cache
def _failures() -> st.SearchStrategy[Ending]:
    return st.builds(Failed, error=errors())


def _play_agent(earlier: tuple[PlayedTurn, ...], last: PlayedTurn, kind: ErrorType | None) -> PlayedCall:
    if kind is None:
        return PlayedCall(agent=(*earlier, last))
    error = ResponseError(type=kind, code=ErrorCode.SERVER_ERROR, message="The agent came to no answer.")
    return PlayedCall(agent=(*earlier, last), error=error)


def _content() -> st.SearchStrategy[_Piece]:
    logprobs = st.lists(st.sampled_from(_LOGPROBS), max_size=2).map(tuple)
    spoken = texts().map(TextFragment) | st.builds(TextFragment, texts(), logprobs)
    citations = st.sampled_from(_ANNOTATIONS).map(AnnotationFragment)
    return st.one_of(spoken, texts().map(RefusalFragment), texts().map(ReasoningFragment), citations)


def _slots(first: int, end: int) -> st.SearchStrategy[_Piece]:
    return st.tuples(st.integers(min_value=first, max_value=end - 1), st.just("") | texts())


def _pieces(first: int, end: int) -> st.SearchStrategy[_Piece]:
    return _content() | _slots(first, end)


def _with_one_of(
    wanted: st.SearchStrategy[_Piece], pieces: st.SearchStrategy[_Piece], max_size: int
) -> st.SearchStrategy[tuple[ContentFragment, ...]]:
    """Lists of up to *max_size* pieces, at least one of which is *wanted*."""
    around = st.lists(pieces, max_size=max(0, max_size - 1))
    places = st.integers(min_value=0, max_value=max_size)
    return st.tuples(around, places, wanted).map(lambda drawn: _place_calls(_insert(*drawn)))


def _insert(pieces: list[_Piece], place: int, piece: _Piece) -> list[_Piece]:
    return [*pieces[:place], piece, *pieces[place:]]


def _place_calls(pieces: list[_Piece]) -> tuple[ContentFragment, ...]:
    positions: dict[int, int] = {}
    placed: list[ContentFragment] = []
    for piece in pieces:
        if isinstance(piece, tuple):
            slot, arguments = piece
            position = positions.setdefault(slot, len(positions))
            placed.append(
                ToolCallFragment(position=position, call_id=f"call_{position}", name=_CALLED[slot], arguments=arguments)
            )
        else:
            placed.append(piece)
    return tuple(placed)


def _tuples(elements: st.SearchStrategy[_Element], *, min_size: int = 0) -> st.SearchStrategy[tuple[_Element, ...]]:
    return st.lists(elements, min_size=min_size, max_size=2).map(tuple)
