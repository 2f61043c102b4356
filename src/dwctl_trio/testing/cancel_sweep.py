"""Cancelling a scenario at each of its task steps, one run after the other.

A task step is what a task does between two checkpoints. Cancelling after the k-th, for every k until a run is over
before it can be cancelled, finds every await that cancellation can hit between acquiring something and giving it back.
"""

from collections.abc import AsyncIterator, Awaitable, Callable

import attrs
import trio

STEPS_MAX = 5000
"""A scenario with more steps than this is none to sweep."""


class _CancelAfterStep(trio.abc.Instrument):
    """Cancels a scope after the given number of steps of a task and its descendants."""

    def __init__(self, step: int) -> None:
        self.steps = 0
        self.fired = False
        self._step = step
        self._root: trio.lowlevel.Task | None = None
        self._scope: trio.CancelScope | None = None

    def watch(self, root: trio.lowlevel.Task, scope: trio.CancelScope) -> None:
        self._root, self._scope = root, scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._scope is None or not self._is_below_root(task):
            return
        self.steps += 1
        if self.steps == self._step:
            self.fired = True
            self._scope.cancel()

    def _is_below_root(self, task: trio.lowlevel.Task | None) -> bool:
        while task is not None:
            if task is self._root:
                return True
            task = task.parent_nursery.parent_task if task.parent_nursery is not None else None
        return False


@attrs.frozen(kw_only=True)
class SweptRun:
    """One run of a sweep."""

    step: int
    """After which the run was cancelled, from 1."""
    was_cancelled: bool
    """False for the last run of a sweep, which was over before."""


async def run_cancelled_after(step: int, scenario: Callable[[], Awaitable[object]]) -> SweptRun:
    """Run *scenario* and cancel it after *step* steps of its tasks."""
    instrument = _CancelAfterStep(step)
    trio.lowlevel.add_instrument(instrument)
    try:
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                with trio.CancelScope() as scope:
                    instrument.watch(trio.lowlevel.current_task(), scope)
                    await scenario()

            nursery.start_soon(run)
    finally:
        trio.lowlevel.remove_instrument(instrument)
    return SweptRun(step=step, was_cancelled=instrument.fired)


async def sweep_cancellation(scenario: Callable[[], Awaitable[object]]) -> AsyncIterator[SweptRun]:
    """Run *scenario* again and again, cancelled one step later each time; check the state after each.

    The last run yielded is the first that was not cancelled.
    """
    for step in range(1, STEPS_MAX + 1):
        run = await run_cancelled_after(step, scenario)
        yield run
        if not run.was_cancelled:
            return
    raise AssertionError(f"the scenario has more than {STEPS_MAX} steps")
