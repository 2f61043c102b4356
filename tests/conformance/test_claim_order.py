"""Who leaves the queue when: the rules one by one, and the fake against PostgreSQL whatever waits and is wanted."""

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conformance.conftest import CALL_S, Lab, MemoryLab, Snapshot, open_postgres_lab
from tests.conformance.queued import claim_all, enqueue, id_of, make_queued_request, requeued_of

from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.lifecycle import LEASED_STATES, RowState
from dwctl_trio.ports import ClaimedResponse
from dwctl_trio.testing.faulty_store import Store

MODELS, OWNERS = ("m0", "m1", "m2"), ("blue", "green", "red")
PASSES_S = 1000.0


@pytest.fixture
def store(lab: Lab) -> Store:
    return lab.open_process()


@attrs.define
class Queue:
    """A store whose rows have short names."""

    store: Store
    names: dict[UUID, str] = attrs.Factory(dict)

    async def add(self, name: str, *, model: str = "m", **fields: object) -> None:
        new = await enqueue(self.store, make_queued_request(model=model), **fields)
        self.names[new.response_id] = name

    async def claim(self, **bounds: object) -> str:
        return " ".join([self.names[id_of(claimed)] for claimed in await claim_all(self.store, **bounds)])


# -- the rules


async def test_the_most_urgent_come_first_whenever_they_came(store):
    queue = Queue(store)
    for name, priority in (("c", 2), ("b", 1), ("a", 0), ("d", 2)):
        await queue.add(name, priority=priority, deadline_s=ord(name))
    assert await queue.claim() == "a b c d"


async def test_of_equally_urgent_ones_the_earliest_deadline_comes_first(store):
    queue = Queue(store)
    for name in "cabd":
        await queue.add(name, deadline_s=10 * ord(name))
    assert [await queue.claim(rows=1) for _ in range(4)] == ["a", "b", "c", "d"]


async def test_owners_take_turns(store):
    queue = Queue(store)
    for number in range(4):
        await queue.add(f"blue{number}", owner="blue", deadline_s=1000 + number)
    for number in range(2):
        await queue.add(f"red{number}", owner="red", deadline_s=2000 + number)
    assert await queue.claim() == "blue0 red0 blue1 red1 blue2 blue3"


async def test_who_has_less_under_way_comes_first(store):
    queue = Queue(store)
    for number in range(3):
        await queue.add(f"blue{number}", owner="blue", deadline_s=1000 + number)
    assert await queue.claim(rows=2) == "blue0 blue1"
    for number in range(3):
        await queue.add(f"red{number}", owner="red", deadline_s=2000 + number)
    assert await queue.claim() == "red0 red1 blue2 red2"


async def test_an_urgent_row_of_a_busy_owner_comes_before_a_patient_one_of_an_idle_owner(store):
    queue = Queue(store)
    await queue.add("busy", owner="blue")
    await queue.claim()
    await queue.add("patient", owner="red", priority=2)
    await queue.add("urgent", owner="blue", priority=1)
    assert await queue.claim() == "urgent patient"


async def test_a_model_has_no_more_under_way_than_it_may(store):
    queue = Queue(store)
    for number in range(3):
        await queue.add(f"a{number}", model="a", deadline_s=1000 + number)
        await queue.add(f"b{number}", model="b", deadline_s=2000 + number)
    assert await queue.claim(models={"a": 1}, other=2) == "a0 b0 b1"
    assert await queue.claim(models={"a": 1}, other=2) == ""
    assert await queue.claim(models={"a": 2, "b": 2}, other=0) == "a1"


async def test_an_owner_has_no_more_under_way_than_he_may_over_all_models(store):
    queue = Queue(store)
    for number in range(3):
        await queue.add(f"a{number}", model="a", deadline_s=1000 + number)
        await queue.add(f"b{number}", model="b", deadline_s=2000 + number)
    await queue.add("red", owner="red", deadline_s=9000)
    assert await queue.claim(owner_rows=2) == "a0 red a1"
    assert await queue.claim(owner_rows=2) == ""


async def test_what_this_process_cannot_serve_stays_where_it_is(store):
    queue = Queue(store)
    await queue.add("known", model="a")
    await queue.add("unknown", model="b")
    assert await queue.claim(models={"a": 5}, other=0) == "known"
    assert await queue.claim(models={"a": 5}, other=0) == ""
    assert await queue.claim(models={"a": 5}, other=1) == "unknown"


async def test_a_full_model_at_the_front_keeps_nobody_behind_it_waiting(store):
    queue = Queue(store)
    for number in range(5):
        await queue.add(f"full{number}", model="full", priority=0)
    await queue.claim(models={"full": 2})
    await queue.add("other", priority=2)
    assert await queue.claim(models={"full": 2}) == "other"


async def test_what_is_past_its_deadline_comes_first_whatever_the_capacities(lab, store):
    queue = Queue(store)
    await queue.add("running", deadline_s=5000)
    await queue.claim()
    await queue.add("late", priority=2, deadline_s=200)
    await queue.add("later", priority=2, deadline_s=100)
    await queue.add("waits", priority=0, deadline_s=5000)
    await lab.advance_clock(1000)
    assert await queue.claim(models={}, other=0, owner_rows=1) == "later late"
    assert await queue.claim(other=4, owner_rows=4) == "waits"


async def test_a_row_that_was_put_off_is_claimed_when_its_time_has_come(lab, store):
    queue = Queue(store)
    await queue.add("put off", priority=0)
    await queue.add("other", priority=2)
    (claimed, other) = await claim_all(store)
    await store.requeue_response(requeued_of(claimed, delay_s=500.0))
    await store.requeue_response(requeued_of(other))
    assert await queue.claim() == "other"
    await lab.advance_clock(501)
    assert await queue.claim() == "put off"


