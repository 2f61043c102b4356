"""Real JavaScript clients against a running server: openai-node, the Vercel AI SDK, the Codex CLI.

    python -m tests.clients.node
    python -m tests.clients.node --only ai_sdk
    python -m tests.clients.node --page docs/reference/clients.md

Needs Node 20 or newer with npm; the packages, pinned in programs/package.json, go into a temporary folder. PostgreSQL,
the simulator and the server run here, on loopback. One line is printed for each scenario, with a figure; the status is
1 if one of them failed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import structlog
import trio

from dwctl_trio.postgres.embedded import EmbeddedPostgresOptions, open_embedded_postgres
from dwctl_trio.postgres.keys import PostgresKeyStore
from dwctl_trio.testing.service import open_service
from dwctl_trio.testing.tool_server import ToolReply, ToolServer, open_tool_server

PROGRAMS = Path(__file__).parent / "programs"
CLIENTS = {
    "openai_responses": ("openai",),
    "openai_rest": ("openai",),
    "agents": ("@openai/agents",),
    "ai_sdk": ("ai", "@ai-sdk/openai", "@ai-sdk/open-responses"),
    "codex": ("@openai/codex",),
}
"""By program, the packages that it is about."""
TOOLS = {"get_snow": ToolReply(body=b"12 cm"), "get_sun": ToolReply(status=422, body=b"no sun here")}
"""The server's, by name: one that answers and one that fails."""
TOOL_CALLS_MAX = 1000
"""Of one tool, in all scenarios."""
MODELS = [
    {"name": "gpt-5.5", "upstream": "simulator", "upstream_model": "toolsasked-1-then-echo-7"},
    {"name": "with-tools", "upstream": "simulator", "upstream_model": "tools-2-each-then-echo-4", "tools": list(TOOLS)},
    {"name": "*", "upstream": "simulator"},
]
"""One that Codex knows, and one that has tools of the server's; any other is what the simulator makes of its name."""
PAGE_HEAD = """<!-- Written by `python -m tests.clients.node --page docs/reference/clients.md`. -->
# Clients

JavaScript clients as they are installed from their registry, run unchanged against this server with Node {node}.
The model behind it is [the simulator](simulator.md), which makes the figures what they are.
`make clients` runs them all again; it needs node and npm.
What the tests of every day run is Python: see [Python clients](python-clients.md).
"""
INSTALL_S = 600.0
PROGRAM_S = 300.0


@attrs.frozen(kw_only=True)
class Outcome:
    """How one scenario ended."""

    name: str
    ok: bool
    figure: str
    """What was counted, or what went wrong."""
    exchanges: Sequence[Mapping[str, Any]] = ()
    """Of a failure: the last requests and answers."""


def install(folder: Path) -> None:
    """Put the programs and their packages into *folder*; what is there already stays."""
    shutil.copytree(PROGRAMS, folder, dirs_exist_ok=True)
    flags = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--loglevel=error"]
    subprocess.run(["npm", "install", *flags], cwd=folder, check=True, timeout=INSTALL_S, stdout=subprocess.DEVNULL)


def versions(folder: Path, packages: Sequence[str]) -> str:
    """The packages with the versions that are installed."""
    manifests = [json.loads((folder / "node_modules" / name / "package.json").read_text("utf-8")) for name in packages]
    return ", ".join(f"{manifest['name']} {manifest['version']}" for manifest in manifests)


@asynccontextmanager
async def open_server(directory: Path) -> AsyncIterator[dict[str, str]]:
    """A server with keys and all that it needs; what the programs must know of it, as environment variables."""
    options = EmbeddedPostgresOptions(durable=False)
    async with open_tool_server() as tools, open_embedded_postgres(directory / "database", options) as postgres:
        config = {"auth": {"mode": "keys"}, "models": MODELS, "tools": [_tool(tools, name) for name in TOOLS]}
        async with open_service(postgres.dsn, config) as service:
            key = await PostgresKeyStore(service.pool).create_key("clients")
            yield {"BASE_URL": f"{service.url}/v1", "API_KEY": key, "SIMULATOR": service.simulator.origin}


