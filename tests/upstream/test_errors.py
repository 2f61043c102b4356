"""What an upstream says of its error: read as far as it is worth, whatever its body does."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
import trio

from dwctl_trio.config import UpstreamConfig
from dwctl_trio.domain.errors import UpstreamRejected
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.rejections import Rejection, RejectionReason
from dwctl_trio.domain.tools import FREE_CHOICE
from dwctl_trio.domain.transitions import TurnPlan
from dwctl_trio.ports import UpstreamCall
from dwctl_trio.protocol.request_body import parse_request
from dwctl_trio.upstream.client import Upstreams, open_upstreams

WAIT_S = 10.0
LIMITS = Limits(upstream_error_s=0.05, upstream_error_bytes=1024)
SAID = b'{"error": {"code": "context_length_exceeded"}}'
_HEAD = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"


@asynccontextmanager
async def _open(answer: Callable[[trio.SocketStream], Awaitable[None]], transport: str) -> AsyncIterator[Upstreams]:
    """A client of an upstream that answers the first read of each connection by *answer*, then waits for its end."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await stream.receive_some()
                await answer(stream)
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass  # the client has left

    async with trio.open_nursery() as nursery:
        (listener, *_) = await nursery.start(trio.serve_tcp, serve, 0)
        base_url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/v1"
        async with open_upstreams(
            [UpstreamConfig(name="raw", base_url=base_url, transport=transport)], LIMITS
        ) as upstreams:
            yield upstreams
        nursery.cancel_scope.cancel()


async def _refusal(upstreams: Upstreams) -> UpstreamRejected:
    call = UpstreamCall(
        route=ModelRoute(model="m", upstream="raw", upstream_model="m"),
        request=parse_request({"model": "m", "input": "hello"}),
        output=(),
        plan=TurnPlan(tools=(), tool_choice=FREE_CHOICE, max_output_tokens=None),
        step_id=uuid4(),
    )
    with trio.fail_after(WAIT_S), pytest.raises(UpstreamRejected) as caught:
        async with upstreams.open_turn(call):
            raise AssertionError("an error is no answer")
    assert upstreams.free_places("raw") == upstreams.all_places("raw")
    return caught.value


async def test_an_error_that_is_whole_is_understood(transport: str) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.send_all(_HEAD + b"content-length: %d\r\n\r\n" % len(SAID) + SAID)

    async with _open(answer, transport) as upstreams:
        assert (await _refusal(upstreams)).rejection == Rejection(reason=RejectionReason.CONTEXT_LENGTH)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", SAID[:20]])
async def test_a_body_that_does_not_end_is_not_waited_for(transport: str, sent: bytes) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.send_all(_HEAD + b"content-length: %d\r\n\r\n" % len(SAID) + sent)

    async with _open(answer, transport) as upstreams:
        error = await _refusal(upstreams)

    assert (error.status, error.rejection) == (400, None)


async def test_a_body_that_is_cut_off_costs_only_the_reason(transport: str) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.send_all(_HEAD + b"content-length: %d\r\n\r\n" % len(SAID) + SAID[:20])
        await stream.send_eof()

    async with _open(answer, transport) as upstreams:
        assert (await _refusal(upstreams)).rejection is None


async def test_of_a_body_without_end_only_the_beginning_is_read(transport: str) -> None:
    sent = 0

    async def answer(stream: trio.SocketStream) -> None:
        nonlocal sent
        await stream.send_all(_HEAD + b"\r\n")
        while True:
            await stream.send_all(b" " * 65536)
            sent += 65536

    async with _open(answer, transport) as upstreams:
        assert (await _refusal(upstreams)).rejection is None
    assert sent < 64 * 1024 * 1024, "the sockets' buffers, and no more"
