"""The history of a model call: every call with its answer right behind it, whatever the conversation looked like."""

import json
from typing import Any
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.domain import ids
from dwctl_trio.domain.items import (
    CustomToolCall,
    FunctionCall,
    ItemStatus,
    McpCall,
    Message,
    OutputItem,
    Reasoning,
    ReasoningPart,
    RefusalPart,
    TextPart,
)
from dwctl_trio.domain.request import (
    CustomToolCallOutput,
    FunctionCallOutput,
    InputItem,
    InputMessage,
    InputPart,
    ItemReference,
    PartKind,
    Role,
)
from dwctl_trio.protocol.chat_history import render_history
from dwctl_trio.testing.conversation_strategies import conversations, mcp_calls, texts

DONE = ItemStatus.COMPLETED
ids_of_turns = st.builds(
    lambda turn, place: ids.item_id("mcp", UUID(int=turn), place), st.integers(1, 2), st.integers(0, 2)
)
said = st.builds(
    Message, id=ids_of_turns, status=st.just(DONE), content=st.lists(st.builds(TextPart, text=texts())).map(tuple)
)
called = st.builds(
    lambda call, item_id, call_id: attrs.evolve(call, id=item_id, call_id=call_id),
    mcp_calls(),
    ids_of_turns,
    st.sampled_from(["call_0", "call_1"]),
)
outputs: st.SearchStrategy[tuple[OutputItem, ...]] = st.lists(said | called, max_size=6).map(tuple)


def history(*items: InputItem, output: tuple[OutputItem, ...] = ()) -> list[dict[str, Any]]:
    return render_history(items, output, developer_role=True)


def message(text: str, role: Role = Role.ASSISTANT) -> InputMessage:
    return InputMessage(role=role, content=(InputPart(kind=PartKind.OUTPUT_TEXT, text=text),))


def call(call_id: str, arguments: str = "{}", *, item_id: str = "", status: ItemStatus = DONE) -> FunctionCall:
    return FunctionCall(id=item_id, status=status, call_id=call_id, name="f", arguments=arguments)


def answer(call_id: str) -> FunctionCallOutput:
    return FunctionCallOutput(call_id=call_id, output=f"out {call_id}")


def ours(turn: int, place: int, **members: Any) -> McpCall:
    outcome = {"status": DONE, "output": f"out {turn}.{place}"} | members
    return McpCall(
        id=ids.item_id("mcp", UUID(int=turn), place), call_id=f"call_{place}", name="s", arguments="{}", **outcome
    )


def shape(messages: list[dict[str, Any]]) -> list[Any]:
    """Messages in short: texts, lists of call ids, and answers."""
    short: list[Any] = []
    for sent in messages:
        if sent["role"] == "tool":
            short.append((sent["tool_call_id"], sent["content"]))
        else:
            calls = [made["id"] for made in sent.get("tool_calls", [])]
            short.append([sent["content"], *calls] if calls else sent["content"])
    return short


def check_well_formed(messages: list[dict[str, Any]]) -> None:
    """Each tool message answers exactly one call of the assistant message before it; every call is answered at once."""
    due: list[str] = []
    for sent in messages:
        if sent["role"] == "tool":
            assert due, "a tool message answers a call"
            assert sent["tool_call_id"] == due.pop(0), "in the order of the calls"
            assert isinstance(sent["content"], str)
            continue
        assert not due, "every call is answered before anybody speaks"
        if "tool_calls" in sent:
            assert sent["role"] == "assistant"
            due = [made["id"] for made in sent["tool_calls"]]
            assert due
            assert len(set(due)) == len(due), "no two calls of a message have the same id"
            assert sent["content"] != ""
            for made in sent["tool_calls"]:
                assert isinstance(json.loads(made["function"]["arguments"]), dict)
        else:
            assert sent["content"] is not None
    assert not due, "every call is answered"


@given(items=conversations(), output=outputs)
def test_each_tool_message_answers_exactly_one_call_of_the_assistant_message_before_it(
    items: tuple[InputItem, ...], output: tuple[OutputItem, ...]
) -> None:
    messages = history(*items, output=output)

    check_well_formed(messages)


@given(items=conversations())
def test_whatever_the_conversation_does_not_match_is_left_out_and_the_rest_is_well_formed(
    items: tuple[InputItem, ...],
) -> None:
    check_well_formed(history(*items[::-1]))
    check_well_formed(history(*items[::2]))


