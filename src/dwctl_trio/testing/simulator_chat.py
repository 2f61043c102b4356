"""The chat-completions JSON of the simulator: the request it reads, the chunks and bodies it answers with.

Rule 1: one token is one delta; ``usage`` counts exactly these.
Rule 2: ``SERIAL`` stands where the request's number goes, so that one rendering serves every request.

It does not know sockets, pauses or endings.

Source: OpenAI API reference, "Create chat completion" and "The chat completion chunk object".
"""

import json
import re
from collections.abc import Iterable
from typing import Any

import attrs
import msgspec

from dwctl_trio.testing.simulator_scenes import (
    Big,
    Inspect,
    Parrot,
    Reasoning,
    Refusal,
    Scene,
    Script,
    Text,
    ToolCalls,
)
from dwctl_trio.testing.simulator_script import expected_tokens, words

SERIAL = b"\x01"
"""Placeholder of the request's number; JSON texts never hold this byte, they escape it."""
CREATED = 1_750_000_000
"""The ``created`` of every answer, so that the same request gives the same bytes."""

_ASKED = re.compile(r"\bcall:([\w.-]+)(?=\{)")
"""Of a tool, before the JSON object of its arguments."""


_URL = {"start_index": 0, "end_index": 5, "title": "Word", "url": "https://words.example/0"}
ANNOTATIONS = [
    {"type": "url_citation", "url_citation": _URL},
    {"type": "file_citation", "file_id": "file_1", "filename": "words.txt", "index": 1},
    {"type": "url_citation", "url_citation": {"url": "https://words.example/malformed"}},
    {"type": "container_file_citation", "container_id": "cntr_1", "file_id": "file_2", "filename": "more.txt",
     "start_index": 0, "end_index": 5},
    {"type": "file_path", "file_id": "file_3", "index": 2},
    {"type": "url_citation", "url_citation": _URL},
]  # fmt: skip
"""What ``cites`` says: one of each kind, one without its places, and the first once more."""


class Message(msgspec.Struct, frozen=True):
    """One message of a request, as far as the simulator reads it."""

    role: str = ""
    content: str | list[Any] | None = None
    tool_calls: list[Any] | None = None

    def text(self) -> str:
        """The text of the message; parts that are not text are left out."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        texts = (part.get("text") for part in self.content if isinstance(part, dict))
        return "".join(text for text in texts if isinstance(text, str))


class ChatRequest(msgspec.Struct, frozen=True):
    """A request body, as far as the simulator reads it."""

    model: str
    messages: list[Message] = []
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    tools: list[Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


@attrs.frozen(kw_only=True)
class ToolCall:
    """One tool call of an answer."""

    call_id: str | None
    name: str
    fragments: tuple[str, ...]
    """The arguments, one token each."""
    id_comes_last: bool


@attrs.frozen(kw_only=True)
class Turn:
    """What one answer says, before it is a stream or a body."""

    reasoning: tuple[str, ...] = ()
    reasoning_field: str = "reasoning_content"
    content: tuple[str, ...] = ()
    refusal: tuple[str, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()

    def tokens(self) -> int:
        """All tokens: a tool call's opening counts as one."""
        calls = sum(1 + len(call.fragments) for call in self.tool_calls)
        return len(self.reasoning) + len(self.content) + len(self.refusal) + calls


def parse_chat_request(body: bytes) -> ChatRequest:
    """The request in a body.

    Raises:
        ValueError: It is not JSON, or not shaped like a chat-completions request.
    """
    try:
        try:
            return msgspec.json.decode(body, type=ChatRequest)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:  # the standard library also reads lone surrogates
            return msgspec.convert(json.loads(body), type=ChatRequest)
    except RecursionError:
        raise ValueError("the request is nested too deeply") from None


def last_user_text(request: ChatRequest) -> str:
    """The text of the last user message, empty if there is none."""
    return next((message.text() for message in reversed(request.messages) if message.role == "user"), "")


def prompt_tokens(request: ChatRequest) -> int:
    """Words of all messages' texts, separated by white space."""
    return sum(len(message.text().split()) for message in request.messages)


def turn_number(request: ChatRequest) -> int:
    """Tool-calling turns of the model since the last user message."""
    turns = 0
    for message in reversed(request.messages):
        if message.role == "user":
            break
        turns += bool(message.role == "assistant" and message.tool_calls)
    return turns


def turn_of(scene: Scene, request: ChatRequest, *, body: bytes, serial: str) -> Turn:
    """What a scene says to a request; empty for scenes that fail before they say anything.

    Args:
        scene: The scene.
        request: The request.
        body: The bytes it was read from, for ``inspect``.
        serial: The request's number, for the ids of tool calls.
    """
    match scene.answer:
        case Text() | Big() | Parrot():
            return Turn(content=expected_tokens(Script(scenes=(scene,)), prompt=last_user_text(request)))
        case Refusal(tokens=tokens):
            return Turn(refusal=words(scene, tokens))
        case Reasoning(reasoning_tokens=reasoning, tokens=tokens, field=field):
            return Turn(reasoning=words(scene, reasoning), reasoning_field=field, content=words(scene, tokens))
        case Inspect():
            return Turn(content=(body.decode("utf-8", "replace"),))
        case ToolCalls(calls=calls):
            return Turn(
                tool_calls=tuple(_tool_call(scene.answer, request, index, serial=serial) for index in range(calls))
            )
        case _:
            return Turn()


