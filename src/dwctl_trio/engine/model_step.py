"""A model call under way: its output so far, and what is to be recorded of it."""

from collections.abc import Callable, Mapping

import attrs
import trio

from dwctl_trio.domain.events import ItemEvent
from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.response import ResponseError
from dwctl_trio.domain.steps import Step, StepState
from dwctl_trio.domain.turn import FinishReason, ModelTurn
from dwctl_trio.domain.turn_output import TurnOutput
from dwctl_trio.domain.usage import Usage
from dwctl_trio.ports import CallMetering


class ModelStep:
    """One model call.

    Args:
        step: The step as it was stored before the call.
        route: Where the call goes.
        first_output_index: Where its items begin in the output of its loop.
        kind_of: Who runs a call of a name.
        namespaces: As in ``TurnOutput``.
    """

    def __init__(
        self,
        step: Step,
        *,
        route: ModelRoute,
        first_output_index: int,
        kind_of: Callable[[str], CallKind],
        namespaces: Mapping[str, str] | None = None,
    ) -> None:
        self.step = step
        self.output = TurnOutput(
            step_id=step.id, first_output_index=first_output_index, kind_of=kind_of, namespaces=namespaces
        )
        self.finish_reason: FinishReason | None = None
        self.usage: Usage | None = None
        self.http_status: int | None = None
        self._route = route
        self._started_at = trio.current_time()
        self.first_token_at: float | None = None

    def note_token(self) -> None:
        """Something of the answer has arrived."""
        if self.first_token_at is None:
            self.first_token_at = trio.current_time()

    def close_output(self) -> list[ItemEvent]:
        """Close what is open, and return the events of it; nothing if the turn had finished."""
        return [] if self.finish_reason is not None else self.output.close(None)

    def end(self, state: StepState, error: ResponseError | None = None) -> Step:
        """The step as it ends, with the turn as far as it got."""
        turn = ModelTurn(items=self.output.items(), finish_reason=self.finish_reason, usage=self.usage)
        return attrs.evolve(self.step, state=state, result=turn, error=error)

    def metering(self, error_code: str | None) -> CallMetering:
        """What is recorded of the call, as of now."""
        now = trio.current_time()
        return CallMetering(
            route=self._route,
            http_status=self.http_status,
            error_code=error_code,
            started_ago_s=now - self._started_at,
            first_token_ago_s=None if self.first_token_at is None else now - self.first_token_at,
        )
