"""A scene and a request become a reply: the bytes to write, and the pauses and faults between them.

Rule 1: everything that decides what goes over the wire lives here and in ``simulator_chat``; nothing here awaits.
Rule 2: tokens that are sent at once are one write, together with the HTTP head and the end of the body.

Source: OpenAI API reference, "Create chat completion" (stream); WHATWG HTML, "Server-sent events".
"""

import random
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TypeAlias

import attrs

from dwctl_trio.testing.simulator_chat import (
    ANNOTATIONS,
    SERIAL,
    ChatRequest,
    Turn,
    deltas,
    envelope,
    json_bytes,
    logprobs,
    message,
    prompt_tokens,
    turn_of,
    usage,
)
from dwctl_trio.testing.simulator_errors import CANARY, COMPLAINTS, error_body, error_object
from dwctl_trio.testing.simulator_http import LAST_CHUNK, chunk, response_head
from dwctl_trio.testing.simulator_scenes import (
    EmptyBody,
    Ending,
    Flag,
    HtmlPage,
    HttpError,
    Reasoning,
    Refusal,
    Refused,
    Scene,
    Silence,
    Text,
    ToolCalls,
)
from dwctl_trio.testing.simulator_text import EmbeddingsRequest, TextRequest, chunk_choice, embeddings_body

_SPLIT_BYTES_MAX = 7
_BINARY = bytes(range(2, 256)) * 2 + b"\x00\n\n"
_FINISHES = {Ending.STOP: "stop", Ending.LENGTH: "length", Ending.FILTER: "content_filter"}


@attrs.frozen(kw_only=True)
class Write:
    """Bytes for the connection, in one write."""

    data: bytes
    tokens: int = 0
    """Tokens that are complete with these bytes."""


@attrs.frozen(kw_only=True)
class Sleep:
    """A pace."""

    seconds: float


@attrs.frozen
class Pause:
    """A wait until somebody resumes the request."""


@attrs.frozen
class Quiet:
    """Nothing more, until the client leaves."""


@attrs.frozen(kw_only=True)
class HangUp:
    """The connection ends here; this act is always the last."""

    reset: bool


Act: TypeAlias = Write | Sleep | Pause | Quiet | HangUp


@attrs.frozen(kw_only=True)
class Reply:
    """What the simulator does with one request."""

    acts: Iterable[Act]
    """In order, to be played once."""
    fails: bool = False
    """Whether the script, not the client, spoils the answer."""
    waits: bool = False
    """Whether it may be silent, so that somebody must watch the client meanwhile."""
    usage_tokens: int = 0
    """Completion tokens that its usage reports; 0 when it reports none."""


def make_reply(scene: Scene, request: ChatRequest, *, body: bytes, serial: str) -> Reply:
    """The reply of a scene to a request.

    Args:
        scene: The scene to play.
        request: The request as read.
        body: The bytes it was read from.
        serial: Its number, unique in this simulator.
    """
    before: list[Act] = [Sleep(seconds=scene.delay_ms / 1000)] if scene.delay_ms else []
    before += [Pause()] if Flag.GATE in scene.flags else []
    match scene.answer:
        case HttpError(status=status, retry_after_s=retry_after_s):
            acts = _whole(status, "application/json", error_body(status), retry_after_s=retry_after_s)
            reply = Reply(acts=acts, fails=True)
        case Refused(complaint=complaint):
            acts = _whole(400, "application/json", json_bytes(COMPLAINTS[complaint]))
            reply = Reply(acts=acts, fails=True)
        case HtmlPage(status=status):
            page = f"<html><body><h1>{status}</h1><p>{CANARY}</p></body></html>\n".encode()
            reply = Reply(acts=_whole(status, "text/html; charset=utf-8", page), fails=True)
        case EmptyBody(status=status):
            reply = Reply(acts=_whole(status, "application/json", b""), fails=True)
        case Silence(head=head):
            opening = [Write(data=response_head(200, "text/event-stream"))] if head else []
            reply = Reply(acts=[*opening, Quiet()], waits=True)
        case _ if isinstance(request, EmbeddingsRequest):
            reply = _embeddings_reply(scene, request)
        case _ if request.stream and Flag.JSON not in scene.flags:
            reply = _stream_reply(scene, request, body=body, serial=serial, before=before)
            before = []
        case _:
            reply = _json_reply(scene, request, body=body, serial=serial)
    if before:
        reply = attrs.evolve(reply, acts=[*before, *reply.acts], waits=True)
    return reply


