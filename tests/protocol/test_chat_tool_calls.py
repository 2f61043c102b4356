"""Tool calls as they are met in the field: whatever the pieces look like, each call comes out whole and once."""

from dwctl_trio.domain.ids import synthetic_call_id
from dwctl_trio.domain.turn import FinishReason, ToolCallFragment, TurnFinished
from dwctl_trio.testing.chat_reading import STEP_ID, chunk, chunk_stream, gather, read_answer
from dwctl_trio.testing.chat_scripts import ExpectedCall, ExpectedTurn


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
