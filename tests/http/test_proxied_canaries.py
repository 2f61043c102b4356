"""Marked words in what is handed over: they turn up in the answer, and in no log, metric or row at any time."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.http.canaries import PROMPT, World, found_in, open_canaries, scrape
from tests.http.conftest import as_request, open_raw
from tests.http.proxied import CHAT, STREAMING, SURFACES, TEXT, body_for
from tests.http.tenants import dump_database

FAULTS = ("error-400", "error-429-1", "html-502", "empty-500", "echo-2-cut-each", "echo-2-midstream", "echo-2-garbage")
BAD: dict[str, Any] = {"stream": PROMPT, "stream_options": PROMPT, "model": [PROMPT], "service_tier": PROMPT}


@pytest.fixture
async def world(postgres_dsn: str, tmp_path: Path) -> AsyncIterator[World]:
    async with open_canaries(postgres_dsn, tmp_path) as world:
        yield world


def _prompts(path: str, model: str, **fields: Any) -> dict[str, Any]:
    """A body whose every field of a client's text holds the marked word."""
    more: dict[str, Any] = {"user": f"{PROMPT}-user", "metadata": {f"{PROMPT}-key": f"{PROMPT}-value"}}
    if path == CHAT:
        function = {"name": "look", "description": f"{PROMPT} in a tool", "parameters": {"type": "object"}}
        more |= {"tools": [{"type": "function", "function": function}], "store": True}
    elif path == TEXT:
        more |= {"suffix": f"{PROMPT} behind"}
    return body_for(path, model, f"{PROMPT} in the text", **more, **fields)


@pytest.mark.slow
async def test_nothing_that_was_said_and_no_word_of_an_upstream_is_anywhere_but_in_the_answer(world: World) -> None:
    async def post(path: str, body: Any) -> None:
        world.answers.append(await world.http.post(path, json=body, headers=world.authorization))

    for path in SURFACES:
        for stream in {False, path in STREAMING}:
            for model in (*FAULTS, "parrot", "reasoning-2-3", "echo-2-length"):
                await post(path, _prompts(path, model, **({"stream": True} if stream else {})))
        for name, value in BAD.items():
            if path == CHAT or name == "model":
                await post(path, _prompts(path, "echo-1") | {name: value})
    said = [answer.text for answer in world.answers if answer.status_code == 200 and PROMPT in answer.text]
    refused = [answer.text for answer in world.answers if answer.status_code >= 400]
    async with open_raw(world) as client:
        body = _prompts(CHAT, "pause-1-4", stream=True)
        await client.send(as_request(body, f"Authorization: Bearer {world.key}", path=CHAT))
        await client.read_until(b"word0")
        under_way = await dump_database(world)
    logs, metrics, dump = world.logs(), await scrape(world), await dump_database(world)

    assert found_in(logs + metrics + under_way + dump, [PROMPT, *world.secrets()]) == []
    assert found_in("".join(answer.text + str(answer.headers) for answer in world.answers), world.secrets()) == []
    assert len(said) == 4, "the parrot's two of each kind that answers in words"
    assert found_in("".join(refused), [PROMPT]) == []
    assert {entry["surface"] for entry in world.server.log if entry["event"] == "call_finished"} == {
        *("chat", "completions", "embeddings", "input_tokens")
    }
    print(
        f"{len(world.answers)} calls, {len(world.server.log)} lines of log, {len(dump)} bytes of rows: no word of them"
    )
