"""How a repeat waits for the first request with its key: at a bounded rate, and for a bounded time."""

from collections.abc import Awaitable, Callable
from uuid import uuid4

import attrs
import pytest
import trio
from tests.conformance.responses import ENDINGS, make_finished, make_key, make_new

from dwctl_trio.domain.errors import IdempotencyConflict, IdempotencyKeyHeld, ServerStopping, StoreUnavailable
from dwctl_trio.domain.idempotency import Replay
from dwctl_trio.domain.limits import Limits
from dwctl_trio.engine.leases import LiveResponses
from dwctl_trio.engine.repeats import repeat
from dwctl_trio.engine.state import Services
from dwctl_trio.ports import NewResponse
from dwctl_trio.testing.faulty_store import Fault, FaultyStore
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_store import MemoryStore
from dwctl_trio.tools.http_tools import HttpToolRunner

LIMITS = Limits(idempotency_wait_s=600.0, idempotency_poll_s=0.5)
NEW = make_new(key=make_key())


@attrs.define(eq=False)
class Desk:
    """A store with one row under a key, and repeats that come to it."""

    store: FaultyStore
    first: NewResponse
    run: list[NewResponse] = attrs.field(factory=list)
    """What was run after all."""
    is_stopping: bool = False

    async def repeat(self, run: Callable[[NewResponse], Awaitable[str]] | None = None) -> str | Replay:
        services = make_services(self.store)

        def refuse() -> None:
            if self.is_stopping:
                raise ServerStopping("no new work")

        return await repeat(services, NEW, run or self._run, refuse)

    async def finish(self, **changes: object) -> None:
        await self.store.finish_response(attrs.evolve(make_finished(self.first, ENDINGS[0]), **changes))

    def looks(self) -> int:
        return sum(call.method == "find_key_holder" for call in self.store.calls)

    async def _run(self, new: NewResponse) -> str:
        await self.store.open_response(new)
        self.run.append(new)
        return "run"


class NoUpstream:
    """Nothing here calls a model."""

    def open_turn(self, call: object) -> object:
        raise AssertionError(call)

    open_chat = open_turn


def make_services(store: MemoryStore) -> Services:
    """What a repeat waits with: neither a model nor a tool is ever called."""
    tools = HttpToolRunner(LIMITS)
    return Services(
        store=store,
        conversations=store,
        queue=store,
        events=store,
        upstream=NoUpstream(),
        chat=NoUpstream(),
        tools=tools,
        catalog={},
        limits=LIMITS,
        live=LiveResponses(),
    )


@pytest.fixture
async def desk() -> Desk:
    first = make_new(key=make_key())
    store = FaultyStore(MemoryStore(MemoryDatabase(), daemon_id=uuid4()))
    await store.open_response(first)
    return Desk(store, first)


async def test_a_repeat_gets_what_the_first_was_told_within_one_look_of_its_end(desk: Desk, autojump_clock) -> None:
    async with trio.open_nursery() as nursery:

        async def end_later() -> None:
            await trio.sleep(100.2)
            await desk.finish()

        nursery.start_soon(end_later)
        answer = await desk.repeat()

    assert answer == Replay(response_id=desk.first.response_id, told=b"event: response.created\ndata: {}\n\n")
    assert 100.2 <= trio.current_time() <= 100.2 + LIMITS.idempotency_poll_s
    assert desk.looks() <= 100.2 / LIMITS.idempotency_poll_s + 2
    assert desk.run == []


async def test_a_repeat_of_an_ended_response_does_not_wait(desk: Desk, autojump_clock) -> None:
    await desk.finish()

    assert isinstance(await desk.repeat(), Replay)
    assert trio.current_time() == 0
    assert desk.looks() == 1


async def test_a_repeat_waits_for_so_long_and_no_longer(desk: Desk, autojump_clock) -> None:
    with pytest.raises(IdempotencyConflict, match="still under way") as raised:
        await desk.repeat()

    assert trio.current_time() == pytest.approx(LIMITS.idempotency_wait_s)
    assert (raised.value.code, raised.value.retry_after_s) == ("idempotency_key_in_use", 5.0)
    assert desk.looks() <= LIMITS.idempotency_wait_s / LIMITS.idempotency_poll_s + 2


async def test_a_repeat_runs_under_new_ids_when_the_first_has_released_the_key(desk: Desk, autojump_clock) -> None:
    await desk.finish(response_status=503)

    assert await desk.repeat() == "run"
    (ran,) = desk.run
    assert (ran.request, ran.idempotency, ran.owner) == (NEW.request, NEW.idempotency, NEW.owner)
    assert len({NEW.response_id, desk.first.response_id, ran.response_id}) == 3
    assert ran.first_step_id != NEW.first_step_id


async def test_a_repeat_that_always_comes_too_late_gives_up(desk: Desk, autojump_clock) -> None:
    await desk.finish(response_status=503)
    tries = 0

    async def lose(_: NewResponse) -> str:
        nonlocal tries
        tries += 1
        raise IdempotencyKeyHeld("somebody was faster")

    with pytest.raises(IdempotencyConflict, match="still under way"):
        await desk.repeat(lose)

    assert trio.current_time() == pytest.approx(LIMITS.idempotency_wait_s)
    assert tries <= LIMITS.idempotency_wait_s / LIMITS.idempotency_poll_s + 2


async def test_a_repeat_that_waits_ends_when_the_server_stops(desk: Desk, autojump_clock) -> None:
    async with trio.open_nursery() as nursery:

        async def stop_later() -> None:
            await trio.sleep(10)
            desk.is_stopping = True

        nursery.start_soon(stop_later)
        with pytest.raises(ServerStopping):
            await desk.repeat()
    assert trio.current_time() <= 10 + LIMITS.idempotency_poll_s


async def test_a_repeat_is_answered_also_while_the_server_stops_but_runs_no_more(desk: Desk, autojump_clock) -> None:
    desk.is_stopping = True
    await desk.finish()
    assert isinstance(await desk.repeat(), Replay)

    released = Desk(FaultyStore(MemoryStore(MemoryDatabase(), daemon_id=uuid4())), NEW, is_stopping=True)
    with pytest.raises(ServerStopping):
        await released.repeat()
    assert released.run == []


async def test_a_repeat_says_so_when_the_store_does_not_answer(desk: Desk, autojump_clock) -> None:
    desk.store.plan = lambda call: Fault.FAIL_BEFORE if call.method == "find_key_holder" else None

    with pytest.raises(StoreUnavailable):
        await desk.repeat()


async def test_another_body_is_refused_at_once_though_the_first_is_under_way(desk: Desk, autojump_clock) -> None:
    services = make_services(desk.store)
    other = attrs.evolve(NEW, idempotency=make_key(body="other"))

    with pytest.raises(IdempotencyConflict, match="another body"):
        await repeat(services, other, desk._run, lambda: None)

    assert trio.current_time() == 0