def _whole(status: int, content_type: str, body: bytes, *, retry_after_s: int | None = None) -> list[Act]:
    more = () if retry_after_s is None else (("retry-after", str(retry_after_s)),)
    return [Write(data=response_head(status, content_type, body_bytes=len(body), more=more) + body)]


# -- streamed answers


def _stream_reply(scene: Scene, request: ChatRequest, *, body: bytes, serial: str, before: list[Act]) -> Reply:
    with_usage = bool((request.stream_options or {}).get("include_usage"))
    opening, tokens, turn = _said(scene, request, body=body, serial=serial, with_usage=with_usage)
    closing = _closing(scene, turn, request, with_usage=with_usage)
    acts = _paced(scene, opening, tokens, closing, serial=serial.encode())
    if scene.cut_byte is not None:
        acts = _cut(acts, scene.cut_byte)
    if scene.split_seed is not None:
        acts = _split(acts, scene.split_seed)
    reports = with_usage and Flag.NO_USAGE not in scene.flags and scene.ending in _FINISHES
    return Reply(
        acts=_framed(before, response_head(200, "text/event-stream; charset=utf-8"), acts),
        fails=scene.ending not in _FINISHES or scene.cut_byte is not None,
        waits=bool(before) or bool(scene.interval_ms) or scene.pause_after is not None or scene.ending is Ending.STALL,
        usage_tokens=turn.tokens() if reports or Flag.USAGE_INLINE in scene.flags else 0,
    )


def _said(
    scene: Scene, request: ChatRequest, *, body: bytes, serial: str, with_usage: bool
) -> tuple[bytes, tuple[bytes, ...], Turn]:
    """The opening block, a block for each token, and the turn they tell."""
    if isinstance(scene.answer, Text | Refusal | Reasoning) and not request.logprobs:
        return _said_always(scene, type(request), request.model, with_usage)
    turn = turn_of(scene, request, body=body, serial=serial)
    return *_blocks(scene, turn, request, with_usage=with_usage), turn


@lru_cache(maxsize=32)
def _said_always(
    scene: Scene, kind: type[ChatRequest], model: str, with_usage: bool
) -> tuple[bytes, tuple[bytes, ...], Turn]:
    request = kind(model=model)
    turn = turn_of(scene, request, body=b"", serial="")
    return *_blocks(scene, turn, request, with_usage=with_usage), turn


def _blocks(scene: Scene, turn: Turn, request: ChatRequest, *, with_usage: bool) -> tuple[bytes, tuple[bytes, ...]]:
    usage_null = {"usage": None} if with_usage else {}

    def block(delta: dict[str, object]) -> bytes:
        kind, choice = chunk_choice(request, delta, None)
        return _event(scene, envelope(kind, request.model, choices=[choice], **usage_null))

    role = {"role": "assistant"} if Flag.ROLE in scene.flags else {}
    opening = b"" if Flag.NO_ROLE in scene.flags else block({"role": "assistant", "content": ""})
    return opening, tuple(block({**role, **delta}) for delta in deltas(turn))


def _event(scene: Scene, payload: bytes) -> bytes:
    newline = b"\r\n" if Flag.CRLF in scene.flags else b"\r" if Flag.CR in scene.flags else b"\n"
    comment = b": simulated comment" + newline * 2 if Flag.COMMENTS in scene.flags else b""
    return comment + b"data: " + payload + newline * 2


