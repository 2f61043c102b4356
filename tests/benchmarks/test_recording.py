"""What a soak counts: a recorded stream is whole, and every fault that is put into one is found."""

import os
from functools import partial

import attrs
import pytest
import trio
from benchmarks.rig import clock
from benchmarks.rig.processes import Process
from benchmarks.rig.recording import Findings, Recording, examine, record, unchunked
from benchmarks.rig.site import responses_target

from dwctl_trio.protocol.request_body import parse_request
from dwctl_trio.testing.service import open_service
from dwctl_trio.testing.simulator_http import LAST_CHUNK, chunk

TOKENS = 5
MODEL = clock.clock_model(TOKENS, 1)
ASKED = parse_request({"model": MODEL, "input": "hi", "stream": True})
WAIT_S = 10.0


@pytest.fixture
async def recording(postgres_dsn: str) -> Recording:
    """A stream of the service."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, clock.serve, 0, host="127.0.0.1"))
        upstream = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1"
        async with open_service(postgres_dsn, {"upstreams": {"simulator": {"base_url": upstream}}}) as service:
            target = responses_target(Process(pid=os.getpid(), url=service.url))
            recording = await record(target, target.request(MODEL, stream=True), WAIT_S)
        nursery.cancel_scope.cancel()
    return recording


def examined(recording: Recording, body: bytes) -> Findings:
    """What the stream is, had it been *body* instead, in one chunk."""
    head, _, _ = bytes(recording.raw).partition(b"\r\n\r\n")
    raw = head + b"\r\n\r\n" + chunk(body) + LAST_CHUNK
    return examine(attrs.evolve(recording, raw=bytearray(raw), ends=[len(raw)]), ASKED, TOKENS)


async def test_a_whole_stream_has_no_fault_and_a_delay_for_each_token(recording: Recording) -> None:
    findings = examine(recording, ASKED, TOKENS)
    assert (findings.failure, findings.violation, findings.lost, findings.doubled) == (None, None, 0, 0)
    assert len(findings.delays_us) == TOKENS
    assert all(0 < delay_us < WAIT_S * 1e6 for delay_us in findings.delays_us)


async def test_each_fault_of_a_stream_is_found(recording: Recording) -> None:
    _, _, chunks = bytes(recording.raw).partition(b"\r\n\r\n")
    body = unchunked(chunks)
    (frame,) = (frame for frame in body.split(b"\n\n") if b'"delta":"2:' in frame)
    without = examined(recording, body.replace(frame + b"\n\n", b""))
    assert without.lost == 1
    assert without.violation is not None
    twice = examined(recording, body.replace(frame, frame + b"\n\n" + frame))
    assert twice.doubled == 1
    assert twice.violation is not None
    assert examined(recording, body.replace(b'"delta":"2:', b'"delta":"3:')).violation is not None
    assert (
        examined(recording, body.replace(b"event: response.completed", b"event: response.failed")).failure is not None
    )
    recording.raw[:] = recording.raw[:-2]
    assert examine(recording, ASKED, TOKENS).failure is not None
    recording.raw[:] = b""
    assert examine(recording, ASKED, TOKENS).failure is not None
