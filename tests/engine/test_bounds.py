"""Every bound of a loop bites where it says, in the stream, in the row and in what is read later."""

from collections import Counter
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from tests.engine.scenarios import MemoryBench, open_memory_bench, server_tools

from dwctl_trio.domain.items import McpCall, output_text
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.response import ErrorType, IncompleteReason, ResponseStatus
from dwctl_trio.domain.steps import StepState
from dwctl_trio.testing.simulator_script import expected_text
from dwctl_trio.testing.tool_server import ToolReply

WAIT_S = 10.0
LOOK = {"name": "look", "url": "/look"}
FOR_EVER = "tools-2-then-tools-2"
"""A model that calls two tools in every turn."""


def agent(name: str, model: str, *tools: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "kind": "agent", "model": model, "tools": list(tools), **keys}


async def _serve(bench: MemoryBench, model: str, *tools: str, **fields: Any) -> None:
    with trio.fail_after(WAIT_S):
        await bench.requests.serve_stream(model, tools=server_tools(*tools), **fields)
        await bench.requests.check_nothing_left()


async def _check_told_everywhere(bench: MemoryBench, status: ResponseStatus, error_type: ErrorType | None) -> None:
    """The stream's end, the row and what is read later say the same."""
    told, row, read = bench.told, bench.row, await bench.get()
    assert told.status is status
    assert (row.error and row.error.type) == error_type
    assert row.state is (RowState.FAILED if status is ResponseStatus.FAILED else RowState.COMPLETED)
    assert read.body == row.response
    body = msgspec.json.decode(row.response or b"")
    assert (body["status"], len(body["output"])) == (status.value, len(told.output))
    assert all(step.finished_at is not None for step in bench.steps())


# -- how many


@pytest.mark.parametrize(
    ("limits", "model_calls", "tool_calls"),
    [(Limits(turns=3), 3, 6), (Limits(steps=8), 3, 4), (Limits(tool_calls=5), 3, 4), (Limits(tool_calls=0), 1, 0)],
    ids=["turns", "steps", "tool-calls", "no-tool-calls"],
)
async def test_a_model_that_never_stops_calling_meets_each_bound_exactly(
    limits: Limits, model_calls: int, tool_calls: int
) -> None:
    async with open_memory_bench([LOOK], limits) as bench:
        await _serve(bench, FOR_EVER, "look")
        await _check_told_everywhere(bench, ResponseStatus.FAILED, ErrorType.MAX_ITERATIONS_EXCEEDED)
        assert bench.requests.simulator.statistics().total == model_calls == len(bench.steps(None))
        assert bench.requests.tool_server.calls_by_key.total() == tool_calls == len(bench.steps("look"))
        shown = Counter(item.status.value for item in bench.told.output)
    assert shown == Counter(completed=tool_calls, incomplete=2 * model_calls - tool_calls)


async def test_a_sub_agent_that_never_stops_meets_the_bounds_and_its_caller_still_answers() -> None:
    tools = [LOOK, agent("worker", FOR_EVER, "look")]
    async with open_memory_bench(tools, Limits(turns=3)) as bench:
        await _serve(bench, "tools-1-then-echo-2", "worker")
        await _check_told_everywhere(bench, ResponseStatus.COMPLETED, None)
        (worker,) = bench.steps("worker")
    assert worker.error is not None
    assert worker.error.type is ErrorType.EXECUTOR_ERROR


async def test_an_agent_without_tools_whose_model_calls_one_is_told_that_there_is_none() -> None:
    async with open_memory_bench([agent("bare", "tools-1-then-echo-3")]) as bench:
        await _serve(bench, "tools-1-then-echo-1", "bare")
        await _check_told_everywhere(bench, ResponseStatus.COMPLETED, None)
        (called,) = [item for item in bench.told.output if isinstance(item, McpCall)]
        inner = [step for step in bench.steps() if step.name is not None and step.name != "bare"]
    assert called.output == expected_text("echo-3")
    assert [step.error and step.error.type for step in inner] == [ErrorType.TOOL_NOT_FOUND]


async def test_an_agent_that_calls_itself_is_stopped_at_the_ninth_and_told_so() -> None:
    async with open_memory_bench([agent("deep", "tools-1-then-echo-1", "deep")]) as bench:
        await _serve(bench, "tools-1-then-echo-1", "deep")
        await _check_told_everywhere(bench, ResponseStatus.COMPLETED, None)
        calls = bench.steps("deep")
        model_calls = len(bench.steps(None))
    assert [step.state for step in calls] == [StepState.COMPLETED] * 8 + [StepState.FAILED]
    assert [step.parent_step_id for step in calls] == [None, *(step.id for step in calls[:-1])]
    assert calls[-1].error is not None
    assert calls[-1].error.type is ErrorType.MAX_DEPTH_EXCEEDED
    assert model_calls == 2 * 9
    print(f"an agent that calls itself: {len(calls)} calls, {model_calls} model calls, the 9th was refused")


