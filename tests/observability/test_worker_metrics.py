"""One page for all workers: each series tells whose it is, and a worker that does not answer is not waited for."""

import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import trio
from tests.observability.scrapes import Scrape

from dwctl_trio.domain.limits import DEFAULT_LIMITS
from dwctl_trio.observability.metrics import Metrics
from dwctl_trio.observability.worker_metrics import WorkerPlace, WorkersPage, merge_pages

LIMITS = attrs.evolve(DEFAULT_LIMITS, worker_metrics_s=5.0)
HASTY = attrs.evolve(DEFAULT_LIMITS, worker_metrics_s=0.05)

_meetings = itertools.count()


def places(count: int) -> list[WorkerPlace]:
    """The places of the workers of one server."""
    meeting = f"test-{os.getpid()}-{next(_meetings)}"
    return [
        WorkerPlace(number=number, workers=count, starts=number, meeting=meeting, user=os.geteuid())
        for number in range(1, count + 1)
    ]


@asynccontextmanager
async def running(*pages: WorkersPage) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for page in pages:
            await nursery.start(page.run)
        yield
        nursery.cancel_scope.cancel()


def answered(metrics: Metrics, times: int) -> Metrics:
    for _ in range(times):
        metrics.note_request("GET", "/healthz", 200)
    return metrics


def requests_of(scrape: Scrape) -> dict[str, float]:
    """Requests by worker."""
    return {dict(labels)["worker"]: value for labels, value in scrape.samples("dwctl_http_requests_total").items()}


async def test_whichever_worker_is_asked_shows_all_of_them() -> None:
    first, second = [WorkersPage(answered(Metrics(), place.number), place, LIMITS) for place in places(2)]
    async with running(first, second):
        scrapes = [Scrape((await page.read()).decode()) for page in (first, second)]

    for scrape in scrapes:
        assert requests_of(scrape) == {"1": 1, "2": 2}
        assert scrape.rows("dwctl_worker_up", "worker") == {("1",): 1, ("2",): 1}
        assert scrape.rows("dwctl_worker_starts_total", "worker") == {("1",): 1, ("2",): 2}
        assert len(scrape.samples("dwctl_event_loop_timer_lag_seconds_count")) == 2


async def test_all_lines_of_a_metric_stand_together_under_one_description() -> None:
    first, second = [WorkersPage(answered(Metrics(), 1), place, LIMITS) for place in places(2)]
    async with running(first, second):
        text = (await first.read()).decode()

    kinds = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
    assert len(kinds) == len(set(kinds))
    for block in filter(None, text.split("# HELP ")):
        name, *samples = [block.split()[0], *block.splitlines()[2:]]
        assert all(sample.startswith(name) for sample in samples)
    assert merge_pages([text.encode()]) == text.encode()
    assert not [line for line in text.splitlines() if not line.startswith("#") and 'worker="' not in line]


async def test_a_worker_that_is_not_there_is_missing_and_the_page_says_so() -> None:
    first, _ = [WorkersPage(answered(Metrics(), 1), place, LIMITS) for place in places(2)]
    async with running(first):
        scrape = Scrape((await first.read()).decode())

    assert requests_of(scrape) == {"1": 1}
    assert scrape.rows("dwctl_worker_up", "worker") == {("1",): 1, ("2",): 0}


@asynccontextmanager
async def answering(place: WorkerPlace, handle: Callable[[trio.SocketStream], object]) -> AsyncIterator[None]:
    """Somebody in the place of a worker, who treats whoever asks as *handle* does."""
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        await listening.bind(place.address(place.number))
        listening.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, handle, [trio.SocketListener(listening)])
            yield
            nursery.cancel_scope.cancel()


async def test_a_worker_that_hangs_is_waited_for_no_longer_than_the_limit() -> None:
    async def hang(_: trio.SocketStream) -> None:
        await trio.sleep_forever()

    one, two, three = places(3)
    first, third = [WorkersPage(answered(Metrics(), 1), place, HASTY) for place in (one, three)]
    async with running(first, third), answering(two, hang):
        with trio.fail_after(5):
            scrape = Scrape((await first.read()).decode())

    assert requests_of(scrape) == {"1": 1, "3": 1}
    assert scrape.rows("dwctl_worker_up", "worker") == {("1",): 1, ("2",): 0, ("3",): 1}


async def test_half_a_page_of_a_worker_that_died_over_it_is_none() -> None:
    async def die(asker: trio.SocketStream) -> None:
        async with asker:
            await asker.send_all(b"# HELP dwctl_half Half.\n# TYPE dwctl_half counter\n")

    one, two = places(2)
    first = WorkersPage(Metrics(), one, LIMITS)
    async with running(first), answering(two, die):
        scrape = Scrape((await first.read()).decode())

    assert "dwctl_half" not in scrape.text
    assert scrape.rows("dwctl_worker_up", "worker") == {("1",): 1, ("2",): 0}


async def test_a_page_longer_than_the_limit_is_none() -> None:
    async def flood(asker: trio.SocketStream) -> None:
        async with asker:
            await asker.send_all(b"#" * 4096 + b"\0")

    one, two = places(2)
    first = WorkersPage(Metrics(), one, attrs.evolve(LIMITS, worker_metrics_bytes=1024))
    async with running(first), answering(two, flood):
        scrape = Scrape((await first.read()).decode())

    assert scrape.rows("dwctl_worker_up", "worker") == {("1",): 1, ("2",): 0}


async def test_another_users_process_is_neither_told_nor_believed() -> None:
    one, two = places(2)
    first = WorkersPage(answered(Metrics(), 1), one, LIMITS)
    stranger = WorkersPage(answered(Metrics(), 1), attrs.evolve(two, user=two.user + 1), LIMITS)
    async with running(first, stranger):
        scrapes = [Scrape((await page.read()).decode()) for page in (first, stranger)]

    assert [requests_of(scrape) for scrape in scrapes] == [{"1": 1}, {"2": 1}]


async def test_many_scrapes_at_once_ask_the_other_workers_once() -> None:
    asked = []

    async def count(asker: trio.SocketStream) -> None:
        asked.append(asker)
        await asker.aclose()

    one, two = places(2)
    first = WorkersPage(Metrics(), one, LIMITS)
    async with running(first), answering(two, count), trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(first.read)

    assert len(asked) == 1


async def test_a_worker_that_is_started_again_is_found_in_its_place() -> None:
    one, two = places(2)
    first = WorkersPage(Metrics(), one, LIMITS)
    async with running(first):
        async with running(WorkersPage(answered(Metrics(), 7), two, LIMITS)):
            pass
        async with running(WorkersPage(answered(Metrics(), 1), attrs.evolve(two, starts=3), LIMITS)):
            scrape = Scrape((await first.read()).decode())

    assert requests_of(scrape) == {"2": 1}
    assert scrape.value("dwctl_worker_starts_total", {"worker": "2"}) == 3
