"""A loop that decides as the engine does and does nothing else: scripted models and tools, rows, and crashes.

Rule 1: what survives a crash are the rows as they were last written; a decision and its write are one.
Rule 2: siblings take turns as the schedule says, and so do the sub-agents that they are.
Rule 3: it can die at every moment that matters: when a step has been fired, before a write and after it.

It tests ``domain/transitions``; that the engine does the same is not its business.
"""

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import TypeAlias
from uuid import UUID

import attrs

from dwctl_trio.domain.items import CALL_TYPES, CallKind, ItemStatus, Message, OutputItem
from dwctl_trio.domain.limits import DEFAULT_LIMITS, Limits
from dwctl_trio.domain.recovery import recover_chain
from dwctl_trio.domain.request import InputMessage, ResponseRequest, Role
from dwctl_trio.domain.response import Completed, Ending, ErrorCode, ErrorType, ResponseError
from dwctl_trio.domain.steps import Chain, ModelCall, Step, StepDescriptor, StepState, ToolCall, ToolOutput
from dwctl_trio.domain.told import NOTHING_TOLD
from dwctl_trio.domain.tools import FREE_CHOICE, AgentTool, ChoiceMode, kind_of_call
from dwctl_trio.domain.transitions import Action, AppendSteps, Finish, TurnPlan, next_action, plan_turn
from dwctl_trio.domain.turn import FinishReason, ModelTurn
from dwctl_trio.domain.usage import Usage
from dwctl_trio.testing.played_runs import CATALOG, OFFERED_TOOLS, SERVER_TOOLS

MODEL_FAILURE = ResponseError(type=ErrorType.UPSTREAM_ERROR, code=ErrorCode.SERVER_ERROR, message="The model failed.")
"""Why a scripted model call fails."""

_CUT_SHORT = frozenset({FinishReason.LENGTH, FinishReason.CONTENT_FILTER})
_REQUEST = ResponseRequest(model="echo-16", input=(InputMessage(role=Role.USER, content=()),))


@attrs.frozen(kw_only=True)
class Scene:
    """What a model does when it is asked once more, and how the tools that it calls fare."""

    calls: tuple[str, ...] = ()
    """Names of tools."""
    reason: FinishReason = FinishReason.TOOL_CALLS
    fails: bool = False
    """The model call itself fails."""
    failing_tools: bool = False
    output_tokens: int | None = None
    """As the upstream counts them; None if it does not."""


Script: TypeAlias = tuple[Scene, ...]
"""Played over and over, so that only a script with an answer ends by itself."""


@attrs.frozen(kw_only=True)
class Play:
    """All that a toy loop does, but for when it dies."""

    script: Script
    """The response's own."""
    agents: Script = (Scene(reason=FinishReason.STOP),)
    """Of every sub-agent."""
    request: ResponseRequest = _REQUEST
    limits: Limits = DEFAULT_LIMITS
    schedule: tuple[int, ...] = ()
    """Which of several siblings goes on next, over and over; none: the first."""
    obeys: bool = False
    """Whether the models call only what is offered to them, and what they must."""


class Crashed(Exception):
    """The process died."""


@attrs.define(eq=False)
class _Loop:
    parent: Step | None = None
    depth: int = 0
    ending: Ending | None = None


