"""Several processes on one PostgreSQL, each of which can be killed and started again, and clients that outlast them.

A follower is somebody who wants all events of one response: its connection may break at any moment, and it comes back
to any API process with the number of the last event that it has. What it is told must go on there, without a gap and
without a repeat.
"""

import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import msgspec
import trio
from tests.acceptance.conftest import WAIT_S, Server

POLL_S = 0.02
"""Between two looks at what cannot be waited for."""

TERMINAL = {"response.completed", "response.incomplete", "response.failed"}
LATER = {429, 500, 503}
"""Statuses of a process that cannot reach its database, or stops: the client asks again."""


@attrs.define(eq=False)
class Member:
    """A place in the fleet, and the processes that have had it."""

    name: str
    command: str
    """``serve`` or ``worker``."""
    config: Path
    lives: list[Server] = attrs.Factory(list)
    """The newest is the last."""
    is_up: bool = False

    @property
    def server(self) -> Server:
        """The process of the moment."""
        return self.lives[-1]


@attrs.define(eq=False)
class Fleet:
    """The processes."""

    members: Sequence[Member]
    _nursery: trio.Nursery
    _started: trio.lowlevel.ParkingLot = attrs.Factory(trio.lowlevel.ParkingLot)

    @property
    def apis(self) -> list[Member]:
        """Those that accept connections now, as far as is known."""
        return [member for member in self.members if member.command == "serve" and member.is_up]

    def __getitem__(self, name: str) -> Member:
        return next(member for member in self.members if member.name == name)

    async def start(self, member: Member) -> None:
        """Start the process of *member*, and wait until it is up."""
        command = [sys.executable, "-m", "dwctl_trio", member.command, "--config", str(member.config)]
        server = Server(await trio.lowlevel.open_process(command, stderr=subprocess.PIPE))
        member.lives.append(server)
        with trio.fail_after(WAIT_S):
            await self._nursery.start(server.read_log)
        member.is_up = True
        self._started.unpark_all()

    async def kill(self, member: Member) -> None:
        """End the process of *member* by SIGKILL."""
        member.is_up = False
        await member.server.end_by(signal.SIGKILL)

    async def pick(self, chance: random.Random, *commands: str, least: int = 1) -> Member:
        """A process that is up, one of *commands* if there are any, as soon as there are at *least* so many."""
        while True:
            up = [member for member in self.members if member.is_up and (not commands or member.command in commands)]
            if len(up) >= least:
                return chance.choice(up)
            await self._started.park()

    def logged(self, event: str) -> int:
        """How often the processes have logged *event*."""
        return sum(server.events.count(event) for member in self.members for server in member.lives)


@asynccontextmanager
async def open_fleet(*members: Member) -> AsyncIterator[Fleet]:
    """The processes of *members*, all of them up; killed at the end."""
    try:
        async with trio.open_nursery() as nursery:
            fleet = Fleet(members, nursery)
            async with trio.open_nursery() as starting:
                for member in members:
                    starting.start_soon(fleet.start, member)
            yield fleet
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            for server in [server for member in members for server in member.lives]:
                if server.process.returncode is None:
                    server.process.kill()
                    await server.process.wait()


def open_client(**options: Any) -> httpx.AsyncClient:
    """A client of any process, without a bound on its connections."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    return httpx.AsyncClient(timeout=2 * WAIT_S, limits=limits, trust_env=False, **options)


@attrs.frozen
class Frame:
    """One event, as it came."""

    number: int
    text: bytes
    at: float
    """By Trio's clock."""

    @property
    def data(self) -> Mapping[str, Any]:
        """What it says."""
        (line,) = [line for line in self.text.split(b"\n") if line.startswith(b"data: ")]
        found: Mapping[str, Any] = msgspec.json.decode(line[6:])
        return found


class Gap(AssertionError):
    """A follower was told an event that is not the next one."""


