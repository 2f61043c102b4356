"""A real engine on a CPU as the upstream: one run from the OpenAI SDK to the weights and back.

    python -m tests.clients.real_engine [--engine transformers] [--folder FOLDER]

Rule 1: the engine is installed into an environment of its own, and its models are made by a script.
Rule 2: there are two models: the weights of one are random, and only the form of what it says is known; the other was
        taught a few conversations, and every word is known.

Prints one line a check, and the figure.
"""

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from tests.clients.engine_checks import CHECKS, Desk
from tests.clients.engines import ENGINES, Engine, make_model, open_engine, prepare
from tests.clients.tiny_words import TOOL

from dwctl_trio.app import run_api
from dwctl_trio.config import parse_config
from dwctl_trio.observability.log import configure_logging
from dwctl_trio.postgres.database import open_database
from dwctl_trio.testing.tool_server import ToolReply, open_tool_server

RUN_S = 300.0
CHECK_S = 60.0


def main() -> None:
    """Install, run, tell; ends with 1 if a check failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=[*ENGINES], default="transformers")
    parser.add_argument("--folder", type=Path, help="where the environment is kept for the next time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dwctl-engine-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o711)  # started by root, PostgreSQL runs as somebody else, who must reach its files
        kept = (options.folder or folder).absolute()
        if not trio.run(_run, ENGINES[options.engine], kept / options.engine, folder):
            sys.exit(1)


async def _run(engine: Engine, environment: Path, folder: Path) -> bool:
    configure_logging(level="critical")
    programs = prepare(engine, environment)
    models = {
        "random": make_model(programs, folder / "random"),
        "taught": make_model(programs, folder / "taught", "--taught"),
    }
    with trio.fail_after(RUN_S):
        async with (
            open_engine(engine, programs, models["random"], folder / "random.log") as random_url,
            open_engine(engine, programs, models["taught"], folder / "taught.log") as taught_url,
            _open_server({"random": random_url, "taught": taught_url}, models, folder) as desk,
        ):
            passed = await _check(desk)
    broken = f"; broken off by the engine, and failed so: {desk.broken}" if desk.broken else ""
    print(f"{engine.packages[0]}: {passed} of {len(CHECKS)} checks, {desk.calls} requests{broken}")
    return passed == len(CHECKS)


@asynccontextmanager
async def _open_server(urls: dict[str, str], models: dict[str, Path], folder: Path) -> AsyncIterator[Desk]:
    """Our server with the engine's two processes as its upstreams, and a tool of its own."""
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    async with open_tool_server() as tools:
        tools.script("/weather", ToolReply(body=b"sunny", content_type="text/plain"))
        weather = {"name": TOOL, "kind": "http", "url": tools.url("/weather"), "parameters": parameters}
        document = {
            "port": 0,
            "data_dir": str(folder / "data"),
            "auth": {"mode": "none"},
            "upstreams": {name: {"base_url": url} for name, url in urls.items()},
            "models": [
                *({"name": name, "upstream": name, "upstream_model": str(path)} for name, path in models.items()),
                {"name": "missing", "upstream": "taught", "upstream_model": str(folder / "missing")},
            ],
            "tools": [{**weather, "allow_private": True}],
        }
        config = parse_config(document)
        async with open_database(config, migrating=True), trio.open_nursery() as nursery:
            yield Desk(url=await nursery.start(run_api, config), tools=tools)
            nursery.cancel_scope.cancel()


async def _check(desk: Desk) -> int:
    """Do all checks, one after the other: how many passed."""
    passed = 0
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        began, told = time.monotonic(), "ok"
        try:
            with trio.fail_after(CHECK_S):
                await trio.to_thread.run_sync(check, desk, abandon_on_cancel=True)
            passed += 1
        except Exception as error:  # noqa: BLE001 a check that fails is told of, and the next one made
            where = traceback.extract_tb(error.__traceback__)[-1]
            told = f"FAILED: {type(error).__name__}: {str(error)[:500]} at {where.line} (line {where.lineno})"
        print(f"  {name}: {told} ({time.monotonic() - began:.1f} s)", flush=True)
    return passed


if __name__ == "__main__":
    main()
