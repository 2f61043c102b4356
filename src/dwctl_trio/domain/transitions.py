"""The agent loop's decision, as one pure function.

Rule 1: everything that decides what happens next lives in this file.
Rule 2: nothing here reads a clock, a random source or a row; the chain is all there is.
Rule 3: bounds are checked after the decision, so that giving the answer is always allowed.
Rule 4: cut the chain anywhere and continue: the same end.
"""

from itertools import takewhile
from typing import TypeAlias

import attrs

from dwctl_trio.domain.items import CallKind, CustomToolCall, FunctionCall, ItemStatus, McpCall
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.request import ResponseRequest
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
from dwctl_trio.domain.tools import ALL_SERVER_TOOLS, ChoiceMode, OfferedTool, ToolChoice, allowed_tools
from dwctl_trio.domain.turn import FinishReason, ModelTurn


@attrs.frozen
class AppendSteps:
    """Store these steps and fire them side by side."""

    descriptors: tuple[StepDescriptor, ...]
    """Never empty."""


@attrs.frozen
class Finish:
    """The loop is over, and at top level the response with it."""

    ending: Ending


Action: TypeAlias = AppendSteps | Finish

_TURN_LIMIT = ResponseError(
    type=ErrorType.MAX_ITERATIONS_EXCEEDED,
    code=ErrorCode.SERVER_ERROR,
    message="The response needs more model turns or steps than this server allows. Ask for less in one response.",
)
_SUPERSEDED = frozenset({ErrorType.STEP_ABANDONED, ErrorType.STEP_RETRIED})


def next_action(chain: Chain, *, request: ResponseRequest, limits: Limits, tree: Chain | None = None) -> Action:
    """What to do after the steps of *chain*.

    Args:
        chain: The steps of one loop in order, none of them open.
        request: What the response is bounded by: ``max_output_tokens`` and ``max_tool_calls``, over all loops.
        limits: ``turns`` bounds this loop, ``steps`` and ``tool_calls`` all loops of the response.
        tree: The steps of all loops of the response, *chain* included; None: there is no other loop.

    Returns:
        ``AppendSteps`` with at least one step, or ``Finish``.
    """
    tree = chain if tree is None else tree
    if any(step.state is StepState.CANCELED for step in chain):  # a step is cancelled only with its response
        return Finish(Cancelled())
    last_turn = _last_model_step(chain)
    if last_turn is None or is_superseded(last_turn):
        return _append((ModelCall(),), chain, tree, request, limits)
    if last_turn.state is StepState.FAILED:
        assert last_turn.error is not None, "a failed step has an error"
        return Finish(Failed(error=last_turn.error))
    turn = last_turn.result
    assert isinstance(turn, ModelTurn), "a completed model step has a turn"
    if turn.finish_reason is FinishReason.LENGTH:
        return Finish(Incomplete(reason=IncompleteReason.MAX_OUTPUT_TOKENS))
    if turn.finish_reason is FinishReason.CONTENT_FILTER:
        return Finish(Incomplete(reason=IncompleteReason.CONTENT_FILTER))
    ours = [item for item in turn.items if isinstance(item, McpCall) and item.status is ItemStatus.IN_PROGRESS]
    answered = _answered_calls(chain)
    unanswered = tuple(
        ToolCall(call_id=call.call_id, name=call.name, arguments=call.arguments)
        for call in ours
        if call.call_id not in answered
    )[: calls_left(tree, request)]
    if unanswered:
        return _append(unanswered, chain, tree, request, limits)
    if not ours or any(isinstance(item, FunctionCall | CustomToolCall) for item in turn.items):
        return Finish(Completed())
    return _append((ModelCall(),), chain, tree, request, limits)


@attrs.frozen(kw_only=True)
class TurnPlan:
    """What the next model call may do."""

    tools: tuple[OfferedTool, ...]
    tool_choice: ToolChoice
    max_output_tokens: int | None
    """At least 1: another loop may have used up the rest since the call was decided on."""

    @property
    def callable_tools(self) -> tuple[OfferedTool, ...]:
        """Those of the tools that may be called: where one is demanded, no other."""
        return _demanded(self.tools, self.tool_choice)


