"""The installed command, as an operator runs it: a process with arguments, an environment and an exit status."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import trio

from dwctl_trio.config import parse_config
from dwctl_trio.postgres.database import open_database
from dwctl_trio.postgres.keys import PostgresKeyStore
from dwctl_trio.testing.service import open_service
from dwctl_trio.testing.tool_server import ToolReply, ToolServer, open_tool_server

COMMAND = Path(sys.executable).parent / "dwctl-trio"
RUN_S_MAX = 60.0
"""For one command; far more than any needs on a busy machine."""
TERMINAL_COLUMNS = 100

pytestmark = pytest.mark.slow

COMMANDS = ["check-config", "demo", "keys", "migrate", "serve", "simulator", "usage", "worker"]


def environment(**variables: str) -> dict[str, str]:
    """The test's own environment without any configuration but *variables*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DWCTL_")}
    return kept | {f"DWCTL_{name}": value for name, value in variables.items()}


async def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end."""
    with trio.fail_after(RUN_S_MAX):
        return await trio.run_process(
            [str(COMMAND), *arguments],
            env=environment(**variables),
            check=False,
            capture_stdout=True,
            capture_stderr=True,
        )


def said(stream: bytes) -> str:
    text = stream.decode()
    assert "Traceback" not in text
    return text


def with_tools(server: ToolServer) -> dict[str, object]:
    """A configuration with a tool at *server* and an agent, which every model gets."""
    weather = {"name": "get_weather", "kind": "http", "url": server.url("/weather"), "allow_private": True}
    researcher = {"name": "researcher", "kind": "agent", "model": "echo-4"}
    models = [{"name": "*", "upstream": "simulator", "tools": ["get_weather", "researcher"]}]
    return {"models": models, "tools": [weather, researcher]}


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture
async def migrated_dsn(postgres_dsn: str) -> str:
    """A database with this release's schema, and nothing in it."""
    async with open_database(parse_config({"database_url": postgres_dsn}), migrating=True):
        return postgres_dsn


@pytest.fixture
def private_dir() -> Iterator[Path]:
    """A data directory that also the user can reach that root's PostgreSQL runs as."""
    with tempfile.TemporaryDirectory(prefix="dwctl-tests-") as directory:
        Path(directory).chmod(0o711)
        yield Path(directory) / "data"


# -- what the command itself says


async def test_help_lists_every_command() -> None:
    done = await run("--help")

    listed = re.findall(r"^  ([a-z-]+) {2,}\S", said(done.stdout).partition("Commands:")[2], re.MULTILINE)
    assert (done.returncode, listed) == (0, COMMANDS)


async def test_the_version_is_that_of_the_package() -> None:
    done = await run("--version")

    assert (done.returncode, said(done.stdout)) == (0, f"dwctl-trio, version {version('dwctl-trio')}\n")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["serve", "--prot", "1"], "No such option"),
        (["serve", "--workers", "0"], "0 is not in the range"),
        (["keys", "create"], "Missing option '--owner'"),
        (["usage", "--by", "colour"], "'colour' is not one of 'model', 'owner', 'tool'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
async def test_a_wrong_argument_is_named_and_the_status_is_2(arguments: list[str], problem: str) -> None:
    done = await run(*arguments)

    assert done.returncode == 2
    assert problem in said(done.stderr)
    assert done.stdout == b""


# -- check-config


async def test_check_config_prints_the_configuration_in_force_without_its_secrets(tmp_path: Path) -> None:
    upstreams = "upstreams: {local: {base_url: 'http://a/v1', api_key: sk-c4n4ry}}"
    path = write(tmp_path, f"{{port: 4001, {upstreams}, models: [{{name: m, upstream: local}}]}}")

    done = await run("check-config", "--config", path, LIMITS__TURNS="3")

    shown = said(done.stdout)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "port: 4001\n" in shown
    assert "  turns: 3\n" in shown
    assert "api_key: '***'" in shown
    assert "c4n4ry" not in shown


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("auth: {mode: of}", "auth.mode: 'of' is not allowed; allowed: keys, none"),
        ("prot: 1", "prot: unknown key; did you mean 'port'?"),
    ],
)
async def test_a_wrong_configuration_is_one_line_with_key_value_and_what_is_allowed(
    tmp_path: Path, text: str, problem: str
) -> None:
    done = await run("check-config", "--config", write(tmp_path, text))

    (line,) = said(done.stderr).splitlines()
    assert (done.returncode, done.stdout) == (2, b"")
    assert line.startswith(f"dwctl-trio: {problem}")


