"""``GET /v1/responses/{id}/steps`` over real sockets: what a response did, to its owner, while it does it and after."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
import trio
from tests.http.conftest import WAIT_S, as_request, ask, error_of, open_raw
from tests.http.server_tools import AGENT_ANSWER, ARGUMENTS, OWN, WEATHER, ToolWorld, open_tool_world, server_tools
from tests.http.tenants import UNKNOWN_ID, authorize

from dwctl_trio.domain import ids
from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.steps import ModelCall, Step, StepState, ToolCall
from dwctl_trio.domain.turn import FinishReason, ModelTurn, TextFragment, ToolCallFragment
from dwctl_trio.domain.turn_output import TurnOutput
from dwctl_trio.domain.usage import Usage
from dwctl_trio.ports import CallMetering, EndedStep, NewResponse, Progress
from dwctl_trio.postgres.store import PostgresStore
from dwctl_trio.protocol.request_body import parse_request
from dwctl_trio.testing.tool_server import ToolReply

COMMON = {"id", "object", "sequence", "status", "parent_step_id", "error", "type"}
MEMBERS = {
    "model_call": COMMON | {"output", "finish_reason", "usage"},
    "tool_call": COMMON | {"call_id", "name", "arguments", "output"},
}


@pytest.fixture
async def world(postgres_dsn: str) -> AsyncIterator[ToolWorld]:
    async with open_tool_world(postgres_dsn) as world:
        yield world


async def create(world: ToolWorld, model: str, **fields: Any) -> Any:
    answer = await world.service.client.post("/v1/responses", json=ask(model, **fields))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def list_steps(world: ToolWorld, response_id: str) -> list[dict[str, Any]]:
    """The steps, after their shape has been checked."""
    answer = await world.service.client.get(f"/v1/responses/{response_id}/steps")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json"), answer.text
    listed = answer.json()
    steps: list[dict[str, Any]] = listed["data"]
    assert set(listed) == {"object", "data", "first_id", "last_id", "has_more"}
    assert (listed["object"], listed["has_more"]) == ("list", False)
    assert (listed["first_id"], listed["last_id"]) == (steps[0]["id"], steps[-1]["id"])
    for step in steps:
        assert set(step) == MEMBERS[step["type"]], step
        assert step["object"] == "response.step"
        assert step["id"].startswith("step_")
        assert (step["status"] == "failed") == (step["error"] is not None)
    sequences = [step["sequence"] for step in steps]
    assert sequences == sorted(set(sequences))
    return steps


def summary(steps: list[dict[str, Any]]) -> list[tuple[str, str, bool]]:
    """What each step was, how it ended, and whether it was a sub-agent's."""
    return [
        (step.get("name", "model"), step["status"], step["parent_step_id"] is not None)
        for step in steps
    ]  # fmt: skip


@pytest.mark.slow
async def test_the_steps_tell_each_model_call_and_each_tool_call_with_what_came_of_it(world: ToolWorld) -> None:
    made = await create(world, "tools-2", tools=[server_tools("get_weather", "researcher")])

    steps = await list_steps(world, made["id"])

    assert summary(steps) == [
        ("model", "completed", False),
        ("get_weather", "completed", False),
        ("researcher", "completed", False),
        ("model", "completed", True),
        ("search", "completed", True),
        ("model", "completed", True),
        ("model", "completed", False),
    ]
    first, weather, agent, inner, *_, last = steps
    assert {step["parent_step_id"] for step in steps} == {None, agent["id"]}
    assert (weather["arguments"], weather["output"], agent["output"]) == (ARGUMENTS, WEATHER, AGENT_ANSWER)
    assert [item["type"] for item in first["output"]] == ["mcp_call", "mcp_call"]
    assert [item["name"] for item in inner["output"]] == ["search"]
    assert (first["finish_reason"], last["finish_reason"]) == ("tool_calls", "stop")
    assert last["output"][-1] == made["output"][-1]
    used = [step["usage"]["total_tokens"] for step in steps if step["type"] == "model_call"]
    assert sum(used) == made["usage"]["total_tokens"]


@pytest.mark.slow
async def test_a_tool_that_failed_is_a_failed_step_of_a_completed_response(world: ToolWorld) -> None:
    world.tools.script("/weather", ToolReply(status=422, body=b"no such city", content_type="text/plain"))

    made = await create(world, "tools-1", tools=[server_tools("get_weather")])
    steps = await list_steps(world, made["id"])

    assert summary(steps)[1] == ("get_weather", "failed", False)
    assert (steps[1]["output"], steps[1]["error"]["type"]) == (None, "executor_error")
    assert steps[1]["error"]["message"] == made["output"][0]["error"]["content"][0]["text"]


@pytest.mark.slow
async def test_the_clients_own_calls_are_no_steps(world: ToolWorld) -> None:
    made = await create(world, "tools-1", tools=[OWN])

    (step,) = await list_steps(world, made["id"])

    assert [item["type"] for item in step["output"]] == ["function_call"]


