"""The grammar of model names, and the replies that scripts make, without a socket."""

import json
import re
from pathlib import Path

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dwctl_trio.testing.simulator_chat import ChatRequest, Message, parse_chat_request, turn_number
from dwctl_trio.testing.simulator_http import LAST_CHUNK
from dwctl_trio.testing.simulator_reply import Act, HangUp, Pause, Quiet, Sleep, Write, make_reply
from dwctl_trio.testing.simulator_scenes import (
    Answer,
    Big,
    Complaint,
    EmptyBody,
    Ending,
    Flag,
    HtmlPage,
    HttpError,
    Inspect,
    Parrot,
    Reasoning,
    Refusal,
    Refused,
    Scene,
    Script,
    Silence,
    Text,
    ToolCalls,
)
from dwctl_trio.testing.simulator_script import (
    _ANSWERS,
    _NUMBERED_OPTIONS,
    expected_text,
    expected_tokens,
    parse_script,
    scene_of_turn,
    script_name,
)

ECHO_16 = Script(scenes=(Scene(answer=Text(tokens=16)),))


def scenes(tokens_max: int = 100_000) -> st.SearchStrategy[Scene]:
    count = st.integers(0, tokens_max)
    statuses = st.integers(400, 599)
    answers: st.SearchStrategy[Answer] = st.one_of(
        st.builds(Text, tokens=count),
        st.builds(Refusal, tokens=count),
        st.builds(
            Reasoning, reasoning_tokens=count, tokens=count, field=st.sampled_from(["reasoning_content", "reasoning"])
        ),
        st.builds(
            ToolCalls,
            calls=st.integers(1, min(tokens_max, 1000)),
            shape=st.sampled_from(["tools", "toolslate", "toolsnoid", "toolsbad", "toolsasked"]),
        ),
        st.builds(Big, size_bytes=count),
        st.builds(Refused, complaint=st.sampled_from(Complaint)),
        st.builds(HttpError, status=statuses, retry_after_s=st.none() | st.integers(0, 86_400)),
        st.builds(HtmlPage, status=statuses),
        st.builds(EmptyBody, status=statuses),
        st.builds(Silence, head=st.booleans()),
        st.just(Parrot()),
        st.just(Inspect()),
    )
    return st.builds(
        Scene,
        answer=answers,
        ending=st.sampled_from(Ending),
        interval_ms=st.none() | st.integers(0, 3_600_000),
        pause_after=st.none() | count,
        split_seed=st.none() | st.integers(0, 999_999_999),
        cut_byte=st.none() | count,
        delay_ms=st.integers(0, 3_600_000),
        failures=st.integers(0, 1000),
        flags=st.frozensets(st.sampled_from(Flag)),
    )


def body_of(acts: list[Act]) -> bytes:
    """The body that the writes carry: without the head, without the chunks' framing."""
    framed = b"".join(act.data for act in acts if isinstance(act, Write)).partition(b"\r\n\r\n")[2]
    body = b""
    while framed:
        size, _, rest = framed.partition(b"\r\n")
        body, framed = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body


def acts_of(model: str, *, stream: bool = True) -> list[Act]:
    request = ChatRequest(model=model, messages=[Message(role="user", content="hello")], stream=stream)
    return list(make_reply(parse_script(model).scenes[0], request, body=b"{}", serial="00000001").acts)


@given(st.text())
@example("echo")
@example("echo-\u00b2")
@example("-then-")
@example("pause-1-2-3-4")
@example("stop")
def test_any_text_is_a_model_name(model):
    assert parse_script(model).scenes


@given(st.lists(st.sampled_from(["echo", "slow", "tools", "error", "then", "each", "every", "cut", "nul", "1", "500"])))
def test_any_words_of_the_grammar_in_any_order_are_a_model_name(parts):
    assert parse_script("-".join(parts)).scenes


@given(st.builds(Script, scenes=st.lists(scenes(), min_size=1, max_size=3).map(tuple)))
def test_a_scripts_name_parses_to_the_same_script(script):
    assert parse_script(script_name(script)) == script


@pytest.mark.parametrize("model", ["gpt-4o", "", "echo-100001", "error-200", "echo-5-6", "echo-5-purple", "slow-5"])
def test_a_name_that_is_not_understood_is_echo_16(model):
    assert parse_script(model) == ECHO_16


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("each-3", "echo-3-every-0"),
        ("slow-5-20", "echo-5-every-20"),
        ("pause-2-4", "echo-4-pause-2"),
        ("cut-3", "echo-3-cut"),
        ("split-7-3", "echo-3-split-7"),
        ("flaky-2-5", "echo-5-flaky-2"),
        ("crlf-4-nodone", "echo-4-nodone-crlf"),
        ("hanghead", "hang"),
        ("cut", "echo-16-cut"),
    ],
)
def test_an_option_in_front_is_short_for_an_echo_with_it(short, long):
    assert parse_script(short) == parse_script(long) != ECHO_16


