"""What does a round of tools cost: the model calls, the server runs, the model answers?

    python -m benchmarks.tool_rounds [--rounds N] [--effort SHARE] [--json FILE]

Two model calls with one call of an HTTP tool, or 8 at once, between them; then 10 tokens. CPU of the target's process.
The floor makes the same calls by hand. What a round adds is told by what the same tokens cost without it.
"""

from benchmarks.rig.command import run, scaled
from benchmarks.rig.load import Answer, Target, percentile, repeat, run_blocking, run_stream, run_streams
from benchmarks.rig.results import Measurement, compared
from benchmarks.rig.site import FLOOR, TOOL, Costs, Site, measure_costs

_PLAIN = "echo-10"
_SCENARIOS = (
    ("1 tool, 1 request at a time", "tools-1", 1, 150),
    ("1 tool, 32 requests at a time", "tools-1", 32, 300),
    ("8 tools, 1 request at a time", "tools-8", 1, 60),
)
"""Name, model, how many at a time, and how many of each target in a full round."""

_FUNCTION = {"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}
_CALL = {"id": "call_0", "type": "function", "function": {"name": "lookup", "arguments": "{}"}}
_ANSWERED = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "call_0", "content": "{}"},
]


async def measure(site: Site, effort: float) -> list[Measurement]:
    """One round."""
    measurements = []
    for name, model, concurrent, count in _SCENARIOS:
        plain = await _measure_scenario(site, _PLAIN, concurrent, scaled(count, effort), effort)
        costs = await _measure_scenario(site, model, concurrent, scaled(count, effort), effort)
        request_ms = {role: cost.ms_per_request() for role, cost in costs.items()}
        round_ms = {role: request_ms[role] - cost.ms_per_request() for role, cost in plain.items()}
        times_ms = {
            role: percentile([answer.total_s * 1e3 for answer in cost.answers], 0.5) for role, cost in costs.items()
        }
        measurements += [
            compared(f"{name}: CPU a request", "ms", request_ms),
            compared(f"{name}: CPU of the round", "ms", round_ms),
            compared(f"{name}: time, median", "ms", times_ms),
        ]
    return measurements


async def _measure_scenario(site: Site, model: str, concurrent: int, count: int, effort: float) -> Costs:
    async def load(target: Target, count: int) -> list[Answer]:
        if target.process is not site.upstream:
            request = target.request(model, stream=True, tools=[TOOL])
            return await run_streams(target, request, concurrent=concurrent, count=count)
        answers: list[Answer] = []

        async def make_one() -> None:
            answers.append(await _by_hand(site, model))

        await repeat(make_one, concurrent=concurrent, count=count)
        return answers

    return await measure_costs(site, site.targets(), load, count=count, warm_up=concurrent if effort else 0)


async def _by_hand(site: Site, model: str) -> Answer:
    """The calls that a server makes for one request; of *_PLAIN* there is one."""
    target = site.targets()[FLOOR]
    first = await run_stream(target, target.request(model, stream=True, tools=[_FUNCTION]))
    if model == _PLAIN:
        return first
    tools = Target(process=site.tools, path="/lookup", body={}, delta_sign=b"")
    async with await tools.connect() as stream:
        for _ in range(int(model.rpartition("-")[2])):
            await run_blocking(stream, tools.request(model, stream=False))
    second = await run_stream(target, target.request(model, stream=True, tools=[_FUNCTION], messages=_ANSWERED))
    return Answer(
        first_delta_s=first.total_s + second.first_delta_s,
        total_s=first.total_s + second.total_s,
        events=first.events + second.events,
    )


if __name__ == "__main__":
    run(__doc__, measure)
