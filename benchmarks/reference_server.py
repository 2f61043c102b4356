"""The floor: what a bare Trio server needs to turn chat chunks into response events.

Raw HTTP, stdlib json, no database, no validation, no error handling: a bound, not a product. One send for all events
that one read of the upstream produced, or with ``--each`` one send an event.

    python -m benchmarks.reference_server UPSTREAM_HOST:PORT [--each]
"""

import json
import sys
from collections.abc import Iterator

import trio

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_READ_BYTES = 65536


async def _serve(client: trio.SocketStream, upstream: tuple[str, int], *, each: bool) -> None:
    try:
        buffer = b""
        while True:
            while b"\r\n\r\n" not in buffer:
                data = await client.receive_some(_READ_BYTES)
                if not data:
                    return
                buffer += data
            head, _, body = buffer.partition(b"\r\n\r\n")
            length = _content_length(head)
            while len(body) < length:
                body += await client.receive_some(_READ_BYTES)
            request, buffer = json.loads(body[:length]), body[length:]
            if request.get("stream"):
                await _stream(client, request, upstream, each=each)
            else:
                await _answer(client, request, upstream)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        await trio.aclose_forcefully(client)


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _chat_request(request: dict[str, object], *, stream: bool) -> bytes:
    body: dict[str, object] = {
        "model": request["model"],
        "messages": [{"role": "user", "content": request["input"]}],
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    data = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: upstream\r\ncontent-type: application/json\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(data) + data


async def _stream(
    client: trio.SocketStream, request: dict[str, object], address: tuple[str, int], *, each: bool
) -> None:
    numbers = iter(range(sys.maxsize))
    text: list[str] = []
    await client.send_all(_HEAD + _chunk(b"".join(_opening(numbers))))
    async with await trio.open_tcp_stream(*address) as upstream:
        await upstream.send_all(_chat_request(request, stream=True))
        pending, in_body = b"", False
        while True:
            data = await upstream.receive_some(_READ_BYTES)
            if not data:
                break
            pending += data
            if not in_body:
                if b"\r\n\r\n" not in pending:
                    continue
                pending, in_body = pending.partition(b"\r\n\r\n")[2], True
            frames = []
            is_over = False
            while True:
                frame, found, rest = pending.partition(b"\n\n")
                if not found:
                    break
                pending = rest
                payload = frame[frame.find(b"data: ") + 6 :]
                if payload == b"[DONE]":
                    is_over = True
                    break
                chunk = json.loads(payload)
                for choice in chunk["choices"]:
                    delta = choice["delta"].get("content")
                    if delta:
                        text.append(delta)
                        frames.append(_delta(next(numbers), delta))
            if frames and each:
                for frame in frames:
                    await client.send_all(_chunk(frame))
            elif frames:
                await client.send_all(_chunk(b"".join(frames)))
            if is_over:
                break
    await client.send_all(_chunk(b"".join(_closing(numbers, "".join(text)))) + b"0\r\n\r\n")


async def _answer(client: trio.SocketStream, request: dict[str, object], address: tuple[str, int]) -> None:
    async with await trio.open_tcp_stream(*address) as upstream:
        await upstream.send_all(_chat_request(request, stream=False))
        data = b""
        while b"\r\n\r\n" not in data:
            data += await upstream.receive_some(_READ_BYTES)
        head, _, body = data.partition(b"\r\n\r\n")
        length = _content_length(head)
        while len(body) < length:
            body += await upstream.receive_some(_READ_BYTES)
    text = json.loads(body)["choices"][0]["message"]["content"]
    answer = json.dumps(
        {"id": "resp_0", "object": "response", "output": [{"type": "message", "content": text}]}
    ).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    await client.send_all(head % len(answer) + answer)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _frame(number: int, kind: str, fields: dict[str, object]) -> bytes:
    data = json.dumps({"type": kind, "sequence_number": number, **fields})
    return f"event: {kind}\ndata: {data}\n\n".encode()


def _delta(number: int, delta: str) -> bytes:
    place = {"item_id": "msg_0", "output_index": 0, "content_index": 0}
    return _frame(number, "response.output_text.delta", {**place, "delta": delta, "logprobs": []})


def _opening(numbers: Iterator[int]) -> Iterator[bytes]:
    response = {"id": "resp_0", "object": "response", "status": "in_progress", "output": []}
    yield _frame(next(numbers), "response.created", {"response": response})
    yield _frame(next(numbers), "response.in_progress", {"response": response})
    yield _frame(next(numbers), "response.output_item.added", {"output_index": 0, "item": {"id": "msg_0"}})
    yield _frame(next(numbers), "response.content_part.added", {"output_index": 0, "item_id": "msg_0"})


def _closing(numbers: Iterator[int], text: str) -> Iterator[bytes]:
    part = {"type": "output_text", "text": text}
    item = {"id": "msg_0", "type": "message", "content": [part]}
    response = {"id": "resp_0", "object": "response", "status": "completed", "output": [item]}
    yield _frame(next(numbers), "response.output_text.done", {"item_id": "msg_0", "text": text})
    yield _frame(next(numbers), "response.content_part.done", {"item_id": "msg_0", "part": part})
    yield _frame(next(numbers), "response.output_item.done", {"output_index": 0, "item": item})
    yield _frame(next(numbers), "response.completed", {"response": response})


async def _main(upstream: tuple[str, int], *, each: bool) -> None:
    async with trio.open_nursery() as nursery:

        async def serve(client: trio.SocketStream) -> None:
            await _serve(client, upstream, each=each)

        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        print(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", flush=True)


if __name__ == "__main__":
    host, _, port = sys.argv[1].partition(":")
    trio.run(lambda: _main((host, int(port)), each="--each" in sys.argv))