async def test_check_config_warns_of_what_would_serve_nobody(tmp_path: Path) -> None:
    empty = await run("check-config")
    without_models = await run("check-config", "--config", write(tmp_path, "upstreams: {a: {base_url: 'http://a/v1'}}"))

    first, second = said(empty.stderr).splitlines()
    assert (empty.returncode, without_models.returncode) == (0, 0)
    assert first.startswith("dwctl-trio: warning: upstreams: none is defined")
    assert second.startswith("dwctl-trio: warning: models: none is defined")
    assert said(without_models.stderr).splitlines() == [second]


async def test_a_configuration_that_is_not_there_is_one_line() -> None:
    done = await run("check-config", "--config", "/nonexistent/config.yaml")

    expected = "dwctl-trio: /nonexistent/config.yaml: cannot be read: No such file or directory\n"
    assert (done.returncode, said(done.stderr)) == (2, expected)


# -- commands that need the database


@pytest.mark.parametrize("arguments", [["keys", "list"], ["serve", "--port", "0"]], ids=" ".join)
async def test_a_database_that_cannot_be_reached_is_one_line(arguments: list[str]) -> None:
    done = await run(*arguments, DATABASE_URL="postgresql://dwctl:c4n4ry@127.0.0.1:1/dwctl")

    (line,) = said(done.stderr).splitlines()
    assert done.returncode == 1
    assert line.startswith("dwctl-trio: the database accepts no connection (postgresql://***@127.0.0.1:1/dwctl): ")
    assert line.endswith("or correct database_url")
    assert "c4n4ry" not in line


async def test_a_database_that_refuses_the_user_is_one_line_with_the_reason(postgres_dsn: str) -> None:
    url = urlsplit(postgres_dsn)._replace(path="/nowhere").geturl()

    done = await run("keys", "list", DATABASE_URL=url)

    (line,) = said(done.stderr).splitlines()
    assert done.returncode == 1
    assert 'database "nowhere" does not exist' in line


async def test_a_database_that_never_answers_is_given_up_in_time() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]

    async with listener:  # the kernel accepts, and nobody says a word
        done = await run(
            "keys", "list", DATABASE_URL=f"postgresql://127.0.0.1:{port}/a?sslmode=disable", LIMITS__STORE_WAIT_S="0.2"
        )

    (line,) = said(done.stderr).splitlines()
    assert done.returncode == 1
    assert line.startswith(
        f"dwctl-trio: the database did not accept a connection in time (postgresql://127.0.0.1:{port}"
    )


async def test_a_database_of_ones_own_is_not_changed_without_being_asked(postgres_dsn: str) -> None:
    refused = await run("keys", "list", DATABASE_URL=postgres_dsn)
    migrated = await run("migrate", DATABASE_URL=postgres_dsn)
    listed = await run("keys", "list", DATABASE_URL=postgres_dsn)

    (line,) = said(refused.stderr).splitlines()
    assert refused.returncode == 1
    assert "dwctl-trio migrate" in line
    assert (migrated.returncode, said(migrated.stdout)) == (0, "The database's schema is up to date.\n")
    assert (listed.returncode, listed.stdout) == (0, b"")


