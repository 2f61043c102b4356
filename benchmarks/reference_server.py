"""The reference: what a bare Trio server needs to turn chat chunks into response events.

Raw HTTP, stdlib json, no database, no validation, no error handling: a bound, not a product. One send for all events
that one read of the upstream produced, or with ``--each`` one send an event. Tools that the model calls are called, one
after the other.

    python -m benchmarks.reference_server UPSTREAM [TOOLS] [--each]     # as HOST:PORT or http://HOST:PORT
"""

import json
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import attrs
import trio

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_READ_BYTES = 65536
_TOOL = {"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}

_Address = tuple[str, int]


@attrs.frozen(kw_only=True)
class _Options:
    """What the command line says."""

    upstream: _Address
    tools: _Address | None
    each: bool


async def _serve(client: trio.SocketStream, options: _Options) -> None:
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
                await _stream(client, request, options)
            else:
                await _answer(client, request, options.upstream)
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


def _chat_request(request: dict[str, Any], messages: list[dict[str, Any]], *, stream: bool) -> bytes:
    body: dict[str, Any] = {"model": request["model"], "messages": messages, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    if request.get("tools"):
        body["tools"] = [_TOOL]
    return _post("/v1/chat/completions", json.dumps(body).encode())


def _post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: upstream\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def _messages(request: dict[str, Any]) -> list[dict[str, Any]]:
    said = request["input"]
    return [{"role": "user", "content": said}] if isinstance(said, str) else list(said)


async def _stream(client: trio.SocketStream, request: dict[str, Any], options: _Options) -> None:
    numbers = iter(range(sys.maxsize))
    text: list[str] = []
    messages = _messages(request)
    await client.send_all(_HEAD + _chunk(b"".join(_opening(numbers))))
    while True:
        calls: dict[int, dict[str, Any]] = {}
        async with aclosing(_read_turn(request, messages, options.upstream)) as reads:
            async for deltas in reads:
                frames = []
                for delta in deltas:
                    if delta.get("content"):
                        text.append(delta["content"])
                        frame = _delta(next(numbers), delta["content"])
                        if options.each:
                            await client.send_all(_chunk(frame))
                        else:
                            frames.append(frame)
                    for fragment in delta.get("tool_calls") or ():
                        _gather(calls, fragment)
                if frames:
                    await client.send_all(_chunk(b"".join(frames)))
        if not calls:
            break
        messages.append({"role": "assistant", "content": None, "tool_calls": list(calls.values())})
        for call in calls.values():
            output = await _call_tool(call, options.tools)
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": output})
            await client.send_all(_chunk(b"".join(_tool_events(numbers, call, output))))
    await client.send_all(_chunk(b"".join(_closing(numbers, "".join(text)))) + b"0\r\n\r\n")


async def _read_turn(
    request: dict[str, Any], messages: list[dict[str, Any]], address: _Address
) -> AsyncGenerator[Iterator[dict[str, Any]], None]:
    """The deltas of one model call, those of one read together, each decoded when it is its turn."""
    async with await trio.open_tcp_stream(*address) as upstream:
        await upstream.send_all(_chat_request(request, messages, stream=True))
        pending, in_body = b"", False
        while True:
            data = await upstream.receive_some(_READ_BYTES)
            if not data:
                return
            pending += data
            if not in_body:
                if b"\r\n\r\n" not in pending:
                    continue
                pending, in_body = pending.partition(b"\r\n\r\n")[2], True
            *frames, pending = pending.split(b"\n\n")
            payloads = [frame[frame.find(b"data: ") + 6 :] for frame in frames]
            chunks = (json.loads(payload) for payload in payloads if payload != b"[DONE]")
            yield (choice["delta"] for chunk in chunks for choice in chunk["choices"])
            if payloads and payloads[-1] == b"[DONE]":
                return


def _gather(calls: dict[int, dict[str, Any]], fragment: dict[str, Any]) -> None:
    call = calls.setdefault(
        fragment["index"], {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
    )
    call["id"] = fragment.get("id") or call["id"]
    for name in ("name", "arguments"):
        call["function"][name] += fragment["function"].get(name) or ""


async def _call_tool(call: dict[str, Any], address: _Address | None) -> str:
    assert address is not None, "the model calls a tool, and no server of tools was named"
    function = call["function"]
    body = await _ask(address, _post(f"/{function['name']}", function["arguments"].encode()))
    return body.decode()


async def _ask(address: _Address, request: bytes) -> bytes:
    """The body of the answer to one request on a connection of its own."""
    async with await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive_some(_READ_BYTES)
        head, _, body = data.partition(b"\r\n\r\n")
        length = _content_length(head)
        while len(body) < length:
            body += await stream.receive_some(_READ_BYTES)
    return body


async def _answer(client: trio.SocketStream, request: dict[str, Any], address: _Address) -> None:
    body = await _ask(address, _chat_request(request, _messages(request), stream=False))
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


def _tool_events(numbers: Iterator[int], call: dict[str, Any], output: str) -> Iterator[bytes]:
    item = {"id": "mcp_0", "type": "mcp_call", "name": call["function"]["name"]}
    arguments = call["function"]["arguments"]
    yield _frame(next(numbers), "response.output_item.added", {"item": item})
    yield _frame(next(numbers), "response.mcp_call.in_progress", {"item_id": "mcp_0"})
    yield _frame(next(numbers), "response.mcp_call_arguments.delta", {"item_id": "mcp_0", "delta": arguments})
    yield _frame(next(numbers), "response.mcp_call_arguments.done", {"item_id": "mcp_0", "arguments": arguments})
    yield _frame(next(numbers), "response.mcp_call.completed", {"item_id": "mcp_0"})
    yield _frame(next(numbers), "response.output_item.done", {"item": {**item, "output": output}})


def _closing(numbers: Iterator[int], text: str) -> Iterator[bytes]:
    part = {"type": "output_text", "text": text}
    item = {"id": "msg_0", "type": "message", "content": [part]}
    response = {"id": "resp_0", "object": "response", "status": "completed", "output": [item]}
    yield _frame(next(numbers), "response.output_text.done", {"item_id": "msg_0", "text": text})
    yield _frame(next(numbers), "response.content_part.done", {"item_id": "msg_0", "part": part})
    yield _frame(next(numbers), "response.output_item.done", {"output_index": 0, "item": item})
    yield _frame(next(numbers), "response.completed", {"response": response})


def _address(text: str) -> _Address:
    host, _, port = text.removeprefix("http://").partition(":")
    return host, int(port)


async def _main(options: _Options) -> None:
    async with trio.open_nursery() as nursery:

        async def serve(client: trio.SocketStream) -> None:
            await _serve(client, options)

        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        print(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", flush=True)


def _parse(arguments: list[str]) -> _Options:
    addresses = [_address(argument) for argument in arguments if not argument.startswith("--")]
    tools = addresses[1] if len(addresses) > 1 else None
    return _Options(upstream=addresses[0], tools=tools, each="--each" in arguments)


if __name__ == "__main__":
    trio.run(_main, _parse(sys.argv[1:]))
