"""Pages that readers follow to the letter, followed: every file written, every program started, every request sent."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import trio
from tests.architecture.test_docs import DOCS, read
from tests.test_cli import RUN_S_MAX, environment

from dwctl_trio.config import parse_config
from dwctl_trio.postgres.database import open_database

BACKGROUND = DOCS / "how-to" / "run-in-the-background.md"
TUTORIAL = DOCS / "tutorials" / "give-your-model-a-tool.md"
FILES = {"python": "weather.py", "yaml": "config.yaml"}
SERVING = {"weather.py": "9000", "simulator": "8000", "serve": "3001"}
"""What goes on running in a terminal of its own, with its port; a second start follows the end of the first."""


@attrs.define(eq=False)
class Reader:
    """Somebody who does what a page says, on ports that are free and a database that is there."""

    directory: Path
    ports: dict[str, str]
    database_url: str
    running: dict[str, trio.Process] = attrs.field(factory=dict)
    answers: list[str] = attrs.field(factory=list)
    """Of every request, in order."""
    printed: str = ""
    """By the last command that came to an end."""

    def place(self, text: str) -> str:
        """*text* with the ports of this machine in place of the page's."""
        return re.sub(r"\b(3001|8000|9000)\b", lambda found: self.ports[found[1]], text)

    async def follow(self, page: Path) -> None:
        """Do all of it, from the first block to the last."""
        for kind, text in re.findall(r"^```(\w*)\n(.*?)^```", read(page), flags=re.DOTALL | re.MULTILINE):
            if kind in FILES:
                (self.directory / FILES[kind]).write_text(self.place(text), encoding="utf-8")
            elif kind == "console":
                for command in commands(text):
                    await self.run(shlex.split(self.place(command)))

    async def run(self, arguments: list[str]) -> None:
        """One command, in a terminal of its own if it goes on running."""
        serving = next((name for name in SERVING if name in arguments), None)
        command = [str(Path(sys.executable).parent / Path(arguments[0]).name), *arguments[1:]]
        variables = environment(DATABASE_URL=self.database_url, PORT=self.ports["3001"])
        if arguments[0] == "curl":
            await self.send(arguments)
        elif serving is None:
            done = await trio.run_process(command, cwd=self.directory, env=variables, capture_stdout=True)
            self.printed = done.stdout.decode()
        else:
            if serving in self.running:
                self.running[serving].send_signal(signal.SIGINT)
                await self.running[serving].wait()
            self.running[serving] = process = await trio.lowlevel.open_process(
                command, cwd=self.directory, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            await wait_listening(process, int(self.ports[SERVING[serving]]))

    async def leave(self) -> None:
        """Close every terminal."""
        with trio.move_on_after(RUN_S_MAX, shield=True):
            for process in self.running.values():
                process.kill()
                await process.wait()

    async def send(self, arguments: list[str]) -> None:
        """What ``curl`` would send."""
        url = next(argument for argument in arguments if argument.startswith("http"))
        if "resp_…" in url:
            url = url.replace("resp_…", re.findall(r"resp_[0-9a-f-]{36}", self.answers[-1])[0])
        async with httpx.AsyncClient(trust_env=False, timeout=RUN_S_MAX) as client:
            if "-X" in arguments:
                answer = await client.request(arguments[arguments.index("-X") + 1], url)
            elif "-d" not in arguments:
                answer = await client.get(url)
            else:
                body = arguments[arguments.index("-d") + 1]
                answer = await client.post(url, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 200, answer.text
        self.answers.append(answer.text)


def commands(block: str) -> Iterator[str]:
    """The commands of a terminal, each on one line."""
    for line in block.replace("\\\n", " ").splitlines():
        assert line.startswith("$ "), f"not a command: {line}"
        yield line.removeprefix("$ ")


async def wait_listening(process: trio.Process, port: int) -> None:
    while process.poll() is None:
        try:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
        except OSError:
            await trio.sleep(0.01)
        else:
            return await stream.aclose()
    raise AssertionError(f"it ended at once, with {process.returncode}: {process.args}")


def free_ports() -> dict[str, str]:
    listeners = {port: socket.create_server(("127.0.0.1", 0)) for port in ("3001", "8000", "9000")}
    ports = {port: str(listener.getsockname()[1]) for port, listener in listeners.items()}
    for listener in listeners.values():
        listener.close()
    return ports


def kinds_of(steps: str) -> list[tuple[str, str | None, bool]]:
    """What each step is, and whether it is a sub-agent's."""
    return [(step["type"], step.get("name"), step["parent_step_id"] is not None) for step in json.loads(steps)["data"]]


async def follow(page: Path, directory: Path, dsn: str) -> Reader:
    """Somebody who has done all that *page* says, with a database that is migrated."""
    async with open_database(parse_config({"database_url": dsn}), migrating=True):
        pass
    reader = Reader(directory, free_ports(), dsn)
    try:
        with trio.fail_after(RUN_S_MAX):
            await reader.follow(page)
    finally:
        await reader.leave()
    return reader


@pytest.mark.slow
async def test_the_tutorial_on_tools_can_be_followed_to_the_letter(tmp_path: Path, postgres_dsn: str) -> None:
    reader = await follow(TUTORIAL, tmp_path, postgres_dsn)

    asked, steps, failed, watched, steps_of_agent = reader.answers
    first, second, answer = json.loads(asked)["output"]
    (shown,) = re.findall(r"^```json\n(.*?)^```", read(TUTORIAL), flags=re.DOTALL | re.MULTILINE)
    expected: dict[str, Any] = json.loads(shown) | {"id": first["id"]}
    assert first == expected
    assert json.loads(second["output"]) == {"celsius": 14}
    assert answer["content"][0]["text"].split() == ["word0", "word1", "word2", "word3", "word4"]
    model, weather = ("model_call", None), ("tool_call", "get_weather")
    assert kinds_of(steps) == [(*model, False), (*weather, False), (*weather, False), (*model, False)]

    response = json.loads(failed)
    assert (response["status"], response["output"][0]["status"]) == ("completed", "failed")
    assert "not valid JSON" in response["output"][0]["error"]["content"][0]["text"]

    assert "event: dwctl:sub_agent\n" in watched
    assert "event: response.completed\n" in watched
    assert kinds_of(steps_of_agent) == [
        *((*model, False), ("tool_call", "reporter", False)),
        *((*model, True), (*weather, True), (*weather, True), (*model, True), (*model, False)),
    ]
    assert [line.split() for line in reader.printed.splitlines()] == [
        ["tool", "calls", "failed"],
        ["get_weather", "5", "1"],
        ["reporter", "1", "0"],
    ]


@pytest.mark.slow
async def test_the_page_on_the_background_can_be_followed_to_the_letter(tmp_path: Path, postgres_dsn: str) -> None:
    reader = await follow(BACKGROUND, tmp_path, postgres_dsn)

    created, polled, followed, resumed, second, cancelled = reader.answers
    first = json.loads(created)
    assert (first["status"], first["background"]) == ("queued", True)
    assert json.loads(polled)["status"] in {"queued", "in_progress"}
    told = followed.replace(": ping\n", "").split("\n\n")
    assert told[-2:] == ["data: [DONE]", ""]
    assert resumed.replace(": ping\n", "").split("\n\n") == told[6:]
    assert followed.count("event: response.output_text.delta\n") == 40
    assert (json.loads(cancelled)["status"], json.loads(cancelled)["id"]) == ("cancelled", json.loads(second)["id"])