async def test_a_row_that_is_put_off_beyond_its_deadline_is_ended_at_its_deadline(lab, store):
    queue = Queue(store)
    await queue.add("row", deadline_s=1000)
    (claimed,) = await claim_all(store)
    await store.requeue_response(requeued_of(claimed, delay_s=5000.0))
    assert await queue.claim() == ""
    await lab.advance_clock(1001)
    assert await queue.claim() == "row"


# -- both stores


@attrs.frozen(kw_only=True)
class Row:
    """A row that waits, or is under way, or is put off."""

    owner: str
    model: str
    priority: int
    deadline_s: float
    """0: one that passes, of its own: of several that passed at the same moment any may come first."""
    fate: str


ROWS = st.builds(
    Row,
    owner=st.sampled_from(OWNERS),
    model=st.sampled_from(MODELS),
    priority=st.integers(0, 2),
    deadline_s=st.sampled_from([0.0, 3000.0, 3000.0, 4000.0, 5000.0]),
    fate=st.sampled_from(["waits", "waits", "waits", "runs", "put off", "due again"]),
)
DEMANDS = st.builds(
    ClaimDemand,
    rows=st.integers(1, 8),
    models=st.dictionaries(st.sampled_from(MODELS), st.integers(0, 4)),
    other_models=st.integers(0, 4),
    owner_rows=st.integers(1, 6),
)


async def fill(lab: Lab, rows: Sequence[Row]) -> Store:
    """Rows with ids 1, 2, ..., each with its fate; all moments far from the bounds of the others."""
    store = lab.open_process()
    created_at = await store.read_clock()
    for number, row in sorted(enumerate(rows, start=1), key=lambda entry: entry[1].fate == "waits"):
        asked = make_queued_request(model=row.model)
        await enqueue(
            store, asked, owner=row.owner, response_id=UUID(int=number), created_at=created_at, priority=row.priority,
            deadline_s=row.deadline_s or PASSES_S / 2 + number,
        )  # fmt: skip
        if row.fate != "waits":
            (claimed,) = await claim_all(store)
            assert isinstance(claimed, ClaimedResponse)
            if row.fate != "runs":
                delay_s = PASSES_S * (0.5 if row.fate == "due again" else 1.5)
                await store.requeue_response(requeued_of(claimed, delay_s=delay_s))
    await lab.advance_clock(PASSES_S)
    return store


def under_way(snapshot: Snapshot) -> tuple[Counter[str], Counter[str]]:
    """How many rows of each model and of each owner are at work."""
    rows = [row for row in snapshot.rows.values() if row.state in LEASED_STATES]
    return Counter(row.model for row in rows), Counter(row.owner for row in rows)


def claimable(snapshot: Snapshot, wanted: ClaimDemand, now: float) -> set[UUID]:
    """Rows that *wanted* could have, each by itself."""
    models, owners = under_way(snapshot)
    return {
        row.id
        for row in snapshot.rows.values()
        if row.state is RowState.PENDING and row.deadline is not None
        and (
            row.deadline <= now
            or (
                (row.not_before is None or row.not_before <= now)
                and models[row.model] < wanted.models.get(row.model, wanted.other_models)
                and owners[row.owner] < wanted.owner_rows
            )
        )
    }  # fmt: skip


async def check_claim(lab: Lab, store: Store, wanted: ClaimDemand) -> list[UUID]:
    before, now = await lab.snapshot(), await lab.now()
    free = claimable(before, wanted, now)
    claimed = [id_of(one) for one in await store.claim_responses(wanted)]
    after = await lab.snapshot()
    assert set(claimed) <= free
    assert (claimed != []) == (free != set()), "somebody is claimed if anybody can be"
    assert len(set(claimed)) == len(claimed) <= wanted.rows
    models, owners = under_way(after)
    for row in [after.rows[row_id] for row_id in claimed]:
        if row.deadline is not None and row.deadline > now:
            late = sum(1 for row_id in claimed if (after.rows[row_id].deadline or 0) <= now)
            assert models[row.model] <= wanted.models.get(row.model, wanted.other_models) + late
            assert owners[row.owner] <= wanted.owner_rows + late
    return claimed


async def compare(dsn: str, rows: Sequence[Row], demands: Sequence[ClaimDemand]) -> None:
    with trio.fail_after(6 * CALL_S):
        async with open_postgres_lab(dsn) as postgres:
            labs: list[Lab] = [MemoryLab(), postgres]
            stores = [await fill(lab, rows) for lab in labs]
            for wanted in demands:
                claims = [await check_claim(lab, store, wanted) for lab, store in zip(labs, stores, strict=True)]
                assert claims[0] == claims[1], wanted


@pytest.mark.slow
@given(rows=st.lists(ROWS, min_size=1, max_size=14), demands=st.lists(DEMANDS, min_size=1, max_size=4))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_both_stores_claim_the_same_rows_in_the_same_order(conformance_dsn, rows, demands):
    trio.run(compare, conformance_dsn, rows, demands)


@pytest.mark.long
@given(rows=st.lists(ROWS, min_size=1, max_size=40), demands=st.lists(DEMANDS, min_size=1, max_size=8))
@settings(max_examples=2000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_both_stores_claim_the_same_rows_in_the_same_order_for_longer(conformance_dsn, rows, demands):
    trio.run(compare, conformance_dsn, rows, demands)