def plan_turn(
    chain: Chain, *, tools: tuple[OfferedTool, ...], choice: ToolChoice, request: ResponseRequest, tree: Chain
) -> TurnPlan:
    """What the model call after *chain* may do.

    Args:
        chain: The steps of one loop in order.
        tools: What the loop offers.
        choice: What is to be called; a demand holds until it has been met.
        request: What bounds the response.
        tree: The steps of all loops of the response.
    """
    choice = _choice_after(chain, tools, choice)
    if calls_left(tree, request) == 0:
        tools = tuple(tool for tool in tools if tool.kind is not CallKind.SERVER)
    tools = allowed_tools(tools, choice)
    if choice.name is not None and all(tool.name != choice.name for tool in tools):
        choice = ToolChoice()
    left = output_tokens_left(tree, request)
    return TurnPlan(tools=tools, tool_choice=choice, max_output_tokens=None if left is None else max(1, left))


def callable_tools(
    chain: Chain, *, tools: tuple[OfferedTool, ...], choice: ToolChoice, call: Step
) -> tuple[OfferedTool, ...]:
    """Those of *tools* that *choice* let the turn of *chain* call that made *call*."""
    turn = _last_model_step([step for step in chain if step.sequence < call.sequence])
    assert turn is not None, "a call is made by a turn"
    choice = _choice_after([step for step in chain if step.sequence < turn.sequence], tools, choice)
    return _demanded(allowed_tools(tools, choice), choice)


def _choice_after(chain: Chain, tools: tuple[OfferedTool, ...], choice: ToolChoice) -> ToolChoice:
    """What is left of *choice* after *chain*: a call of another tool does not meet the demand for one."""
    if choice.mode is not ChoiceMode.REQUIRED:
        return choice
    called = {step.descriptor.name for step in chain if isinstance(step.descriptor, ToolCall)}
    if choice.name == ALL_SERVER_TOOLS:
        called &= {tool.name for tool in tools if tool.kind is CallKind.SERVER}
    elif choice.name is not None:
        called &= {choice.name}
    if called:
        return attrs.evolve(choice, mode=ChoiceMode.AUTO, name=None)
    if choice.name == ALL_SERVER_TOOLS:
        return ToolChoice(mode=ChoiceMode.REQUIRED, allowed=(ALL_SERVER_TOOLS,))
    return choice


def _demanded(tools: tuple[OfferedTool, ...], choice: ToolChoice) -> tuple[OfferedTool, ...]:
    """The one of *tools* that *choice* names, or all of them."""
    return tuple(tool for tool in tools if tool.name == choice.name) or tools


def calls_left(tree: Chain, request: ResponseRequest) -> int | None:
    """How many more server tools may be called in the response; None: as many as the model likes."""
    if request.max_tool_calls is None:
        return None
    return max(0, request.max_tool_calls - _tool_calls(tree))


def output_tokens_left(tree: Chain, request: ResponseRequest) -> int | None:
    """How many more tokens the models may generate in the response, as far as is known; None: unbounded."""
    if request.max_output_tokens is None:
        return None
    usages = (step.result.usage for step in tree if isinstance(step.result, ModelTurn))
    return max(0, request.max_output_tokens - sum(usage.output_tokens for usage in usages if usage))


def is_superseded(step: Step) -> bool:
    """Whether *step* is a model call that came to nothing, so that the model is asked again.

    It is no turn; what was told of its answer stays in the output, but no model is shown it.
    """
    return isinstance(step.descriptor, ModelCall) and step.error is not None and step.error.type in _SUPERSEDED


def _append(
    descriptors: tuple[StepDescriptor, ...], chain: Chain, tree: Chain, request: ResponseRequest, limits: Limits
) -> Action:
    asks_model = any(isinstance(descriptor, ModelCall) for descriptor in descriptors)
    if asks_model and output_tokens_left(tree, request) == 0:
        return Finish(Incomplete(reason=IncompleteReason.MAX_OUTPUT_TOKENS))
    turns = sum(1 for step in chain if isinstance(step.descriptor, ModelCall) and not is_superseded(step))
    calls = _tool_calls(tree) + (0 if asks_model else len(descriptors))
    too_many_turns = asks_model and turns >= limits.turns
    if too_many_turns or calls > limits.tool_calls or len(tree) + len(descriptors) > limits.steps:
        return Finish(Failed(error=_TURN_LIMIT))
    return AppendSteps(descriptors)


def _tool_calls(tree: Chain) -> int:
    return sum(1 for step in tree if isinstance(step.descriptor, ToolCall))


def _last_model_step(chain: Chain) -> Step | None:
    return next((step for step in reversed(chain) if isinstance(step.descriptor, ModelCall)), None)


def _answered_calls(chain: Chain) -> frozenset[str]:
    """Call ids with a tool step since the last turn; a failed one is an answer too: the model reads the failure."""
    since = takewhile(lambda step: not isinstance(step.descriptor, ModelCall), reversed(chain))
    return frozenset(step.descriptor.call_id for step in since if isinstance(step.descriptor, ToolCall))
