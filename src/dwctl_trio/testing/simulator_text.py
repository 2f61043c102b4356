"""What the simulator says to ``/v1/completions`` and ``/v1/embeddings``: the same scripts, in other words.

Rule: a prompt is read as what a user says, so that keys, scripts and counts are those of a chat.

Source: OpenAI API reference, "Create completion", "Create embeddings".
"""

import base64
import hashlib
import struct
from typing import Any

import msgspec

from dwctl_trio.testing.simulator_chat import ChatRequest, Message, json_bytes, logprobs

DIMENSIONS = 8
"""Of a vector, unless the request says otherwise."""
_NUMBERS_MAX = 1 << 20
"""In all vectors of an answer: a second's work."""
_STEPS = 2.0**31


class TextRequest(ChatRequest, frozen=True):
    """A body of ``/v1/completions``, as far as the simulator reads it."""

    prompt: Any = ""


class EmbeddingsRequest(ChatRequest, frozen=True):
    """A body of ``/v1/embeddings``, as far as the simulator reads it."""

    input: Any = ""
    encoding_format: str | None = None
    dimensions: int | None = None


def parse_text_request(body: bytes) -> TextRequest:
    """The request in a body.

    Raises:
        ValueError: It is none.
    """
    request: TextRequest = _decode(body, TextRequest)
    replaced: TextRequest = msgspec.structs.replace(request, messages=_messages(request.prompt))
    return replaced


def parse_embeddings_request(body: bytes) -> EmbeddingsRequest:
    """The request in a body.

    Raises:
        ValueError: It is none.
    """
    request: EmbeddingsRequest = _decode(body, EmbeddingsRequest)
    replaced: EmbeddingsRequest = msgspec.structs.replace(request, messages=_messages(request.input))
    if len(replaced.messages) * (request.dimensions or DIMENSIONS) > _NUMBERS_MAX:
        raise ValueError("more numbers are asked for than are given")
    return replaced


def chunk_choice(request: ChatRequest, delta: dict[str, Any], reason: str | None) -> tuple[str, dict[str, Any]]:
    """The kind of a chunk of the answer to *request*, and its choice."""
    if isinstance(request, TextRequest):
        text = delta.get("content", "")
        return "text_completion", {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
    told = {"logprobs": logprobs([str(delta.get("content") or "")], request)} if request.logprobs else {}
    return "chat.completion.chunk", {"index": 0, "delta": delta, **told, "finish_reason": reason}


def embeddings_body(request: EmbeddingsRequest, *, prompt_tokens: int, with_usage: bool) -> bytes:
    """The vectors of all inputs, the same for the same input."""
    vectors = [vector(message.text(), request.dimensions or DIMENSIONS) for message in request.messages]
    is_packed = request.encoding_format == "base64"
    found = [
        {"object": "embedding", "index": index, "embedding": pack(values) if is_packed else values}
        for index, values in enumerate(vectors)
    ]
    usage = {"usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}} if with_usage else {}
    return json_bytes({"object": "list", "data": found, "model": request.model, **usage})


def vector(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """What *text* is embedded as: numbers in [-1, 1) that a float of 32 bits holds exactly."""
    digests = (hashlib.sha256(f"{index}:{text}".encode(errors="replace")).digest() for index in range(dimensions))
    return [(int.from_bytes(digest[:3]) << 8) / _STEPS - 1 for digest in digests]


def pack(values: list[float]) -> str:
    """*values* as ``encoding_format: "base64"`` has them."""
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def _decode(body: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError:
        raise ValueError("the request is nested too deeply") from None


def _messages(value: Any) -> list[Message]:
    """Each text, or each array of tokens, as what a user says, a token as a word."""
    entries = value if isinstance(value, list) and any(type(entry) is not int for entry in value) else [value]
    return [Message(role="user", content=_words(entry)) for entry in entries]


def _words(entry: Any) -> str:
    return " ".join(map(str, entry)) if isinstance(entry, list) else str(entry)
