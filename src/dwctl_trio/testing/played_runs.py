"""Runs played out: what models and tools do, made into the steps and the events that the engine makes of it.

Rule 1: made by the code under test (``TurnOutput``, ``assemble``); ``event_grammar`` and ``fold`` check it.
Rule 2: siblings take turns as the run's schedule says, so that they end in any order and their sub-agents interleave.
Rule 3: a run can be cut at every point where the engine can be cancelled, and ends then as the engine ends it.

It decides nothing: that each turn may follow the one before is the caller's care.
"""

from collections.abc import Generator, Iterable, Sequence
from functools import partial
from itertools import islice
from uuid import UUID

import attrs

from dwctl_trio.domain.assembly import assemble, end_call, terminal_event
from dwctl_trio.domain.events import (
    Event,
    ItemEvent,
    ResponseCreated,
    ResponseInProgress,
    ResponseQueued,
    StreamEvent,
    SubAgentEvent,
)
from dwctl_trio.domain.items import CallKind, ItemStatus, McpCall, output_text
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.response import Ending, Failed, Response, ResponseError, ResponseStatus
from dwctl_trio.domain.steps import Chain, ModelCall, Step, StepDescriptor, StepState, ToolCall, ToolOutput
from dwctl_trio.domain.tools import AgentTool, HttpTool, OfferedTool, ToolCatalog, kind_of_call, offer
from dwctl_trio.domain.transitions import calls_left
from dwctl_trio.domain.turn import ContentFragment, FinishReason, ModelTurn
from dwctl_trio.domain.turn_output import TurnOutput, close_call
from dwctl_trio.domain.usage import Usage

_ANYTHING = b'{"type":"object"}'
_ROUTE = ModelRoute(model="gpt-oss", upstream="local", upstream_model="gpt-oss-20b")
CATALOG: ToolCatalog = {
    "search": HttpTool(
        name="search", description="Find.", parameters=_ANYTHING, url="https://tools.example/search", timeout_s=30.0
    ),
    "lookup": HttpTool(
        name="lookup",
        description="Look up.",
        parameters=_ANYTHING,
        url="https://tools.example/lookup",
        timeout_s=30.0,
        idempotent=True,
    ),
    "researcher": AgentTool(
        name="researcher",
        description="Find out.",
        route=_ROUTE,
        tools=("search", "lookup", "researcher"),
        timeout_s=600.0,
    ),
}
"""The server's tools of drawn runs: one that a crash ends, one that may be called again, and an agent."""

SERVER_TOOLS = tuple(offer(tool) for tool in CATALOG.values())
OFFERED_TOOLS = (
    OfferedTool(kind=CallKind.FUNCTION, name="get_weather", parameters=_ANYTHING),
    *SERVER_TOOLS,
    OfferedTool(kind=CallKind.CUSTOM, name="run_code", format=b'{"type":"text"}'),
)
"""What drawn responses offer: tools of all three kinds."""

AGENT_NAME = "researcher"


@attrs.frozen(kw_only=True)
class PlayedCall:
    """What becomes of one call of a server tool, if it is made."""

    output: str = "found"
    """Of a tool that is no agent and does not fail."""
    error: ResponseError | None = None
    """Why it fails, if it does."""
    agent: tuple["PlayedTurn", ...] = ()
    """The turns of the sub-agent, where the tool is one; the last must fit *error*."""


@attrs.frozen(kw_only=True)
class PlayedTurn:
    """What one model call does, and the tools it calls, before anybody looks at it."""

    fragments: tuple[ContentFragment, ...]
    finish_reason: FinishReason | None
    """None when it is cut short."""
    usage: Usage | None = None
    state: StepState = StepState.COMPLETED
    """How its step ends."""
    error: ResponseError | None = None
    """Of a failed step."""
    calls: tuple[PlayedCall, ...] = ()
    """What becomes of its calls of server tools, in order; those that are not listed complete."""
    is_last: bool = False
    """A bound of the server's ends the loop before any of its calls is made."""


@attrs.frozen(kw_only=True)
class Run:
    """One response from its opening to its end, in all forms."""

    opening: Response
    turns: tuple[PlayedTurn, ...]
    schedule: tuple[int, ...]
    """Which of several siblings goes on next; when it is used up, the first."""
    chain: Chain
    """The steps of all loops in order, all of them terminal."""
    ending: Ending
    ended_at: int
    """Unix seconds."""
    response: Response
    """What the chain assembles to."""
    events: tuple[StreamEvent, ...]
    """The whole stream."""
    points: int
    """Where it could have been cut: from 1 to here."""


