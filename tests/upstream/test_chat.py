"""Chat completions handed over on real sockets: whole and streamed, within the same bounds as any call."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from dwctl_trio.config import UpstreamConfig
from dwctl_trio.domain.errors import LimitExceeded, UpstreamError, UpstreamRejected, UpstreamTimeout
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.turn import UsageReported
from dwctl_trio.ports import ChatCall
from dwctl_trio.protocol.chat_answer import ChatPart
from dwctl_trio.protocol.chat_body import parse_chat, parse_completion, parse_embeddings
from dwctl_trio.testing.simulator import Simulator, open_simulator
from dwctl_trio.testing.simulator_reply import CANARY
from dwctl_trio.testing.simulator_script import expected_text
from dwctl_trio.upstream.client import Upstreams, open_upstreams

WAIT_S = 10.0
"""Bound of the tests' waits: far more than any needs on a busy machine, far less than a hung run."""


@asynccontextmanager
async def _open(limits: Limits | None = None, **upstream: Any) -> AsyncIterator[tuple[Upstreams, Simulator]]:
    async with open_simulator() as simulator:
        config = UpstreamConfig(name="simulator", **{"base_url": simulator.base_url, **upstream})
        async with open_upstreams([config], limits or Limits()) as upstreams:
            yield upstreams, simulator


def _call(model: str, key: str = "none", **fields: Any) -> ChatCall:
    messages = [{"role": "user", "content": f"hello key:{key}"}]
    request = parse_chat({"model": "alias", "messages": messages, "stream": True, **fields})
    return ChatCall(route=ModelRoute(model="alias", upstream="simulator", upstream_model=model), request=request)


async def _read(upstreams: Upstreams, call: ChatCall) -> list[ChatPart]:
    parts: list[ChatPart] = []
    async with upstreams.open_chat(call) as exchange:
        assert exchange.http_status == 200
        async for batch in exchange:
            parts += batch
    return parts


def _said(parts: list[ChatPart], member: str = "delta") -> str:
    """The text in the chunks or in the whole completion."""
    found = [json.loads(part) for part in parts if isinstance(part, bytes)]
    return "".join(choice[member].get("content") or "" for one in found for choice in one["choices"])


def _counts(parts: list[ChatPart]) -> list[int]:
    return [part.usage.output_tokens for part in parts if isinstance(part, UsageReported)]


async def test_a_whole_completion_is_the_upstreams_own_to_the_byte(transport: str) -> None:
    async with _open(transport=transport) as (upstreams, simulator):
        parts = await _read(upstreams, _call("echo-3", stream=False))
        sent = simulator.requests[-1].body
        async with httpx.AsyncClient(trust_env=False) as client:
            direct = await client.post(f"{simulator.base_url}/chat/completions", json=sent)

    assert (sent["model"], sent["stream"]) == ("echo-3", False)
    assert "stream_options" not in sent
    ours, theirs = json.loads(parts[0])["id"].encode(), json.loads(direct.content)["id"].encode()
    assert parts[0] == direct.content.replace(theirs, ours).replace(b'"model":"echo-3"', b'"model":"alias"')
    assert (_said(parts, "message"), _counts(parts)) == (expected_text("echo-3"), [3])


@pytest.mark.parametrize(
    "model",
    ["echo-3", "echo-3-each", "echo-3-json", "echo-3-twofinish", "echo-3-usageinline", "echo-3-comments", "split-7-3"],
)
async def test_a_stream_is_the_upstreams_own_and_its_usage_is_always_known(transport: str, model: str) -> None:
    async with _open(transport=transport) as (upstreams, simulator):
        parts = await _read(upstreams, _call(model))
        assert (await simulator.wait_idle()).completion_tokens_reported == 3
    assert (_said(parts), _counts(parts)) == (expected_text(model), [3])


