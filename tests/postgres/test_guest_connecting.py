"""How the guest loop opens connections, and what is left when it does not come to that."""

import asyncio
import functools
import gc
import socket

import pytest
import trio
import trio.testing
from tests.postgres.conftest import CancelAtStep

from dwctl_trio.postgres.guest_loop import open_guest_loop


async def test_a_refused_connection_is_an_oserror(tmp_path):
    async with open_guest_loop() as loop:
        with pytest.raises(OSError):
            await loop.run(loop.create_unix_connection, asyncio.Protocol, str(tmp_path / "nobody"))
        with pytest.raises(OSError):
            await loop.run(loop.create_connection, asyncio.Protocol, "127.0.0.1", _closed_port())
        with pytest.raises((OSError, ValueError)):
            await loop.run(loop.create_connection, asyncio.Protocol, "a" * 70 + ".invalid", 1)


def _closed_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


async def test_connecting_cancelled_at_any_step_leaves_no_socket_open():
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        port = listener.getsockname()[1]
        async with open_guest_loop() as loop:
            for step in range(100):
                with CancelAtStep(step) as cancel:
                    await loop.run(loop.create_connection, asyncio.Protocol, "127.0.0.1", port)
                await trio.testing.wait_all_tasks_blocked()
                for transport in list(loop._transports):  # from a call that was answered before it was cancelled
                    transport.abort()
                if not cancel.fired:
                    break
    gc.collect()  # a socket left open would be a ResourceWarning here, which is an error
    assert 3 < step < 99


async def test_a_connection_that_is_made_and_cancelled_in_the_same_moment_is_closed(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        async with open_guest_loop() as loop:
            create_future = loop.create_future

            def create_future_whose_end_cancels_the_task():
                future = create_future()
                task = asyncio.current_task()
                future.add_done_callback(lambda future: task.cancel())
                return future

            loop.create_future = create_future_whose_end_cancels_the_task
            with pytest.raises(ConnectionAbortedError):
                await loop.run(loop.create_unix_connection, asyncio.Protocol, path)
            assert not loop._transports
    gc.collect()  # a socket left open would be a ResourceWarning here, which is an error


async def test_a_cancelled_connection_attempt_is_given_up_at_once(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)  # room for one, and nobody accepts
        first.connect(path)
        async with open_guest_loop() as loop:
            with trio.move_on_after(0.02) as scope:
                await loop.run(loop.create_unix_connection, asyncio.Protocol, path)
            assert scope.cancelled_caught
            await trio.testing.wait_all_tasks_blocked()
            assert loop._system_tasks == 1  # the timers


async def test_a_host_with_a_number_is_dialled_without_a_thread(monkeypatch):
    async def no_thread(*_args, **_options):
        raise AssertionError("a thread was started")

    monkeypatch.setattr("trio.to_thread.run_sync", no_thread)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listeners[0], open_guest_loop() as loop:
        connect = functools.partial(loop.create_connection, asyncio.Protocol, "127.0.0.1")
        transport, _ = await loop.run(connect, listeners[0].socket.getsockname()[1])
        transport.abort()
