"""How calls that are handed over end when they are not left alone: hang-ups, faults of the store, bounds, load."""

import collections
import time
from collections.abc import AsyncIterator

import httpx
import pytest
import trio
from tests.http.conftest import WAIT_S, as_request, assert_serves, error_of, open_raw
from tests.http.proxied import (
    CHAT,
    COUNT,
    EMBEDDINGS,
    STREAMING,
    SURFACES,
    TEXT,
    assert_nothing_kept,
    body_for,
    last_row,
    read_frames,
    send,
)

from dwctl_trio.testing.service import Service, open_service
from dwctl_trio.testing.simulator_script import expected_text

ABORT_S = 1.0
"""The upstream must see that its client has gone within this."""
WORD = b"word"
CALLS = 120
TOKENS = 20


@pytest.fixture
async def service(postgres_dsn: str) -> AsyncIterator[Service]:
    async with open_service(postgres_dsn) as service:
        yield service


async def _assert_aborted(service: Service, key: str) -> float:
    """The upstream lets go at once, the row says so, and nothing is left; the seconds until it let go."""
    left_at = trio.current_time()
    with trio.fail_after(ABORT_S):
        await service.simulator.wait_aborted(key)
    aborted_s = trio.current_time() - left_at
    row = await last_row(service)
    assert (row["state"], row["step_state"], row["error_code"]) == ("canceled", "canceled", "cancelled"), key
    assert (row["response_status"], row["lease_expires_at"], row["output_tokens"]) == (499, None, None), key
    assert_nothing_kept(row)
    return aborted_s


@pytest.mark.slow
@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_a_client_that_hangs_up_before_the_first_byte_is_noticed(service: Service, reset: bool) -> None:
    slowest_s, calls = 0.0, 0
    for path in SURFACES:
        for stream in {False, path in STREAMING}:
            for model in ("hang", "hangbody", "gate-4"):
                key = f"{SURFACES[path]}-{stream}-{model}"
                body = body_for(path, model, f"hello key:{key}", **({"stream": True} if stream else {}))
                async with open_raw(service) as client:
                    await client.send(as_request(body, path=path))
                    await service.simulator.wait_until(lambda counts: counts.open == 1)
                    await (client.reset() if reset else client.hang_up())
                slowest_s, calls = max(slowest_s, await _assert_aborted(service, key)), calls + 1
    print(f"hang-ups before the first byte: {calls}, upstream aborted within {slowest_s * 1000:.0f} ms")
    await assert_serves(service)


@pytest.mark.slow
@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_a_client_that_hangs_up_after_any_word_is_noticed(service: Service, reset: bool) -> None:
    slowest_s = 0.0
    for path in STREAMING:
        for count in range(1, 9):
            key = f"{SURFACES[path]}-{count}"
            body = body_for(path, f"echo-9-pause-{count}-each", f"hello key:{key}", stream=True)
            async with open_raw(service) as client:
                await client.send(as_request(body, path=path))
                await client.read_until(WORD, count)
                await service.simulator.wait_until(lambda counts: counts.paused == 1)
                await (client.reset() if reset else client.hang_up())
            slowest_s = max(slowest_s, await _assert_aborted(service, key))
    print(f"hang-ups by {'RST' if reset else 'FIN'}: 16, upstream aborted within {slowest_s * 1000:.0f} ms")
    counts = await service.simulator.wait_idle()
    assert counts.aborted_by_client == counts.total == 16
    await assert_serves(service)


async def test_each_read_of_the_upstream_is_one_write_of_whole_frames(service: Service) -> None:
    body = body_for(CHAT, "echo-4-pause-2-each", "hello key:w", stream=True)
    async with open_raw(service) as client:
        await client.send(as_request(body, path=CHAT))
        received = await client.read_until(WORD, 2)
        assert received.endswith(b"\n\n\r\n"), "a chunk of HTTP that ends with a frame"
        assert b"word2" not in received
        service.simulator.resume("w")
        with trio.fail_after(WAIT_S):
            received = await client.read_until(b"data: [DONE]\n\n")
    pieces = [piece for piece in received.partition(b"\r\n\r\n")[2].split(b"\r\n")[1::2] if piece]
    assert all(piece.startswith((b"data: ", b": ping")) and piece.endswith(b"\n\n") for piece in pieces)


async def test_a_client_that_leaves_right_after_the_end_has_had_it(service: Service) -> None:
    async with open_raw(service) as client:
        await client.send(as_request(body_for(TEXT, "echo-5", stream=True), path=TEXT))
        await client.read_until(b"data: [DONE]")
        await client.reset()
    row = await last_row(service)
    assert (row["state"], row["output_tokens"]) == ("completed", 5)