@pytest.mark.parametrize("calls", [1, 2, 3, 5])
async def test_exactly_as_many_tools_are_called_as_the_client_allows(calls: int) -> None:
    async with open_memory_bench([LOOK]) as bench:
        await _serve(bench, "tools-2-then-tools-2-then-tools-2-then-echo-2", "look", max_tool_calls=calls)
        told, requests = bench.told, bench.requests.simulator.requests
        made = bench.requests.tool_server.calls_by_key.total()
        await _check_told_everywhere(bench, ResponseStatus.FAILED if told.error else ResponseStatus.COMPLETED, None)
    assert made == calls
    assert [bool(request.body.get("tools")) for request in requests] == [
        2 * turn < calls for turn in range(len(requests))
    ]
    shown = [item.status.value for item in told.output if isinstance(item, McpCall)]
    assert shown[:calls] == ["completed"] * calls
    assert set(shown[calls:]) <= {"incomplete"}


async def test_agents_side_by_side_share_the_calls_that_the_client_allows() -> None:
    tools = [LOOK, agent("worker", "tools-3-then-echo-1", "look")]
    async with open_memory_bench(tools) as bench:
        for allowed in range(1, 13):
            await _serve(bench, "tools-3-then-echo-1", "worker", max_tool_calls=allowed)
            assert len(bench.steps("worker")) + len(bench.steps("look")) == min(allowed, 12)


async def test_the_tokens_left_go_down_from_turn_to_turn_until_the_response_is_incomplete() -> None:
    async with open_memory_bench([LOOK]) as bench:
        await _serve(bench, "tools-1-then-tools-1", "look", max_output_tokens=16)
        await _check_told_everywhere(bench, ResponseStatus.INCOMPLETE, None)
        told, requests = bench.told, bench.requests.simulator.requests
    sent = [request.body["max_tokens"] for request in requests]
    print(f"max_output_tokens of 16, sent upstream: {sent}")
    assert told.usage is not None
    each = told.usage.output_tokens // len(sent)
    assert sent == list(range(16, 0, -each))
    assert told.incomplete_reason is IncompleteReason.MAX_OUTPUT_TOKENS
    assert [item.status.value for item in told.output] == ["completed"] * len(sent)


async def test_what_sub_agents_say_counts_against_the_tokens_of_the_response() -> None:
    tools = [agent("worker", "echo-20")]
    async with open_memory_bench(tools) as bench:
        await _serve(bench, "tools-1-then-echo-1", "worker", max_output_tokens=16)
        await _check_told_everywhere(bench, ResponseStatus.INCOMPLETE, None)
        assert bench.requests.simulator.statistics().total == 2


# -- how many at once


@pytest.mark.parametrize("places", [1, 2, 5])
async def test_no_more_tools_run_at_once_than_the_bound_says(places: int) -> None:
    tools = [LOOK, agent("worker", "tools-3-then-echo-1", "look")]
    async with open_memory_bench(tools, Limits(tool_concurrency=places)) as bench, trio.open_nursery() as nursery:
        server = bench.requests.tool_server
        server.script("/look", ToolReply(pauses_at="head"))
        nursery.start_soon(_serve, bench, "tools-4-then-echo-1", "worker", "look")
        with trio.fail_after(WAIT_S):
            for done in range(0, 8, places):  # two of the four calls are agents, with three calls each
                at_once = min(places, 8 - done)
                await server.wait_until(lambda server, at_once=at_once: server.paused == at_once)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert server.open == at_once
                server.resume_all()
    assert bench.told.status is ResponseStatus.COMPLETED


