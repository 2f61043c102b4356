"""Bodies that are not what they should be: always a 4xx with OpenAI's four keys, never a 5xx, never a hang."""

import gzip
import json
from typing import Any

import httpx
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.http.conftest import WAIT_S, ask, assert_serves, error_of, open_raw, read_answer

from dwctl_trio.testing.service import Service, open_service

JSON = {"content-type": "application/json"}
VALID = json.dumps(ask("echo-2")).encode()

NOT_JSON: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \r\n\t ",
    "cut short": VALID[:-1],
    "cut in a string": VALID[:12],
    "something behind it": VALID + b"x",
    "two objects": VALID + VALID,
    "single quotes": b"{'model': 'echo-2', 'input': 'x'}",
    "no quotes": b"{model: 1}",
    "trailing comma": b'{"model": "echo-2", "input": "x",}',
    "comment": b'{"model": "echo-2", /* c */ "input": "x"}',
    "NaN": b'{"model": "echo-2", "input": "x", "temperature": NaN}',
    "Infinity": b'{"model": "echo-2", "input": "x", "temperature": Infinity}',
    "-Infinity": b'{"model": "echo-2", "input": "x", "temperature": -Infinity}',
    "a double out of range": b'{"model": "echo-2", "input": "x", "temperature": 1e400}',
    "a number with 5,000 digits": b'{"model": "echo-2", "input": "x", "temperature": ' + b"9" * 5000 + b"}",
    "leading zero": b'{"model": "echo-2", "input": "x", "max_output_tokens": 016}',
    "hexadecimal": b'{"model": "echo-2", "input": "x", "max_output_tokens": 0x20}',
    "control character": b'{"model": "echo-2", "input": "a\x01b"}',
    "raw NUL": b'{"model": "echo-2", "input": "a\x00b"}',
    "bad escape": b'{"model": "echo-2", "input": "\\x41"}',
    "lone high surrogate": b'{"model": "echo-2", "input": "\\ud800"}',
    "lone low surrogate": b'{"model": "echo-2", "input": "\\udc00 x"}',
    "surrogates the wrong way round": b'{"model": "echo-2", "input": "\\udc00\\ud800"}',
    "lone surrogate in a key": b'{"model": "echo-2", "input": "x", "\\ud800": 1}',
    "Latin-1": '{"model": "echo-2", "input": "ü"}'.encode("latin-1"),
    "cut in a character": '{"model": "echo-2", "input": "€"}'.encode()[:-4] + b'"}',
    "overlong UTF-8": b'{"model": "echo-2", "input": "\xc0\xaf"}',
    "surrogate in UTF-8": b'{"model": "echo-2", "input": "\xed\xa0\x80"}',
    "BOM": b"\xef\xbb\xbf" + VALID,
    "UTF-16": VALID.decode().encode("utf-16"),
    "UTF-32": VALID.decode().encode("utf-32"),
    "gzip without saying so": gzip.compress(VALID),
    "form data": b"model=echo-2&input=x",
    "100,000 brackets": b"[" * 100_000,
    "100,000 objects": b'{"a":' * 100_000,
    "65 levels": b'{"model": "echo-2", "input": ' + b"[" * 64 + b"]" * 64 + b"}",
    "500 levels": b'{"model": "echo-2", "input": ' + b"[" * 500 + b"]" * 500 + b"}",
}

NOT_AN_OBJECT: tuple[bytes, ...] = (b"[]", b"null", b"1", b'"text"', b"true", b"[{}]", b"1.5", b"[" + VALID + b"]")

WITH_NUL: dict[str, dict[str, Any]] = {
    "input": {"input": "a\0b"},
    "instructions": {"instructions": "\0"},
    "metadata.k": {"metadata": {"k": "\0"}},
    "metadata": {"metadata": {"\0": "v"}},
    "model": {"model": "echo\0"},
    "input[0].content": {"input": [{"role": "user", "content": "\0"}]},
}