async def test_a_key_is_shown_once_listed_by_its_prefix_and_revoked_once(migrated_dsn: str) -> None:
    created = await run("keys", "create", "--owner", "blue whale", DATABASE_URL=migrated_dsn)
    key = said(created.stdout).strip()
    listed = await run("keys", "list", DATABASE_URL=migrated_dsn)
    (row,) = said(listed.stdout).splitlines()
    prefix = row.split("…")[0]
    revoked = await run("keys", "revoke", f"{prefix}…", DATABASE_URL=migrated_dsn)
    again = await run("keys", "revoke", prefix, DATABASE_URL=migrated_dsn)
    listed_later = await run("keys", "list", DATABASE_URL=migrated_dsn)

    assert created.returncode == 0
    assert re.fullmatch(r"sk-dwctl-[A-Za-z0-9_-]{43}", key)
    assert key.startswith(prefix)
    assert len(prefix) < len(key) / 2
    assert "live" in row
    assert row.endswith("blue whale")
    assert (revoked.returncode, said(revoked.stdout)) == (0, f"Revoked the key {prefix}… of blue whale.\n")
    assert again.returncode == 1
    assert f"no live key has the prefix '{prefix}'" in said(again.stderr)
    assert "revoked" in said(listed_later.stdout)


async def test_a_whole_key_can_be_revoked_and_is_never_repeated(migrated_dsn: str) -> None:
    created = await run("keys", "create", "--owner", "whale", DATABASE_URL=migrated_dsn)
    key = said(created.stdout).strip()
    revoked = await run("keys", "revoke", key, DATABASE_URL=migrated_dsn)
    again = await run("keys", "revoke", key, DATABASE_URL=migrated_dsn)

    assert (revoked.returncode, again.returncode) == (0, 1)
    assert said(revoked.stdout) == f"Revoked the key {key[:15]}… of whale.\n"
    assert f"no live key has the prefix '{key[:15]}'" in said(again.stderr)
    assert key[:20] not in said(revoked.stdout + revoked.stderr + again.stdout + again.stderr)


async def test_an_owner_that_could_move_the_cursor_is_escaped(migrated_dsn: str) -> None:
    async with open_database(parse_config({"database_url": migrated_dsn})) as pool:
        key = await PostgresKeyStore(pool).create_key("a\x1b[2J\nb")
    listed = await run("keys", "list", DATABASE_URL=migrated_dsn)
    revoked = await run("keys", "revoke", key, DATABASE_URL=migrated_dsn)

    (row,) = said(listed.stdout).splitlines()
    assert row.endswith("  a\\x1b[2J\\nb")
    assert said(revoked.stdout) == f"Revoked the key {key[:15]}… of a\\x1b[2J\\nb.\n"


async def test_an_owner_without_a_name_is_refused() -> None:
    done = await run("keys", "create", "--owner", " ", DATABASE_URL="postgresql://127.0.0.1:1/none")

    assert (done.returncode, said(done.stderr)) == (2, "dwctl-trio: --owner: expected 1 to 128 printable characters\n")


async def test_usage_of_nothing_says_so(migrated_dsn: str) -> None:
    done = await run("usage", DATABASE_URL=migrated_dsn)

    assert (done.returncode, said(done.stdout)) == (0, "No model calls in this time.\n")


async def test_usage_tells_what_one_response_used_and_cost(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn) as service:
        answer = await service.client.post("/v1/responses", json={"model": "echo-20", "input": "one two three"})
        by_model = await run("usage", "--since", "1h", DATABASE_URL=postgres_dsn)
        by_owner = await run("usage", "--by", "owner", DATABASE_URL=postgres_dsn)

    used = answer.json()["usage"]
    cost = (used["input_tokens"] * 1 + used["output_tokens"] * 2) / 1_000_000
    for report, head, subject in [(by_model, "model", "echo-20"), (by_owner, "owner", "local")]:
        heads, row = [line.split() for line in said(report.stdout).splitlines()]
        assert heads == [head, "calls", "failed", "input", "cached", "output", "reasoning", "cost"]
        assert row[:4] == [subject, "1", "0", str(used["input_tokens"])]
        assert row[5] == str(used["output_tokens"]) == "20"
        assert row[-2:] == [f"{cost:.6f}", "USD"]


