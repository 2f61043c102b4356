"""The store fails at every call of a request, in every way: nobody is told what is not so, and no row is stuck."""

import itertools
from uuid import uuid4

import attrs
import pytest

from dwctl_trio.domain.event_grammar import check_stream
from dwctl_trio.domain.items import output_text
from dwctl_trio.domain.lifecycle import TERMINAL_STATES, RowState
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.response import Response, ResponseStatus
from dwctl_trio.testing.faulty_store import Fault, FaultyStore, StoreCall
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_store import MemoryStore
from dwctl_trio.testing.request_bench import RequestBench, open_request_bench
from dwctl_trio.testing.simulator_script import expected_text
from dwctl_trio.testing.wire import read_stream

LIMITS = Limits(store_wait_s=0.05, store_call_s=0.05, terminal_write_s=0.2, terminal_retry_s=0.01, head_hold_s=0.05)
MODELS = ["each-3", "error-500", "cut-2"]
ONCE, FOR_EVER = 1, 10_000
METHODS = ["open_response", "finish_response"]


@attrs.frozen
class Case:
    """Which calls fail, and how."""

    model: str
    method: str
    fault: Fault
    times: int

    def plan(self) -> object:
        failures = itertools.count(1)

        def decide(call: StoreCall) -> Fault | None:
            return self.fault if call.method == self.method and next(failures) <= self.times else None

        return decide


PASSING = [fault for fault in Fault if fault.is_passing]
CASES = [Case(*case) for case in itertools.product(MODELS, METHODS, PASSING, [ONCE, FOR_EVER])]


@pytest.mark.slow
async def test_no_failure_of_the_store_tells_a_client_what_is_not_so() -> None:
    database = MemoryDatabase()
    inner = MemoryStore(database, daemon_id=uuid4(), limits=LIMITS)
    store = FaultyStore(inner)
    await store.register_process()
    told_and_stored: dict[tuple[str, str], int] = {}

    async with open_request_bench(store, LIMITS) as bench:
        for case in CASES:
            store.plan = case.plan()
            await bench.serve_stream(case.model)
            store.plan = ()
            await bench.check_nothing_left()
            told = _check_told(bench, case)
            row = database.rows.get(bench.response_id)
            if told == ResponseStatus.COMPLETED:
                assert row is not None
                assert row.state is RowState.COMPLETED, "seen completed means stored completed"
            stored = "no row" if row is None else row.state.value
            told_and_stored[told, stored] = told_and_stored.get((told, stored), 0) + 1

        database.advance_clock(LIMITS.lease_s + 1)
        rescued = await inner.rescue_expired()

    assert {row.state for row in database.rows.values()} <= TERMINAL_STATES
    print(f"store faults: {len(CASES)} cases, told and stored: {told_and_stored}, then rescued: {len(rescued)}")
    assert told_and_stored["completed", "completed"] > 0
    assert len(rescued) > 0


def _check_told(bench: RequestBench, case: Case) -> str:
    """How the client's stream ended, which passed the grammar; or that it was refused."""
    if bench.refused is not None:
        assert not bench.told
        return "refused"
    assert bench.new is not None
    stream = read_stream(b"".join(bench.told), bench.new.request)
    assert stream.is_done
    assert check_stream(stream.events) is None
    told: Response = stream.events[-1].event.response
    if case.model == "each-3":
        assert output_text(told.output) == expected_text(case.model), "a failed write still hands over the output"
    return told.status.value