def play_run(
    opening: Response, turns: Sequence[PlayedTurn], ending: Ending, *, ended_at: int, schedule: Sequence[int] = ()
) -> Run:
    """Run *turns* as the engine does.

    Args:
        opening: With status ``queued`` or ``in_progress``; its request bounds the calls that are made.
        turns: None at all means that the response ended in the queue.
        ending: How the response ends; must fit the last turn.
        ended_at: Unix seconds.
        schedule: As in ``Run``.
    """
    run = Run(
        opening=opening,
        turns=tuple(turns),
        schedule=tuple(schedule),
        chain=(),
        ending=ending,
        ended_at=ended_at,
        response=opening,
        events=(),
        points=0,
    )
    return _play(run, None)


def cut_run(run: Run, point: int, ending: Ending) -> Run:
    """*run* as it is if it ends at *point* (from 1 to ``run.points``) with *ending*, cancelled or failed."""
    return _play(attrs.evolve(run, ending=ending), point)


@attrs.frozen
class Moment:
    """How far a run is: its steps, of which some may be open, and what was said of its items."""

    steps: Chain
    events: tuple[Event, ...]


def moments_of(run: Run) -> tuple[Moment, ...]:
    """*run* at every point where its process may die, whatever its ending, and before that."""
    player = _Player(run.opening, run.schedule)

    def now() -> Moment:
        return Moment(tuple(player.steps), tuple(player.events))

    return (*(now() for _ in player.play_loop(run.turns)), now())


def number(events: Sequence[Event]) -> tuple[StreamEvent, ...]:
    """*events* with the numbers of a whole stream, from 0."""
    return tuple(StreamEvent(index, event) for index, event in enumerate(events))


def _play(run: Run, cut_at: int | None) -> Run:
    opening = run.opening
    queued = opening.status is ResponseStatus.QUEUED
    player = _Player(opening, run.schedule)
    player.events.append(ResponseCreated(opening))
    if queued:
        player.events.append(ResponseQueued(opening))
    if run.turns or not queued:
        player.events.append(ResponseInProgress(attrs.evolve(opening, status=ResponseStatus.IN_PROGRESS)))
    points = sum(1 for _ in islice(player.play_loop(run.turns), cut_at))
    player.break_off(run.ending)
    chain = tuple(player.steps)
    response = assemble(opening, chain, run.ending, ended_at=run.ended_at)
    events = number([*player.events, terminal_event(response)])
    return attrs.evolve(run, chain=chain, response=response, events=events, points=points)


@attrs.define(eq=False)
class _TurnUnderWay:
    output: TurnOutput
    played: PlayedTurn
    has_finished: bool = False

    def value(self) -> ModelTurn:
        reason = self.played.finish_reason if self.has_finished else None
        usage = self.played.usage if self.has_finished else None
        return ModelTurn(items=self.output.items(), finish_reason=reason, usage=usage)


@attrs.frozen
class _Agent:
    """The call that a sub-agent is."""

    step: Step
    call: McpCall


@attrs.define(eq=False)
class _ShownCall:
    """A call of the top loop that has not been told to have ended."""

    index: int
    call: McpCall
    step: Step | None = None