async def test_usage_by_tool_counts_the_calls_and_those_that_failed(postgres_dsn: str) -> None:
    async with open_tool_server() as tools, open_service(postgres_dsn, with_tools(tools)) as service:
        tools.script("/weather", ToolReply(), ToolReply(status=500))
        for model in ("tools-2-then-echo-3", "tools-2-then-tools-2-then-echo-3"):
            answer = await service.client.post("/v1/responses", json={"model": model, "input": "hello"})
            assert answer.json()["status"] == "completed"
        by_tool = await run("usage", "--by", "tool", DATABASE_URL=postgres_dsn)

    rows = [line.split() for line in said(by_tool.stdout).splitlines()]
    assert by_tool.returncode == 0
    assert rows[0] == ["tool", "calls", "failed"]
    assert sorted(rows[1:]) == [["get_weather", "3", "2"], ["researcher", "3", "0"]]


async def test_usage_by_tool_of_nothing_says_so(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn) as service:
        await service.client.post("/v1/responses", json={"model": "echo-3", "input": "hello"})
        by_tool = await run("usage", "--by", "tool", DATABASE_URL=postgres_dsn)

    assert (by_tool.returncode, said(by_tool.stdout)) == (0, "No tool calls in this time.\n")


async def test_a_time_that_is_none_is_refused_before_the_database_is_asked() -> None:
    done = await run("usage", "--since", "yesterday", DATABASE_URL="postgresql://127.0.0.1:1/none")

    expected = "dwctl-trio: --since: expected a number and s, m, h or d, as in 24h, but got 'yesterday'\n"
    assert (done.returncode, said(done.stderr)) == (2, expected)


async def test_without_a_database_the_embedded_one_is_made_and_keeps_what_it_is_given(private_dir: Path) -> None:
    created = await run("keys", "create", "--owner", "whale", DATA_DIR=str(private_dir))
    listed = await run("keys", "list", DATA_DIR=str(private_dir))

    assert (created.returncode, listed.returncode) == (0, 0)
    assert said(listed.stdout).rstrip().endswith("whale")
    assert said(created.stdout).startswith(said(listed.stdout).split("…")[0])
    assert (private_dir / "cluster").exists()


async def test_a_data_directory_that_cannot_be_made_is_one_line() -> None:
    done = await run("migrate", DATA_DIR="/proc/nowhere")

    (line,) = said(done.stderr).splitlines()
    assert done.returncode == 1
    assert line.startswith("dwctl-trio: cannot run a database in /proc/nowhere: ")


async def test_the_demo_shows_a_tool_round_and_the_steps_of_a_sub_agent_under_its_call() -> None:
    done = await run("demo")

    lines = said(done.stdout).splitlines()
    steps = [found for line in lines if (found := re.fullmatch(r"( {4,})(\d)  (.+?)  +completed  (.+)", line))]
    assert (done.returncode, said(done.stderr)) == (0, "")
    assert [(len(step[1]), step[2], step[3].split()[0]) for step in steps] == [
        *((4, "1", "model"), (4, "2", "get_weather"), (4, "3", "researcher")),
        *((7, "4", "model"), (7, "5", "find_articles"), (7, "6", "model")),
        (4, "7", "model"),
    ]
    assert any(re.match(r" +\d+ ms    researcher: mcp_call.completed$", line) for line in lines)
    assert any(re.match(r" +\d+ ms  response.completed +completed$", line) for line in lines)
    assert max(map(len, lines)) <= TERMINAL_COLUMNS
    assert "\x1b" not in "".join(lines)


# -- commands that run until they are stopped


@asynccontextmanager
async def running(*arguments: str, **variables: str) -> AsyncIterator[tuple[trio.Process, str]]:
    """The command under way, and the URL that it says it listens on."""
    run_process = partial(
        trio.run_process,
        [str(COMMAND), *arguments],
        env=environment(**variables),
        check=False,
        stderr=subprocess.PIPE,
    )
    async with trio.open_nursery() as nursery:
        process = await nursery.start(run_process)
        try:
            with trio.fail_after(RUN_S_MAX):
                yield process, await find_url(process)
        finally:
            process.kill()