def test_a_lone_tool_scene_is_followed_by_ten_words_and_a_chain_by_its_last_scene():
    assert scene_of_turn(parse_script("tools-2"), 0).answer == ToolCalls(calls=2)
    assert scene_of_turn(parse_script("tools-2"), 1).answer == Text(tokens=10)
    assert scene_of_turn(parse_script("tools-2-then-error-500"), 5).answer == HttpError(status=500)
    assert scene_of_turn(parse_script("tools-1-then-tools-1"), 7).answer == ToolCalls(calls=1)


def test_the_turn_counts_tool_calling_messages_since_the_last_user_message():
    calls = {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1"}]}
    tool = {"role": "tool", "tool_call_id": "call_1", "content": "x"}
    user = {"role": "user", "content": [{"type": "text", "text": "hi"}]}

    def turn(*messages):
        return turn_number(parse_chat_request(json.dumps({"model": "tools-1", "messages": messages}).encode()))

    assert turn(user) == 0
    assert turn(user, calls, tool) == 1
    assert turn(user, calls, tool, calls, tool) == 2
    assert turn(user, calls, tool, user) == 0


def test_the_text_of_a_script_is_known_beforehand():
    assert expected_tokens("echo-2") == ("word0 ", "word1 ")
    assert expected_text("reasoning-5-1") == "word0 "
    assert expected_text("unicode-1") == "wörd0€🙂 "
    assert expected_text("nul-1") == "word0\x00\ud800 "
    assert expected_text("big-3") == "xxx"
    assert expected_text("tools-1") == ""
    assert expected_text("tools-1", turn=1) == expected_text("echo-10")


@given(st.text())
def test_a_parrots_words_joined_are_the_prompt(prompt):
    assert expected_text("parrot", prompt=prompt) == prompt


@given(scenes(tokens_max=40), st.booleans())
def test_every_scene_makes_a_reply(scene, stream):
    request = ChatRequest(model="any", stream=stream, stream_options={"include_usage": True})
    reply = make_reply(scene, request, body=b"{}", serial="1")
    acts = list(reply.acts)
    assert acts
    assert all(act.data for act in acts if isinstance(act, Write))
    assert reply.waits or not any(isinstance(act, Pause | Quiet | Sleep) for act in acts)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["function", "name", "properties", "type"]), inner),
    max_leaves=10,
)


@given(JSON, JSON, st.sampled_from(["tools-2", "parrot", "inspect", "\ud800"]), st.booleans())
def test_any_json_is_answered_or_refused(messages, tools, model, stream):
    body = json.dumps({"model": model, "messages": messages, "tools": tools, "stream": stream}).encode()
    try:
        request = parse_chat_request(body)
    except ValueError:
        return
    assert list(make_reply(parse_script(model).scenes[0], request, body=body, serial="1").acts)


@given(st.integers(0, 999_999_999), st.integers(0, 20))
def test_where_the_bytes_are_split_does_not_change_them(seed, tokens):
    split, whole = acts_of(f"echo-{tokens}-split-{seed}"), acts_of(f"echo-{tokens}-unicode")
    assert body_of(split).replace(f"-split-{seed}".encode(), b"-unicode") == body_of(whole)
    assert len(split) > len(whole)
    assert sum(act.tokens for act in split) == tokens


@given(st.integers(0, 3000))
def test_a_cut_comes_after_exactly_so_many_bytes_of_the_body(size):
    acts = acts_of(f"cutbyte-{size}-16")
    assert len(body_of(acts)) == size
    assert acts[-1] == HangUp(reset=False)


def test_tokens_at_once_are_one_write_with_head_and_end():
    (write,) = acts_of("echo-200")
    assert write.data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert write.data.endswith(LAST_CHUNK)
    assert write.tokens == 200


def test_each_token_is_a_write_of_its_own():
    acts = acts_of("each-5")
    assert [act.tokens for act in acts] == [0, 1, 1, 1, 1, 1, 0]


def test_a_pace_is_a_sleep_before_each_token():
    assert acts_of("slow-3-20").count(Sleep(seconds=0.02)) == 3
    assert Sleep(seconds=0.06) in acts_of("slow-3-20", stream=False)


def test_a_scene_out_of_range_cannot_be_made():
    with pytest.raises(ValueError, match="tokens"):
        attrs.evolve(Text(tokens=1), tokens=-1)


def test_the_reference_page_names_every_word_of_the_grammar():
    page = (Path(__file__).parents[2] / "docs/reference/simulator.md").read_text("utf-8")
    documented = set(re.findall(r"`([a-z0-9]+)(?:-[A-Z\[\]-]+)?`", page))
    assert {*_ANSWERS, *_NUMBERED_OPTIONS, *Ending, *Flag, "slow", "each"} - documented == set()


@pytest.mark.parametrize("model", ["slow-20-100", "echo-50-every-20-crlf-nousage", "tools-1-then-error-500"])
def test_the_reference_pages_examples_are_understood(model):
    assert parse_script(model) != ECHO_16