@pytest.mark.slow
async def test_an_answer_whose_end_cannot_be_stored_is_its_clients_all_the_same(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn) as service:
        await service.pool.execute("alter table requests add constraint no_end check (state <> 'completed')")
        for path in SURFACES:
            answer = await send(service, path, body_for(path, "echo-3"))
            assert (answer.status_code, "error" in answer.json()) == (200, False), path
        frames = read_frames((await send(service, CHAT, body_for(CHAT, "echo-3", stream=True))).content)
        assert frames.said == expected_text("echo-3")
        metrics = (await service.client.get("/metrics")).text
        assert await service.pool.fetchval("select count(*) from requests where state = 'processing'") == 5
    assert 'dwctl_terminal_writes_given_up_total{reason="refused"} 5.0' in metrics


@pytest.mark.slow
async def test_a_full_upstream_refuses_with_a_time_to_come_again(postgres_dsn: str) -> None:
    small = {"upstreams": {"simulator": {"max_concurrency": 1}}, "limits": {"upstream_wait_s": 0.05}}
    async with open_service(postgres_dsn, small) as service, trio.open_nursery() as nursery:
        nursery.start_soon(send, service, CHAT, body_for(CHAT, "gate-1", "hello key:first"))
        await service.simulator.wait_until(lambda counts: counts.paused == 1)
        for path in SURFACES:
            answer = await send(service, path, body_for(path, "echo-1"))
            assert (answer.status_code, error_of(answer)["code"]) == (429, "rate_limit_exceeded")
            assert answer.headers["retry-after"]
        service.simulator.resume("first")


@pytest.mark.slow
async def test_an_owner_with_too_much_under_way_is_refused(postgres_dsn: str) -> None:
    async with (
        open_service(postgres_dsn, {"limits": {"owner_responses": 1}}) as service,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(send, service, EMBEDDINGS, body_for(EMBEDDINGS, "gate", "hello key:first"))
        await service.simulator.wait_until(lambda counts: counts.paused == 1)
        for path in SURFACES:
            answer = await send(service, path, body_for(path, "echo-1"))
            assert (answer.status_code, error_of(answer)["code"]) == (429, "rate_limit_exceeded")
        service.simulator.resume("first")


def _call_of(index: int) -> tuple[str, str, bool]:
    """Path, model and stream: every tenth call fails, half of these after all of its words."""
    path = (CHAT, TEXT, EMBEDDINGS, COUNT)[(index + index // 10) % 4]
    stream = path in STREAMING and index % 3 > 0
    if index % 10 == 9:
        return path, f"echo-{TOKENS}-cut-each" if index % 20 == 9 else "error-500", stream
    return path, f"echo-{TOKENS}", stream


@pytest.mark.slow
async def test_many_calls_at_once_lose_no_word_and_the_sums_agree(postgres_dsn: str) -> None:
    ended: collections.Counter[int | str] = collections.Counter()
    bounds = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        open_service(postgres_dsn, {"limits": {"head_hold_s": 60}}) as service,
        httpx.AsyncClient(base_url=service.url, timeout=6 * WAIT_S, limits=bounds, trust_env=False) as client,
    ):

        async def run(index: int) -> None:
            path, model, stream = _call_of(index)
            fields = {"stream": True} if stream else {}
            answer = await client.post(path, json=body_for(path, model, "one two three", **fields))
            if answer.status_code != 200:
                ended[answer.status_code] += 1
                return
            if stream:
                frames = read_frames(answer.content)
                assert frames.said == expected_text(f"echo-{TOKENS}")
                ended["broken off" if "error" in frames.datas[-1] else 200] += 1
                return
            ended[200] += 1

        began = time.perf_counter()
        with trio.fail_after(6 * WAIT_S):
            async with trio.open_nursery() as nursery:
                for index in range(CALLS):
                    nursery.start_soon(run, index)
        took_s = time.perf_counter() - began
        counts = await service.simulator.wait_idle()
        rows = {row["state"]: row["count"] for row in await service.pool.fetch(_ROWS)}
        used = await service.pool.fetchrow(_USED)
    print(f"{CALLS} calls in {took_s:.2f} s: {dict(ended)}, rows {rows}, used {dict(used)}")
    assert rows == {"completed": counts.completed, "failed": counts.failed}
    assert (counts.total, counts.aborted_by_client, used["calls"]) == (CALLS, 0, CALLS)
    assert used["failures"] == counts.failed == CALLS // 10
    assert used["output_tokens"] == counts.completion_tokens_reported
    assert used["input_tokens"] == 3 * counts.completed
    assert ended == {200: CALLS - CALLS // 10, 502: CALLS // 10 - 2, "broken off": 2}


_ROWS = "select state, count(*) from requests group by state"
_USED = (
    "select count(*) as calls, count(*) filter (where error_code is not null) as failures,"
    " sum(output_tokens)::bigint as output_tokens, sum(input_tokens)::bigint as input_tokens from usage_records"
)
