"""The steps of a response as ``GET /v1/responses/{id}/steps`` lists them; ours, OpenAI has no such thing."""

from collections.abc import Sequence
from uuid import UUID

from dwctl_trio.domain.response import ResponseError
from dwctl_trio.domain.steps import ModelCall, Step, ToolCall, ToolOutput
from dwctl_trio.domain.turn import ModelTurn
from dwctl_trio.protocol.output_items import render_item
from dwctl_trio.protocol.response_object import render_usage


def render_steps(steps: Sequence[Step]) -> dict[str, object]:
    """*steps*, in order of their sequence, as a list object."""
    return {
        "object": "list",
        "data": [render_step(step) for step in steps],
        "first_id": _step_id(steps[0].id) if steps else None,
        "last_id": _step_id(steps[-1].id) if steps else None,
        "has_more": False,
    }


def render_step(step: Step) -> dict[str, object]:
    """One entry of the list."""
    common: dict[str, object] = {
        "id": _step_id(step.id),
        "object": "response.step",
        "sequence": step.sequence,
        "status": step.state.value,
        "parent_step_id": None if step.parent_step_id is None else _step_id(step.parent_step_id),
        "error": _render_error(step.error),
    }
    match step.descriptor:
        case ModelCall():
            turn = step.result if isinstance(step.result, ModelTurn) else None
            finish_reason = turn.finish_reason if turn is not None else None
            return common | {
                "type": "model_call",
                "output": [render_item(item) for item in turn.items] if turn is not None else [],
                "finish_reason": finish_reason.value if finish_reason is not None else None,
                "usage": render_usage(turn.usage if turn is not None else None),
            }
        case ToolCall(call_id=call_id, name=name, arguments=arguments):
            output = step.result.output if isinstance(step.result, ToolOutput) else None
            return common | {
                "type": "tool_call",
                "call_id": call_id,
                "name": name,
                "arguments": arguments,
                "output": output,
            }


def _step_id(step_id: UUID) -> str:
    return f"step_{step_id}"


def _render_error(error: ResponseError | None) -> dict[str, object] | None:
    return None if error is None else {"type": error.type.value, "message": error.message}
