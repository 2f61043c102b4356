"""Responses to put into a store: opened, and ended in each of the four ways."""

from decimal import Decimal
from typing import assert_never
from uuid import UUID, uuid4

import attrs
from hypothesis import strategies as st

from dwctl_trio.domain.assembly import assemble
from dwctl_trio.domain.idempotency import IdempotencyKey
from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.lifecycle import RowState, apply, ending_change
from dwctl_trio.domain.models import ModelRoute, Price
from dwctl_trio.domain.request import InputMessage, InputPart, PartKind, ResponseRequest, Role, ServiceTier
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
from dwctl_trio.domain.steps import ModelCall, Step, StepState, ToolCall, ToolOutput
from dwctl_trio.domain.turn import (
    ContentFragment,
    FinishReason,
    ModelTurn,
    ReasoningFragment,
    RefusalFragment,
    TextFragment,
    ToolCallFragment,
)
from dwctl_trio.domain.turn_output import TurnOutput
from dwctl_trio.domain.usage import Usage
from dwctl_trio.ports import CallMetering, EndedStep, EventSegment, FinishedResponse, NewResponse
from dwctl_trio.protocol import json
from dwctl_trio.protocol.response_object import render_response

OWNER = "blue"
FAILED = Failed(
    error=ResponseError(type=ErrorType.UPSTREAM_ERROR, code=ErrorCode.SERVER_ERROR, message="The model failed.")
)
TOOL_ERROR = ResponseError(type=ErrorType.TOOL_TIMEOUT, code=ErrorCode.SERVER_ERROR, message="It took too long.")
ENDINGS: tuple[Ending, ...] = (
    Completed(),
    Incomplete(reason=IncompleteReason.MAX_OUTPUT_TOKENS),
    FAILED,
    Cancelled(),
)
ROUTE = ModelRoute(
    model="echo-16",
    upstream="local",
    upstream_model="Qwen3",
    price=Price(input_per_million=Decimal("0.15"), output_per_million=Decimal("0.60"), currency="USD"),
)
USAGE = Usage(input_tokens=11, output_tokens=7, cached_tokens=3, reasoning_tokens=None)
FRAMES = b"event: response.created\ndata: {}\n\n"
_CREATED_AT = 1_700_000_000


def make_request(text: str = "hello", *, store: bool = True, tier: ServiceTier = ServiceTier.AUTO) -> ResponseRequest:
    """A request that says *text*."""
    message = InputMessage(role=Role.USER, content=(InputPart(kind=PartKind.INPUT_TEXT, text=text),))
    return ResponseRequest(model=ROUTE.model, input=(message,), store=store, service_tier=tier, stream=True)


def make_key(text: str = "k", body: object = None) -> IdempotencyKey:
    """An idempotency key that came with *body*."""
    return IdempotencyKey(text=text, body_digest=json.digest(body))


def make_new(
    request: ResponseRequest | None = None,
    *,
    owner: str = OWNER,
    response_id: UUID | None = None,
    key: IdempotencyKey | None = None,
) -> NewResponse:
    """A response about to be opened; its step's id follows from its own."""
    identity = response_id or uuid4()
    return NewResponse(
        response_id=identity,
        owner=owner,
        key_prefix="sk-dwctl-abc",
        request=request or make_request(),
        route=ROUTE,
        first_step_id=UUID(int=identity.int ^ 1),
        idempotency=key,
    )


@attrs.frozen(kw_only=True)
class Answer:
    """What a model did in its one turn."""

    fragments: tuple[ContentFragment, ...] = (TextFragment("Hello"), TextFragment(" there"))
    usage: Usage | None = USAGE


DEFAULT_ANSWER = Answer()


def make_opening(new: NewResponse, created_at: int = _CREATED_AT) -> Response:
    """The response as it was created."""
    return Response(
        id=new.response_id, created_at=created_at, request=new.request, status=ResponseStatus.IN_PROGRESS
    )  # fmt: skip


def make_finished(
    new: NewResponse, ending: Ending = ENDINGS[0], *, epoch: int = 1, answer: Answer = DEFAULT_ANSWER
) -> FinishedResponse:
    """The terminal write of *new*, ended as *ending* after *answer*."""
    step = _ended_step(new, ending, answer)
    response = assemble(make_opening(new), [step], ending, ended_at=_CREATED_AT + 2)
    state = apply(RowState.PROCESSING, ending_change(ending))
    assert state is not None
    return FinishedResponse(
        row=new.row,
        epoch=epoch,
        state=state,
        response_status=502 if isinstance(ending, Failed) else 499 if isinstance(ending, Cancelled) else 200,
        body=json.encode(render_response(response)),
        error=response.error,
        ended=(EndedStep(step=step, metering=make_metering(ending)),),
        segments=(EventSegment(first_sequence=0, last_sequence=9, frames=FRAMES),) if new.row.keeps_steps else (),
    )


def make_metering(ending: Ending = ENDINGS[0]) -> CallMetering:
    """What is recorded of a call that ended a response as *ending*."""
    return CallMetering(
        route=ROUTE,
        http_status=200,
        error_code=ending.error.type.value if isinstance(ending, Failed) else None,
        started_ago_s=2.0,
        first_token_ago_s=1.5,
    )


