"""Idempotency keys in a store: who holds one, what the holder was told, and when it is free again (I6)."""

import attrs
import pytest
import trio
from tests.conformance.conftest import CALL_S, LIMITS, Lab
from tests.conformance.responses import ENDINGS, FRAMES, OWNER, make_finished, make_key, make_new, make_request

from dwctl_trio.domain.errors import IdempotencyKeyHeld
from dwctl_trio.domain.idempotency import KeyHolder
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.ports import FinishedResponse, NewResponse
from dwctl_trio.testing.faulty_store import Store

BLOCKING = attrs.evolve(make_request(), stream=False)
RACERS = 20


@pytest.fixture
async def store(lab: Lab) -> Store:
    opened = lab.open_process()
    await opened.register_process()
    return opened


def keyed(request: ResponseRequest | None = None, *, text: str = "k", owner: str = OWNER):
    return make_new(request, owner=owner, key=make_key(text))


def ended_with(new: NewResponse, status: int) -> FinishedResponse:
    """The terminal write of a row, as an error or not."""
    ending = ENDINGS[0] if status < 400 else ENDINGS[3] if status == 499 else ENDINGS[2]
    return attrs.evolve(make_finished(new, ending), response_status=status)


async def is_held(store: Store, **fields: str) -> bool:
    """Whether a new row with the key is refused; one that is not stays open."""
    try:
        await store.open_response(keyed(**fields))
    except IdempotencyKeyHeld:
        return True
    return False


async def test_a_key_that_nobody_has_used_is_free(store: Store) -> None:
    await store.open_response(make_new())

    assert await store.find_key_holder(OWNER, "k") is None


async def test_a_live_row_holds_its_key(store: Store) -> None:
    first = keyed()
    await store.open_response(first)

    assert await is_held(store)
    assert await store.find_key_holder(OWNER, "k") == KeyHolder(
        response_id=first.response_id,
        state=RowState.PROCESSING,
        is_stored=True,
        body_digest=make_key().body_digest,
        told=None,
    )


async def test_who_meets_a_held_key_writes_nothing(lab: Lab, store: Store) -> None:
    await store.open_response(keyed())
    before = await lab.snapshot()

    assert await is_held(store)

    assert await lab.snapshot() == before


async def test_a_key_is_its_owners_alone_and_one_of_many(store: Store) -> None:
    await store.open_response(keyed())

    assert not await is_held(store, owner="red")
    assert not await is_held(store, text="K")
    assert await store.find_key_holder("green", "k") is None


@pytest.mark.parametrize(("request_", "told"), [(make_request(), FRAMES), (BLOCKING, None)], ids=["stream", "blocking"])
async def test_a_row_that_ended_with_a_response_holds_its_key_and_what_was_told(store: Store, request_, told) -> None:
    new = keyed(request_)
    await store.open_response(new)
    await store.finish_response(ended_with(new, 200))
    stored = await store.read_response(new.response_id, OWNER)
    assert stored is not None

    holder = await store.find_key_holder(OWNER, "k")

    assert await is_held(store)
    assert holder is not None
    assert (holder.response_id, holder.state) == (new.response_id, RowState.COMPLETED)
    assert holder.told == (told or stored.body)
    assert holder.told is not None


@pytest.mark.parametrize("status", [400, 429, 499, 503])
async def test_a_row_that_ended_with_an_http_error_releases_its_key(store: Store, status: int) -> None:
    new = keyed()
    await store.open_response(new)
    await store.finish_response(ended_with(new, status))

    assert await store.find_key_holder(OWNER, "k") is None
    assert not await is_held(store)
    assert await is_held(store), "by the second row now"


async def test_a_rescued_row_releases_its_key(lab: Lab, store: Store) -> None:
    await store.open_response(keyed())
    await lab.advance_clock(LIMITS.lease_s + 1)
    assert await is_held(store), "as long as nobody has ended it"

    await store.rescue_expired()

    assert not await is_held(store)


async def test_a_deleted_row_releases_its_key(store: Store) -> None:
    new = keyed()
    await store.open_response(new)
    await store.finish_response(ended_with(new, 200))

    await store.delete_response(new.response_id, OWNER)

    assert not await is_held(store)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "blocking"])
async def test_a_row_that_keeps_nothing_holds_its_key_and_has_nothing_to_tell(store: Store, stream: bool) -> None:
    new = keyed(attrs.evolve(make_request(store=False), stream=stream))
    await store.open_response(new)
    await store.finish_response(ended_with(new, 200))

    holder = await store.find_key_holder(OWNER, "k")

    assert holder is not None
    assert (holder.is_stored, holder.told) == (False, None)


async def test_a_stream_too_long_to_keep_leaves_nothing_to_tell(store: Store) -> None:
    new = keyed()
    await store.open_response(new)
    await store.finish_response(attrs.evolve(ended_with(new, 200), segments=()))

    holder = await store.find_key_holder(OWNER, "k")

    assert holder is not None
    assert (holder.is_stored, holder.told) == (True, None)


async def test_of_many_that_race_for_a_key_one_opens_a_row(lab: Lab, store: Store) -> None:
    held = []

    async def race() -> None:
        held.append(await is_held(store))

    with trio.fail_after(3 * CALL_S):
        async with trio.open_nursery() as nursery:
            for _ in range(RACERS):
                nursery.start_soon(race)

    assert sorted(held) == [False] + [True] * (RACERS - 1)
    assert len((await lab.snapshot()).rows) == 1
