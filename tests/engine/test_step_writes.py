"""The write between two steps: whole, once it has begun, and never numbered twice."""

from uuid import UUID, uuid4

import attrs
import trio
from tests.engine.scenarios import FAN_OUT, OVERRIDES, read_told

from dwctl_trio.domain.event_grammar import check_stream
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.steps import ModelCall, Step, StepState, ToolCall
from dwctl_trio.domain.turn import FinishReason, ModelTurn
from dwctl_trio.engine.progress import settle
from dwctl_trio.engine.sinks import NoSink
from dwctl_trio.engine.state import Scope
from dwctl_trio.ports import FinishedResponse, Progress
from dwctl_trio.testing.faulty_store import Fault, FaultyStore
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_store import MemoryStore
from dwctl_trio.testing.request_bench import make_new, open_request_bench
from dwctl_trio.testing.wire import read_stream

WAIT_S = 10.0


class SlowStore(MemoryStore):
    """Holds each write of a step back until it is told to go on, and notes how the writes overlap."""

    def __init__(self, database: MemoryDatabase) -> None:
        super().__init__(database, daemon_id=uuid4())
        self.begun, self.go_on = trio.Event(), trio.Event()
        self.history: list[str] = []

    async def advance_response(self, progress: Progress) -> None:
        self.history.append("step begins")
        self.begun.set()
        try:
            await self.go_on.wait()
            await super().advance_response(progress)
        finally:
            self.history.append("step ends")

    async def finish_response(self, finished: FinishedResponse) -> None:
        self.history.append("terminal begins")
        await super().finish_response(finished)


async def test_a_hang_up_waits_for_the_write_of_a_step_so_that_the_terminal_write_sees_its_rows() -> None:
    database = MemoryDatabase()
    store = SlowStore(database)
    await store.register_process()
    async with open_request_bench(store, overrides=OVERRIDES) as bench:
        with trio.fail_after(WAIT_S):
            async with trio.open_nursery() as nursery:

                async def serve() -> None:
                    with trio.CancelScope() as scope:
                        scopes.append(scope)
                        await bench.serve_stream(FAN_OUT.model, **FAN_OUT.fields)

                scopes: list[trio.CancelScope] = []
                nursery.start_soon(serve)
                await store.begun.wait()
                scopes[0].cancel()
                for _ in range(50):
                    await trio.lowlevel.checkpoint()
                assert store.history == ["step begins"]
                store.go_on.set()
        await bench.check_nothing_left()
        assert bench.tool_server.calls_by_key.total() == 0
        assert bench.new is not None
        log = read_stream(database.events[bench.response_id].frames, bench.new.request)

    assert store.history == ["step begins", "step ends", "terminal begins"]
    assert database.rows[bench.response_id].state is RowState.CANCELED
    states = [step.state for step in database.steps_of(bench.response_id)]
    assert states == [StepState.COMPLETED, StepState.CANCELED, StepState.CANCELED]
    assert check_stream(log.events) is None


async def test_a_turn_whose_write_fails_for_good_still_ends_the_calls_that_it_showed() -> None:
    limits = Limits(terminal_write_s=0.2, terminal_retry_s=0.01)
    database = MemoryDatabase()
    store = FaultyStore(MemoryStore(database, daemon_id=uuid4(), limits=limits))
    await store.register_process()
    store.plan = lambda call: Fault.FAIL_BEFORE if call.method == "advance_response" else None
    async with open_request_bench(store, limits, OVERRIDES) as bench:
        with trio.fail_after(WAIT_S):
            await bench.serve_stream(FAN_OUT.model, **FAN_OUT.fields)
        told = read_told(bench).events[-1].event.response

    assert told.status.value == "failed"
    assert [item.status.value for item in told.output] == ["incomplete", "incomplete"]
    assert [step.state for step in database.steps_of(bench.response_id)] == [StepState.COMPLETED]


async def test_a_step_is_numbered_after_the_last_even_where_a_number_was_never_written() -> None:
    store = MemoryStore(MemoryDatabase(), daemon_id=uuid4())
    await store.register_process()
    async with open_request_bench(store, overrides=OVERRIDES) as bench:
        new = make_new("echo-1", stream=False, catalog=bench.services.catalog)
        await store.open_response(new)
        scope = Scope(new, NoSink(), bench.services.limits)
        scope.opened.set()
        scope.opening = scope.make_opening(0)
        turn = ModelTurn(items=(), finish_reason=FinishReason.STOP, usage=None)
        scope.add_step(attrs.evolve(scope.steps[new.first_step_id], state=StepState.COMPLETED, result=turn))
        agent = Step(  # the steps 2 and 3 were decided on, and their process died before they were written
            id=UUID(int=4),
            sequence=4,
            descriptor=ToolCall(call_id="call_0", name="inner", arguments="{}"),
            state=StepState.PROCESSING,
        )
        scope.add_step(agent)
        loop = attrs.evolve(scope.top, parent=agent, depth=1)
        await settle(bench.services, scope, loop)

    *_, opened = scope.steps.values()
    assert (opened.descriptor, opened.sequence) == (ModelCall(), 5)
