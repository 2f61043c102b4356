"""What the supervisor does once for all workers: the port, the database, the orders."""

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import yaml
from structlog.testing import capture_logs
from tests.test_config import EVERY_KEY

from dwctl_trio.config import Config, parse_config
from dwctl_trio.domain.errors import StoreError
from dwctl_trio.domain.limits import DEFAULT_LIMITS
from dwctl_trio.http.server import open_listener, open_shared_listener
from dwctl_trio.observability.worker_metrics import WorkerPlace
from dwctl_trio.postgres.database import open_database
from dwctl_trio.supervisor import WorkersFailed, run_supervisor
from dwctl_trio.supervisor.orders import StartOrder, encode_start
from dwctl_trio.supervisor.run import WorkersUnsupported, refuse_other_systems
from dwctl_trio.supervisor.workers import WORKER_COMMAND

FAILING = (sys.executable, "-I", "-S", "-c", "import sys; sys.exit(7)")
"""A worker that cannot start."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def fail(config: Config) -> list[Any]:
    """Run a supervisor whose workers cannot start; what it has logged."""
    with capture_logs() as logs, pytest.raises(ExceptionGroup) as failure:
        await run_supervisor(config, command=FAILING)
    assert failure.group_contains(WorkersFailed, match="status 7")
    return logs


async def test_too_few_connections_of_a_database_of_ones_own_are_warned_of(postgres_dsn: str) -> None:
    limits = attrs.evolve(DEFAULT_LIMITS, store_connections=50)
    async with open_database(Config(database_url=postgres_dsn), migrating=True):
        logs = await fail(Config(database_url=postgres_dsn, port=0, workers=2, limits=limits))

    (problem,) = [entry["problem"] for entry in logs if entry.get("problem", "").startswith("workers: ")]
    assert problem.startswith("workers: 2 workers may open 107 connections, and PostgreSQL allows 100;")
    assert {entry["event"] for entry in logs} == {"configuration_incomplete"}


async def test_a_schema_that_is_not_this_releases_is_refused_before_any_worker_is_started(postgres_dsn: str) -> None:
    with capture_logs() as logs, pytest.raises(StoreError, match="Run: dwctl-trio migrate"):
        await run_supervisor(Config(database_url=postgres_dsn, port=0, workers=2), command=FAILING)

    assert logs == []


@pytest.mark.parametrize("platform", ["darwin", "freebsd14", "win32"])
def test_a_system_that_does_not_share_a_port_as_it_must_is_refused(platform: str) -> None:
    with pytest.raises(WorkersUnsupported, match="on a port of its own, with a proxy in front"):
        refuse_other_systems(platform)


# -- the port


async def test_a_shared_port_is_closed_until_somebody_listens_and_then_open_to_all_who_do() -> None:
    with open_shared_listener("127.0.0.1", 0) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", port)
        with open_shared_listener("127.0.0.1", port) as first, open_shared_listener("127.0.0.1", port) as second:
            first.listen()
            second.listen()
            clients = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(64)]
            accepted = [accept_all(listener) for listener in (first, second)]
        for client in clients:
            await client.aclose()

    assert sum(accepted) == 64
    assert min(accepted) > 0  # but for one time in 2 ** 63


def accept_all(listener: socket.socket) -> int:
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


async def test_a_port_that_another_servers_workers_share_is_taken() -> None:
    port = free_port()
    with open_shared_listener("127.0.0.1", port) as other:
        other.listen()
        with pytest.raises(OSError, match="stop the program that has it"):
            await run_supervisor(Config(port=port, workers=2), command=FAILING)
        with pytest.raises(OSError, match="stop the program that has it"):
            open_listener("127.0.0.1", port, DEFAULT_LIMITS)


async def test_of_two_servers_that_start_at_once_one_gets_the_port(postgres_dsn: str) -> None:
    """The workers of the first do not listen yet, so that the other would find the port free, and share it."""
    config = Config(database_url=postgres_dsn, port=free_port(), workers=2)
    with pytest.raises(ExceptionGroup) as failure:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(partial(run_supervisor, config, command=FAILING))
    assert failure.group_contains(OSError, match="stop the program that has it")


# -- the orders


def test_a_worker_gets_the_very_configuration_that_was_read_and_what_comes_behind_it_stays_in_the_pipe() -> None:
    config = parse_config(yaml.safe_load(EVERY_KEY.replace("${LOCAL_KEY}", "k").replace("${TEAM}", "t")))
    place = WorkerPlace(number=2, workers=3, starts=4, meeting="here", user=os.geteuid())
    program = (
        "import os; from dwctl_trio.supervisor.orders import read_start, encode_start; order = read_start(); "
        "os.write(1, os.read(0, 9) + encode_start(order))"
    )
    sent = encode_start(StartOrder(config=config, place=place))
    done = subprocess.run([sys.executable, "-c", program], input=sent + b"rest", capture_output=True, check=True)

    assert done.stdout == b"rest" + sent


def test_a_worker_whose_supervisor_died_before_its_order_was_whole_ends_in_silence(tmp_path: Path) -> None:
    place = WorkerPlace(number=1, workers=2, starts=1, meeting="here", user=os.geteuid())
    half = encode_start(StartOrder(config=Config(), place=place))[:100]
    # What lies in the current directory is not imported.
    (tmp_path / "trio.py").write_text("raise SystemExit('imported')")
    done = [
        subprocess.run(WORKER_COMMAND, input=sent, capture_output=True, check=False, cwd=tmp_path)
        for sent in (b"", half)
    ]

    assert [(each.returncode, each.stdout, each.stderr) for each in done] == [(0, b"", b"")] * 2
