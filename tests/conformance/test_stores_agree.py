"""The fake against the real one: whatever processes do and however time passes, both databases hold the same.

After every command both hold the same rows, answer the same, and keep the invariants I1 (one ending for each response),
I2 (terminal is for ever), I6 (one row for each idempotency key) and I7 (events without gaps) of the design.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias
from uuid import UUID

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conformance.conftest import LIMITS, Lab, MemoryLab, Snapshot, open_postgres_lab
from tests.conformance.queued import id_of, make_queued, make_queued_request, recalled, segment
from tests.conformance.responses import (
    ENDINGS,
    OWNER,
    ended_tool,
    make_finished,
    make_key,
    make_new,
    make_request,
    tool_step,
)

from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.errors import DwctlError
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.lifecycle import LEASED_STATES, ROW_MOVES, TERMINAL_STATES, RowState
from dwctl_trio.domain.request import ServiceTier
from dwctl_trio.domain.response import ErrorType
from dwctl_trio.domain.steps import StepState
from dwctl_trio.ports import Claimed, ClaimedResponse, NewResponse, Progress, RequeuedResponse, WantedPage
from dwctl_trio.testing.faulty_store import Store

PROCESSES = 3
RESPONSES = 4
STEPS_S = (LIMITS.lease_s * 0.24, LIMITS.lease_s * 0.48, LIMITS.lease_s + 30)
"""No sum of them comes within 6 s of a lease or of what is below, so that a slow machine cannot tip the balance."""
DELAY_S, PATIENCE_S, DEADLINES_S = 207.0, 351.0, (3015.0, 90_000.0)


@attrs.frozen
class Act:
    """One process does something with one response."""

    verb: str
    process: int = 0
    response: int = 0
    choice: int = 0
    """What else the verb wants to know."""


@attrs.frozen
class Pass:
    """Time passes."""

    seconds: float


Command: TypeAlias = Act | Pass

KEYS = (make_key("one"), make_key("two"))

_processes = st.integers(0, PROCESSES - 1)
_responses = st.integers(0, RESPONSES - 1)


def acts(verb: str, choices: int = 1) -> st.SearchStrategy[Command]:
    return st.builds(Act, st.just(verb), _processes, _responses, st.integers(0, choices - 1))


COMMANDS = st.one_of(
    acts("open", choices=4),
    acts("open", choices=12),
    acts("enqueue", choices=24),
    acts("enqueue", choices=8),
    acts("claim", choices=8),
    acts("claim", choices=8),
    acts("finish", choices=2 * len(ENDINGS)),
    acts("finish", choices=len(ENDINGS)),
    acts("advance", choices=4),
    acts("append", choices=6),
    acts("append", choices=2),
    acts("requeue", choices=16),
    acts("cancel", choices=2),
    acts("take over"),
    acts("watch", choices=2**RESPONSES),
    acts("events", choices=10),
    acts("renew", choices=2**RESPONSES),
    acts("rescue", choices=2),
    acts("delete", choices=2),
    acts("read", choices=2),
    acts("chain", choices=2),
    acts("conversation", choices=2),
    acts("turns", choices=2 * 2**RESPONSES),
    acts("list", choices=16),
    acts("holder", choices=4),
    acts("register"),
    acts("stop"),
    st.sampled_from(STEPS_S).map(Pass),
)


@attrs.define
class Machine:
    """One database, with the processes on it and the responses that they work on."""

    lab: Lab
    stores: list[Store] = attrs.field(init=False)
    sweepers: list[Store] = attrs.field(init=False)
    """The same, one row a sweep."""
    news: dict[int, NewResponse] = attrs.Factory(dict)
    """By place, what was opened there."""
    began_at: float | None = None
    """When the first response was enqueued, by the database's clock."""
    deleted: int = 0
    """Deletions so far: an id is never used again, as no uuid is."""

    def __attrs_post_init__(self) -> None:
        self.stores = [self.lab.open_process() for _ in range(PROCESSES)]
        self.sweepers = [self.lab.open_process(attrs.evolve(LIMITS, rescue_rows=1)) for _ in range(PROCESSES)]

    async def run(self, command: Command) -> object:
        """What the command gives, an error being a result like any other."""
        if isinstance(command, Pass):
            return await self.lab.advance_clock(command.seconds)
        try:
            return await self._act(command)
        except DwctlError as error:
            return type(error)

    async def _act(self, act: Act) -> object:
        store, response_id = self.stores[act.process], self._id(act.response)
        owner = (OWNER, "red")[act.choice % 2]
        match act.verb:
            case "open":
                new = self._go_on(_new(response_id, act.choice), act.response)
                await store.open_response(new)
                self.news[act.response] = new
                return None
            case "enqueue":
                await self._enqueue(store, act)
                return None
            case "claim":
                bounds = ClaimDemand(
                    rows=1 + act.choice % 2, models={"a": 1 + act.choice // 2 % 2}, other_models=2,
                    owner_rows=2 + act.choice // 4,
                )  # fmt: skip
                return [plain(await recalled(store, claimed)) for claimed in await store.claim_responses(bounds)]
            case "cancel":
                return await store.request_cancel(response_id, owner)
            case "take over":
                taken = await store.take_over(response_id, patience_s=PATIENCE_S)
                return taken and plain(await recalled(store, taken))
            case "watch":
                return await store.watch_leases(self._named(act.choice))
            case "events":
                return await store.read_events(response_id, owner, act.choice - 2)
            case "renew":
                return await store.renew_leases(self._named(act.choice))
            case "rescue":
                return sorted(await (self.sweepers if act.choice else self.stores)[act.process].rescue_expired())
            case "delete":
                is_deleted = await store.delete_response(response_id, owner)
                if is_deleted:
                    del self.news[act.response]
                    self.deleted += 1
                return is_deleted
            case "read":
                stored = await store.read_response(response_id, owner)
                return stored and attrs.evolve(stored, created_at=0)
            case "chain":
                return list(await store.read_chain(response_id, owner))
            case "conversation":
                return await store.read_conversation(response_id, owner)
            case "turns":
                named = self._named(act.choice // 2)
                steps = {step.id for one in named for step in await store.read_chain(one, owner)}
                return await store.find_turns(sorted(named | steps), owner)
            case "list":
                return await self._list(store, act, owner)
            case "holder":
                return await store.find_key_holder(owner, KEYS[act.choice // 2].text)
            case "register":
                return await store.register_process()
            case "stop":
                return await store.stop_process()
        return await self._write(store, act)

    async def _write(self, store: Store, act: Act) -> object:
        """What a worker does to a row that may be its own: it knows its epoch, or that of before."""
        new = self.news.get(act.response) or _new(self._id(act.response), 0)
        row = (await self.lab.snapshot()).rows.get(new.response_id)
        epoch, last = (row.epoch, row.last_sequence) if row is not None else (1, None)
        number = -1 if last is None else last
        following = (segment(number + 1, number + 2),) if new.row.is_queued else ()
        match act.verb:
            case "finish":
                is_stale, ending = divmod(act.choice, len(ENDINGS))
                finished = make_finished(new, ENDINGS[ending], epoch=epoch - is_stale)
                return await store.finish_response(attrs.evolve(finished, segments=following or finished.segments))
            case "advance":
                call = tool_step(new, 2, "{}")
                ended, opened = ((ended_tool(call, "found"),), ()) if act.choice % 2 else ((), (call,))
                write = Progress(row=new.row, epoch=epoch - act.choice // 2, ended=ended, opened=opened)
                return await store.advance_response(write)
            case "append" if row is not None and not row.is_queued:
                return None  # a warm worker stores its events at the end
            case "append":
                kind, is_stale = act.choice % 3, act.choice // 3
                told = (segment(number + 1, number + 2), segment(number - 1, number), segment(number + 3, number + 4))
                return await store.append_events(new.response_id, epoch - is_stale, told[kind])
            case "requeue":
                bits = [bool(act.choice >> place & 1) for place in range(4)]
                handed = RequeuedResponse(
                    row=new.row, epoch=epoch - bits[0], delay_s=DELAY_S * bits[1], counts=bits[2],
                    ended=(ended_tool(tool_step(new, 2, "{}"), "found"),), segments=following if bits[3] else (),
                )  # fmt: skip
                return await store.requeue_response(handed)
        raise AssertionError(act)

    async def _enqueue(self, store: Store, act: Act) -> None:
        if self.began_at is None:
            self.began_at = await store.read_clock()
        keyed, choice = divmod(act.choice, 8)
        request = make_queued_request(store=choice < 6, model="ab"[choice % 2])
        new = make_new(
            request, owner=(OWNER, "red")[choice // 2 % 2], response_id=self._id(act.response),
            key=KEYS[keyed - 1] if keyed else None,
        )  # fmt: skip
        new = attrs.evolve(new, route=attrs.evolve(new.route, model=request.model))
        queued = make_queued(
            new, created_at=self.began_at, priority=choice % 3, deadline_s=DEADLINES_S[choice // 4]
        )  # fmt: skip
        await store.enqueue_response(queued)
        self.news.setdefault(act.response, new)  # enqueued again, it stays what it was

    def _go_on(self, new: NewResponse, place: int) -> NewResponse:
        """*new*, which goes on with what is at the place before its own, there or not."""
        previous = None if place == 0 else response_id_text(self._id(place - 1))
        return attrs.evolve(new, request=attrs.evolve(new.request, previous_response_id=previous))

    async def _list(self, store: Store, act: Act, owner: str) -> object:
        """What is listed, in an order that does not hang on which of two came a moment earlier."""
        choice = act.choice // 2
        after = self._id(act.response) if choice & 1 else None
        page = await store.list_responses(
            WantedPage(limit=RESPONSES, after=after, newest_first=bool(choice & 2)), owner
        )
        return page and sorted((str(one.response_id), one.state.value, one.body or b"") for one in page.responses)

    def _named(self, choice: int) -> set[UUID]:
        return {self._id(place) for place in range(RESPONSES) if choice >> place & 1}

    def _id(self, place: int) -> UUID:
        """Of what was opened there, or would be."""
        new = self.news.get(place)
        return UUID(int=2 * (place + RESPONSES * self.deleted + 1)) if new is None else new.response_id


def plain(claimed: Claimed | None) -> object:
    """A claim without what differs between two databases."""
    if not isinstance(claimed, ClaimedResponse):
        return claimed
    new = attrs.evolve(claimed.new, first_step_id=UUID(int=0))
    deadline_in_s = None if claimed.deadline_in_s is None else 0.0
    return attrs.evolve(claimed, new=new, created_at=0, age_s=0.0, deadline_in_s=deadline_in_s)


def _new(response_id: UUID, choice: int) -> NewResponse:
    keyed, choice = divmod(choice, 4)
    tier = (ServiceTier.AUTO, ServiceTier.PRIORITY)[choice % 2]
    request = make_request(f"hello {choice}", store=choice < 3, tier=tier)
    return make_new(request, response_id=response_id, key=KEYS[keyed - 1] if keyed else None)


def check_ending(snapshot: Snapshot) -> None:
    """I1 as far as one look can tell: a row waits, is under way with an owner, or has ended, once, and is metered."""
    for row in snapshot.rows.values():
        assert [row.state is RowState.PENDING, row.state in LEASED_STATES, row.state in TERMINAL_STATES].count(
            True
        ) == 1
        if row.is_queued:
            continue
        step = min(snapshot.steps_of(row.id), key=lambda step: step.sequence)
        assert (row.state in TERMINAL_STATES) == (step.state is not StepState.PROCESSING)
        assert (row.state in TERMINAL_STATES) == (step.id in snapshot.usage)
        written_by_worker = row.error is None or row.error.type is not ErrorType.STEP_ABANDONED
        ended_by_worker = row.state in TERMINAL_STATES and written_by_worker
        assert (row.id in snapshot.events) == (row.response is not None) == (ended_by_worker and row.store)


def check_events(snapshot: Snapshot) -> None:
    """I7: the stored events of a response are numbered from 0 without gap or repeat, and its row knows the last."""
    for row in snapshot.rows.values():
        log = snapshot.events.get(row.id)
        assert row.last_sequence == (log.last_sequence if log is not None else None)
        bounds = (
            [-1, *(number for kept in log.segments for number in (kept.first_sequence, kept.last_sequence))]
            if log
            else []
        )
        assert all(after == before + 1 for before, after in zip(bounds[::2], bounds[1::2], strict=False))


def check_keys(snapshot: Snapshot) -> None:
    """I6: of the rows with one key of one owner, one at most is live or ended with a response."""
    holding = [(row.owner, row.idempotency_key) for row in snapshot.rows.values() if row.holds_key]
    assert len(holding) == len(set(holding))


def check_moves(before: Snapshot, after: Snapshot) -> None:
    """I2: no column of a terminal row, its step, its events or its usage changes, and others only move by the table."""
    for row in before.rows.values():
        now = after.rows.get(row.id)
        assert now is not None or row.state in TERMINAL_STATES, "only a terminal row may be deleted"
        if row.state in TERMINAL_STATES and now is not None:
            assert now == row
            assert after.steps_of(row.id) == before.steps_of(row.id)
            assert after.events.get(row.id) == before.events.get(row.id)
        elif now is not None and now.state is not row.state:
            assert now.state in ROW_MOVES[row.state].values()
            assert now.epoch == row.epoch + (now.state is not RowState.PROCESSING)
    assert before.usage.items() <= after.usage.items()


async def compare(dsn: str, commands: Sequence[Command]) -> None:
    async with open_postgres_lab(dsn) as postgres:
        machines = [Machine(MemoryLab()), Machine(postgres)]
        snapshots = [await machine.lab.snapshot() for machine in machines]
        for command in commands:
            results = [await machine.run(command) for machine in machines]
            assert results[0] == results[1], command
            before, snapshots = snapshots, [await machine.lab.snapshot() for machine in machines]
            assert snapshots[0].without_moments() == snapshots[1].without_moments(), command
            for earlier, later in zip(before, snapshots, strict=True):
                check_moves(earlier, later)
                check_ending(later)
                check_keys(later)
                check_events(later)
        await check_nothing_is_stuck(machines)


async def check_nothing_is_stuck(machines: Sequence[Machine]) -> None:
    """I1 at last: after a lease and a sweep no response is under way; each has ended, or waits and can be claimed."""
    for machine in machines:
        await machine.lab.advance_clock(LIMITS.lease_s + 30)
        await machine.stores[0].rescue_expired()
        snapshot = await machine.lab.snapshot()
        check_ending(snapshot)
        waiting = {row.id for row in snapshot.rows.values() if row.state not in TERMINAL_STATES}
        assert {snapshot.rows[row_id].state for row_id in waiting} <= {RowState.PENDING}
        everything = ClaimDemand(rows=100, models={}, other_models=100, owner_rows=100)
        claimed = await machine.stores[0].claim_responses(everything)
        assert {id_of(one) for one in claimed} == waiting


def run_comparison(dsn: str, commands: Sequence[Command]) -> None:
    run: Callable[..., Any] = compare
    trio.run(run, dsn, commands)


@pytest.mark.slow
@given(commands=st.lists(COMMANDS, min_size=15, max_size=30))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_both_stores_do_the_same_whatever_happens(conformance_dsn, commands):
    run_comparison(conformance_dsn, commands)


@pytest.mark.long
@given(commands=st.lists(COMMANDS, min_size=15, max_size=80))
@settings(max_examples=1500, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_both_stores_do_the_same_whatever_happens_for_longer(conformance_dsn, commands):
    run_comparison(conformance_dsn, commands)
