"""Stream or not, in the queue or not: the same words of the upstream come to the same response.

Real sockets and a real PostgreSQL; Hypothesis runs in a thread beside the service and writes the upstream's scripts:
texts, reasoning, refusals, calls of the client's tools, every finish reason and failure, log probabilities and
annotations. ``test_stream_and_blocking.py`` has the server's tools and agents.

An upstream over its rate limit is left out: the queue asks it again, as it should, and who waits in person is told.
"""

import re
from collections import Counter
from typing import Any

import pytest
import trio
from hypothesis import assume, given, seed, settings
from tests.http.queued import BACKGROUND, FLEX, QUICK, wait_ended

from dwctl_trio.protocol.request_body import LOGPROBS
from dwctl_trio.testing.byte_upstream import ByteUpstream, open_byte_upstream
from dwctl_trio.testing.chat_scripts import PROVIDER_CANARY, ChatScript
from dwctl_trio.testing.service import Service, open_service
from dwctl_trio.testing.strategies import chat_scripts, render_sse

SEED = 5
PATHS: dict[str, dict[str, Any]] = {"stream": {"stream": True}, "whole": {}, "background": BACKGROUND, "flex": FLEX}
BODY = {"model": "any", "input": "hello", "include": [LOGPROBS], "metadata": {"key": "value"}}
LIMITS = QUICK | {"queue_attempts": 1, "queue_poll_s": 0.02}
WAIT_S = 20.0
_TOO_MANY_REQUESTS = 429
_WHOLE = {"whole", "flex"}
_MADE_ID = re.compile(r"call_[0-9a-f]{33}")
_PER_PATH = {"id", "created_at", "completed_at", "background", "service_tier"}

# The queue's jitter, in the main thread, must not be taken for the strategies' doing, in theirs.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")


@pytest.mark.slow
async def test_the_same_script_comes_to_the_same_response_down_all_four_paths(postgres_dsn: str) -> None:
    await _compare(postgres_dsn, 30)


@pytest.mark.long
async def test_a_thousand_scripts_come_to_the_same_responses_down_all_four_paths(postgres_dsn: str) -> None:
    await _compare(postgres_dsn, 1000)


async def _compare(dsn: str, examples: int) -> None:
    seen = Counter[str]()
    async with open_byte_upstream() as upstream:
        overrides = {"upstreams": {"simulator": {"base_url": upstream.base_url}}, "limits": LIMITS}
        async with open_service(dsn, overrides) as service:

            @seed(SEED)
            @settings(max_examples=examples, database=None)
            @given(chat_scripts())
            def check(script: ChatScript) -> None:
                assume(script.expected.status != _TOO_MANY_REQUESTS)
                trio.from_thread.run(_check, service, upstream, script, seen)

            await trio.to_thread.run_sync(check)
    print(f"four paths: {examples} scripts, {dict(seen)}")
    wanted = {"completed", "incomplete", "failed", "message", "reasoning", "function_call", "logprobs", "annotations"}
    assert seen.keys() >= wanted


async def _check(service: Service, upstream: ByteUpstream, script: ChatScript, seen: Counter[str]) -> None:
    upstream.pieces, upstream.is_cut = [render_sse(script)], False
    ends = {}
    for path, fields in PATHS.items():
        with trio.fail_after(WAIT_S):
            answer = await service.client.post("/v1/responses", json=BODY | fields)
            assert PROVIDER_CANARY not in answer.text
            response_id = await _newest_id(service)
            if path == "background":  # whose stream lasts as long as it does
                await service.client.get(f"/v1/responses/{response_id}?stream=true")
            response = await wait_ended(service, response_id)
        if path in _WHOLE and answer.status_code == 200:
            assert answer.json() == response
        ends[path] = _without_ids(response)
    for path, end in ends.items():
        assert end == ends["stream"], path
    _note(ends["stream"], seen)


async def _newest_id(service: Service) -> str:
    """Of the last response: an answer that is an error does not tell it."""
    (row,) = await service.pool.fetch("select id from requests order by created_at desc limit 1")
    return f"resp_{row['id']}"


def _without_ids(response: dict[str, Any]) -> dict[str, Any]:
    """What must be the same on all paths."""
    shown = {name: value for name, value in response.items() if name not in _PER_PATH}
    shown["output"] = [_without_id(item) for item in shown["output"]]
    return shown


def _without_id(item: dict[str, Any]) -> dict[str, Any]:
    """*item* without its id, and without a call id that the upstream left out: that is made of the step's id."""
    is_made = _MADE_ID.fullmatch(item.get("call_id", "")) is not None
    return {name: value for name, value in item.items() if name != "id" and not (is_made and name == "call_id")}


def _note(end: dict[str, Any], seen: Counter[str]) -> None:
    seen.update([end["status"], *(item["type"] for item in end["output"])])
    for item in end["output"]:
        for part in item.get("content") or ():
            seen.update(name for name in ("logprobs", "annotations") if part.get(name))
