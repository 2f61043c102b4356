"""Connections that break the rules: they end, alone, and the server goes on."""

import socket
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from tests.http.attacks import ATTACKS, GET
from tests.http.conftest import (
    DELTA,
    WAIT_S,
    RawClient,
    as_request,
    ask,
    assert_serves,
    error_of,
    open_raw,
    read_answer,
    read_valid_stream,
    wait_terminal,
)

from dwctl_trio.testing.service import Service, open_service

pytestmark = pytest.mark.usefixtures("each_server")

QUICK = {"idle_connection_s": 0.3, "request_body_s": 1.0}


async def test_http_2_is_refused_with_and_without_asking(service: Service) -> None:
    async with open_raw(service) as client:
        preface = read_answer(await client.exchange(ATTACKS["HTTP/2 preface"]))
    async with open_raw(service) as client:
        await client.send(ATTACKS["h2c upgrade"])
        upgrade = await client.read_until(b'{"status":"ok"}')

    assert preface.status_code == 505
    assert error_of(preface)["code"] == "unsupported_http_version"
    assert "send HTTP/1.1" in error_of(preface)["message"]
    assert upgrade.startswith(b"HTTP/1.1 200"), "an upgrade is ignored"


@pytest.mark.slow
async def test_a_websocket_is_not_opened(service: Service) -> None:
    async with open_raw(service) as client:
        await client.send(ATTACKS["websocket"])
        received = await client.read_until(b"}")

    assert read_answer(received).status_code == 200, "the upgrade is ignored"
    assert read_answer(received).json()["object"] == "list"


async def test_connection_close_is_obeyed(service: Service) -> None:
    for request in (
        GET + b"Connection: close\r\n\r\n",
        as_request(ask("echo-2"), "Connection: close"),
        as_request(ask("echo-2", stream=True), "Connection: close"),
        as_request({"model": 1}, "Connection: close"),
        b"GET /healthz HTTP/1.0\r\n\r\n",
    ):
        async with open_raw(service) as client:
            await client.send(request)
            with trio.fail_after(WAIT_S):
                received = await client.read_to_end()
        assert received.startswith(b"HTTP/1.1 "), request


