"""The store fails at every kind of write of a chat completion: its row ends all the same, and says what was told."""

import itertools
import json
from uuid import uuid4

import attrs
import pytest
import trio

from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.lifecycle import TERMINAL_STATES, RowState
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.engine.chat import run_claimed_chat
from dwctl_trio.engine.enqueue import enqueue_chat
from dwctl_trio.ports import ClaimedChat, NewChat
from dwctl_trio.protocol.chat_body import parse_chat
from dwctl_trio.testing.faulty_store import Fault, FaultyStore, StoreCall
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_store import MemoryStore
from dwctl_trio.testing.request_bench import RequestBench, open_request_bench
from dwctl_trio.testing.simulator_script import expected_text

LIMITS = Limits(store_wait_s=0.05, store_call_s=0.05, terminal_write_s=0.2, terminal_retry_s=0.01)
METHODS = ["advance_response", "append_events", "finish_response", "requeue_response"]
MODELS = ["each-3", "error-500", "cut-2-each"]
PASSING = [Fault.FAIL_BEFORE, Fault.FAIL_AFTER]
"""A store that hangs is given up by its own bounds, which stand in front of this one."""
ONCE, FOR_EVER = 1, 10_000
ANY = ClaimDemand(rows=10, models={}, other_models=10, owner_rows=10)
ATTEMPTS_MAX = 20


@attrs.frozen
class Case:
    """Which calls fail, and how, while the first attempt runs."""

    model: str
    stream: bool
    method: str
    fault: Fault
    times: int

    def plan(self) -> object:
        failures = itertools.count(1)

        def decide(call: StoreCall) -> Fault | None:
            return self.fault if call.method == self.method and next(failures) <= self.times else None

        return decide


CASES = [Case(*case) for case in itertools.product(MODELS, [True, False], METHODS, PASSING, [ONCE, FOR_EVER])]


async def _enqueue(bench: RequestBench, case: Case) -> NewChat:
    body = {"model": case.model, "messages": [{"role": "user"}], "stream": case.stream, "service_tier": "flex"}
    route = ModelRoute(model=case.model, upstream="simulator", upstream_model=case.model)
    new = NewChat(response_id=uuid4(), owner="alice", key_prefix=None, request=parse_chat(body), route=route)
    await enqueue_chat(bench.services, new)
    return new


async def _attempt(bench: RequestBench) -> None:
    for claimed in await bench.services.queue.claim_responses(ANY):
        assert isinstance(claimed, ClaimedChat)
        with trio.fail_after(10):
            await run_claimed_chat(bench.services, claimed)
    await bench.check_nothing_left()


def _said(database: MemoryDatabase, new: NewChat) -> str:
    """The text in the stored events, which follow one another without a gap."""
    log = database.events.get(new.response_id)
    segments = log.segments if log is not None else ()
    for before, after in itertools.pairwise(segments):
        assert after.first_sequence == before.last_sequence + 1
    frames = b"".join(segment.frames for segment in segments)
    if not new.request.stream:
        return json.loads(frames)["choices"][0]["message"]["content"] if frames else ""
    chunks = [json.loads(frame.removeprefix(b"data: ")) for frame in frames.split(b"\n\n") if frame]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


@pytest.mark.slow
async def test_no_failure_of_the_store_tells_a_client_two_answers_or_none() -> None:
    database, ended = MemoryDatabase(), dict.fromkeys(TERMINAL_STATES, 0)
    inner = MemoryStore(database, daemon_id=uuid4(), limits=LIMITS)
    store = FaultyStore(inner)
    await store.register_process()
    async with open_request_bench(store, LIMITS) as bench:
        for case in CASES:
            new = await _enqueue(bench, case)
            store.plan = case.plan()
            await _attempt(bench)
            store.plan = ()
            for _ in range(ATTEMPTS_MAX):
                if database.rows[new.response_id].state in TERMINAL_STATES:
                    break
                database.advance_clock(LIMITS.lease_s + LIMITS.queue_retry_cap_s)
                await inner.rescue_expired()
                await _attempt(bench)
            row, said = database.rows[new.response_id], _said(database, new)
            assert row.state in TERMINAL_STATES, case
            assert expected_text(case.model).startswith(said), case
            if row.state is RowState.COMPLETED:
                assert said == expected_text(case.model), case
            ended[row.state] += 1
    print(f"chat faults: {len(CASES)} cases, rows { ({state.value: count for state, count in ended.items()}) }")
    assert ended[RowState.COMPLETED] > 0
    assert ended[RowState.FAILED] > 0


async def test_a_completion_whose_end_cannot_be_stored_counts_as_failed() -> None:
    store = FaultyStore(MemoryStore(MemoryDatabase(), daemon_id=uuid4(), limits=LIMITS))
    async with open_request_bench(store, LIMITS) as bench:
        case = Case("each-3", True, "finish_response", Fault.FAIL_BEFORE, FOR_EVER)
        await _enqueue(bench, case)
        store.plan = case.plan()
        await _attempt(bench)
        lines = bench.services.metrics.render().decode().splitlines()
    counted = [line for line in lines if line.startswith("dwctl_responses_total{")]
    assert len(counted) == 1
    assert 'status="failed"' in counted[0]
    assert counted[0].endswith(" 1.0")
