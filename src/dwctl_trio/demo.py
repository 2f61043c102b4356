"""``make demo``: one response, from its first token to its row in the database.

Real parts throughout: embedded PostgreSQL, the simulator as upstream, the server, and an HTTP client.
"""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec
import trio

from dwctl_trio.app import run_api
from dwctl_trio.config import Config, parse_config
from dwctl_trio.observability.log import configure_logging
from dwctl_trio.postgres.database import open_database
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.postgres.queries import load_query
from dwctl_trio.protocol.sse import SseDecoder
from dwctl_trio.testing.simulator import run_simulator

MODEL = "demo-model"
PROMPT = "Every token of this answer streams live, is stored once it is whole, and can be read back."
_DEMO_S_MAX = 60.0
"""The whole demo takes about five seconds; a machine that needs a minute should be told so."""
_EVENT_BYTES_MAX = 1024 * 1024
_NAME_WIDTH = 32


async def run_demo() -> None:
    """Show it, then stop everything."""
    configure_logging(level="warning")
    with tempfile.TemporaryDirectory(prefix="dwctl-demo-") as directory, trio.fail_after(_DEMO_S_MAX):
        _let_postgres_in(Path(directory))
        _say("Starting embedded PostgreSQL, a simulated model and the server …")
        async with trio.open_nursery() as upstream:
            config = _make_config(Path(directory), await upstream.start(run_simulator, "127.0.0.1", 0))
            async with open_database(config) as pool, trio.open_nursery() as server:
                await _show(await server.start(run_api, config), pool)
                server.cancel_scope.cancel()
            upstream.cancel_scope.cancel()


def _let_postgres_in(directory: Path) -> None:
    """Started by root, PostgreSQL runs as somebody else, who must reach its files."""
    directory.chmod(0o711)


def _make_config(directory: Path, upstream_url: str) -> Config:
    price = {"input_per_million": 0.15, "output_per_million": 0.60, "currency": "USD"}
    return parse_config(
        {
            "port": 0,
            "data_dir": str(directory),
            "auth": {"mode": "none"},
            "upstreams": {"simulator": {"base_url": upstream_url}},
            "models": [{"name": MODEL, "upstream": "simulator", "upstream_model": "parrot-every-60", "price": price}],
        }
    )


async def _show(url: str, pool: Pool) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        _head(f"POST {url}/v1/responses  (stream: true)")
        final = await _stream(client)
        _head(f"GET {url}/v1/responses/{final['id']}")
        stored = (await client.get(f"/v1/responses/{final['id']}")).json()
        _field("status", stored["status"])
        _field("output_text", stored["output"][0]["content"][0]["text"].strip())
        _field("same as the last event", "yes" if stored == final else "no")
    if stored != final:
        raise click.ClickException("what was stored is not what was streamed")
    _head("The row, its step and its usage record")
    await _show_rows(pool, final["id"])
    _head("Your own programs")
    _say("  dwctl-trio serve --config config.yaml     # see docs/tutorials/first-response.md")
    _say('  client = openai.OpenAI(base_url="http://127.0.0.1:3001/v1", api_key="…")')


async def _stream(client: httpx.AsyncClient) -> dict[str, Any]:
    """Print the events as they come; return the response of the last."""
    final: dict[str, Any] = {}
    began_at = trio.current_time()
    async for event in _read_events(client):
        kind = event["type"]
        after_ms = (trio.current_time() - began_at) * 1000
        shown = ""
        if kind == "response.output_text.delta":
            shown = click.style(event["delta"].strip(), fg="green", bold=True)
        elif "response" in event:
            final = event["response"]
            shown = click.style(str(final["status"]), dim=True)
        name = f"{kind:<{_NAME_WIDTH}}  " if shown else kind
        click.echo(f"{after_ms:7.0f} ms  " + click.style(name, fg="cyan") + shown)
    return final


async def _read_events(client: httpx.AsyncClient) -> AsyncIterator[dict[str, Any]]:
    decoder = SseDecoder(event_bytes_max=_EVENT_BYTES_MAX)
    body = {"model": MODEL, "input": PROMPT, "stream": True}
    async with client.stream("POST", "/v1/responses", json=body) as answer:
        answer.raise_for_status()
        async for data in answer.aiter_bytes():
            for frame in decoder.feed(data):
                if frame.data != b"[DONE]":
                    yield msgspec.json.decode(frame.data)


async def _show_rows(pool: Pool, response_id: str) -> None:
    row = await pool.fetchrow(load_query("show_response").text, response_id.removeprefix("resp_"), retry=True)
    _field("requests.state", row["state"])
    _field("response_steps", f"{row['steps']} ({row['step_states']})")
    _field("response_events", f"{row['events']} events, {row['event_bytes']:,} bytes")
    _field("usage_records", f"{row['input_tokens']} tokens in, {row['output_tokens']} out")
    _field("cost", f"{row['cost']:.8f} {row['currency']}")


def _head(text: str) -> None:
    click.echo()
    click.secho(text, bold=True)


def _field(name: str, value: str) -> None:
    click.echo(f"  {name:<24}" + click.style(value, fg="green"))


def _say(text: str) -> None:
    click.echo(text)
