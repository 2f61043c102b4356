"""The keeper of workers, with small programs in their place: who is started again, when it gives up, how all end."""

import os
import signal
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from trio.testing import MockClock

from dwctl_trio.config import Config
from dwctl_trio.domain.limits import DEFAULT_LIMITS, Limits
from dwctl_trio.supervisor.workers import Workers, WorkersFailed, restart_pause_s, worker_end_s

pytestmark = pytest.mark.slow

WAIT_S = 30.0
LIMITS = attrs.evolve(DEFAULT_LIMITS, worker_restart_s=0.01, worker_restart_cap_s=0.02, worker_restarts=3)

PROGRAM = """
import os, pickle, signal, struct, sys
sys.path[:] = []
length, = struct.unpack(">Q", os.read(0, 8))
body = b""
while len(body) < length:
    body += os.read(0, length - len(body))
number = int(body.split(b"number")[1].split(b"K")[1][0])
life = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def tell(word):
    os.write(life, f"{number} {os.getpid()} {word}\\n".encode())
def serve():
    os.write(1, b"!")
    tell("serves")
def obey():
    while word := os.read(0, 1):
        tell({b".": "stop", b"#": "abort"}[word])
        if word == b"." and not stubborn:
            break
    tell("ends")
stubborn = False
"""
"""The beginning of a program that stands in for a worker: it knows its number, and notes what becomes of it."""
FAITHFUL = "serve(); obey()"


@attrs.define(eq=False)
class Stage:
    """Programs in the place of workers, and the notes that they leave."""

    notes: Path
    limits: Limits = LIMITS

    def workers(self, program: str, count: int = 2, python: str = sys.executable) -> Workers:
        command = (python, "-I", "-S", "-c", PROGRAM + program, str(self.notes))
        return Workers(Config(workers=count, limits=self.limits), command, "test")

    def told(self) -> list[tuple[int, int, str]]:
        """Number, process and word of each note."""
        lines = self.notes.read_text(encoding="utf-8").splitlines() if self.notes.exists() else []
        return [(int(number), int(pid), word) for number, pid, word in map(str.split, lines)]

    def words(self, number: int) -> list[str]:
        return [word for noted, _, word in self.told() if noted == number]

    async def wait_for(self, number: int, word: str, times: int = 1) -> int:
        """Return the process that has noted *word* for the *times*-th time."""
        with trio.fail_after(WAIT_S):
            while True:
                pids = [pid for noted, pid, said in self.told() if (noted, said) == (number, word)]
                if len(pids) >= times:
                    return pids[times - 1]
                await trio.sleep(0.01)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "notes")


async def wait_logged(logs: list[MutableMapping[str, Any]], event: str, times: int) -> None:
    with trio.fail_after(WAIT_S):
        while True:
            if [entry["event"] for entry in logs].count(event) >= times:
                return
            await trio.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_all_are_told_to_stop_and_have_ended_when_it_returns(stage: Stage) -> None:
    workers = stage.workers(FAITHFUL, 3)
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workers.run)
            await workers.wait_started()
            workers.stop()

    assert [stage.words(number) for number in (1, 2, 3)] == [["serves", "stop", "ends"]] * 3
    assert not any(lives(pid) for _, pid, _ in stage.told())