class _Player:
    def __init__(self, opening: Response, schedule: Iterable[int]) -> None:
        self.events: list[Event] = []
        self.steps: list[Step] = []
        self._request = opening.request
        self._schedule = iter(schedule)
        self._turns: dict[UUID, _TurnUnderWay] = {}
        self._shown: dict[str, _ShownCall] = {}

    def play_loop(
        self, turns: Sequence[PlayedTurn], agent: _Agent | None = None
    ) -> Generator[None, None, ModelTurn | None]:
        """Play the turns of one loop; each ``yield`` is a point where it may be cut. Returns the last turn."""
        offered = OFFERED_TOOLS if agent is None else SERVER_TOOLS
        first, turn = 0, None
        for played in turns:
            step = self._open(ModelCall(), agent)
            output = TurnOutput(
                step_id=step.id, first_output_index=first, kind_of=partial(kind_of_call, offered, offered)
            )
            current = self._turns[step.id] = _TurnUnderWay(output, played)
            yield
            for fragment in played.fragments:
                self._tell(agent, output.feed(fragment))
                yield
            if agent is None or played.state is not StepState.CANCELED:  # nobody closes what a timed-out agent said
                self._tell(agent, output.close(played.finish_reason))
            current.has_finished = True
            turn = current.value()
            calls = [
                (index, item)
                for index, item in enumerate(turn.items, start=first)
                if isinstance(item, McpCall) and item.status is ItemStatus.IN_PROGRESS
            ]
            if agent is None:
                self._shown = {call.call_id: _ShownCall(index, call) for index, call in calls}
            yield
            self._end(step, played.state, result=turn, error=played.error)
            first += len(turn.items)
            if played.state is StepState.COMPLETED and not played.is_last:
                yield from self._play_calls(played, calls, agent)
        return turn

    def break_off(self, ending: Ending) -> None:
        """End whatever is open, as the end of a response does."""
        for step in tuple(self.steps):
            if not step.is_open:
                continue
            current = self._turns.get(step.id)
            if current is None:
                self._end(step, StepState.CANCELED)
                continue
            is_top = step.parent_step_id is None
            if is_top and not current.has_finished:
                self._tell(None, current.output.close(None))
            error = ending.error if isinstance(ending, Failed) and is_top else None
            state = StepState.FAILED if error else StepState.CANCELED
            self._end(step, state, result=current.value(), error=error)
        for shown in tuple(self._shown.values()):
            self._close(shown.index, shown.call, shown.step and self._latest(shown.step), None)

    def _play_calls(
        self, played: PlayedTurn, calls: list[tuple[int, McpCall]], agent: _Agent | None
    ) -> Generator[None, None, None]:
        left = calls_left(self.steps, self._request)
        made = calls if left is None else calls[:left]
        fates = (*played.calls, *[PlayedCall()] * len(calls))
        siblings: list[Generator[object, None, None]] = []
        for (index, call), fate in zip(made, fates, strict=False):
            descriptor = ToolCall(call_id=call.call_id, name=call.name, arguments=call.arguments)
            step = self._open(descriptor, agent)
            if agent is None:
                self._shown[call.call_id].step = step
            siblings.append(self._play_call(step, index, call, fate, agent))
        for index, call in calls[len(made) :]:
            self._close(index, call, None, agent)
        while siblings:
            place = next(self._schedule, 0) % len(siblings)
            if next(siblings[place], _OVER) is _OVER:
                del siblings[place]
            yield

    def _play_call(
        self, step: Step, index: int, call: McpCall, fate: PlayedCall, agent: _Agent | None
    ) -> Generator[object, None, None]:
        yield None
        output = fate.output
        if call.name == AGENT_NAME and (fate.agent or fate.error is None):
            last = yield from self.play_loop(fate.agent or (_SILENT,), _Agent(step, call))
            output = output_text(last.items) if last else ""
        if fate.error is None:
            ended = self._end(step, StepState.COMPLETED, result=ToolOutput(output=output))
        else:
            ended = self._end(step, StepState.FAILED, error=fate.error)
        yield None
        self._close(index, call, ended, agent)

    def _open(self, descriptor: StepDescriptor, agent: _Agent | None) -> Step:
        sequence = len(self.steps) + 1
        step = Step(
            id=UUID(int=sequence),
            sequence=sequence,
            descriptor=descriptor,
            state=StepState.PROCESSING,
            parent_step_id=agent.step.id if agent else None,
        )
        self.steps.append(step)
        return step

    def _end(
        self,
        step: Step,
        state: StepState,
        *,
        result: ModelTurn | ToolOutput | None = None,
        error: ResponseError | None = None,
    ) -> Step:
        ended = attrs.evolve(step, state=state, result=result, error=error)
        self.steps[step.sequence - 1] = ended
        return ended

    def _latest(self, step: Step) -> Step:
        return self.steps[step.sequence - 1]

    def _close(self, index: int, call: McpCall, step: Step | None, agent: _Agent | None) -> None:
        self._tell(agent, close_call(index, end_call(call, step)))
        if agent is None:
            del self._shown[call.call_id]

    def _tell(self, agent: _Agent | None, events: Sequence[ItemEvent]) -> None:
        if agent is None:
            self.events += events
        elif self._request.shows_sub_agents:
            self.events += [SubAgentEvent(agent.call.name, agent.call.id, event) for event in events]


_OVER = object()
_SILENT = PlayedTurn(fragments=(), finish_reason=FinishReason.STOP)
"""All that an agent does which nobody wrote a part for."""
