"""Attempts at claimed chat completions, on both stores: what is told, what is written, and what goes back."""

from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
import trio
from tests.conformance.conftest import Lab, Snapshot

from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.errors import DwctlError, LeaseLost, ResponseCancelled, ServerStopping
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.response import ErrorType
from dwctl_trio.domain.steps import StepState
from dwctl_trio.engine.cancel import cancel_response
from dwctl_trio.engine.chat import run_claimed_chat
from dwctl_trio.engine.enqueue import enqueue_chat
from dwctl_trio.engine.follow import wait_ended
from dwctl_trio.ports import ClaimedChat, EventSegment, NewChat
from dwctl_trio.protocol.chat_body import parse_chat
from dwctl_trio.testing.memory_rows import MemoryRow, MemoryStep
from dwctl_trio.testing.request_bench import RequestBench, open_request_bench
from dwctl_trio.testing.simulator_reply import CANARY
from dwctl_trio.testing.simulator_script import expected_text

WAIT_S = 10.0
OWNER = "alice"
LIMITS = Limits(lease_s=600.0, queue_attempts=2, segment_interval_s=0.01, cancel_wait_s=0.05)
ANY = ClaimDemand(rows=10, models={}, other_models=10, owner_rows=10)


@pytest.fixture
async def bench(lab: Lab) -> AsyncIterator[RequestBench]:
    store = lab.open_process(LIMITS)
    await store.register_process()
    async with open_request_bench(store, LIMITS) as bench:
        yield bench


async def enqueue(bench: RequestBench, model: str, **fields: Any) -> UUID:
    """Queue a chat completion; stored unless the fields say otherwise."""
    messages = [{"role": "user", "content": f"hello key:{fields.pop('key', 'none')}"}]
    request = parse_chat({"model": model, "messages": messages, "service_tier": "flex", "store": True, **fields})
    route = ModelRoute(model=model, upstream="simulator", upstream_model=model)
    new = NewChat(response_id=uuid4(), owner=OWNER, key_prefix=None, request=request, route=route)
    await enqueue_chat(bench.services, new)
    return new.response_id


async def claim(bench: RequestBench) -> ClaimedChat:
    (claimed,) = await bench.services.queue.claim_responses(ANY)
    assert isinstance(claimed, ClaimedChat)
    return claimed


async def run(bench: RequestBench) -> None:
    with trio.fail_after(WAIT_S):
        await run_claimed_chat(bench.services, await claim(bench))
    assert len(bench.services.live) == 0


async def row_of(lab: Lab, response_id: UUID) -> MemoryRow:
    return (await lab.snapshot()).rows[response_id]


def steps_of(snapshot: Snapshot, response_id: UUID) -> list[MemoryStep]:
    return sorted(snapshot.steps_of(response_id), key=lambda step: step.sequence)


async def told(bench: RequestBench, response_id: UUID) -> list[EventSegment]:
    """All stored segments, which follow one another without a gap."""
    page = await bench.services.events.read_events(response_id, OWNER, -1)
    assert page is not None
    segments = list(page.segments)
    firsts = [segment.first_sequence for segment in segments]
    assert firsts == [0, *(segment.last_sequence + 1 for segment in segments)][: len(firsts)]
    return segments


def chunks_of(segments: list[EventSegment]) -> list[Any]:
    frames = b"".join(segment.frames for segment in segments).split(b"\n\n")
    assert frames.pop() == b""
    return [msgspec.json.decode(frame.removeprefix(b"data: ")) for frame in frames]


