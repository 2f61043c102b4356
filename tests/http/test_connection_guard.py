"""Connections that break the rules: they end, alone, and the server goes on."""

import socket
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
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

ROUNDS = 3

_POST = b"POST /v1/responses HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
_GET = b"GET /healthz HTTP/1.1\r\nHost: t\r\n"
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"
_UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)

ATTACKS: dict[str, bytes] = {
    "chunk size is not hexadecimal": _CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n",
    "chunk size with a prefix": _CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "chunk size negative": _CHUNKED + b"-1\r\nhello\r\n0\r\n\r\n",
    "chunk size huge": _CHUNKED + b"f" * 40 + b"\r\nhello\r\n",
    "chunk longer than said": _CHUNKED + b"2\r\nhello\r\n0\r\n\r\n",
    "chunk line endless": _CHUNKED + b"0" * 100_000,
    "chunk without its end": _CHUNKED + b"5\r\nhelloXX0\r\n\r\n",
    "trailer is garbage": _CHUNKED + b"0\r\n\x00\x00\r\n\r\n",
    "two lengths": _POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "length and chunks": _POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "length negative": _POST + b"Content-Length: -1\r\n\r\n",
    "length is not a number": _POST + b"Content-Length: two\r\n\r\n{}",
    "length of forty digits": _POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n{}",
    "transfer coding unknown": _POST + b"Transfer-Encoding: gzip\r\n\r\n{}",
    "transfer codings stacked": _POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "header name with a blank": _GET + b"Bad Name: x\r\n\r\n",
    "header value with NUL": _GET + b"X: a\x00b\r\n\r\n",
    "header without a colon": _GET + b"nonsense\r\n\r\n",
    "header folded": _GET + b"X: a\r\n b\r\n\r\n",
    "header of 100,000 bytes": _GET + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
    "headers of 100,000 bytes": _GET + b"X: xxxxxx\r\n" * 10_000 + b"\r\n",
    "request line of 100,000 bytes": b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: t\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "version unknown": b"GET /healthz HTTP/9.9\r\nHost: t\r\n\r\n",
    "version 2.0": b"GET /healthz HTTP/2.0\r\nHost: t\r\n\r\n",
    "version 0.9": b"GET /healthz\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "h2c upgrade": _GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
    "websocket": b"GET /v1/responses HTTP/1.1\r\nHost: t\r\n" + _UPGRADE + b"\r\n",
    "websocket and a byte behind it": b"GET /v1/responses HTTP/1.1\r\nHost: t\r\n" + _UPGRADE + b"\r\n\x81",
    "websocket and a bad frame behind it": b"GET / HTTP/1.1\r\nHost: t\r\n" + _UPGRADE + b"\r\n\xff\xff\xff\xff",
    "websocket without a key": _GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "websocket of another version": _GET + _UPGRADE.replace(b"13", b"99") + b"\r\n",
    "CONNECT": b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\nHost: t\r\n\r\n",
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nHost: t\r\n\r\n",
    "absolute URL": b"GET http://example.com/healthz HTTP/1.1\r\nHost: t\r\n\r\n",
    "method unknown": b"BREW /v1/responses HTTP/1.1\r\nHost: t\r\n\r\n",
    "method with odd bytes": b"G\xffT / HTTP/1.1\r\nHost: t\r\n\r\n",
    "path with odd bytes": b"GET /\xff\xfe HTTP/1.1\r\nHost: t\r\n\r\n",
    "path with a bad escape": b"GET /v1/responses/%ff%00%zz HTTP/1.1\r\nHost: t\r\n\r\n",
    "path with slashes": b"GET //v1//responses//.. HTTP/1.1\r\nHost: t\r\n\r\n",
    "query with odd bytes": b"GET /v1/responses/x?stream=%ff&%00=\xff HTTP/1.1\r\nHost: t\r\n\r\n",
    "authorization with odd bytes": _GET + b"Authorization: Bearer \xff\xfe\r\n\r\n",
    "host with odd bytes": b"GET /healthz HTTP/1.1\r\nHost: \xff\xfe[::\r\n\r\n",
    "request id with odd bytes": _GET + b"X-Request-Id: \xff\xfe\r\n\r\n",
    "cookies with odd bytes": _GET + b"Cookie: a=\xff; ;;=;\r\n\r\n",
    "content type with odd bytes": _POST.replace(b"application/json", b"\xff;=;") + b"Content-Length: 2\r\n\r\n{}",
    "garbage": bytes(range(256)) * 16,
    "blanks": b"\r\n" * 1000,
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    "nothing": b"",
    "half a request line": b"POST /v1/resp",
    "half a header": _POST[:-5],
    "half a body": _POST + b'Content-Length: 100\r\n\r\n{"model"',
    "half a chunk": _CHUNKED + b"5\r\nhel",
}


