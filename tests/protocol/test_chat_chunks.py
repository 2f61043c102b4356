"""The reassembler: any script, rendered in any way and split anywhere, gives its expected turn."""

import json
import traceback
from itertools import product

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dwctl_trio.domain.errors import UpstreamError, UpstreamRejected
from dwctl_trio.domain.turn import FinishReason, TextFragment, TurnFinished
from dwctl_trio.domain.usage import Usage
from dwctl_trio.protocol.chat_chunks import Delta
from dwctl_trio.testing.chat_reading import STEP_ID, chunk, chunk_stream, gather, make_reassembler, read_answer
from dwctl_trio.testing.chat_scripts import PROVIDER_CANARY, ExpectedTurn, name_calls, render_answer, render_sse
from dwctl_trio.testing.strategies import byte_splits, chat_scripts


def turn_of(*chunks: object, **limits) -> ExpectedTurn:
    return gather(*read_answer([chunk_stream(*chunks)], **limits))


# -- properties


renderings = st.sampled_from(
    [
        {"newline": newline, "comments": comments, "multi_line": multi_line}
        for newline, comments, multi_line in product([b"\n", b"\r\n", b"\r"], [False, True], [False, True])
    ]
)


@pytest.mark.slow
@given(script=chat_scripts(), rendering=renderings, splits=st.data())
def test_any_script_rendered_in_any_way_and_split_anywhere_gives_its_expected_turn(script, rendering, splits):
    body = render_sse(script, **rendering)
    assert gather(*read_answer(splits.draw(byte_splits(body)))) == name_calls(script.expected, STEP_ID)


@pytest.mark.slow
@given(script=chat_scripts(), splits=st.data())
def test_a_turn_without_log_probabilities_is_otherwise_the_same(script, splits):
    fragments, failure = read_answer(splits.draw(byte_splits(render_sse(script))), wants_logprobs=False)
    assert gather(fragments, failure) == attrs.evolve(name_calls(script.expected, STEP_ID), logprobs=())


@pytest.mark.slow
@given(script=chat_scripts(failing=False), rendering=renderings)
def test_the_last_blank_line_may_be_forgotten(script, rendering):
    body = render_sse(script, **rendering, final_blank_line=False)
    assert gather(*read_answer([body])) == name_calls(script.expected, STEP_ID)


@pytest.mark.slow
@given(script=chat_scripts(), splits=st.data())
def test_the_fragments_are_the_same_ones_however_the_bytes_are_split(script, splits):
    body = render_sse(script)
    whole, failure = read_answer([body])
    pieces, pieces_failure = read_answer(splits.draw(byte_splits(body)))
    assert pieces == whole
    assert type(pieces_failure) is type(failure)


@pytest.mark.slow
@given(script=chat_scripts(failing=False), cut=st.data())
def test_a_stream_cut_before_its_finish_never_succeeds(script, cut):
    body = render_sse(script)
    finish_at = next(
        body.index(payload)
        for payload in script.payloads
        if json.loads(payload).get("choices")
        and json.loads(payload)["choices"][0]["index"] == 0
        and json.loads(payload)["choices"][0].get("finish_reason")
    )
    _, failure = read_answer([body[: cut.draw(st.integers(0, finish_at))]])
    assert failure is not None


@pytest.mark.slow
@given(script=chat_scripts(failing=False))
def test_a_plain_json_answer_gives_the_same_turn(script):
    reassembler = make_reassembler()
    expected = name_calls(script.expected, STEP_ID)
    fragments = reassembler.feed_json(render_answer(expected)) + reassembler.end()
    assert gather(fragments, None) == attrs.evolve(
        expected,
        calls=tuple(attrs.evolve(call, position=place) for place, call in enumerate(expected.calls)),
    )


@pytest.mark.slow
@given(script=chat_scripts(failing=True))
def test_no_text_of_the_provider_is_in_a_failure_or_its_chain(script):
    _, failure = read_answer([render_sse(script)])
    seen: list[BaseException] = []
    error: BaseException | None = failure
    while error is not None:
        seen.append(error)
        error = error.__cause__ or error.__context__
    assert seen
    assert PROVIDER_CANARY not in "".join(str(vars(error)) + str(error.args) + str(error) for error in seen)
    assert PROVIDER_CANARY not in "".join(traceback.format_exception(failure))


member_names = st.sampled_from(
    [
        *("choices", "delta", "message", "content", "refusal", "reasoning_details", "text", "finish_reason", "index"),
        *("tool_calls", "function", "function_call", "arguments", "name", "id", "usage", "error", "code"),
    ]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(member_names, inner, max_size=4),
    max_leaves=12,
)
hostile_deltas = st.dictionaries(
    st.sampled_from(["content", "refusal", "reasoning", "reasoning_details", "tool_calls", "function_call"]),
    json_values,
)
hostile_chunks = json_values | st.builds(lambda members, reason: chunk(reason, **members), hostile_deltas, json_values)