async def find_url(process: trio.Process) -> str:
    assert process.stderr is not None
    text = ""
    async for piece in process.stderr:
        text += piece.decode()
        found = re.search(r"http://127\.0\.0\.1:\d+(?=\S*\s)", text)
        if found:
            return found[0]
    raise AssertionError(f"the command ended without a URL: {text}")


async def test_the_simulator_serves_until_it_is_interrupted() -> None:
    async with running("simulator", "--port", "0") as (process, url), httpx.AsyncClient(trust_env=False) as client:
        asked = {"model": "echo-3", "messages": [{"role": "user", "content": "hello"}]}
        answer = await client.post(f"{url}/v1/chat/completions", json=asked)
        process.send_signal(signal.SIGINT)
        status = await process.wait()

    assert answer.json()["choices"][0]["message"]["content"] == "word0 word1 word2 "
    assert status == 130


async def test_serve_answers_until_it_is_asked_to_stop(migrated_dsn: str) -> None:
    variables = {"DATABASE_URL": migrated_dsn, "AUTH__MODE": "none"}

    async with (
        running("serve", "--host", "127.0.0.1", "--port", "0", **variables) as (process, url),
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        ready = await client.get("/readyz")
        models = await client.get("/v1/models")
        process.send_signal(signal.SIGTERM)
        status = await process.wait()

    assert (ready.status_code, models.json()) == (200, {"object": "list", "data": []})
    assert status == 0


async def test_a_port_that_is_taken_is_one_line(postgres_dsn: str) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = str(listener.socket.getsockname()[1])

    async with listener:
        done = await run("serve", "--host", "127.0.0.1", "--port", port, DATABASE_URL=postgres_dsn)

    (line,) = said(done.stderr).splitlines()
    advice = "stop the program that has it, or choose another with --port"
    expected = f"dwctl-trio: cannot listen on 127.0.0.1, port {port}: Address already in use; {advice}"
    assert (done.returncode, line) == (1, expected)


async def test_a_port_that_is_taken_is_one_line_of_several_workers_too(postgres_dsn: str) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = str(listener.socket.getsockname()[1])

    async with listener:
        done = await run("serve", "--workers", "2", "--port", port, DATABASE_URL=postgres_dsn)

    (line,) = said(done.stderr).splitlines()
    advice = "stop the program that has it, or choose another with --port"
    expected = f"dwctl-trio: cannot listen on 127.0.0.1, port {port}: Address already in use; {advice}"
    assert (done.returncode, line) == (1, expected)


async def test_a_port_that_is_taken_is_one_line_of_the_simulator_too() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = str(listener.socket.getsockname()[1])

    async with listener:
        done = await run("simulator", "--port", port)

    expected = f"dwctl-trio: cannot listen on 127.0.0.1, port {port}; choose another with --host and --port\n"
    assert (done.returncode, said(done.stderr)) == (1, expected)


async def test_a_server_without_models_says_so_in_its_log(migrated_dsn: str) -> None:
    variables = {"DATABASE_URL": migrated_dsn, "UPSTREAMS": "{a: {base_url: 'http://127.0.0.1:1/v1'}}"}
    arguments = [str(COMMAND), "serve", "--port", "0"]

    process = await trio.lowlevel.open_process(arguments, env=environment(**variables), stderr=subprocess.PIPE)
    assert process.stderr is not None
    log = b""
    with trio.fail_after(RUN_S_MAX):
        while b"server_started" not in log:
            log += await process.stderr.receive_some(65536)
        process.send_signal(signal.SIGTERM)
        status = await process.wait()

    entries = [json.loads(line) for line in log.splitlines()]
    (warning,) = [entry for entry in entries if entry["event"] == "configuration_incomplete"]
    assert warning["level"] == "warning"
    assert warning["problem"].startswith("models: none is defined")
    assert status == 0
