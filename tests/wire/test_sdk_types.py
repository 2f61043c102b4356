"""Every event of every kind against the types of the official SDK: all that they demand, and no more than is named."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import pytest
import trio
from openai.types.responses import Response
from tests.http.queued import BACKGROUND, FLEX, QUICK, cancel, post, wait_ended
from tests.http.server_tools import CUSTOM, OWN, ToolWorld, open_tool_world, server_tools
from tests.wire.sdk import assert_named_extras, check_event

from dwctl_trio.protocol.extras import EXTRA_EVENTS
from dwctl_trio.testing.service import Service
from dwctl_trio.testing.tool_server import ToolReply

LOGPROBS: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
TEXTS = (
    *("echo-0", "echo-3", "echo-3-each", "echo-3-unicode", "echo-3-nousage", "echo-3-json", "refusal-2", "big-5000"),
    *("reasoning-2-3", "thinking-2-3-each", "echo-3-cites", "echo-2-cites-json", "echo-3-nul"),
)
ENDS = (
    *("echo-2-length", "echo-2-filter", "refusal-2-length", "reasoning-2-0-length", "tools-2-length"),
    *("echo-3-cut", "echo-3-eof", "echo-3-midstream", "each-2-garbage", "reasoning-2-2-cut", "tools-2-cut"),
)
OWN_TOOLS: dict[str, Any] = {"tools": [OWN, CUSTOM]}
SERVER_TOOLS: dict[str, Any] = {"tools": [server_tools("get_weather", "search")]}
AGENT: dict[str, Any] = {"tools": [server_tools("researcher")], "include": ["dwctl:sub_agents"]}
REQUESTS: list[dict[str, Any]] = [
    *({"model": model} for model in (*TEXTS, *ENDS)),
    *({"model": model, **LOGPROBS} for model in (*TEXTS, *ENDS[:2], "echo-3-cut")),
    *({"model": model, **OWN_TOOLS} for model in ("tools-2", "toolslate-2", "toolsnoid-2", "toolsbad-2")),
    *({"model": model, **SERVER_TOOLS} for model in ("tools-2", "toolsbad-2", "tools-1-then-reasoning-2-3-cites")),
    {"model": "tools-2", **SERVER_TOOLS, "max_tool_calls": 1},
    {"model": "tools-3", "tools": [server_tools("get_weather"), OWN, CUSTOM]},
    {"model": "tools-1-then-echo-3", **AGENT},
    {"model": "tools-1-then-echo-3", "tools": [server_tools("researcher")]},
    {"model": "echo-3-cites", **BACKGROUND, **LOGPROBS},
    {"model": "echo-3-cut", **BACKGROUND},
    {"model": "tools-2", **SERVER_TOOLS, **FLEX},
    {"model": "echo-2-length", **FLEX},
]


def read(stream: str) -> list[dict[str, Any]]:
    """The data of the events of *stream*, which is whole."""
    *frames, done, rest = stream.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    told = [frame for frame in frames if not frame.startswith(":")]
    return [msgspec.json.decode(frame.partition("\ndata: ")[2]) for frame in told]


def check(events: Iterable[Mapping[str, Any]], seen: Counter[str]) -> None:
    for number, event in enumerate(events):
        check_event(event)
        assert event["sequence_number"] == number
        seen[event["type"]] += 1


async def told_cancelled(service: Service) -> str:
    """The stream of a background response that was cancelled in the middle of its text."""
    asked = {"model": "echo-9-pause-3", "input": "x key:cancelled", **BACKGROUND}
    response_id = (await post(service, asked)).json()["id"]
    with trio.fail_after(20):
        await service.simulator.wait_until(lambda counts: counts.paused == 1)
    cancelled = (await cancel(service, response_id)).json()
    assert cancelled["status"] == "cancelled"
    return (await service.client.get(f"/v1/responses/{response_id}?stream=true")).text


async def check_whole(world: ToolWorld, body: dict[str, Any], seen: Counter[str]) -> None:
    """The same request without a stream: the object is typed, too."""
    answer = await post(world.service, body)
    if answer.status_code == 200:
        whole = await wait_ended(world.service, answer.json()["id"])
        assert_named_extras(Response.model_validate(whole, strict=True))
        seen[whole["status"]] += 1


@pytest.mark.slow
async def test_every_event_has_what_the_types_of_the_sdk_demand_and_beyond_it_only_what_is_named(
    postgres_dsn: str,
) -> None:
    seen, ended = Counter[str](), Counter[str]()
    limits = QUICK | {"queue_attempts": 1}
    async with open_tool_world(postgres_dsn, limits=limits) as world:
        world.tools.script("/search", ToolReply(status=503))
        for asked in REQUESTS:
            body = {"input": "hello", **asked}
            check(read((await post(world.service, body | {"stream": True})).text), seen)
            await check_whole(world, body, ended)
        check(read(await told_cancelled(world.service)), seen)
    print(f"{len(REQUESTS) + 1} streams, {seen.total()} events of {len(seen)} types, responses: {dict(ended)}")
    assert seen.keys() >= EXTRA_EVENTS.keys()
    assert len(seen) >= 27
    assert ended.keys() >= {"completed", "incomplete", "failed"}
