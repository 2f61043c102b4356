"""Ten times what the server can bear: refused at once, the accepted keep their latency, and it is over in seconds.

Two bounds bite: ``live_responses``, with an upstream that takes its time; and the processor, with streams of which each
costs it about a hundredth of a second. Capacity is measured: places by the time one is held; and what one core could do
with the processor time that a request costs a server that is nearly full, which is more than keeps its latency.

Server, upstream and load are processes of their own. What is a ratio is measured within one run. The one absolute
bound, on refusals, is for a server that has a core for itself; where others take it away, the kernel tells how long the
server was ready and had to wait, and the bound is stretched by as much.
"""

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import attrs
import pytest
import trio
from tests.acceptance.conftest import WAIT_S, Server, open_server, write_config

from dwctl_trio.app import open_database
from dwctl_trio.config import Config
from dwctl_trio.domain.limits import DEFAULT_LIMITS, Limits

OVERLOAD = 10
PLACES = 20
BUSY = 0.8
"""Of what a core could do by what a request costs an idle server, at which the cost under load is measured."""
GENERATOR = Path(__file__).with_name("open_loop.py")
AS_QUICK = 1.5
"""Times the unloaded p99: within this a request is as quick as before."""
REFUSED = {429, 503}


BEARABLE = 24
"""Responses that this machine can surely have under way at a full processor; see the page on overload."""


@attrs.frozen(kw_only=True)
class Case:
    """What bites."""

    name: str
    model: str
    limits: Limits
    calm_rate: float
    """Requests a second that are no load."""


PLACES_BITE = Case(
    name="places", model="slow-10-100", limits=attrs.evolve(DEFAULT_LIMITS, live_responses=PLACES), calm_rate=5.0
)
PROCESSOR_BITES = Case(
    name="processor",
    model="slow-50-20",
    limits=attrs.evolve(DEFAULT_LIMITS, calm_responses=BEARABLE),
    calm_rate=10.0,
)


@attrs.frozen(kw_only=True)
class Plan:
    """How long, and what must hold."""

    unloaded_s: float
    loaded_s: float
    after_s: float
    refusal_p99_s: float
    accepted_growth: float
    recovery_s: float


QUICK = Plan(unloaded_s=2.0, loaded_s=3.0, after_s=3.0, refusal_p99_s=0.4, accepted_growth=3.0, recovery_s=2.8)
FULL = Plan(
    unloaded_s=20.0, loaded_s=30.0, after_s=10.0, refusal_p99_s=0.05, accepted_growth=2.0, recovery_s=5.0
)  # fmt: skip


@attrs.frozen
class Exchange:
    """One request, as the generator saw it."""

    begun_at: float
    lag_s: float
    seconds: float
    status: int
    retry_after: str | None
    retry_after_ms: str | None


@attrs.frozen(kw_only=True)
class Load:
    """What came of a schedule of requests."""

    exchanges: Sequence[Exchange]
    generator_cpu_s: float
    server_cpu_s: float
    server_waited_s: float

    def within(self, begin_at: float, end_at: float) -> Self:
        """The part of it that was begun in a span of time."""
        return attrs.evolve(self, exchanges=[one for one in self.exchanges if begin_at <= one.begun_at < end_at])

    @property
    def stretch(self) -> float:
        """How much longer everything takes the server than on a core of its own."""
        return 1 + self.server_waited_s / self.server_cpu_s

    @property
    def accepted_s(self) -> Sequence[float]:
        return [one.seconds for one in self.exchanges if one.status == 200]

    @property
    def refused_s(self) -> Sequence[float]:
        return [one.seconds for one in self.exchanges if one.status in REFUSED]


