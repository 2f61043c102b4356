"""Events of responses at work, stored piece by piece and read by whoever follows: the same of both stores."""

import attrs
import pytest
from tests.conformance.conftest import LIMITS, Lab
from tests.conformance.queued import (
    OPENING,
    claim_one,
    enqueue,
    make_queued_request,
    progress_of,
    requeued_of,
    segment,
)
from tests.conformance.responses import FAILED, FRAMES, OWNER, make_finished, make_new, make_request, model_step

from dwctl_trio.domain.errors import LeaseLost
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.ports import ClaimedResponse, EventPage
from dwctl_trio.testing.faulty_store import Store


@pytest.fixture
def store(lab: Lab) -> Store:
    return lab.open_process(attrs.evolve(LIMITS, follow_segments=3))


async def begin(store: Store) -> ClaimedResponse:
    """A response that is claimed and at work."""
    await enqueue(store)
    claimed = await claim_one(store)
    await store.advance_response(progress_of(claimed, opened=(model_step(claimed.new, 1),)))
    return claimed


async def page(store: Store, claimed: ClaimedResponse, after: int) -> EventPage:
    found = await store.read_events(claimed.new.response_id, OWNER, after)
    assert found is not None
    return found


# -- storing


async def test_events_follow_one_another(lab, store):
    claimed = await begin(store)
    for first, last in ((2, 2), (3, 7), (8, 9)):
        await store.append_events(claimed.new.response_id, claimed.epoch, segment(first, last))
    snapshot = await lab.snapshot()
    assert [kept.last_sequence for kept in snapshot.events[claimed.new.response_id].segments] == [1, 2, 7, 9]
    assert snapshot.rows[claimed.new.response_id].last_sequence == 9


async def test_events_are_stored_before_the_first_step_too(lab, store):
    await enqueue(store)
    claimed = await claim_one(store)
    await store.append_events(claimed.new.response_id, claimed.epoch, segment(2, 2))
    row = (await lab.snapshot()).rows[claimed.new.response_id]
    assert (row.state, row.last_sequence) == (RowState.CLAIMED, 2)


async def test_a_segment_whose_answer_was_lost_may_be_sent_again(lab, store):
    claimed = await begin(store)
    await store.append_events(claimed.new.response_id, claimed.epoch, segment(2, 5))
    before = await lab.snapshot()
    await store.append_events(claimed.new.response_id, claimed.epoch, segment(2, 5))
    assert await lab.snapshot() == before


@pytest.mark.parametrize(("first", "last"), [(3, 4), (1, 2), (0, 0), (7, 9)])
async def test_a_gap_and_an_overlap_are_refused(lab, store, first, last):
    claimed = await begin(store)
    before = await lab.snapshot()
    with pytest.raises(LeaseLost):
        await store.append_events(claimed.new.response_id, claimed.epoch, segment(first, last))
    assert await lab.snapshot() == before


async def test_who_does_not_own_the_row_stores_nothing(lab, store):
    claimed = await begin(store)
    other, before = lab.open_process(), await lab.snapshot()
    with pytest.raises(LeaseLost):
        await other.append_events(claimed.new.response_id, claimed.epoch, segment(2, 2))
    for epoch in (0, 2):
        with pytest.raises(LeaseLost):
            await store.append_events(claimed.new.response_id, epoch, segment(2, 2))
    with pytest.raises(LeaseLost):
        await store.append_events(make_new().response_id, claimed.epoch, segment(2, 2))
    assert await lab.snapshot() == before


async def test_a_response_that_waits_gets_no_events(lab, store):
    claimed = await begin(store)
    await store.requeue_response(requeued_of(claimed))
    before = await lab.snapshot()
    for epoch in (claimed.epoch, claimed.epoch + 1):
        with pytest.raises(LeaseLost):
            await store.append_events(claimed.new.response_id, epoch, segment(2, 2))
    assert await lab.snapshot() == before


async def test_storing_events_does_not_extend_the_lease(lab, store):
    claimed = await begin(store)
    before = (await lab.snapshot()).rows[claimed.new.response_id]
    await lab.advance_clock(100)
    await store.append_events(claimed.new.response_id, claimed.epoch, segment(2, 2))
    after = (await lab.snapshot()).rows[claimed.new.response_id]
    assert after == attrs.evolve(before, last_sequence=2)


# -- reading


SEGMENTS = (OPENING, segment(2, 2), segment(3, 7), segment(8, 9), segment(10, 14))


@pytest.mark.parametrize("after", range(-1, 17))
async def test_a_page_begins_with_the_segment_that_holds_the_next_event(store, after):
    claimed = await begin(store)
    for kept in SEGMENTS[1:]:
        await store.append_events(claimed.new.response_id, claimed.epoch, kept)
    found = await page(store, claimed, after)
    assert found.segments == tuple(kept for kept in SEGMENTS if kept.last_sequence > after)[:3]
    assert found.last_sequence == 14


async def test_following_page_by_page_gives_every_event_once(store):
    claimed = await begin(store)
    for kept in SEGMENTS[1:]:
        await store.append_events(claimed.new.response_id, claimed.epoch, kept)
    followed, after = [], -1
    while segments := (await page(store, claimed, after)).segments:
        followed += segments
        after = segments[-1].last_sequence
    assert tuple(followed) == SEGMENTS


async def test_a_page_says_how_the_response_stands(store):
    new = await enqueue(store)
    waiting = await store.read_events(new.response_id, OWNER, 1)
    assert waiting == EventPage(
        state=RowState.PENDING, is_queued=True, is_stored=True, response_status=None, error=None, last_sequence=1,
        segments=(),
    )  # fmt: skip
    claimed = await claim_one(store)
    assert (await page(store, claimed, 1)).state is RowState.CLAIMED
    finished = attrs.evolve(make_finished(claimed.new, FAILED), segments=(segment(2, 4),))
    await store.finish_response(finished)
    ended = await page(store, claimed, 1)
    assert (ended.state, ended.response_status, ended.error) == (RowState.FAILED, 502, FAILED.error)
    assert (ended.segments, ended.last_sequence) == ((segment(2, 4),), 4)


async def test_the_events_of_a_warm_response_are_there_when_it_has_ended(store):
    new = make_new()
    await store.open_response(new)
    running = await store.read_events(new.response_id, OWNER, -1)
    assert running is not None
    assert (running.is_queued, running.segments, running.last_sequence) == (False, (), None)
    await store.finish_response(make_finished(new))
    ended = await store.read_events(new.response_id, OWNER, 3)
    assert ended is not None
    assert [kept.frames for kept in ended.segments] == [FRAMES]
    assert ended.last_sequence == 9


async def test_who_asked_for_a_response_that_is_not_stored_can_follow_it(store):
    new = await enqueue(store, make_queued_request(store=False))
    found = await store.read_events(new.response_id, OWNER, -1)
    assert found is not None
    assert (found.is_stored, found.segments) == (False, (OPENING,))
    warm = make_new(make_request(store=False))
    await store.open_response(warm)
    found = await store.read_events(warm.response_id, OWNER, -1)
    assert found is not None
    assert (found.is_stored, found.segments, found.last_sequence) == (False, (), None)


async def test_nobody_else_reads_them(store):
    new = await enqueue(store)
    assert await store.read_events(new.response_id, "red", -1) is None
    assert await store.read_events(make_new().response_id, OWNER, -1) is None
