"""The body of a chat completion: what we act on is checked, all the rest reaches the upstream as it is."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dwctl_trio.domain.chat import ChatRequest
from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.request import ServiceTier
from dwctl_trio.protocol import json as wire
from dwctl_trio.protocol.chat_body import parse_chat, parse_completion, parse_embeddings, read_chat, render_chat
from dwctl_trio.protocol.chat_request import DEFAULT_QUIRKS, Quirks
from dwctl_trio.testing.request_strategies import json_values

MESSAGES = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
OURS = ("model", "messages", "stream", "stream_options", "service_tier", "store", "n")
others = st.dictionaries(
    st.sampled_from(["temperature", "tools", "logit_bias", "x", "max_tokens", "metadata"]), json_values(), max_size=3
)
quirks = st.builds(
    Quirks,
    drop=st.frozensets(st.sampled_from(["temperature", "x", "store"])),
    rename=st.sampled_from([(), (("max_tokens", "max_completion_tokens"),)]),
    developer_role=st.booleans(),
    stream_usage=st.booleans(),
)


def sent(**fields: object) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": MESSAGES, **fields}


def rendered(body: object, quirks: Quirks = DEFAULT_QUIRKS) -> dict[str, Any]:
    return json.loads(render_chat(parse_chat(body), upstream_model="real", quirks=quirks))


@given(body=json_values() | st.dictionaries(st.sampled_from([*OURS, "user"]), json_values(), max_size=8))
@example(body=None)
@example(body=[sent()])
def test_any_json_is_a_request_or_an_error_that_names_its_parameter(body):
    try:
        request = parse_chat(body)
    except InvalidRequest as error:
        assert error.param is None or error.param.split(".")[0].split("[")[0] in OURS
        assert error.message
    else:
        assert read_chat(request.body) == request


@given(rest=others, quirks=quirks, stream=st.booleans())
def test_everything_that_is_not_ours_reaches_the_upstream_as_it_is(rest, quirks, stream):
    body = rendered(sent(**rest, stream=stream, service_tier="flex"), quirks)
    names = dict(quirks.rename)
    wanted = {names.get(name, name): value for name, value in rest.items() if name not in quirks.drop}
    assert {name: value for name, value in body.items() if name not in OURS} == wanted
    assert (body["model"], body["stream"]) == ("real", stream)
    assert "service_tier" not in body
    first = "developer" if quirks.developer_role else "system"
    assert body["messages"] == [{**MESSAGES[0], "role": first}, MESSAGES[1]]
    assert body.get("stream_options") == ({"include_usage": True} if stream and quirks.stream_usage else None)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": 7}, "model", "invalid_type"),
        ({"model": " "}, "model", "invalid_value"),
        ({"model": "x" * 257}, "model", "string_above_max_length"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": "hello"}, "messages", "invalid_type"),
        ({"messages": [MESSAGES[1], "hello"]}, "messages[1]", "invalid_type"),
        ({"stream": "true"}, "stream", "invalid_type"),
        ({"stream_options": []}, "stream_options", "invalid_type"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
        ({"service_tier": "turbo"}, "service_tier", "invalid_value"),
        ({"store": "no"}, "store", "invalid_type"),
    ],
)
def test_what_is_wrong_is_named(fields, param, code):
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(sent(**fields))
    assert (caught.value.param, caught.value.code, caught.value.status) == (param, code, 400)


def test_the_body_must_be_an_object():
    with pytest.raises(InvalidRequest, match="body") as caught:
        parse_chat([])
    assert caught.value.param is None


def test_what_we_act_on_is_read():
    body = sent(stream=True, stream_options={"include_usage": True}, n=3, store=True, service_tier="flex")
    assert parse_chat(body) == ChatRequest(
        model="gpt-4o",
        body=wire.encode(body),
        stream=True,
        wants_usage=True,
        choices=3,
        store=True,
        service_tier=ServiceTier.FLEX,
    )
    assert parse_chat(sent()) == ChatRequest(model="gpt-4o", body=wire.encode(sent()))


@pytest.mark.parametrize("n", [None, 0, -1, True, "2", 1.0])
def test_a_count_that_is_none_is_left_to_the_upstream(n):
    assert parse_chat(sent(n=n)).choices == 1
    assert rendered(sent(n=n))["n"] == n


def test_the_usage_of_a_stream_is_asked_for_next_to_what_the_client_asked():
    body = rendered(sent(stream=True, stream_options={"include_usage": False, "include_obfuscation": False}))
    assert body["stream_options"] == {"include_usage": True, "include_obfuscation": False}


@given(
    body=json_values() | st.dictionaries(st.sampled_from(["model", "prompt", "input", "n", *OURS]), json_values()),
    parse=st.sampled_from([parse_completion, parse_embeddings]),
)
@example(body=None, parse=parse_completion)
def test_any_json_is_a_text_a_thing_to_embed_or_an_error_that_names_its_parameter(body, parse):
    try:
        request = parse(body)
    except InvalidRequest as error:
        assert error.param is None or error.param.split(".")[0] in {"model", "stream", "stream_options"}
    else:
        assert json.loads(request.body) == body
        assert (request.choices >= 1, request.store, request.is_queued) == (True, False, False)


@given(rest=others, quirks=quirks, stream=st.booleans())
def test_of_a_text_to_complete_everything_that_is_not_ours_reaches_the_upstream_as_it_is(rest, quirks, stream):
    asked = {"model": "m", "prompt": ["a", "b"], "messages": [{"role": "developer"}], "service_tier": "odd", **rest}
    request = parse_completion(asked | {"stream": stream})
    body = json.loads(render_chat(request, upstream_model="real", quirks=quirks))
    usage = {"stream_options": {"include_usage": True}} if stream and quirks.stream_usage else {}
    assert body == {**asked, "model": "real", "stream": stream, **usage}


@given(rest=others, quirks=quirks)
def test_of_what_is_to_embed_everything_but_the_model_reaches_the_upstream_as_it_is(rest, quirks):
    asked = {"model": "m", "input": ["a"], **rest}
    assert json.loads(render_chat(parse_embeddings(asked), upstream_model="real", quirks=quirks)) == {
        **asked, "model": "real",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "n", "choices"),
    [
        ("a", None, 1), (["a", "b"], None, 2), (["a", "b"], 3, 6), ([1, 2, 3], 2, 2), ([[1, 2], [3]], None, 2),
        ([], None, 1), (None, "x", 1),
    ],
)  # fmt: skip
def test_a_text_has_an_answer_for_each_prompt_and_each_time(prompt, n, choices):
    request = parse_completion({"model": "m", "prompt": prompt, "n": n})
    assert (request.choices, request.surface) == (choices, Surface.COMPLETIONS)
