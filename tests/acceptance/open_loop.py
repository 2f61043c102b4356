"""An open-loop load generator, run as a process of its own: requests begin when they are due, answered or not.

    python open_loop.py URL MODE MODEL RATE SECONDS [RATE SECONDS …]

Each pair is a phase, begun when the one before is over. MODE is ``new`` for a connection a request, or ``kept`` for
connections that are used again. The last line that it prints is JSON: its own processor time, and for each request
``[begun_at, lag_s, seconds, status, retry_after, retry_after_ms]`` by a clock that all processes share. *lag_s* is how
late the generator itself was; status 0 is no answer.

Plain sockets and one selector, so that thousands of requests a second leave the processor to the server.
"""

import heapq
import json
import random
import re
import selectors
import socket
import sys
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

DRAIN_S = 20.0
"""After the last request for the last answers; what has none by then counts as unanswered."""
_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: (\S+)\r", re.IGNORECASE)
_RETRY_AFTER_MS = re.compile(rb"\r\nretry-after-ms: (\S+)\r", re.IGNORECASE)


class Exchange:
    """One request on its connection, until its answer is whole."""

    def __init__(self, connection: socket.socket, due_at: float) -> None:
        self.connection = connection
        self.begun_at = time.monotonic()
        self.lag_s = self.begun_at - due_at
        self.received = b""
        self.is_whole = False

    def feed(self, data: bytes) -> bool:
        """Take *data*; whether that ends the exchange."""
        self.received += data
        head, found, body = self.received.partition(_HEAD_END)
        length = _LENGTH.search(head)
        if found and length is not None:
            self.is_whole = len(body) >= int(length[1])
        elif found:
            self.is_whole = body.endswith(b"0\r\n\r\n")
        return self.is_whole or data == b""

    def result(self) -> list[object]:
        status = int(self.received[9:12]) if self.is_whole else 0
        seconds = time.monotonic() - self.begun_at
        retry = [found[1].decode() if found else None for found in self._retries()]
        return [self.begun_at, self.lag_s, seconds, status, *retry]

    def _retries(self) -> Iterator[re.Match[bytes] | None]:
        head = self.received.partition(_HEAD_END)[0] + b"\r"
        yield _RETRY_AFTER.search(head)
        yield _RETRY_AFTER_MS.search(head)

    @property
    def may_be_kept(self) -> bool:
        return self.is_whole and b"\r\nconnection: close" not in self.received.partition(_HEAD_END)[0].lower()


class Generator:
    def __init__(self, url: str, model: str, *, keeps: bool) -> None:
        parts = urlsplit(url)
        self.address = (parts.hostname, parts.port)
        body = json.dumps({"model": model, "input": "hello", "stream": True}).encode()
        head = f"POST /v1/responses HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        self.request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self.keeps = keeps
        self.idle: list[socket.socket] = []
        self.selector = selectors.DefaultSelector()
        self.results: list[list[object]] = []
        self.open = 0

    def begin(self, due_at: float) -> None:
        self.open += 1
        if self.idle:
            exchange = Exchange(self.idle.pop(), due_at)
            try:
                exchange.connection.send(self.request)
            except OSError:  # the server has closed it meanwhile, as a server may
                exchange.connection.close()
            else:
                self.selector.register(exchange.connection, selectors.EVENT_READ, exchange)
                return
        connection = socket.socket()
        connection.setblocking(False)
        exchange = Exchange(connection, due_at)
        connection.connect_ex(self.address)
        self.selector.register(connection, selectors.EVENT_WRITE, exchange)

    def step(self, patience_s: float) -> None:
        """Wait for something to happen, for so long, and do what there is to do."""
        for key, events in self.selector.select(patience_s):
            exchange = key.data
            try:
                if events & selectors.EVENT_WRITE:
                    exchange.connection.send(self.request)
                    self.selector.modify(exchange.connection, selectors.EVENT_READ, exchange)
                    continue
                data = exchange.connection.recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if exchange.feed(data):
                self.end(exchange)

    def end(self, exchange: Exchange) -> None:
        self.open -= 1
        self.selector.unregister(exchange.connection)
        self.results.append(exchange.result())
        if self.keeps and exchange.may_be_kept:
            self.idle.append(exchange.connection)
        else:
            exchange.connection.close()

    def run(self, due: list[float]) -> None:
        """Begin a request at each of the times *due*, which is a heap, and wait for the answers."""
        last_at = max(due) + DRAIN_S
        while due or self.open:
            now = time.monotonic()
            if now > last_at:
                break
            while due and due[0] <= now:
                self.begin(heapq.heappop(due))
            self.step(max(0.0, min((due[0] if due else last_at) - time.monotonic(), 0.1)))
        for key in list(self.selector.get_map().values()):
            self.end(key.data)


def main(url: str, mode: str, model: str, *phases: str) -> None:
    chance = random.Random(7)
    due, phase_at = [], time.monotonic() + 0.05
    for rate, seconds in zip(phases[::2], phases[1::2], strict=True):
        at = phase_at
        phase_at += float(seconds)
        while (at := at + chance.expovariate(float(rate))) < phase_at:
            due.append(at)
    generator = Generator(url, model, keeps=mode == "kept")
    generator.run(due)
    print(json.dumps({"cpu_s": time.process_time(), "exchanges": generator.results}))


if __name__ == "__main__":
    main(*sys.argv[1:])
