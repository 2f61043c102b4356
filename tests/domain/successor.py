"""Who goes on with a response whose process died: what it tells, and how it comes to an end of its own."""

from collections.abc import Sequence
from functools import partial
from uuid import UUID

import attrs

from dwctl_trio.domain.assembly import assemble, chain_output, end_call, running_calls, terminal_event
from dwctl_trio.domain.events import (
    Event,
    ItemEvent,
    ResponseCreated,
    ResponseInProgress,
    ResponseQueued,
    SnapshotEvent,
    SubAgentEvent,
)
from dwctl_trio.domain.items import McpCall
from dwctl_trio.domain.limits import DEFAULT_LIMITS
from dwctl_trio.domain.recovery import recover_chain
from dwctl_trio.domain.response import Cancelled, Ending, Response, ResponseStatus
from dwctl_trio.domain.retelling import retell
from dwctl_trio.domain.steps import Chain, ModelCall, Step, StepDescriptor, StepState, ToolCall, ToolOutput
from dwctl_trio.domain.told import Told, ToldEvent, told_by
from dwctl_trio.domain.tools import kind_of_call
from dwctl_trio.domain.transitions import AppendSteps, Finish, next_action
from dwctl_trio.domain.turn import ContentFragment, FinishReason, ModelTurn, TextFragment
from dwctl_trio.domain.turn_output import TurnOutput, close_call
from dwctl_trio.testing.played_runs import CATALOG, OFFERED_TOOLS, Moment, Run, moments_of
from dwctl_trio.testing.toy_loop import chain_under


def as_told(events: Sequence[Event]) -> list[ToldEvent]:
    return [type(event) if isinstance(event, SnapshotEvent) else event for event in events]


def as_queued(run: Run) -> Run:
    """*run* of a response that waited in the queue: only there others go on."""
    return attrs.evolve(run, opening=attrs.evolve(run.opening, status=ResponseStatus.QUEUED))


def beginning(opening: Response) -> list[Event]:
    begun = attrs.evolve(opening, status=ResponseStatus.IN_PROGRESS)
    return [ResponseCreated(opening), ResponseQueued(opening), ResponseInProgress(begun)]


@attrs.frozen
class Crash:
    """The rows when a process died, and all that could have been said by then; it may be that less was."""

    opening: Response
    steps: Chain
    events: tuple[Event, ...]


def crashes_of(run: Run) -> list[Crash]:
    """One for each state of the rows of *run*."""
    last: dict[tuple[Step, ...], Moment] = {}
    for moment in moments_of(run):
        last[tuple(moment.steps)] = moment
    opening = run.opening
    return [Crash(opening, moment.steps, (*beginning(opening), *moment.events)) for moment in last.values()]


