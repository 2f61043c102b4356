"""An upstream whose tokens say which they are and when they were sent: ``python -m benchmarks.rig.clock``.

The model is named ``clock-TOKENS-MS``. Token *n* is due *n* + 1 times MS milliseconds after the request, by a clock
that a late token does not put back. The time is that of ``time.monotonic_ns`` in microseconds, one clock for all
processes of a machine.

Rule: it is cheaper than the simulator, and knows nothing else; what a client does not want, it does not notice.
"""

import json
import re
import time

import trio

from dwctl_trio.testing.simulator_http import LAST_CHUNK, BadRequest, RequestReader, chunk, response_head

_MODEL = re.compile(r"clock-(\d+)-(\d+)")
_HEAD = response_head(200, "text/event-stream; charset=utf-8")
_BLOCK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1750000000,"model":"clock",'
    b'"choices":[{"index":0,"delta":{"content":"%d:%d "},"finish_reason":null}]}\n\n'
)
_FINISH = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1750000000,"model":"clock",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1750000000,"model":"clock",'
    b'"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%d,"total_tokens":%d}}\n\n'
    b"data: [DONE]\n\n"
)


def clock_model(tokens: int, interval_ms: int) -> str:
    """The name of the model that sends so many tokens, so far apart."""
    return f"clock-{tokens}-{interval_ms}"


async def serve(stream: trio.SocketStream) -> None:
    """Answer the requests of one connection until it is closed."""
    reader = RequestReader(stream)
    try:
        while (request := await reader.read_request()) is not None:
            found = _MODEL.fullmatch(json.loads(request.body)["model"])
            assert found is not None, "the model is named clock-TOKENS-MS"
            await _answer(stream, tokens=int(found[1]), interval_s=int(found[2]) / 1000)
    except (trio.BrokenResourceError, BadRequest):
        pass  # the client is gone, maybe within its request


async def _answer(stream: trio.SocketStream, *, tokens: int, interval_s: float) -> None:
    due_at = trio.current_time()
    await stream.send_all(_HEAD)
    for number in range(tokens):
        due_at += interval_s
        await trio.sleep_until(due_at)
        await stream.send_all(chunk(_BLOCK % (number, time.monotonic_ns() // 1000)))
    await stream.send_all(chunk(_FINISH % (tokens, tokens + 1)) + LAST_CHUNK)


async def _main() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=4096)
    print(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", flush=True)
    await trio.serve_listeners(serve, listeners)


if __name__ == "__main__":
    trio.run(_main)
