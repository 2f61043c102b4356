"""The store fails at every write of a call that is handed over: nobody is told half an answer, and no row is stuck."""

import itertools
import json
from collections import Counter
from uuid import uuid4

import attrs
import pytest
import trio

from dwctl_trio.domain.lifecycle import TERMINAL_STATES, RowState
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.engine.proxied import answer_chat, stream_chat
from dwctl_trio.engine.scope import ResponseRefused
from dwctl_trio.ports import NewChat
from dwctl_trio.protocol.chat_body import parse_chat
from dwctl_trio.testing.faulty_store import Fault, FaultyStore, StoreCall
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_store import MemoryStore
from dwctl_trio.testing.request_bench import RequestBench, open_request_bench
from dwctl_trio.testing.simulator_script import expected_text

LIMITS = Limits(store_wait_s=0.05, store_call_s=0.05, terminal_write_s=0.2, terminal_retry_s=0.01, head_hold_s=0.05)
MODELS = ["each-3", "error-500", "cut-2-each"]
METHODS = ["open_response", "finish_response"]
ONCE, FOR_EVER = 1, 10_000


@attrs.frozen
class Case:
    """Which calls of the store fail, and how."""

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


PASSING = [fault for fault in Fault if fault.is_passing]
CASES = [
    *(Case(*case) for case in itertools.product(["each-3"], [True, False], METHODS, PASSING, [FOR_EVER])),
    *(Case(*case) for case in itertools.product(MODELS, [True, False], ["finish_response"], PASSING, [ONCE])),
]


async def _make(bench: RequestBench, new: NewChat) -> str:
    """What the client got: ``whole``, ``broken off``, or the status of its error."""
    told = b""
    async with trio.open_nursery() as nursery:
        try:
            if not new.request.stream:
                told = await answer_chat(bench.services, new)
                assert expected_text(new.request.model) in json.loads(told)["choices"][0]["message"]["content"]
                return "whole"
            receive_frames = await stream_chat(bench.services, new, nursery)
        except ResponseRefused as refused:
            return str(refused.failure.http_status)
        bench.channels.append(receive_frames)
        async with receive_frames:
            async for frames in receive_frames:
                assert frames.endswith(b"\n\n")
                told += frames
    return "broken off" if b'data: {"error"' in told else "whole"


@pytest.mark.slow
async def test_no_failure_of_the_store_tells_a_client_what_is_not_so() -> None:
    database, seen = MemoryDatabase(), Counter[tuple[str, str]]()
    inner = MemoryStore(database, daemon_id=uuid4(), limits=LIMITS)
    store = FaultyStore(inner)
    await store.register_process()
    async with open_request_bench(store, LIMITS) as bench:
        for case in CASES:
            request = parse_chat({"model": case.model, "messages": [{"role": "user"}], "stream": case.stream})
            route = ModelRoute(model=case.model, upstream="simulator", upstream_model=case.model)
            new = NewChat(response_id=uuid4(), owner="alice", key_prefix=None, request=request, route=route)
            bench.channels.clear()
            calls = bench.simulator.statistics().total
            store.plan = case.plan()
            with trio.fail_after(10):
                told = await _make(bench, new)
            store.plan = ()
            await bench.check_nothing_left()
            row = database.rows.get(new.response_id)
            if case.method == "open_response":
                assert told == "503", case
                assert bench.simulator.statistics().total == calls, "no call without a row"
            else:
                assert (told == "whole") is (case.model == "each-3"), case
            seen[told, "no row" if row is None else row.state.value] += 1
        database.advance_clock(LIMITS.lease_s + 1)
        await inner.rescue_expired()
        assert {row.state for row in database.rows.values()} <= TERMINAL_STATES
        assert len(database.usage) == len(database.rows)
        assert all(row.request is row.response is None for row in database.rows.values())
    print(f"proxied faults: {len(CASES)} cases, told and stored { ({'/'.join(k): v for k, v in seen.items()}) }")
    assert seen["whole", RowState.COMPLETED.value] > 0
    assert seen["whole", RowState.PROCESSING.value] > 0, "the rescuer's"
