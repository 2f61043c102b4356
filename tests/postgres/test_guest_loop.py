"""The guest loop by itself: callbacks, tasks, timers and its own end, without a database."""

import asyncio
import signal
import threading
from asyncio.events import _get_running_loop

import pytest
import structlog.testing
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.postgres.guest_loop import HANDLES_MAX, GuestLoop, open_guest_loop


async def double(number):
    await asyncio.sleep(0)
    return 2 * number


async def never():
    await asyncio.get_running_loop().create_future()


class NoLoopSeen(trio.abc.Instrument):
    """Counts the task steps that begin or end while an asyncio loop counts as running."""

    def __init__(self):
        self.steps = 0
        self.seen = 0

    def before_task_step(self, task):
        self.steps += 1
        self.seen += _get_running_loop() is not None

    def after_task_step(self, task):
        self.seen += _get_running_loop() is not None


async def test_a_coroutine_of_asyncio_runs_to_its_end_in_a_trio_task():
    async with open_guest_loop() as loop:
        assert await loop.run(double, 21) == 42


async def test_running_a_coroutine_is_a_checkpoint_even_if_it_never_waits():
    async def at_once():
        return 1

    async with open_guest_loop() as loop:
        with trio.testing.assert_checkpoints():
            assert await loop.run(at_once) == 1


async def test_what_the_coroutine_raises_arrives_unchanged():
    async def fail():
        raise LookupError("as it is")

    async with open_guest_loop() as loop:
        with pytest.raises(LookupError, match="as it is"):
            await loop.run(fail)


async def test_no_trio_task_ever_sees_a_running_asyncio_loop():
    watch = NoLoopSeen()
    trio.lowlevel.add_instrument(watch)
    try:
        async with open_guest_loop() as loop, trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(loop.run, double, number)
            with trio.move_on_after(0.01):
                await loop.run(never)
    finally:
        trio.lowlevel.remove_instrument(watch)
    assert watch.steps > 40
    assert watch.seen == 0


async def test_asyncio_knows_its_task_and_its_timeouts_inside():
    async def inside():
        task = asyncio.current_task()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await never()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(never(), 0.001)
        await asyncio.sleep(0.001)
        return task is asyncio.current_task()

    async with open_guest_loop() as loop:
        assert await loop.run(inside)


async def test_a_cancelled_call_ends_the_coroutine_before_cancelled_is_raised():
    ended = []

    async def wait():
        try:
            await never()
        finally:
            ended.append(True)

    async with open_guest_loop() as loop:
        with trio.move_on_after(0.001) as scope:
            await loop.run(wait)
        assert scope.cancelled_caught
        assert ended == [True]


async def test_a_coroutine_that_swallows_its_cancellation_is_cancelled_again():
    async def stubborn():
        with pytest.raises(asyncio.CancelledError):
            await never()
        await never()

    async with open_guest_loop() as loop:
        with trio.move_on_after(0.001) as scope:
            await loop.run(stubborn)
        assert scope.cancelled_caught


async def test_a_result_that_beats_the_cancellation_is_returned():
    async def too_late():
        try:
            await never()
        except asyncio.CancelledError:
            return "done all the same"

    async with open_guest_loop() as loop:
        with trio.move_on_after(0.001) as scope:
            assert await loop.run(too_late) == "done all the same"
        assert not scope.cancelled_caught


async def test_timers_run_in_the_order_of_their_times_and_cancelled_ones_never():
    ran = []

    async def wait_for_timers():
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        for number in (3, 1, 2):
            loop.call_later(number / 1000, ran.append, number)
        for handle in [loop.call_later(0.0015, ran.append, "cancelled") for _ in range(200)]:
            handle.cancel()
        loop.call_later(0.004, done.set_result, None)
        await done

    async with open_guest_loop() as loop:
        await loop.run(wait_for_timers)
        assert len(loop._timers) < 200
    assert ran == [1, 2, 3]


@given(
    timers=st.lists(st.tuples(st.integers(0, 1000), st.booleans()), max_size=300),
    moments=st.lists(st.integers(0, 1000), max_size=5).map(sorted),
)
def test_every_timer_that_is_not_cancelled_runs_once_when_due_and_in_order(timers, moments):
    ran = []

    async def main():
        clock = trio.lowlevel.current_clock()
        async with open_guest_loop() as loop:
            handles = [(loop.call_at(when, ran.append, when), cancelled) for when, cancelled in timers]
            for handle, cancelled in handles:
                if cancelled:
                    handle.cancel()
            for moment in moments:
                clock.jump(moment - clock.current_time())
                await trio.testing.wait_all_tasks_blocked()
                assert ran == sorted(when for when, cancelled in timers if when <= moment and not cancelled)

    trio.run(main, clock=trio.testing.MockClock())


