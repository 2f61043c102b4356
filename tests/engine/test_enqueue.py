"""A response of whose enqueueing nobody has heard the end: it is asked for once more, and there is one row."""

from collections.abc import Callable
from uuid import UUID, uuid4

import attrs
import pytest

from dwctl_trio.domain.errors import IdempotencyKeyHeld, StoreUnavailable
from dwctl_trio.domain.idempotency import IdempotencyKey
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.engine.enqueue import enqueue, enqueue_chat
from dwctl_trio.engine.state import Services
from dwctl_trio.ports import NewChat
from dwctl_trio.protocol.chat_body import parse_chat
from dwctl_trio.testing.faulty_store import Fault, FaultyStore, StoreCall
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_store import MemoryStore
from dwctl_trio.testing.request_bench import make_new, open_request_bench

KEY = IdempotencyKey(text="k", body_digest=bytes(32))
WAYS = pytest.mark.parametrize("surface", ["responses", "chat"])


def failing(*faults: Fault | None) -> Callable[[StoreCall], Fault | None]:
    """What goes wrong with the next insertions."""
    planned = iter(faults)
    return lambda call: next(planned, None) if call.method == "enqueue_response" else None


async def put(services: Services, surface: str, key: IdempotencyKey | None) -> UUID:
    """A new row, with *key*."""
    if surface == "responses":
        new = attrs.evolve(make_new("echo-1", stream=True, background=True), idempotency=key)
        shown = await enqueue(services, new)
        assert shown.id == new.response_id
        return new.response_id
    request = parse_chat({"model": "echo-1", "messages": [{"role": "user"}], "service_tier": "flex"})
    route = ModelRoute(model="echo-1", upstream="simulator", upstream_model="echo-1")
    chat = NewChat(response_id=uuid4(), owner="alice", key_prefix=None, request=request, route=route, idempotency=key)
    await enqueue_chat(services, chat)
    return chat.response_id


@WAYS
@pytest.mark.parametrize("fault", [Fault.FAIL_BEFORE, Fault.FAIL_AFTER])
@pytest.mark.parametrize("key", [None, KEY], ids=["no key", "key"])
async def test_a_lost_answer_makes_neither_a_failure_nor_two_rows(surface, fault, key):
    database = MemoryDatabase()
    store = FaultyStore(MemoryStore(database, daemon_id=uuid4()), failing(fault))
    async with open_request_bench(store) as bench:
        response_id = await put(bench.services, surface, key)
    (row,) = database.rows.values()
    assert (row.id, row.state) == (response_id, RowState.PENDING)
    assert [call.method for call in store.calls].count("enqueue_response") == 2


@WAYS
async def test_without_the_database_it_is_tried_twice_and_no_more(surface):
    store = FaultyStore(MemoryStore(MemoryDatabase(), daemon_id=uuid4()), lambda call: FAULTS.get(call.method))
    async with open_request_bench(store) as bench:
        with pytest.raises(StoreUnavailable):
            await put(bench.services, surface, None)
    assert [call.method for call in store.calls].count("enqueue_response") == 2


FAULTS = {"enqueue_response": Fault.FAIL_BEFORE}


@WAYS
async def test_the_second_try_does_not_take_anothers_row_for_its_own(surface):
    database = MemoryDatabase()
    store = FaultyStore(MemoryStore(database, daemon_id=uuid4()))
    async with open_request_bench(store) as bench:
        first = await put(bench.services, surface, KEY)
        store.plan = failing(Fault.FAIL_BEFORE)
        with pytest.raises(IdempotencyKeyHeld):
            await put(bench.services, surface, KEY)
    assert set(database.rows) == {first}
