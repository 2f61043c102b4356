"""Hypothesis strategies for what an upstream may send.

Rule 1: what is drawn is what servers in the field do, well or badly; ``test_chat_chunks`` has the arbitrary bytes.
Rule 2: every script comes with what must come out of it.

The flagship property: any script, rendered in any way and split anywhere, gives its expected turn.
"""

from typing import Any

import attrs
from hypothesis import strategies as st

from dwctl_trio.domain.errors import UpstreamError, UpstreamRejected
from dwctl_trio.domain.turn import FinishReason
from dwctl_trio.domain.usage import Usage
from dwctl_trio.testing.chat_scripts import (
    PROVIDER_CANARY,
    ChatScript,
    ScriptWriter,
    render_answer,
    render_sse,
    usage_object,
)

__all__ = ["PROVIDER_CANARY", "ChatScript", "byte_splits", "chat_scripts", "model_texts", "render_answer", "render_sse"]

_CALLS_MAX = 3
_PIECES_MAX = 4
_CUTS_MAX = 20

_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "eos_token": FinishReason.STOP,
}

_ERRORS: list[tuple[Any, int | None]] = [
    ({"message": PROVIDER_CANARY, "code": 429}, 429),
    ({"message": PROVIDER_CANARY, "code": "503"}, 503),
    ({"code": "rate_limit_exceeded", "message": PROVIDER_CANARY}, 429),
    ({"type": "server_error", "code": None, "message": PROVIDER_CANARY}, 500),
    ({"code": PROVIDER_CANARY}, None),
    (PROVIDER_CANARY, None),
    ({}, None),
]

_NOISE: list[dict[str, Any]] = [
    {},
    {"choices": []},
    {"choices": None, "error": None},
    {"choices": [{"index": 1, "delta": {"content": "of another choice"}, "finish_reason": "stop"}]},
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": ""}]},
    {"choices": [{"index": 0, "delta": {"content": None, "tool_calls": None}, "finish_reason": None}], "usage": None},
    {"type": "ping", "unknown": [{"deep": [1.5, None, True]}]},
]


def model_texts() -> st.SearchStrategy[str]:
    """Texts as models write them, never empty: any character, NUL and half a surrogate pair included."""
    characters = st.characters(exclude_categories=["Cs"]) | st.sampled_from('\0\u2028\u0085\ufeff"\\😀')
    texts = st.text(characters, min_size=1, max_size=12)
    # Only the upper half: two halves side by side in one JSON text would be a pair.
    return texts | texts.map("{}\ud83d".format)


def usages() -> st.SearchStrategy[Usage]:
    """Any usage of one model call."""
    counts = st.integers(0, 1_000_000)
    details = st.none() | counts
    return st.builds(
        Usage,
        input_tokens=counts,
        output_tokens=counts,
        cached_tokens=details,
        reasoning_tokens=details,
        cache_write_tokens=details,
    )


@st.composite
def byte_splits(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """*data* as the network may deliver it: pieces that join to it, some perhaps empty, or byte by byte."""
    if draw(st.booleans()):
        size = draw(st.sampled_from([1, 2, 3, 7]))
        return [data[start : start + size] for start in range(0, len(data), size)]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=_CUTS_MAX)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@st.composite
def chat_scripts(draw: st.DrawFn, *, failing: bool | None = None) -> ChatScript:
    """A scripted turn: contents of every kind, interleaved, then a finish or a failure.

    Args:
        draw: Hypothesis's.
        failing: Whether the turn fails; None draws that too.
    """
    is_failing = draw(st.booleans()) if failing is None else failing
    plan = draw(_plans())
    writer = ScriptWriter()
    moves = plan.moves[: draw(st.integers(0, len(plan.moves)))] if is_failing else plan.moves
    for move in moves:
        _write_move(draw, writer, plan, move)
    return _write_failure(draw, writer) if is_failing else _write_finish(draw, writer, plan)


@attrs.frozen(kw_only=True)
class _Plan:
    """What a script is made of."""

    moves: list[str | int]
    """``text``, ``refusal``, ``reasoning``, ``noise``, or a call's number for its next piece."""
    calls: list[list[dict[str, Any]]]
    """Each call's pieces, taken from the front."""
    joins_pieces: bool
    usage_style: str
    usage: Usage