async def test_a_coroutine_that_never_pauses_for_long_does_not_keep_trio_from_its_turn():
    turns = 0

    async def spin():
        for _ in range(20 * HANDLES_MAX):
            await asyncio.sleep(0)

    async def count_turns():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with open_guest_loop() as loop, trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await loop.run(spin)
        nursery.cancel_scope.cancel()
    assert turns >= 15


async def test_an_exception_in_a_callback_is_logged_and_harms_nobody():
    def fail():
        raise ValueError("in a callback")

    with structlog.testing.capture_logs() as logs:
        async with open_guest_loop() as loop:
            loop.call_soon(fail)
            assert await loop.run(double, 1) == 2
    assert [(entry["event"], repr(entry["exc_info"])) for entry in logs] == [
        ("guest_loop_exception", "ValueError('in a callback')")
    ]


async def test_an_exception_in_a_system_task_is_logged_and_does_not_end_trio():
    async def fail():
        raise ValueError("in a system task")

    with structlog.testing.capture_logs() as logs:
        async with open_guest_loop() as loop:
            loop.spawn(fail)
            await trio.testing.wait_all_tasks_blocked()
            assert await loop.run(double, 1) == 2
    assert [entry["message"] for entry in logs] == ["system task failed"]


async def test_a_callback_from_another_thread_gets_its_turn():
    called = trio.Event()
    async with open_guest_loop() as loop:
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(called.set,))
        thread.start()
        await called.wait()
        thread.join()


async def test_at_the_end_of_the_loop_its_tasks_are_cancelled_and_its_callers_told():
    async with trio.open_nursery() as nursery:
        failures = []

        async def call(loop):
            try:
                await loop.run(never)
            except ConnectionAbortedError as exc:
                failures.append(exc)

        async with open_guest_loop() as loop:
            nursery.start_soon(call, loop)
            loop.call_later(1000, never)
            await trio.testing.wait_all_tasks_blocked()
    assert len(failures) == 1
    assert loop.is_closed()
    assert asyncio.all_tasks(loop) == set()
    with pytest.raises(ConnectionAbortedError):
        await loop.run(double, 1)


def test_two_trio_runs_in_one_process_each_have_their_loop():
    async def main():
        async with open_guest_loop() as loop:
            return await loop.run(double, 4)

    assert [trio.run(main), trio.run(main)] == [8, 8]


def test_a_run_that_ends_with_a_loop_left_open_ends_all_the_same():
    async def main():
        loop = GuestLoop()
        loop.spawn(loop.run_timers)
        loop.call_later(1000, print)
        return await loop.run(double, 4), loop

    result, loop = trio.run(main)
    assert result == 8
    loop.call_soon(print)  # as a finalizer might


def test_control_c_arrives_as_keyboard_interrupt_and_cancels_the_coroutine():
    ended = []

    async def wait():
        signal.raise_signal(signal.SIGINT)  # within guest code, which it must not interrupt
        try:
            await never()
        finally:
            ended.append(True)

    async def main():
        async with open_guest_loop() as loop:
            await loop.run(wait)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert ended == [True]


def test_control_c_does_not_strike_within_guest_code():
    steps = []

    def strike():
        signal.raise_signal(signal.SIGINT)
        steps.append("the rest of the guest's step")

    async def main():
        async with open_guest_loop() as loop:
            loop.enter(strike)
            await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert steps == ["the rest of the guest's step"]


def test_the_loop_works_while_trio_itself_is_a_guest_of_asyncio():
    outcome = []

    async def main():
        async with open_guest_loop() as loop:
            return await loop.run(double, 5)

    async def host():
        host_loop = asyncio.get_running_loop()
        done = host_loop.create_future()
        trio.lowlevel.start_guest_run(
            main,
            run_sync_soon_threadsafe=host_loop.call_soon_threadsafe,
            done_callback=done.set_result,
        )
        outcome.append((await done).unwrap())
        return asyncio.get_running_loop() is host_loop

    assert asyncio.run(host())
    assert outcome == [10]
