"""PostgreSQL goes away and comes back: nothing is claimed that is not stored, and the server mends itself."""

import gc
import os
import signal
import tempfile
from pathlib import Path

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
from tests.http.database_gate import QUICK, Gate, open_gated

from dwctl_trio.app import run_api
from dwctl_trio.domain.errors import StoreUnavailable
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.postgres.embedded import EmbeddedPostgresOptions, open_embedded_postgres
from dwctl_trio.testing.service import Service, make_config, open_service
from dwctl_trio.testing.simulator_script import expected_text

UNKNOWN_ID = "resp_00000000-0000-0000-0000-000000000000"


async def _wait_ready(service: Service, status: int) -> None:
    with trio.fail_after(WAIT_S):
        while (await service.client.get("/readyz")).status_code != status:
            pass


@pytest.mark.slow
@pytest.mark.parametrize("way", ["cut", "frozen"])
async def test_without_the_database_requests_are_503_and_the_server_recovers_by_itself(
    postgres_dsn: str, way: str
) -> None:
    async with open_gated(postgres_dsn) as (service, gate):
        await assert_serves(service)
        await (gate.cut() if way == "cut" else _freeze(gate))

        for method, path, body in (
            ("POST", "/v1/responses", ask("echo-3", key="down")),
            ("POST", "/v1/responses", ask("echo-3", key="down", stream=True)),
            ("POST", "/v1/responses", ask("hang", key="down", stream=True)),
            ("GET", f"/v1/responses/{UNKNOWN_ID}", None),
            ("DELETE", f"/v1/responses/{UNKNOWN_ID}", None),
            ("GET", f"/v1/responses/{UNKNOWN_ID}/input_items", None),
            ("GET", "/v1/responses", None),
            ("POST", "/v1/responses", ask("echo-3", key="down", previous_response_id=UNKNOWN_ID)),
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
    async with open_gated(postgres_dsn) as (service, gate), open_raw(service) as client:
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
    async with open_gated(postgres_dsn) as (service, gate), trio.open_nursery() as nursery:

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
    async with open_gated(postgres_dsn, patient) as (service, gate), open_raw(service) as client:
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
    async with open_gated(postgres_dsn, {**patient, "rescue_interval_s": 60.0}) as (service, gate):
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
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}], ids=["no key", "key"])
async def test_a_response_whose_enqueueing_was_not_heard_of_is_accepted_and_runs_once(
    postgres_dsn: str, headers: dict[str, str]
) -> None:
    async with open_gated(postgres_dsn) as (service, gate):
        gate.lose_answer_to(b"key:accepted")
        body = ask("echo-2", key="accepted", background=True)
        with trio.fail_after(WAIT_S):
            answer = await service.client.post("/v1/responses", json=body, headers=headers)
        assert gate._swallows_after is None, "an answer was lost"
        row = await wait_terminal(service, "accepted")
        rows = await service.pool.fetchval("select count(*) from requests")

    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    assert "idempotent-replayed" not in answer.headers
    assert answer.json()["id"] == response_id_text(row["id"])
    assert (row["state"], rows) == ("completed", 1)


@pytest.mark.slow
async def test_without_the_database_a_key_is_neither_right_nor_wrong(postgres_dsn: str) -> None:
    async with open_gated(postgres_dsn, auth={"mode": "keys"}) as (service, gate):
        await gate.cut()

        answer = await service.client.get("/v1/models", headers={"authorization": "Bearer sk-dwctl-x"})

        assert (answer.status_code, error_of(answer)["type"]) == (503, "server_error")
        gate.restore()
        await _wait_ready(service, 200)
        assert (await service.client.get("/v1/models", headers={"authorization": "Bearer x"})).status_code == 401


async def test_a_server_that_finds_no_database_ends_and_leaves_nothingopen_gated() -> None:
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
