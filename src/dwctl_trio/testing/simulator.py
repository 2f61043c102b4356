"""A scripted chat-completions upstream on real sockets; the model name chooses what it does.

It completes and embeds texts as well, by the same scripts.

Rule 1: a client that leaves is noticed at once, also while nothing is being sent to it.
Rule 2: every wait can be ended from outside (``resume``), every change can be waited for (``wait_until``).
Rule 3: it never checks credentials and knows nothing of the server under test.

``docs/reference/simulator.md`` has the table of model names.

Source: OpenAI API reference, "Create chat completion", "Create completion", "Create embeddings", "List models".
"""

import itertools
import re
import socket
import struct
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeAlias

import attrs
import msgspec
import trio

from dwctl_trio.testing.simulator_chat import (
    CREATED,
    ChatRequest,
    json_bytes,
    last_user_text,
    parse_chat_request,
    prompt_tokens,
    turn_number,
)
from dwctl_trio.testing.simulator_counters import Counters, Outcome, Statistics
from dwctl_trio.testing.simulator_errors import error_body
from dwctl_trio.testing.simulator_http import BadRequest, HttpRequest, RequestReader, response_head
from dwctl_trio.testing.simulator_reply import HangUp, Pause, Quiet, Reply, Sleep, Write, make_reply
from dwctl_trio.testing.simulator_scenes import HttpError, Scene
from dwctl_trio.testing.simulator_script import parse_script, scene_of_turn
from dwctl_trio.testing.simulator_text import parse_embeddings_request, parse_text_request

REQUESTS_KEPT = 1000
REQUESTS_KEPT_BYTES = 64 * 1024 * 1024
EXAMPLE_MODELS = ("echo-16", "slow-50-20", "pause-2-4", "tools-1", "reasoning-8-8", "error-500", "parrot", "inspect")
"""What ``GET /v1/models`` lists; every other name works as well."""

_PARSERS: Mapping[str, Callable[[bytes], ChatRequest]] = {
    "/v1/chat/completions": parse_chat_request,
    "/v1/completions": parse_text_request,
    "/v1/embeddings": parse_embeddings_request,
}
_BACKLOG = 4096
_KEY = re.compile(r"\bkey:([\w.-]+)")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

_End: TypeAlias = Literal["played", "left", "hung_up"]
"""How a reply ended: all of it sent, its client gone, or the connection given up as the script says."""


@attrs.frozen(kw_only=True)
class ReceivedRequest:
    """One request of a model, as it came."""

    headers: dict[str, str]
    """By lower-case name."""
    raw_body: bytes
    path: str
    model: str
    key: str | None
    """The word after ``key:`` in the last user message."""

    @property
    def body(self) -> Any:
        """The body as JSON value."""
        return msgspec.json.decode(self.raw_body)


@attrs.define(eq=False)
class _Exchange:
    """One request under way."""

    key: str | None
    resumed: trio.Semaphore = attrs.field(factory=lambda: trio.Semaphore(0))


