"""Every way in which a model's server can fail: one terminal event or one proper HTTP error, and nothing leaks."""

import json
from typing import Any

import attrs
import httpx
import pytest
import trio
from tests.http.conftest import (
    WAIT_S,
    as_request,
    ask,
    assert_serves,
    error_of,
    find_row,
    open_raw,
    output_text,
    read_back,
    read_valid_stream,
    wait_terminal,
)

from dwctl_trio.testing.service import Service, open_service
from dwctl_trio.testing.simulator_reply import CANARY
from dwctl_trio.testing.simulator_script import expected_text

LIMITS = {"upstream_first_byte_s": 1.5, "upstream_chunk_s": 1.5, "upstream_usage_s": 0.25, "head_hold_s": WAIT_S}


@attrs.frozen
class Refusal:
    """A fault before any output: an HTTP error."""

    model: str
    status: int
    code: str
    in_stream: bool = False
    """Whether the upstream's head has come, so that a stream tells of it."""


REFUSALS = (
    Refusal("error-400", 400, "invalid_prompt"),
    Refusal("error-401", 502, "upstream_error"),
    Refusal("error-403", 502, "upstream_error"),
    Refusal("error-404", 404, "model_not_found"),
    Refusal("error-408", 504, "upstream_error"),
    Refusal("error-413", 400, "invalid_prompt"),
    Refusal("error-422", 400, "invalid_prompt"),
    Refusal("error-429", 429, "rate_limit_exceeded"),
    Refusal("error-429-7", 429, "rate_limit_exceeded"),
    Refusal("error-500", 502, "upstream_error"),
    Refusal("error-503", 502, "upstream_error"),
    Refusal("error-504", 504, "upstream_error"),
    Refusal("error-529", 502, "upstream_error"),
    Refusal("html-200", 502, "upstream_error"),
    Refusal("html-404", 404, "model_not_found"),
    Refusal("html-503", 502, "upstream_error"),
    Refusal("empty-204", 502, "upstream_error", in_stream=True),
    Refusal("empty-200", 502, "upstream_error", in_stream=True),
    Refusal("empty-500", 502, "upstream_error"),
    Refusal("hang", 504, "upstream_error"),
    Refusal("hangbody", 504, "upstream_error", in_stream=True),
    Refusal("echo-0-stall", 504, "upstream_error", in_stream=True),
    Refusal("echo-0-cut", 502, "upstream_error", in_stream=True),
    Refusal("echo-5-cutbyte-0", 502, "upstream_error", in_stream=True),
    Refusal("echo-5-cutbyte-20", 502, "upstream_error", in_stream=True),
    Refusal("echo-0-garbage", 502, "upstream_error", in_stream=True),
    Refusal("echo-0-binary", 502, "upstream_error", in_stream=True),
    Refusal("echo-0-midstream", 502, "upstream_error", in_stream=True),
    Refusal("echo-5-cut-json", 502, "upstream_error", in_stream=True),
    Refusal("echo-5-garbage-json", 502, "upstream_error", in_stream=True),
    Refusal("echo-5-midstream-json", 502, "upstream_error", in_stream=True),
)

BROKEN = tuple(
    f"echo-5-{ending}{pace}"
    for ending in ("cut", "reset", "eof", "stall", "midstream", "garbage", "badutf8", "binary")
    for pace in ("", "-each")
)
"""Five words, then a fault: the response fails and keeps the words."""

WHOLE = (
    "echo-5", "echo-5-each", "echo-5-nousage", "echo-5-nodone", "echo-5-nodone-nousage", "echo-5-usageinline",
    "echo-5-twofinish", "echo-5-crlf", "echo-5-cr", "echo-5-comments", "echo-5-unicode", "echo-5-role",
    "echo-5-norole", "echo-5-json", "echo-5-json-nousage", "echo-9-split-1", "echo-9-split-2-crlf",
    "echo-9-split-3-comments", "echo-9-split-4-cr", "big-200000", "big-800000", "reasoning-3-4", "thinking-3-4",
    "echo-5-split-5-twofinish-nodone", "echo-5-nul", "echo-5-nul-each",
)  # fmt: skip
"""Odd, and right all the same."""


@pytest.fixture
async def service(postgres_dsn: str) -> Any:
    async with open_service(postgres_dsn, {"limits": LIMITS}) as service:
        yield service


async def _post(service: Service, model: str, *, stream: bool) -> httpx.Response:
    answer = await service.client.post("/v1/responses", json=ask(model, key=_key(model, stream), stream=stream))
    assert CANARY not in answer.text, model
    assert all(CANARY not in value for value in answer.headers.values()), model
    return answer


def _key(model: str, stream: bool) -> str:
    return f"{model}.{'stream' if stream else 'blocking'}"


async def _read_terminal(service: Service, model: str, answer: httpx.Response) -> dict[str, Any]:
    """The final response in a stream, which keeps the grammar and equals the row and GET."""
    assert answer.status_code == 200, (model, answer.text)
    stream = read_valid_stream(answer.content, ask(model, key=_key(model, True), stream=True))
    final = stream.data[-1]["response"]
    row = await find_row(service, _key(model, True))
    assert json.loads(row["response"]) == final == await read_back(service, row["id"]), model
    assert row["lease_expires_at"] is None, model
    return dict(final)


async def _check_refused(service: Service, fault: Refusal, *, stream: bool) -> None:
    answer = await _post(service, fault.model, stream=stream)
    if stream and fault.in_stream:
        final = await _read_terminal(service, fault.model, answer)
        assert (final["status"], final["output"]) == ("failed", []), fault
        assert final["error"]["code"] == "server_error", fault
    else:
        assert (answer.status_code, error_of(answer)["code"]) == (fault.status, fault.code), fault
        assert answer.headers.get("retry-after") == ("7" if fault.model.endswith("-7") else None), fault
    row = await wait_terminal(service, _key(fault.model, stream))
    assert (row["state"], row["step_state"]) == ("failed", "failed"), fault
    assert row["response_status"] == fault.status, fault
    shown = await read_back(service, row["id"])
    assert (shown["status"], CANARY in json.dumps(shown)) == ("failed", False), fault


