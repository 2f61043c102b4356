"""Connections that break the rules: they end, alone, and the server goes on."""

import socket
from typing import Any

import pytest
import trio

from dwctl_trio.testing.service import Service, open_service
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
    wait_terminal,
)

ROUNDS = 3

_POST = b"POST /v1/responses HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
_GET = b"GET /healthz HTTP/1.1\r\nHost: t\r\n"
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"
_UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"

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
    "content type with odd bytes": b"POST /v1/responses HTTP/1.1\r\nHost: t\r\nContent-Type: \xff;=;\r\nContent-Length: 2\r\n\r\n{}",
    "garbage": bytes(range(256)) * 16,
    "blanks": b"\r\n" * 1000,
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    "nothing": b"",
    "half a request line": b"POST /v1/resp",
    "half a header": _POST[:-5],
    "half a body": _POST + b'Content-Length: 100\r\n\r\n{"model"',
    "half a chunk": _CHUNKED + b"5\r\nhel",
}


async def test_explore(service: Service) -> None:
    for name, attack in ATTACKS.items():
        async with open_raw(service) as client:
            with trio.move_on_after(1) as scope:
                try:
                    await client.send(attack)
                    await client.stream.send_eof()
                    await client.read_to_end()
                except Exception as e: print(repr(e))
            print(f"{name:40} {scope.cancelled_caught} {client.received[:20]} {client.received[-300:] if b'HTTP/1.1 5' in client.received else ''}")
    await assert_serves(service)
