"""Steps: the durable units of the loop, and the chain they form.

Rule 1: a step is stored before it is fired and when it ends.
Rule 2: a terminal step never changes.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeAlias
from uuid import UUID

import attrs

from dwctl_trio.domain.response import ResponseError
from dwctl_trio.domain.turn import ModelTurn


class StepState(StrEnum):
    """How far a step has come; the moves are in ``domain/lifecycle.py``."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"


@attrs.frozen(kw_only=True)
class ModelCall:
    """Ask the model for its next turn over the whole conversation."""


@attrs.frozen(kw_only=True)
class ToolCall:
    """Run one of the server's tools."""

    call_id: str
    """The model's id for the call; its output answers exactly this one."""
    name: str
    arguments: str
    """JSON text as the model wrote it."""


StepDescriptor: TypeAlias = ModelCall | ToolCall


@attrs.frozen(kw_only=True)
class ToolOutput:
    """What a tool gave back, as the model will read it."""

    output: str


StepResult: TypeAlias = ModelTurn | ToolOutput


@attrs.frozen(kw_only=True)
class Step:
    """One step of one response."""

    id: UUID
    sequence: int
    """Place in the response, from 1, unique; never on the wire."""
    descriptor: StepDescriptor
    state: StepState
    parent_step_id: UUID | None = None
    """The tool step whose sub-agent this step belongs to; None at top level."""
    result: StepResult | None = None
    """Of a completed step; a failed or cancelled model call keeps the part it had."""
    error: ResponseError | None = None
    """Of a failed step; of a tool call, what the model and the client are told."""

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.state in _OPEN


_OPEN = frozenset({StepState.PENDING, StepState.PROCESSING})

Chain: TypeAlias = Sequence[Step]
"""The steps of one loop in order of ``sequence``."""
