"""How much memory does an open stream take, idle and at work, with up to 1,000 of them?

    python -m benchmarks.memory [--rounds N] [--effort SHARE] [--json FILE]

An idle stream is one whose upstream has answered, but sends no tokens. A stream at work gets one every 500 ms, and
keeps its events, which are stored at its end: it has had 10 tokens when it is measured. The memory of a stream is what
the resident set grows by from ``FEW`` to all of them, by their number: what the process needs anyway is not in it.
"""

import trio

from benchmarks.rig.command import run, scaled
from benchmarks.rig.load import Target
from benchmarks.rig.processes import Process, open_process
from benchmarks.rig.results import Measurement, compared
from benchmarks.rig.site import REFERENCE, SERVER, Site, open_server, responses_target

IDLE_KB_MAX = 100.0
FEW = 100
_ALL = 1000
_OPENED_AT_ONCE = 20
_TOKENS = 10
_WAIT_S_MAX = 120.0
_READ_BYTES = 65536

_IDLE = ("hangbody", b"event: response.in_progress")
_AT_WORK = ("slow-1000-500", b"word%d " % (_TOKENS - 1))
"""The model, and what a stream has told when it is counted."""


async def measure_idle(site: Site, effort: float) -> dict[str, float]:
    """Kilobytes of an idle stream by role, in processes of their own."""
    return await _measure_new_processes(site, effort, *_IDLE)


async def measure(site: Site, effort: float) -> list[Measurement]:
    """One round."""
    return [
        compared("an idle stream: memory", "kB", await measure_idle(site, effort), at_most=IDLE_KB_MAX),
        compared("a stream at work: memory", "kB", await _measure_new_processes(site, effort, *_AT_WORK)),
    ]


async def _measure_new_processes(site: Site, effort: float, model: str, sign: bytes) -> dict[str, float]:
    few, everything = scaled(FEW, effort, at_least=2), scaled(_ALL, effort, at_least=4)
    kilobytes = {}
    async with open_process("-m", "benchmarks.reference_server", site.upstream.url) as reference:
        kilobytes[REFERENCE] = await _kilobytes_of_one(reference, model, sign, few, everything)
    async with open_server(site) as server:
        kilobytes[SERVER] = await _kilobytes_of_one(server, model, sign, few, everything)
    return kilobytes


async def _kilobytes_of_one(process: Process, model: str, sign: bytes, few: int, everything: int) -> float:
    target = responses_target(process)
    request = target.request(model, stream=True)
    async with trio.open_nursery() as nursery:
        await _open(nursery, target, request, sign, few)
        before = process.memory_bytes()
        await _open(nursery, target, request, sign, everything - few)
        after = process.memory_bytes()
        nursery.cancel_scope.cancel()
    return (after - before) / (everything - few) / 1000


async def _open(nursery: trio.Nursery, target: Target, request: bytes, sign: bytes, count: int) -> None:
    """Open *count* more streams, and return when each has told *sign*."""
    told = trio.Semaphore(0)
    opening = trio.CapacityLimiter(_OPENED_AT_ONCE)

    async def hold() -> None:
        async with opening:
            stream = await target.connect()
            await stream.send_all(request)
        async with stream:
            received = b""
            while sign not in received:
                data = await stream.receive_some(_READ_BYTES)
                if not data:
                    raise RuntimeError(f"an open stream ended:\n{received.decode(errors='replace')}")
                received += data
            told.release()
            while await stream.receive_some(_READ_BYTES):
                pass

    with trio.fail_after(_WAIT_S_MAX):
        for _ in range(count):
            nursery.start_soon(hold)
        for _ in range(count):
            await told.acquire()


if __name__ == "__main__":
    run(__doc__, measure)
