"""The answers that carry a response: one JSON object, or a stream of events."""

from collections.abc import Callable

import trio
from quart import Response as HttpResponse

from dwctl_trio.domain.response import Response
from dwctl_trio.http.api import Api
from dwctl_trio.http.event_body import EventBody, always_whole
from dwctl_trio.protocol.response_object import encode_response

STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}


def answer_json(body: bytes) -> HttpResponse:
    """*body*, which is JSON already."""
    return HttpResponse(body, headers={"content-type": "application/json"})


def answer_response(response: Response) -> HttpResponse:
    """A response that has ended."""
    return answer_json(encode_response(response))


def answer_stream(
    api: Api, receive_frames: trio.MemoryReceiveChannel[bytes], *, is_whole: Callable[[], bool] = always_whole
) -> HttpResponse:
    """Whatever frames come out of the channel, until its sender closes it; *is_whole* as for ``EventBody``."""
    body = EventBody(receive_frames, keep_alive_s=api.services.limits.keep_alive_s, is_whole=is_whole)
    answer = HttpResponse(body, headers=STREAM_HEADERS)
    answer.timeout = None  # Quart's default of 60 s would cut the stream without a word
    return answer