@pytest.mark.slow
async def test_the_steps_of_a_running_response_show_what_is_running(world: ToolWorld) -> None:
    world.tools.script("/weather", ToolReply(body=WEATHER.encode(), pauses_at="head"))
    asked = ask("tools-2", stream=True, tools=[server_tools("get_weather", "search")])

    async with open_raw(world.service) as client:
        with trio.fail_after(WAIT_S):
            await client.send(as_request(asked, "Connection: close"))
            await client.read_until(b"event: response.mcp_call.completed\n")
            row_id = await world.service.pool.fetchval("select id from requests")
            running = await list_steps(world, ids.response_id_text(row_id))
            world.tools.resume_all()
            await client.read_to_end()
    ended = await list_steps(world, ids.response_id_text(row_id))

    assert summary(running)[:2] == [("model", "completed", False), ("get_weather", "processing", False)]
    assert running[1]["output"] is None
    assert {status for _, status, _ in summary(ended)} == {"completed"}
    assert [step["id"] for step in ended[:3]] == [step["id"] for step in running]


@pytest.mark.slow
async def test_who_may_not_read_a_response_may_not_read_its_steps_and_is_told_the_same(postgres_dsn: str) -> None:
    async with open_tool_world(postgres_dsn, auth={"mode": "keys"}) as world:
        alice, bob = await authorize(world.service, "alice", "bob")
        client = world.service.client
        body = ask("tools-1", tools=[server_tools("get_weather")])

        async def create_as_alice(**fields: Any) -> str:
            answer = await client.post("/v1/responses", json={**body, **fields}, headers=alice)
            name: str = answer.json()["id"]
            return name

        kept, deleted, unstored = await create_as_alice(), await create_as_alice(), await create_as_alice(store=False)
        await client.delete(f"/v1/responses/{deleted}", headers=alice)
        answers = {}
        for name, headers in (
            (kept, alice), (kept, bob), (deleted, alice), (unstored, alice), (UNKNOWN_ID, alice), ("resp_1", alice),
        ):  # fmt: skip
            answer = await client.get(f"/v1/responses/{name}/steps", headers=headers)
            whole = await client.get(f"/v1/responses/{name}", headers=headers)
            assert answer.status_code == whole.status_code
            if answer.status_code != 200:
                assert error_of(answer) == error_of(whole)
            answers[name, headers["authorization"]] = answer.status_code

        assert answers.pop((kept, alice["authorization"])) == 200
        assert set(answers.values()) == {404}
        assert (await client.get(f"/v1/responses/{kept}/steps")).status_code == 401
        assert (await client.post(f"/v1/responses/{kept}/steps", headers=alice)).status_code == 405


@pytest.mark.slow
async def test_what_a_dead_process_had_stored_is_the_output_of_its_response(world: ToolWorld) -> None:
    pool, limits = world.service.pool, world.service.config.limits
    dead = PostgresStore(pool, limits=limits, daemon_id=uuid4())
    request = parse_request(ask("echo-1"))
    route = ModelRoute(model="echo-1", upstream="simulator", upstream_model="echo-1")
    new = NewResponse(
        response_id=uuid4(), owner="local", key_prefix=None, request=request, route=route, first_step_id=uuid4()
    )
    output = TurnOutput(step_id=new.first_step_id, first_output_index=0, kind_of=lambda _: CallKind.SERVER)
    for fragment in (TextFragment("I will look."), ToolCallFragment(position=0, call_id="c", name="w", arguments="{}")):
        output.feed(fragment)
    output.close(FinishReason.TOOL_CALLS)
    usage = Usage(input_tokens=5, output_tokens=7)
    turn = ModelTurn(items=output.items(), finish_reason=FinishReason.TOOL_CALLS, usage=usage)
    asked = Step(id=new.first_step_id, sequence=1, descriptor=ModelCall(), state=StepState.COMPLETED, result=turn)
    metering = CallMetering(route=route, http_status=200, error_code=None, started_ago_s=1.0, first_token_ago_s=None)
    called = Step(
        id=uuid4(), sequence=2, descriptor=ToolCall(call_id="c", name="w", arguments="{}"), state=StepState.PROCESSING
    )
    await dead.open_response(new)
    ended = (EndedStep(step=asked, metering=metering),)
    await dead.advance_response(Progress(row=new.row, epoch=1, ended=ended, opened=(called,)))
    await pool.execute("update requests set lease_expires_at = now() - interval '1 s' where id = $1", new.response_id)
    await dead.rescue_expired()

    answer = await world.service.client.get(f"/v1/responses/{ids.response_id_text(new.response_id)}")

    response = answer.json()
    message, call = response["output"]
    assert (response["status"], response["usage"]["total_tokens"]) == ("failed", 12)
    assert message["content"][0]["text"] == "I will look."
    assert (call["status"], call["output"]) == ("failed", None)