async def _check_broken(service: Service, model: str, *, stream: bool) -> None:
    answer = await _post(service, model, stream=stream)
    final = await _read_terminal(service, model, answer) if stream else answer.json()
    row = await wait_terminal(service, _key(model, stream))
    assert final == await read_back(service, row["id"]), model
    assert (answer.status_code, row["state"], final["status"]) == (200, "failed", "failed"), model
    said = output_text(final).rstrip("\ufffd")  # what is not UTF-8 is shown as such
    assert (said, final["usage"]) == (expected_text("echo-5"), None), model
    assert [item["status"] for item in final["output"]] == ["incomplete"], model


async def _check_whole(service: Service, model: str, *, stream: bool) -> None:
    answer = await _post(service, model, stream=stream)
    final = await _read_terminal(service, model, answer) if stream else answer.json()
    row = await wait_terminal(service, _key(model, stream))
    assert final == await read_back(service, row["id"]), model
    assert (answer.status_code, row["state"], final["status"]) == (200, "completed", "completed"), model
    messages = [item for item in final["output"] if item["type"] == "message"]
    said = expected_text(model).replace("\0", "\ufffd").replace("\ud800", "\ufffd")
    assert output_text({"output": messages}) == said, model
    assert (final["usage"] is None) == ("nousage" in model), model


async def _check_all(check: Any, service: Service, cases: Any) -> None:
    """All cases at once, as streams and as blocking requests, and then one more request."""
    with trio.fail_after(3 * WAIT_S):
        async with trio.open_nursery() as nursery:
            for case in cases:
                for stream in (False, True):

                    async def run(case: Any = case, stream: bool = stream) -> None:
                        await check(service, case, stream=stream)

                    nursery.start_soon(run)
        await service.simulator.wait_idle()
    await assert_serves(service)
    unfinished = "select count(*) from requests where state not in ('completed', 'failed')"
    assert await service.pool.fetchval(unfinished) == 0


@pytest.mark.slow
async def test_a_fault_before_any_output_is_an_http_error_or_one_failed_event(service: Service) -> None:
    await _check_all(_check_refused, service, REFUSALS)


@pytest.mark.slow
async def test_a_fault_after_some_output_ends_in_a_failed_response_that_keeps_the_output(service: Service) -> None:
    await _check_all(_check_broken, service, BROKEN)


@pytest.mark.slow
async def test_oddities_of_the_wire_do_not_spoil_a_response(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": {"upstream_usage_s": 0.25}}) as service:
        await _check_all(_check_whole, service, WHOLE)


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "reason"), [("length", "max_output_tokens"), ("filter", "content_filter")])
async def test_a_model_that_stops_early_gives_an_incomplete_response(
    service: Service, ending: str, reason: str
) -> None:
    model = f"echo-5-{ending}"

    answer = await _post(service, model, stream=True)

    final = await _read_terminal(service, model, answer)
    assert (final["status"], final["incomplete_details"]) == ("incomplete", {"reason": reason})
    assert output_text(final) == expected_text("echo-5")
    assert (await find_row(service, _key(model, True)))["state"] == "completed"


@pytest.mark.slow
async def test_a_stream_cut_after_any_byte_ends_in_one_terminal_event(postgres_dsn: str) -> None:
    models = [f"echo-2-cutbyte-{byte}" for byte in range(0, 1500, 31)]

    async def check(service: Service, model: str, *, stream: bool) -> None:
        answer = await _post(service, model, stream=stream)
        row = await wait_terminal(service, _key(model, stream))
        shown = await read_back(service, row["id"])
        if stream:
            assert await _read_terminal(service, model, answer) == shown
        elif answer.status_code == 200:
            assert answer.json() == shown
        else:
            assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_error")
        assert expected_text("echo-2").startswith(output_text(shown))

    async with open_service(postgres_dsn) as service:
        await _check_all(check, service, models)


@pytest.mark.slow
async def test_a_token_larger_than_the_limit_fails_the_response(service: Service) -> None:
    async def check(service: Service, model: str, *, stream: bool) -> None:
        answer = await _post(service, model, stream=stream)
        if stream:
            assert (await _read_terminal(service, model, answer))["status"] == "failed"
        else:
            assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_error")

    await _check_all(check, service, ["big-1100000"])


@pytest.mark.slow
async def test_a_full_upstream_is_429_with_a_time_to_try_again_and_loses_no_place(postgres_dsn: str) -> None:
    overrides = {"limits": {"upstream_wait_s": 0.05}, "upstreams": {"simulator": {"max_concurrency": 1}}}
    async with open_service(postgres_dsn, overrides) as service:
        async with open_raw(service) as holder:
            await holder.send(as_request(ask("pause-1-2", key="holder", stream=True)))
            await service.simulator.wait_until(lambda counts: counts.paused == 1)
            for stream in (False, True):
                refused = await _post(service, "echo-3", stream=stream)
                row = await find_row(service, _key("echo-3", stream))

                assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
                assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("1", "1000")
                assert (row["state"], row["response_status"]) == ("failed", 429)
            await holder.hang_up()
        for model in ("error-500", "echo-3-cut", "echo-3-reset", "echo-3-garbage", "html-200", "echo-3-twofinish"):
            assert (await _post(service, model, stream=False)).status_code != 429, model
        await assert_serves(service)
        assert (await service.simulator.wait_idle()).total == 8
