"""What breaks the rules of HTTP/1.1, needs no key, and must harm nobody."""

from contextlib import suppress

import trio
from tests.http.conftest import error_of, open_raw, read_answer

from dwctl_trio.testing.service import Service

ENDINGS = ("patient", "half close", "reset")
"""How an attacker goes on: it waits for the end, ends its own side, or breaks off."""

POST = b"POST /v1/responses HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: t\r\n"
MODELS = b"GET /v1/models HTTP/1.1\r\nHost: t\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)

ATTACKS: dict[str, bytes] = {
    "chunk size is not hexadecimal": CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n",
    "chunk size with a prefix": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "chunk size negative": CHUNKED + b"-1\r\nhello\r\n0\r\n\r\n",
    "chunk size huge": CHUNKED + b"f" * 40 + b"\r\nhello\r\n",
    "chunk longer than said": CHUNKED + b"2\r\nhello\r\n0\r\n\r\n",
    "chunk line endless": CHUNKED + b"0" * 100_000,
    "chunk without its end": CHUNKED + b"5\r\nhelloXX0\r\n\r\n",
    "trailer is garbage": CHUNKED + b"0\r\n\x00\x00\r\n\r\n",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "length and chunks": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "length negative": POST + b"Content-Length: -1\r\n\r\n",
    "length is not a number": POST + b"Content-Length: two\r\n\r\n{}",
    "length of forty digits": POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n{}",
    "transfer coding unknown": POST + b"Transfer-Encoding: gzip\r\n\r\n{}",
    "transfer codings stacked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "header name with a blank": GET + b"Bad Name: x\r\n\r\n",
    "header value with NUL": GET + b"X: a\x00b\r\n\r\n",
    "header without a colon": GET + b"nonsense\r\n\r\n",
    "headers of blanks": GET + b"X:  \r\n" * 200 + b"\0\r\n\r\n",
    "header of 60,000 blanks": GET + b"X:" + b" " * 60_000 + b"\0\r\n\r\n",
    "header folded": GET + b"X: a\r\n b\r\n\r\n",
    "header of 100,000 bytes": GET + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
    "headers of 100,000 bytes": GET + b"X: xxxxxx\r\n" * 10_000 + b"\r\n",
    "request line of 100,000 bytes": b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: t\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "version unknown": b"GET /healthz HTTP/9.9\r\nHost: t\r\n\r\n",
    "version 2.0": b"GET /healthz HTTP/2.0\r\nHost: t\r\n\r\n",
    "version 0.9": b"GET /healthz\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "h2c upgrade": GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
    "websocket": b"GET /v1/responses HTTP/1.1\r\nHost: t\r\n" + UPGRADE + b"\r\n",
    "websocket and a byte behind it": b"GET /v1/responses HTTP/1.1\r\nHost: t\r\n" + UPGRADE + b"\r\n\x81",
    "websocket and a bad frame behind it": b"GET / HTTP/1.1\r\nHost: t\r\n" + UPGRADE + b"\r\n\xff\xff\xff\xff",
    "websocket without a key": GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "websocket of another version": GET + UPGRADE.replace(b"13", b"99") + b"\r\n",
    "CONNECT": b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\nHost: t\r\n\r\n",
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nHost: t\r\n\r\n",
    "absolute URL": b"GET http://example.com/healthz HTTP/1.1\r\nHost: t\r\n\r\n",
    "absolute URL that is none": b"GET http://[ HTTP/1.1\r\nHost: t\r\n\r\n",
    "absolute URL without a path": b"GET http://example.com HTTP/1.1\r\nHost: t\r\n\r\n",
    "method unknown": b"BREW /v1/responses HTTP/1.1\r\nHost: t\r\n\r\n",
    "method with odd bytes": b"G\xffT / HTTP/1.1\r\nHost: t\r\n\r\n",
    "path with odd bytes": b"GET /\xff\xfe HTTP/1.1\r\nHost: t\r\n\r\n",
    "path with a bad escape": b"GET /v1/responses/%ff%00%zz HTTP/1.1\r\nHost: t\r\n\r\n",
    "path with slashes": b"GET //v1//responses//.. HTTP/1.1\r\nHost: t\r\n\r\n",
    "query with odd bytes": b"GET /v1/responses/x?stream=%ff&%00=\xff HTTP/1.1\r\nHost: t\r\n\r\n",
    "authorization with odd bytes": GET + b"Authorization: Bearer \xff\xfe\r\n\r\n",
    "host with odd bytes": b"GET /healthz HTTP/1.1\r\nHost: \xff\xfe[::\r\n\r\n",
    "request id with odd bytes": GET + b"X-Request-Id: \xff\xfe\r\n\r\n",
    "cookies with odd bytes": GET + b"Cookie: a=\xff; ;;=;\r\n\r\n",
    "content type with odd bytes": POST.replace(b"application/json", b"\xff;=;") + b"Content-Length: 2\r\n\r\n{}",
    "garbage": bytes(range(256)) * 16,
    "blanks": b"\r\n" * 1000,
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    "nothing": b"",
    "half a request line": b"POST /v1/resp",
    "half a header": POST[:-5],
    "half a body": POST + b'Content-Length: 100\r\n\r\n{"model"',
    "half a chunk": CHUNKED + b"5\r\nhel",
    "chunk extension endless": CHUNKED + b"5;" + b"x" * 100_000,
    "chunk extensions by the thousand": CHUNKED + b"1;a=b\r\nx\r\n" * 5000 + b"0\r\n\r\n",
    "chunk size with an underscore": CHUNKED + b"1_0\r\nhello\r\n0\r\n\r\n",
    "trailers of 100,000 bytes": CHUNKED + b"0\r\n" + b"X: y\r\n" * 15_000 + b"\r\n",
    "transfer coding twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "transfer coding disguised": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"2\r\n{}\r\n0\r\n\r\n",
    "length with a sign": POST + b"Content-Length: +2\r\n\r\n{}",
    "length as a list": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "length shorter than the body": POST + b"Content-Length: 2\r\n\r\n" + b"x" * 100_000,
    "no length": POST + b"\r\n{}",
    "body where none belongs": GET + b"Content-Length: 60\r\n\r\n" + GET + b"\r\n",
    "line ends without CR": b"GET /healthz HTTP/1.1\nHost: t\nX: a\n\n",
    "line ends without LF": b"GET /healthz HTTP/1.1\rHost: t\r\r",
    "header without a name": GET + b": x\r\n\r\n",
    "expectation unknown": GET + b"Expect: miracles\r\n\r\n",
    "expectation without a body": POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    "upgrade with a body": POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}",
    "HTTP/2 settings by the thousand": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0" * 5000,
    "a thousand requests at once": (GET + b"\r\n") * 1000,
    "a request and garbage behind it": GET + b"\r\n" + bytes(range(256)) * 64,
    "multipart body": POST.replace(b"application/json", b"multipart/form-data; boundary=x")
    + b"Content-Length: 40\r\n\r\n--x\r\nContent-Disposition: form-data;\r\n\r\n",
    "compressed body": POST + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
    "brackets by the thousand": POST + b"Content-Length: 50000\r\n\r\n" + b"[" * 50_000,
    "key of 15,000 bytes": MODELS + b"Authorization: Bearer " + b"x" * 15_000 + b"\r\n\r\n",
    "key with a quote": MODELS + b"Authorization: Bearer ' or 1=1 --\r\n\r\n",
    "host with a path": b"GET /v1/models HTTP/1.1\r\nHost: localhost/healthz#@x\r\n\r\n",
    "path that climbs": b"GET /healthz/../v1/models HTTP/1.1\r\nHost: t\r\n\r\n",
    "query of 5,000 parameters": b"GET /v1/models?" + b"a&" * 5000 + b" HTTP/1.1\r\nHost: t\r\n\r\n",
}


async def attack(service: Service, name: str, *, ending: str) -> None:
    """Send attack *name* and wait until the server has closed; what it said, if anything, was no failure of its own."""
    async with open_raw(service) as client:
        if ending == "reset":
            with suppress(trio.BrokenResourceError):
                await client.send(ATTACKS[name])
            await client.reset()
            return
        if ending == "half close":
            with suppress(trio.BrokenResourceError):
                await client.send(ATTACKS[name])
                await client.stream.send_eof()
            await client.read_to_end()
        else:
            await client.exchange(ATTACKS[name])
    if client.received:
        answer = read_answer(client.received)
        assert answer.status_code < 500 or answer.status_code in {501, 505}, (name, client.received)
        if answer.status_code >= 400 and ending == "patient":
            assert answer.content.startswith(b"{"), (name, client.received[:400], client.received[-400:])
            assert set(error_of(answer)) == {"message", "type", "param", "code"}, name