@pytest.mark.slow
async def test_an_http_1_0_client_gets_a_stream_that_ends_with_its_connection(service: Service) -> None:
    request = as_request(ask("echo-3", stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    async with open_raw(service) as client:
        await client.send(request)
        with trio.fail_after(WAIT_S):
            received = await client.read_to_end()

    head, _, body = received.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert len(read_valid_stream(body, ask("echo-3", stream=True)).events) > 3


@pytest.mark.slow
@pytest.mark.parametrize("first", [b"", GET[:20], GET + b"\r\n"], ids=["silent", "half a header", "after a request"])
async def test_an_idle_connection_is_closed_in_time(postgres_dsn: str, first: bytes) -> None:
    async with open_service(postgres_dsn, {"limits": {"idle_connection_s": 0.3}}) as service:
        async with open_raw(service) as client:
            await client.send(first)
            begun_at = trio.current_time()
            with trio.fail_after(WAIT_S):
                await client.read_to_end()

        assert 0.25 < trio.current_time() - begun_at < 5


@pytest.mark.slow
async def test_a_body_that_does_not_arrive_in_time_is_408(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": QUICK}) as service, open_raw(service) as client:
        await client.send(ATTACKS["half a body"])
        with trio.fail_after(WAIT_S):
            answer = read_answer(await client.read_to_end())

    assert (answer.status_code, error_of(answer)["code"]) == (408, "request_timeout")


async def test_a_connection_closed_by_its_client_is_released_at_once(service: Service) -> None:
    await service.client.get("/healthz")
    base = _open_files()
    for index in range(20):
        async with open_raw(service) as client:
            if index % 2:
                await client.send(GET + b"\r\n")
                await client.read_until(b'{"status":"ok"}')

    with trio.fail_after(5):
        while _open_files() > base:
            await service.client.get("/healthz")


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_pipelined_requests_are_answered_in_order(service: Service) -> None:
    async with open_raw(service) as client:
        first, second = ask("parrot", key="first"), ask("parrot", key="second")
        await client.send(as_request(first) + as_request(second) + GET + b"Connection: close\r\n\r\n")
        with trio.fail_after(WAIT_S):
            received = await client.read_to_end()

    assert received.count(b"HTTP/1.1 200") == 3
    assert received.index(b"key:first") < received.index(b"key:second") < received.index(b'{"status":"ok"}')


async def test_a_body_that_nobody_reads_does_not_delay_the_refusal(service: Service) -> None:
    for path, status in (("/nope", 404), ("/v1/models", 405)):
        async with open_raw(service) as client:
            head, _, _ = as_request(b"x" * 1_000_000, path=path).partition(b"\r\n\r\n")
            await client.send(head + b"\r\n\r\n")
            with trio.fail_after(WAIT_S):
                answer = read_answer(await client.read_to_end())
        assert answer.status_code == status
        assert error_of(answer)["code"]
    await assert_serves(service)


@pytest.mark.slow
async def test_a_client_that_asks_first_is_told_to_go_on(service: Service) -> None:
    head, _, body = as_request(ask("echo-2"), "Expect: 100-continue", "Connection: close").partition(b"\r\n\r\n")
    async with open_raw(service) as client:
        await client.send(head + b"\r\n\r\n")
        await client.read_until(b"HTTP/1.1 100")
        await client.send(body)
        with trio.fail_after(WAIT_S):
            received = await client.read_to_end()

    assert read_answer(received).status_code == 200


async def _stall(service: Service, client: RawClient, key: str) -> None:
    """Ask for far more than the kernel holds, take its beginning, and read no more."""
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await client.send(as_request(ask("echo-60000", key=key, stream=True)))
    await client.read_until(DELTA)


@pytest.mark.slow
async def test_a_reader_that_stalls_is_cut_and_its_row_ends(postgres_dsn: str) -> None:
    limits = {"write_progress_s": 0.3}
    async with open_service(postgres_dsn, {"limits": limits}) as service, open_raw(service) as client:
        await _stall(service, client, "stalled")
        row = await wait_terminal(service, "stalled")
        await assert_serves(service)
        with trio.fail_after(WAIT_S):
            received = await client.read_to_end()

    assert row["state"] in {"canceled", "completed"}
    assert b"[DONE]" not in received


@pytest.mark.slow
async def test_readers_that_stall_do_not_hold_up_the_shutdown(postgres_dsn: str) -> None:
    async with AsyncExitStack() as stack:
        with trio.fail_after(WAIT_S):
            async with open_service(postgres_dsn, {"limits": {"write_progress_s": 0.5}}) as service:
                for index in range(3):
                    client = await stack.enter_async_context(open_raw(service))
                    await _stall(service, client, f"stalled-{index}")


async def test_a_head_that_comes_in_one_piece_is_bounded_like_any_other(service: Service) -> None:
    many = b"".join(b"x-%d: y\r\n" % number for number in range(3000))

    for head in (
        b"GET /healthz?" + b"x" * 20_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: a\r\n" + many + b"\r\n",
    ):
        async with open_raw(service) as client:
            await client.send(head)
            answer = read_answer(await client.read_until(b"}}"))
        assert (answer.status_code, error_of(answer)["code"]) == (431, "headers_too_large")
        assert "at most 16384 bytes" in error_of(answer)["message"]
    await assert_serves(service)


async def test_a_transfer_coding_that_is_not_spoken_is_refused_by_name(service: Service) -> None:
    for name in ("transfer coding unknown", "transfer codings stacked", "transfer coding twice"):
        async with open_raw(service) as client:
            answer = read_answer(await client.exchange(ATTACKS[name]))
        assert (answer.status_code, error_of(answer)["code"]) == (501, "unsupported_transfer_coding"), name
        assert "'Transfer-Encoding: chunked' alone" in error_of(answer)["message"]


@pytest.mark.slow
async def test_a_client_that_sends_on_and_breaks_off_leaves_no_task_behind(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": {"keep_alive_s": 0.05}}) as service:
        await service.client.get("/healthz")
        base = _connection_tasks()
        for index in range(10):
            async with open_raw(service) as client:
                asked = as_request(ask("pause-2-4", key=f"sent-on-{index}", stream=True))
                await client.send(asked + (GET + b"\r\n") * 5000)  # more than the server reads at once
                await client.read_until(DELTA)
                await client.reset()
            await wait_terminal(service, f"sent-on-{index}")

        with trio.fail_after(WAIT_S):
            while _connection_tasks() > base:
                await service.client.get("/healthz")


def _connection_tasks() -> int:
    """Tasks of this process that serve a connection of the server's."""

    def count(task: trio.lowlevel.Task) -> int:
        below = sum(count(child) for nursery in task.child_nurseries for child in nursery.child_tasks)
        return below + (task.name == "connection")

    root = trio.lowlevel.current_root_task()
    assert root is not None
    return count(root)
