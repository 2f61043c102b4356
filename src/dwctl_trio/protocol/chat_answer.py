"""An answer handed over as its upstream gave it: whole, or chunk by chunk.

Rule 1: what is handed over is the upstream's own text, but for line breaks, for what is no JSON to others, and for the
model, which has the name that the client used.
Rule 2: an error that the upstream reports is raised in our words and never handed over.
Rule 3: the chunk with the usage is read always, and handed over to a client that asked for it.

Source: OpenAI API reference, "The chat completion object", "The chat completion chunk object", "The completion object"
and "The embedding object".
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from dwctl_trio.domain.chat import ChatRequest
from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.errors import UpstreamError
from dwctl_trio.domain.turn import UsageReported
from dwctl_trio.domain.usage import Usage
from dwctl_trio.protocol import json
from dwctl_trio.protocol.answer_reader import AnswerReader
from dwctl_trio.protocol.chat_chunks import Choice, Chunk, decode_leniently, read_finish_reason, read_usage

ChatPart: TypeAlias = bytes | UsageReported
"""One chunk on one line, or the whole completion; or what the call has used."""


_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class ChatAnswerReader(AnswerReader[ChatPart]):
    """The parts of a chat completion, or of the completion of a text, out of its bytes.

    Args:
        request: What was asked; a stream whose upstream answers with one JSON document becomes a stream all the same.
        event_bytes_max: Bytes of one event.
        answer_bytes_max: Bytes of all chunks together, or of the whole completion.
    """

    def __init__(self, request: ChatRequest, *, event_bytes_max: int, answer_bytes_max: int) -> None:
        super().__init__(event_bytes_max=event_bytes_max, answer_bytes_max=answer_bytes_max)
        self._request = request
        self._is_finished_by_choice: dict[int, bool] = {}
        self._usage: Usage | None = None

    def feed(self, data: bytes) -> list[ChatPart]:
        """See ``AnswerReader``."""
        if not self._request.stream:
            raise UpstreamError("The model's server streamed an answer that was not asked for as a stream.")
        return super().feed(data)

    def _read_chunk(self, chunk: Chunk, data: bytes) -> None:
        self._budget.take(len(data))
        choices = chunk.choices or []
        self._check_messages(choices)
        text = _as_json(data)
        text = _named(text, chunk.model, self._request.model)
        for choice in choices:  # only now: a failure behind the finish would be none
            self._note_choice(choice)
        if chunk.usage is not None:
            self._usage = read_usage(chunk.usage) or self._usage
        if not self._request.stream:
            self._items.append(text)
        elif any(choice.message is not None for choice in choices):
            self._items += _as_chunks(text, wants_usage=self._request.wants_usage)
        elif choices or chunk.usage is None or self._request.wants_usage:
            self._items.append(json.one_line(text))
        if not choices and chunk.usage is not None:  # the last chunk that there may be
            self._note_end()
            if self._is_finished:
                self._report_usage()
                self._is_over = True

    def _check_messages(self, choices: Sequence[Choice]) -> None:
        """Refuse a whole chat completion of which a choice has no message."""
        has_message = [choice.message is not None for choice in choices]
        is_whole = not self._request.stream and self._request.surface is Surface.CHAT
        if (is_whole or any(has_message)) and not all(has_message):
            raise UpstreamError("The model's server sent a completion without a message.")

    def _note_choice(self, choice: Choice) -> None:
        index = choice.index if type(choice.index) is int else 0
        if index >= self._request.choices:
            return  # nobody asked for it, so nobody waits for it
        is_finished = read_finish_reason(choice.finish_reason) is not None
        finished = self._is_finished_by_choice
        finished[index] = finished.get(index, False) or is_finished
        if len(finished) >= self._request.choices:
            self._note_end()

    def _note_end(self) -> None:
        """Take the answer for finished if all choices are that have begun; one more may have been to come."""
        finished = self._is_finished_by_choice
        self._is_finished = self._is_finished or (bool(finished) and all(finished.values()))

    def _report_usage(self) -> None:
        if self._usage is not None:
            self._items.append(UsageReported(self._usage))
            self._usage = None


class EmbeddingsReader(AnswerReader[ChatPart]):
    """Embeddings out of their bytes, which come as one document.

    Args:
        model: The name that the client used.
        answer_bytes_max: Bytes of the document.
    """

    def __init__(self, model: str, *, answer_bytes_max: int) -> None:
        super().__init__(event_bytes_max=answer_bytes_max, answer_bytes_max=answer_bytes_max)
        self._model = model
        self._usage: Usage | None = None

    def feed(self, data: bytes) -> list[ChatPart]:  # noqa: ARG002 - nothing of it is read
        """See ``AnswerReader``."""
        raise UpstreamError("The model's server streamed an answer that was not asked for as a stream.")

    def _read_chunk(self, chunk: Chunk, data: bytes) -> None:
        text = data if data.isascii() else _as_json(data)
        members = _read_members(text)  # to decode a million numbers would take a while
        if not bytes(members.get("data", b"")).lstrip().startswith(b"["):
            raise UpstreamError("The model's server sent JSON that holds no embeddings.")
        self._items.append(_named(text, chunk.model, self._model))
        if isinstance(chunk.usage, dict):
            self._usage = read_usage({"completion_tokens": 0, **chunk.usage})
        self._is_finished = True

    def _report_usage(self) -> None:
        if self._usage is not None:
            self._items.append(UsageReported(self._usage))
            self._usage = None


def _named(data: bytes, named: object, model: str) -> bytes:
    """*data*, an object that has *named* for its model, with *model* instead; all other values stay as they are."""
    if named is None or named == model:
        return data
    members = _read_members(data)
    members["model"] = msgspec.Raw(json.encode(model))
    return json.encode(members)


def _read_members(data: bytes) -> dict[str, msgspec.Raw]:
    """The members of the object *data*, each as it stands there.

    Raises:
        UpstreamError: It is no object, or no JSON to others.
    """
    try:
        return _MEMBERS.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # and go on outside of this block: the exception holds the provider's text
    raise UpstreamError("The model's server sent something that is not a JSON object.")


def _as_json(data: bytes) -> bytes:
    """*data* if every reader takes it for JSON, else what it says, its texts cleaned."""
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    else:
        return data
    return json.encode(decode_leniently(data))


def _as_chunks(completion: bytes, *, wants_usage: bool) -> list[ChatPart]:
    """A whole completion as the chunks of a stream: one for all choices, and one for the usage."""
    whole = msgspec.json.decode(completion)
    whole["object"] = "chat.completion.chunk"
    usage = whole.pop("usage", None)
    chunks: list[ChatPart] = [json.encode({**whole, "choices": [_as_delta(choice) for choice in whole["choices"]]})]
    if wants_usage and usage is not None:
        chunks.append(json.encode({**whole, "choices": [], "usage": usage}))
    return chunks


def _as_delta(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.pop("message")
    calls = message.get("tool_calls")
    if isinstance(calls, list):  # which clients put together by their places
        message["tool_calls"] = [
            {"index": index, **call} if isinstance(call, dict) else call for index, call in enumerate(calls)
        ]
    return {**choice, "delta": message}