def _closing(scene: Scene, turn: Turn, request: ChatRequest, *, with_usage: bool) -> bytes:
    """All that comes after the last token."""
    match scene.ending:
        case Ending.STOP | Ending.LENGTH | Ending.FILTER:
            return _finish(scene, turn, request, with_usage=with_usage)
        case Ending.MIDSTREAM:
            return _event(scene, json_bytes({"error": error_object("server_error", 500)}))
        case Ending.GARBAGE:
            return _event(scene, b'{"id":"chatcmpl-%b","choices":[{"index":0,"delta":{"content":"wo' % SERIAL)
        case Ending.BAD_UTF8:
            return _event(scene, b'{"choices":[{"index":0,"delta":{"content":"\xff\xfe\xc3"},"finish_reason":null}]}')
        case Ending.BINARY:
            return _BINARY
        case _:
            return b""


def _finish(scene: Scene, turn: Turn, request: ChatRequest, *, with_usage: bool) -> bytes:
    kind, choice = chunk_choice(request, {}, _finish_reason(scene))
    counted = usage(turn, request)
    inline = {"usage": counted} if Flag.USAGE_INLINE in scene.flags else {"usage": None} if with_usage else {}
    finish = _event(scene, envelope(kind, request.model, choices=[choice], **inline))
    blocks = [finish, finish] if Flag.TWO_FINISHES in scene.flags else [finish]
    if Flag.CITES in scene.flags:
        cited = {"index": 0, "delta": {"annotations": ANNOTATIONS}, "finish_reason": None}
        blocks.insert(0, _event(scene, envelope(kind, request.model, choices=[cited], **inline)))
    if with_usage and not scene.flags & {Flag.NO_USAGE, Flag.USAGE_INLINE}:
        blocks.append(_event(scene, envelope(kind, request.model, choices=[], usage=counted)))
    if Flag.NO_DONE not in scene.flags:
        blocks.append(_event(scene, b"[DONE]"))
    return b"".join(blocks)


def _finish_reason(scene: Scene) -> str:
    reason = _FINISHES.get(scene.ending, "stop")
    return "tool_calls" if isinstance(scene.answer, ToolCalls) and reason == "stop" else reason


def _paced(scene: Scene, opening: bytes, tokens: tuple[bytes, ...], closing: bytes, *, serial: bytes) -> Iterator[Act]:
    """The blocks as body bytes with the scene's pauses between them, then its fault."""
    parts = [tokens] if scene.pause_after is None else [tokens[: scene.pause_after], tokens[scene.pause_after :]]
    for number, part in enumerate(parts):
        before, after = opening if number == 0 else b"", closing if number == len(parts) - 1 else b""
        if number:
            yield Pause()
        if scene.interval_ms is None:
            yield Write(data=b"".join([before, *part, after]).replace(SERIAL, serial), tokens=len(part))
            continue
        yield Write(data=before.replace(SERIAL, serial))
        for token in part:
            if scene.interval_ms:
                yield Sleep(seconds=scene.interval_ms / 1000)
            yield Write(data=token.replace(SERIAL, serial), tokens=1)
        yield Write(data=after.replace(SERIAL, serial))
    yield from _fault(scene.ending)


def _fault(ending: Ending) -> list[Act]:
    if ending is Ending.STALL:
        return [Quiet()]
    return [HangUp(reset=ending is Ending.RESET)] if ending in {Ending.CUT, Ending.RESET} else []


def _cut(acts: Iterable[Act], bytes_left: int) -> Iterator[Act]:
    """The acts up to so many bytes of the body, then a cut; at the body's end if it is shorter."""
    for act in acts:
        if isinstance(act, Write):
            if len(act.data) > bytes_left:
                yield Write(data=act.data[:bytes_left])
                break
            bytes_left -= len(act.data)
        yield act
    yield HangUp(reset=False)


def _split(acts: Iterable[Act], seed: int) -> Iterator[Act]:
    """The acts, each write in small pieces at places that only the seed decides."""
    places = random.Random(seed)  # noqa: S311 - must be the same for the same seed
    for act in acts:
        if not isinstance(act, Write):
            yield act
            continue
        start = 0
        while start < len(act.data):
            end = start + places.randint(1, _SPLIT_BYTES_MAX)
            yield Write(data=act.data[start:end], tokens=act.tokens if end >= len(act.data) else 0)
            start = end


