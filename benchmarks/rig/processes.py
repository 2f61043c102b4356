"""The processes of a benchmark: each part in its own, its CPU time and memory read from the kernel."""

import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

_START_S_MAX = 30.0
_STOP_S_MAX = 20.0
_URL = re.compile(rb"https?://[0-9.]+:\d+")
_PAGE_BYTES = 4096
_OUTPUT_BYTES_SHOWN = 4000
_NO_ENVIRONMENT: Mapping[str, str] = {}


@attrs.frozen(kw_only=True)
class Process:
    """A running part, with the processes that it started itself."""

    pid: int
    url: str
    """Scheme, host and port; empty if it listens on nothing."""

    def cpu_s(self) -> float:
        """CPU seconds of all its threads so far, also of those that have ended, to the nanosecond."""
        return sum(time.clock_gettime(_cpu_clock(pid)) for pid in _tree(self.pid))

    def memory_bytes(self) -> int:
        """What of it is in memory: its resident set."""
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES for pid in _tree(self.pid))


def machine_cpu_s() -> float:
    """CPU seconds of all processes of the machine so far, by Linux's ticks of 10 ms."""
    user, nice, system, _idle, _waiting, *interrupts = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    return sum(map(int, (user, nice, system, *interrupts))) / os.sysconf("SC_CLK_TCK")


def _cpu_clock(pid: int) -> int:
    """The clock of another process's CPU time, as Linux numbers them (``clock_getcpuclockid``)."""
    return (~pid << 3) | 2


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _tree(int(child))


@asynccontextmanager
async def open_process(
    *arguments: str, sign: re.Pattern[bytes] = _URL, environment: Mapping[str, str] = _NO_ENVIRONMENT
) -> AsyncIterator[Process]:
    """``python *arguments`` for the time of the block.

    Args:
        arguments: Of the interpreter.
        sign: What it prints when it is ready; its URL, if it listens.
        environment: Beside that of this process.
    """
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(_run, arguments, environment)
        with trio.fail_after(_START_S_MAX):
            found = await _read_sign(process, sign)
        nursery.start_soon(_follow, process)
        try:
            yield Process(pid=process.pid, url=found if sign is _URL else "")
        finally:
            process.terminate()
            nursery.cancel_scope.deadline = trio.current_time() + _STOP_S_MAX


async def _run(
    arguments: tuple[str, ...], environment: Mapping[str, str], *, task_status: trio.TaskStatus[trio.Process]
) -> None:
    process = await trio.lowlevel.open_process(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    task_status.started(process)
    try:
        await process.wait()
    finally:
        process.kill()


async def _read_sign(process: trio.Process, sign: re.Pattern[bytes]) -> str:
    assert process.stdout is not None
    output = b""
    async for data in process.stdout:
        output += data
        found = sign.search(output)
        if found is not None:
            return found[0].decode()
    raise RuntimeError(f"a process ended before it was ready:\n{output.decode(errors='replace')}")


async def _follow(process: trio.Process) -> None:
    """Read what it prints, and show the last of it if it ends with an error."""
    assert process.stdout is not None
    output = b""
    async for data in process.stdout:
        output = (output + data)[-_OUTPUT_BYTES_SHOWN:]
    if await process.wait() > 0:
        print(output.decode(errors="replace"), file=sys.stderr)