async def test_calls_one_after_the_other_share_one_connection(transport: str) -> None:
    async with _open(transport=transport) as (upstreams, simulator):
        for call in (_call("echo-3"), _call("echo-3", stream=False), _call("echo-9-each"), _call("tools-2")):
            await _read(upstreams, call)
            await simulator.wait_idle()
            assert simulator.statistics().connections == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_nothing_of_a_providers_errors_gets_through(transport: str, stream: bool) -> None:
    models = ("error-500", "error-400", "html-200", "empty-200", "echo-3-midstream", "echo-3-garbage", "echo-3-cut")
    async with _open(transport=transport) as (upstreams, _):
        for model in models:
            with pytest.raises(UpstreamError) as caught:
                await _read(upstreams, _call(model, stream=stream))
            assert CANARY not in str(caught.value), model


async def test_the_status_and_the_advice_of_a_refusal_are_kept(transport: str) -> None:
    async with _open(transport=transport) as (upstreams, _):
        with pytest.raises(UpstreamRejected) as caught:
            await _read(upstreams, _call("error-429-7", stream=False))
    assert (caught.value.status, caught.value.retry_after_s) == (429, 7.0)


async def test_a_place_is_taken_and_given_back(transport: str) -> None:
    async with _open(Limits(upstream_wait_s=0.05), max_concurrency=1, transport=transport) as (upstreams, simulator):
        async with upstreams.open_chat(_call("pause-0-1", "held")):
            with pytest.raises(LimitExceeded):
                await _read(upstreams, _call("echo-1"))
        with trio.fail_after(WAIT_S):
            await simulator.wait_aborted("held")
        assert _counts(await _read(upstreams, _call("echo-1"))) == [1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "limit"),
    [("hang", "upstream_first_byte_s"), ("pause-3-9-each", "upstream_chunk_s"), ("slow-999-20", "upstream_total_s")],
)
async def test_a_stream_that_is_too_slow_is_left_in_time(transport: str, model: str, limit: str) -> None:
    async with _open(Limits(**{limit: 0.3}), max_concurrency=1, transport=transport) as (upstreams, simulator):
        with pytest.raises(UpstreamTimeout), trio.fail_after(WAIT_S):
            await _read(upstreams, _call(model, "slow"))
        with trio.fail_after(WAIT_S):
            await simulator.wait_aborted("slow")


@pytest.mark.slow
async def test_a_whole_completion_may_take_as_long_as_the_whole_call(transport: str) -> None:
    limits = Limits(upstream_first_byte_s=0.05, upstream_chunk_s=0.05, upstream_total_s=0.5)
    async with _open(limits, transport=transport) as (upstreams, _):
        parts = await _read(upstreams, _call("echo-2-after-200", stream=False))
        assert _said(parts, "message") == expected_text("echo-2")
        with pytest.raises(UpstreamTimeout, match="too long"), trio.fail_after(WAIT_S):
            await _read(upstreams, _call("hang", stream=False))


async def test_each_kind_of_call_goes_to_its_own_endpoint_and_is_counted(transport: str) -> None:
    async with _open(transport=transport) as (upstreams, simulator):
        for request, path, usage in (
            (parse_completion({"model": "alias", "prompt": "one two", "stream": True}), "/v1/completions", (2, 3)),
            (parse_completion({"model": "alias", "prompt": "one two"}), "/v1/completions", (2, 3)),
            (parse_embeddings({"model": "alias", "input": "one two"}), "/v1/embeddings", (2, 0)),
        ):
            route = ModelRoute(model="alias", upstream="simulator", upstream_model="echo-3-each")
            *parts, counted = await _read(upstreams, ChatCall(route=route, request=request))
            assert isinstance(counted, UsageReported)
            assert (counted.usage.input_tokens, counted.usage.output_tokens) == usage
            assert {json.loads(part)["model"] for part in parts if isinstance(part, bytes)} == {"alias"}
            assert (simulator.requests[-1].path, simulator.requests[-1].model) == (path, "echo-3-each")


async def test_embeddings_have_the_same_bounds_as_any_answer(transport: str) -> None:
    request = parse_embeddings({"model": "alias", "input": "one", "dimensions": 2000})
    async with _open(Limits(upstream_answer_bytes=4096), transport=transport) as (upstreams, _):
        route = ModelRoute(model="alias", upstream="simulator", upstream_model="echo-3")
        with pytest.raises(UpstreamError, match="too large"):
            await _read(upstreams, ChatCall(route=route, request=request))
