"""Tool calls as they are met in the field: whatever the pieces look like, each call comes out whole and once."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.domain.ids import synthetic_call_id
from dwctl_trio.domain.turn import FinishReason, ToolCallFragment, TurnFinished
from dwctl_trio.protocol.chat_completions import ChunkReassembler, TurnBounds
from dwctl_trio.testing.chat_reading import STEP_ID, chunk, chunk_stream, gather, read_answer
from dwctl_trio.testing.chat_scripts import ExpectedCall, ExpectedTurn
from dwctl_trio.testing.request_strategies import texts


def turn_of(*chunks: object) -> ExpectedTurn:
    return gather(*read_answer([chunk_stream(*chunks)]))


def call(position: int, call_id: str, name: str, arguments: str) -> ExpectedCall:
    return ExpectedCall(position=position, call_id=call_id, name=name, arguments=arguments)


def piece(arguments="", *, name=None, **members) -> dict:
    return chunk(tool_calls=[members | {"function": {"name": name, "arguments": arguments}}])


def test_whole_calls_that_all_claim_index_0_are_several_calls():
    turn = turn_of(piece("1", index=0, id="a", name="f"), piece("2", index=0, id="b", name="f"), chunk("tool_calls"))
    assert turn.calls == (call(0, "a", "f", "1"), call(1, "b", "f", "2"))


def test_another_id_in_each_piece_of_a_call_does_not_make_another_call():
    turn = turn_of(piece("1", index=0, id="a", name="f"), piece("2", index=0, id="b"), chunk("tool_calls"))
    assert turn.calls == (call(0, "a", "f", "12"),)


def test_a_name_that_is_repeated_in_each_piece_is_the_same_call():
    turn = turn_of(*[piece("1", index=0, id="a", name="f")] * 3, chunk("tool_calls"))
    assert turn.calls == (call(0, "a", "f", "111"),)


def test_two_calls_with_the_same_id_get_different_ones():
    turn = turn_of(piece("1", index=0, id="a", name="f"), piece("2", index=1, id="a", name="g"), chunk("tool_calls"))
    assert turn.calls == (call(0, "a", "f", "1"), call(1, synthetic_call_id(STEP_ID, 1), "g", "2"))


def test_calls_without_index_and_id_are_told_apart_by_their_names():
    turn = turn_of(piece("1", name="f", id=""), piece("2", name="g"), piece("3"), chunk("tool_calls"))
    ids = [synthetic_call_id(STEP_ID, position) for position in (0, 1)]
    assert turn.calls == (call(0, ids[0], "f", "1"), call(1, ids[1], "g", "23"))


def test_whole_calls_in_one_array_without_index_are_told_apart_by_their_place():
    entries = [{"id": name, "function": {"name": name, "arguments": "{}"}} for name in ("f", "g")]
    more = [{"function": {"arguments": " "}}, {"function": {"arguments": "\n"}}]
    turn = turn_of(chunk(tool_calls=entries), chunk("tool_calls", tool_calls=more))
    assert turn.calls == (call(0, "f", "f", "{} "), call(1, "g", "g", "{}\n"))


def test_arguments_that_come_as_an_object_become_its_text():
    turn = turn_of(piece({"city": "Ulm"}, name="f", id="a"), chunk("tool_calls"))
    assert turn.calls == (call(0, "a", "f", '{"city":"Ulm"}'),)


def test_a_legacy_function_call_is_one_call_that_streams_at_once():
    pieces = [chunk(function_call={"name": "f", "arguments": "1"}), chunk(function_call={"arguments": "2"})]
    fragments, failure = read_answer([chunk_stream(*pieces, chunk("function_call"))])
    assert [type(fragment) for fragment in fragments] == [ToolCallFragment, ToolCallFragment, TurnFinished]
    turn = gather(fragments, failure)
    assert turn.calls == (call(0, synthetic_call_id(STEP_ID, 0), "f", "12"),)
    assert turn.finish_reason is FinishReason.TOOL_CALLS


def test_arguments_wait_for_the_id_and_the_name_and_then_flow():
    chunks = [piece("1", index=0), piece("2", index=0, name="f"), piece("3", index=0, id="a"), piece("4", index=0)]
    fragments, _ = read_answer([chunk_stream(*chunks, chunk("tool_calls"))])
    assert [fragment.arguments for fragment in fragments if isinstance(fragment, ToolCallFragment)] == ["123", "4"]


def test_an_entry_that_says_nothing_is_no_call():
    assert turn_of(chunk(tool_calls=[{"index": 0, "function": {}}]), chunk("stop")).calls == ()
    assert turn_of(chunk(function_call={"name": None}), chunk("stop")).calls == ()


def read_custom(*chunks) -> list:
    """The fragments of an answer in which ``c`` is a custom tool."""
    bounds = TurnBounds(event_bytes=1 << 20, answer_bytes=1 << 20, tool_calls=4, annotations=0)
    reassembler = ChunkReassembler(STEP_ID, bounds=bounds, custom_tools={"c"})
    return [*reassembler.feed(chunk_stream(*chunks)), *reassembler.end()]


@given(text=texts(), cuts=st.lists(st.integers(0, 200), max_size=4))
def test_the_text_for_a_custom_tool_comes_out_plain_whole_and_once_however_it_was_cut(text, cuts):
    arguments = json.dumps({"input": text})
    places = [0, *sorted(min(cut, len(arguments)) for cut in cuts), len(arguments)]
    pieces = [arguments[start:end] for start, end in pairwise(places)]
    chunks = [piece(pieces[0], index=0, id="a", name="c"), *(piece(part, index=0) for part in pieces[1:])]

    fragments = read_custom(*chunks, chunk("tool_calls"))

    assert fragments == [
        ToolCallFragment(position=0, call_id="a", name="c", arguments=text),
        TurnFinished(FinishReason.TOOL_CALLS),
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "a", "why": 1}', "a"),
        ("plain", "plain"),
        ("", ""),
        ('"a"', '"a"'),
        ('{"input": 7}', '{"input": 7}'),
        ('{"text": "a"}', '{"text": "a"}'),
        ('{"input": "a', '{"input": "a'),
        ('{"input": "\\u0000"}', "\ufffd"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_what_is_not_the_one_argument_goes_to_the_custom_tool_as_it_is(arguments, text):
    (fragment, _) = read_custom(piece(arguments, index=0, id="a", name="c"), chunk("tool_calls"))

    assert fragment.arguments == text


def test_a_custom_tools_call_without_an_id_waits_for_its_name_and_gets_one():
    fragments = read_custom(piece('{"input":', index=0), piece('"a"}', index=0, name="c"), chunk("tool_calls"))

    expected_id = synthetic_call_id(STEP_ID, 0)
    assert fragments[0] == ToolCallFragment(position=0, call_id=expected_id, name="c", arguments="a")


def test_a_function_beside_a_custom_tool_still_flows():
    fragments = read_custom(
        piece('{"input":"a"}', index=0, id="a", name="c"),
        piece("1", index=1, id="b", name="f"),
        piece("2", index=1),
        chunk("tool_calls"),
    )

    assert [(fragment.position, fragment.arguments) for fragment in fragments[:3]] == [(1, "1"), (1, "2"), (0, "a")]
