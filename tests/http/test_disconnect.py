"""Clients that hang up, at every point of a response: the upstream is let go at once, and the row tells the truth."""

import json

import pytest
import trio
from tests.http.conftest import (
    DELTA,
    WAIT_S,
    RawClient,
    as_request,
    ask,
    assert_serves,
    find_row,
    open_raw,
    output_text,
    read_back,
    wait_terminal,
)

from dwctl_trio.domain import ids
from dwctl_trio.testing.service import Service
from dwctl_trio.testing.simulator_script import expected_tokens

pytestmark = pytest.mark.usefixtures("each_server_at_length")

ABORT_S = 1.0
"""The upstream must see that its client has gone within this."""


async def _leave_after_deltas(service: Service, model: str, count: int, key: str, *, reset: bool) -> float:
    """Read *count* deltas of a stream that then pauses, and leave; the seconds until the upstream saw it."""
    async with open_raw(service) as client:
        await client.send(as_request(ask(model, key=key, stream=True)))
        await client.read_until(b"event: response.in_progress\n")
        await client.read_until(DELTA, count)
        await service.simulator.wait_until(lambda counts: counts.paused == 1)
        await (client.reset() if reset else client.hang_up())
    left_at = trio.current_time()
    with trio.fail_after(ABORT_S):
        await service.simulator.wait_aborted(key)
    return trio.current_time() - left_at


async def _assert_cancelled(service: Service, key: str, text: str) -> None:
    """Row, step, usage record and GET agree that the response was cancelled with this output."""
    row = await wait_terminal(service, key)
    assert (row["state"], row["step_state"], row["error_code"]) == ("canceled", "canceled", "cancelled"), key
    assert row["lease_expires_at"] is None, key
    shown = await read_back(service, row["id"])
    assert json.loads(row["response"]) == shown, key
    assert (shown["status"], output_text(shown)) == ("cancelled", text), key
    assert [item["status"] for item in shown["output"]] == ["incomplete"] * len(shown["output"]), key


@pytest.mark.slow
@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("pace", ["", "-each"], ids=["one-write", "write-each"])
async def test_a_client_that_hangs_up_after_any_token_leaves_a_cancelled_row_with_exactly_the_deltas_sent(
    service: Service, pace: str, reset: bool
) -> None:
    slowest_s = 0.0
    for count in range(31):
        key = f"leave-{count}"
        model = f"echo-31-pause-{count}{pace}"
        with trio.fail_after(WAIT_S):
            aborted_s = await _leave_after_deltas(service, model, count, key, reset=reset)
        slowest_s = max(slowest_s, aborted_s)
        await _assert_cancelled(service, key, "".join(expected_tokens(model)[:count]))
    how = "RST" if reset else "FIN"
    print(f"hang-ups by {how}: 31, upstream aborted within {slowest_s * 1000:.0f} ms, 31 rows canceled, deltas exact")
    counts = await service.simulator.wait_idle()
    assert counts.aborted_by_client == counts.total == 31
    await assert_serves(service)


@pytest.mark.slow
@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("stream", [False, True], ids=["blocking", "stream"])
async def test_a_client_that_hangs_up_before_the_upstream_has_answered_is_noticed(
    service: Service, stream: bool, reset: bool
) -> None:
    for model in ("hang", "hangbody", "gate-4"):
        async with open_raw(service) as client:
            await client.send(as_request(ask(model, key=model, stream=stream)))
            await service.simulator.wait_until(lambda counts: counts.open == 1)
            await (client.reset() if reset else client.hang_up())
        with trio.fail_after(ABORT_S):
            await service.simulator.wait_aborted(model)
        await _assert_cancelled(service, model, "")
    await assert_serves(service)


@pytest.mark.slow
async def test_a_blocking_client_that_hangs_up_leaves_the_output_so_far(service: Service) -> None:
    for count in range(0, 31, 3):
        key = f"blocking-{count}"
        async with open_raw(service) as client:
            await client.send(as_request(ask(f"echo-31-pause-{count}", key=key)))
            await service.simulator.wait_until(lambda counts: counts.paused == 1)
            await _wait_forwarded(service)
            await client.hang_up()
        with trio.fail_after(ABORT_S):
            await service.simulator.wait_aborted(key)
        row = await wait_terminal(service, key)
        said = output_text(await read_back(service, row["id"]))
        assert row["state"] == "canceled"
        assert "".join(expected_tokens("echo-31")[:count]).startswith(said), "nothing that was not said"


async def _wait_forwarded(service: Service) -> None:
    """Let the server take what the simulator has written: one round trip through the same loop and kernel."""
    await service.client.get("/healthz")


