"""Sub-agents: from a tool call to a loop of its own, and from its end to the call's output."""

from dwctl_trio.domain.errors import ToolFailed
from dwctl_trio.domain.items import output_text
from dwctl_trio.domain.request import InputMessage, InputPart, PartKind, ResponseRequest, Role
from dwctl_trio.domain.response import Cancelled, Completed, Ending, ErrorType, Failed, Incomplete
from dwctl_trio.domain.steps import Step, ToolCall
from dwctl_trio.domain.tools import AgentTool, offer
from dwctl_trio.domain.turn import ModelTurn
from dwctl_trio.engine.state import AgentLoop, Scope, Services
from dwctl_trio.protocol.tool_arguments import read_task


def begin_agent(services: Services, scope: Scope, loop: AgentLoop, step: Step, tool: AgentTool) -> AgentLoop:
    """The loop of the sub-agent that *step* of *loop* is; one that is resumed finds its steps there.

    Raises:
        ToolFailed: It would be too deep, or its arguments are not a task.
    """
    depth = loop.depth + 1
    if depth > services.limits.depth:
        raise ToolFailed(
            ErrorType.MAX_DEPTH_EXCEEDED, f"Agents may call agents {services.limits.depth} deep at the most."
        )
    call = step.descriptor
    assert isinstance(call, ToolCall), "an agent is a tool"
    _, shown = loop.calls[call.call_id]
    agent = AgentLoop(
        request=_make_request(scope.new.request, tool, read_task(call.arguments)),
        route=tool.route,
        tools=tuple(offer(services.catalog[name]) for name in tool.tools),
        parent=step,
        item_id=shown.id,
        depth=depth,
    )
    scope.loops.append(agent)
    scope.show_calls(agent)
    return agent


def answer_of(scope: Scope, agent: AgentLoop, ending: Ending) -> str:
    """The last words of *agent*.

    Raises:
        ToolFailed: It came to no answer.
    """
    match ending:
        case Completed():
            (*_, last) = scope.chain_of(agent)
            assert isinstance(last.result, ModelTurn), "an answer is a turn"
            return output_text(last.result.items)
        case Incomplete():
            raise ToolFailed(ErrorType.EXECUTOR_ERROR, "The agent's answer was cut short by a limit or a filter.")
        case Failed(error=error):
            raise ToolFailed(ErrorType.EXECUTOR_ERROR, f"The agent failed: {error.message}")
        case Cancelled():
            raise ToolFailed(ErrorType.EXECUTOR_ERROR, "The agent was cancelled.")


def _make_request(asked: ResponseRequest, tool: AgentTool, task: str) -> ResponseRequest:
    """What a sub-agent is asked: its task, by the operator's instructions; nothing of the client's conversation."""
    part = InputPart(kind=PartKind.INPUT_TEXT, text=task)
    return ResponseRequest(
        model=tool.route.model,
        input=(InputMessage(role=Role.USER, content=(part,)),),
        instructions=tool.instructions,
        store=asked.store,
        service_tier=asked.service_tier,
    )
