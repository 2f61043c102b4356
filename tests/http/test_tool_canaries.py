"""Marked words in all that tools have and say: they turn up nowhere but where they belong."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from tests.http.canaries import (
    PROMPT,
    STORED_PROMPT,
    World,
    found_in,
    open_canaries,
    prompts,
    scrape,
    wait_ended,
)
from tests.http.conftest import WAIT_S, as_request, open_raw
from tests.http.server_tools import server_tools
from tests.http.tenants import dump_database

from dwctl_trio.testing.tool_server import ToolReply, ToolServer, open_tool_server

HEADER = "tool-header-canary"
URL = "tool-url-canary"
INSTRUCTIONS = "instructions-canary"
ERROR = "tool-error-canary"
"""In what a tool says when it breaks, which is nobody's business."""
REDIRECT = "redirect-canary"
ARGUMENT = "argument-canary"
OUTPUT = "output-canary"
ADVICE = "advice-canary"
"""In what a tool says of wrong arguments, so that the model can mend them."""

OPERATORS = [HEADER, URL, INSTRUCTIONS, ERROR, REDIRECT]
"""Words that no client is ever told."""
CLIENTS = [ARGUMENT, OUTPUT, ADVICE]
"""Words that are a client's, and nobody else's."""
CUT = ToolReply(body=OUTPUT.encode(), cuts_at="body")
REPLIES = (
    ToolReply(body=f'{{"said": "{OUTPUT}"}}'.encode()),
    ToolReply(status=500, body=ERROR.encode(), content_type="text/plain"),
    ToolReply(status=401, body=ERROR.encode(), content_type="text/plain"),
    ToolReply(status=422, body=ADVICE.encode(), content_type="text/plain"),
    ToolReply(status=302, body=ERROR.encode(), headers=(("location", f"http://{REDIRECT}.example/"),)),
    ToolReply(status=307, body=b"", headers=(("location", f"http://127.0.0.1:1/{REDIRECT}"),)),
    ToolReply(status=307, body=b"", headers=(("location", f"{REDIRECT}:nowhere"),)),
    ToolReply(body=OUTPUT.encode() + b"\xff\xfe"),
    ToolReply(body=OUTPUT.encode() * 100_000),
    CUT,
    attrs.evolve(CUT, resets=True),
    ToolReply(body=OUTPUT.encode(), pauses_at="head"),
)
TOOL_TIMEOUT_S = 0.5


@attrs.frozen(kw_only=True)
class ToolCanaries:
    """A server whose tools are full of marked words, and the tools."""

    world: World
    tools: ToolServer

    async def ask(self, model: str, *names: str, word: str = PROMPT, **fields: Any) -> Any:
        """Ask for a response with server tools, or with those that the model lists."""
        tools = {"tools": [server_tools(*names)]} if names else {}
        return await self.world.create(model, **prompts(word), **tools, **fields)


def configure(tools: ToolServer) -> dict[str, Any]:
    """Tools whose URL, headers, schema and instructions hold marked words, as a model makes arguments of them."""
    schema = {"type": "object", "properties": {"word": {"enum": [ARGUMENT]}}, "required": ["word"]}
    http = {
        "kind": "http", "description": "Looks it up.", "parameters": schema, "allow_private": True,
        "timeout_s": TOOL_TIMEOUT_S, "headers": {"authorization": f"Bearer {HEADER}"},
    }  # fmt: skip
    agent = {"kind": "agent", "description": "Finds out.", "instructions": INSTRUCTIONS, "tools": ["lookup"]}
    return {
        "tools": [
            {"name": "lookup", "url": tools.url(f"/{URL}"), **http},
            {"name": "nowhere", "url": f"http://127.0.0.1:1/{URL}", **http},
            {"name": "guarded", "url": tools.url(f"/{URL}"), **http, "allow_private": False},
            {"name": "agent", "model": "tools-1-then-parrot", **agent},
            {"name": "broken", "model": "error-500", **agent},
        ],
    }


@pytest.fixture
async def canaries(postgres_dsn: str, tmp_path: Path) -> AsyncIterator[ToolCanaries]:
    async with open_tool_server() as tools, open_canaries(postgres_dsn, tmp_path, **configure(tools)) as world:
        yield ToolCanaries(world=world, tools=tools)


async def run_everything(canaries: ToolCanaries, **fields: Any) -> None:
    """Let every tool end in every way that there is, streamed and not."""
    for stream in (False, True):
        for reply in REPLIES:
            canaries.tools.script(f"/{URL}", reply)
            await canaries.ask("tools-1-then-parrot", "lookup", stream=stream, **fields)
            canaries.tools.resume_all()
        canaries.tools.script(f"/{URL}", REPLIES[0])
        for script, names in (
            ("tools-4-then-echo-2", ("agent", "nowhere", "guarded", "broken")),
            ("toolsbad-3", ("lookup", "agent")),
            ("tools-2-cut", ("lookup", "agent")),
            ("tools-2-length", ("lookup", "agent")),
            ("tools-1-then-error-500", ("lookup",)),
            ("tools-1-then-echo-2-cut", ("lookup",)),
        ):
            await canaries.ask(script, *names, stream=stream, **fields)


