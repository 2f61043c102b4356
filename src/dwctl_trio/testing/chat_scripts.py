"""What a scripted upstream sends in one turn, and what must come out of it.

Rule 1: the payloads and the expectation are written together, so they cannot disagree.
Rule 2: a script knows nothing of reads and newlines; ``render_sse`` and its reader choose those.

``strategies.chat_scripts`` draws them; ``ScriptWriter`` writes one by hand.
"""

import json
from typing import Any
from uuid import UUID

import attrs

from dwctl_trio.domain.errors import UpstreamError
from dwctl_trio.domain.ids import synthetic_call_id
from dwctl_trio.domain.turn import FinishReason
from dwctl_trio.domain.usage import Usage
from dwctl_trio.protocol.json import clean_text

PROVIDER_CANARY = "provider-canary-7c1e"
"""In every text of a provider that must never get out."""


@attrs.frozen(kw_only=True)
class ExpectedCall:
    """A tool call as it must come out."""

    position: int
    call_id: str | None
    """None: the upstream never told, so it is synthetic."""
    name: str
    arguments: str


@attrs.frozen(kw_only=True)
class ExpectedTurn:
    """The content of a turn, each kind's deltas joined; up to the failure if there is one."""

    text: str = ""
    refusal: str = ""
    reasoning: str = ""
    annotations: tuple[bytes, ...] = ()
    logprobs: tuple[bytes, ...] = ()
    """Of the text, whichever deltas they came with."""
    calls: tuple[ExpectedCall, ...] = ()
    """Those that come out, in order of position."""
    finish_reason: FinishReason | None = None
    """None: the turn fails."""
    usage: Usage | None = None
    failure: type[UpstreamError] | None = None
    """The class of the error, exactly; None: there is none."""
    status: int | None = None
    """The status that the error carries."""


@attrs.frozen(kw_only=True)
class ChatScript:
    """One scripted turn."""

    payloads: tuple[bytes, ...]
    """One event's data each, in order; without line breaks."""
    is_done_sent: bool
    """Whether ``[DONE]`` follows."""
    expected: ExpectedTurn


def name_calls(expected: ExpectedTurn, step_id: UUID) -> ExpectedTurn:
    """*expected* with the call ids that step *step_id* gives to calls without one."""
    calls = tuple(
        attrs.evolve(call, call_id=synthetic_call_id(step_id, call.position)) if call.call_id is None else call
        for call in expected.calls
    )
    return attrs.evolve(expected, calls=calls)


def render_sse(
    script: ChatScript,
    *,
    newline: bytes = b"\n",
    comments: bool = False,
    multi_line: bool = False,
    final_blank_line: bool = True,
) -> bytes:
    """The bytes of *script* as an event stream.

    Args:
        script: What to send.
        newline: LF, CRLF or CR.
        comments: A keep-alive comment before each event.
        multi_line: Objects are spread over two data lines.
        final_blank_line: False: the last event's is forgotten, as some upstreams do.
    """
    lines: list[bytes] = []
    payloads = [*script.payloads, b"[DONE]"] if script.is_done_sent else list(script.payloads)
    for payload in payloads:
        if comments:
            lines += [b": keep-alive", b""]
        parts = [payload[:1], payload[1:]] if multi_line and payload.startswith(b"{") else [payload]
        lines += [b"data: " + part for part in parts]
        lines.append(b"")
    if lines and not final_blank_line:
        lines.pop()
    return b"".join(line + newline for line in lines)


def render_answer(expected: ExpectedTurn) -> bytes:
    """The plain JSON answer to the same effect as a turn that does not fail."""
    message: dict[str, Any] = {"role": "assistant", "content": expected.text or None}
    if expected.reasoning:
        message["reasoning_content"] = expected.reasoning
    if expected.refusal:
        message["refusal"] = expected.refusal
    if expected.annotations:
        message["annotations"] = [json.loads(annotation) for annotation in expected.annotations]
    if expected.calls:
        message["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in expected.calls
        ]
    finish_reason = expected.finish_reason.value if expected.finish_reason else None
    logprobs = {"content": [json.loads(token) for token in expected.logprobs]} if expected.logprobs else None
    answer: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": logprobs}],
    }
    if expected.usage is not None:
        answer["usage"] = usage_object(expected.usage)
    return encode_payload(answer)