@st.composite
def _plans(draw: st.DrawFn) -> _Plan:
    keyed_by = draw(st.sampled_from(["index", "id", "newest"]))
    calls = [draw(_call_pieces(number, keyed_by)) for number in range(draw(st.integers(0, _CALLS_MAX)))]
    moves: list[str | int] = draw(
        st.lists(st.sampled_from(["text", "text", "refusal", "reasoning", "noise", "annotations"]), max_size=8)
    )
    moves += [number for number, pieces in enumerate(calls) for _ in pieces]
    moves = draw(st.permutations(moves))
    if keyed_by == "newest":  # then the calls cannot be told apart unless they follow one another
        in_order = iter(sorted(move for move in moves if isinstance(move, int)))
        moves = [next(in_order) if isinstance(move, int) else move for move in moves]
    return _Plan(
        moves=moves,
        calls=calls,
        joins_pieces=keyed_by != "newest" and draw(st.booleans()),
        usage_style=draw(
            st.sampled_from(["none", "own", "finish", "along_own", "along_finish", "before", "strange", "twice"])
        ),
        usage=draw(usages()),
    )


@st.composite
def _call_pieces(draw: st.DrawFn, number: int, keyed_by: str) -> list[dict[str, Any]]:
    arguments = draw(st.lists(model_texts() | st.just(""), min_size=1, max_size=_PIECES_MAX))
    pieces: list[dict[str, Any]] = [{"function": {"arguments": text}} for text in arguments]
    last = len(pieces) - 1
    id_at = draw(st.sampled_from([0, last, None])) if keyed_by == "index" else 0
    name_at = draw(st.sampled_from([0, last])) if keyed_by != "newest" else 0
    for place, piece in enumerate(pieces):
        if keyed_by == "index":
            piece["index"] = number
        if keyed_by == "id" or place == id_at:
            piece["id"] = f"call_{number}"
        if place == name_at:
            piece["function"]["name"] = f"tool_{number}"
    return pieces


def _write_move(draw: st.DrawFn, writer: ScriptWriter, plan: _Plan, move: str | int) -> None:
    usage = None
    if plan.usage_style in {"along_own", "along_finish", "before"}:
        usage = plan.usage if plan.usage_style == "before" else attrs.evolve(plan.usage, output_tokens=0)
    if isinstance(move, int):
        writer.add_call_piece(move, plan.calls[move].pop(0), joins=plan.joins_pieces)
        return
    if move == "noise":
        writer.add_raw(draw(st.sampled_from(_NOISE)))
        return
    if move == "annotations":
        writer.add_annotations(*draw(st.sampled_from(_ANNOTATIONS)))
        return
    text = draw(model_texts())
    delta: dict[str, Any]
    if move == "text":
        parts = [{"type": "text", "text": text[:1]}, {"type": "text", "text": text[1:]}]
        delta = draw(st.sampled_from([{"content": text}, {"content": text, "refusal": None}, {"content": parts}]))
    elif move == "refusal":
        delta = {"refusal": text, "content": None}
    else:
        details = [{"type": "reasoning.text", "text": text}, {"type": "reasoning.encrypted", "data": "AA"}]
        names = draw(st.sampled_from([("reasoning_content",), ("reasoning",), ("reasoning_content", "reasoning"), ()]))
        delta = dict.fromkeys(names, text)
        if not names or draw(st.booleans()):
            delta["reasoning_details"] = details
    writer.add_content(move, text, delta, usage=usage)
    if move == "text":
        writer.add_logprobs(*draw(st.sampled_from(_LOGPROBS)))


_CITED = b'{"type":"url_citation","url":"https://a.example/","title":"A","start_index":0,"end_index":3}'
_FILED = b'{"type":"file_path","file_id":"file_1","index":2}'
_URL = {"url": "https://a.example/", "title": "A", "start_index": 0, "end_index": 3}

_ANNOTATIONS: list[tuple[Any, tuple[bytes, ...]]] = [
    ([{"type": "url_citation", "url_citation": _URL | {"content": "more"}}], (_CITED,)),
    ([{"type": "file_path", "file_id": "file_1", "index": 2}, {"type": "url_citation", **_URL}], (_FILED, _CITED)),
    ([{"type": "url_citation", "url_citation": {"url": PROVIDER_CANARY}}, None, 7, {"type": ["x"]}], ()),
    ({"type": "url_citation"}, ()),
    ([], ()),
]
"""What an upstream says that its text refers to, and what of it comes out."""