class Simulator:
    """The upstream: what it saw, and the means to steer it. ``open_simulator`` makes one that serves."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.last_bearer: str | None = None
        """The bearer token of the newest request that had one."""
        self.origin = ""
        """Scheme, host and port; ``/control/…`` is below it."""
        self.observers: list[Callable[[ReceivedRequest], None]] = []
        """Called with each request as it arrives; ``requests`` forgets the oldest."""
        self._requests: deque[ReceivedRequest] = deque()
        self._requests_bytes = 0
        self._exchanges: set[_Exchange] = set()
        self._aborted_keys: set[str] = set()
        self._attempts: Counter[tuple[str, str | None]] = Counter()
        self._serials = itertools.count(1)

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as ``base_url``: it ends in ``/v1``."""
        return f"{self.origin}/v1"

    @property
    def requests(self) -> tuple[ReceivedRequest, ...]:
        """The newest requests, at most 1,000 and 64 MiB, oldest first."""
        return tuple(self._requests)

    def statistics(self) -> Statistics:
        """The counts now."""
        return self.counters.statistics()

    async def wait_until(self, predicate: Callable[[Statistics], bool]) -> Statistics:
        """Wait until the counts fulfil a predicate, and return them as they then were."""
        return await self.counters.wait_until(predicate)

    async def wait_idle(self) -> Statistics:
        """Wait until no request is under way: a client sees its answer's end a moment before it is counted."""
        return await self.counters.wait_until(lambda statistics: statistics.open == 0)

    async def wait_aborted(self, key: str) -> None:
        """Wait until the client of a request with this key has left it; at once if one already has."""
        await self.counters.wait_until(lambda _: key in self._aborted_keys)

    def resume(self, key: str) -> int:
        """Let the requests under way with this key go on past one pause, reached already or not.

        Returns:
            How many requests that were.
        """
        return self._resume([exchange for exchange in self._exchanges if exchange.key == key])

    def resume_all(self) -> int:
        """Let every request under way go on past one pause; returns how many that were."""
        return self._resume(list(self._exchanges))

    def reset(self) -> None:
        """Forget counts, requests, keys and failed attempts; what is under way goes on."""
        self._requests.clear()
        self._requests_bytes = 0
        self._aborted_keys.clear()
        self._attempts.clear()
        self.last_bearer = None
        self.counters.reset()

    async def run(self, host: str, port: int, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started with ``base_url`` once connections are accepted."""
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=_BACKLOG)
        bound_port = listeners[0].socket.getsockname()[1]
        self.origin = f"http://[{host}]:{bound_port}" if ":" in host else f"http://{host}:{bound_port}"
        task_status.started(self.base_url)
        await trio.serve_listeners(self._serve_connection, listeners)

    def _resume(self, exchanges: list[_Exchange]) -> int:
        for exchange in exchanges:
            exchange.resumed.release()
        return len(exchanges)

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        reader = RequestReader(stream)
        self.counters.add(connections=1)
        try:
            while await self._serve_request(stream, reader):
                pass
        except trio.BrokenResourceError:
            pass  # the client is gone, and counted where it was being answered
        finally:
            self.counters.add(connections=-1)

    async def _serve_request(self, stream: trio.SocketStream, reader: RequestReader) -> bool:
        """Answer one request; False when the connection is to be closed."""
        try:
            request = await reader.read_request()
        except BadRequest:
            await stream.send_all(_json_response(400, error_body(400)))
            return False
        if request is None:
            return False
        if request.path in _PARSERS and request.method == "POST":
            return await self._serve_chat(stream, reader, request)
        await stream.send_all(_json_response(*self._control(request)))
        return request.keep_alive

    async def _serve_chat(self, stream: trio.SocketStream, reader: RequestReader, request: HttpRequest) -> bool:
        try:
            chat = _PARSERS[request.path](request.body)
        except ValueError:
            await stream.send_all(_json_response(400, error_body(400)))
            return request.keep_alive
        key = _key_of(chat)
        self._remember(request, chat.model, key)
        scene = self._choose_scene(chat, key)
        reply = make_reply(scene, chat, body=request.body, serial=f"{next(self._serials):08x}")
        exchange = _Exchange(key)
        self._exchanges.add(exchange)
        self.counters.start_request(chat.model, prompt_tokens=prompt_tokens(chat))
        outcome: Outcome = "failed"  # if the simulator itself is stopped meanwhile
        try:
            end = await self._play_watched(stream, reader, reply, exchange)
            outcome = "aborted_by_client" if end == "left" else "failed" if reply.fails else "completed"
        finally:
            self._exchanges.discard(exchange)
            if outcome == "aborted_by_client" and key is not None:
                self._aborted_keys.add(key)
            self.counters.end_request(outcome, usage_tokens=reply.usage_tokens if outcome == "completed" else 0)
        return end == "played" and request.keep_alive

    def _choose_scene(self, chat: ChatRequest, key: str | None) -> Scene:
        scene = scene_of_turn(parse_script(chat.model), turn_number(chat))
        if scene.failures:
            self._attempts[chat.model, key] += 1
            if self._attempts[chat.model, key] <= scene.failures:
                return attrs.evolve(scene, answer=HttpError(status=500))
        return scene

    async def _play_watched(
        self, stream: trio.SocketStream, reader: RequestReader, reply: Reply, exchange: _Exchange
    ) -> _End:
        """Play a reply while watching for the client to leave."""
        if not reply.waits:  # a write alone finds out
            return await self._play(stream, reply, exchange)
        end: _End = "left"
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await reader.wait_client_left()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch, name="simulator: watch the client")
            end = await self._play(stream, reply, exchange)
            nursery.cancel_scope.cancel()
        return end

    async def _play(self, stream: trio.SocketStream, reply: Reply, exchange: _Exchange) -> _End:
        for act in reply.acts:
            match act:
                case Write(data=data, tokens=tokens):
                    try:
                        await stream.send_all(data)
                    except trio.BrokenResourceError:
                        return "left"
                    self.counters.add(tokens_sent=tokens)
                case Sleep(seconds=seconds):
                    await trio.sleep(seconds)
                case Pause():
                    await self._pause(exchange)
                case Quiet():
                    await trio.sleep_forever()
                case HangUp(reset=reset):
                    if reset:
                        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                    return "hung_up"
        return "played"

    async def _pause(self, exchange: _Exchange) -> None:
        self.counters.add(paused=1)
        try:
            await exchange.resumed.acquire()
        finally:
            self.counters.add(paused=-1)

    def _remember(self, request: HttpRequest, model: str, key: str | None) -> None:
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            self.last_bearer = credentials
        received = ReceivedRequest(
            headers=request.headers, raw_body=request.body, path=request.path, model=model, key=key
        )
        for observe in self.observers:
            observe(received)
        self._requests.append(received)
        self._requests_bytes += len(request.body)
        while len(self._requests) > REQUESTS_KEPT or self._requests_bytes > REQUESTS_KEPT_BYTES:
            self._requests_bytes -= len(self._requests.popleft().raw_body)

    def _control(self, request: HttpRequest) -> tuple[int, bytes]:
        """Status and body for everything that asks no model."""
        match request.method, request.path:
            case "GET", "/v1/models":
                models = [
                    {"id": model, "object": "model", "created": CREATED, "owned_by": "simulator"}
                    for model in EXAMPLE_MODELS
                ]
                return 200, json_bytes({"object": "list", "data": models})
            case "GET", "/control/counters":
                return 200, json_bytes(attrs.asdict(self.statistics()))
            case "POST", "/control/reset":
                self.reset()
                return 200, json_bytes({"reset": True})
            case "POST", "/control/resume-all":
                return 200, json_bytes({"resumed": self.resume_all()})
            case "POST", "/control/resume":
                return 200, json_bytes({"resumed": self.resume(request.query_value("key") or "")})
            case _:
                return 404, error_body(404)


@asynccontextmanager
async def open_simulator(*, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Simulator]:
    """A simulator that serves in this process until the block ends.

    Args:
        host: Address to listen on.
        port: TCP port; 0 takes a free one.
    """
    async with trio.open_nursery() as nursery:
        simulator = Simulator()
        await nursery.start(simulator.run, host, port, name="simulator")
        try:
            yield simulator
        finally:
            nursery.cancel_scope.cancel()


async def run_simulator(host: str, port: int, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve a simulator until cancelled; started with its ``base_url``. Prints nothing."""
    await Simulator().run(host, port, task_status=task_status)


def _key_of(chat: ChatRequest) -> str | None:
    found = _KEY.search(last_user_text(chat))
    return found[1] if found else None


def _json_response(status: int, body: bytes) -> bytes:
    return response_head(status, "application/json", body_bytes=len(body)) + body
