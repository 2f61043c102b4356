"""Marked words, and a real server in which to look for them: all that it has logged, counted, stored and answered."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio
from tests.acceptance.conftest import Server, open_http, open_server, open_world
from tests.http.conftest import WAIT_S

from dwctl_trio.domain.limits import DEFAULT_LIMITS
from dwctl_trio.postgres.keys import PostgresKeyStore
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.testing.simulator import Simulator
from dwctl_trio.testing.simulator_reply import CANARY

PROMPT = "prompt-canary"
STORED_PROMPT = "stored-canary"
"""In requests that are stored, so that it must be found in their rows, and only there."""
UPSTREAM_KEY = "sk-upstream-key-canary"
UPSTREAM_HEADER = "upstream-header-canary"
WRONG_KEY = "sk-dwctl-wrong-key-canary"
LIMITS = attrs.evolve(
    DEFAULT_LIMITS,
    terminal_write_s=0.5,
    lease_s=2.5,
    lease_renewal_s=0.3,
    lease_give_up_s=0.8,
    store_wait_s=1.0,
    store_call_s=1.0,
)


def prompts(word: str) -> dict[str, Any]:
    """Every field of a request that holds a client's text."""
    return {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": f"{word} in the input"}]}],
        "instructions": f"{word} in the instructions",
        "metadata": {f"{word}-key": f"{word}-value"},
        "safety_identifier": f"{word}-safety",
        "prompt_cache_key": f"{word}-cache",
        "user": f"{word}-user",
        "text": {
            "format": {"type": "json_schema", "name": "shape", "schema": {"description": f"{word} in the schema"}}
        },
    }


@attrs.frozen(kw_only=True)
class World:
    """A real server with a key, and all that it has answered."""

    server: Server
    pool: Pool
    simulator: Simulator
    http: httpx.AsyncClient
    key: str
    answers: list[httpx.Response] = attrs.Factory(list)

    @property
    def url(self) -> str:
        """As ``open_raw`` wants it."""
        return self.server.url

    @property
    def authorization(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    async def create(self, model: str, **fields: Any) -> httpx.Response:
        """Ask for a response."""
        return await self.post({"model": model, **fields}, self.authorization)

    async def post(self, body: object, headers: Mapping[str, str]) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **headers}
        answer = await self.http.post("/v1/responses", content=content, headers=headers)
        self.answers.append(answer)
        return answer

    def secrets(self) -> list[str]:
        """What nobody may be told or keep."""
        address = self.simulator.origin.removeprefix("http://")
        return [self.key[15:], UPSTREAM_KEY, UPSTREAM_HEADER, WRONG_KEY, CANARY, address]

    def logs(self) -> str:
        """All that the server has logged."""
        return "\n".join(json.dumps(entry) for entry in self.server.log)


@asynccontextmanager
async def open_canaries(dsn: str, tmp_path: Path, **fields: Any) -> AsyncIterator[World]:
    """A server that logs all it can, with marked words in its upstream's settings; *fields* of its configuration."""
    fields = {
        "auth": {"mode": "keys"},
        "log_level": "debug",
        "upstream": {"api_key": UPSTREAM_KEY, "headers": {"x-team": UPSTREAM_HEADER}},
        **fields,
    }
    async with (
        open_world(dsn, tmp_path, LIMITS, **fields) as (path, pool, simulator),
        open_server(path) as server,
        open_http(server) as http,
    ):
        key = await PostgresKeyStore(pool).create_key("alice")
        yield World(server=server, pool=pool, simulator=simulator, http=http, key=key)


def found_in(text: str, words: list[str]) -> list[str]:
    return [word for word in words if word in text]


async def scrape(world: World) -> str:
    answer = await world.http.get("/metrics")
    assert answer.status_code == 200
    return answer.text


async def wait_ended(world: World) -> None:
    """Return when no row is under way."""
    with trio.fail_after(WAIT_S):
        while await world.pool.fetchval("select count(*) from requests where state = 'processing'"):
            await world.http.get("/healthz")
