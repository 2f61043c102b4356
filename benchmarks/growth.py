"""How does each cost grow: with tokens, streams, steps, and items of history?

    python -m benchmarks.growth [--rounds N] [--effort SHARE] [--json FILE]

Each figure is how many times as dear a thing becomes; 1 is no growth. CPU of the target's process. A step is one model
call or one tool call; the CPU of steps is read when the stream tells that their last tool has answered.
``benchmarks.queued`` has the growth with queued rows.
"""

from collections.abc import Mapping

from benchmarks.rig.command import run, scaled
from benchmarks.rig.load import Answer, Target, run_blockings, run_streams
from benchmarks.rig.results import Measurement, compared
from benchmarks.rig.site import FLOOR, TOOL, Site, measure_costs

_TOKENS_GROWTH_MAX = 1.1
_STREAMS_GROWTH_MAX = 1.5
_STEPS_GROWTH_MAX = 2.0

_CHAIN = "tools-1-then-tools-1"
"""Calls a tool for ever."""
_TOOL_ROUNDS = 25
"""50 steps."""
_FIRST_STEPS, _LAST_STEPS = (0, 5), (20, 25)
"""Steps 1 to 10 and 41 to 50, as tool rounds."""
_READ_BYTES = 65536
_TOOL_ANSWERED = b"event: response.mcp_call.completed"


async def measure(site: Site, effort: float) -> list[Measurement]:
    """One round."""
    short = await _us_per_event(site, "echo-200", 1, scaled(200, effort), effort)
    long = await _us_per_event(site, "echo-2000", 1, scaled(30, effort), effort)
    many = await _us_per_event(site, "echo-200", 100, scaled(600, effort), effort)
    few_items = await _ms_per_request(site, 100, scaled(150, effort), effort)
    many_items = await _ms_per_request(site, 1000, scaled(30, effort), effort)
    per_item = {role: (many_items[role] - few_items[role]) / 900 for role in few_items}
    per_item_of_few = {role: figure / 100 for role, figure in few_items.items()}
    steps = await _growth_of_steps(site, scaled(12, effort))
    return [
        _growth("CPU an event, 2,000 tokens to 200", long, short, _TOKENS_GROWTH_MAX),
        _growth("CPU an event, 100 streams to 1", many, short, _STREAMS_GROWTH_MAX),
        compared("CPU of steps 41-50 to steps 1-10", "x", steps, at_most=_STEPS_GROWTH_MAX),
        compared("CPU a request of 100 items", "ms", few_items),
        compared("CPU a request of 1,000 items", "ms", many_items),
        _growth("CPU of a further item to an item of 100", per_item, per_item_of_few, None),
    ]


def _growth(name: str, after: Mapping[str, float], before: Mapping[str, float], at_most: float | None) -> Measurement:
    return compared(name, "x", {role: after[role] / before[role] for role in before}, at_most=at_most)


async def _us_per_event(site: Site, model: str, concurrent: int, count: int, effort: float) -> dict[str, float]:
    async def load(target: Target, count: int) -> list[Answer]:
        return await run_streams(target, target.request(model, stream=True), concurrent=concurrent, count=count)

    costs = await measure_costs(site, site.targets(), load, count=count, warm_up=concurrent if effort else 0)
    return {role: cost.us_per_event() for role, cost in costs.items()}


async def _ms_per_request(site: Site, items: int, count: int, effort: float) -> dict[str, float]:
    """Of blocking requests with a history of so many items."""
    history = [
        {"role": "assistant" if number % 2 else "user", "content": f"This is what was said as number {number}."}
        for number in range(items - 1)
    ] + [{"role": "user", "content": "hi"}]

    async def load(target: Target, count: int) -> list[Answer]:
        given = {"messages": history} if target.process is site.upstream else {"input": history}
        request = target.request("echo-10", stream=False, **given)
        return await run_blockings(target, request, concurrent=1, count=count)

    costs = await measure_costs(site, site.targets(), load, count=count, warm_up=3 if effort else 0)
    return {role: cost.ms_per_request() for role, cost in costs.items()}


async def _growth_of_steps(site: Site, count: int) -> dict[str, float]:
    growth = {}
    for role, target in site.targets().items():
        if role == FLOOR:
            continue
        chains = [await _cpu_by_tool_round(target) for _ in range(count + 1)][1:]
        first, last = (sum(cpu_s[end] - cpu_s[begin] for cpu_s in chains) for begin, end in (_FIRST_STEPS, _LAST_STEPS))
        growth[role] = last / first
    return growth


async def _cpu_by_tool_round(target: Target) -> list[float]:
    """CPU seconds of *target* as a chain began, and as each of its tools had answered; its client then leaves."""
    cpu_s: list[float] = []
    async with await target.connect() as stream:
        await stream.send_all(target.request(_CHAIN, stream=True, tools=[TOOL]))
        while len(cpu_s) <= _TOOL_ROUNDS:
            data = await stream.receive_some(_READ_BYTES)
            assert data, "a chain ended by itself"
            if not cpu_s:
                cpu_s.append(target.process.cpu_s())
            cpu_s.extend(target.process.cpu_s() for _ in range(data.count(_TOOL_ANSWERED)))
    return cpu_s


if __name__ == "__main__":
    run(__doc__, measure)
