"""The workers of one server: started, started again when they end, told to end, and killed if they do not.

Rule 1: until all listen for the first time, a worker that ends is the end of the server: what keeps it from starting
would keep it from starting again.
Rule 2: later it is started again, after a pause that doubles up to a bound; one that was steady begins anew.
Rule 3: while another worker serves, this goes on for ever; when none does, and one has ended too often in a row, the
server gives up.
Rule 4: however this ends, every worker has ended first, and has had the time that its own end may take.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import attrs
import structlog
import trio

from dwctl_trio.config import Config
from dwctl_trio.domain.errors import DwctlError
from dwctl_trio.domain.limits import Limits
from dwctl_trio.http.server import longest_end_s
from dwctl_trio.observability.worker_metrics import WorkerPlace
from dwctl_trio.postgres import guest_loop, pool
from dwctl_trio.supervisor.orders import ABORT, READY, STOP, StartOrder, encode_start

_log = structlog.get_logger(__name__)

_DOUBLINGS_MAX = 62


class WorkersFailed(DwctlError):
    """The workers do not start, or keep ending; each has said why."""


WORKER_COMMAND = (sys.executable, "-P", "-m", "dwctl_trio.supervisor.worker")
"""What runs a worker; ``-P`` keeps what lies in the current directory from being imported."""


def worker_end_s(limits: Limits) -> float:
    """Seconds after which a worker that was told to end is killed: all that it may take, and then some."""
    leave_s = limits.store_call_s + pool.CLOSE_S_MAX + guest_loop.CLOSE_S_MAX + limits.tracing_flush_s
    return longest_end_s(limits) + leave_s + limits.worker_kill_s


def restart_pause_s(ends: int, limits: Limits) -> float:
    """Seconds to wait before a worker that has ended *ends* times in a row, from 1, is started again."""
    return min(limits.worker_restart_cap_s, limits.worker_restart_s * 2.0 ** min(ends - 1, _DOUBLINGS_MAX))


@attrs.define(eq=False)
class _Life:
    """One process of a worker."""

    process: trio.Process
    is_told: bool = False
    """Whether it has got its whole order."""
    serves_since: float | None = None
    """When it said that it listens, by Trio's clock."""

    async def tell(self, word: bytes) -> None:
        """Send it *word*; nothing happens if it has ended."""
        assert self.process.stdin is not None
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.process.stdin.send_all(word)


class Workers:
    """All of them.

    Args:
        config: With the port and the database that there are.
        command: What runs a worker.
        meeting: By which they find one another.
    """

    def __init__(self, config: Config, command: Sequence[str], meeting: str) -> None:
        self.count = config.workers
        self._config = config
        self._limits = config.limits
        self._command = command
        self._meeting = meeting
        self._running = trio.CancelScope()
        self._aborted = trio.Event()
        self._started = trio.Event()
        self._serving: set[int] = set()
        self._failure: WorkersFailed | None = None

    def stop(self) -> None:
        """Let all drain, and start none any more."""
        _log.info("server_stopping")
        self._running.cancel()

    def abort(self) -> None:
        """End all at once, after ``stop``."""
        self._aborted.set()

    async def wait_started(self) -> None:
        """Return when all have listened."""
        await self._started.wait()

    async def run(self) -> None:
        """Keep them running until ``stop``; return when all have ended.

        Raises:
            WorkersFailed: They do not start, or keep ending.
            OSError: The command cannot be run to begin with.

        Cancellation: all are told to stop, and waited for as after ``stop``, shielded and bounded.
        """
        with self._running:
            async with trio.open_nursery() as nursery:
                for number in range(1, self.count + 1):
                    nursery.start_soon(self._keep_running, number, name=f"worker {number}")
        if self._failure is not None:
            raise self._failure

    async def _keep_running(self, number: int) -> None:
        """Start worker *number* whenever it is not there; never returns unless the server gives up."""
        ends, limits = 0, self._limits
        for starts in itertools.count(1):
            served_s, status = 0.0, None
            try:
                life = await self._live(number, starts)
            except OSError as error:
                if not self._started.is_set():
                    raise
                _log.error("worker_process_not_made", worker=number, reason=str(error))
            else:
                served_s = 0.0 if life.serves_since is None else trio.current_time() - life.serves_since
                status = life.process.returncode
            ends = 1 if served_s >= limits.worker_steady_s else ends + 1
            pause_s = restart_pause_s(ends, limits)
            if self._gives_up(number, ends, status):
                return
            _log.error("worker_process_ended", worker=number, status=status, ends=ends, starts_again_in_s=pause_s)
            await trio.sleep(pause_s)

    def _gives_up(self, number: int, ends: int, status: int | None) -> bool:
        """Whether all end because worker *number*, which has ended *ends* times in a row, shows that it is hopeless.

        Args:
            number: Of the worker.
            ends: At least 1.
            status: Of its process; None if there was none.
        """
        end = "cannot be started" if status is None else f"has ended with status {status}"
        how = f"worker {number} {end}"
        if not self._started.is_set():
            reason = f"{how} before all workers served; what it said of that is above"
        elif ends > self._limits.worker_restarts and not self._serving:
            reason = f"{how}, {ends} times in a row, and no other one serves; what it said of that is above"
        else:
            return False
        if self._failure is None and not self._running.cancel_called:
            self._failure = WorkersFailed(reason)
        self._running.cancel()
        return True

    async def _live(self, number: int, starts: int) -> _Life:
        """Run one process of worker *number* to its end.

        Cancellation: it is told to stop, and waited for or killed, shielded.
        """
        process = await trio.lowlevel.open_process(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is for the supervisor, who tells us
        )
        life = _Life(process)
        place = WorkerPlace(number=number, workers=self.count, starts=starts, meeting=self._meeting, user=os.geteuid())
        try:
            _log.info("worker_process_started", worker=number, pid=process.pid)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._see_start, life, place, name="worker_start")
                await process.wait()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._end(life, number)
            self._serving.discard(number)
        return life

    async def _see_start(self, life: _Life, place: WorkerPlace) -> None:
        """Give the worker its order, and note when it listens; kill it if that takes too long."""
        order = encode_start(StartOrder(config=self._config, place=place))
        assert life.process.stdout is not None
        with trio.move_on_after(self._limits.worker_start_s) as patience:
            await life.tell(order)
            life.is_told = True
            if await life.process.stdout.receive_some(len(READY)) == READY:
                life.serves_since = trio.current_time()
                self._serving.add(place.number)
                _log.info("worker_process_ready", worker=place.number, pid=life.process.pid)
        if patience.cancelled_caught:
            _log.error("worker_process_slow", worker=place.number, waited_s=self._limits.worker_start_s)
            life.process.kill()
        if len(self._serving) == self.count:
            self._started.set()

    async def _end(self, life: _Life, number: int) -> None:
        """Have the process end, by its own means while there is time; return when it has."""
        process = life.process
        if process.returncode is None and life.is_told:
            bound_s = worker_end_s(self._limits)
            with trio.move_on_after(bound_s) as patience:
                await life.tell(STOP)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pass_on_abort, life, name="abort")
                    await process.wait()
                    nursery.cancel_scope.cancel()
            if patience.cancelled_caught:
                _log.error("worker_process_killed", worker=number, pid=process.pid, waited_s=bound_s)
        if process.returncode is None:
            process.kill()
            await process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            await pipe.aclose()

    async def _pass_on_abort(self, life: _Life) -> None:
        await self._aborted.wait()
        await life.tell(ABORT)