class ToyLoop:
    """Plays *play*; the rows are all that survives a crash."""

    def __init__(self, play: Play) -> None:
        self.rows: Chain = ()
        """The steps of all loops, as they were last written."""
        self.moments = 0
        """Of the present process, at which it could have died."""
        self.fired: Counter[UUID] = Counter()
        """How often each step was, in all processes."""
        self.plans: list[TurnPlan] = []
        """Of all model calls, in all processes."""
        self._play = play
        self._steps: list[Step] = []
        self._ids = 0
        self._turns_taken = 0
        self._dies_at: int | None = None

    def run(self, *, dies_at: int | None = None) -> Ending:
        """Go on from the rows to the end.

        Raises:
            Crashed: The moment *dies_at* was reached.
        """
        self.moments, self._dies_at = 0, dies_at
        self._steps = list(recover_chain(self.rows, NOTHING_TOLD, CATALOG))
        top = _Loop()
        for _ in self._run_loop(top):
            pass
        assert top.ending is not None, "it has run to its end"
        self._moment()
        self.rows = tuple(self._steps)
        return top.ending

    def decide(self, chain: Chain, tree: Chain) -> Action:
        """What comes after *chain*."""
        return next_action(chain, request=self._play.request, limits=self._play.limits, tree=tree)

    def _run_loop(self, loop: _Loop) -> Generator[None, None, None]:
        if not self._open_steps(loop):
            self._settle(loop, None)
        while loop.ending is None:
            steps = self._open_steps(loop)
            if isinstance(steps[0].descriptor, ModelCall):
                yield
                self._ask(loop, steps[0])
            else:
                yield from self._fan_out(loop, steps)

    def _fan_out(self, loop: _Loop, steps: Sequence[Step]) -> Generator[None, None, None]:
        siblings = [self._call(loop, step) for step in steps]
        while siblings:
            schedule = self._play.schedule or (0,)
            place = schedule[self._turns_taken % len(schedule)] % len(siblings)
            self._turns_taken += 1
            if next(siblings[place], _OVER) is _OVER:
                del siblings[place]
            yield

    def _ask(self, loop: _Loop, step: Step) -> None:
        scene = self._scene(loop, len(_turns(self._chain_of(loop))))
        offered = OFFERED_TOOLS if loop.parent is None else SERVER_TOOLS
        plan = plan_turn(
            [earlier for earlier in self._chain_of(loop) if not earlier.is_open],
            tools=offered,
            choice=self._play.request.tool_choice if loop.parent is None else FREE_CHOICE,
            request=self._play.request,
            tree=self._steps,
        )
        self.plans.append(plan)
        self._fire(step)
        if scene.fails:
            self._settle(loop, attrs.evolve(step, state=StepState.FAILED, error=MODEL_FAILURE))
            return
        if self._play.obeys:
            scene = _obey(scene, plan)
        kind_of = partial(kind_of_call, offered, plan.callable_tools, choice=plan.tool_choice)
        turn = _make_turn(scene, kind_of, f"{loop.depth}_{len(_turns(self._chain_of(loop)))}")
        self._settle(loop, attrs.evolve(step, state=StepState.COMPLETED, result=turn))

    def _call(self, loop: _Loop, step: Step) -> Generator[object, None, None]:
        yield None
        call = step.descriptor
        assert isinstance(call, ToolCall), "model calls have no siblings"
        scene = self._scene(loop, len(_turns(self._chain_of(loop))) - 1)
        tool = CATALOG.get(call.name)
        self._fire(step)
        if tool is None:
            return self._settle(loop, _failed(step, ErrorType.TOOL_NOT_FOUND))
        if isinstance(tool, AgentTool):
            if loop.depth == self._play.limits.depth:
                return self._settle(loop, _failed(step, ErrorType.MAX_DEPTH_EXCEEDED))
            agent = _Loop(parent=step, depth=loop.depth + 1)
            yield from self._run_loop(agent)
            if agent.ending != Completed():
                return self._settle(loop, _failed(step, ErrorType.EXECUTOR_ERROR))
        elif scene.failing_tools:
            return self._settle(loop, _failed(step, ErrorType.EXECUTOR_ERROR))
        yield None
        return self._settle(loop, attrs.evolve(step, state=StepState.COMPLETED, result=ToolOutput(output="found")))

    def _settle(self, loop: _Loop, ended: Step | None) -> None:
        """The end of a step and what follows from it, in one write; an ending goes with the next."""
        if ended is not None:
            self._steps[[step.id for step in self._steps].index(ended.id)] = ended
        if not self._open_steps(loop):
            match self.decide(self._chain_of(loop), self._steps):
                case Finish(ending):
                    loop.ending = ending
                    return
                case AppendSteps(descriptors):
                    for descriptor in descriptors:
                        self._append(loop, descriptor)
        self._moment()
        self.rows = tuple(self._steps)
        self._moment()

    def _append(self, loop: _Loop, descriptor: StepDescriptor) -> None:
        self._ids += 1
        step = Step(
            id=UUID(int=self._ids),
            sequence=len(self._steps) + 1,
            descriptor=descriptor,
            state=StepState.PROCESSING,
            parent_step_id=loop.parent.id if loop.parent else None,
        )
        self._steps.append(step)

    def _fire(self, step: Step) -> None:
        self.fired[step.id] += 1
        self._moment()

    def _moment(self) -> None:
        self.moments += 1
        if self.moments == self._dies_at:
            raise Crashed

    def _scene(self, loop: _Loop, number: int) -> Scene:
        script = self._play.script if loop.parent is None else self._play.agents
        return script[number % len(script)]

    def _chain_of(self, loop: _Loop) -> list[Step]:
        return chain_under(self._steps, loop.parent.id if loop.parent else None)

    def _open_steps(self, loop: _Loop) -> list[Step]:
        return [step for step in self._chain_of(loop) if step.is_open]


_OVER = object()


def chain_under(tree: Chain, parent_id: UUID | None) -> list[Step]:
    """The steps of one loop of *tree*: that of the step *parent_id*, or the response's own."""
    return [step for step in tree if step.parent_step_id == parent_id]


def play(part: Play, crashes: Sequence[int] = ()) -> tuple[Ending, ToyLoop]:
    """Play *part* in as many processes as it takes; each dies at its moment in *crashes*, but for the last."""
    loop = ToyLoop(part)
    for dies_at in crashes:
        try:
            return loop.run(dies_at=dies_at), loop
        except Crashed:
            pass
    return loop.run(), loop


def _turns(chain: Chain) -> list[ModelTurn]:
    return [step.result for step in chain if isinstance(step.result, ModelTurn)]


def _obey(scene: Scene, plan: TurnPlan) -> Scene:
    names = [tool.name for tool in plan.tools]
    wanted = tuple(name for name in scene.calls if name in names)
    choice = plan.tool_choice
    if choice.mode is ChoiceMode.NONE:
        wanted = ()
    elif choice.name is not None:
        wanted = (choice.name,)
    elif choice.mode is ChoiceMode.REQUIRED and not wanted:
        wanted = tuple(names[:1])
    return attrs.evolve(scene, calls=wanted)


def _make_turn(scene: Scene, kind_of: Callable[[str], CallKind], number: str) -> ModelTurn:
    is_whole = scene.reason not in _CUT_SHORT
    items: list[OutputItem] = [Message(id=f"msg_{number}", status=ItemStatus.COMPLETED)]
    for place, name in enumerate(scene.calls):
        kind = kind_of(name)
        whole = ItemStatus.IN_PROGRESS if kind is CallKind.SERVER else ItemStatus.COMPLETED
        status = whole if is_whole else ItemStatus.INCOMPLETE
        call_id = f"call_{place}"
        items.append(CALL_TYPES[kind](id=f"{number}_{place}", status=status, call_id=call_id, name=name))
    usage = None if scene.output_tokens is None else Usage(input_tokens=1, output_tokens=scene.output_tokens)
    return ModelTurn(items=tuple(items), finish_reason=scene.reason, usage=usage)


def _failed(step: Step, kind: ErrorType) -> Step:
    error = ResponseError(type=kind, code=ErrorCode.SERVER_ERROR, message="The tool failed.")
    return attrs.evolve(step, state=StepState.FAILED, error=error)