async def test_one_that_is_killed_is_started_again_and_the_others_are_left_alone(stage: Stage) -> None:
    workers = stage.workers(FAITHFUL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(workers.run)
        await workers.wait_started()
        os.kill(await stage.wait_for(1, "serves"), signal.SIGKILL)
        heir = await stage.wait_for(1, "serves", 2)
        assert lives(heir)
        workers.stop()

    assert stage.words(1) == ["serves", "serves", "stop", "ends"]
    assert stage.words(2) == ["serves", "stop", "ends"]


async def test_one_that_cannot_be_made_for_a_while_is_tried_again_and_the_others_serve(stage: Stage) -> None:
    python = stage.notes.with_name("python")
    python.symlink_to(sys.executable)
    workers = stage.workers(FAITHFUL, python=str(python))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(workers.run)
        await workers.wait_started()
        python.unlink()  # as while a release is installed; a system without memory or processes refuses as well
        with capture_logs() as logs:
            os.kill(await stage.wait_for(1, "serves"), signal.SIGKILL)
            await wait_logged(logs, "worker_process_not_made", 2)
        python.symlink_to(sys.executable)
        await stage.wait_for(1, "serves", 2)
        workers.stop()

    assert stage.words(2) == ["serves", "stop", "ends"]


async def test_one_that_was_asked_to_end_by_hand_is_replaced(stage: Stage) -> None:
    workers = stage.workers("signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); " + FAITHFUL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(workers.run)
        await workers.wait_started()
        os.kill(await stage.wait_for(2, "serves"), signal.SIGTERM)
        await stage.wait_for(2, "serves", 2)
        workers.stop()


@pytest.mark.parametrize("failure", ["sys.exit(3)", "os.close(1); sys.exit(3)"])
async def test_one_that_cannot_start_ends_the_server_at_once(stage: Stage, failure: str) -> None:
    workers = stage.workers(f"tell('starts')\nif number == 2: {failure}\n{FAITHFUL}")
    with trio.fail_after(WAIT_S), pytest.raises(WorkersFailed, match="worker 2 has ended with status 3 before"):
        await workers.run()

    assert stage.words(2) == ["starts"]
    assert not any(lives(pid) for _, pid, _ in stage.told())


async def test_workers_that_keep_ending_end_the_server_after_as_many_restarts_as_are_allowed(stage: Stage) -> None:
    workers = stage.workers(FAITHFUL, 1)
    failures: list[WorkersFailed] = []

    async def run() -> None:
        with pytest.raises(WorkersFailed) as failure:
            await workers.run()
        failures.append(failure.value)

    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            for life in range(1, LIMITS.worker_restarts + 2):
                pid = await stage.wait_for(1, "serves", life)
                await wait_serving(workers, 1)
                os.kill(pid, signal.SIGKILL)

    assert "worker 1 has ended with status -9, 4 times in a row, and no other one serves" in str(failures[0])
    assert stage.words(1) == ["serves"] * (LIMITS.worker_restarts + 1)


async def test_while_another_serves_it_is_tried_for_ever(stage: Stage) -> None:
    fails_later = "if number == 1 and sum(line.startswith('1 ') for line in open(sys.argv[1])) > 1: sys.exit(1)"
    workers = stage.workers(f"serve()\n{fails_later}\nobey()")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(workers.run)
        await workers.wait_started()
        os.kill(await stage.wait_for(1, "serves"), signal.SIGKILL)
        await stage.wait_for(1, "serves", LIMITS.worker_restarts + 4)
        workers.stop()

    assert stage.words(2) == ["serves", "stop", "ends"]


async def test_one_that_was_steady_begins_its_count_anew(stage: Stage, mock_clock: MockClock) -> None:
    mock_clock.rate = 1.0
    workers = stage.workers(FAITHFUL, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(workers.run)
        for life in range(1, 2 * LIMITS.worker_restarts):
            pid = await stage.wait_for(1, "serves", life)
            await wait_serving(workers, 1)
            mock_clock.jump(LIMITS.worker_steady_s)
            os.kill(pid, signal.SIGKILL)
        await stage.wait_for(1, "serves", 2 * LIMITS.worker_restarts)
        workers.stop()


async def wait_serving(workers: Workers, number: int) -> None:
    """Return when the supervisor knows that worker *number* serves."""
    with trio.fail_after(WAIT_S):
        while True:
            if number in workers._serving:
                return
            await trio.sleep(0.01)


async def test_one_that_does_not_say_in_time_that_it_serves_is_killed(stage: Stage) -> None:
    stage.limits = attrs.evolve(LIMITS, worker_start_s=1.0)
    workers = stage.workers("tell('starts'); obey()", 1)
    with trio.fail_after(WAIT_S), pytest.raises(WorkersFailed, match="status -9 before"):
        await workers.run()

    assert stage.words(1) == ["starts"]


async def test_a_second_signal_is_passed_on(stage: Stage) -> None:
    workers = stage.workers("serve()\nwhile word := os.read(0, 1):\n tell(word)\n if word == b'#': break")
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workers.run)
            await workers.wait_started()
            workers.stop()
            await stage.wait_for(1, "b'.'")
            await stage.wait_for(2, "b'.'")
            workers.abort()

    assert [stage.words(number) for number in (1, 2)] == [["serves", "b'.'", "b'#'"]] * 2


def test_one_that_does_not_end_is_killed_when_all_that_its_end_may_take_is_over(stage: Stage) -> None:
    async def main() -> float:
        workers = stage.workers("stubborn = True; " + FAITHFUL)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workers.run)
            await workers.wait_started()
            begun_at = trio.current_time()
            workers.stop()
        return trio.current_time() - begun_at

    seconds = trio.run(main, clock=MockClock(autojump_threshold=1.0))  # of true silence

    assert seconds == pytest.approx(worker_end_s(LIMITS), abs=5.0)
    assert [stage.words(number) for number in (1, 2)] == [["serves", "stop"]] * 2
    assert not any(lives(pid) for _, pid, _ in stage.told())


async def test_a_supervisor_that_is_cancelled_leaves_no_worker(stage: Stage) -> None:
    workers = stage.workers(FAITHFUL)
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workers.run)
            await workers.wait_started()
            nursery.cancel_scope.cancel()

    assert [stage.words(number) for number in (1, 2)] == [["serves", "stop", "ends"]] * 2


async def test_a_program_that_cannot_be_run_is_an_error_of_the_system() -> None:
    workers = Workers(Config(workers=1), ("/nowhere/python",), "test")
    with pytest.raises(ExceptionGroup) as failure:
        await workers.run()

    assert failure.group_contains(FileNotFoundError)


def limits() -> Iterator[Limits]:
    yield from (LIMITS, DEFAULT_LIMITS, attrs.evolve(DEFAULT_LIMITS, worker_restart_s=60.0, worker_restart_cap_s=0.01))


@given(ends=st.integers(1, 10_000), limits=st.sampled_from(list(limits())))
def test_the_pause_grows_to_its_bound_and_stays_there(ends: int, limits: Limits) -> None:
    pause_s, next_s = restart_pause_s(ends, limits), restart_pause_s(ends + 1, limits)

    assert 0 < pause_s <= next_s <= limits.worker_restart_cap_s
    assert next_s in {pause_s, pause_s * 2} or next_s == limits.worker_restart_cap_s
