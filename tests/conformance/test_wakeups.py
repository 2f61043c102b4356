"""What ``ports.Wakeups`` promises, kept in one process and between two."""

from collections.abc import AsyncIterator

import attrs
import pytest
import trio
import trio.testing
from tests.conformance.conftest import CALL_S
from tests.postgres.processes import open_wakeups

from dwctl_trio.engine.wakeups import LocalWakeups, wait_for
from dwctl_trio.ports import Wakeup, Wakeups


@attrs.frozen
class Pair:
    """One who tells and one who listens."""

    teller: Wakeups
    listener: Wakeups


@pytest.fixture(params=["local", "postgres, one process", "postgres, two processes"])
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Each way between the two in turn, with the database it needs."""
    return request.param, "" if request.param == "local" else request.getfixturevalue("conformance_dsn")


@pytest.fixture
async def pair(way: tuple[str, str]) -> AsyncIterator[Pair]:
    """One who tells and one who listens, by each way."""
    name, dsn = way
    if name == "local":
        wakeups = LocalWakeups()
        yield Pair(wakeups, wakeups)
        return
    async with open_wakeups(dsn) as teller, open_wakeups(dsn) as other:
        yield Pair(teller, teller if name == "postgres, one process" else other)


async def wait_told(*wakeups: Wakeup) -> None:
    with trio.fail_after(CALL_S):
        for wakeup in wakeups:
            await wakeup.wait()


async def is_told(wakeup: Wakeup) -> bool:
    """Whether a wait would end now; if so, it has."""
    told = False

    async def wait() -> None:
        nonlocal told
        await wakeup.wait()
        told = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return told


async def test_who_waits_is_woken(pair):
    with pair.listener.listen("queue") as wakeup:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_told, wakeup)
            await trio.testing.wait_all_tasks_blocked()
            pair.teller.tell("queue")


async def test_what_is_told_between_two_waits_is_not_missed(pair):
    with pair.listener.listen("a") as wakeup, pair.listener.listen("b") as marker:
        for _ in range(5):
            pair.teller.tell("a")
            pair.teller.tell("b")
            await wait_told(marker)  # so "a" has arrived as well, while nobody waited
            with trio.fail_after(CALL_S):
                await wakeup.wait()


async def test_a_wait_uses_up_what_was_told_before_it(pair):
    with pair.listener.listen("a") as wakeup, pair.listener.listen("b") as marker:
        for _ in range(3):
            pair.teller.tell("a")
        pair.teller.tell("b")
        await wait_told(marker, wakeup)
        assert not await is_told(wakeup)


async def test_what_was_told_before_one_listens_is_not_heard(pair):
    with pair.listener.listen("b") as marker:
        pair.teller.tell("a")
        pair.teller.tell("b")
        await wait_told(marker)
        with pair.listener.listen("a") as wakeup:
            assert not await is_told(wakeup)


async def test_other_topics_wake_nobody(pair):
    with pair.listener.listen("a") as wakeup, pair.listener.listen("b") as marker:
        for _ in range(3):
            pair.teller.tell("b")
            await wait_told(marker)
        assert not await is_told(wakeup)


async def test_all_who_listen_to_a_topic_are_woken_each_for_himself(pair):
    with pair.listener.listen("a") as first, pair.listener.listen("a") as second:
        pair.teller.tell("a")
        await wait_told(first, second)
        with pair.listener.listen("a") as third:
            pair.teller.tell("a")
            await wait_told(third, first, second)
        pair.teller.tell("a")
        await wait_told(second, first)


async def test_a_wait_that_gave_up_hears_what_is_told_later(pair):
    with pair.listener.listen("a") as wakeup:
        await wait_for(wakeup, 0)
        pair.teller.tell("a")
        await wait_told(wakeup)


async def test_to_tell_waits_for_nothing_however_often(pair):
    with pair.listener.listen("a") as wakeup:
        with trio.testing.assert_no_checkpoints():
            for _ in range(1000):
                pair.teller.tell("a")
        await wait_told(wakeup)
