"""Parameters that are wrong: always a 4xx with OpenAI's four keys that names the parameter."""

import json
from typing import Any

import pytest
import trio
from tests.http.conftest import WAIT_S, ask, assert_serves, error_of

from dwctl_trio.testing.service import Service, open_service

JSON = {"content-type": "application/json"}
SCHEMA = {"type": "object", "properties": {}}
FUNCTION = {"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}
OURS = {"type": "mcp", "server_label": "dwctl"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
TEXT_PART = {"type": "input_text", "text": "hello"}

WRONG_TYPES: dict[str, tuple[Any, ...]] = {
    "model": (1, True, [], {}, ["echo-2"]),
    "input": (1, True, {}, 1.5, [1], ["text"], [None], [[]]),
    "instructions": (1, [], {}, [{"role": "user", "content": "x"}]),
    "stream": ("true", 1, 0, [], {}),
    "store": ("false", 0, []),
    "background": ("true", 1, {}),
    "service_tier": (1, [], True),
    "temperature": ("1", True, [], {}),
    "top_p": ("0.5", False, [1], {}),
    "presence_penalty": ("0", True),
    "frequency_penalty": ("0", {}),
    "max_output_tokens": ("100", 100.5, True, []),
    "text": ("text", 1, []),
    "reasoning": ("high", 1, []),
    "metadata": ("a", 1, []),
    "parallel_tool_calls": ("true", 1),
    "tool_choice": (1, True, []),
    "tools": ({}, "tools", 1),
    "truncation": (1, True),
    "user": (1, []),
    "safety_identifier": (1, {}),
    "prompt_cache_key": (1, []),
    "stream_options": (1, "x", []),
    "include": ("x", {}, 1),
    "max_tool_calls": ("1", 1.5, True),
    "top_logprobs": ("1", 1.5, True),
}

OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    "temperature": (-0.1, 2.1, -1, 3, 1e308, -1e308, 10**18),
    "top_p": (-0.1, 1.1, 2),
    "presence_penalty": (-2.1, 2.1),
    "frequency_penalty": (-2.1, 2.1),
    "max_output_tokens": (15, 0, -1, 2**31, 2**63 - 1, -(2**63)),
    "max_tool_calls": (0, -1),
    "top_logprobs": (-1, 21),
    "model": ("", " ", "x" * 257),
    "user": ("x" * 513,),
    "safety_identifier": ("x" * 129,),
    "prompt_cache_key": ("x" * 513,),
    "input": ([],),
    "service_tier": ("cheap", "", "FLEX"),
    "tool_choice": ("any", ""),
    "truncation": ("sometimes",),
    "text.verbosity": ({"verbosity": "loud"},),
    "text.format.type": ({"format": {"type": "xml"}}, {"format": {}}),
    "reasoning.effort": ({"effort": "extreme"},),
    "reasoning.summary": ({"summary": "poem"},),
    "reasoning.context": ({"context": "none"},),
    "prompt_cache_options.ttl": ({"ttl": "1h"},),
    "previous_response_id": ("x" * 65,),
}

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools[0].type": ([{"type": "web_search"}], [{"type": "code_interpreter", "container": {"type": "auto"}}]),
    "tools[0].server_label": ([{**OURS, "server_label": "deepwiki"}],),
    "tools[0].server_url": ([{**OURS, "server_url": "https://tools.example"}],),
    "tools[0].headers": ([{**OURS, "headers": {"authorization": "x"}}],),
    "tools[0].require_approval": ([{**OURS, "require_approval": "always"}],),
    "tools[0].defer_loading": ([{**FUNCTION, "defer_loading": True}],),
    "tool_choice": ("required", {"type": "function", "name": "f"}),
    "conversation": ("conv_1", {"id": "conv_1"}),
    "prompt": ({"id": "pmpt_1"},),
    "moderation": ({"model": "omni"},),
    "context_management": ([{"type": "compaction"}],),
    "access_programs": ({"cyber": "standard"},),
    "background_options.completion_window": ({"completion_window": "2h"}, {"completion_window": "8h"}),
    "image.context_compression": ({"context_compression": "enabled"},),
    "reasoning.mode": ({"mode": "pro"},),
    "prompt_cache_options.prewarm": ({"prewarm": True},),
    "include[0]": (["nonsense"], [1], [None]),
}

