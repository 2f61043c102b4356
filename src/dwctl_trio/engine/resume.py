"""Going on with a response whose process died, from its rows alone.

Rule 1: a step that has ended is never made again.
Rule 2: an open model call is made again; an open tool call only if its tool allows it, otherwise the model is told.
Rule 3: what the rows hold is told again from the beginning, so that whoever listens now misses nothing.
"""

import trio

from dwctl_trio.domain.events import ResponseCreated, ResponseInProgress
from dwctl_trio.domain.response import Response
from dwctl_trio.domain.retelling import retell
from dwctl_trio.domain.steps import ModelCall, Step, ToolCall
from dwctl_trio.domain.tools import AgentTool
from dwctl_trio.domain.transitions import recover_step
from dwctl_trio.engine.model_step import ModelStep
from dwctl_trio.engine.scope import run_scope
from dwctl_trio.engine.state import AgentLoop, Scope, Services
from dwctl_trio.ports import EventSink, ResumedResponse


async def resume_response(services: Services, resumed: ResumedResponse, sink: EventSink) -> Response:
    """Work on *resumed* to its end; return the response as it was told.

    Args:
        services: What it is worked on with.
        resumed: As ``take_over`` gave it.
        sink: Whoever consumes its events.

    Cancellation: as for ``run_scope``.
    """
    scope = restore_scope(services, resumed, sink)
    services.live.note_opened(resumed.new.response_id)
    return await run_scope(services, scope)


def restore_scope(services: Services, resumed: ResumedResponse, sink: EventSink) -> Scope:
    """The scope of *resumed* as its process had it, what was interrupted ended or about to be fired again."""
    scope = Scope(resumed.new, sink, services.limits)
    scope.epoch = resumed.epoch
    scope.started_at = trio.current_time() - resumed.age_s
    scope.steps.clear()
    for step in resumed.steps:
        scope.add_step(step)
    for step in resumed.steps:
        ended = recover_step(step, services.catalog) if step.is_open else None
        if ended is not None:
            scope.end_step(ended, _abandoned_call(services, scope, step))
    opening = scope.opening = scope.make_opening(resumed.created_at)
    scope.show_calls(scope.top)
    scope.opened.set()
    told = retell(scope.chain_of(scope.top), scope.tree if scope.new.request.shows_sub_agents else ())
    scope.emitter.note([ResponseCreated(opening), ResponseInProgress(opening), *told])
    return scope


def _abandoned_call(services: Services, scope: Scope, step: Step) -> ModelStep | None:
    """What is recorded of the model call that *step* was; None for a tool call.

    When it began is not known here: its record counts from now.
    """
    if not isinstance(step.descriptor, ModelCall):
        return None
    parent = scope.steps.get(step.parent_step_id) if step.parent_step_id is not None else None
    name = parent.descriptor.name if parent is not None and isinstance(parent.descriptor, ToolCall) else ""
    tool = services.catalog.get(name)
    route = tool.route if isinstance(tool, AgentTool) else scope.new.route
    loop = AgentLoop(request=scope.new.request, route=route, tools=())
    return loop.make_model_step(step, first_output_index=0)
