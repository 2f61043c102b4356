"""Executing a tool call of the server's: over HTTP, or by a sub-agent.

Rule 1: a tool that fails is a result that the model reads, never the end of the response.
Rule 2: the result is durable before it is told.
Rule 3: whoever waits for others holds no place: an agent takes one for each of its model calls, not for its life.
"""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import attrs
import trio

from dwctl_trio.domain.assembly import end_call
from dwctl_trio.domain.errors import ToolFailed
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.response import Ending, ErrorCode, ErrorType, ResponseError
from dwctl_trio.domain.steps import Step, StepState, ToolCall, ToolOutput
from dwctl_trio.domain.tools import AgentTool, HttpTool
from dwctl_trio.domain.transitions import callable_tools
from dwctl_trio.domain.turn_output import close_call
from dwctl_trio.engine.agents import answer_of, begin_agent
from dwctl_trio.engine.execution import tell
from dwctl_trio.engine.progress import settle
from dwctl_trio.engine.state import AgentLoop, Scope, Services
from dwctl_trio.observability.log import get_logger
from dwctl_trio.ports import ToolInvocation

_log = get_logger(__name__)

RunLoop: TypeAlias = Callable[[Services, Scope, AgentLoop], Awaitable[Ending]]


async def execute_tool_call(services: Services, scope: Scope, loop: AgentLoop, step: Step, run_loop: RunLoop) -> None:
    """Run the tool that *step* calls, settle its end, and tell it.

    Args:
        services: The tools and the store.
        scope: The response.
        loop: Whose call it is.
        step: Stored as ``processing``.
        run_loop: What runs a sub-agent.

    Raises:
        StoreError: Its end could not be stored.
        trio.BrokenResourceError: The consumer has left.
    """
    call = step.descriptor
    assert isinstance(call, ToolCall), "a model call is executed elsewhere"
    begun_at = trio.current_time()
    try:
        output = await _run(services, scope, loop, step, run_loop)
    except ToolFailed as error:
        failure = ResponseError(type=error.kind, code=ErrorCode.SERVER_ERROR, message=str(error))
        ended = attrs.evolve(step, state=StepState.FAILED, error=failure)
    else:
        ended = attrs.evolve(step, state=StepState.COMPLETED, result=ToolOutput(output=output))
    services.metrics.note_tool_call(
        _known_name(services, call.name), ended.error.type if ended.error else None, trio.current_time() - begun_at
    )
    await settle(services, scope, loop, ended)
    output_index, shown = loop.calls.pop(call.call_id)
    await tell(scope, loop, close_call(output_index, end_call(shown, ended)))


def _known_name(services: Services, name: str) -> str:
    """A tool's name as a metric may have it: a model may ask for anything."""
    return name if name in services.catalog else "unknown"


async def _run(services: Services, scope: Scope, loop: AgentLoop, step: Step, run_loop: RunLoop) -> str:
    """The output of the tool.

    Raises:
        ToolFailed: There is none.
    """
    call = step.descriptor
    assert isinstance(call, ToolCall), "only tools are run"
    choice = loop.request.tool_choice
    may_call = callable_tools(scope.chain_of(loop), tools=loop.tools, choice=choice, call=step)
    is_ours = any(tool.name == call.name and tool.kind is CallKind.SERVER for tool in may_call)
    tool = services.catalog.get(call.name) if is_ours else None
    match tool:
        case None:
            names = ", ".join(tool.name for tool in may_call) or "none"
            raise ToolFailed(ErrorType.TOOL_NOT_FOUND, f"There is no such tool. The tools are: {names}.")
        case HttpTool():
            async with scope.running_tools:
                return await _run_http(services, scope, step, call, tool)
        case AgentTool():
            agent = begin_agent(services, scope, loop, step, tool)
            with trio.move_on_after(tool.timeout_s):
                return answer_of(scope, agent, await run_loop(services, scope, agent))
            scope.break_off(agent)
            raise ToolFailed(ErrorType.TOOL_TIMEOUT, f"The agent took longer than {tool.timeout_s:g} s.")


async def _run_http(services: Services, scope: Scope, step: Step, call: ToolCall, tool: HttpTool) -> str:
    invocation = ToolInvocation(tool=tool, arguments=call.arguments, response_id=scope.new.response_id, step_id=step.id)
    try:
        return await services.tools.run_tool(invocation)
    except ToolFailed:
        raise
    except Exception as error:  # supervision boundary: a tool call, whose fault the model is told like any failure
        _log.exception("tool_call_failed", response_id=response_id_text(scope.new.response_id), tool=call.name)
        raise ToolFailed(ErrorType.EXECUTOR_ERROR, "The tool could not be run.") from error