WRONG_INSIDE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("input[0].role", {"input": [{"role": "tool", "content": "x"}]}),
    ("input[0].role", {"input": [{"role": 1, "content": "x"}]}),
    ("input[0].role", {"input": [{"content": "x"}]}),
    ("input[0].role", {"input": [{"role": None, "content": "x"}]}),
    ("input[0].content", {"input": [{"role": "user"}]}),
    ("input[0].content", {"input": [{"role": "user", "content": 1}]}),
    ("input[0].content", {"input": [{"role": "user", "content": {"type": "input_text", "text": "x"}}]}),
    ("input[0].content[0]", {"input": [{"role": "user", "content": ["x"]}]}),
    ("input[0].content[0].type", {"input": [{"role": "user", "content": [{}]}]}),
    ("input[0].content[0].image_url", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
    (
        "input[0].content[0].file_id",
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
    ),
    ("input[0].content[0].file_id", {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}),
    (
        "input[0].content[0].file_url",
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "f"}]}]},
    ),
    ("input[0].type", {"input": [{"type": "web_search_call", "id": "ws_1"}]}),
    ("tools[0].function", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    ("input[0].content[1].type", {"input": [{"role": "user", "content": [TEXT_PART, {"type": "text"}]}]}),
    ("input[0].content[0].text", {"input": [{"role": "user", "content": [{"type": "input_text"}]}]}),
    ("input[0].content[0].text", {"input": [{"role": "user", "content": [{"type": "input_text", "text": 1}]}]}),
    ("input[0].content[0].refusal", {"input": [{"role": "assistant", "content": [{"type": "refusal"}]}]}),
    ("input[0].content[0].odd", {"input": [{"role": "user", "content": [{**TEXT_PART, "odd": 1}]}]}),
    ("input[0].id", {"input": [{"role": "user", "content": "x", "id": "x" * 257}]}),
    ("input[0].id", {"input": [{"type": "reasoning", "id": "x" * 257, "summary": []}]}),
    ("input[0].id", {"input": [{**CALL, "id": "x" * 257}]}),
    ("input[1].id", {"input": [CALL, {"type": "function_call_output", "call_id": "c", "output": "", "id": "x" * 257}]}),
    ("input[0].id", {"input": [{"type": "mcp_call", "id": "x" * 257}]}),
    ("input[0].id", {"input": [{"type": "item_reference", "id": "x" * 257}]}),
    ("input[0].id", {"input": [{"type": "item_reference", "id": ""}]}),
    ("input[0].odd", {"input": [{"role": "user", "content": "x", "odd": 1}]}),
    ("input[0].call_id", {"input": [{"type": "function_call", "name": "f"}]}),
    ("input[1].output", {"input": [CALL, {"type": "function_call_output", "call_id": "c"}]}),
    ("input", {"input": [CALL]}),
    ("tools[0]", {"tools": [1]}),
    ("tools[1].name", {"tools": [FUNCTION, {"type": "custom", "name": "f"}]}),
    ("tools[1].name", {"tools": [FUNCTION, {"type": "dwctl:tool", "name": "unheard_of"}]}),
    ("tools[0].allowed_tools[0]", {"tools": [{**OURS, "allowed_tools": ["unheard_of"]}]}),
    ("tool_choice.name", {"tools": [FUNCTION], "tool_choice": {"type": "function"}}),
    ("input[0].id", {"input": [{"type": "item_reference"}]}),
    ("input[0].type", {"input": [{"type": 1, "role": "user", "content": "x"}]}),
    ("input[1].type", {"input": [{"role": "user", "content": "x"}, {"type": "nonsense"}]}),
    ("text.odd", {"text": {"odd": 1}}),
    ("text.format", {"text": {"format": "json"}}),
    ("text.format.odd", {"text": {"format": {"type": "text", "odd": 1}}}),
    ("text.format.schema", {"text": {"format": {"type": "json_schema", "name": "n"}}}),
    ("text.format.schema", {"text": {"format": {"type": "json_schema", "name": "n", "schema": "s"}}}),
    ("text.format.name", {"text": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
    ("text.format.name", {"text": {"format": {"type": "json_schema", "name": "n" * 65, "schema": SCHEMA}}}),
    ("text.format.strict", {"text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": 1}}}),
    ("reasoning.odd", {"reasoning": {"odd": 1}}),
    ("reasoning.effort", {"reasoning": {"effort": 1}}),
    ("stream_options.odd", {"stream_options": {"odd": 1}}),
    ("stream_options.include_obfuscation", {"stream_options": {"include_obfuscation": "no"}}),
    ("metadata", {"metadata": {f"k{index}": "v" for index in range(17)}}),
    ("metadata", {"metadata": {"k" * 65: "v"}}),
    ("metadata.k", {"metadata": {"k": "v" * 513}}),
    ("metadata.k", {"metadata": {"k": 1}}),
    ("metadata.k", {"metadata": {"k": None}}),
    ("metadata.k", {"metadata": {"k": {}}}),
    ("odd", {"odd": 1}),
    ("odd", {"odd": None}),
    ("max_tokens", {"max_tokens": 100}),
    ("messages", {"messages": []}),
    ("n", {"n": 2}),
)

