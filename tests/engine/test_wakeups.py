"""Waits within one process: a level and not an edge, nothing kept of what nobody waits for, and an end in time."""

import gc
import weakref

import pytest
import trio
import trio.testing

from dwctl_trio.engine.wakeups import TOPIC_CHARACTERS_MAX, LocalWakeups, is_topic, wait_for


async def test_a_wait_ends_with_its_time_and_sooner_if_told(autojump_clock):
    wakeups = LocalWakeups()

    async def tell_later():
        await trio.sleep(3)
        wakeups.tell("queue")

    with wakeups.listen("queue") as wakeup:
        began_at = trio.current_time()
        await wait_for(wakeup, 10)
        assert trio.current_time() - began_at == 10
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell_later)
            await wait_for(wakeup, 10)
            assert trio.current_time() - began_at == 13
        await wait_for(wakeup, 10)
        assert trio.current_time() - began_at == 23


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_a_wait_without_time_ends_at_once_and_forgets_nothing(autojump_clock, seconds):
    wakeups = LocalWakeups()
    with wakeups.listen("queue") as wakeup:
        for _ in range(2):
            with trio.testing.assert_checkpoints():
                await wait_for(wakeup, seconds)
            assert trio.current_time() == 0
            wakeups.tell("queue")
        with trio.fail_after(1):
            await wakeup.wait()


async def test_a_wait_that_is_cancelled_as_it_is_told_loses_nothing():
    wakeups = LocalWakeups()
    with wakeups.listen("queue") as wakeup:
        with trio.CancelScope() as scope:
            wakeups.tell("queue")
            scope.cancel()
            await wakeup.wait()
        assert scope.cancelled_caught
        await wakeup.wait()


def test_of_a_topic_nobody_listens_to_nothing_is_kept():
    wakeups = LocalWakeups()
    wakeups.tell("nobody")
    with wakeups.listen("a") as first, wakeups.listen("a"), wakeups.listen("b"):
        assert len(wakeups) == 2
        watched = weakref.ref(first)
        del first
    wakeups.tell("a")
    gc.collect()

    assert len(wakeups) == 0
    assert watched() is None


async def test_everybody_can_be_woken_at_once():
    wakeups = LocalWakeups()
    with wakeups.listen("a") as a, wakeups.listen("b") as first, wakeups.listen("b") as second:
        wakeups.tell_all()
        for wakeup in (a, first, second):
            await wakeup.wait()


@pytest.mark.parametrize("text", ["queue", "0" * 32, "f" * TOPIC_CHARACTERS_MAX, "a-b_c"])
def test_short_plain_words_are_topics(text):
    assert is_topic(text)


@pytest.mark.parametrize("text", ["", "*", "a b", "Queue", "é", "queue\n", "0" * (TOPIC_CHARACTERS_MAX + 1)])
def test_what_could_not_travel_is_no_topic(text):
    assert not is_topic(text)
    with pytest.raises(AssertionError):
        LocalWakeups().tell(text)