def last_step(finished: FinishedResponse) -> Step:
    """The one step that *finished* ends."""
    (ended,) = finished.ended
    return ended.step


def with_result(finished: FinishedResponse, result: ModelTurn) -> FinishedResponse:
    """*finished* with another turn in its one step."""
    (ended,) = finished.ended
    step = attrs.evolve(ended.step, result=result)
    return attrs.evolve(finished, ended=(attrs.evolve(ended, step=step),))


def model_step(new: NewResponse, sequence: int, *, parent: Step | None = None) -> Step:
    """A model call of *new* about to be made; its id follows from its sequence."""
    return Step(
        id=new.first_step_id if sequence == 1 else UUID(int=new.response_id.int ^ (sequence << 64)),
        sequence=sequence,
        descriptor=ModelCall(),
        state=StepState.PROCESSING,
        parent_step_id=parent.id if parent is not None else None,
    )


def tool_step(new: NewResponse, sequence: int, arguments: str = "{}") -> Step:
    """A tool call of *new* about to be made; its id follows from its sequence."""
    descriptor = ToolCall(call_id=f"call_{sequence}", name="search", arguments=arguments)
    return attrs.evolve(model_step(new, sequence), descriptor=descriptor)


def ended_model(step: Step, *texts: str) -> EndedStep:
    """A model call that said *texts*."""
    output = TurnOutput(step_id=step.id, first_output_index=0, kind_of=lambda _: CallKind.SERVER)
    for text in texts:
        output.feed(TextFragment(text))
    output.close(FinishReason.STOP)
    turn = ModelTurn(items=output.items(), finish_reason=FinishReason.STOP, usage=USAGE)
    return EndedStep(step=attrs.evolve(step, state=StepState.COMPLETED, result=turn), metering=make_metering())


def ended_tool(step: Step, output: str | None) -> EndedStep:
    """A tool call that gave *output*, or failed without one."""
    if output is None:
        return EndedStep(step=attrs.evolve(step, state=StepState.FAILED, error=TOOL_ERROR), metering=None)
    ended = attrs.evolve(step, state=StepState.COMPLETED, result=ToolOutput(output=output))
    return EndedStep(step=ended, metering=None)


def _ended_step(new: NewResponse, ending: Ending, answer: Answer) -> Step:
    state, reason, error = _step_end(ending)
    output = TurnOutput(step_id=new.first_step_id, first_output_index=0, kind_of=lambda _: CallKind.FUNCTION)
    for fragment in answer.fragments:
        output.feed(fragment)
    output.close(reason)
    turn = ModelTurn(items=output.items(), finish_reason=reason, usage=answer.usage)
    return Step(id=new.first_step_id, sequence=1, descriptor=ModelCall(), state=state, result=turn, error=error)


def _step_end(ending: Ending) -> tuple[StepState, FinishReason | None, ResponseError | None]:
    match ending:
        case Completed():
            return StepState.COMPLETED, FinishReason.STOP, None
        case Incomplete(reason=IncompleteReason.MAX_OUTPUT_TOKENS):
            return StepState.COMPLETED, FinishReason.LENGTH, None
        case Incomplete():
            return StepState.COMPLETED, FinishReason.CONTENT_FILTER, None
        case Failed(error=error):
            return StepState.FAILED, None, error
        case Cancelled():
            return StepState.CANCELED, None, None
        case _ as never:
            assert_never(never)


def storable_texts() -> st.SearchStrategy[str]:
    """Any text that the edges let through: no NUL and no surrogates; often one that a careless writer would break."""
    awkward = st.sampled_from(["\u2028\x85", "\\u0000", '"}', "\x01\x7f", "\U0010ffff🙂", "{{%s}}$1:name", "\ufeff"])
    characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    return st.one_of(awkward, st.text(alphabet=characters, min_size=1, max_size=8))


def answers() -> st.SearchStrategy[Answer]:
    """Turns of any content."""
    texts = storable_texts()
    fragment: st.SearchStrategy[ContentFragment] = st.one_of(
        texts.map(TextFragment),
        texts.map(RefusalFragment),
        texts.map(ReasoningFragment),
        st.builds(ToolCallFragment, position=st.just(0), call_id=st.just("call_a"), name=st.just("f"), arguments=texts),
    )
    counts = st.integers(min_value=0, max_value=2**40)
    usage = st.builds(Usage, input_tokens=counts, output_tokens=counts, cached_tokens=st.none() | counts)
    return st.builds(
        Answer, fragments=st.lists(fragment, max_size=5).map(tuple), usage=st.none() | usage
    )  # fmt: skip


def endings() -> st.SearchStrategy[Ending]:
    """Endings with any words."""
    failed = storable_texts().map(
        lambda text: Failed(error=attrs.evolve(FAILED.error, message=text, type=ErrorType.LOOP_ERROR))
    )
    return st.sampled_from(ENDINGS) | failed
