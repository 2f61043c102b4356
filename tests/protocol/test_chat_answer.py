"""A chat completion handed over: the upstream's own text, whole or chunk by chunk, and never its errors."""

import json
import traceback
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dwctl_trio.domain.chat import ChatRequest
from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.errors import UpstreamError, UpstreamRejected
from dwctl_trio.domain.turn import UsageReported
from dwctl_trio.domain.usage import Usage
from dwctl_trio.protocol.chat_answer import ChatAnswerReader, ChatPart, EmbeddingsReader
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
    request = ChatRequest(body=b"{}", **{"model": "m", "stream": True, **asked})
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
        # Its log probabilities are handed over as they are, and some hold the words as well.
        handed_over = [part for part in parts if isinstance(part, bytes) and b'"logprobs"' not in part]
        assert all(PROVIDER_CANARY.encode() not in part for part in handed_over)


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


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("odd", [{}, {"message": None}])
def test_a_whole_completion_without_a_message_is_a_failure_of_the_upstream(odd, stream):
    said = {"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}
    body = json.dumps({"choices": [said, {"index": 1, "finish_reason": "stop", **odd}]}).encode()
    parts, failure = read([body], stream=stream, choices=2)
    assert parts == []
    assert "without a message" in str(failure)


@pytest.mark.parametrize("body", [b'{"detail": "x"}', b'{"choices": {}}', b"[NaN]", b"null", b'{"choices": [null]}'])
@pytest.mark.parametrize("surface", [Surface.CHAT, Surface.COMPLETIONS])
def test_what_is_no_completion_is_a_failure_of_the_upstream(body, surface):
    _, failure = read([body], stream=False, surface=surface, model="alias")
    assert type(failure) is UpstreamError


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


@given(
    named=st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    model=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    whole=st.booleans(),
)
@example(named='"m"', model='a "quoted" name', whole=True)
@example(named="m", model="\u2028", whole=False)
def test_only_the_model_that_an_answer_names_is_given_another_name(named, model, whole):
    said = "message" if whole else "delta"
    rest = {"usage": None, "x": 1e-3, "choices": [{"index": 0, said: {"content": "model"}, "finish_reason": "stop"}]}
    sent = {**({} if named is None else {"model": named}), **rest}
    body = json.dumps(sent).encode() if whole else chunk_stream(sent)
    request = ChatRequest(model=model, body=b"{}", stream=not whole)
    reader = ChatAnswerReader(request, event_bytes_max=2**20, answer_bytes_max=2**20)
    parts = [*(reader.feed_json(body) if whole else reader.feed(body)), *reader.end()]
    assert values(parts) == [{**rest, **({} if named is None else {"model": model})}]
    assert named is None or all(b"\n" not in part for part in parts if isinstance(part, bytes))


def embed(body: bytes, model: str = "m", answer_bytes_max: int = 2**20) -> list[ChatPart]:
    """What is made of embeddings."""
    reader = EmbeddingsReader(model, answer_bytes_max=answer_bytes_max)
    return [*reader.feed_json(body), *reader.end()]


def test_embeddings_stay_the_same_to_the_last_digit_but_for_the_model():
    numbers = b"[0.10000000000000000555, -1E-7,3 ]"
    body = b'{ "object":"list", "data":[{"embedding":%b}], "model" : "%b", "usage":{"prompt_tokens":7}}'
    counted = UsageReported(Usage(input_tokens=7, output_tokens=0))
    assert embed(body % (numbers, b"m")) == [body % (numbers, b"m"), counted]
    renamed, again = embed(body % (numbers, b"other"))
    assert numbers in renamed
    assert (json.loads(renamed), again) == (json.loads(body % (numbers, b"m")), counted)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "7"}, {"total_tokens": 7}, []])
def test_embeddings_without_a_count_are_not_counted(usage):
    (part,) = embed(json.dumps({"data": [], "model": "m", "usage": usage}).encode())
    assert json.loads(part)["usage"] == usage


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"error": {"message": "%b", "code": 503}}' % PROVIDER_CANARY.encode(), UpstreamRejected),
        (b'{"data": [', UpstreamError),
        (b'["%b"]' % PROVIDER_CANARY.encode(), UpstreamError),
        (b"", UpstreamError),
        (b'{"data": [], "model": "%b"}' % (b"m" * 200), UpstreamError),
        (b'{"data": [{"embedding": [NaN]}], "model": "%b"}' % PROVIDER_CANARY.encode(), UpstreamError),
        (b'{"data": [{"embedding": [NaN]}], "model": "m"}', UpstreamError),
        (b"[NaN]", UpstreamError),
        (b'{"detail": "%b"}' % PROVIDER_CANARY.encode(), UpstreamError),
        (b'{"data": {"embedding": []}, "model": "m"}', UpstreamError),
        (b'{"data": null, "model": "m"}', UpstreamError),
    ],
    ids=["error", "cut", "array", "empty", "large", "aliased", "number", "bare", "detail", "object", "null"],
)
def test_what_is_no_embeddings_is_a_failure_in_our_words(body, kind):
    with pytest.raises(kind) as caught:
        embed(body, answer_bytes_max=150)
    assert PROVIDER_CANARY not in "".join(traceback.format_exception(caught.value))


def test_embeddings_are_no_stream():
    with pytest.raises(UpstreamError, match="not asked for"):
        EmbeddingsReader("m", answer_bytes_max=100).feed(chunk_stream(HELLO))
