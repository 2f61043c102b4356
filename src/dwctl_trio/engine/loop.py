"""The agent loop: fire what is open, make durable what came of it, until it is over.

    run_loop ── open step ─┬─ model call ── execution.py
                           └─ tool calls, side by side ── tool_calls.py ── an agent's: run_loop again, one deeper

Rule: it decides nothing; ``domain/transitions.next_action`` does, asked in ``progress.py``.
"""

import trio

from dwctl_trio.domain.errors import DwctlError
from dwctl_trio.domain.response import Ending
from dwctl_trio.domain.steps import ModelCall, Step
from dwctl_trio.engine.execution import end_calls_not_made, execute_model_call
from dwctl_trio.engine.progress import open_steps, settle
from dwctl_trio.engine.state import AgentLoop, Scope, Services
from dwctl_trio.engine.tool_calls import execute_tool_call


async def run_loop(services: Services, scope: Scope, loop: AgentLoop) -> Ending:
    """Work until *loop* is over; return how it ended.

    The last steps may be in memory only: they are written with what the caller writes next.

    Raises:
        StoreError: A step could not be made durable.
        trio.BrokenResourceError: The consumer has left.

    Cancellation: open steps stay open in ``scope.steps``; ``engine/finalize.py`` ends them.
    """
    if not open_steps(scope, loop):  # an agent that begins, or a response that is resumed between two steps
        await settle(services, scope, loop)
    while loop.ending is None:
        await end_calls_not_made(scope, loop)
        steps = open_steps(scope, loop)
        if isinstance(steps[0].descriptor, ModelCall):
            await execute_model_call(services, scope, loop, steps[0])
        else:
            await _fan_out(services, scope, loop, steps)
    return loop.ending


async def _fan_out(services: Services, scope: Scope, loop: AgentLoop, steps: list[Step]) -> None:
    """Run the tools of *steps* side by side; the first that cannot be made durable or told ends them all."""
    errors: list[Exception] = []

    async def execute(step: Step) -> None:
        try:
            await execute_tool_call(services, scope, loop, step, run_loop)
        except (DwctlError, trio.BrokenResourceError) as error:
            errors.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for step in steps:
            nursery.start_soon(execute, step, name="execute_tool_call")
    if errors:
        raise errors[0]
