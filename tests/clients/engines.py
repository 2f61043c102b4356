"""How each real engine is installed, started and configured as an upstream.

Rule: an engine runs in an environment of its own, never in ours, and fetches nothing while it runs.
"""

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import httpx
import trio

START_S = 120.0
"""Loading the libraries takes most of it."""
STOP_S = 10.0
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "NO_PROXY": "*", "OMP_NUM_THREADS": "1"}


@attrs.frozen(kw_only=True)
class Engine:
    """One engine."""

    packages: tuple[str, ...]
    """What pip installs; the first is the one that is named in the figure."""
    command: Callable[[Path, Path, int], list[str]]
    """Out of the environment's folder of programs, the model and a free port."""
    health: str
    """The path that answers with a success once the engine is up."""


MAKING = ("transformers==5.23.0", "torch==2.13.0")
ENGINES = {
    "transformers": Engine(
        packages=("transformers[serving]==5.23.0", "torch==2.13.0"),
        command=lambda programs, _model, port: [
            *(str(programs / "transformers"), "serve", "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)),
        ],
        health="/health",
    ),
    "mlx-lm": Engine(
        packages=("mlx-lm==0.32.2", "mlx[cpu]==0.32.4", *MAKING),
        command=lambda programs, model, port: [
            *(str(programs / "mlx_lm.server"), "--model", str(model), "--host", "127.0.0.1", "--port", str(port)),
        ],
        health="/v1/models",
    ),
}


def prepare(engine: Engine, environment: Path) -> Path:
    """Install *engine* unless it is there already: the folder of its programs."""
    programs, installed = environment / "bin", environment / "installed.txt"
    wanted = "\n".join(engine.packages)
    if not (installed.exists() and installed.read_text() == wanted):
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([str(programs / "pip"), "install", "-q", *engine.packages], check=True)
        installed.write_text(wanted)
    return programs


def make_model(programs: Path, folder: Path, *options: str) -> Path:
    """Have the engine's environment write a tiny model to *folder*; says on one line what it made."""
    command = [str(programs / "python"), str(Path(__file__).with_name("tiny_model.py")), str(folder), *options]
    subprocess.run(command, check=True, env=os.environ | OFFLINE, stderr=subprocess.DEVNULL)
    return folder


@asynccontextmanager
async def open_engine(engine: Engine, programs: Path, model: Path, log: Path) -> AsyncIterator[str]:
    """Run *engine* for the time of the block: the base URL of its API."""
    port = _free_port()
    cache = log.parent / "cache" / "hub"
    cache.mkdir(parents=True, exist_ok=True)
    surroundings = os.environ | OFFLINE | {"HF_HOME": str(cache.parent)}
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            engine.command(programs, model, port), env=surroundings, stdout=output, stderr=output
        )
        try:
            await _wait_up(process, f"http://127.0.0.1:{port}{engine.health}", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            with trio.move_on_after(STOP_S, shield=True):
                process.terminate()
                await process.wait()
            if process.returncode is None:
                process.kill()


async def _wait_up(process: trio.Process, url: str, log: Path) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        with trio.fail_after(START_S):
            while process.poll() is None:
                try:
                    if (await client.get(url)).is_success:
                        return
                except httpx.TransportError:
                    pass
                await trio.sleep(0.05)
    raise SystemExit(f"The engine ended by itself:\n{(await trio.Path(log).read_text())[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
