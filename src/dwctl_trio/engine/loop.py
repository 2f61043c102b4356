"""The agent loop: ask what is next, do it, until it is over.

Rule: it decides nothing; ``domain/transitions.next_action`` does.
"""

from typing import assert_never

from dwctl_trio.domain.response import Ending
from dwctl_trio.domain.transitions import AppendSteps, Finish, next_action
from dwctl_trio.engine.execution import execute_model_call
from dwctl_trio.engine.state import Scope, Services

_NO_SERVER_TOOLS: frozenset[str] = frozenset()


async def run_loop(services: Services, scope: Scope) -> Ending:
    """Work until the response is over; return how it ended.

    Cancellation: the step under way is left as it is in ``scope.current``; ``engine/finalize.py`` closes it.
    """
    while True:
        action = next_action(scope.chain, server_tools=_NO_SERVER_TOOLS, limits=services.limits)
        match action:
            case Finish(ending):
                return ending
            case AppendSteps():
                # Without server tools the only step is the first model call, which the opening stores.
                assert not scope.chain, "a loop without tools has one step"
                await execute_model_call(services, scope)
            case _ as never:
                assert_never(never)
