"""What does the queue cost: enqueuing, working off, picking up, following; and how does it grow with what is queued?

    python -m benchmarks.queued [--rounds N] [--effort SHARE] [--json FILE]

The reference has no queue; what there is to compare with is the same response on the warm path, or the same with little
queued. CPU of the server where rows are enqueued, of the worker where they are worked off.
"""

import json
import re
from pathlib import Path

import trio

from benchmarks.rig.command import run, scaled
from benchmarks.rig.load import Answer, Target, percentile, run_blocking, run_blockings, run_stream, run_streams
from benchmarks.rig.processes import open_process
from benchmarks.rig.results import Measurement
from benchmarks.rig.site import Site, measure_cost, open_server, prepare_server, responses_target

_MODEL = "echo-10"
_FOLLOWED = "slow-50-20"
_FEW, _MANY, _WORKED_OFF = 400, 4000, 300
_FOLLOWERS = 20
_LIMITS = {"queue_workers": 64, "queue_model_concurrency": 64}
_WORKER_STARTED = re.compile(rb"worker_started")
_POLL_S = 0.02
_WAIT_S_MAX = 120.0


async def measure(site: Site, effort: float) -> list[Measurement]:
    """One round."""
    few, many = scaled(_FEW, effort, at_least=4), scaled(_MANY, effort, at_least=8)
    enqueued, with_few = await _enqueue_and_work_off(site, few, scaled(_WORKED_OFF, effort, at_least=2))
    _, with_many = await _enqueue_and_work_off(site, many, scaled(_WORKED_OFF, effort, at_least=2))
    return [
        *enqueued,
        Measurement(name="working off: CPU a response", unit="ms", value=with_few),
        Measurement(name=f"working off: {_MANY:,} queued rows to {_FEW}", unit="x", value=with_many / with_few),
        *await _pick_up(site, scaled(60, effort)),
        *await _follow(site, effort),
    ]


async def _enqueue_and_work_off(site: Site, count: int, worked_off: int) -> tuple[list[Measurement], float]:
    """What it costs to enqueue *count* rows, and the worker's CPU, in ms a response, of the first *worked_off*."""
    config = await prepare_server(site, **_LIMITS)
    async with open_process(
        *("-m", "dwctl_trio", "serve", "--config", str(config)), environment={"DWCTL_LIMITS__QUEUE_WORKERS": "0"}
    ) as server:
        target = responses_target(server)
        request = target.request(_MODEL, stream=False, background=True)
        cost = await measure_cost(site, target, lambda: run_blockings(target, request, concurrent=4, count=count))
    times_ms = [answer.total_s * 1e3 for answer in cost.answers]
    enqueued = [
        Measurement(name="enqueuing: CPU a response", unit="ms", value=cost.ms_per_request()),
        Measurement(name="enqueuing, 4 at a time: time, median", unit="ms", value=percentile(times_ms, 0.5)),
    ]
    return enqueued, await _work_off(site, config, worked_off)


async def _work_off(site: Site, config: Path, count: int) -> float:
    upstream = Target(process=site.upstream, path="", body={}, delta_sign=b"")

    async def completed() -> int:
        async with await upstream.connect() as stream:
            counters = json.loads(await run_blocking(stream, upstream.get("/control/counters")))
        return int(counters["completed"])

    already = await completed()
    command = ("-m", "dwctl_trio", "worker", "--config", str(config))
    async with open_process(*command, sign=_WORKER_STARTED) as worker:
        began_s, done = worker.cpu_s(), 0
        with trio.fail_after(_WAIT_S_MAX):
            while done < count:
                await trio.sleep(_POLL_S)
                done = await completed() - already
        return (worker.cpu_s() - began_s) * 1e3 / done


async def _pick_up(site: Site, count: int) -> list[Measurement]:
    """How much later than on the warm path the first delta comes, with nothing else queued."""
    target = site.targets()["server"]
    warm, queued = (target.request(_MODEL, stream=True, **more) for more in ({}, {"background": True}))
    delays_ms: dict[bytes, list[float]] = {warm: [], queued: []}
    for _ in range(count):
        for request, delays in delays_ms.items():
            delays.append((await run_stream(target, request)).first_delta_s * 1e3)
    over = percentile(delays_ms[queued], 0.5) - percentile(delays_ms[warm], 0.5)
    return [
        Measurement(name="picking up: first delta over the warm path's", unit="ms", value=over),
        Measurement(name="picking up: first delta, p99", unit="ms", value=percentile(delays_ms[queued], 0.99)),
    ]


async def _follow(site: Site, effort: float) -> list[Measurement]:
    """What an event costs on the warm path, and what one costs each follower of a background response."""
    followers = scaled(_FOLLOWERS, effort, at_least=2)
    async with open_server(site) as server:
        target = responses_target(server)

        async def follow(count: int) -> list[Answer]:
            async with await target.connect() as stream:
                request = target.request(_FOLLOWED, stream=False, background=True)
                response = json.loads(await run_blocking(stream, request))
            following = target.get(f"/v1/responses/{response['id']}?stream=true")
            return await run_streams(target, following, concurrent=count, count=count)

        warm = target.request(_FOLLOWED, stream=True)
        alone = await measure_cost(site, target, lambda: follow(1))
        crowd = await measure_cost(site, target, lambda: follow(1 + followers))
        streams = await measure_cost(
            site, target, lambda: run_streams(target, warm, concurrent=followers, count=followers)
        )
    further_us = (crowd.target_s - alone.target_s) * 1e6 / (crowd.events - alone.events)
    return [
        Measurement(name="a warm stream of its own: CPU an event", unit="us", value=streams.us_per_event()),
        Measurement(name="a further follower: CPU an event", unit="us", value=further_us),
    ]


if __name__ == "__main__":
    run(__doc__, measure)