async def run_load(server: Server, mode: str, model: str, *phases: tuple[float, float]) -> Load:
    """Offer *phases* of requests a second for so many seconds."""
    numbers = [str(number) for phase in phases for number in phase]
    command = [sys.executable, str(GENERATOR), server.url, mode, model, *numbers]
    cpu_s, waited_s = server.cpu_s(), server.kept_waiting_s()
    with trio.fail_after(WAIT_S + sum(seconds for _, seconds in phases)):
        done = await trio.run_process(command, capture_stdout=True)
    told = json.loads(done.stdout)
    return Load(
        exchanges=sorted((Exchange(*one) for one in told["exchanges"]), key=lambda one: one.begun_at),
        generator_cpu_s=told["cpu_s"],
        server_cpu_s=server.cpu_s() - cpu_s,
        server_waited_s=server.kept_waiting_s() - waited_s,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The value that *share* (0 to 1) of *values* do not exceed; infinite if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("inf")


def recovery_s(after: Load, load_ended_at: float, quick_s: float) -> float:
    """Seconds from the end of the load until the first request from which on all are served, and quickly."""
    slow = [one for one in after.exchanges if one.status != 200 or one.seconds > quick_s]
    later = [one for one in after.exchanges if not slow or one.begun_at > slow[-1].begun_at]
    return later[0].begun_at - load_ended_at if later else float("inf")


@asynccontextmanager
async def open_upstream() -> AsyncIterator[str]:
    """A simulator in a process of its own; its base URL."""
    command = [sys.executable, "-m", "dwctl_trio", "simulator", "--port", "0"]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    try:
        told = b""
        with trio.fail_after(WAIT_S):
            while (found := re.search(rb"http://[0-9.:]+", told)) is None or b"\n" not in told:
                told += await process.stdout.receive_some()
        yield f"{found[0].decode()}/v1"
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@asynccontextmanager
async def open_bench(dsn: str, tmp_path: Path, limits: Limits) -> AsyncIterator[Server]:
    """A server on a migrated database, with an upstream in a process of its own."""
    async with open_upstream() as base_url, open_database(Config(database_url=dsn), migrating=True):
        path = write_config(tmp_path / "config.yaml", base_url, limits, database_url=dsn)
        async with open_server(path) as server:
            yield server


async def run_plan(plan: Plan, case: Case, mode: str, dsn: str, tmp_path: Path) -> None:
    async with open_bench(dsn, tmp_path, case.limits) as server:
        await run_load(server, mode, case.model, (case.calm_rate, 1.0))  # the first requests fill caches
        unloaded = await run_load(server, mode, case.model, (case.calm_rate, plan.unloaded_s))
        busy_rate = BUSY * len(unloaded.exchanges) / unloaded.server_cpu_s
        busy = await run_load(server, mode, case.model, (busy_rate, plan.unloaded_s))
        cpu_s = busy.server_cpu_s / len(busy.accepted_s)
        capacity = PLACES / percentile(unloaded.accepted_s, 0.5) if case is PLACES_BITE else 1 / cpu_s
        rate = OVERLOAD * capacity
        whole = await run_load(server, mode, case.model, (rate, plan.loaded_s), (case.calm_rate, plan.after_s))

    began_at = whole.exchanges[0].begun_at
    loaded = whole.within(began_at, began_at + plan.loaded_s)
    load_ended_at = loaded.exchanges[-1].begun_at
    after = whole.within(began_at + plan.loaded_s, float("inf"))
    unloaded_p99_s, accepted_p99_s = percentile(unloaded.accepted_s, 0.99), percentile(loaded.accepted_s, 0.99)
    refused_p99_s = percentile(loaded.refused_s, 0.99)
    recovered_s = recovery_s(after, load_ended_at, AS_QUICK * unloaded_p99_s)
    refusal_p99_max_s = plan.refusal_p99_s * whole.stretch
    lag_s = percentile([one.lag_s for one in loaded.exchanges], 0.99)
    accepted, refused, offered = len(loaded.accepted_s), len(loaded.refused_s), len(loaded.exchanges)
    print(
        f"{case.name}, {mode} connections: capacity {capacity:.0f}/s ({1000 * cpu_s:.1f} ms of processor each),"
        f" offered {offered / plan.loaded_s:.0f}/s for {plan.loaded_s:.0f} s; refused {refused}:"
        f" p50 {1000 * percentile(loaded.refused_s, 0.5):.1f} ms, p99 {1000 * refused_p99_s:.1f} ms"
        f" of {1000 * refusal_p99_max_s:.0f} on this machine;"
        f" accepted {accepted} ({accepted / plan.loaded_s:.0f}/s):"
        f" p99 {1000 * unloaded_p99_s:.0f} -> {1000 * accepted_p99_s:.0f} ms; recovered after {recovered_s:.2f} s;"
        f" processor: server {whole.server_cpu_s:.1f} s and {whole.server_waited_s:.1f} s kept waiting,"
        f" generator {whole.generator_cpu_s:.1f} s,"
        f" whose lag p99 {1000 * lag_s:.1f} ms"
    )
    assert {one.status for one in unloaded.exchanges} == {200}
    assert {one.status for one in whole.exchanges} <= {200, *REFUSED}, "nobody is left without an answer"
    for one in whole.exchanges:
        if one.status in REFUSED:
            assert 1 <= int(one.retry_after or 0) <= 5
            assert 1000 <= int(one.retry_after_ms or 0) <= 5000
    assert len(loaded.refused_s) > len(loaded.exchanges) / 2
    assert len(loaded.accepted_s) > capacity * plan.loaded_s / 5, "it goes on serving"
    assert lag_s < refusal_p99_max_s, "the load came as it was meant to"
    assert refused_p99_s <= refusal_p99_max_s
    assert accepted_p99_s <= plan.accepted_growth * unloaded_p99_s
    assert recovered_s <= plan.recovery_s


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "mode"),
    [
        pytest.param(PLACES_BITE, "kept", id="places-kept"),
        pytest.param(PROCESSOR_BITES, "new", id="processor-new"),
    ],
)
async def test_a_short_overload_is_refused_and_over_soon(case: Case, mode: str, postgres_dsn: str, tmp_path: Path):
    await run_plan(QUICK, case, mode, postgres_dsn, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["new", "kept"])
@pytest.mark.parametrize("case", [PLACES_BITE, PROCESSOR_BITES], ids=lambda case: case.name)
async def test_ten_times_the_capacity_is_refused_at_once_and_the_accepted_keep_their_latency(
    case: Case, mode: str, postgres_dsn: str, tmp_path: Path
):
    await run_plan(FULL, case, mode, postgres_dsn, tmp_path)