def test_a_text_and_the_calls_behind_it_are_one_message_and_the_answers_follow_in_the_order_of_the_calls() -> None:
    items = (message("Hi", Role.USER), message("Let me see."), call("a"), call("b"), answer("b"), answer("a"))

    assert history(*items) == [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "b", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "out a"},
        {"role": "tool", "tool_call_id": "b", "content": "out b"},
    ]


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([call("a"), answer("a")], [[None, "a"], ("a", "out a")]),
        (
            [call("a"), answer("a"), call("b"), answer("b")],
            [[None, "a"], ("a", "out a"), [None, "b"], ("b", "out b")],
        ),
        (
            [call("a"), message("Hi", Role.USER), answer("a")],
            [[None, "a"], ("a", "out a"), "Hi"],
        ),
        (
            [message("1"), message("2"), call("a"), message("3"), answer("a")],
            ["1", ["2", "a"], ("a", "out a"), "3"],
        ),
        ([call("a"), answer("a"), call("a"), answer("a")], [[None, "a"], ("a", "out a"), [None, "a"], ("a", "out a")]),
        ([call("a", status=ItemStatus.INCOMPLETE), message("Hi", Role.USER)], ["Hi"]),
        ([message("")], [""]),
    ],
)
def test_groups_end_where_a_turn_ends(items: list[InputItem], expected: list[Any]) -> None:
    assert shape(history(*items)) == expected


def test_the_calls_of_two_turns_stay_two_messages_even_with_nothing_between_them_and_the_same_ids() -> None:
    output = (ours(1, 0), ours(1, 1), ours(2, 0))

    assert shape(history(output=output)) == [
        [None, "call_0", "call_1"],
        ("call_0", "out 1.0"),
        ("call_1", "out 1.1"),
        [None, "call_0"],
        ("call_0", "out 2.0"),
    ]


def test_what_a_turn_says_after_its_calls_goes_with_them() -> None:
    said_after = Message(
        id=ids.item_id("msg", UUID(int=1), 1), status=DONE, content=(TextPart(text="a"), RefusalPart(refusal="b"))
    )
    thought = Reasoning(id="rs_1", status=DONE, content=(ReasoningPart(text="hmm"),))

    messages = history(output=(thought, ours(1, 0), said_after, ours(2, 0)))

    assert shape(messages) == [["ab", "call_0"], ("call_0", "out 1.0"), [None, "call_0"], ("call_0", "out 2.0")]


@pytest.mark.parametrize("digits", [31, 32, 41, 48, 50])
def test_ids_of_another_servers_making_say_nothing_of_turns(digits: int) -> None:
    brought = [call(f"call_{place}", item_id=f"fc_{place}{'0' * (digits - 1)}") for place in range(2)]

    messages = history(*brought, answer("call_0"), answer("call_1"))

    assert shape(messages) == [[None, "call_0", "call_1"], ("call_0", "out call_0"), ("call_1", "out call_1")]


def test_the_servers_and_the_clients_calls_of_one_turn_are_one_message() -> None:
    of_client = call("call_1", item_id=ids.item_id("fc", UUID(int=1), 1))

    messages = history(attrs.evolve(ours(1, 0), call_id="call_0"), of_client, answer("call_1"))

    assert shape(messages) == [[None, "call_0", "call_1"], ("call_0", "out 1.0"), ("call_1", "out call_1")]


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"output": "out"}, "out"),
        ({"output": ""}, ""),
        ({"status": ItemStatus.FAILED, "output": None, "error": "why"}, '{"error":"why"}'),
        (
            {"status": ItemStatus.INCOMPLETE, "output": None},
            '{"error":"The tool was not run, or was broken off before it had ended."}',
        ),
    ],
)
def test_the_model_is_told_what_became_of_a_call_of_the_servers(members: dict[str, Any], told: str) -> None:
    assert history(output=(ours(1, 0, **members),))[1]["content"] == told


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ("", "{}"),
        (" \n", "{}"),
        ('{"a": ', '{"input":"{\\"a\\": "}'),
        ("[1]", '{"input":"[1]"}'),
        ("null", '{"input":"null"}'),
    ],
)
def test_arguments_go_back_as_they_were_written_if_an_upstream_can_read_them(written: str, sent: str) -> None:
    made = history(call("a", written), answer("a"))[0]["tool_calls"][0]

    assert made["function"]["arguments"] == sent


@given(text=texts())
def test_a_custom_tools_text_is_the_one_argument_of_a_function(text: str) -> None:
    made = CustomToolCall(id="", status=DONE, call_id="a", name="c", arguments=text)

    (sent, told) = history(made, CustomToolCallOutput(call_id="a", output="out"))

    assert json.loads(sent["tool_calls"][0]["function"]["arguments"]) == {"input": text}
    assert told == {"role": "tool", "tool_call_id": "a", "content": "out"}


def test_a_name_that_no_tool_could_have_goes_upstream_as_one_that_it_could() -> None:
    call = McpCall(id="mcp_1", status=ItemStatus.FAILED, call_id="call_1", name="a b/../\n\u00e9" * 40, error="unknown")
    (said, _) = history(output=(call,))
    (sent,) = said["tool_calls"]
    assert sent["function"]["name"] == ("a_b______" * 40)[:128]


def test_a_reference_that_nobody_has_resolved_never_reaches_a_model() -> None:
    with pytest.raises(AssertionError, match="resolved before a model is called"):
        history(ItemReference(id="msg_1"))