def usage_object(usage: Usage) -> dict[str, Any]:
    """*usage* as an upstream writes it."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def encode_payload(payload: object) -> bytes:
    """JSON as an upstream writes it: UTF-8 where it can be, escapes where only they can say it."""
    try:
        return json.dumps(payload, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(payload).encode()


@attrs.define
class _Call:
    position: int
    call_id: str | None = None
    name: str | None = None
    arguments: str = ""


class ScriptWriter:
    """Writes a script chunk by chunk, keeping account of what must come out."""

    def __init__(self) -> None:
        self._payloads: list[dict[str, Any] | bytes] = []
        self._last_choice: dict[str, Any] | None = None
        """The last payload's, while something may join it."""
        self._content = {"text": "", "refusal": "", "reasoning": ""}
        self._calls: dict[int, _Call] = {}
        self._logprobs: list[bytes] = []
        self._annotations: dict[bytes, None] = {}

    def add_delta(self, delta: dict[str, Any], *, usage: Usage | None = None) -> None:
        """A chunk with *delta*, of which nothing is expected to come out."""
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        chunk: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]}
        if usage is not None:
            chunk["usage"] = usage_object(usage)
        self.add_raw(chunk)
        self._last_choice = choice

    def add_content(self, kind: str, text: str, delta: dict[str, Any], *, usage: Usage | None = None) -> None:
        """A chunk whose *delta* says *text*; *kind* is ``text``, ``refusal`` or ``reasoning``."""
        self.add_delta(delta, usage=usage)
        self._content[kind] += clean_text(text)

    def add_logprobs(self, tokens: list[Any], expected: tuple[bytes, ...]) -> None:
        """To the last delta, which says text, *tokens*, of which *expected* comes out."""
        assert self._last_choice is not None, "there is a last delta"
        self._last_choice["logprobs"] = {"content": tokens, "refusal": None}
        self._logprobs += expected

    def add_annotations(self, annotations: list[Any], expected: tuple[bytes, ...]) -> None:
        """A chunk with *annotations*, of which *expected* comes out unless it came before."""
        self.add_delta({"annotations": annotations})
        self._annotations.update(dict.fromkeys(expected))

    def add_call_piece(self, call: int, piece: dict[str, Any], *, joins: bool = False) -> None:
        """A chunk with one entry of ``tool_calls``.

        Args:
            call: Which call it belongs to, by any number.
            piece: The entry.
            joins: Whether it goes into the chunk before it, if that holds an entry too.
        """
        last_entries = self._last_choice["delta"].get("tool_calls") if self._last_choice else None
        if joins and last_entries:
            last_entries.append(piece)
        else:
            self.add_delta({"tool_calls": [piece]})
        if call not in self._calls and set(piece) <= {"index", "function"} and not any(piece["function"].values()):
            return  # it begins no call
        known = self._calls.setdefault(call, _Call(len(self._calls)))
        known.call_id = known.call_id or piece.get("id")
        known.name = known.name or piece["function"].get("name")
        known.arguments += clean_text(piece["function"].get("arguments") or "")

    def add_raw(self, payload: dict[str, Any] | bytes) -> None:
        """A chunk, or what is none, as it stands."""
        self._payloads.append(payload)
        self._last_choice = None

    def add_finish(self, reason: str, *, usage: Usage | None = None, joins: bool = False) -> None:
        """The finish reason, in a chunk of its own (with *usage*) or, if it *joins*, in the last delta's."""
        if not joins or self._last_choice is None:
            self.add_delta({}, usage=usage)
        assert self._last_choice is not None
        self._last_choice["finish_reason"] = reason

    def finished(self, reason: FinishReason, usage: Usage | None, *, is_done_sent: bool) -> ChatScript:
        """The script of a turn that succeeds."""
        calls = [call for call in self._calls.values() if call.name]
        expected = attrs.evolve(self._expected(calls), finish_reason=reason, usage=usage)
        return self._script(expected, is_done_sent=is_done_sent)

    def failed(self, failure: type[UpstreamError], status: int | None, *, is_done_sent: bool) -> ChatScript:
        """The script of a turn that fails: what was whole enough to come out has come out."""
        calls = [call for call in self._calls.values() if call.name and call.call_id]
        expected = attrs.evolve(self._expected(calls), failure=failure, status=status)
        return self._script(expected, is_done_sent=is_done_sent)

    def _expected(self, calls: list[_Call]) -> ExpectedTurn:
        return ExpectedTurn(
            text=self._content["text"],
            refusal=self._content["refusal"],
            reasoning=self._content["reasoning"],
            annotations=tuple(self._annotations),
            logprobs=tuple(self._logprobs),
            calls=tuple(
                ExpectedCall(
                    position=call.position, call_id=call.call_id, name=call.name or "", arguments=call.arguments
                )
                for call in calls
            ),
        )

    def _script(self, expected: ExpectedTurn, *, is_done_sent: bool) -> ChatScript:
        payloads = tuple(
            payload if isinstance(payload, bytes) else encode_payload(payload) for payload in self._payloads
        )
        return ChatScript(payloads=payloads, is_done_sent=is_done_sent, expected=expected)
