"""The agent loop's decision, as one pure function.

Rule 1: everything that decides what happens next lives in this file.
Rule 2: nothing here reads a clock, a random source or a row; the chain is all there is.
Rule 3: bounds are checked after the decision, so that giving the answer is always allowed.
Rule 4: cut the chain anywhere and continue: the same end.
"""

from collections.abc import Set as AbstractSet
from typing import TypeAlias

import attrs

from dwctl_trio.domain.items import FunctionCall, ItemStatus
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.response import (
    Cancelled,
    Completed,
    Ending,
    ErrorCode,
    ErrorType,
    Failed,
    Incomplete,
    IncompleteReason,
    ResponseError,
)
from dwctl_trio.domain.steps import Chain, ModelCall, Step, StepDescriptor, StepState, ToolCall
from dwctl_trio.domain.turn import FinishReason, ModelTurn


@attrs.frozen
class AppendSteps:
    """Store these steps and fire them side by side."""

    descriptors: tuple[StepDescriptor, ...]
    """Never empty."""


@attrs.frozen
class Finish:
    """The response is over."""

    ending: Ending


Action: TypeAlias = AppendSteps | Finish

_TURN_LIMIT = ResponseError(
    type=ErrorType.MAX_ITERATIONS_EXCEEDED,
    code=ErrorCode.SERVER_ERROR,
    message="The response needs more model turns or steps than this server allows. Ask for less in one response.",
)
_ABANDONED = ErrorType.STEP_ABANDONED


def next_action(chain: Chain, *, server_tools: AbstractSet[str], limits: Limits) -> Action:
    """What to do after the steps of *chain*.

    Args:
        chain: The steps of one loop in order; a step that is not terminal was interrupted and counts as abandoned.
        server_tools: Names of the tools that the server runs; any other call is the client's.
        limits: ``turns`` and ``steps`` bound what is appended.

    Returns:
        ``AppendSteps`` with at least one step, or ``Finish``; at most ``limits.steps`` steps are ever appended.
    """
    if any(step.state is StepState.CANCELED for step in chain):  # a step is cancelled only with its response
        return Finish(Cancelled())
    last_turn = _last_model_step(chain)
    if last_turn is None or _is_interrupted(last_turn):
        return _append((ModelCall(),), chain, limits)
    if last_turn.state is StepState.FAILED:
        assert last_turn.error is not None, "a failed step has an error"
        return Finish(Failed(error=last_turn.error))
    turn = last_turn.result
    assert isinstance(turn, ModelTurn), "a completed model step has a turn"
    if turn.finish_reason is FinishReason.LENGTH:
        return Finish(Incomplete(reason=IncompleteReason.MAX_OUTPUT_TOKENS))
    if turn.finish_reason is FinishReason.CONTENT_FILTER:
        return Finish(Incomplete(reason=IncompleteReason.CONTENT_FILTER))
    calls = [item for item in turn.items if isinstance(item, FunctionCall) and item.status is ItemStatus.COMPLETED]
    answered = _answered_calls(chain, after=last_turn)
    unanswered = tuple(
        ToolCall(call_id=call.call_id, name=call.name, arguments=call.arguments)
        for call in calls
        if call.name in server_tools and call.call_id not in answered
    )
    if unanswered:
        return _append(unanswered, chain, limits)
    if not calls or any(call.name not in server_tools for call in calls):
        return Finish(Completed())
    return _append((ModelCall(),), chain, limits)


def _append(descriptors: tuple[StepDescriptor, ...], chain: Chain, limits: Limits) -> Action:
    turns = sum(1 for step in chain if isinstance(step.descriptor, ModelCall) and not _is_interrupted(step))
    asks_model = any(isinstance(descriptor, ModelCall) for descriptor in descriptors)
    if (asks_model and turns >= limits.turns) or len(chain) + len(descriptors) > limits.steps:
        return Finish(Failed(error=_TURN_LIMIT))
    return AppendSteps(descriptors)


def _last_model_step(chain: Chain) -> Step | None:
    return next((step for step in reversed(chain) if isinstance(step.descriptor, ModelCall)), None)


def _is_interrupted(step: Step) -> bool:
    if step.state in {StepState.PENDING, StepState.PROCESSING}:
        return True
    return step.state is StepState.FAILED and step.error is not None and step.error.type is _ABANDONED


def _answered_calls(chain: Chain, *, after: Step) -> frozenset[str]:
    """Call ids with a terminal tool step; a failed one is an answer too, for the model reads the failure."""
    return frozenset(
        step.descriptor.call_id
        for step in chain
        if isinstance(step.descriptor, ToolCall)
        and step.sequence > after.sequence
        and step.state in {StepState.COMPLETED, StepState.FAILED}
    )