def deltas(turn: Turn) -> list[dict[str, Any]]:
    """The deltas of a turn, in order, one for each token; tool calls are interleaved by index."""
    return [
        *({turn.reasoning_field: text} for text in turn.reasoning),
        *({"content": text} for text in turn.content),
        *({"refusal": text} for text in turn.refusal),
        *_tool_call_deltas(turn.tool_calls),
    ]


def message(turn: Turn) -> dict[str, Any]:
    """The turn as the message of a body that is not streamed."""
    said: dict[str, Any] = {
        "role": "assistant",
        "content": None if turn.tool_calls or turn.refusal else "".join(turn.content),
        "refusal": "".join(turn.refusal) or None,
    }
    if turn.reasoning:
        said[turn.reasoning_field] = "".join(turn.reasoning)
    if turn.tool_calls:
        said["tool_calls"] = [
            {
                **({} if call.call_id is None else {"id": call.call_id}),
                "type": "function",
                "function": {"name": call.name, "arguments": "".join(call.fragments)},
            }
            for call in turn.tool_calls
        ]
    return said


def logprobs(tokens: Iterable[str], request: ChatRequest) -> dict[str, Any] | None:
    """The log probabilities of *tokens*, with as many alternatives as were asked for; None without any token."""
    said = [_logprob(token, -0.25) for token in tokens if token]
    for token in said:
        others = (_logprob(f"{token['token']}{place}", -1.5 - place) for place in range(request.top_logprobs or 0))
        token["top_logprobs"] = list(others)
    return {"content": said, "refusal": None} if said else None


def _logprob(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode(errors="replace"))}


def usage(turn: Turn, request: ChatRequest) -> dict[str, Any]:
    """The usage object of an answer."""
    prompt, completion = prompt_tokens(request), turn.tokens()
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": len(turn.reasoning)},
    }


def envelope(kind: str, model: str, **rest: Any) -> bytes:
    """An answer object as JSON bytes, with ``SERIAL`` in its id."""
    head = b'{"id":"chatcmpl-%b","object":"%b","created":%d,' % (SERIAL, kind.encode(), CREATED)
    return head + json_bytes({"model": model, **rest})[1:]


def json_bytes(value: Any) -> bytes:
    """JSON in UTF-8; what UTF-8 cannot hold, lone surrogates, makes it all ASCII with escapes."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode("ascii")


def _tool_call(answer: ToolCalls, request: ChatRequest, index: int, *, serial: str) -> ToolCall:
    asked = _asked_calls(last_user_text(request)) if answer.shape == "toolsasked" else []
    name, arguments = asked[index % len(asked)] if asked else _example_call(request, index)
    if answer.shape == "toolsbad":
        arguments = '{"call": ' + arguments
    return ToolCall(
        call_id=None if answer.shape == "toolsnoid" else f"call_{serial}_{index}",
        name=name,
        fragments=tuple(arguments[start : start + 6] for start in range(0, len(arguments), 6)),
        id_comes_last=answer.shape == "toolslate",
    )


def _asked_calls(text: str) -> list[tuple[str, str]]:
    """The name and the arguments of each ``call:name{…}`` in *text*; what is no JSON object is left out."""
    found = []
    for asked in _ASKED.finditer(text):
        try:
            _, end = json.JSONDecoder().raw_decode(text, asked.end())
        except (ValueError, RecursionError):
            continue
        found.append((asked[1], text[asked.end() : end]))
    return found


def _example_call(request: ChatRequest, index: int) -> tuple[str, str]:
    """The name of a tool of the request, and arguments that its schema allows."""
    functions = [tool.get("function") for tool in request.tools or [] if isinstance(tool, dict)]
    known = [function for function in functions if isinstance(function, dict) and function.get("name")]
    function = known[index % len(known)] if known else {"name": f"tool_{index + 1}"}
    return str(function["name"]), json_bytes(_arguments(function.get("parameters"), index)).decode()


def _arguments(parameters: Any, index: int) -> dict[str, Any]:
    """A value for each property of a JSON schema; without a schema, the number of the call."""
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    if not isinstance(properties, dict):
        return {"call": index}
    return {name: _example(schema, index) for name, schema in properties.items()}


def _example(schema: Any, index: int) -> Any:
    if not isinstance(schema, dict):
        return f"word{index}"
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][index % len(schema["enum"])]
    kinds = {"integer": index, "number": index + 0.5, "boolean": True, "array": [], "object": {}, "null": None}
    kind = schema.get("type")
    return kinds.get(kind, f"word{index}") if isinstance(kind, str) else f"word{index}"


def _tool_call_deltas(calls: tuple[ToolCall, ...]) -> list[dict[str, Any]]:
    found = []
    for index, call in enumerate(calls):
        opening = {"index": index, "type": "function", "function": {"name": call.name, "arguments": ""}}
        found.append(opening if call.call_id is None or call.id_comes_last else {"id": call.call_id, **opening})
    for position in range(max((len(call.fragments) for call in calls), default=0)):
        for index, call in enumerate(calls):
            if position >= len(call.fragments):
                continue
            late = {"id": call.call_id} if call.id_comes_last and position == len(call.fragments) - 1 else {}
            found.append({"index": index, **late, "function": {"arguments": call.fragments[position]}})
    return [{"tool_calls": [call]} for call in found]
