"""PostgreSQL goes away and comes back: nothing is claimed that is not stored, and the server mends itself."""

import gc
import os
import signal
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trio
from tests.http.conftest import (
    DELTA,
    WAIT_S,
    as_request,
    ask,
    assert_serves,
    error_of,
    find_row,
    open_raw,
    output_text,
    read_back,
    read_valid_stream,
    wait_terminal,
)

from dwctl_trio.app import run_api
from dwctl_trio.domain.errors import StoreUnavailable
from dwctl_trio.postgres.embedded import EmbeddedPostgresOptions, open_embedded_postgres
from dwctl_trio.testing.service import Service, make_config, open_service
from dwctl_trio.testing.simulator_script import expected_text

QUICK = {
    "store_wait_s": 0.5, "store_call_s": 0.5, "ready_check_s": 0.5, "terminal_write_s": 0.5, "terminal_retry_s": 0.02,
    "lease_s": 2.0, "lease_renewal_s": 0.2, "lease_give_up_s": 1.5, "rescue_interval_s": 0.2,
}  # fmt: skip
UNKNOWN_ID = "resp_00000000-0000-0000-0000-000000000000"


class Gate:
    """A way to PostgreSQL that can be cut, frozen, or made to swallow an answer."""

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._streams: set[trio.SocketStream] = set()
        self._is_cut = False
        self._thawed = trio.Event()
        self._thawed.set()
        self._swallows_after: bytes | None = None
        self._swallowing: trio.SocketStream | None = None
        self.port = 0

    async def cut(self) -> None:
        """Reset every connection, and each new one."""
        self._is_cut = True
        await self._reset_all()

    def restore(self) -> None:
        """Let everything pass again."""
        self._is_cut = False
        self._thawed.set()

    def freeze(self) -> None:
        """Hold everything back, as a network that loses every packet does."""
        self._thawed = trio.Event()

    def lose_answer_to(self, words: bytes) -> None:
        """Reset the connection instead of giving back the answer to the next statement that holds *words*."""
        self._swallows_after = words

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._handle, listeners, task_status=task_status)

    async def _handle(self, client: trio.SocketStream) -> None:
        if self._is_cut:
            await _reset(client)
            return
        self._streams.add(client)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with client, await trio.open_unix_socket(self._socket_path) as server, trio.open_nursery() as nursery:
                nursery.start_soon(self._ask, client, server, nursery.cancel_scope)
                nursery.start_soon(self._answer, client, server, nursery.cancel_scope)
        self._streams.discard(client)

    async def _ask(self, client: trio.SocketStream, server: trio.SocketStream, scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in client:
                await self._thawed.wait()
                if self._swallows_after is not None and self._swallows_after in data:
                    self._swallows_after = None
                    self._swallowing = client
                await server.send_all(data)
        scope.cancel()

    async def _answer(self, client: trio.SocketStream, server: trio.SocketStream, scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in server:
                await self._thawed.wait()
                if self._swallowing is client:  # PostgreSQL is done, and only we know
                    await _reset(client)
                await client.send_all(data)
        scope.cancel()

    async def _reset_all(self) -> None:
        for stream in list(self._streams):
            await _reset(stream)


async def _reset(stream: trio.SocketStream) -> None:
    with suppress(trio.ClosedResourceError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await stream.aclose()


@asynccontextmanager
async def _open(
    dsn: str, limits: Mapping[str, Any] | None = None, **overrides: Any
) -> AsyncIterator[tuple[Service, Gate]]:
    """The service, whose database is behind a gate."""
    parts = urlsplit(dsn)
    gate = Gate(f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.5432")
    async with trio.open_nursery() as nursery:
        await nursery.start(gate.serve)
        behind = f"postgresql://postgres@127.0.0.1:{gate.port}{parts.path}?sslmode=disable"
        async with open_service(behind, {"limits": {**QUICK, **(limits or {})}, **overrides}) as service:
            yield service, gate
        nursery.cancel_scope.cancel()


async def _wait_ready(service: Service, status: int) -> None:
    with trio.fail_after(WAIT_S):
        while (await service.client.get("/readyz")).status_code != status:
            pass


@pytest.mark.slow
@pytest.mark.parametrize("way", ["cut", "frozen"])
async def test_without_the_database_requests_are_503_and_the_server_recovers_by_itself(
    postgres_dsn: str, way: str
) -> None:
    async with _open(postgres_dsn) as (service, gate):
        await assert_serves(service)
        await (gate.cut() if way == "cut" else _freeze(gate))

        for method, path, body in (
            ("POST", "/v1/responses", ask("echo-3", key="down")),
            ("POST", "/v1/responses", ask("echo-3", key="down", stream=True)),
            ("POST", "/v1/responses", ask("hang", key="down", stream=True)),
            ("GET", f"/v1/responses/{UNKNOWN_ID}", None),
            ("DELETE", f"/v1/responses/{UNKNOWN_ID}", None),
        ):
            with trio.fail_after(WAIT_S):
                answer = await service.client.request(method, path, json=body)
            error = error_of(answer)
            assert (answer.status_code, error["type"]) == (503, "server_error"), (method, body, error)
            assert int(answer.headers["retry-after"]) >= 1
            assert "postgres" not in answer.text.lower()
        assert (await service.client.get("/healthz")).status_code == 200
        assert (await service.client.get("/v1/models")).status_code == 200
        assert (await service.client.get("/readyz")).status_code == 503
        with trio.fail_after(WAIT_S):
            await service.simulator.wait_idle()

        gate.restore()
        await _wait_ready(service, 200)
        await assert_serves(service)
        with trio.fail_after(WAIT_S):  # a row whose commit nobody heard of is the rescuer's
            while await service.pool.fetchval("select count(*) from requests where state = 'processing'"):
                pass


async def _freeze(gate: Gate) -> None:
    gate.freeze()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["cut", "frozen"])
async def test_a_stream_whose_end_cannot_be_stored_fails_and_carries_its_output(postgres_dsn: str, way: str) -> None:
    asked = ask("echo-6-pause-3", key="unstored", stream=True)
    async with _open(postgres_dsn) as (service, gate), open_raw(service) as client:
        await client.send(as_request(asked, "Connection: close"))
        await client.read_until(DELTA, 3)
        await (gate.cut() if way == "cut" else _freeze(gate))
        service.simulator.resume("unstored")
        with trio.fail_after(WAIT_S):
            stream = read_valid_stream(_body(await client.read_to_end()), asked)
        gate.restore()
        row = await wait_terminal(service, "unstored")
        shown = await read_back(service, row["id"])
        await assert_serves(service)

    final = stream.data[-1]["response"]
    assert (final["status"], final["error"]["code"]) == ("failed", "server_error")
    assert output_text(final) == expected_text("echo-6")
    assert (row["state"], shown["status"]) == ("failed", "failed"), "never completed for one and failed for another"


@pytest.mark.slow
async def test_a_blocking_response_whose_end_cannot_be_stored_fails_and_carries_its_output(postgres_dsn: str) -> None:
    async with _open(postgres_dsn) as (service, gate), trio.open_nursery() as nursery:

        async def cut_then_resume() -> None:
            await service.simulator.wait_until(lambda counts: counts.paused == 1)
            while await find_row(service, "blocking") is None:
                pass
            await gate.cut()
            service.simulator.resume("blocking")

        nursery.start_soon(cut_then_resume)
        with trio.fail_after(WAIT_S):
            answer = await service.client.post("/v1/responses", json=ask("echo-6-pause-3", key="blocking"))
        gate.restore()
        row = await wait_terminal(service, "blocking")

    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert output_text(answer.json()) == expected_text("echo-6")
    assert row["state"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["cut", "frozen"])
async def test_a_short_absence_of_the_database_is_not_noticed_by_a_stream(postgres_dsn: str, way: str) -> None:
    asked = ask("echo-6-pause-3", key="blink", stream=True)
    patient = {"terminal_write_s": 10.0, "lease_s": 30.0, "lease_give_up_s": 20.0}
    async with _open(postgres_dsn, patient) as (service, gate), open_raw(service) as client:
        await client.send(as_request(asked, "Connection: close"))
        await client.read_until(DELTA, 3)
        await (gate.cut() if way == "cut" else _freeze(gate))
        service.simulator.resume("blink")
        await client.read_until(DELTA, 6)
        await _wait_ready(service, 503)
        gate.restore()
        with trio.fail_after(WAIT_S):
            stream = read_valid_stream(_body(await client.read_to_end()), asked)
        row = await wait_terminal(service, "blink")
        shown = await read_back(service, row["id"])

    assert stream.data[-1]["response"] == shown
    assert (shown["status"], row["state"], row["output_tokens"]) == ("completed", "completed", 6)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["blocking", "stream"])
async def test_a_terminal_write_whose_answer_is_lost_counts_once(postgres_dsn: str, stream: bool) -> None:
    patient = {"terminal_write_s": 10.0, "lease_renewal_s": 5.0, "lease_s": 30.0, "lease_give_up_s": 20.0}
    async with _open(postgres_dsn, {**patient, "rescue_interval_s": 60.0}) as (service, gate):
        gate.lose_answer_to(b"word0 word1 ")  # only the terminal write holds the output
        with trio.fail_after(WAIT_S):
            answer = await service.client.post("/v1/responses", json=ask("echo-2", key="lost", stream=stream))
        row = await wait_terminal(service, "lost")
        shown = await read_back(service, row["id"])
        records = await service.pool.fetchval("select count(*) from usage_records")

    asked = ask("echo-2", key="lost", stream=True)
    final = read_valid_stream(answer.content, asked).data[-1]["response"] if stream else answer.json()
    assert gate._swallows_after is None, "an answer was lost"
    assert final == shown
    assert (shown["status"], row["state"], records) == ("completed", "completed", 1)


@pytest.mark.slow
async def test_without_the_database_a_key_is_neither_right_nor_wrong(postgres_dsn: str) -> None:
    async with _open(postgres_dsn, auth={"mode": "keys"}) as (service, gate):
        await gate.cut()

        answer = await service.client.get("/v1/models", headers={"authorization": "Bearer sk-dwctl-x"})

        assert (answer.status_code, error_of(answer)["type"]) == (503, "server_error")
        gate.restore()
        await _wait_ready(service, 200)
        assert (await service.client.get("/v1/models", headers={"authorization": "Bearer x"})).status_code == 401


async def test_a_server_that_finds_no_database_ends_and_leaves_nothing_open() -> None:
    nowhere = "postgresql://postgres@127.0.0.1:1/postgres?sslmode=disable"
    config = make_config(nowhere, "http://127.0.0.1:1/v1", {"limits": {"store_wait_s": 0.1}})

    with pytest.raises(StoreUnavailable), trio.fail_after(WAIT_S):
        await run_api(config)

    gc.collect()  # a socket that nobody closed would warn here, and a warning is an error


@pytest.mark.slow
async def test_postgres_killed_under_a_running_stream_is_survived() -> None:
    limits = {**QUICK, "terminal_write_s": 20.0, "lease_s": 60.0, "lease_give_up_s": 50.0}
    asked = ask("echo-6-pause-3", key="killed", stream=True)
    with tempfile.TemporaryDirectory(prefix="dwctl-tests-") as directory:
        Path(directory).chmod(0o711)  # noqa: ASYNC240 - before anything runs
        options = EmbeddedPostgresOptions(durable=False)
        async with (
            open_embedded_postgres(Path(directory) / "database", options) as postgres,
            open_service(postgres.dsn, {"limits": limits}) as service,
            open_raw(service) as client,
        ):
            await client.send(as_request(asked, "Connection: close"))
            await client.read_until(DELTA, 3)
            os.kill(postgres.pid, signal.SIGKILL)
            service.simulator.resume("killed")
            with trio.fail_after(3 * WAIT_S):
                stream = read_valid_stream(_body(await client.read_to_end()), asked)
                while (await service.client.get("/readyz")).status_code != 200:
                    pass
            await assert_serves(service)
            row = await find_row(service, "killed")
            shown = await read_back(service, row["id"])

    final = stream.data[-1]["response"]
    assert output_text(final) == expected_text("echo-6")
    assert (final["status"], row["state"]) == ("completed", "completed")
    assert final == shown


def _body(received: bytes) -> bytes:
    """The body of a chunked answer."""
    _, _, rest = received.partition(b"\r\n\r\n")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body
