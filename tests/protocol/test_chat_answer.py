"""A chat completion handed over: the upstream's own text, whole or chunk by chunk, and never its errors."""

import json
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.domain.chat import ChatRequest
from dwctl_trio.domain.errors import UpstreamError, UpstreamRejected
from dwctl_trio.domain.turn import UsageReported
from dwctl_trio.domain.usage import Usage
from dwctl_trio.protocol.chat_answer import ChatAnswerReader, ChatPart
from dwctl_trio.protocol.sse import DONE, encode_frame
from dwctl_trio.testing.chat_reading import chunk_stream, gather, read_answer
from dwctl_trio.testing.chat_scripts import PROVIDER_CANARY, render_answer, render_sse
from dwctl_trio.testing.strategies import byte_splits, chat_scripts

HELLO = {"choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": None}], "usage": None}
STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
COUNTED = UsageReported(Usage(input_tokens=3, output_tokens=4))


def read(pieces: list[bytes], **asked: Any) -> tuple[list[ChatPart], UpstreamError | None]:
    """All that the answer brings, and the failure that ends it, if one does."""
    request = ChatRequest(model="m", body=b"{}", **{"stream": True, **asked})
    reader = ChatAnswerReader(request, event_bytes_max=2**20, answer_bytes_max=2**20)
    parts: list[ChatPart] = []
    try:
        if request.stream and not pieces[0].startswith(b"{"):
            for piece in pieces:
                parts += reader.feed(piece)
                if reader.is_complete:
                    break
        else:
            parts += reader.feed_json(b"".join(pieces))
        parts += reader.end()
    except UpstreamError as error:
        return parts, error
    return parts, None


def values(parts: list[ChatPart]) -> list[Any]:
    """The chunks as JSON, the usage as it is."""
    return [json.loads(part) if isinstance(part, bytes) else part for part in parts]


@pytest.mark.slow
@given(script=chat_scripts(), splits=st.data(), wants_usage=st.booleans())
def test_the_parts_are_the_same_ones_however_the_bytes_are_split(script, splits, wants_usage):
    body = render_sse(script)
    whole, failure = read([body], wants_usage=wants_usage)
    pieces, pieces_failure = read(splits.draw(byte_splits(body)) or [b""], wants_usage=wants_usage)
    assert pieces == whole
    assert type(pieces_failure) is type(failure)


@pytest.mark.slow
@given(script=chat_scripts(failing=False))
def test_whoever_reads_the_chunks_reads_the_turn_that_the_upstream_sent(script):
    sent = render_sse(script)
    parts, failure = read([sent], wants_usage=True)
    assert failure is None
    handed_over = b"".join(encode_frame(None, part) for part in parts if isinstance(part, bytes))
    assert gather(*read_answer([handed_over])) == gather(*read_answer([sent]))


@given(script=chat_scripts(failing=True))
def test_no_text_of_a_providers_error_gets_through(script):
    parts, failure = read([render_sse(script)])
    if failure is not None:
        assert PROVIDER_CANARY not in "".join(traceback.format_exception(failure))
    if script.expected.failure is UpstreamRejected:
        assert type(failure) is UpstreamRejected
        assert all(PROVIDER_CANARY.encode() not in part for part in parts if isinstance(part, bytes))


@given(script=chat_scripts(failing=False))
def test_a_whole_completion_is_handed_over_as_it_is(script):
    body = render_answer(script.expected)
    parts, failure = read([body], stream=False)
    assert failure is None
    assert json.loads(parts[0]) == json.loads(body.decode(errors="replace")) or b"\\u" in body
    reported = [part.usage for part in parts if isinstance(part, UsageReported)]
    assert reported == [usage for usage in [script.expected.usage] if usage is not None]


@pytest.mark.parametrize("wants_usage", [True, False])
def test_the_chunk_with_the_usage_is_for_those_who_asked_for_it(wants_usage):
    parts, failure = read([chunk_stream(HELLO, STOP, USAGE)], wants_usage=wants_usage)
    assert failure is None
    assert values(parts) == [HELLO, STOP, *([USAGE] if wants_usage else []), COUNTED]


def test_a_completion_stays_the_same_to_the_last_blank():
    body = b'{\n  "choices": [ {"index":0, "message":{"content":"\xe2\x80\xa8"}, "finish_reason":"stop"} ]\n}\n'
    assert read([body], stream=False) == ([body], None)


def test_a_chunk_is_put_on_one_line_for_every_reader():
    body = b'data: {"choices":\ndata:  [{"index":0,"delta":{"content":"a\xe2\x80\xa8b"},"finish_reason":"stop"}]}\n\n'
    (part,), failure = read([body])
    assert failure is None
    assert part == b'{"choices":  [{"index":0,"delta":{"content":"a\\u2028b"},"finish_reason":"stop"}]}'


def test_all_answers_that_were_asked_for_are_waited_for():
    second = {"choices": [{"index": 1, "delta": {"content": "Hi"}, "finish_reason": "length"}]}
    body = chunk_stream(HELLO, STOP, second, USAGE)
    assert values(read([body], choices=2)[0]) == [HELLO, STOP, second, COUNTED]
    open_end = {"choices": [{"index": 1, "delta": {"content": "Hi"}}]}
    parts, failure = read([chunk_stream(HELLO, STOP, open_end)], choices=2)
    assert values(parts) == [HELLO, STOP, open_end]
    assert failure is not None


def test_a_stream_without_a_finish_is_cut_short():
    for body in (chunk_stream(HELLO), encode_frame(None, json.dumps(HELLO).encode()), DONE, b""):
        _, failure = read([body])
        assert "without a finish reason" in str(failure)


def test_a_whole_completion_becomes_the_chunks_of_the_stream_that_was_asked_for():
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    whole = {"id": "c1", "object": "chat.completion", "choices": [choice], "usage": USAGE["usage"]}
    delta = {**message, "tool_calls": [{"index": 0, **call}]}
    first = {
        "id": "c1",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "finish_reason": "tool_calls", "delta": delta}],
    }
    last = {"id": "c1", "object": "chat.completion.chunk", "choices": [], "usage": USAGE["usage"]}
    body = [json.dumps(whole).encode()]
    assert values(read(body, wants_usage=True)[0]) == [first, last, COUNTED]
    assert values(read(body)[0]) == [first, COUNTED]


def test_a_stream_that_was_not_asked_for_is_refused():
    reader = ChatAnswerReader(ChatRequest(model="m", body=b"{}"), event_bytes_max=100, answer_bytes_max=100)
    with pytest.raises(UpstreamError, match="not asked for"):
        reader.feed(chunk_stream(HELLO))


def test_an_answer_of_more_bytes_than_allowed_is_a_failure():
    request = ChatRequest(model="m", body=b"{}", stream=True)
    reader = ChatAnswerReader(request, event_bytes_max=1000, answer_bytes_max=200)
    with pytest.raises(UpstreamError, match="too large"):
        for _ in range(10):
            reader.feed(encode_frame(None, json.dumps(HELLO).encode()))
