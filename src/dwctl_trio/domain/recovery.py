"""What becomes of the open steps of a response whose process died, when another goes on with it.

Rule 1: a step that has ended stays as it is.
Rule 2: an open model call is abandoned; what was told of its answer stays in the output, closed.
Rule 3: an open tool call whose outcome was told has that outcome: what ends a loop is stored with the loop's own end.
Rule 4: any other is made again only if its tool allows it; otherwise the model is told.
Rule 5: a sub-agent goes on as long as the call that it is.
"""

from uuid import UUID

import attrs

from dwctl_trio.domain.assembly import chain_items, output_length
from dwctl_trio.domain.items import ItemStatus, McpCall, OutputItem
from dwctl_trio.domain.response import ErrorCode, ErrorType, ResponseError
from dwctl_trio.domain.steps import Chain, ModelCall, Step, StepState, ToolOutput
from dwctl_trio.domain.told import Told, ToldItem
from dwctl_trio.domain.tools import ToolCatalog, may_fire_again
from dwctl_trio.domain.turn import ModelTurn

ABANDONED_CALL = ResponseError(
    type=ErrorType.STEP_ABANDONED,
    code=ErrorCode.SERVER_ERROR,
    message="The call was abandoned: the server stopped while the tool ran. It may or may not have had an effect.",
)
"""What becomes of a tool call that a crash interrupted and that may not be made again."""
ABANDONED_TURN = ResponseError(
    type=ErrorType.STEP_ABANDONED,
    code=ErrorCode.SERVER_ERROR,
    message="The server stopped while the model answered; it was asked again.",
)
"""What becomes of a model call that a crash interrupted."""


def recover_chain(steps: Chain, told: Told, catalog: ToolCatalog) -> tuple[Step, ...]:
    """The steps of all loops of a response, as whoever goes on with it finds them.

    Args:
        steps: As they were last stored, in order of ``sequence``.
        told: All that the stream has said, before or after they were stored.
        catalog: The server's tools, by name.

    Returns:
        The same steps. What is still open is to be fired again: calls of tools that allow it, agents among them.
    """
    loops: dict[UUID | None, list[Step]] = {}
    for step in steps:
        loops.setdefault(step.parent_step_id, []).append(step)
    items = {step.id: item.id for chain in loops.values() for item, step in chain_items(chain) if step is not None}
    heard = {entry.item.id: entry.item for entries in (told.items, *told.agents.values()) for entry in entries}
    recovered: dict[UUID, Step] = {}
    for step in steps:
        parent_id = step.parent_step_id
        if not step.is_open:
            recovered[step.id] = step
        elif isinstance(step.descriptor, ModelCall):
            of_loop = told.items if parent_id is None else told.agents.get(items.get(parent_id, ""), ())
            recovered[step.id] = _abandon_turn(step, loops[parent_id], of_loop)
        else:
            may_go_on = parent_id is None or recovered[parent_id].is_open
            may_be_made = may_go_on and may_fire_again(catalog.get(step.descriptor.name))
            outcome = _outcome(step, heard.get(items.get(step.id, "")))
            recovered[step.id] = outcome or (step if may_be_made else _abandon_call(step))
    return tuple(recovered.values())


def _abandon_turn(step: Step, chain: Chain, heard: tuple[ToldItem, ...]) -> Step:
    """The open model call *step* of the loop *chain*, of whose output *heard* was told, as it ends."""
    items = tuple(_close(told) for told in heard[output_length(chain) :])  # the rest is of the turns before
    turn = ModelTurn(items=items, finish_reason=None, usage=None) if items else None
    return attrs.evolve(step, state=StepState.FAILED, error=ABANDONED_TURN, result=turn)


def _outcome(step: Step, told: OutputItem | None) -> Step | None:
    """The open tool call *step* as it was told to have ended; None if that was not told."""
    match told:
        case McpCall(status=ItemStatus.COMPLETED, output=str(output)):
            return attrs.evolve(step, state=StepState.COMPLETED, result=ToolOutput(output=output))
        case McpCall(status=ItemStatus.FAILED, error=ABANDONED_CALL.message):
            return _abandon_call(step)  # by another, who died as well
        case McpCall(status=ItemStatus.FAILED, error=str(message)):
            error = ResponseError(type=ErrorType.EXECUTOR_ERROR, code=ErrorCode.SERVER_ERROR, message=message)
            return attrs.evolve(step, state=StepState.FAILED, error=error)
        case _:
            return None


def _abandon_call(step: Step) -> Step:
    return attrs.evolve(step, state=StepState.FAILED, error=ABANDONED_CALL)


def _close(told: ToldItem) -> OutputItem:
    return told.item if told.is_whole else attrs.evolve(told.item, status=ItemStatus.INCOMPLETE)
