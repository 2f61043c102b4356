"""The request body of a model call: what the client asked for, in the upstream's words."""

import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.domain.items import FunctionCall, ItemStatus, Message, Reasoning, ReasoningPart, RefusalPart, TextPart
from dwctl_trio.domain.request import (
    InputMessage,
    InputPart,
    JsonObject,
    JsonSchema,
    PartKind,
    PlainText,
    ReasoningOptions,
    ResponseRequest,
    Role,
)
from dwctl_trio.domain.turn import FinishReason, ModelTurn
from dwctl_trio.protocol.chat_request import DEFAULT_QUIRKS, Quirks, render_chat_request

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
parts = st.builds(InputPart, kind=st.sampled_from(PartKind), text=texts)
messages = st.builds(InputMessage, role=st.sampled_from(Role), content=st.lists(parts, max_size=3).map(tuple))
options = {
    "temperature": st.none() | st.floats(0, 2),
    "top_p": st.none() | st.floats(0, 1),
    "presence_penalty": st.none() | st.floats(-2, 2),
    "frequency_penalty": st.none() | st.floats(-2, 2),
    "max_output_tokens": st.none() | st.integers(16, 10**6),
    "verbosity": st.none() | st.sampled_from(["low", "high"]),
    "user": st.none() | texts,
    "instructions": st.none() | texts,
}
requests = st.builds(
    ResponseRequest, model=texts, input=st.lists(messages, min_size=1, max_size=4).map(tuple), **options
)
quirks = st.builds(
    Quirks,
    drop=st.frozensets(st.sampled_from(["temperature", "user", "stream_options", "verbosity"])),
    rename=st.sampled_from([(), (("max_tokens", "max_completion_tokens"),)]),
    developer_role=st.booleans(),
    stream_usage=st.booleans(),
)

USER = InputMessage(role=Role.USER, content=(InputPart(kind=PartKind.INPUT_TEXT, text="Hello"),))


def render(request=None, turns=(), *, quirks=DEFAULT_QUIRKS, **members) -> dict:
    request = request or ResponseRequest(model="alias", input=(USER,), **members)
    return json.loads(render_chat_request(request, turns, upstream_model="real-model", quirks=quirks))


def turn(*items) -> ModelTurn:
    return ModelTurn(items=items, finish_reason=FinishReason.STOP, usage=None)


def text_of(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@given(request=requests, quirks=quirks)
def test_every_text_is_sent_in_order_and_every_option_under_its_name(request, quirks):
    body = render(request, quirks=quirks)
    sent = [(message["role"], text_of(message["content"])) for message in body["messages"]]
    asked = [(message.role.value, "".join(part.text for part in message.content)) for message in request.input]
    if not quirks.developer_role:
        asked = [("system" if role == "developer" else role, text) for role, text in asked]
    if request.instructions is not None:
        asked.insert(0, ("system", request.instructions))
    assert sent == asked
    names = dict(quirks.rename)
    for ours, theirs in {"max_output_tokens": "max_tokens", "temperature": "temperature", "user": "user"}.items():
        value = getattr(request, ours)
        expected = None if theirs in quirks.drop else value
        assert body.get(names.get(theirs, theirs)) == expected
    assert not quirks.drop & set(body)
    assert (body["model"], body["stream"]) == ("real-model", True)


@given(request=requests, quirks=quirks)
def test_nothing_is_null_and_no_member_is_unknown_to_the_api(request, quirks):
    body = render(request, quirks=quirks)
    assert None not in body.values()
    assert set(body) <= {
        *("model", "messages", "stream", "stream_options", "temperature", "top_p", "presence_penalty"),
        *("frequency_penalty", "max_tokens", "max_completion_tokens", "verbosity", "user"),
    }


def test_the_smallest_request_asks_for_a_stream_with_usage():
    assert render() == {
        "model": "real-model",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_an_upstream_that_refuses_stream_options_gets_none():
    assert "stream_options" not in render(quirks=Quirks(stream_usage=False))


def test_what_only_the_client_cares_about_is_not_sent():
    private = {"metadata": (("a", "canary"),), "safety_identifier": "canary", "prompt_cache_key": "canary"}
    assert "canary" not in json.dumps(render(**private))


def test_several_parts_are_an_array_and_one_is_a_text():
    refusal = InputPart(kind=PartKind.REFUSAL, text="No.")
    message = InputMessage(role=Role.ASSISTANT, content=(*USER.content, refusal))
    request = ResponseRequest(model="alias", input=(message, attrs.evolve(message, content=(refusal,))))
    assert render(request)["messages"] == [
        {"role": "assistant", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "No."}]},
        {"role": "assistant", "content": "No."},
    ]


@pytest.mark.parametrize(
    ("text_format", "sent"),
    [
        (PlainText(), None),
        (JsonObject(), {"type": "json_object"}),
        (
            JsonSchema(name="city", schema=b'{"type":"object"}'),
            {"type": "json_schema", "json_schema": {"name": "city", "schema": {"type": "object"}}},
        ),
        (
            JsonSchema(name="city", schema=b"{}", description="A city.", strict=False),
            {
                "type": "json_schema",
                "json_schema": {"name": "city", "schema": {}, "description": "A city.", "strict": False},
            },
        ),
    ],
)
def test_the_text_format_becomes_the_response_format(text_format, sent):
    assert render(text_format=text_format).get("response_format") == sent


def test_the_reasoning_effort_is_passed_on_and_its_summary_is_not():
    body = render(reasoning=ReasoningOptions(effort="high", summary="auto"))
    assert body["reasoning_effort"] == "high"
    assert "summary" not in json.dumps(body)
    assert "reasoning_effort" not in render(reasoning=ReasoningOptions(summary="auto"))


def test_earlier_turns_follow_as_the_assistants_messages():
    done = ItemStatus.COMPLETED
    thought = Reasoning(id="rs_1", status=done, content=(ReasoningPart(text="hmm"),))
    said = Message(id="msg_1", status=done, content=(TextPart(text="Let me see. "), RefusalPart(refusal="No.")))
    call = FunctionCall(id="fc_1", status=done, call_id="call_1", name="look", arguments='{"a": 1}')
    sent_call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    assert render(turns=[turn(thought, said, call), turn(call), turn(said), turn(thought), turn()])["messages"][1:] == [
        {"role": "assistant", "content": "Let me see. No.", "tool_calls": [sent_call]},
        {"role": "assistant", "content": None, "tool_calls": [sent_call]},
        {"role": "assistant", "content": "Let me see. No."},
    ]


def test_a_dropped_field_is_named_as_we_name_it_even_if_it_is_renamed():
    quirks = Quirks(drop=frozenset({"max_tokens"}), rename=(("max_tokens", "max_completion_tokens"),))
    assert render(max_output_tokens=16, quirks=quirks).keys() == {"model", "messages", "stream", "stream_options"}


def test_the_body_is_one_line():
    line_ends = InputMessage(role=Role.USER, content=(InputPart(kind=PartKind.INPUT_TEXT, text="a\nb\u2028c"),))
    request = ResponseRequest(model="alias", input=(line_ends,))
    body = render_chat_request(request, (), upstream_model="m", quirks=DEFAULT_QUIRKS)
    assert len(body.decode().splitlines()) == 1