async def _post(service: Service, body: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    with trio.fail_after(WAIT_S):
        return await service.client.post("/v1/responses", content=body, headers=JSON if headers is None else headers)


@pytest.mark.slow
async def test_a_body_that_is_not_json_is_refused(service: Service) -> None:
    for name, body in NOT_JSON.items():
        answer = await _post(service, body)
        error = error_of(answer)
        assert (answer.status_code, error["type"]) == (400, "invalid_request_error"), (name, error)
        assert error["code"] in {"invalid_json", "invalid_value"}, (name, error)
    await assert_serves(service)


async def test_a_body_that_is_not_an_object_is_refused(service: Service) -> None:
    for body in NOT_AN_OBJECT:
        answer = await _post(service, body)
        assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_type"), body


async def test_the_character_nul_is_refused_where_it_stands(service: Service) -> None:
    for param, fields in WITH_NUL.items():
        answer = await _post(service, json.dumps({**ask("echo-2"), **fields}).encode())
        assert (answer.status_code, error_of(answer)["param"]) == (400, param)


async def test_of_duplicate_keys_the_last_one_wins(service: Service) -> None:
    answer = await _post(service, b'{"model": "echo-9", "input": "x", "store": false, "model": "echo-2"}')

    assert (answer.status_code, answer.json()["model"]) == (200, "echo-2")


async def test_text_outside_ascii_arrives_as_it_was_sent(service: Service) -> None:
    said = "wörd € 🙂 \u2028 \u0085 \x7f \ufffe"

    answer = await _post(service, json.dumps({"model": "parrot", "input": said}).encode())

    assert answer.json()["output"][0]["content"][0]["text"] == said
    assert service.simulator.requests[-1].body["messages"][-1]["content"] == said


@pytest.mark.slow
async def test_another_content_type_or_encoding_is_415(service: Service) -> None:
    for headers in (
        {},
        {"content-type": ""},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/jsonp"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {"content-type": "application/json", "content-encoding": "br"},
        {"content-type": "application/json", "content-encoding": "x"},
    ):
        body = gzip.compress(VALID) if headers.get("content-encoding") == "gzip" else VALID
        answer = await _post(service, body, headers)
        assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_media_type"), headers


async def test_a_content_type_with_parameters_is_json_all_the_same(service: Service) -> None:
    for content_type in ("application/json; charset=utf-8", "Application/JSON", "application/json;x=y"):
        answer = await _post(service, VALID, {"content-type": content_type})
        assert answer.status_code == 200, content_type


async def _post_raw(service: Service, body: bytes, *, chunked: bool = False) -> httpx.Response:
    """The answer to *body*, read while the body is still being sent: the server may not wait for its end."""
    head = b"POST /v1/responses HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nConnection: close\r\n"
    if chunked:
        request = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        request = head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    async with open_raw(service) as client:
        with trio.fail_after(3 * WAIT_S):
            return read_answer(await client.exchange(request))


def _body_of(size: int) -> bytes:
    head = b'{"model": "echo-2", "input": "'
    return head + b"x" * (size - len(head) - 2) + b'"}'


@pytest.mark.slow
async def test_a_body_over_the_limit_is_413(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": {"request_body_bytes": 4096}}) as service:
        for chunked in (False, True):
            for size, status in ((4096, 200), (4097, 413), (100_000, 413)):
                answer = await _post_raw(service, _body_of(size), chunked=chunked)
                assert answer.status_code == status, (size, chunked)
                if status == 413:
                    assert error_of(answer)["code"] == "request_too_large"
        await assert_serves(service)


@pytest.mark.slow
@pytest.mark.usefixtures("each_server_at_length")
async def test_a_body_of_16_mib_is_served_and_one_byte_more_is_413(service: Service) -> None:
    limit = 16 * 1024 * 1024

    served = await _post_raw(service, _body_of(limit))
    refused = await _post_raw(service, _body_of(limit + 1))
    refused_chunked = await _post_raw(service, _body_of(limit + 1), chunked=True)

    assert served.status_code == 200
    assert (refused.status_code, error_of(refused)["code"]) == (413, "request_too_large")
    assert (refused_chunked.status_code, error_of(refused_chunked)["code"]) == (413, "request_too_large")
    await assert_serves(service)


_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_names = st.sampled_from((
    "model", "input", "instructions", "stream", "store", "background", "service_tier", "temperature", "top_p",
    "max_output_tokens", "text", "reasoning", "metadata", "tools", "tool_choice", "truncation", "include", "user",
    "stream_options", "previous_response_id", "top_logprobs",
))  # fmt: skip
_bodies = st.one_of(
    st.binary(max_size=400),
    _json_values.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(_names, _json_values, max_size=6).map(lambda fields: json.dumps(fields).encode()),
    st.dictionaries(_names, _json_values, max_size=3).map(
        lambda fields: json.dumps({"model": "echo-1", "input": "x", **fields}).encode()
    ),
    st.builds(lambda cut, more: VALID[:cut] + more, st.integers(0, len(VALID)), st.binary(max_size=20)),
)


@pytest.mark.slow
async def test_no_body_whatsoever_makes_the_server_fail(service: Service) -> None:
    statuses: dict[int, int] = {}

    @settings(max_examples=300, deadline=None)
    @given(_bodies)
    def post(body: bytes) -> None:
        answer = client.post("/v1/responses", content=body, headers=JSON)
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        assert answer.status_code < 500
        if answer.status_code != 200:
            error_of(answer)

    with httpx.Client(base_url=service.url, timeout=WAIT_S, trust_env=False) as client:
        await trio.to_thread.run_sync(post)
    assert sum(statuses.values()) >= 200
    assert statuses[400] > 0
    await assert_serves(service)