def _tool(server: ToolServer, name: str) -> dict[str, Any]:
    server.script(f"/{name}", *[TOOLS[name]] * TOOL_CALLS_MAX)
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    url = server.url(f"/{name}")
    return {"name": name, "kind": "http", "url": url, "parameters": parameters, "allow_private": True}


async def run_program(folder: Path, program: str, environment: Mapping[str, str]) -> list[Outcome]:
    """Play the scenarios of *program*; a program that ends without a word is a scenario that failed."""
    with trio.fail_after(PROGRAM_S):
        ended = await trio.run_process(
            ["node", f"{program}.mjs"],
            cwd=folder,
            env={**os.environ, **environment, "NO_PROXY": "127.0.0.1"},
            capture_stdout=True,
            check=False,
        )
    lines = [line for line in ended.stdout.decode().splitlines() if line.startswith('{"name"')]
    outcomes = [Outcome(**json.loads(line)) for line in lines]
    if ended.returncode != any(not outcome.ok for outcome in outcomes) or not outcomes:
        outcomes.append(Outcome(name="the program itself", ok=False, figure=f"ended with {ended.returncode}"))
    return outcomes


def render(outcome: Outcome) -> str:
    """The line of a scenario; of one that failed, all that is known."""
    line = f"  {'ok  ' if outcome.ok else 'FAIL'}  {outcome.name}: {outcome.figure}"
    return "\n        ".join([line, *(json.dumps(exchange, ensure_ascii=False) for exchange in outcome.exchanges)])


def render_page(results: Mapping[str, Sequence[Outcome]]) -> str:
    """The reference page of a run.

    Args:
        results: The outcomes by heading, all of them good.
    """
    node = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    lines = [PAGE_HEAD.format(node=node.removeprefix("v"))]
    for heading, outcomes in results.items():
        lines += [f"## {heading}", "", f"{len(outcomes)} of {len(outcomes)} scenarios.", ""]
        lines += ["| scenario | figure |", "|---|---|"]
        lines += [f"| {outcome.name} | {outcome.figure} |".replace("_", r"\_") for outcome in outcomes]
        lines.append("")
    return "\n".join(lines)


async def _run(programs: Sequence[str], folder: Path, directory: Path) -> dict[str, list[Outcome]]:
    results: dict[str, list[Outcome]] = {}
    async with open_server(directory) as environment:
        for program in programs:
            outcomes = await run_program(folder, program, environment)
            passed, heading = sum(outcome.ok for outcome in outcomes), versions(folder, CLIENTS[program])
            print(f"{heading}: {passed} of {len(outcomes)} scenarios")
            print("\n".join(render(outcome) for outcome in outcomes), flush=True)
            results.setdefault(heading, []).extend(outcomes)
    return results


def main() -> int:
    """Run it as the command line asks."""
    parser = argparse.ArgumentParser(description="Run JavaScript clients against a server.")
    parser.add_argument("--only", choices=CLIENTS, action="append", help="a program; default: all of them")
    parser.add_argument("--packages", type=Path, default=None, help="a folder that keeps the packages for the next run")
    parser.add_argument("--page", type=Path, default=None, help="where the reference page of a good run is written")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory(prefix="dwctl-clients-") as name:
        directory = Path(name)
        directory.chmod(0o711)  # as root, PostgreSQL runs as another user, who must get through
        folder = options.packages or directory / "programs"
        install(folder)
        results = trio.run(_run, options.only or list(CLIENTS), folder, directory)
    is_good = all(outcome.ok for outcomes in results.values() for outcome in outcomes)
    if is_good and options.page is not None:
        options.page.write_text(render_page(results), encoding="utf-8")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
