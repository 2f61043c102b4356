"""A small Quart application, served both ways: whatever Quart offers works, and looks the same from outside."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from functools import partial

import pytest
import trio
from quart import Response, abort, g, request
from quart_trio import QuartTrio
from tests.http.conftest import WAIT_S
from werkzeug.wrappers import Response as WerkzeugResponse

from dwctl_trio.domain.errors import Overloaded
from dwctl_trio.domain.limits import DEFAULT_LIMITS
from dwctl_trio.http.connection import RequestConnection
from dwctl_trio.http.door import Door
from dwctl_trio.http.server import WAYS, open_listener, run_server

_bound: ContextVar[str] = ContextVar("bound", default="nothing")


def build_application() -> QuartTrio:
    """Views that answer in every way that Quart knows."""
    app = QuartTrio(__name__, static_folder=None)
    app.asgi_http_class = RequestConnection
    app.config["RESPONSE_TIMEOUT"] = None

    @app.before_request
    async def begin() -> None:
        g.begun = "yes"

    @app.after_request
    async def end(answer: Response) -> Response:
        answer.headers["X-Begun"] = g.begun
        return answer

    @app.errorhandler(418)
    async def tell(_: Exception) -> tuple[str, int]:
        return "a teapot", 418

    @app.route("/text")
    async def text() -> str:
        return "grüße"

    @app.route("/dict")
    async def dict_() -> dict[str, object]:
        return {"query": request.args.get("a"), "host": request.host, "version": request.http_version}

    @app.route("/echo", methods=["POST"])
    async def echo() -> bytes:
        return bytes(await request.get_data())

    @app.route("/teapot")
    async def teapot() -> None:
        abort(418)

    @app.route("/empty")
    async def empty() -> tuple[str, int, dict[str, str]]:
        return "", 204, {"X-One": "1"}

    @app.route("/not-modified")
    async def not_modified() -> tuple[str, int]:
        return "", 304

    @app.route("/werkzeug")
    async def werkzeug() -> WerkzeugResponse:
        return WerkzeugResponse("from below", 201)

    @app.route("/pieces")
    async def pieces() -> AsyncIterator[bytes]:
        async def tell() -> AsyncIterator[bytes]:
            for number in range(3):
                yield b"piece %d;" % number
            yield b""

        return tell()

    @app.route("/told-length")
    async def told_length() -> Response:
        async def tell() -> AsyncIterator[bytes]:
            yield b"two"
            yield b" halves"

        return Response(tell(), headers={"content-length": "10"})

    @app.route("/breaks")
    async def breaks() -> AsyncIterator[bytes]:
        async def tell() -> AsyncIterator[bytes]:
            yield b"before the fault;"
            raise RuntimeError("a fault in a body")

        return tell()

    @app.route("/too-long")
    async def too_long() -> Response:
        async def tell() -> AsyncIterator[bytes]:
            yield b"before the end of time;"
            await trio.sleep_forever()

        answer = Response(tell())
        answer.timeout = 0.05
        return answer

    @app.route("/closes")
    async def closes() -> tuple[str, int, dict[str, str]]:
        return "bye", 200, {"Connection": "close"}

    @app.route("/bind")
    async def bind() -> str:
        was = _bound.get()
        _bound.set("something")
        return was

    return app


@asynccontextmanager
async def open_port(
    way: str, app: QuartTrio | None = None, overload: Overloaded | None = None
) -> AsyncIterator[tuple[int, trio.Event]]:
    """A server of the small application: its port, and what has it stop, which it does at the end of the block."""
    limits = DEFAULT_LIMITS
    door = Door(find_overload=lambda: overload, note_request=lambda *_: None, enter=lambda: lambda: None)
    listener, stop = open_listener("127.0.0.1", 0, limits), trio.Event()
    connections = WAYS[way](app or build_application(), limits, door)
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(run_server, connections, listener, limits, door=door, wait_stop=stop.wait))
            yield listener.getsockname()[1], stop
            stop.set()


async def ask_server(way: str, *requests: bytes) -> list[bytes]:
    """What a server of the small application says to each of *requests*, on connections of their own, to their end."""
    answers = []
    async with open_port(way) as (port, _):
        for data in requests:
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(data)
                answers.append(b"".join([piece async for piece in stream]))
    return answers


def asks(target: str, method: str = "GET", *, version: str = "1.1", closes: bool = True, body: bytes = b"") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "Host: example.com", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *(["Connection: close"] if closes else []), "", ""]).encode() + body


def read(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers but for the date, and all that follows."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert "date" in headers
    return int(first.split()[1]), {name: value for name, value in headers.items() if name != "date"}, body


ORDINARY = {
    "text": asks("/text"),
    "dict": asks("/dict?a=b%20c"),
    "HTTP/1.0": asks("/dict", version="1.0"),
    "HTTP/1.0 in pieces": asks("/pieces", version="1.0"),
    "echo": asks("/echo", "POST", body=b"x" * 100_000),
    "handled error": asks("/teapot"),
    "no such URL": asks("/nowhere"),
    "wrong method": asks("/text", "POST"),
    "options": asks("/text", "OPTIONS"),
    "head": asks("/text", "HEAD"),
    "head of pieces": asks("/pieces", "HEAD"),
    "empty": asks("/empty"),
    "not modified": asks("/not-modified"),
    "from Werkzeug": asks("/werkzeug"),
    "in pieces": asks("/pieces"),
    "in pieces of a known length": asks("/told-length"),
    "the view closes": asks("/closes", closes=False),
    "absolute URL": asks("http://example.com/text"),
    "absolute URL without a path": asks("http://example.com"),
    "absolute URL that is none": asks("http://["),
}


async def test_both_ways_answer_alike() -> None:
    plain, direct = [await ask_server(way, *ORDINARY.values()) for way in ("hypercorn", "direct")]

    for name, one, other in zip(ORDINARY, plain, direct, strict=True):
        assert read(one) == read(other), name
        assert read(other)[0] < 500, name


@pytest.mark.parametrize("way", sorted(WAYS))
async def test_an_answer_that_breaks_off_is_not_ended(way: str) -> None:
    breaks, too_long = await ask_server(way, asks("/breaks", closes=False), asks("/too-long", closes=False))

    assert breaks.endswith(b"before the fault;\r\n")
    assert too_long.endswith(b"before the end of time;\r\n")


@pytest.mark.parametrize("way", sorted(WAYS))
async def test_what_a_request_binds_ends_with_it(way: str) -> None:
    (answers,) = await ask_server(way, asks("/bind", closes=False) * 2 + asks("/bind"))

    assert answers.count(b"nothing") == 3


async def test_a_connection_is_served_a_thousand_times_and_then_closed() -> None:
    (answers,) = await ask_server("direct", asks("/closed", closes=False) * 1100)

    assert answers.count(b"HTTP/1.1 404") == 1000
    assert answers.count(b"connection: close") == 1


@pytest.mark.parametrize("way", sorted(WAYS))
async def test_a_server_that_stops_ends_the_connections_that_are_idle(way: str) -> None:
    async with open_port(way) as (port, stop), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(asks("/text", closes=False))
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        stop.set()
        with trio.fail_after(DEFAULT_LIMITS.idle_connection_s / 2):
            async for _ in stream:
                pass


MALFORMED = {
    "unknown coding": (b"POST /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    "length with a sign": (b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: +1\r\n\r\nx", 400),
    "head too large": (b"GET /text HTTP/1.1\r\nHost: t\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "behind another": (asks("/text", closes=False) + b"\r\n", 400),
}


@pytest.mark.parametrize("way", sorted(WAYS))
async def test_what_is_no_request_is_answered_once(way: str) -> None:
    answers = await ask_server(way, *(data for data, _ in MALFORMED.values()))

    for (name, (_, status)), answer in zip(MALFORMED.items(), answers, strict=True):
        statuses = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
        assert [known for known in statuses if known != 200] == [status], name


@pytest.mark.parametrize("way", sorted(WAYS))
async def test_what_comes_behind_the_last_answer_begins_nothing(way: str) -> None:
    """It comes in the turn in which the request ends; who is first then, chance decides, so it is tried often."""
    app, served = build_application(), 0

    @app.route("/last")
    async def last() -> str:
        nonlocal served
        served += 1
        connection.send(asks("/text"))
        return "the last answer"

    async with open_port(way, app) as (port, _):
        for _ in range(20):
            connection = socket.create_connection(("127.0.0.1", port))
            async with trio.SocketStream(trio.socket.from_stdlib_socket(connection)) as stream:
                await stream.send_all(asks("/last"))
                with suppress(trio.BrokenResourceError):  # what was sent last may be left unread
                    async for _ in stream:
                        pass

    assert served == 20


@pytest.mark.parametrize("way", sorted(WAYS))
async def test_a_client_that_asked_first_and_is_refused_may_leave_its_body_out(way: str) -> None:
    """Its next request must not be taken for that body, so there is none on this connection."""
    asking = asks("/v1/responses", "POST", closes=False).replace(b"Length: 0", b"Length: 5\r\nExpect: 100-continue")

    async with (
        open_port(way, overload=Overloaded("Too much.", retry_after_s=1)) as (port, _),
        await trio.open_tcp_stream("127.0.0.1", port) as stream,
    ):
        await stream.send_all(asking)
        answer = b"".join([piece async for piece in stream])

    assert read(answer)[0] == 503
    assert read(answer)[1]["connection"] == "close"


@pytest.mark.parametrize("way", sorted(WAYS))
async def test_a_server_that_stops_waits_for_no_body_that_it_has_refused(way: str) -> None:
    half = asks("/v1/responses", "POST", closes=False, body=b"half a body")[:-5]
    async with (
        open_port(way, overload=Overloaded("Too much.", retry_after_s=1)) as (port, stop),
        await trio.open_tcp_stream("127.0.0.1", port) as stream,
    ):
        await stream.send_all(half)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 503")
        stop.set()
        async for _ in stream:
            pass
