"""Many streams at once, some of them broken: nothing is lost, nothing stays open, and the sums agree."""

import collections
import time

import httpx
import pytest
import trio
from tests.http.conftest import WAIT_S, assert_serves, output_text, read_valid_stream

from dwctl_trio.testing.service import Service, open_service

pytestmark = pytest.mark.usefixtures("each_server_at_length")

STREAMS = 200
TOKENS = 50
FAULTS = ("cut", "reset", "eof", "midstream", "garbage")
WHOLE = ("", "-each", "-crlf", "-every-5", "-comments")


def _model_of(index: int) -> str:
    """Every tenth stream breaks: half of these before any output, the others after all of it."""
    if index % 20 == 9:
        return f"error-{(500, 503, 429)[index // 20 % 3]}"
    if index % 20 == 19:
        return f"echo-{TOKENS}-{FAULTS[index // 20 % len(FAULTS)]}-each"
    return f"echo-{TOKENS}{WHOLE[index % len(WHOLE)]}"


@pytest.mark.slow
async def test_two_hundred_streams_with_faults_lose_no_event_and_the_sums_agree(postgres_dsn: str) -> None:
    ended: collections.Counter[str] = collections.Counter()
    events = 0
    shown: dict[str, dict[str, object]] = {}

    patient = {"limits": {"head_hold_s": 60}}  # a busy machine may take longer than usual to hear of a refusal
    async with open_service(postgres_dsn, patient) as service, _open_client(service) as client:

        async def run(index: int) -> None:
            nonlocal events
            asked = {"model": _model_of(index), "input": "one two three", "stream": True}
            answer = await client.post("/v1/responses", json=asked)
            if answer.status_code != 200:
                ended[f"http {answer.status_code}"] += 1
                return
            stream = read_valid_stream(answer.content, asked)
            final = stream.data[-1]["response"]
            deltas = sum(data["type"] == "response.output_text.delta" for data in stream.data)
            assert deltas == TOKENS, (asked["model"], deltas)
            assert len(output_text(final).split()) == TOKENS
            events += len(stream.events)
            ended[final["status"]] += 1
            shown[final["id"]] = final

        began = time.perf_counter()
        with trio.fail_after(6 * WAIT_S):
            async with trio.open_nursery() as nursery:
                for index in range(STREAMS):
                    nursery.start_soon(run, index)
        took_s = time.perf_counter() - began
        counts = await service.simulator.wait_idle()
        for response_id, final in shown.items():
            assert (await client.get(f"/v1/responses/{response_id}")).json() == final
        rows = {row["state"]: row["count"] for row in await service.pool.fetch(_ROWS)}
        used = await service.pool.fetchrow(_USED)
        await assert_serves(service)

    print(f"{STREAMS} streams in {took_s:.2f} s, {events} events: {dict(ended)}, rows {rows}, used {dict(used)}")
    assert ended == {"completed": STREAMS - STREAMS // 10, "failed": 10, "http 502": 7, "http 429": 3}
    assert rows == {"completed": counts.completed, "failed": counts.failed}
    assert (counts.total, counts.aborted_by_client) == (STREAMS, 0)
    assert used["calls"] == counts.total
    assert used["failures"] == counts.failed == STREAMS // 10
    assert used["output_tokens"] == counts.completion_tokens_reported == TOKENS * counts.completed
    assert used["input_tokens"] == 3 * counts.completed


def _open_client(service: Service) -> httpx.AsyncClient:
    """A client without a bound on its connections."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=service.url, timeout=6 * WAIT_S, limits=limits, trust_env=False)


_ROWS = "select state, count(*) from requests group by state"
_USED = (
    "select count(*) as calls, count(*) filter (where error_code is not null) as failures,"
    " sum(output_tokens)::bigint as output_tokens, sum(input_tokens)::bigint as input_tokens from usage_records"
)
