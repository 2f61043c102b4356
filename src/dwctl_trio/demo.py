"""``make demo``: one response with tools and a sub-agent, from its first event to its rows in the database.

Real parts throughout: embedded PostgreSQL, the simulator as upstream, a server of tools, the server, an HTTP client.
"""

import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
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
from dwctl_trio.testing.tool_server import ToolReply, ToolServer, open_tool_server

MODEL = "demo-model"
PROMPT = "Every step of this answer was stored before the next one began."
_DEMO_S_MAX = 60.0
"""The whole demo takes about five seconds; a machine that needs a minute should be told so."""
_EVENT_BYTES_MAX = 1024 * 1024
_COLUMNS = 100
_LABEL_AT = 11
"""Where the name of an event begins, behind the time."""
_SHOWN_AT = 50
"""Where the words of an event begin."""
_STEP_COLUMNS = (42, 11)
"""Of what a step does, and how it ended."""


async def run_demo() -> None:
    """Show it, then stop everything."""
    configure_logging(level="warning")
    with tempfile.TemporaryDirectory(prefix="dwctl-demo-") as directory, trio.fail_after(_DEMO_S_MAX):
        _let_postgres_in(Path(directory))
        click.echo("Starting embedded PostgreSQL, a simulated model, a server of tools and the server …")
        async with open_tool_server() as tools, trio.open_nursery() as upstream:
            tools.script("/weather", ToolReply(body=b'{"celsius": -3}', delay_s=0.2))
            tools.script("/articles", ToolReply(body=b'["Snow in March"]', delay_s=0.1))
            config = _make_config(Path(directory), await upstream.start(run_simulator, "127.0.0.1", 0), tools)
            async with open_database(config) as pool, trio.open_nursery() as server:
                await _show(await server.start(run_api, config), pool, tools)
                server.cancel_scope.cancel()
            upstream.cancel_scope.cancel()


def _let_postgres_in(directory: Path) -> None:
    """Started by root, PostgreSQL runs as somebody else, who must reach its files."""
    directory.chmod(0o711)


def _make_config(directory: Path, upstream_url: str, tools: ToolServer) -> Config:
    """The model calls the weather and the researcher side by side, then repeats the prompt; the researcher reads."""
    price = {"input_per_million": 0.15, "output_per_million": 0.60, "currency": "USD"}
    common = {"upstream": "simulator", "price": price}
    scripts = {
        MODEL: "tools-2-every-20-then-parrot-every-60",
        "demo-researcher": "tools-1-every-20-then-echo-4-every-60",
    }
    models = [{"name": name, "upstream_model": script, **common} for name, script in scripts.items()]
    return parse_config(
        {
            "port": 0,
            "data_dir": str(directory),
            "auth": {"mode": "none"},
            "upstreams": {"simulator": {"base_url": upstream_url}},
            "models": [models[0] | {"tools": ["get_weather", "researcher"]}, models[1]],
            "tools": [
                _http_tool("get_weather", tools.url("/weather"), city="Oslo"),
                _http_tool("find_articles", tools.url("/articles"), topic="snow"),
                {"name": "researcher", "kind": "agent", "model": "demo-researcher", "tools": ["find_articles"]},
            ],
        }
    )


def _http_tool(name: str, url: str, **arguments: str) -> dict[str, object]:
    """A tool for whose arguments the simulated model has one choice each."""
    properties = {argument: {"type": "string", "enum": [value]} for argument, value in arguments.items()}
    parameters = {"type": "object", "properties": properties, "required": [*arguments]}
    return {"name": name, "kind": "http", "url": url, "parameters": parameters, "allow_private": True}


async def _show(url: str, pool: Pool, tools: ToolServer) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        _head(f"POST {url}/v1/responses  (stream: true)")
        final = await _show_stream(client)
        path = f"/v1/responses/{final['id']}"
        _head(f"GET {url}{path}")
        stored = (await client.get(path)).json()
        if stored["status"] != "completed" or stored != final:
            raise click.ClickException(f"what was stored is not what was streamed, or not whole: {stored['status']}")
        _field("status", stored["status"])
        _field("output_text", stored["output"][-1]["content"][0]["text"].strip())
        _field("same as the last event", "yes")
        steps = (await client.get(f"{path}/steps")).json()["data"]
        click.echo("  its steps, from GET …/steps, those of the sub-agent under its call:")
        for line in _step_lines(steps):
            click.echo(line)
    _head("The row, its steps and its usage records")
    await _show_rows(pool, final["id"])
    made = sum(step["type"] == "tool_call" and step["name"] != "researcher" for step in steps)
    _field("calls at the tools", f"{tools.answered}, each with an Idempotency-Key of its own")
    if not made == tools.answered == len(tools.calls_by_key):
        raise click.ClickException("a tool was not called exactly once for each of its steps")
    _head("Your own programs")
    click.echo("  dwctl-trio serve --config config.yaml     # see docs/tutorials/first-response.md")
    click.echo("  a tool of your own                        # see docs/tutorials/give-your-model-a-tool.md")
    click.echo('  client = openai.OpenAI(base_url="http://127.0.0.1:3001/v1", api_key="…")')