AT_THE_BOUND: tuple[dict[str, Any], ...] = (
    {"temperature": 0}, {"temperature": 2}, {"temperature": 1.5}, {"top_p": 0}, {"top_p": 1},
    {"presence_penalty": -2}, {"frequency_penalty": 2}, {"max_output_tokens": 16}, {"max_output_tokens": 2**31 - 1},
    {"metadata": {f"k{index}": "v" for index in range(16)}}, {"metadata": {"k" * 64: "v" * 512}}, {"metadata": {}},
    {"user": "x" * 512}, {"safety_identifier": "x" * 128}, {"prompt_cache_key": "x" * 512}, {"top_logprobs": 20},
    {"tools": []}, {"include": []}, {"include": ["reasoning.encrypted_content"]}, {"tool_choice": "none"},
    {"tools": [FUNCTION], "tool_choice": "required"}, {"tools": [OURS]}, {"max_tool_calls": 2**31 - 1},
    {"tools": [{**FUNCTION, "name": "f" * 128}]}, {"tools": [{**FUNCTION, "name": f"f{n}"} for n in range(128)]},
    {"truncation": "auto"}, {"service_tier": "ultrafast"}, {"prompt_cache_options": {}}, {"service_tier": "priority"},
    {"include": ["message.output_text.logprobs"]}, {"image": {}}, {"service_tier": "default"}, {"max_tool_calls": 1},
    {"stream_options": {"include_obfuscation": False}}, {"background": False}, {"previous_response_id": None},
    {"temperature": None, "metadata": None, "text": None, "reasoning": None, "tools": None, "include": None},
    {"input": [{"role": "user", "content": [TEXT_PART]}, {"type": "reasoning", "summary": []}]},
    {"input": [{"role": role, "content": "x"} for role in ("system", "developer", "user", "assistant", "user")]},
)  # fmt: skip


async def _refused(service: Service, fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Status and error of a request that is right but for *fields*."""
    body = {**ask("echo-2"), **fields}
    with trio.fail_after(WAIT_S):
        answer = await service.client.post("/v1/responses", json=body)
    return answer.status_code, error_of(answer)


async def _assert_each_refused(
    service: Service, wrong: dict[str, tuple[Any, ...]], status: int, *, type_only: bool = False
) -> None:
    for param, values in wrong.items():
        name = param.partition(".")[0].partition("[")[0]
        for value in values:
            got, error = await _refused(service, {name: value})
            shown = param, str(value)[:60], error
            assert (got, error["type"]) == (status, "invalid_request_error"), shown
            assert error["param"] is not None, shown
            assert error["param"] == param or (type_only and error["param"].startswith(f"{name}[")), shown
            assert error["code"], shown


@pytest.mark.slow
async def test_a_value_of_the_wrong_type_is_refused_by_name(service: Service) -> None:
    await _assert_each_refused(service, WRONG_TYPES, 400, type_only=True)
    await assert_serves(service)


@pytest.mark.slow
async def test_a_value_out_of_range_is_refused_by_name(service: Service) -> None:
    await _assert_each_refused(service, OUT_OF_RANGE, 400)
    await assert_serves(service)


@pytest.mark.slow
async def test_what_is_not_supported_is_refused_and_never_ignored(service: Service) -> None:
    await _assert_each_refused(service, UNSUPPORTED, 400)
    await assert_serves(service)


@pytest.mark.slow
async def test_a_fault_inside_a_parameter_is_named_by_its_path(service: Service) -> None:
    for param, fields in WRONG_INSIDE:
        status, error = await _refused(service, fields)
        assert (status, error["param"]) == (400, param), (fields, error)
    await assert_serves(service)


@pytest.mark.slow
async def test_what_lies_just_within_the_bounds_is_served(service: Service) -> None:
    for fields in AT_THE_BOUND:
        answer = await service.client.post("/v1/responses", json={**ask("echo-2"), **fields})
        assert answer.status_code == 200, (fields, answer.text)


async def test_a_missing_parameter_is_named(service: Service) -> None:
    for name in ("model", "input"):
        for body in ({k: v for k, v in ask("echo-2").items() if k != name}, {**ask("echo-2"), name: None}):
            answer = await service.client.post("/v1/responses", json=body)
            error = error_of(answer)
            assert (answer.status_code, error["param"], error["code"]) == (400, name, "missing_required_parameter")


async def test_a_refused_stream_is_an_http_error_too(service: Service) -> None:
    answer = await service.client.post("/v1/responses", json={**ask("echo-2"), "stream": True, "temperature": 9})

    assert (answer.status_code, error_of(answer)["param"]) == (400, "temperature")


async def test_a_refused_request_leaves_no_row_and_calls_no_upstream(service: Service) -> None:
    await _refused(service, {"temperature": 9})
    await _refused(service, {"background": True, "store": False})

    assert await service.pool.fetchval("select count(*) from requests") == 0
    assert service.simulator.statistics().total == 0


@pytest.mark.slow
async def test_a_model_that_no_route_serves_is_not_found(postgres_dsn: str) -> None:
    models = [{"name": "known", "upstream": "simulator", "upstream_model": "echo-2"}]
    async with open_service(postgres_dsn, {"models": models}) as service:
        for stream in (False, True):
            for name in ("unknown", "*", "Known", "known ", "x" * 256, "model\n\t<script>", "модель"):
                body = {"model": name, "input": "hello", "stream": stream}
                answer = await service.client.post("/v1/responses", content=json.dumps(body), headers=JSON)
                error = error_of(answer)
                assert (answer.status_code, error["param"], error["code"]) == (404, "model", "model_not_found"), name
        known = await service.client.post("/v1/responses", json={"model": "known", "input": "hello"})
    assert (known.status_code, known.json()["model"]) == (200, "known")