class Successor:
    """Goes on with the response of *crash*, of which *said* is stored; *told* is what it makes of that."""

    def __init__(self, crash: Crash, said: Sequence[Event], told: Told | None = None) -> None:
        self.said = [*said]
        self._opening = crash.opening
        self.told = told_by(as_told(said)) if told is None else told
        self.steps: list[Step] = list(recover_chain(crash.steps, self.told, CATALOG))
        begun = [] if self.told.is_in_progress else beginning(crash.opening)[-1:]
        self.retold: list[Event] = [*begun, *self.missing(self.told)]
        self.events: list[Event] = [*said, *self.retold]

    @property
    def top(self) -> Chain:
        return chain_under(self.steps, None)

    @property
    def shown(self) -> Chain:
        """What the steps of sub-agents are told from."""
        return self.steps if self._opening.request.shows_sub_agents else ()

    def missing(self, told: Told) -> list[ItemEvent | SubAgentEvent]:
        return retell(self.top, self.shown, told)

    def go_on(self, answer: Sequence[ContentFragment]) -> Response:
        """Fire what is open, and ask the model until it is over; it says *answer*."""
        return self._end(self._finish(None, answer))

    def cancel(self) -> Response:
        return self._end(Cancelled())

    def _finish(self, parent: Step | None, answer: Sequence[ContentFragment]) -> Ending:
        while True:
            for call in running_calls(self._chain(parent)).values():
                self._run(parent, *call)
            request = self._opening.request
            chain = self._chain(parent)
            action = next_action(chain, request=request, limits=DEFAULT_LIMITS, tree=self.steps)
            match action:
                case Finish(ending):
                    return ending
                case AppendSteps(descriptors):
                    running = running_calls(chain)
                    opened = [self._open(descriptor, parent) for descriptor in descriptors]
                    for call_id in running.keys() - running_calls(self._chain(parent)).keys():
                        self._close(parent, *running[call_id], None)
                    if isinstance(descriptors[0], ModelCall):
                        self._ask(parent, opened[0], answer)

    def _run(self, parent: Step | None, index: int, call: McpCall) -> None:
        """The tool of *call*, if it has a step: a bound may have forbidden it."""
        chain = self._chain(parent)
        step = next((one for one in reversed(chain) if one.is_open and _answers(one, call)), None)
        if step is None:
            return
        if self._chain(step):
            self._finish(step, [TextFragment("inside")])
        ended = attrs.evolve(step, state=StepState.COMPLETED, result=ToolOutput(output="again"))
        self._replace(ended)
        self._close(parent, index, call, ended)

    def _ask(self, parent: Step | None, step: Step, answer: Sequence[ContentFragment]) -> None:
        first = len(chain_output(self._chain(parent)))
        kind_of = partial(kind_of_call, OFFERED_TOOLS, OFFERED_TOOLS)
        output = TurnOutput(step_id=step.id, first_output_index=first, kind_of=kind_of)
        for fragment in answer:
            self._tell(parent, output.feed(fragment))
        self._tell(parent, output.close(FinishReason.STOP))
        turn = ModelTurn(items=output.items(), finish_reason=FinishReason.STOP, usage=None)
        self._replace(attrs.evolve(step, state=StepState.COMPLETED, result=turn))

    def _end(self, ending: Ending) -> Response:
        running = running_calls(self.top)
        for step in [step for step in self.steps if step.is_open]:
            self._replace(attrs.evolve(step, state=StepState.CANCELED))
        for index, call in running.values():
            self._close(None, index, call, None)
        response = assemble(self._opening, self.steps, ending, ended_at=self._opening.created_at)
        self.events.append(terminal_event(response))
        return response

    def _chain(self, parent: Step | None) -> Chain:
        return chain_under(self.steps, parent.id if parent else None)

    def _open(self, descriptor: StepDescriptor, parent: Step | None) -> Step:
        sequence = len(self.steps) + 1
        step = Step(
            id=UUID(int=sequence),
            sequence=sequence,
            descriptor=descriptor,
            state=StepState.PROCESSING,
            parent_step_id=parent.id if parent else None,
        )
        self.steps.append(step)
        return step

    def _replace(self, ended: Step) -> None:
        self.steps[ended.sequence - 1] = ended

    def _close(self, parent: Step | None, index: int, call: McpCall, step: Step | None) -> None:
        self._tell(parent, close_call(index, end_call(call, step)))

    def _tell(self, parent: Step | None, events: Sequence[ItemEvent]) -> None:
        if parent is None:
            self.events += events
        elif self.shown:
            assert isinstance(parent.descriptor, ToolCall)
            item_id = item_of(parent, self.steps)
            self.events += [SubAgentEvent(parent.descriptor.name, item_id, event) for event in events]


def item_of(step: Step, steps: Chain) -> str:
    """The item that shows the call that *step* is."""
    earlier = [one for one in chain_under(steps, step.parent_step_id) if one.sequence < step.sequence]
    turn = next(one.result for one in reversed(earlier) if isinstance(one.descriptor, ModelCall))
    assert isinstance(turn, ModelTurn)
    return next(item.id for item in turn.items if isinstance(item, McpCall) and _answers(step, item))


def _answers(step: Step, call: McpCall) -> bool:
    return isinstance(step.descriptor, ToolCall) and step.descriptor.call_id == call.call_id