@pytest.mark.parametrize("places", [1, 2, 4])
async def test_no_more_models_of_sub_agents_run_at_once_than_the_bound_says(places: int) -> None:
    tools = [agent("inner", "echo-1-gate"), agent("outer", "tools-1-then-echo-1", "inner")]
    limits = Limits(agent_concurrency=places)
    async with open_memory_bench(tools, limits) as bench, trio.open_nursery() as nursery:
        simulator = bench.requests.simulator
        nursery.start_soon(_serve, bench, "tools-12-then-echo-1", "inner", "outer")
        with trio.fail_after(WAIT_S):
            for _ in range(12 // places):  # six agents at the gate, and six that wait for one there
                await simulator.wait_until(lambda counts: counts.paused == counts.open == places)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert simulator.statistics().open == places
                simulator.resume_all()
    assert bench.told.status is ResponseStatus.COMPLETED
    assert len(bench.steps(None)) == 2 + 6 + 6 * 3


async def test_agents_that_wait_for_agents_need_no_place_for_it() -> None:
    tools = [LOOK, agent("deep", "tools-2-then-echo-1", "deep", "look")]
    limits = Limits(agent_concurrency=1, tool_concurrency=1, depth=6)
    async with open_memory_bench(tools, limits) as bench:
        await _serve(bench, "tools-2-then-echo-1", "deep", "look")
        await _check_told_everywhere(bench, ResponseStatus.COMPLETED, None)
        assert len(bench.steps("look")) == 7


# -- how long


async def test_a_response_that_takes_too_long_ends_failed_and_says_so_everywhere() -> None:
    tools = [LOOK, agent("worker", "tools-1-then-echo-1", "look")]
    async with open_memory_bench(tools, Limits(response_s=0.3)) as bench:
        bench.requests.tool_server.script("/look", ToolReply(pauses_at="body"))
        await _serve(bench, "tools-2-then-echo-1", "look", "worker")
        await _check_told_everywhere(bench, ResponseStatus.FAILED, ErrorType.DEADLINE_EXCEEDED)
        assert bench.requests.tool_server.left == 2
        assert {step.state for step in bench.steps("look")} == {StepState.CANCELED}
        assert [item.status.value for item in bench.told.output] == ["incomplete", "incomplete"]

        with trio.fail_after(WAIT_S):
            await bench.requests.serve_blocking("tools-1-then-echo-1", tools=server_tools("look"))
        assert bench.requests.response is not None
        assert bench.requests.response.error is not None
        assert bench.requests.response.error.type is ErrorType.DEADLINE_EXCEEDED


async def test_a_tool_that_takes_too_long_fails_alone_and_the_model_is_told() -> None:
    tools = [{**LOOK, "timeout_s": 0.1}, {"name": "note", "url": "/note"}]
    async with open_memory_bench(tools) as bench:
        bench.requests.tool_server.script("/look", ToolReply(pauses_at="head"))
        await _serve(bench, "tools-2-then-echo-2", "look", "note")
        await _check_told_everywhere(bench, ResponseStatus.COMPLETED, None)
        told, (_, second) = bench.told, bench.requests.simulator.requests
        (slow,), server = bench.steps("look"), bench.requests.tool_server
        assert (server.left, server.answered) == (1, 1)
    assert slow.error is not None
    assert slow.error.type is ErrorType.TOOL_TIMEOUT
    assert [item.status.value for item in told.output] == ["failed", "completed", "completed"]
    assert slow.error.message in second.body["messages"][-2]["content"]
    assert output_text(told.output) == expected_text("echo-2")


@pytest.mark.parametrize("inside", ["each-2-pause-1", "tools-1"], ids=["its-model-runs", "its-tool-runs"])
async def test_an_agent_that_takes_too_long_is_left_at_once_and_its_steps_are_marked(inside: str) -> None:
    tools = [LOOK, agent("worker", inside, "look", timeout_s=0.2)]
    async with open_memory_bench(tools) as bench, trio.open_nursery() as nursery:
        simulator, server = bench.requests.simulator, bench.requests.tool_server
        server.script("/look", ToolReply(pauses_at="head"))
        nursery.start_soon(_serve, bench, "tools-1-then-echo-2-gate", "worker")
        with trio.fail_after(WAIT_S):  # its caller goes on, with nothing of it left
            await simulator.wait_until(lambda counts: counts.by_model.get("tools-1-then-echo-2-gate") == 2)
            await simulator.wait_until(lambda counts: counts.open == counts.paused == 1)
            await server.wait_idle()
            (worker,), open_inside = bench.steps("worker"), bench.steps(inside=True)
        assert (simulator.statistics().aborted_by_client, server.left) == ((0, 1) if inside == "tools-1" else (1, 0))
        simulator.resume_all()
    await _check_told_everywhere(bench, ResponseStatus.COMPLETED, None)
    assert worker.error is not None
    assert worker.error.type is ErrorType.TOOL_TIMEOUT
    assert open_inside[-1].state is StepState.CANCELED
    assert {step.state for step in open_inside[:-1]} <= {StepState.COMPLETED}
    asking = {step.id for step in bench.steps(None)}
    assert asking == {record.step_id for record in bench.database.usage.values()}
