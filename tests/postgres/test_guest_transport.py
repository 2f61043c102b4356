"""The guest loop's transport against a peer that the test plays: order, back-pressure and every way to end."""

import asyncio
import socket

import structlog.testing
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from dwctl_trio.postgres.guest_loop import GuestLoop, open_guest_loop
from dwctl_trio.postgres.guest_transport import BUFFER_BYTES_HIGH, GuestTransport


class Recorder(asyncio.Protocol):
    """Remembers what the transport told it, and checks that it was told in the right order."""

    def __init__(self):
        self.received = bytearray()
        self.events = []
        self.lost = trio.Event()
        self.paused = False

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        assert "lost" not in self.events
        self.received += data

    def eof_received(self):
        self.events.append("eof")

    def pause_writing(self):
        assert not self.paused
        self.paused = True
        self.events.append("pause")

    def resume_writing(self):
        assert self.paused
        self.paused = False
        self.events.append("resume")

    def connection_lost(self, exc):
        self.events.append("lost")
        self.error = exc
        self.lost.set()


async def open_pair(loop, protocol):
    """A transport of *loop* for *protocol*, and the other end as a Trio stream."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    transport = GuestTransport(loop, ours, protocol)
    loop._transports.add(transport)
    loop.enter(protocol.connection_made, transport)
    loop.enter(loop.spawn, transport.serve_reads)
    return transport, trio.SocketStream(trio.socket.from_stdlib_socket(theirs))


async def receive_exactly(stream, count):
    received = bytearray()
    while len(received) < count:
        received += await stream.receive_some(count - len(received))
    return bytes(received)


@settings(max_examples=25)
@given(sent=st.lists(st.binary(min_size=1, max_size=200_000), max_size=8), answers=st.lists(st.binary(max_size=50_000)))
async def test_bytes_arrive_in_order_both_ways_however_they_are_cut(sent, answers):
    async with open_guest_loop() as loop:
        protocol = Recorder()
        transport, peer = await open_pair(loop, protocol)
        async with peer, trio.open_nursery() as nursery:

            async def talk():
                for chunk in answers:
                    await peer.send_all(chunk)
                await peer.send_eof()

            nursery.start_soon(talk)
            for chunk in sent:
                loop.enter(transport.write, memoryview(chunk))
            whole = b"".join(sent)
            assert await receive_exactly(peer, len(whole)) == whole
            await protocol.lost.wait()
        assert protocol.received == b"".join(answers)
        assert protocol.error is None
        assert protocol.events[-2:] == ["eof", "lost"]


async def test_a_peer_that_does_not_read_pauses_the_writer_and_resumes_it_once_it_does():
    async with open_guest_loop() as loop:
        protocol = Recorder()
        transport, peer = await open_pair(loop, protocol)
        async with peer:
            written = 0
            while not protocol.paused:
                loop.enter(transport.write, b"x" * 50_000)
                written += 50_000
            assert transport.get_write_buffer_size() > BUFFER_BYTES_HIGH
            await receive_exactly(peer, written)
            assert protocol.events == ["pause", "resume"]
            assert transport.get_write_buffer_size() == 0


async def test_a_paused_reader_gets_nothing_until_it_resumes_then_everything():
    async with open_guest_loop() as loop:
        protocol = Recorder()
        transport, peer = await open_pair(loop, protocol)
        async with peer:
            await trio.testing.wait_all_tasks_blocked()  # the reader waits for the socket already
            transport.pause_reading()
            await peer.send_all(b"held back")
            await trio.testing.wait_all_tasks_blocked()
            assert protocol.received == b""
            assert not transport.is_reading()
            transport.resume_reading()
            await peer.send_eof()
            await protocol.lost.wait()
        assert protocol.received == b"held back"


async def test_nothing_is_received_any_more_while_closing_still_sends():
    async with open_guest_loop() as loop:
        protocol = Recorder()
        transport, peer = await open_pair(loop, protocol)
        async with peer:
            await trio.testing.wait_all_tasks_blocked()
            loop.enter(transport.write, b"x" * 1_000_000)
            loop.enter(transport.close)
            await peer.send_all(b"too late")
            await trio.testing.wait_all_tasks_blocked()
            assert protocol.events == ["pause"]
            assert protocol.received == b""


async def test_closing_sends_what_is_left_first():
    async with open_guest_loop() as loop:
        protocol = Recorder()
        transport, peer = await open_pair(loop, protocol)
        async with peer:
            loop.enter(transport.write, b"x" * 1_000_000)
            loop.enter(transport.close)
            loop.enter(transport.write, b"too late")
            assert await receive_exactly(peer, 1_000_000) == b"x" * 1_000_000
            assert await peer.receive_some(10) == b""
            await protocol.lost.wait()
        assert protocol.error is None


async def test_aborting_closes_at_once_and_only_once():
    async with open_guest_loop() as loop:
        protocol = Recorder()
        transport, peer = await open_pair(loop, protocol)
        async with peer:
            loop.enter(transport.write, b"x" * 1_000_000)
            transport.abort()
            loop.enter(transport.abort)
            loop.enter(transport.close)
            await protocol.lost.wait()
            await trio.testing.wait_all_tasks_blocked()
        assert protocol.events.count("lost") == 1
        assert transport.has_unread()


async def test_the_protocol_learns_of_the_end_only_after_the_call_that_caused_it():
    async with open_guest_loop() as loop:
        protocol = Recorder()
        transport, peer = await open_pair(loop, protocol)

        def abort_and_look():
            transport.abort()
            return list(protocol.events)

        async with peer:
            assert loop.enter(abort_and_look) == []
            assert protocol.events == ["lost"]


async def test_closing_in_the_same_step_as_a_read_is_safe():
    class ClosesAtOnce(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.transport.abort()

    async with open_guest_loop() as loop:
        protocol = ClosesAtOnce()
        transport, peer = await open_pair(loop, protocol)
        async with peer:
            await peer.send_all(b"x")
            transport.abort()  # the reader has not run yet, and will be woken for a socket that is closed
            await protocol.lost.wait()
        protocol = ClosesAtOnce()
        transport, peer = await open_pair(loop, protocol)
        async with peer:
            await peer.send_all(b"x")
            await protocol.lost.wait()
        assert protocol.received == b"x"


async def test_a_peer_that_resets_while_we_write_costs_one_connection_and_no_more():
    async with open_guest_loop() as loop:
        protocol = Recorder()
        transport, peer = await open_pair(loop, protocol)
        loop.enter(transport.write, b"x" * 1_000_000)
        await peer.aclose()
        await protocol.lost.wait()
        loop.enter(transport.write, b"ignored")
        assert protocol.events.count("lost") == 1


async def test_a_protocol_that_fails_is_logged_and_loses_its_connection():
    class Fails(Recorder):
        def data_received(self, data):
            raise ValueError("cannot parse this")

    with structlog.testing.capture_logs() as logs:
        async with open_guest_loop() as loop:
            protocol = Fails()
            _, peer = await open_pair(loop, protocol)
            async with peer:
                await peer.send_all(b"x")
                await protocol.lost.wait()
    assert repr(protocol.error) == "ValueError('cannot parse this')"
    assert [entry["message"] for entry in logs] == ["protocol failed while reading"]


async def test_at_the_end_of_the_loop_connections_are_closed_with_data_still_unsent():
    async with open_guest_loop() as loop:
        protocol = Recorder()
        transport, peer = await open_pair(loop, protocol)
        loop.enter(transport.write, b"x" * 1_000_000)
    async with peer:
        assert protocol.events[-1] == "lost"
        assert len(await receive_exactly(peer, 1000)) == 1000


def test_a_trio_run_that_ends_without_closing_the_loop_closes_the_sockets():
    protocol, left_open = Recorder(), []

    async def main():
        _, peer = await open_pair(GuestLoop(), protocol)
        async with peer:
            await trio.testing.wait_all_tasks_blocked()
            left_open.append(socket.socket(fileno=peer.socket.detach()))  # or the peer's end would be the reason
        assert protocol.events == []

    trio.run(main)
    assert protocol.events == ["lost"]
    left_open[0].close()
