"""Cancelling an attempt at a chat completion at every one of its task steps: it is handed back, or it has ended."""

from contextlib import aclosing
from uuid import UUID, uuid4

import pytest

from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.lifecycle import TERMINAL_STATES, RowState
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.steps import StepState
from dwctl_trio.engine.chat import run_claimed_chat
from dwctl_trio.engine.enqueue import enqueue_chat
from dwctl_trio.ports import ClaimedChat, NewChat
from dwctl_trio.protocol.chat_body import parse_chat
from dwctl_trio.testing.cancel_sweep import sweep_cancellation
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_store import MemoryStore
from dwctl_trio.testing.request_bench import RequestBench, open_request_bench

MODELS = ["each-4", "error-500", "cut-2-each", "echo-2-json"]
"""An answer in several reads, a refusal that may pass, a failure under way, and one that comes whole."""
ANY = ClaimDemand(rows=1, models={}, other_models=1, owner_rows=1)


async def _claim(bench: RequestBench, model: str, *, stream: bool) -> ClaimedChat:
    request = parse_chat({"model": model, "messages": [{"role": "user"}], "stream": stream, "service_tier": "flex"})
    route = ModelRoute(model=model, upstream="simulator", upstream_model=model)
    new = NewChat(response_id=uuid4(), owner="alice", key_prefix=None, request=request, route=route)
    await enqueue_chat(bench.services, new)
    (claimed,) = await bench.services.queue.claim_responses(ANY)
    assert isinstance(claimed, ClaimedChat)
    return claimed


def _check(database: MemoryDatabase, response_id: UUID) -> RowState:
    """The state of the row, which says what it has come to: nothing of it is half done."""
    row, log = database.rows[response_id], database.events.get(response_id)
    segments = log.segments if log is not None else ()
    steps = database.steps_of(response_id)
    assert row.state in TERMINAL_STATES | {RowState.PENDING}
    assert all(step.state is not StepState.PROCESSING for step in steps)
    assert {step.id for step in steps} == {
        record.step_id for record in database.usage.values() if record.response_id == response_id
    }
    if row.state is RowState.PENDING:
        assert not segments, "what was told cannot be taken back"
    if row.state is RowState.COMPLETED:
        assert segments
        assert row.last_sequence == segments[-1].last_sequence
    return row.state


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_an_attempt_may_be_cancelled_at_every_step(stream: bool) -> None:
    database, runs, ended = MemoryDatabase(), 0, dict.fromkeys(RowState, 0)
    store = MemoryStore(database, daemon_id=uuid4())
    await store.register_process()
    async with open_request_bench(store) as bench:
        for model in MODELS:
            claimed = await _claim(bench, model, stream=stream)

            async with aclosing(sweep_cancellation(lambda: run_claimed_chat(bench.services, claimed))) as sweep:  # noqa: B023 - run in this very turn
                async for _ in sweep:
                    await bench.check_nothing_left()
                    ended[_check(database, claimed.row.response_id)] += 1
                    runs += 1
                    del database.rows[claimed.row.response_id]  # else it would be claimed again
                    claimed = await _claim(bench, model, stream=stream)
            del database.rows[claimed.row.response_id]
    print(f"cancel sweep, chat, stream {stream}: {runs} runs; rows { ({k.value: v for k, v in ended.items() if v}) }")
    assert ended[RowState.COMPLETED] > 0
    assert ended[RowState.PENDING] > 0
    assert (ended[RowState.FAILED] > 0) is stream