_LIKELY = b'{"token":"a","logprob":-0.25,"bytes":[97],"top_logprobs":[]}'
_UNLIKELY = (
    b'{"token":"\xc3\xa9","logprob":-9999.0,"bytes":[195,169],'
    b'"top_logprobs":[{"token":"b","logprob":0.0,"bytes":[98]}]}'
)

_LOGPROBS: list[tuple[list[Any], tuple[bytes, ...]]] = [
    ([], ()),
    ([{"token": "a", "logprob": -0.25, "bytes": [97], "top_logprobs": []}], (_LIKELY,)),
    ([{"token": "a", "logprob": -0.25}, {"token": PROVIDER_CANARY}, None], (_LIKELY,)),
    (
        [
            {"token": "a", "logprob": -0.25, "bytes": None, "top_logprobs": []},
            {"token": "é", "logprob": float("-inf"), "top_logprobs": [{"token": "b", "logprob": 0, "bytes": [98]}]},
        ],
        (_LIKELY, _UNLIKELY),
    ),
]
"""The same of the tokens of a text."""


def _write_finish(draw: st.DrawFn, writer: ScriptWriter, plan: _Plan) -> ChatScript:
    style, usage = plan.usage_style, plan.usage
    is_counted_before = style == "before"
    if is_counted_before:
        writer.add_delta({}, usage=usage)
    reason = draw(st.sampled_from(sorted(_FINISH_REASONS)))
    is_final = style in {"finish", "along_finish"}
    writer.add_finish(reason, usage=usage if is_final else None, joins=is_counted_before and draw(st.booleans()))
    if draw(st.booleans()):
        writer.add_delta({"content": "after the finish"})
    if draw(st.booleans()):
        writer.add_finish("length")
    if style in {"own", "along_own", "twice"}:
        writer.add_raw({"choices": [], "usage": usage_object(usage)})
    if style == "twice":
        writer.add_raw({"choices": [], "usage": usage_object(Usage(input_tokens=0, output_tokens=0))})
    if style == "strange":
        writer.add_raw({"choices": [], "usage": draw(st.sampled_from(_STRANGE_USAGES))})
    is_reported = style not in {"none", "strange"}
    return writer.finished(_FINISH_REASONS[reason], usage if is_reported else None, is_done_sent=draw(st.booleans()))


_STRANGE_USAGES: list[Any] = [
    {},
    [],
    7,
    PROVIDER_CANARY,
    {"prompt_tokens": -1, "completion_tokens": 2},
    {"prompt_tokens": "3", "completion_tokens": 2},
    {"prompt_tokens": True, "completion_tokens": 2.0},
    {"prompt_tokens": 10**30, "completion_tokens": 2},
]


def _write_failure(draw: st.DrawFn, writer: ScriptWriter) -> ChatScript:
    fault = draw(st.sampled_from(["cut", "cut_done", "error", "not_json", "wrong_content", "nameless_call", "gave_up"]))
    status: int | None = None
    match fault:
        case "error":
            error, status = draw(st.sampled_from(_ERRORS))
            envelope = {"error": error} if draw(st.booleans()) else {"id": "chatcmpl-1", "choices": [], "error": error}
            writer.add_raw(envelope)
        case "not_json":
            junk = [
                b'{"choices": [{"delta": {"content": "' + PROVIDER_CANARY.encode(),
                b"<html>",
                b"\xff\xfe{}",
                b"[" * 9,
            ]
            writer.add_raw(draw(st.sampled_from(junk)))
        case "wrong_content":
            writer.add_delta(
                {"content": draw(st.sampled_from([7, True, {"text": PROVIDER_CANARY}, [[PROVIDER_CANARY]]]))}
            )
        case "nameless_call":
            entry = {"index": 99, "id": "call_99", "function": {"arguments": PROVIDER_CANARY}}
            writer.add_delta({"tool_calls": [entry]})
            writer.add_finish("tool_calls")
        case "gave_up":
            writer.add_finish(draw(st.sampled_from(["error", "abort"])))
        case _:
            pass
    is_done_sent = fault == "cut_done" or (fault != "cut" and draw(st.booleans()))
    failure = UpstreamRejected if fault == "error" else UpstreamError
    return writer.failed(failure, status, is_done_sent=is_done_sent)
