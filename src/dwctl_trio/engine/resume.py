"""A claimed response as its last attempt left it, from its rows and its stored events.

Rule 1: a step that has ended is never made again.
Rule 2: an open model call is made again; an open tool call only if its tool allows it, otherwise the model is told.
Rule 3: what was told stays told: numbers go on, nothing is told twice, and what a dead attempt left open is closed.
"""

from collections.abc import Sequence

import attrs
import trio

from dwctl_trio.domain.events import Event, ResponseCreated, ResponseInProgress
from dwctl_trio.domain.recovery import recover_chain
from dwctl_trio.domain.retelling import retell
from dwctl_trio.domain.steps import ModelCall, Step, ToolCall
from dwctl_trio.domain.told import Listener, Told
from dwctl_trio.domain.tools import AgentTool
from dwctl_trio.engine.model_step import ModelStep
from dwctl_trio.engine.state import AgentLoop, Scope, Services
from dwctl_trio.ports import ClaimedResponse, EventSink
from dwctl_trio.protocol.event_reading import read_pieces


@attrs.frozen
class Restored:
    """A claimed response, ready to be worked on."""

    scope: Scope
    """What was interrupted has ended in it, or is about to be fired again."""
    untold: Sequence[Event]
    """What is to be told first, once it is durable that it is being worked on."""

    def note_untold(self) -> None:
        """Put what is untold into the log of a response that ends instead; one that never ran says nothing of work."""
        if self.scope.steps:
            self.scope.emitter.note(self.untold)


async def restore(services: Services, claimed: ClaimedResponse, sink: EventSink) -> Restored:
    """The scope of *claimed*, whose row, steps and events may come from an attempt that died at any moment.

    Others have their turn while much is read.

    Raises:
        Exception: Another release told or did what this one does not know.
    """
    new = claimed.new
    scope = Scope(new, sink, services.limits, first_number=claimed.last_sequence + 1)
    scope.epoch = claimed.epoch
    scope.started_at = trio.current_time() - claimed.age_s
    scope.steps.clear()
    told = await _listen(claimed.told)
    for step in claimed.steps:
        scope.add_step(step)
    recovered = recover_chain(claimed.steps, told, services.catalog)
    for step, ended in zip(claimed.steps, recovered, strict=True):
        if step.is_open and not ended.is_open:
            scope.end_step(ended, _abandoned_call(services, scope, step))
    opening = scope.opening = scope.make_opening(claimed.created_at)
    scope.show_calls(scope.top)
    scope.opened.set()
    lifecycle: list[Event] = []
    if claimed.last_sequence < 0:  # a warm response, of which nothing is stored
        lifecycle.append(ResponseCreated(opening))
    if not told.is_in_progress:
        lifecycle.append(ResponseInProgress(opening))
    missing = retell(scope.chain_of(scope.top), scope.tree if new.request.shows_sub_agents else (), told)
    return Restored(scope, [*lifecycle, *missing])


async def _listen(frames: bytes) -> Told:
    """What *frames*, a stream from its beginning, have said."""
    listener = Listener()
    for events in read_pieces(frames):
        listener.note(events)
        await trio.lowlevel.checkpoint()
    return listener.told()


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