QUICK = {"idle_connection_s": 0.3, "request_body_s": 1.0}


async def _attack(service: Service, name: str, attack: bytes, *, ending: str) -> None:
    """Send *attack* and wait until the server has closed; what it said, if anything, was no failure of its own."""
    async with open_raw(service) as client:
        if ending == "reset":
            with suppress(trio.BrokenResourceError):
                await client.send(attack)
            await client.reset()
            return
        if ending == "half close":
            with suppress(trio.BrokenResourceError):
                await client.send(attack)
                await client.stream.send_eof()
            await client.read_to_end()
        else:
            await client.exchange(attack)
    if client.received:
        answer = read_answer(client.received)
        assert answer.status_code < 500 or answer.status_code in {501, 505}, (name, client.received)
        if answer.status_code >= 400 and ending == "patient":
            assert set(error_of(answer)) == {"message", "type", "param", "code"}, name


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["patient", "half close", "reset"])
async def test_a_connection_that_breaks_the_rules_ends_alone(postgres_dsn: str, ending: str) -> None:
    async with open_service(postgres_dsn, {"limits": QUICK}) as service:
        for _ in range(ROUNDS):
            with trio.fail_after(2 * WAIT_S):
                async with trio.open_nursery() as nursery:
                    for name, attack in ATTACKS.items():
                        nursery.start_soon(partial(_attack, service, name, attack, ending=ending))
            await assert_serves(service)
        assert await service.pool.fetchval("select count(*) from requests where state <> 'completed'") == 0


async def test_http_2_is_refused_with_and_without_asking(service: Service) -> None:
    async with open_raw(service) as client:
        preface = read_answer(await client.exchange(ATTACKS["HTTP/2 preface"]))
    async with open_raw(service) as client:
        await client.send(ATTACKS["h2c upgrade"])
        upgrade = await client.read_until(b'{"status":"ok"}')

    assert preface.status_code == 505
    assert error_of(preface)["code"] == "invalid_request"
    assert upgrade.startswith(b"HTTP/1.1 200"), "an upgrade is ignored"


@pytest.mark.slow
async def test_a_websocket_is_not_opened(service: Service) -> None:
    async with open_raw(service) as client:
        await client.send(ATTACKS["websocket"])
        received = await client.read_until(b"}}")

    assert (read_answer(received).status_code, error_of(read_answer(received))["code"]) == (405, "method_not_allowed")


async def test_connection_close_is_obeyed(service: Service) -> None:
    for request in (
        _GET + b"Connection: close\r\n\r\n",
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
@pytest.mark.parametrize("first", [b"", _GET[:20], _GET + b"\r\n"], ids=["silent", "half a header", "after a request"])
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
                await client.send(_GET + b"\r\n")
                await client.read_until(b'{"status":"ok"}')

    with trio.fail_after(5):
        while _open_files() > base:
            await service.client.get("/healthz")


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_pipelined_requests_are_answered_in_order(service: Service) -> None:
    async with open_raw(service) as client:
        first, second = ask("parrot", key="first"), ask("parrot", key="second")
        await client.send(as_request(first) + as_request(second) + _GET + b"Connection: close\r\n\r\n")
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
