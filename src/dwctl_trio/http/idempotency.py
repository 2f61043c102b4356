"""``Idempotency-Key`` on a request for a response: sent twice, it makes one.

Rule 1: a request that is the first with its key is served like any other.
Rule 2: a repeat is answered with the bytes that the first one's client was told, and says so in its headers.
Rule 3: a streamed repeat sends its head when ``head_hold_s`` is over; what it learns later, it tells in the stream.

Source: Stripe API reference, "Idempotent requests"; draft-ietf-httpapi-idempotency-key-header.
"""

import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import attrs
import trio
from quart import Response as HttpResponse
from quart import request

from dwctl_trio.domain.errors import DwctlError, IdempotencyKeyHeld, InvalidRequest
from dwctl_trio.domain.idempotency import IDEMPOTENCY_KEY, KEY_CHARACTERS_MAX, IdempotencyKey, Replay
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.engine.repeats import put_together_once, repeat
from dwctl_trio.engine.scope import ResponseRefused, run_inline_blocking, run_inline_streaming
from dwctl_trio.engine.state import Services
from dwctl_trio.http.answers import answer_json, answer_response, answer_stream
from dwctl_trio.http.api import Api
from dwctl_trio.http.connection import request_nursery
from dwctl_trio.ports import NewResponse
from dwctl_trio.protocol import json
from dwctl_trio.protocol.error_body import error_event, failure_error, http_error

_Result = TypeVar("_Result")

_KEY = re.compile(rf"[!-~]{{1,{KEY_CHARACTERS_MAX}}}")


def read_idempotency_key(body: object) -> IdempotencyKey | None:
    """The key of the current request, whose decoded body is *body*; None where it has none.

    Raises:
        InvalidRequest: It is not one.
    """
    sent = request.headers.getlist(IDEMPOTENCY_KEY)
    if not sent:
        return None
    if len(sent) > 1 or not _KEY.fullmatch(sent[0]):
        raise InvalidRequest(
            f"Invalid '{IDEMPOTENCY_KEY}': expected one header of 1 to {KEY_CHARACTERS_MAX} visible ASCII characters "
            "without blanks, such as a UUID.",
            param=IDEMPOTENCY_KEY,
        )
    return IdempotencyKey(text=sent[0], body_digest=json.digest(body))


async def answer_once(api: Api, new: NewResponse) -> HttpResponse:
    """Answer a request that has a key: run it, or give what the first one with this key was told.

    Raises:
        InvalidRequest: It cannot be put together, and repeats no other.
        ResponseRefused: It was run, and failed while nothing had been sent.
        IdempotencyConflict: The first one's response cannot be given.
    """
    if new.request.stream:
        return await _stream_once(api, new)
    run = partial(_run, api, run_inline_blocking, request_nursery())
    try:
        return answer_response(await run(new))
    except IdempotencyKeyHeld:
        result = await repeat(api.services, new, run, api.refuse_when_stopping)
    if isinstance(result, Replay):
        return _say_replayed(answer_json(result.told), result)
    return answer_response(result)


async def _stream_once(api: Api, new: NewResponse) -> HttpResponse:
    nursery, limits = request_nursery(), api.services.limits
    run = partial(_run, api, run_inline_streaming, nursery)
    try:
        return answer_stream(api, await run(new))
    except IdempotencyKeyHeld:
        send_frames, receive_frames = trio.open_memory_channel[bytes](limits.event_channel_items)
    follower = _Follower(api, new, run)
    nursery.start_soon(follower.tell, send_frames, name="follow_first")
    with trio.move_on_after(limits.head_hold_s):
        await follower.known.wait()
    if follower.error is not None:
        receive_frames.close()
        raise follower.error
    follower.head_is_sent = True
    answer = answer_stream(api, receive_frames)
    return answer if follower.replay is None else _say_replayed(answer, follower.replay)


async def _run(
    api: Api,
    run_inline: Callable[[Services, NewResponse, trio.Nursery], Awaitable[_Result]],
    nursery: trio.Nursery,
    new: NewResponse,
) -> _Result:
    """What *run_inline* gives for *new*, once that is put together."""
    return await run_inline(api.services, await put_together_once(api.services, new, api.hold), nursery)


def _say_replayed(answer: HttpResponse, replay: Replay) -> HttpResponse:
    answer.headers["idempotent-replayed"] = "true"
    answer.headers["x-response-id"] = response_id_text(replay.response_id)
    return answer


@attrs.define(eq=False)
class _Follower:
    """A streamed repeat on its way to its frames."""

    api: Api
    new: NewResponse
    run: Callable[[NewResponse], Awaitable[trio.MemoryReceiveChannel[bytes]]]
    known: trio.Event = attrs.field(factory=trio.Event)
    """Set when it is known what the stream will hold."""
    replay: Replay | None = None
    error: DwctlError | ResponseRefused | None = None
    """What to answer instead of a stream."""
    head_is_sent: bool = False

    async def tell(self, send_frames: trio.MemorySendChannel[bytes]) -> None:
        """Send the frames of the first request, or of a run of its own, or the error that keeps it from both."""
        async with send_frames:
            try:
                result = await repeat(self.api.services, self.new, self.run, self.api.refuse_when_stopping)
            except (DwctlError, ResponseRefused) as error:
                self.error = error
                self.known.set()
                if self.head_is_sent:
                    await _send(send_frames, _late_error(error))
                return
            if isinstance(result, Replay):
                self.replay = result
                self.known.set()
                await _send(send_frames, result.told)
                return
            self.known.set()
            async with result:
                async for frames in result:
                    if not await _send(send_frames, frames):
                        return


async def _send(send_frames: trio.MemorySendChannel[bytes], frames: bytes) -> bool:
    """Hand over *frames*; False if their reader has left."""
    try:
        await send_frames.send(frames)
    except trio.BrokenResourceError:
        return False
    return True


def _late_error(error: DwctlError | ResponseRefused) -> bytes:
    return error_event(failure_error(error.failure) if isinstance(error, ResponseRefused) else http_error(error))