@attrs.define(eq=False)
class Follower:
    """Somebody who wants the events of one response behind *after*."""

    response_id: str = ""
    """Empty until it is told."""
    after: int = -1
    frames: list[Frame] = attrs.Factory(list)
    connections: int = 0
    """That carried an event."""
    complaints: list[bytes] = attrs.Factory(list)
    """What it was told that is no event of the response."""
    is_ended: bool = False
    """Whether it has been told the last event."""
    _pending: bytes = b""
    _news: trio.lowlevel.ParkingLot = attrs.Factory(trio.lowlevel.ParkingLot)

    @property
    def last(self) -> int:
        """Number of the last event that it has."""
        return self.frames[-1].number if self.frames else self.after

    @property
    def told(self) -> bytes:
        """All that it was told, in one piece."""
        return b"".join(frame.text for frame in self.frames)

    async def wait_for(self, number: int) -> None:
        """Return when it has the event *number*."""
        while self.last < number:
            await self._news.park()

    def feed(self, data: bytes) -> None:
        """Take what came over a connection.

        Raises:
            Gap: It is not what comes next.
        """
        *blocks, self._pending = (self._pending + data).split(b"\n\n")
        for block in blocks:
            lines = [line for line in block.split(b"\n") if not line.startswith(b":")]
            if lines == [b"data: [DONE]"]:
                continue
            fields = dict(line.split(b": ", 1) for line in lines)
            if b"id" not in fields:  # the process cannot go on, and says why; the response is not over
                self.complaints.append(b"\n".join(lines))
                continue
            number = int(fields[b"id"])
            if number != self.last + 1 or self.is_ended:
                raise Gap(f"{self.response_id}: event {number} follows event {self.last}, ended: {self.is_ended}")
            frame = Frame(number, b"\n".join(lines) + b"\n\n", trio.current_time())
            self.frames.append(frame)
            self.is_ended = fields[b"event"].decode() in TERMINAL
            if not self.response_id and number == 0:
                self.response_id = frame.data["response"]["id"]
        self._news.unpark_all()

    async def read(self, answer: httpx.Response, *, frames_max: int | None = None) -> None:
        """Take the stream of *answer* to its end, or until *frames_max* more events have come, or it breaks."""
        self._pending, before = b"", len(self.frames)
        try:
            with trio.CancelScope() as leaving:  # a break would leave httpx's generators to the collector
                async for chunk in answer.aiter_raw():
                    self.feed(chunk)
                    if frames_max is not None and len(self.frames) - before >= frames_max:
                        leaving.cancel()
        except httpx.TransportError:
            pass
        finally:
            self.connections += len(self.frames) > before

    async def connect(self, http: httpx.AsyncClient, url: str, *, frames_max: int | None = None) -> int | None:
        """Follow over one connection to the process at *url*; the status, None if there was none."""
        parameters: dict[str, str | int] = {"stream": "true"}
        if self.last >= 0:
            parameters["starting_after"] = self.last
        try:
            async with http.stream("GET", f"{url}/v1/responses/{self.response_id}", params=parameters) as answer:
                if answer.status_code == 200:
                    await self.read(answer, frames_max=frames_max)
                else:
                    assert answer.status_code in LATER, (answer.status_code, await answer.aread())
                return answer.status_code
        except httpx.TransportError:
            return None

    async def run(self, http: httpx.AsyncClient, fleet: Fleet, chance: random.Random, *, hops: float = 0.0) -> None:
        """Follow to the end, through whatever processes there are; leave a connection early with probability *hops*."""
        while not self.is_ended:
            url = (await fleet.pick(chance, "serve")).server.url
            status = await self.connect(http, url, frames_max=chance.randint(1, 30) if chance.random() < hops else None)
            if status != 200:
                await trio.sleep(POLL_S)


async def replay(http: httpx.AsyncClient, url: str, response_id: str, *, after: int = -1) -> Follower:
    """All events behind *after* of a response that has ended, from the process at *url*."""
    follower = Follower(response_id, after)
    with trio.fail_after(WAIT_S):
        assert await follower.connect(http, url) == 200
    return follower


def percentiles_ms(seconds: Sequence[float]) -> str:
    """p50, p99 and the most, in milliseconds, to be printed."""
    ordered = sorted(seconds)
    at = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000 for share in (0.5, 0.99, 1.0)]
    return "p50 {:.0f} ms, p99 {:.0f} ms, max {:.0f} ms".format(*at)
