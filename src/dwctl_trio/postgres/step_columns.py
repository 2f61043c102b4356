"""Steps and model calls as the columns of statements, and back from their rows.

Rule: what was said (arguments, results, why a tool failed) is left out for a response that is not to be stored.
"""

from collections.abc import Sequence
from typing import Any

import attrs
import msgspec

from dwctl_trio.domain.response import ErrorCode, ErrorType, ResponseError
from dwctl_trio.domain.steps import ModelCall, Step, StepDescriptor, StepResult, StepState, ToolCall, ToolOutput
from dwctl_trio.domain.turn import ModelTurn
from dwctl_trio.ports import EndedStep
from dwctl_trio.protocol import json
from dwctl_trio.protocol.response_object import parse_turn, render_turn

MODEL_CALL = "model_call"
TOOL_CALL = "tool_call"


def ended_columns(ended: Sequence[EndedStep], *, store: bool) -> dict[str, object]:
    """How steps ended, a list for each column."""
    steps = [entry.step for entry in ended]
    return {
        "ended_ids": [step.id for step in steps],
        "ended_states": [step.state.value for step in steps],
        "ended_results": [_result_text(step.result) if store else None for step in steps],
        "ended_errors": [error_text(step.error if store else without_message(step.error)) for step in steps],
    }


def metering_columns(ended: Sequence[EndedStep]) -> dict[str, object]:
    """What the model calls among *ended* used, a list for each column."""
    calls = [(entry.step, entry.metering) for entry in ended if entry.metering is not None]
    usages = [step.result.usage if isinstance(step.result, ModelTurn) else None for step, _ in calls]
    meterings = [metering for _, metering in calls]
    prices = [metering.route.price for metering in meterings]
    return {
        "call_ids": [step.id for step, _ in calls],
        "call_models": [metering.route.model for metering in meterings],
        "call_upstreams": [metering.route.upstream for metering in meterings],
        "call_upstream_models": [metering.route.upstream_model for metering in meterings],
        "call_http_statuses": [metering.http_status for metering in meterings],
        "call_error_codes": [metering.error_code for metering in meterings],
        "call_started_ago_s": [metering.started_ago_s for metering in meterings],
        "call_first_token_ago_s": [metering.first_token_ago_s for metering in meterings],
        "call_input_tokens": [usage and usage.input_tokens for usage in usages],
        "call_cached_tokens": [usage and usage.cached_tokens for usage in usages],
        "call_reasoning_tokens": [usage and usage.reasoning_tokens for usage in usages],
        "call_output_tokens": [usage and usage.output_tokens for usage in usages],
        "call_input_prices": [price and price.input_per_million for price in prices],
        "call_output_prices": [price and price.output_per_million for price in prices],
        "call_currencies": [price and price.currency for price in prices],
    }


def opened_columns(opened: Sequence[Step], *, store: bool) -> dict[str, object]:
    """Steps about to be fired, a list for each column."""
    calls = [step.descriptor if isinstance(step.descriptor, ToolCall) else None for step in opened]
    return {
        "opened_ids": [step.id for step in opened],
        "opened_parents": [step.parent_step_id for step in opened],
        "opened_sequences": [step.sequence for step in opened],
        "opened_kinds": [MODEL_CALL if call is None else TOOL_CALL for call in calls],
        "opened_call_ids": [call and call.call_id for call in calls],
        "opened_names": [call and call.name for call in calls],
        # A JSON text of the model's own, which may be invalid, is kept as a string.
        "opened_requests": [text(call.arguments) if call is not None and store else None for call in calls],
    }


def step_from_row(row: Any) -> Step:
    """The step that a row of ``response_steps`` holds."""
    descriptor: StepDescriptor
    result: StepResult | None = None
    if row["kind"] == MODEL_CALL:
        descriptor = ModelCall()
        result = parse_turn(msgspec.json.decode(row["result"])) if row["result"] is not None else None
    else:
        arguments = msgspec.json.decode(row["request"], type=str) if row["request"] is not None else ""
        descriptor = ToolCall(call_id=row["call_id"], name=row["name"], arguments=arguments)
        if row["result"] is not None:
            result = ToolOutput(output=msgspec.json.decode(row["result"], type=str))
    return Step(
        id=row["id"],
        sequence=row["sequence"],
        descriptor=descriptor,
        state=StepState(row["state"]),
        parent_step_id=row["parent_step_id"],
        result=result,
        error=error_from_text(row["error"]),
    )


def text(value: object) -> str:
    """*value* as JSON text."""
    return json.encode(value).decode()


def without_message(error: ResponseError | None) -> ResponseError | None:
    """What of *error* may be kept of a response that is not stored: a tool's own words can be in its message."""
    return None if error is None else attrs.evolve(error, message="")


def error_text(error: ResponseError | None) -> str | None:
    """*error* as an ``error`` column keeps it."""
    if error is None:
        return None
    return text({"type": error.type.value, "code": error.code.value, "message": error.message})


def error_from_text(stored: str | None) -> ResponseError | None:
    """The error that ``error_text`` wrote."""
    if stored is None:
        return None
    fields = msgspec.json.decode(stored)
    return ResponseError(type=ErrorType(fields["type"]), code=ErrorCode(fields["code"]), message=fields["message"])


def _result_text(result: StepResult | None) -> str | None:
    match result:
        case None:
            return None
        case ModelTurn():
            return text(render_turn(result))
        case ToolOutput(output=output):
            return text(output)
