"""What the tests of the running server share: a client that can misbehave, and looks at rows."""

import json
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import attrs
import httpx
import pytest
import trio

from dwctl_trio.domain import ids
from dwctl_trio.domain.event_grammar import check_stream
from dwctl_trio.protocol.request_body import parse_request
from dwctl_trio.testing.service import Service, open_service
from dwctl_trio.testing.wire import ReadStream, read_stream

WAIT_S = 10.0
"""Bound of the tests' waits: far more than any needs on a busy machine, far less than a hung run."""

DELTA = b"event: response.output_text.delta\n"
_RESET = struct.pack("ii", 1, 0)


@pytest.fixture
async def service(postgres_dsn: str) -> AsyncIterator[Service]:
    """The service with its default limits."""
    async with open_service(postgres_dsn) as service:
        yield service


def ask(model: str, **fields: Any) -> dict[str, Any]:
    """A request body; ``key`` names it for the simulator and for ``find_row``."""
    key = fields.pop("key", "none")
    return {"model": model, "input": f"hello key:{key}", "user": key, **fields}


def as_request(body: Mapping[str, Any] | bytes, *headers: str, path: str = "/v1/responses") -> bytes:
    """A POST as it goes over the wire."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: test",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content


@attrs.define(eq=False)
class RawClient:
    """A client below HTTP; everything that it has received stays in ``received``."""

    stream: trio.SocketStream
    received: bytes = b""

    async def send(self, data: bytes) -> None:
        """Send *data* as it is."""
        await self.stream.send_all(data)

    async def read_until(self, marker: bytes, count: int = 1) -> bytes:
        """Everything received, once *marker* has come *count* times."""
        while self.received.count(marker) < count:
            data = await self.stream.receive_some(65536)
            assert data, f"the connection ended before {marker!r} had come {count} times: {self.received[-500:]!r}"
            self.received += data
        return self.received

    async def read_to_end(self) -> bytes:
        """Everything received, once the server has closed the connection; a reset counts as the end."""
        try:
            async for data in self.stream:
                self.received += data
        except trio.BrokenResourceError:
            pass
        return self.received

    async def exchange(self, data: bytes) -> bytes:
        """Everything received until the server closed, while *data* was sent as far as it was taken."""
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with suppress(trio.BrokenResourceError):
                    await self.send(data)

            nursery.start_soon(send)
            await self.read_to_end()
            nursery.cancel_scope.cancel()
        return self.received

    async def hang_up(self) -> None:
        """Leave in good order, with a FIN."""
        await self.stream.aclose()

    async def reset(self) -> None:
        """Leave with a RST."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        await self.stream.aclose()


@asynccontextmanager
async def open_raw(service: Service, *, receive_bytes: int | None = None) -> AsyncIterator[RawClient]:
    """A connection to the server for the block; of what it does not read the kernel keeps about *receive_bytes*."""
    parts = urlsplit(service.url)
    assert parts.hostname is not None
    assert parts.port is not None
    connection = trio.socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    await connection.connect((parts.hostname, parts.port))
    async with trio.SocketStream(connection) as stream:
        yield RawClient(stream)


async def find_row(service: Service, key: str) -> Any:
    """The row of the request with this key, with its step and its usage record; None while there is none."""
    return await service.pool.fetchrow(
        "select r.id, r.state, r.response_status, r.response::text as response, r.lease_expires_at, r.error,"
        " s.state as step_state, u.error_code, u.output_tokens, u.http_status"
        " from requests r join response_steps s on s.response_id = r.id"
        " left join usage_records u on u.step_id = s.id where r.request->>'user' = $1",
        key,
    )


async def wait_terminal(service: Service, key: str) -> Any:
    """The row of the request with this key, once it is terminal; asked for again and again, within ``WAIT_S``."""
    with trio.fail_after(WAIT_S):
        while True:
            row = await find_row(service, key)
            if row is not None and row["state"] not in {"pending", "claimed", "processing"}:
                return row


async def read_back(service: Service, response_id: Any) -> Any:
    """What GET says of a response."""
    answer = await service.client.get(f"/v1/responses/{ids.response_id_text(response_id)}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def output_text(response: Mapping[str, Any]) -> str:
    """All texts of a response, joined."""
    return "".join(part["text"] for item in response["output"] for part in item.get("content", ()))


def read_valid_stream(body: bytes, asked: Mapping[str, Any]) -> ReadStream:
    """The events of a whole stream, after all the rules of the grammar have been checked."""
    stream = read_stream(body, parse_request(dict(asked)))
    assert stream.is_done, body[-300:]
    assert check_stream(stream.events) is None, check_stream(stream.events)
    return stream


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer, which has OpenAI's four keys and nothing else."""
    body = answer.json()
    assert list(body) == ["error"], body
    assert set(body["error"]) == {"message", "type", "param", "code"}, body
    assert isinstance(body["error"]["message"], str)
    assert body["error"]["message"]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    return dict(body["error"])


def read_answer(received: bytes) -> httpx.Response:
    """The last answer in what a raw client received, whose body is not chunked."""
    _, _, last = received.rpartition(b"HTTP/1.1 ")
    head, _, body = last.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return httpx.Response(int(status.split()[0]), headers=headers, content=body)


async def assert_serves(service: Service) -> None:
    """The server answers a new request as if nothing had happened."""
    with trio.fail_after(WAIT_S):
        answer = await service.client.post("/v1/responses", json=ask("echo-2"))
    assert (answer.status_code, output_text(answer.json())) == (200, "word0 word1 ")