async def _show_stream(client: httpx.AsyncClient) -> dict[str, Any]:
    """Print the events as they come, those of the sub-agent indented; return the response of the last."""
    final: dict[str, Any] = {}
    line = _Line(trio.current_time())
    deltas: Counter[str] = Counter()
    async for event in _read_events(client):
        final = event.get("response", final)
        inner = event.get("event", event)
        kind = inner["type"]
        name = kind.removeprefix("response.") if inner is not event else kind
        label = f"  {event['agent']['agent_name']}: {name}" if inner is not event else name
        if kind.endswith("arguments.delta"):  # several calls grow at once, which is no sight on a terminal
            deltas[inner["item_id"]] += 1
        elif kind.endswith(".delta"):
            line.grow(label, inner["delta"])
        elif kind.endswith("arguments.done"):
            line.put(label, f"{inner['arguments']} in {deltas[inner['item_id']]} deltas")
        else:
            line.put(label, _words_of(inner))
    line.end()
    return final


def _words_of(event: Mapping[str, Any]) -> str:
    """What an event says, in a few words."""
    item = event.get("item", {})
    match event["type"].removeprefix("response."):
        case "output_item.added" | "output_item.done" if item["type"] == "mcp_call":
            return f"{item['name']}{'' if item['output'] is None else ' → ' + item['output'].strip()}"
        case "output_item.added" | "output_item.done":
            return str(item["type"])
        case _:
            return str(event["response"]["status"]) if "response" in event else ""


class _Line:
    """The line of the terminal that is being written.

    Args:
        began_at: When the request was sent, by Trio's clock.
    """

    def __init__(self, began_at: float) -> None:
        self._began_at = began_at
        self._label = ""
        self._column = 0

    def put(self, label: str, words: str) -> None:
        """A line of its own."""
        self.end()
        shown = _cut(words, _COLUMNS - _SHOWN_AT)
        click.echo(self._head(label, is_alone=not shown) + click.style(shown, dim=True))

    def grow(self, label: str, words: str) -> None:
        """More of the line with this label, or its beginning."""
        if label != self._label:
            self.end()
            self._label, self._column = label, _SHOWN_AT
            click.echo(self._head(label), nl=False)
        if self._column + len(words.rstrip()) > _COLUMNS:
            click.echo(f"\n{'':{_SHOWN_AT}}", nl=False)
            self._column = _SHOWN_AT
        click.secho(words, nl=False, fg="green", bold=True)
        self._column += len(words)

    def end(self) -> None:
        """Nothing more comes on the line."""
        if self._label:
            click.echo()
        self._label = ""

    def _head(self, label: str, *, is_alone: bool = False) -> str:
        after_ms = (trio.current_time() - self._began_at) * 1000
        width = 0 if is_alone else _SHOWN_AT - _LABEL_AT
        return f"{after_ms:{_LABEL_AT - 5}.0f} ms  " + click.style(f"{label:<{width}}", fg="cyan")


async def _read_events(client: httpx.AsyncClient) -> AsyncIterator[dict[str, Any]]:
    decoder = SseDecoder(event_bytes_max=_EVENT_BYTES_MAX)
    body = {"model": MODEL, "input": PROMPT, "stream": True, "include": ["dwctl:sub_agents"]}
    async with client.stream("POST", "/v1/responses", json=body) as answer:
        answer.raise_for_status()
        async for data in answer.aiter_bytes():
            for frame in decoder.feed(data):
                if frame.data != b"[DONE]":
                    yield msgspec.json.decode(frame.data)


def _step_lines(steps: Sequence[Mapping[str, Any]], parent_id: str | None = None, depth: int = 0) -> Iterator[str]:
    """The steps under one parent in order, each followed by its own children."""
    for step in steps:
        if step["parent_step_id"] != parent_id:
            continue
        does, came_of_it = _describe_step(step)
        left = _cut(f"{'':{4 + 3 * depth}}{step['sequence']}  {does}", _STEP_COLUMNS[0])
        line = f"{left:<{_STEP_COLUMNS[0]}}{step['status']:<{_STEP_COLUMNS[1]}}"
        yield line + click.style(_cut(came_of_it, _COLUMNS - len(line)), fg="green")
        yield from _step_lines(steps, step["id"], depth + 1)


def _describe_step(step: Mapping[str, Any]) -> tuple[str, str]:
    """What a step does, and what came of it."""
    if step["type"] == "tool_call":
        return f"{step['name']} {step['arguments']}", f"→ {step['output'].strip()}" if step["output"] else step[
            "error"
        ]["message"]
    calls = [item["name"] for item in step["output"] if item["type"] == "mcp_call"]
    if calls:
        return "model call", f"calls {' and '.join(calls)}"
    texts = [part["text"] for item in step["output"] if item["type"] == "message" for part in item["content"]]
    return "model call", f"says “{''.join(texts).strip()}”"


async def _show_rows(pool: Pool, response_id: str) -> None:
    calls = await pool.fetch(load_query("show_response").text, response_id.removeprefix("resp_"), retry=True)
    row = calls[0]
    tokens_in, tokens_out = (sum(call[name] for call in calls) for name in ("input_tokens", "output_tokens"))
    _field("requests.state", row["state"])
    _field("response_steps", f"{row['steps']} ({row['step_states']})")
    _field("response_events", f"{row['events']} events, {row['event_bytes']:,} bytes")
    _field("usage_records", f"{len(calls)} model calls, {tokens_in} tokens in, {tokens_out} out")
    _field("cost", f"{sum(call['cost'] for call in calls):.8f} {row['currency']}")


def _cut(text: str, columns: int) -> str:
    return text if len(text) <= columns else f"{text[: columns - 1]}…"


def _head(text: str) -> None:
    click.echo()
    click.secho(text, bold=True)


def _field(name: str, value: str) -> None:
    click.echo(f"  {name:<24}" + click.style(_cut(value, _COLUMNS - 26), fg="green"))