@given(pieces=st.lists(st.binary(max_size=40) | st.sampled_from([b"data: ", b"{}", b"\n\n", b"data: [DONE]\n\n"])))
def test_arbitrary_bytes_raise_nothing_but_upstream_errors(pieces):
    fragments, failure = read_answer(pieces, event_bytes_max=64)
    assert fragments or failure


TEXT = chunk(content="a")
said = st.text(max_size=3) | st.sampled_from([None, [], {}, 0, 1, False, True, "null", ["a"]])


def with_others(known, names):
    """Objects of *known* members, with one or two of *names* at the most."""
    others = st.dictionaries(st.sampled_from(names), said, max_size=2)
    return st.builds(lambda members, more: {**members, **more}, st.fixed_dictionaries(known), others)


near_deltas = with_others({"content": said}, [*Delta.__struct_fields__[1:], "role", "audio"])
near_choices = with_others({"delta": near_deltas}, ["index", "finish_reason", "logprobs", "message", "other"])
near_texts = with_others(
    {"choices": st.lists(near_choices, min_size=1, max_size=2)}, ["usage", "error", "object", "model", "other"]
)


@pytest.mark.slow
@settings(max_examples=300)
@given(near_text=near_texts)
@example(near_text={"choices": [{"delta": {"content": "a"}, "message": ""}]})
def test_text_that_is_expected_is_read_as_any_other(near_text):
    def read(*before):
        reassembler = make_reassembler(wants_logprobs=False)
        try:
            reassembler.feed(chunk_stream(*before, done=False))
            return reassembler.feed(chunk_stream(near_text, done=False)), reassembler.finished, reassembler.is_complete
        except UpstreamError as error:
            return type(error), str(error)

    assert read(TEXT) == read()


@pytest.mark.slow
@given(chunks=st.lists(hostile_chunks, max_size=5))
def test_arbitrary_json_raises_nothing_but_upstream_errors(chunks):
    fragments, failure = read_answer([chunk_stream(*chunks)])
    gather(fragments, failure)


@given(body=st.binary(max_size=40) | hostile_chunks.map(lambda value: json.dumps(value).encode()))
def test_an_arbitrary_json_body_raises_nothing_but_upstream_errors(body):
    reassembler = make_reassembler()
    try:
        reassembler.feed_json(body)
        reassembler.end()
    except UpstreamError:
        assert not reassembler.finished or reassembler.is_complete


# -- what ends a turn


def test_what_came_before_an_error_in_the_same_read_is_given_out_first():
    reassembler = make_reassembler()
    assert reassembler.feed(chunk_stream(chunk(content="Hi"), {"error": {"code": 429}})) == [TextFragment("Hi")]
    assert reassembler.is_complete
    assert not reassembler.finished
    for _ in range(2):
        with pytest.raises(UpstreamRejected) as caught:
            reassembler.end()
        assert caught.value.status == 429


def test_done_without_a_finish_reason_is_a_failure_at_once():
    with pytest.raises(UpstreamError, match="without a finish reason"):
        make_reassembler().feed(b"data: [DONE]\n\n")


def test_an_empty_body_is_a_failure():
    with pytest.raises(UpstreamError, match="without a finish reason"):
        make_reassembler().end()


def test_an_event_cut_off_in_its_middle_is_a_cut_answer_not_bad_json():
    _, failure = read_answer([b'data: {"choices": [{"delta": {"con'])
    assert "without a finish reason" in str(failure)


def test_a_failure_in_a_last_event_without_its_blank_line_is_told_as_what_it_is():
    reassembler = make_reassembler()
    assert reassembler.feed(chunk_stream(chunk("error", content="Hi"), done=False).rstrip()) == []
    with pytest.raises(UpstreamError, match="gave up"):
        reassembler.end()


def test_a_cut_event_after_the_finish_does_no_harm():
    fragments, failure = read_answer([chunk_stream(chunk("stop", content="Hi"), done=False) + b"data: [DO"])
    assert failure is None
    assert fragments == [TextFragment("Hi"), TurnFinished(FinishReason.STOP)]


def test_a_turn_is_complete_when_finish_and_usage_are_known_without_waiting_for_done():
    reassembler = make_reassembler()
    reassembler.feed(chunk_stream(chunk("stop"), done=False))
    assert (reassembler.finished, reassembler.is_complete) == (True, False)
    reassembler.feed(chunk_stream({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}, done=False))
    assert reassembler.is_complete
    assert reassembler.feed(b"data: junk\n\n") == []


def test_a_count_from_before_the_finish_gives_way_to_a_later_one():
    early, late = {"prompt_tokens": 9, "completion_tokens": 1}, {"prompt_tokens": 9, "completion_tokens": 5}
    turn = turn_of(chunk(content="Hi") | {"usage": early}, chunk("stop"), {"choices": [], "usage": late})
    assert turn.usage == Usage(input_tokens=9, output_tokens=5)


def test_tool_calls_that_finish_with_stop_stay_stopped():
    entry = {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}
    assert turn_of(chunk("stop", tool_calls=[entry])).finish_reason is FinishReason.STOP


