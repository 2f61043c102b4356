"""Log probabilities: read from any upstream, one form everywhere, and never what costs the answer."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.domain.errors import UpstreamError
from dwctl_trio.domain.turn import AnnotationFragment, TextFragment
from dwctl_trio.protocol.annotations import parse_annotations, read_annotations, render_annotations
from dwctl_trio.protocol.chat_completions import ChunkReassembler, TurnBounds
from dwctl_trio.protocol.logprobs import parse_logprobs, read_logprobs, render_event_logprobs, render_logprobs
from dwctl_trio.testing.chat_reading import STEP_ID, chunk, chunk_stream, make_reassembler

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["token", "logprob", "bytes", "top_logprobs", "type", "url", "title", "url_citation"]),
            inner,
        )
    ),
    max_leaves=12,
)
_NUMBERS = st.floats() | st.integers(-10, 0)
_ALTERNATIVES = st.fixed_dictionaries(
    {"token": st.text(max_size=3), "logprob": _NUMBERS},
    optional={"bytes": st.none() | st.lists(st.integers(-1, 256), max_size=4)},
)
_TOKENS = st.fixed_dictionaries(
    {"token": st.text(max_size=3), "logprob": _NUMBERS, "top_logprobs": st.lists(_ALTERNATIVES, max_size=22)}
)


def _on_the_wire(rendered: object) -> Any:
    return msgspec.json.decode(msgspec.json.encode(rendered))


def _said(text: str, *tokens: str, **delta: object) -> dict[str, Any]:
    said = chunk(content=text, **delta)
    said["choices"][0]["logprobs"] = {"content": [{"token": token, "logprob": -1.0} for token in tokens]}
    return said


def _tokens(fragment: object) -> list[str]:
    assert isinstance(fragment, TextFragment)
    return [json.loads(token)["token"] for token in fragment.logprobs]


@given(value=_VALUES)
def test_whatever_an_upstream_sends_is_read_or_left_out(value: object) -> None:
    read_logprobs(value)
    read_annotations(value)
    assert isinstance(read_logprobs({"content": value}), list)
    assert read_annotations([value]) == list(
        parse_annotations(_on_the_wire(render_annotations(read_annotations([value]))))
    )


@given(tokens=st.lists(_TOKENS, max_size=3))
def test_what_was_read_is_of_one_form_that_a_part_and_the_stored_row_keep(tokens: list[dict[str, Any]]) -> None:
    read = read_logprobs({"content": tokens})

    assert len(read) == len(tokens)
    shown = _on_the_wire(render_logprobs(read))
    assert parse_logprobs(shown) == tuple(read)
    for token in shown:
        for alternative in (token, *token["top_logprobs"]):
            assert isinstance(alternative["logprob"], float)
            assert all(0 <= byte <= 255 for byte in alternative["bytes"])
        assert len(token["top_logprobs"]) <= 20


@given(tokens=st.lists(_TOKENS, max_size=3))
def test_an_event_shows_the_fields_that_the_type_of_the_sdk_has(tokens: list[dict[str, Any]]) -> None:
    shown = _on_the_wire(render_event_logprobs(read_logprobs({"content": tokens})))

    assert [token["token"] for token in shown] == [token["token"].replace("\0", "�") for token in tokens]
    for token in shown:
        assert token.keys() == {"token", "logprob", "top_logprobs"}
        assert all(alternative.keys() == {"token", "logprob"} for alternative in token["top_logprobs"])


def test_a_token_without_alternatives_is_kept() -> None:
    token = {"token": "a", "logprob": -1.0, "bytes": [97]}

    for odd in ({}, {"top_logprobs": None}, {"top_logprobs": []}):
        assert _on_the_wire(render_logprobs(read_logprobs({"content": [token | odd]}))) == [
            token | {"top_logprobs": []}
        ]


def test_a_citation_without_a_title_is_kept() -> None:
    cited = {"url": "https://a.example/", "start_index": 0, "end_index": 3}

    for odd in ({}, {"title": None}, {"title": ""}):
        (read,) = read_annotations([{"type": "url_citation", "url_citation": cited | odd}])
        assert json.loads(read) == {"type": "url_citation", **cited, "title": ""}


def test_half_a_character_keeps_its_bytes() -> None:
    half = {"token": "\\xc3", "logprob": -1.0, "bytes": [195], "top_logprobs": []}

    assert _on_the_wire(render_logprobs(read_logprobs({"content": [half]}))) == [half]


def test_a_token_without_text_comes_with_the_next_text() -> None:
    stream = chunk_stream(_said("", "\\xc3"), _said("é", "\\xa9"), chunk(finish_reason="stop"))

    (text, _) = make_reassembler().feed(stream)

    assert _tokens(text) == ["\\xc3", "\\xa9"]


def test_tokens_of_reasoning_and_of_calls_are_not_those_of_the_text() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
    thought, called = _said("", "hm", reasoning="hm"), _said("", "{}", tool_calls=[call])
    del thought["choices"][0]["delta"]["content"]

    fragments = make_reassembler().feed(
        chunk_stream(thought, _said("a", "a"), called, _said("b", "b"), chunk(finish_reason="stop"))
    )

    assert [_tokens(fragment) for fragment in fragments if isinstance(fragment, TextFragment)] == [["a"], ["b"]]


def test_log_probabilities_count_as_bytes_of_the_answer() -> None:
    reassembler = make_reassembler(answer_bytes_max=200)

    with pytest.raises(UpstreamError, match="too large"):
        reassembler.feed(chunk_stream(_said("a", *"abcdefgh")))


def test_annotations_beyond_the_bound_and_repeated_ones_are_left_out() -> None:
    paths = [{"type": "file_path", "file_id": f"file_{number}", "index": number} for number in range(5)]

    fragments = make_reassembler(annotations_max=3).feed(
        chunk_stream(chunk(content="a", annotations=paths[:2]), chunk(annotations=paths), chunk(finish_reason="stop"))
    )

    kept = [json.loads(fragment.annotation) for fragment in fragments if isinstance(fragment, AnnotationFragment)]
    assert [annotation["index"] for annotation in kept] == [0, 1, 2]


def test_log_probabilities_that_nobody_asked_for_are_not_read() -> None:
    bounds = TurnBounds(event_bytes=4096, answer_bytes=4096, tool_calls=1, annotations=1)

    (text, _) = ChunkReassembler(STEP_ID, bounds=bounds).feed(
        chunk_stream(_said("a", "a"), chunk(finish_reason="stop"))
    )

    assert text == TextFragment("a")