@pytest.mark.slow
async def test_what_tools_are_and_say_is_in_no_log_and_no_metric_and_the_operators_words_are_in_no_answer(
    canaries: ToolCanaries,
) -> None:
    world = canaries.world
    await run_everything(canaries)
    for answer in list(world.answers):
        name = json.loads(answer.text)["id"] if answer.text.startswith('{"id"') else None
        for path in (f"/v1/responses/{name}", f"/v1/responses/{name}/steps") if name else ():
            world.answers.append(await world.http.get(path, headers=world.authorization))
    logs, metrics, dump = world.logs(), await scrape(world), await dump_database(world)
    told = "\n".join(answer.text + str(answer.headers) for answer in world.answers)

    upstream = str([request.body for request in world.simulator.requests])
    received = str([(call.path, call.headers, call.raw_body) for call in canaries.tools.calls])
    assert found_in(upstream, [INSTRUCTIONS, *CLIENTS]) == [INSTRUCTIONS, *CLIENTS], "they were in play"
    assert found_in(received, [HEADER, URL, ARGUMENT]) == [HEADER, URL, ARGUMENT], "they were in play"
    assert found_in(told, CLIENTS) == CLIENTS, "they are the client's own"
    assert found_in(told, [*OPERATORS, *world.secrets(), canaries.tools.origin]) == []
    assert found_in(logs + metrics, [PROMPT, *CLIENTS, *OPERATORS, *world.secrets(), canaries.tools.origin]) == []
    assert found_in(dump, [*OPERATORS, *world.secrets(), canaries.tools.origin]) == []
    assert "tool_connection_failed" in world.server.events
    print(f"{len(world.answers)} answers, {len(world.server.log)} lines of log, {len(canaries.tools.calls)} tool calls")


BAD_TOOLS: tuple[dict[str, Any], ...] = (
    {"tools": [{"type": "function", "name": "f", "description": PROMPT, "strict": PROMPT}]},
    {"tools": [{"type": "function", "name": "f", "parameters": {"title": f"{PROMPT}\0"}}]},
    {"tools": [{"type": PROMPT}]},
    {"tools": [{"type": "mcp", "server_label": PROMPT}]},
    {"tools": [{"type": "mcp", "server_label": "dwctl", "authorization": PROMPT}]},
    {"tools": [{"type": "mcp", "server_label": "dwctl", "headers": {PROMPT: PROMPT}}]},
    {"tools": [{"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": PROMPT, "definition": PROMPT}}]},
    {"tools": [{"type": "dwctl:tool", "name": "unheard_of"}], "instructions": PROMPT},
    {"tools": [server_tools("lookup", "lookup")], "instructions": PROMPT},
    {"tools": [], "tool_choice": "required", "instructions": PROMPT},
    {"tool_choice": {"type": "function", "name": f"{PROMPT} with blanks"}},
    {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": PROMPT}]},
    {"input": [{"type": "function_call_output", "call_id": "c", "output": PROMPT}]},
    {"input": [{"type": "mcp_call", "id": "m", "server_label": PROMPT, "name": "f", "arguments": PROMPT, "error": 1}]},
)  # fmt: skip


@pytest.mark.slow
async def test_a_refusal_for_the_sake_of_tools_repeats_nothing_of_them(canaries: ToolCanaries) -> None:
    world = canaries.world
    for fields in BAD_TOOLS:
        answer = await world.create("echo-1", **({"input": PROMPT} | fields))
        assert answer.status_code == 400, (fields, answer.text)
        assert found_in(answer.text, [PROMPT, *OPERATORS, canaries.tools.origin]) == [], fields
    assert found_in(world.logs() + await scrape(world), [PROMPT, *OPERATORS]) == []


@pytest.mark.slow
async def test_a_response_that_is_not_stored_leaves_no_word_of_its_tools_at_any_time(canaries: ToolCanaries) -> None:
    world, dumps = canaries.world, []
    await run_everything(canaries, store=False)
    for model, tool in (("tools-1-then-parrot", "lookup"), ("tools-2-then-parrot", "agent")):
        canaries.tools.script(f"/{URL}", ToolReply(body=OUTPUT.encode(), pauses_at="body"))
        body = {"model": model, **prompts(PROMPT), "tools": [server_tools(tool)], "store": False, "stream": True}
        for leaves in (True, False):
            async with open_raw(world) as client:
                await client.send(as_request(body, f"Authorization: Bearer {world.key}"))
                with trio.fail_after(WAIT_S):
                    await canaries.tools.wait_until(lambda tools: tools.paused == 1)
                dumps.append(await dump_database(world))
                if not leaves:
                    canaries.tools.resume_all()
                    await client.read_until(b"data: [DONE]")
            with trio.fail_after(WAIT_S):
                await canaries.tools.wait_until(lambda tools: tools.paused == 0)
            await wait_ended(world)
            dumps.append(await dump_database(world))
    canaries.tools.script(f"/{URL}", REPLIES[0])
    await canaries.ask("tools-1-then-parrot", "lookup", word=STORED_PROMPT)
    proof = await dump_database(world)

    assert [found_in(dump, [PROMPT, *CLIENTS, *OPERATORS]) for dump in dumps] == [[]] * 8
    assert [proof.count(word) > 2 for word in (STORED_PROMPT, ARGUMENT, OUTPUT)] == [True] * 3, "where they are stored"
    print(f"{len(dumps)} dumps, {len(dumps[-1])} bytes the last")