@pytest.mark.parametrize("reason", ["", "null", None])
def test_an_empty_finish_reason_is_none(reason):
    assert turn_of(chunk(reason, content="a"), chunk("stop", content="b")).text == "ab"


@pytest.mark.parametrize("reason", ["error", "abort", 7, {}, True])
def test_an_upstream_that_gives_up_or_babbles_does_not_succeed(reason):
    assert turn_of(chunk(reason)).failure is UpstreamError


# -- errors in the stream


@pytest.mark.parametrize(
    ("report", "status"),
    [
        ({"error": {"code": 400}}, 400),
        ({"id": "x", "error": {"message": "m", "code": " 429 "}}, None),
        ({"error": {"code": "599"}}, 599),
        ({"error": {"code": 200}}, None),
        ({"error": {"code": True}}, None),
        ({"error": {"code": None, "type": "overloaded_error"}}, 503),
        ({"error": "rate_limit_exceeded"}, 429),
        ({"error": "boom"}, None),
        ({"object": "error", "message": "m", "code": 404}, 404),
    ],
)
def test_an_error_object_becomes_a_rejection_with_its_status(report, status):
    turn = turn_of(chunk(content="Hi"), report)
    assert (turn.failure, turn.status, turn.text) == (UpstreamRejected, status, "Hi")


def test_an_event_named_error_is_an_error_whatever_it_says():
    _, failure = read_answer([b'event: error\ndata: {"message": "no", "code": 500}\n\n'])
    assert type(failure) is UpstreamRejected
    assert failure.status == 500


# -- limits


def test_an_event_over_the_limit_is_a_failure_after_what_came_before_it():
    body = chunk_stream(chunk(content="Hi"), done=False) + b"data: " + b"x" * 300
    fragments, failure = read_answer([body], event_bytes_max=200)
    assert fragments == [TextFragment("Hi")]
    assert "too large" in str(failure)


def test_a_large_read_of_small_events_is_not_a_large_event():
    turn = turn_of(*[chunk(content="Hi")] * 100, chunk("stop"), event_bytes_max=200)
    assert turn.text == "Hi" * 100


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=5))
def test_the_answer_may_have_exactly_its_limit_in_bytes(texts):
    size = sum(len(text.replace("\0", "\ufffd").encode()) for text in texts)
    chunks = [*(chunk(content=text) for text in texts), chunk("stop")]
    assert turn_of(*chunks, answer_bytes_max=size).failure is None
    assert turn_of(*chunks, answer_bytes_max=size - 1).failure is UpstreamError


def test_a_json_body_over_the_limit_is_a_failure():
    with pytest.raises(UpstreamError, match="too large"):
        make_reassembler(answer_bytes_max=10).feed_json(b" " * 11)


def test_held_arguments_count_too():
    pieces = [chunk(tool_calls=[{"index": 0, "function": {"arguments": "x" * 60}}])] * 2
    assert turn_of(*pieces, answer_bytes_max=100).failure is UpstreamError


def test_one_tool_call_too_many_is_a_failure():
    def calls(count):
        return [{"index": n, "id": f"c{n}", "function": {"name": "f", "arguments": ""}} for n in range(count)]

    assert turn_of(chunk("tool_calls", tool_calls=calls(3)), tool_calls_max=3).failure is None
    assert turn_of(chunk("tool_calls", tool_calls=calls(4)), tool_calls_max=3).failure is UpstreamError


# -- texts


@pytest.mark.parametrize("text", ["\0", "\ud800", "a\udc00b"])
def test_what_the_database_cannot_store_becomes_the_replacement_character(text):
    turn = turn_of(chunk("stop", content=text, reasoning=text, refusal=text))
    clean = "".join("\ufffd" if char in "\0\ud800\udc00" else char for char in text)
    assert (turn.text, turn.reasoning, turn.refusal) == (clean, clean, clean)


def test_bytes_that_are_not_utf_8_become_the_replacement_character():
    body = b'data: {"choices": [{"delta": {"content": "a\xffb"}, "finish_reason": "stop"}]}\n\n'
    assert gather(*read_answer([body])).text == "a\ufffdb"


def test_a_surrogate_pair_split_over_two_deltas_is_two_replacement_characters():
    assert turn_of(chunk(content="\ud83d"), chunk("stop", content="\ude00")).text == "\ufffd\ufffd"


def test_the_answer_of_a_chunk_whose_unread_members_are_strange_is_still_read():
    chunk = {"choices": [{"index": None, "delta": {"content": "Hi"}, "logprobs": 7, "finish_reason": "stop"}], "id": []}
    assert turn_of(chunk).text == "Hi"


@pytest.mark.parametrize(
    "value", [[], "text", 7, None, {"choices": {}}, {"choices": [7]}, {"choices": [{"delta": "x"}]}]
)
def test_json_of_another_shape_is_a_failure(value):
    assert turn_of(value, chunk("stop")).failure is UpstreamError


def test_json_nested_too_deeply_is_a_failure_not_a_crash():
    _, failure = read_answer([b'data: {"usage":' + b"[" * 100_000 + b"\n\n"])
    assert type(failure) is UpstreamError
