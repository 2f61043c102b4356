"""Reading an answer as an engine does, and its fragments in the terms of a script's expectation.

Rule: ``gather(*read_answer(pieces)) == name_calls(script.expected, STEP_ID)`` for every script and every split of it.
"""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import attrs

from dwctl_trio.domain.errors import UpstreamError
from dwctl_trio.domain.turn import (
    AnnotationFragment,
    Fragment,
    ReasoningFragment,
    RefusalFragment,
    TextFragment,
    ToolCallFragment,
    TurnFinished,
    UsageReported,
)
from dwctl_trio.protocol.chat_completions import ChunkReassembler, TurnBounds
from dwctl_trio.testing.chat_scripts import ChatScript, ExpectedCall, ExpectedTurn, encode_payload, render_sse

STEP_ID = UUID("0193a4d6-0000-7000-8000-000000000001")
"""The step that every answer here belongs to."""


def make_reassembler(
    *,
    event_bytes_max: int = 1 << 20,
    answer_bytes_max: int = 1 << 20,
    tool_calls_max: int = 16,
    annotations_max: int = 100,
    wants_logprobs: bool = True,
) -> ChunkReassembler:
    """A reassembler for step ``STEP_ID``; limits that no script meets."""
    bounds = TurnBounds(
        event_bytes=event_bytes_max,
        answer_bytes=answer_bytes_max,
        tool_calls=tool_calls_max,
        annotations=annotations_max,
    )
    return ChunkReassembler(STEP_ID, bounds=bounds, wants_logprobs=wants_logprobs)


def read_answer(
    pieces: Iterable[bytes], *, wants_logprobs: bool = True, **limits: int
) -> tuple[list[Fragment], UpstreamError | None]:
    """Every fragment that an event stream in *pieces* gives, and its failure if it fails.

    Args:
        pieces: The network reads.
        wants_logprobs: As of ``make_reassembler``.
        limits: As of ``make_reassembler``.
    """
    reassembler = make_reassembler(wants_logprobs=wants_logprobs, **limits)
    fragments: list[Fragment] = []
    try:
        for piece in pieces:
            fragments += reassembler.feed(piece)
            if reassembler.is_complete:
                break
        fragments += reassembler.end()
    except UpstreamError as error:
        return fragments, error
    return fragments, None


def gather(fragments: Iterable[Fragment], failure: UpstreamError | None = None) -> ExpectedTurn:
    """The fragments joined by kind; asserts on the way that nothing contradicts itself."""
    texts: dict[type[Fragment], str] = {TextFragment: "", RefusalFragment: "", ReasoningFragment: ""}
    calls: dict[int, ExpectedCall] = {}
    turn = ExpectedTurn(failure=type(failure) if failure else None, status=failure.status if failure else None)
    for fragment in fragments:
        match fragment:
            case AnnotationFragment(annotation):
                assert turn.finish_reason is None, "no content after the finish"
                turn = attrs.evolve(turn, annotations=(*turn.annotations, annotation))
            case TextFragment(text) | RefusalFragment(text) | ReasoningFragment(text):
                assert text, "a delta is never empty"
                assert turn.finish_reason is None, "no content after the finish"
                texts[type(fragment)] += text
                if isinstance(fragment, TextFragment):
                    turn = attrs.evolve(turn, logprobs=(*turn.logprobs, *fragment.logprobs))
            case ToolCallFragment():
                assert turn.finish_reason is None, "no content after the finish"
                calls[fragment.position] = _add_arguments(calls.get(fragment.position), fragment)
            case TurnFinished(reason):
                assert turn.finish_reason is None, "one finish"
                turn = attrs.evolve(turn, finish_reason=reason)
            case UsageReported(usage):
                assert turn.finish_reason is not None, "usage follows the finish"
                assert turn.usage is None, "one usage"
                turn = attrs.evolve(turn, usage=usage)
    return attrs.evolve(
        turn,
        text=texts[TextFragment],
        refusal=texts[RefusalFragment],
        reasoning=texts[ReasoningFragment],
        calls=tuple(calls[position] for position in sorted(calls)),
    )


def chunk_stream(*chunks: Any, done: bool = True) -> bytes:
    """The event stream of *chunks*, for answers written by hand."""
    payloads = tuple(encode_payload(chunk) for chunk in chunks)
    return render_sse(ChatScript(payloads=payloads, is_done_sent=done, expected=ExpectedTurn()))


def chunk(finish_reason: Any = None, **delta: Any) -> dict[str, Any]:
    """A chunk of one choice with *delta*'s members."""
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def _add_arguments(known: ExpectedCall | None, fragment: ToolCallFragment) -> ExpectedCall:
    if known is None:
        known = ExpectedCall(position=fragment.position, call_id=fragment.call_id, name=fragment.name, arguments="")
    assert (known.call_id, known.name) == (fragment.call_id, fragment.name), "a call's id and name never change"
    return attrs.evolve(known, arguments=known.arguments + fragment.arguments)
