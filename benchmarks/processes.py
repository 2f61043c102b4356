"""The processes of a benchmark: each part in its own, its CPU time read from the kernel."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

_START_S_MAX = 20.0
_URL = re.compile(rb"https?://[0-9.]+:\d+")


@attrs.frozen(kw_only=True)
class Process:
    """A running part."""

    pid: int
    url: str

    def cpu_s(self) -> float:
        """CPU seconds of all its threads so far, to the nanosecond."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@asynccontextmanager
async def open_process(*arguments: str) -> AsyncIterator[Process]:
    """``python *arguments`` for the time of the block, once it has told its URL on one of its outputs."""
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(_run, arguments)
        with trio.fail_after(_START_S_MAX):
            url = await _read_url(process)
        nursery.start_soon(_discard, process)
        try:
            yield Process(pid=process.pid, url=url)
        finally:
            process.terminate()


async def _run(arguments: tuple[str, ...], *, task_status: trio.TaskStatus[trio.Process]) -> None:
    process = await trio.lowlevel.open_process(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    task_status.started(process)
    await process.wait()


async def _read_url(process: trio.Process) -> str:
    assert process.stdout is not None
    output = b""
    async for data in process.stdout:
        output += data
        found = _URL.search(output)
        if found is not None:
            return found[0].decode()
    raise RuntimeError(f"a process ended before it told its URL:\n{output.decode(errors='replace')}")


async def _discard(process: trio.Process) -> None:
    assert process.stdout is not None
    async for _ in process.stdout:
        pass
