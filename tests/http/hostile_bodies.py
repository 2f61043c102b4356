"""Bodies that harm servers, each with the answer that it must get.

Rule: what is expected follows from how a body was made, never from what our parser says of it.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import attrs
from tests.http.request_faults import faults, spoil
from tests.http.request_grammar import REQUEST

JSON = (("content-type", "application/json"),)
DEPTH_MAX = 64
BRACKETS_MAX = 50_000

_PARTS = [{"type": "input_text", "text": "hello"}, {"type": "input_text", "text": "there"}]
_BREAKPOINT = {"prompt_cache_breakpoint": {"mode": "explicit", "ttl": "30m"}}
_ATTACHED: list[dict[str, Any]] = [
    {"type": "input_image", "image_url": "https://a.example/b.png", "detail": "low", **_BREAKPOINT},
    {"type": "input_file", "file_data": "data:text/plain;base64,aaaa", "filename": "a.txt", "detail": "low"},
    {"type": "input_audio", "input_audio": {"data": "aaaa", "format": "wav"}},
]
_SAID = {"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}
_MESSAGE = {"id": "m", "status": "completed", "phase": "commentary"}
_SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
SMALL: dict[str, Any] = {"model": "echo-2", "input": "hello"}

_OWN = {"type": "function", "name": "own"}
_SCRIPT = {"type": "custom", "name": "script"}
_CALL = {"type": "function_call", "name": "own", "call_id": "call_1", "arguments": "{}"}
_CALL_OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "done"}
_MCP_CALL = {"type": "mcp_call", "id": "mcp_1", "server_label": "dwctl", "name": "f", "arguments": "{}"}
_SAID_BY_USER = {"role": "user", "content": "hello"}

VALID: tuple[dict[str, Any], ...] = (
    {
        "model": "echo-2",
        "input": [
            {"role": "user", "content": _PARTS},
            {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "x"}], "status": "completed",
             "content": [{"type": "reasoning_text", "text": "x"}], "encrypted_content": "x"},
            {"role": "user", "content": _ATTACHED},
            {"type": "message", "role": "assistant", "content": [_SAID], **_MESSAGE},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "system", "content": "x"},
        ],
        "text": {"format": {"type": "json_schema", "name": "n", "schema": _SCHEMA, "description": "d", "strict": True}},
        "metadata": {"k": "v"},
        "include": ["reasoning.encrypted_content"],
        "stream_options": {"include_obfuscation": False},
    },
    {
        **SMALL,
        "instructions": "be brief", "stream": False, "store": True, "background": False, "service_tier": "default",
        "temperature": 1, "top_p": 0.5, "presence_penalty": 0, "frequency_penalty": 0.5, "max_output_tokens": 100,
        "max_tool_calls": 3, "top_logprobs": 0, "text": {"format": {"type": "text"}, "verbosity": "low"},
        "reasoning": {"effort": "low", "summary": "auto", "generate_summary": "auto"}, "parallel_tool_calls": True,
        "tools": [], "tool_choice": "auto", "truncation": "disabled", "user": "u", "safety_identifier": "s",
        "prompt_cache_key": "p", "prompt_cache_retention": "24h", "prompt_cache_options":
        {"mode": "explicit", "ttl": "12h", "comparison_response_id": "r", "prewarm": False},
        "background_options": {"completion_window": "soonest", "continuation_id": "c"},
        "image": {"context_compression": "auto"}, "client_metadata": {"k": 1},
    },
    {
        **SMALL,
        "tools": [
            {**_OWN, "description": "d", "parameters": _SCHEMA, "strict": True,
             "output_schema": _SCHEMA, "allowed_callers": ["direct"]},
            {**_SCRIPT, "description": "d", "format": {"type": "grammar", "syntax": "lark", "definition": "a"}},
            {"type": "mcp", "server_label": "dwctl", "server_description": "d", "allowed_tools": ["f", "run-code"],
             "require_approval": "never"},
            {"type": "dwctl:tool", "name": "get_weather"},
            {"type": "namespace", "name": "group", "description": "d", "tools": [_OWN, _SCRIPT]},
        ],
        "tool_choice": {"type": "function", "name": "own"},
        "include": ["dwctl:sub_agents"],
    },
    {"model": "echo-2", "input": [{"type": "item_reference", "id": "msg_1"}, _SAID_BY_USER]},
    {
        **SMALL,
        "tools": [{"type": "mcp", "server_label": "dwctl", "allowed_tools": {"tool_names": ["f"]}}, _SCRIPT],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [_SCRIPT, {"type": "mcp", "server_label": "dwctl", "name": "f"}],
        },
    },
    {
        "model": "echo-2",
        "input": [
            {**_CALL, "id": "fc_1", "status": "completed", "caller": {"type": "direct"}},
            {**_CALL_OUTPUT, "id": "fco_1", "status": "completed", "name": "own"},
            {"type": "custom_tool_call", "id": "c", "name": "script", "call_id": "call_2", "input": "text"},
            {**_MCP_CALL, "status": "completed", "output": "o", "approval_request_id": "a"},
            {"type": "custom_tool_call_output", "call_id": "call_2", "output": [_PARTS[0], *_ATTACHED[:2]]},
            {**_MCP_CALL, "error": {"type": "http_error", "code": 500, "message": "m"}},
            {**_MCP_CALL, "error": "why"},
        ],
    },
)  # fmt: skip


@attrs.frozen(kw_only=True)
class Hostile:
    """A body, and the answer that it must get."""

    why: str
    body: bytes
    param: str | None = None
    """What the error must name; None where the body as a whole is refused."""
    status: int = 400
    headers: tuple[tuple[str, str], ...] = JSON


def hostile_bodies() -> tuple[Hostile, ...]:
    """All of them, each body and its headers once."""
    made = (
        *_faulty(), *_mismatched(), *_cut(), *_not_objects(), *_encoded(), *_sent_otherwise(), *_deep(), *_large(),
        *_survived(),
    )  # fmt: skip
    return tuple({(hostile.body, hostile.headers): hostile for hostile in made}.values())


def _faulty() -> Iterator[Hostile]:
    seen = set()
    for number, valid in enumerate(VALID):
        for fault in faults(REQUEST, valid):
            sort = (_sort_of(valid, fault.place), fault.token)
            if sort in seen:
                continue
            seen.add(sort)
            why = f"body {number}: {fault.token!r:.60} at {fault.place!r:.60}"
            yield Hostile(why=why, body=spoil(valid, fault), param=fault.param)


def _sort_of(value: Any, place: tuple[str | int, ...]) -> str:
    """*place* with the types of objects instead of their positions: what differs in these alone is one sort."""
    names = []
    for step in place:
        is_there = step in value if isinstance(value, dict) else step < len(value)
        value = value[step] if is_there else None
        kind = value.get("type", "") if isinstance(value, dict) else ""
        names.append(f"{'' if isinstance(step, int) else step}:{kind}")
    return "/".join(names)


def _mismatched() -> Iterator[Hostile]:
    """Calls and outputs that do not belong together, and choices of what is not there."""
    custom = {"type": "custom_tool_call", "call_id": "call_1", "name": "script", "input": "text"}
    custom_output = {**_CALL_OUTPUT, "type": "custom_tool_call_output"}
    for items in (
        [_CALL],
        [_CALL_OUTPUT],
        [_CALL_OUTPUT, _CALL],
        [_CALL, _CALL, _CALL_OUTPUT, _CALL_OUTPUT],
        [_CALL, _CALL_OUTPUT, _CALL_OUTPUT],
        [_CALL, custom_output],
        [custom, _CALL_OUTPUT],
        [custom],
        [_CALL, {**_CALL_OUTPUT, "call_id": "call_2"}],
        [{**_CALL, "call_id": "call_1 "}, _CALL_OUTPUT],
        [_MCP_CALL, {**_CALL_OUTPUT, "call_id": "mcp_1"}],
        [_CALL, custom, _CALL_OUTPUT],
        [{**_CALL, "call_id": "x" * 100_000}],
        [_CALL, _SAID_BY_USER],
        [{**_CALL, "call_id": f"call_{index}"} for index in range(2000)],
    ):
        body = {"model": "echo-2", "input": items}
        yield Hostile(why=f"{len(items)} items, {items!r:.80}", body=json.dumps(body).encode(), param="input")
    for tools in ([], [_SCRIPT], [{"type": "mcp", "server_label": "dwctl", "allowed_tools": []}]):
        for choice in (_OWN, {"type": "allowed_tools", "mode": "auto", "tools": [_OWN]}):
            body = {**SMALL, "tools": tools, "tool_choice": choice}
            yield Hostile(why=f"{choice!r:.40} of {tools!r:.40}", body=json.dumps(body).encode(), param="tool_choice")
    body = {**SMALL, "tools": [], "tool_choice": "required"}
    yield Hostile(why="one of no tools", body=json.dumps(body).encode(), param="tool_choice")


def _cut() -> Iterator[Hostile]:
    """Beginnings of a body, and a body with something behind it."""
    for valid in VALID:
        body = json.dumps(valid).encode()
        for length in range(0, len(body), 11):
            yield Hostile(why=f"cut after {length} bytes", body=body[:length])
    small = json.dumps(SMALL).encode()
    for behind in (b"x", b",", b"}", b"\0", small, b"\xef\xbb\xbf", b"\x1a", b"#", b"/**/", b"\xc2\xa0"):
        yield Hostile(why=f"followed by {behind!r:.20}", body=small + behind)
    for before in (b")]}',\n", b"\0", b"x", b",", b"\xef\xbb\xbf", b"\xc2\xa0", b"\x0b", b"while(1);", b"data: "):
        yield Hostile(why=f"after {before!r}", body=before + small)
    for blank in (b"", b" ", b"\r\n", b"\t" * 1000, b" " * 100_000):
        yield Hostile(why=f"{len(blank)} blanks", body=blank)


def _not_objects() -> Iterator[Hostile]:
    small = json.dumps(SMALL).encode()
    for body in (
        b"[]",
        b"null",
        b"true",
        b"1",
        b"-0",
        b"1.5",
        b'""',
        b'"text"',
        b"[{}]",
        b"[" + small + b"]",
        b"[[[]]]",
    ):
        yield Hostile(why="not an object", body=body)
    yield Hostile(why="JSON in JSON", body=json.dumps(small.decode()).encode())
    for name in ("model", "input"):
        yield Hostile(
            why="one alone", body=json.dumps({name: "echo-2"}).encode(), param="input" if name == "model" else "model"
        )
    yield Hostile(why="nothing in it", body=b"{}", param="model")
    yield Hostile(why="nothing in it, blanks", body=b" {\r\n}\t", param="model")


def _encoded() -> Iterator[Hostile]:
    """Texts in other encodings, with and without saying so."""
    text = json.dumps({"model": "echo-2", "input": "hellö € 🙂"}, ensure_ascii=False)
    plain = json.dumps(SMALL)
    for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "utf-8-sig", "cp500"):
        for body in (text if name != "cp500" else plain, plain):
            for charset in ("", f"; charset={name}", "; charset=utf-8"):
                yield Hostile(
                    why=f"{name}{charset}", body=body.encode(name), headers=_typed(f"application/json{charset}")
                )
    for name in ("latin-1", "cp1252", "shift-jis", "gb18030", "koi8-r", "utf-7"):
        said = {"shift-jis": "日本", "gb18030": "中文€", "koi8-r": "привет"}.get(name, "hellö")
        body = '{"model": "echo-2", "input": "' + said + '"}' if name != "utf-7" else '{"model"+ADo- "echo-2"}'
        for charset in ("", f"; charset={name}"):
            encoded = body.encode(name) if name != "utf-7" else body.encode()
            yield Hostile(why=f"{name}{charset}", body=encoded, headers=_typed(f"application/json{charset}"))
    for name in ("gzip", "zlib"):
        squeezed = gzip.compress(plain.encode(), mtime=0) if name == "gzip" else zlib.compress(plain.encode())
        yield Hostile(why=f"{name} without saying so", body=squeezed)


def _typed(content_type: str, *more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return (("content-type", content_type), *more)


def _sent_otherwise() -> Iterator[Hostile]:
    """Bodies that do not say that they are JSON, or are squeezed."""
    body = json.dumps(SMALL).encode()
    for kind in (
        "", "text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json",
        "application/jsonp", "application/json5", "application/ld+json", "application/vnd.api+json", "*/*", ";", "/",
        "application/x-ndjson", "application/octet-stream", "application/json, text/plain", "applicationjson",
        "x" * 4000, "application/json/x", "application/xml; charset=application/json", "text/plain; q=application/json",
    ):  # fmt: skip
        yield Hostile(why=f"content type {kind:.40}", body=body, status=415, headers=_typed(kind))
    for encoding in ("gzip", "br", "deflate", "zstd", "x", "gzip, gzip", "identity, gzip", "chunked", "gzip" * 500):
        headers = _typed("application/json", ("content-encoding", encoding))
        yield Hostile(why=f"content encoding {encoding:.20}", body=body, status=415, headers=headers)
    bomb = gzip.compress(b" " * 10_000_000, mtime=0)
    squeezed = _typed("application/json", ("content-encoding", "gzip"))
    yield Hostile(why="ten million blanks, squeezed", body=bomb, status=415, headers=squeezed)


def _deep() -> Iterator[Hostile]:
    """Bodies whose depth costs a careless server its stack, or its time."""
    for levels in (DEPTH_MAX, DEPTH_MAX + 1, 200, 400, 500, 700, 800, 900, 950, 980, 1000, 1024, 5000, 20_000):
        lists, objects = b"[" * levels + b"]" * levels, b'{"a":' * levels + b"1" + b"}" * levels
        for deep in (lists, objects):
            yield Hostile(why=f"{levels} levels", body=b'{"model": "echo-2", "input": ' + deep + b"}")
            if levels <= 900:  # a decoder may stop at what is deeper, and never see what follows
                body = b'{"input": ' + deep + b', "model": "\\u0000"}'
                yield Hostile(why=f"{levels} levels and a NUL", body=body, param="model")
        yield Hostile(why=f"{levels} levels that never end", body=b'{"model": "echo-2", "input": ' + b"[" * levels)
        yield Hostile(why=f"{levels} levels and half a pair", body=b'{"input": ' + b"[" * levels + b'"\\ud800"')
    for bracket in (b"[]", b"{}"):
        body = b'{"model": "echo-2", "input": [' + b",".join([bracket] * BRACKETS_MAX) + b"]}"
        yield Hostile(why=f"{BRACKETS_MAX} times {bracket!r}", body=body)


def _large() -> Iterator[Hostile]:
    """Bodies that are large in one way each."""
    head = b'{"model": "echo-2", "input": "x", '
    thousands = b",".join([b"1"] * 200_000)
    yield Hostile(why="200,000 numbers to include", body=head + b'"include": [' + thousands + b"]}", param="include[0]")
    yield Hostile(
        why="200,000 numbers of input", body=b'{"model": "m", "input": [' + thousands + b"]}", param="input[0]"
    )
    names = b",".join(b'"k%d": "v"' % index for index in range(50_000))
    yield Hostile(why="50,000 pairs", body=head + b'"metadata": {' + names + b"}}", param="metadata")
    yield Hostile(why="50,000 unknown names", body=head + names + b"}", param="k0")
    again = b",".join([b'"top_p": 7'] * 50_000)
    yield Hostile(why="50,000 times one name", body=head + again + b"}", param="top_p")
    items = b",".join([b'{"role": "user", "content": "x"}'] * 5000)
    body = b'{"model": "m", "input": [' + items + b', {"role": "tool"}]}'
    yield Hostile(why="5,000 messages and a wrong one", body=body, param="input[5000].role")
    for size in (300_000, 3_000_000):
        long = b"x" * size
        yield Hostile(why=f"a name of {size}", body=head + b'"' + long + b'": 1}', param="x" * 100 + "…")
        yield Hostile(why=f"a model of {size}", body=b'{"input": "x", "model": "' + long + b'"}', param="model")
        yield Hostile(why=f"a number of {size}", body=head + b'"top_p": ' + b"9" * size + b"}")
        yield Hostile(why=f"a fraction of {size}", body=head + b'"top_p": 3.' + b"9" * size + b"}", param="top_p")
        escapes = b"\\u0041" * (size // 6)
        yield Hostile(why=f"escapes of {size}", body=head + b'"user": "' + escapes + b'"}', param="user")
        yield Hostile(why=f"backslashes of {size}", body=head + b'"user": "' + b"\\" * size + b"x")
        half = head + b'"instructions": "' + long + b'\\ud800"}'
        yield Hostile(why=f"half a pair after {size}", body=half)  # too large to look for the path
        yield Hostile(why=f"blanks of {size}", body=b" " * size + b"{" + b" " * size + b"}", param="model")


def _survived() -> Iterator[Hostile]:
    """What looks hostile and is valid."""
    small = json.dumps(SMALL).encode()
    extra = b'{"model": 1, "input": [], "model": "echo-2", "input": "x", "temperature": 9, "temperature": %s}'
    for number in (b"1", b"-0", b"-0.0", b"1e-400", b"2.0", b"20e-1", b"0.0000000000000000000000000000001"):
        yield Hostile(why=f"names twice, and {number!r}", body=extra % number, status=200)
    yield Hostile(why="blanks around", body=b" \t\r\n" * 1000 + small + b" \t\r\n" * 1000, status=200)
    escaped = "".join(f"\\u{ord(char):04x}" for char in "model").encode()
    yield Hostile(why="a name in escapes", body=small.replace(b"model", escaped), status=200)
    for said in (
        b"\\ud83d\\ude00",
        b"\\\\u0000",
        b"\\\\ud800",
        b"\x7f\xc2\x85\xe2\x80\xa8\xef\xbf\xbe",
        b"\\b\\f\\/\\u001b[31m",
    ):
        yield Hostile(why=f"input {said!r}", body=b'{"model": "echo-2", "input": "' + said + b'"}', status=200)
    for kind in (
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        'application/json;charset="UTF-8"',
        "application/json;",
    ):
        yield Hostile(why=kind, body=small, status=200, headers=_typed(kind))
    for encoding in ("identity", "Identity", ""):
        headers = _typed("application/json", ("content-encoding", encoding))
        yield Hostile(why=f"content encoding {encoding!r}", body=small, status=200, headers=headers)