@pytest.mark.slow
async def test_a_client_that_leaves_while_the_row_is_being_opened_leaves_no_live_row(service: Service) -> None:
    for index in range(20):
        async with open_raw(service) as client:
            await client.send(as_request(ask("hang", key=f"early-{index}", stream=True)))
            await (client.reset() if index % 2 else client.hang_up())
    with trio.fail_after(WAIT_S):
        while await service.pool.fetchval("select count(*) from requests where state = 'processing'"):
            pass
        await service.simulator.wait_idle()
    await assert_serves(service)
    states = await service.pool.fetch("select state, count(*) from requests where model = 'hang' group by state")
    assert [row["state"] for row in states] in ([], ["canceled"])


async def test_a_client_that_leaves_right_after_the_end_leaves_a_completed_row(service: Service) -> None:
    async with open_raw(service) as client:
        await client.send(as_request(ask("echo-5", key="end", stream=True)))
        await client.read_until(b"event: response.completed\n")
        await client.reset()
    row = await wait_terminal(service, "end")
    assert (row["state"], row["error_code"], row["output_tokens"]) == ("completed", None, 5)
    await assert_serves(service)


async def test_a_client_that_closes_its_sending_side_counts_as_gone(service: Service) -> None:
    async with open_raw(service) as client:
        await client.send(as_request(ask("pause-3-9", key="half", stream=True)))
        await client.read_until(DELTA, 3)
        await client.stream.send_eof()
        with trio.fail_after(ABORT_S):
            await service.simulator.wait_aborted("half")
        with trio.fail_after(WAIT_S):
            await client.read_to_end()
    await _assert_cancelled(service, "half", "word0 word1 word2 ")


async def _stream_with_garbage_behind(service: Service, client: RawClient, key: str, garbage: bytes) -> None:
    await client.send(as_request(ask("pause-3-9", key=key, stream=True)) + garbage)
    await client.read_until(DELTA, 3)


async def test_garbage_pipelined_behind_a_request_spoils_neither_the_stream_nor_the_server(service: Service) -> None:
    async with open_raw(service) as client:
        await _stream_with_garbage_behind(service, client, "behind", b"\x00\xff garbage\r\n\r\n")
        service.simulator.resume("behind")
        with trio.fail_after(WAIT_S):
            received = await client.read_until(b"data: [DONE]")
    assert received.count(DELTA) == 9
    assert (await wait_terminal(service, "behind"))["state"] == "completed"
    await assert_serves(service)


@pytest.mark.slow
@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_a_client_that_has_pipelined_and_leaves_is_noticed(service: Service, reset: bool) -> None:
    behind = (b"GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n", b"\x00garbage", b"\r\n")
    for index, garbage in enumerate(behind):
        async with open_raw(service) as client:
            await _stream_with_garbage_behind(service, client, f"pipelined-{index}", garbage)
            await (client.reset() if reset else client.hang_up())
        with trio.fail_after(ABORT_S):
            await service.simulator.wait_aborted(f"pipelined-{index}")
        await _assert_cancelled(service, f"pipelined-{index}", "word0 word1 word2 ")
        async with open_raw(service) as client:
            await client.send(as_request(ask("hang", key=f"blocking-{index}")) + garbage)
            await service.simulator.wait_until(lambda counts: counts.open == 1)
            await (client.reset() if reset else client.hang_up())
        with trio.fail_after(ABORT_S):
            await service.simulator.wait_aborted(f"blocking-{index}")
        await _assert_cancelled(service, f"blocking-{index}", "")
    await assert_serves(service)


async def test_a_client_that_hangs_up_while_the_head_is_held_back_never_got_one(service: Service) -> None:
    async with open_raw(service) as client:
        await client.send(as_request(ask("hang", key="held", stream=True)))
        with trio.fail_after(WAIT_S):
            while await find_row(service, "held") is None:
                pass
        await client.stream.send_eof()
        with trio.fail_after(WAIT_S):
            received = await client.read_to_end()
    await _assert_cancelled(service, "held", "")
    assert received == b""


async def test_the_id_given_out_is_readable_while_the_response_runs(service: Service) -> None:
    async with open_raw(service) as client:
        await client.send(as_request(ask("pause-2-4", key="live", stream=True)))
        received = await client.read_until(DELTA, 2)
        response_id = received.split(b'"id":"', 1)[1].split(b'"', 1)[0].decode()
        shown = await service.client.get(f"/v1/responses/{response_id}")
        assert ids.parse_response_id(response_id) is not None
        await client.hang_up()
    assert (shown.status_code, shown.json()["status"]) == (200, "in_progress")
    await _assert_cancelled(service, "live", "word0 word1 ")