def text_of(chunks: list[Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def test_a_whole_completion_is_stored_as_the_upstream_gave_it(bench: RequestBench, lab: Lab) -> None:
    response_id = await enqueue(bench, "echo-3")
    await run(bench)

    snapshot, (segment,) = await lab.snapshot(), await told(bench, response_id)
    row, (step,) = snapshot.rows[response_id], snapshot.steps_of(response_id)
    assert (row.state, row.response_status, row.error) == (RowState.COMPLETED, 200, None)
    assert (row.response, segment.last_sequence) == (segment.frames, 0)
    completion = msgspec.json.decode(segment.frames)
    assert completion["choices"][0]["message"]["content"] == expected_text("echo-3")
    assert (completion["object"], completion["model"]) == ("chat.completion", "echo-3")
    record = snapshot.usage[step.id]
    counts = bench.simulator.statistics()
    assert (record.input_tokens, record.output_tokens) == (counts.prompt_tokens, counts.completion_tokens_reported)
    assert (record.http_status, record.error_code, step.state) == (200, None, StepState.COMPLETED)


@pytest.mark.parametrize("stream", [True, False])
async def test_nothing_said_is_left_of_a_completion_that_is_not_to_be_stored_but_its_events(
    bench: RequestBench, lab: Lab, stream: bool
) -> None:
    response_id = await enqueue(bench, "echo-3", store=False, stream=stream)
    await run(bench)

    snapshot = await lab.snapshot()
    row, (step,) = snapshot.rows[response_id], snapshot.steps_of(response_id)
    assert (row.state, row.request, row.response, step.request, step.result) == (RowState.COMPLETED, *[None] * 4)
    assert snapshot.usage[step.id].output_tokens == 3
    page = await wait_ended(bench.services, response_id, OWNER, after=-1)
    assert page is not None
    assert b"word2" in b"".join(segment.frames for segment in page.segments)


async def test_a_stream_is_told_while_it_comes(bench: RequestBench, lab: Lab) -> None:
    response_id = await enqueue(bench, "pause-2-4-each", stream=True, key="live")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, bench)
        with trio.fail_after(WAIT_S):
            while text_of(chunks_of(await told(bench, response_id))) != "word0 word1 ":
                await trio.lowlevel.checkpoint()
        assert (await row_of(lab, response_id)).state is RowState.PROCESSING
        bench.simulator.resume("live")

    row, chunks = await row_of(lab, response_id), chunks_of(await told(bench, response_id))
    assert (row.state, row.last_sequence, text_of(chunks)) == (
        RowState.COMPLETED,
        len(chunks) - 1,
        expected_text("echo-4"),
    )
    assert all(chunk["choices"] for chunk in chunks), "nobody asked for the usage"


async def test_the_usage_is_told_to_who_asked_for_it(bench: RequestBench) -> None:
    response_id = await enqueue(bench, "echo-4", stream=True, stream_options={"include_usage": True})
    await run(bench)
    assert chunks_of(await told(bench, response_id))[-1]["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("stream", [True, False])
async def test_what_may_pass_is_tried_again(bench: RequestBench, lab: Lab, stream: bool) -> None:
    response_id = await enqueue(bench, "echo-3-flaky-1", stream=stream)
    await run(bench)
    waiting = await row_of(lab, response_id)
    assert (waiting.state, waiting.attempt, waiting.last_sequence) == (RowState.PENDING, 1, None)
    assert waiting.not_before is not None

    await lab.advance_clock(LIMITS.queue_retry_cap_s)
    await run(bench)

    snapshot = await lab.snapshot()
    assert snapshot.rows[response_id].state is RowState.COMPLETED
    failed, done = steps_of(snapshot, response_id)
    assert (failed.state, done.state, done.sequence) == (StepState.FAILED, StepState.COMPLETED, 2)
    assert snapshot.usage[failed.id].error_code == ErrorType.UPSTREAM_ERROR.value
    assert snapshot.usage[failed.id].http_status == 500
    assert snapshot.usage[done.id].output_tokens == bench.simulator.statistics().completion_tokens_reported == 3


async def test_the_upstreams_advice_is_the_least_that_is_waited_and_costs_no_attempt(
    bench: RequestBench, lab: Lab
) -> None:
    response_id = await enqueue(bench, "error-429-33")
    await run(bench)
    waiting = await row_of(lab, response_id)
    assert waiting.not_before is not None
    assert waiting.not_before - await lab.now() > 30
    for _ in range(5):
        await lab.advance_clock(40)
        await run(bench)

    row = await row_of(lab, response_id)
    assert (row.state, row.attempt) == (RowState.PENDING, 0)


@pytest.mark.parametrize(("model", "status"), [("error-400", 400), ("error-404", 404), ("error-401", 502)])
async def test_what_the_client_has_to_change_is_not_tried_again(
    bench: RequestBench, lab: Lab, model: str, status: int
) -> None:
    response_id = await enqueue(bench, model)
    await run(bench)
    row = await row_of(lab, response_id)
    assert (row.state, row.response_status, row.attempt) == (RowState.FAILED, status, 1)
    assert row.error is not None
    assert row.response is not None
    assert CANARY not in row.error.message + row.response.decode()


async def test_a_stream_that_breaks_after_its_first_chunk_is_not_tried_again(bench: RequestBench, lab: Lab) -> None:
    response_id = await enqueue(bench, "echo-3-each-cut", stream=True)
    await run(bench)
    row = await row_of(lab, response_id)
    assert (row.state, row.response_status, row.attempt) == (RowState.FAILED, 502, 1)
    assert text_of(chunks_of(await told(bench, response_id))) == expected_text("echo-3")


async def test_a_stream_whose_process_died_in_it_fails_without_another_call(bench: RequestBench, lab: Lab) -> None:
    response_id = await enqueue(bench, "echo-3", stream=True)
    died = await claim(bench)
    segment = EventSegment(first_sequence=0, last_sequence=1, frames=b'data: {"choices":[]}\n\n' * 2)
    await bench.services.queue.append_events(response_id, died.epoch, segment)
    await lab.advance_clock(LIMITS.lease_s + 1)
    await bench.services.store.rescue_expired()  # type: ignore[attr-defined]
    await run(bench)

    row = await row_of(lab, response_id)
    assert (row.state, row.reclaims, row.response_status) == (RowState.FAILED, 1, 500)
    assert row.error is not None
    assert row.error.type is ErrorType.STEP_ABANDONED
    assert await told(bench, response_id) == [segment]
    assert bench.simulator.statistics().total == 0


async def test_a_row_past_its_deadline_fails_without_a_call(bench: RequestBench, lab: Lab) -> None:
    response_id = await enqueue(bench, "echo-3")
    await lab.advance_clock(LIMITS.flex_deadline_s + 1)
    await run(bench)
    row = await row_of(lab, response_id)
    assert (row.state, row.response_status) == (RowState.FAILED, 504)
    assert row.error is not None
    assert "deadline" in row.error.message
    assert bench.simulator.statistics().total == 0


async def stop_while_it_runs(
    bench: RequestBench, lab: Lab, reason: Callable[[], DwctlError] | None, *, is_told: bool
) -> MemoryRow:
    """The row of a stream whose attempt was stopped, by its own process or with it, before or after its first chunk."""
    response_id = await enqueue(bench, "pause-2-4-each" if is_told else "gate", stream=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, bench)
        with trio.fail_after(WAIT_S):
            await bench.simulator.wait_until(lambda counts: counts.paused == 1)
            while is_told and len(await told(bench, response_id)) == 0:
                await trio.lowlevel.checkpoint()
        if reason is None:
            nursery.cancel_scope.cancel()
        else:
            bench.services.live.stop(response_id, reason())
    with trio.fail_after(WAIT_S):
        await bench.simulator.wait_idle()
    snapshot = await lab.snapshot()
    assert all(step.id in snapshot.usage for step in snapshot.steps_of(response_id) if step.state != "processing")
    return snapshot.rows[response_id]


@pytest.mark.parametrize("reason", [lambda: ServerStopping("bye"), None])
async def test_a_stopping_server_hands_back_what_was_not_told(bench: RequestBench, lab: Lab, reason: Any) -> None:
    row = await stop_while_it_runs(bench, lab, reason, is_told=False)
    assert (row.state, row.attempt, row.not_before) == (RowState.PENDING, 0, None)


@pytest.mark.parametrize("reason", [lambda: ServerStopping("bye"), None])
async def test_a_stopping_server_ends_what_was_told(bench: RequestBench, lab: Lab, reason: Any) -> None:
    row = await stop_while_it_runs(bench, lab, reason, is_told=True)
    assert (row.state, row.attempt) == (RowState.FAILED, 1)
    assert row.response_status == (500 if reason is None else 503)


@pytest.mark.parametrize("is_told", [True, False])
async def test_a_lost_lease_writes_nothing_more(bench: RequestBench, lab: Lab, is_told: bool) -> None:
    row = await stop_while_it_runs(bench, lab, lambda: LeaseLost("gone"), is_told=is_told)
    assert row.state is RowState.PROCESSING


@pytest.mark.parametrize("is_told", [True, False])
async def test_a_cancelled_completion_ends_with_what_was_told(bench: RequestBench, lab: Lab, is_told: bool) -> None:
    row = await stop_while_it_runs(bench, lab, lambda: ResponseCancelled("no more"), is_told=is_told)
    assert (row.state, row.response_status, row.error) == (RowState.CANCELED, 499, None)
    assert (row.last_sequence is not None) is is_told


async def test_a_waiting_completion_is_cancelled_at_once(bench: RequestBench, lab: Lab) -> None:
    response_id = await enqueue(bench, "echo-3")
    with trio.fail_after(WAIT_S):
        assert await cancel_response(bench.services, response_id, OWNER)
    assert (await row_of(lab, response_id)).state is RowState.CANCELED
    assert not await cancel_response(bench.services, response_id, "mallory")


async def test_a_completion_cancelled_between_claim_and_call_is_not_asked_for(bench: RequestBench, lab: Lab) -> None:
    response_id = await enqueue(bench, "echo-3")
    await bench.services.queue.request_cancel(response_id, OWNER)
    await run(bench)
    assert (await row_of(lab, response_id)).state is RowState.CANCELED
    assert bench.simulator.statistics().total == 0


async def test_an_abandoned_call_is_recorded_and_made_again(bench: RequestBench, lab: Lab) -> None:
    response_id = await enqueue(bench, "gate", key="gate")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, bench)
        with trio.fail_after(WAIT_S):
            await bench.simulator.wait_until(lambda counts: counts.paused == 1)
        bench.services.live.stop(response_id, LeaseLost("the process stands still"))
    await lab.advance_clock(LIMITS.lease_s + 1)
    await bench.services.store.rescue_expired()  # type: ignore[attr-defined]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, bench)
        with trio.fail_after(WAIT_S):
            await bench.simulator.wait_until(lambda counts: counts.paused == 1)
        bench.simulator.resume("gate")

    snapshot = await lab.snapshot()
    abandoned, done = steps_of(snapshot, response_id)
    assert snapshot.rows[response_id].state is RowState.COMPLETED
    assert snapshot.usage[abandoned.id].error_code == ErrorType.STEP_ABANDONED.value
    assert snapshot.usage[done.id].output_tokens == 16
