"""The metrics of one server's workers on one page, whichever of them is scraped.

    a scrape ── the worker that got the connection ──┬── its own metrics
                                                     └── each other worker's, asked for over a socket of their own

Rule 1: every series has a label ``worker``, and nothing is added up here. When a worker dies, its own counters begin
again at 0, which whoever computes rates expects of a process; a sum would fall, which nobody expects.
Rule 2: a worker that does not answer in time is missing on the page, and ``dwctl_worker_up`` says so.
Rule 3: the sockets have abstract names, which leave nothing behind, and take only the same user's processes.

Source: unix(7), "Abstract sockets", SO_PEERCRED.
"""

import re
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NoReturn

import attrs
import trio
from prometheus_client import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dwctl_trio.domain.limits import Limits
from dwctl_trio.observability.metrics import Metrics
from dwctl_trio.observability.metrics_page import MetricsPage, Uncreated

_FRESH_S = 0.2
"""A page that was just made is handed out again: without a key anybody may ask, and each page asks all workers."""
_END = b"\0"
"""Behind a page that came whole."""
_RECEIVED_BYTES = 64 * 1024
_FAMILY = re.compile(rb"^(?=# HELP )", re.MULTILINE)
_CREDENTIALS = struct.Struct("3i")
"""Process, user and group, as Linux tells them of whoever is at the other end."""


@attrs.frozen(kw_only=True)
class WorkerPlace:
    """Which of one server's workers a process is."""

    number: int
    """From 1; a worker that is started again keeps it."""
    workers: int
    """How many there are."""
    starts: int
    """How often it was started, this time included."""
    meeting: str
    """A word of this server's own, by which its workers find one another."""
    user: int
    """Whose processes they all are."""

    def others(self) -> Iterator[int]:
        """The numbers of all other workers."""
        return (number for number in range(1, self.workers + 1) if number != self.number)

    def address(self, number: int) -> str:
        """Where worker *number* tells its metrics."""
        return f"\0dwctl-trio-{self.meeting}-{number}"


class _OneWorker(Collector):
    """What one worker counts, each series with its label."""

    def __init__(self, metrics: Metrics, place: WorkerPlace) -> None:
        self._counted = Uncreated(metrics.registry)
        self._place = place

    def render(self) -> bytes:
        """Everything, as of now."""
        return generate_latest(self)

    def collect(self) -> Iterable[Metric]:
        label = {"worker": str(self._place.number)}
        for family in self._counted.collect():
            family.samples = [sample._replace(labels=label | sample.labels) for sample in family.samples]
            yield family
        starts = CounterMetricFamily("dwctl_worker_starts", "Starts of the worker.", labels=("worker",))
        starts.add_metric((label["worker"],), self._place.starts)
        yield starts


class _Presence(Collector):
    """Which workers are on the page."""

    def __init__(self, workers: int, there: Iterable[int]) -> None:
        self._workers = workers
        self._there = frozenset(there)

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("dwctl_worker_up", "Whether the worker has told its metrics.", labels=("worker",))
        for number in range(1, self._workers + 1):
            up.add_metric((str(number),), int(number in self._there))
        yield up


class WorkersPage:
    """The page of all workers, at one of them.

    Args:
        metrics: This worker's own.
        place: Which one it is.
        limits: ``worker_metrics_s`` and ``worker_metrics_bytes``.
    """

    def __init__(self, metrics: Metrics, place: WorkerPlace, limits: Limits) -> None:
        self._own = MetricsPage(_OneWorker(metrics, place))
        self._place = place
        self._limits = limits
        self._asking = trio.Lock()
        self._text = b""
        self._stale_at = float("-inf")

    async def read(self) -> bytes:
        """The text, at most 0.2 s old; who comes while the others are asked gets what they answer."""
        async with self._asking:
            if trio.current_time() >= self._stale_at:
                self._text = await self._collect()
                self._stale_at = trio.current_time() + _FRESH_S
        return self._text

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Tell the other workers what this one counts, for ever; started when they can ask."""
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            await listening.bind(self._place.address(self._place.number))
            listening.listen(self._place.workers)
            task_status.started()
            await trio.serve_listeners(self._tell, [trio.SocketListener(listening)])

    async def _tell(self, asker: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError), trio.move_on_after(self._limits.worker_metrics_s):
            async with asker:
                if self._is_ours(asker.socket):
                    await asker.send_all(self._own.read() + _END)

    async def _collect(self) -> bytes:
        pages = {self._place.number: self._own.read()}
        with trio.move_on_after(self._limits.worker_metrics_s):
            async with trio.open_nursery() as nursery:
                for number in self._place.others():
                    nursery.start_soon(self._ask, number, pages, name="ask_for_metrics")
        presence = generate_latest(_Presence(self._place.workers, pages))
        return merge_pages([pages[number] for number in sorted(pages)] + [presence])

    async def _ask(self, number: int, pages: dict[int, bytes]) -> None:
        """Put the metrics of worker *number* into *pages*, if it tells them whole."""
        page, bytes_max = bytearray(), self._limits.worker_metrics_bytes + len(_END)
        with suppress(OSError), trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as told:
            await told.connect(self._place.address(number))
            while self._is_ours(told) and len(page) <= bytes_max:
                piece = await told.recv(_RECEIVED_BYTES)
                if not piece:
                    break
                page += piece
        if page.endswith(_END) and len(page) <= bytes_max:
            pages[number] = bytes(page[: -len(_END)])

    def _is_ours(self, connection: trio.socket.SocketType) -> bool:
        """Whether a process of our own user is at the other end."""
        told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        assert isinstance(told, bytes)
        _, user, _ = _CREDENTIALS.unpack(told)
        return bool(user == self._place.user)


def merge_pages(pages: Iterable[bytes]) -> bytes:
    """One page of several, as the text format wants it: all lines of a metric together, under one description."""
    metrics: dict[bytes, list[bytes]] = {}
    for page in pages:
        for metric in filter(None, _FAMILY.split(page)):
            meaning, kind, samples = metric.split(b"\n", 2)
            metrics.setdefault(b"%s\n%s\n" % (meaning, kind), []).append(samples)
    return b"".join(head + b"".join(samples) for head, samples in metrics.items())
