"""JSON at the edges: a client's body gives a value or InvalidRequest; what we write is one clean line."""

import json as stdlib_json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.protocol.json import clean_text, decode_strict, encode

DEPTH_MAX = 8

texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from("\u2028\u2029\x85\\")
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=15,
)
any_texts = st.text(st.characters())


def depth_of(value: object) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if children is None else 1 + max(map(depth_of, children), default=0)


def refusal_of(body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode_strict(body, depth_max=DEPTH_MAX, brackets_max=10**6)
    return caught.value


@given(value=json_values)
def test_what_is_encoded_is_decoded_again(value):
    assert decode_strict(encode(value), depth_max=100, brackets_max=10**6) == value


@given(value=json_values)
def test_encoded_json_is_one_line_however_lines_are_split(value):
    encoded = encode(value)
    assert encoded.decode().splitlines() == [encoded.decode()]
    assert stdlib_json.loads(encoded) == value


@given(value=json_values, depth_max=st.integers(1, 5))
def test_depth_is_counted_exactly(value, depth_max):
    if depth_of(value) <= depth_max:
        assert decode_strict(encode(value), depth_max=depth_max, brackets_max=10**6) == value
    else:
        with pytest.raises(InvalidRequest, match=f"at most {depth_max} levels"):
            decode_strict(encode(value), depth_max=depth_max, brackets_max=10**6)


@given(body=st.binary() | any_texts.map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes_are_a_value_or_an_invalid_request(body):
    try:
        value = decode_strict(body, depth_max=DEPTH_MAX, brackets_max=10**6)
    except InvalidRequest as refusal:
        assert refusal.__cause__ is None
        assert refusal.__context__ is None  # it would hold the body
    else:
        encode(value)


@given(value=st.recursive(any_texts, lambda inner: st.lists(inner) | st.dictionaries(any_texts, inner), max_leaves=5))
def test_what_is_accepted_can_be_stored(value):
    body = stdlib_json.dumps(value).encode()
    stored = stdlib_json.loads(body)  # two halves of a pair side by side have become one character
    is_clean = clean_text(str_of(stored)) == str_of(stored)
    if is_clean and depth_of(stored) <= DEPTH_MAX:
        assert decode_strict(body, depth_max=DEPTH_MAX, brackets_max=10**6) == stored
    else:
        refusal_of(body)


def str_of(value: object) -> str:
    """All texts in *value*, keys included, each apart from the next."""
    if isinstance(value, dict):
        return "".join(f"{key} {str_of(child)}" for key, child in value.items())
    return f"{value} " if isinstance(value, str) else "".join(f"{str_of(child)} " for child in value)


@given(text=any_texts)
def test_a_clean_text_has_its_length_and_can_be_encoded(text):
    clean = clean_text(text)
    assert len(clean) == len(text)
    assert "\0" not in clean
    assert clean_text(clean) == clean
    assert decode_strict(encode(clean), depth_max=1, brackets_max=10**6) == clean


@given(text=texts)
def test_a_text_that_can_be_stored_is_left_alone(text):
    assert clean_text(text) == text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"{", "not valid JSON"),
        (b'{"a": 1,}', "trailing comma"),
        (b"NaN", "not valid JSON"),
        (b"[Infinity]", "not valid JSON"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'"\xff"', "UTF-8"),
        (b'"\xed\xa0\x80"', "UTF-8"),
        (b'["\\\\ud800", x]', "not valid JSON"),
        (b"1e999", "out of range"),
        (b"9" * 5000, "out of range"),
        (b"[" * 9 + b"]" * 9, "at most 8 levels"),
        (b"[" * 100_000, "at most 8 levels"),
        (b'{"a":' * 100_000, "at most 8 levels"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(body, words):
    refusal = refusal_of(body)
    assert words in refusal.message
    assert (refusal.status, refusal.param) == (400, None)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"input": [{"content": "a"}, {"content": "\\u0000"}]}', "input[1].content"),
        (b'{"metadata": {"a\\u0000": 1}}', "metadata"),
        (b'{"\\u0000": 1}', None),
        (b'"\\u0000"', None),
        (b'[["\\u0000"]]', "[0][0]"),
        (b'{"' + b"x" * 300 + b'": "\\u0000"}', None),
        (b'["\\u0000"' + b" " * 300_000 + b"]", None),
    ],
)
def test_a_nul_is_refused_with_its_path(body, param):
    refusal = refusal_of(body)
    assert "NUL" in refusal.message
    assert refusal.param == param


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b'["\\ud800"]', "[0]", "surrogate pair"),
        (b'["\\udc00 x"]', "[0]", "surrogate pair"),
        (b'["\\ud83d\\ude00 \\ud83d"]', "[0]", "surrogate pair"),
        (b'{"metadata": {"\\udc00": 1}}', "metadata", "surrogate pair"),
        (b'{"input": [{"content": "\\ud800"}]}', "input[0].content", "surrogate pair"),
        (b'{"a": 1, "b": {"c": [2, -1e999]}}', "b.c[1]", "out of range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a", "out of range"),
        (b'{"a": ' + b"9" * 400 + b', "b": 1e999}', "b", "out of range"),
        (b'{"' + b"x" * 300 + b'": "\\ud800"}', None, "surrogate pair"),
        (b'{"a": "\\ud800", "b": NaN}', None, "not valid JSON"),
    ],
)
def test_what_json_allows_and_we_cannot_keep_is_refused_with_its_path(body, param, words):
    refusal = refusal_of(body)
    assert words in refusal.message
    assert refusal.param == param


def test_the_path_is_found_behind_what_is_deeper_than_pythons_own_stack():
    body = b'{"a": ' + b"[" * 900 + b"]" * 900 + b', "b": "\\u0000"}'

    assert refusal_of(body).param == "b"


def test_an_escaped_backslash_before_u0000_is_no_nul():
    assert decode_strict(b'"\\\\u0000"', depth_max=1, brackets_max=10**6) == "\\u0000"


def test_of_duplicate_keys_the_last_one_wins():
    assert decode_strict(b'{"a": 1, "a": 2}', depth_max=1, brackets_max=10**6) == {"a": 2}


def test_large_bodies_are_checked_without_a_path_for_every_value():
    assert len(decode_strict(b"[" + b"[]," * 200_000 + b'""]', depth_max=2, brackets_max=10**6)) == 200_001


def test_a_body_of_brackets_is_refused_before_it_is_decoded() -> None:
    body = b"[" + b"[]," * 1000 + b"[]]"

    with pytest.raises(InvalidRequest, match="at most 1000"):
        decode_strict(body, depth_max=64, brackets_max=1000)
    assert decode_strict(body, depth_max=64, brackets_max=1002) == [[] for _ in range(1001)]