def _framed(before: list[Act], head: bytes, acts: Iterable[Act]) -> Iterator[Act]:
    """The acts with their writes as HTTP chunks; head and last chunk share a write with their neighbours."""
    yield from before
    pending, tokens, joins = head, 0, True
    for act in acts:
        if not isinstance(act, Write):
            if pending:
                yield Write(data=pending, tokens=tokens)
            pending, tokens, joins = b"", 0, True
            yield act
            if isinstance(act, HangUp):
                return
        elif act.data:
            if not joins:
                yield Write(data=pending, tokens=tokens)
                pending, tokens = b"", 0
            pending, tokens, joins = pending + chunk(act.data), tokens + act.tokens, False
    yield Write(data=pending + LAST_CHUNK, tokens=tokens)


# -- answers in one body


def _json_reply(scene: Scene, request: ChatRequest, *, body: bytes, serial: str) -> Reply:
    turn = turn_of(scene, request, body=body, serial=serial)
    if isinstance(request, TextRequest):
        kind, choice = chunk_choice(request, {"content": "".join(turn.content)}, _finish_reason(scene))
    else:
        cited = {"annotations": ANNOTATIONS} if Flag.CITES in scene.flags else {}
        told = logprobs(turn.content, request) if request.logprobs else None
        kind, choice = "chat.completion", {"index": 0, "message": {**message(turn), **cited}, "logprobs": told}
        choice["finish_reason"] = _finish_reason(scene)
    reports = Flag.NO_USAGE not in scene.flags
    counted = {"usage": usage(turn, request)} if reports else {}
    answer = envelope(kind, request.model, choices=[choice], **counted).replace(SERIAL, serial.encode())
    return _whole_reply(scene, answer, tokens=turn.tokens(), reports=reports)


def _embeddings_reply(scene: Scene, request: EmbeddingsRequest) -> Reply:
    with_usage = Flag.NO_USAGE not in scene.flags
    answer = embeddings_body(request, prompt_tokens=prompt_tokens(request), with_usage=with_usage)
    return _whole_reply(scene, answer, tokens=0, reports=with_usage)


def _whole_reply(scene: Scene, answer: bytes, *, tokens: int, reports: bool) -> Reply:
    sent, announced = _spoiled(scene, answer)
    acts: list[Act] = [Sleep(seconds=scene.interval_ms / 1000 * tokens)] if scene.interval_ms else []
    acts += [Pause()] if scene.pause_after is not None else []
    waits = bool(acts) or scene.ending is Ending.STALL
    head = response_head(200, "application/json", body_bytes=announced)
    finishes = scene.ending in _FINISHES and scene.cut_byte is None
    acts.append(Write(data=head + sent, tokens=tokens if len(sent) >= len(answer) else 0))
    acts += [HangUp(reset=False)] if scene.cut_byte is not None else _fault(scene.ending)
    usage_tokens = tokens if finishes and reports else 0
    return Reply(acts=acts, fails=not finishes, waits=waits, usage_tokens=usage_tokens)


def _spoiled(scene: Scene, answer: bytes) -> tuple[bytes, int]:
    """What is sent of a body, and the length that its head announces."""
    half = answer[: len(answer) // 2]
    if scene.cut_byte is not None:
        return answer[: scene.cut_byte], len(answer)
    match scene.ending:
        case Ending.CUT | Ending.RESET | Ending.STALL:
            return half, len(answer)
        case Ending.EOF | Ending.GARBAGE:
            sent = half
        case Ending.MIDSTREAM:
            sent = error_body(500)
        case Ending.BAD_UTF8:
            sent = answer.replace(b'"role":"assistant"', b'"role":"assistant","name":"\xff\xfe\xc3"')
        case Ending.BINARY:
            sent = _BINARY
        case _:
            sent = answer
    return sent, len(sent)
