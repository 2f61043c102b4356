"""What a long conversation costs: one statement to read it, and of the database what was said and no more."""

import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import attrs
import pytest
import trio
from tests.conformance.responses import make_finished
from tests.postgres.test_round_trips import FINISH, OPEN, WAIT_S, Bench, bench

from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.engine.conversations import put_together, read_history
from dwctl_trio.engine.scope import run_inline_blocking
from dwctl_trio.ports import NewResponse
from dwctl_trio.postgres.queries import load_query

__all__ = ["bench"]

READ = load_query("read_conversation").text
TURNS = 200
MARKS = (50, 100, 200)
STORED_BYTES = """
select
    (select sum(pg_column_size(r.*)) from requests as r)
    + (select sum(pg_column_size(s.*)) from response_steps as s)
    + (select sum(pg_column_size(e.*)) from response_events as e)
"""
KEYS = ("requests_pkey", "response_steps_sequence", "response_steps_pkey")
EXPLAIN = "explain (analyze, costs off, timing off, summary off) "


def scanned(plan: list[str]) -> Iterator[str]:
    """The nodes of *plan* that read a table of responses otherwise than by a key."""
    for line in plan:
        is_read = " on requests" in line or " on response_steps" in line
        if is_read and not any(key in line for key in KEYS):
            yield line


def turn_after(bench: Bench, turn: int, before: NewResponse | None) -> NewResponse:
    """A turn of a conversation."""
    fields: dict[str, Any] = {} if before is None else {"previous_response_id": response_id_text(before.response_id)}
    return bench.new("echo-2", input=f"turn {turn:04}", **fields)


async def put(bench: Bench, turn: int, before: NewResponse | None) -> NewResponse:
    """A turn as it is stored, without any work."""
    new = turn_after(bench, turn, before)
    await bench.services.store.open_response(new)
    await bench.services.store.finish_response(make_finished(new))
    return new


async def say(bench: Bench, turn: int, before: NewResponse | None) -> NewResponse:
    """A turn that is worked on."""
    new = await put_together(bench.services, turn_after(bench, turn, before))
    async with trio.open_nursery() as nursery:
        await run_inline_blocking(bench.services, new, nursery)
    return new


@pytest.mark.slow
async def test_a_conversation_of_200_turns_is_read_by_one_statement_and_stored_once(bench: Bench) -> None:
    last, stored, read_ms = None, [], []
    with trio.fail_after(WAIT_S):
        for turn in range(1, TURNS + 1):
            if turn not in MARKS:
                last = await put(bench, turn, last)
                continue
            before = last
            bench.counting.statements.clear()
            last = await say(bench, turn, before)
            assert bench.counting.statements == [READ, OPEN, FINISH]
            began_at = time.perf_counter()
            await read_history(bench.services, last.request, last.owner)
            read_ms.append((time.perf_counter() - began_at) * 1000)
            stored.append(await bench.pool.fetchval(STORED_BYTES))

    per_turn = [total / turns for total, turns in zip(stored, MARKS, strict=True)]
    assert last is not None
    assert len(last.history) == 2 * (TURNS - 1)
    messages = bench.simulator.requests[-1].body["messages"]
    assert [one["content"] for one in messages[::2]] == [f"turn {turn:04}" for turn in range(1, TURNS + 1)]
    print(
        f"conversation of {TURNS} turns: 1 statement for its history, 3 for the response; "
        + ", ".join(f"{total / 1024:.0f} KiB after {turns} turns" for total, turns in zip(stored, MARKS, strict=True))
        + f"; {', '.join(f'{count:.0f}' for count in per_turn)} bytes a turn; "
        + f"read in {', '.join(f'{one:.1f}' for one in read_ms)} ms"
    )
    assert max(per_turn) < 1.05 * min(per_turn)


@attrs.define(eq=False)
class _Steps(trio.abc.Instrument):
    """How often one task had its turn."""

    task: trio.lowlevel.Task
    count: int = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self.task


@pytest.mark.slow
async def test_others_have_their_turn_after_each_response_that_is_decoded(bench: Bench) -> None:
    last = None
    for turn in range(1, 31):
        last = await put(bench, turn, last)
    assert last is not None
    steps = _Steps(trio.lowlevel.current_task())
    counted = []
    for response_id in (last.response_id, UUID(int=0)):
        before = steps.count
        trio.lowlevel.add_instrument(steps)
        await bench.services.conversations.read_conversation(response_id, last.owner)
        trio.lowlevel.remove_instrument(steps)
        counted.append(steps.count - before)
    print(f"30 responses were read in {counted[0]} turns, none in {counted[1]}")
    assert counted[0] >= counted[1] + 30


@pytest.mark.slow
async def test_a_conversation_is_read_by_key_in_a_large_table(bench: Bench) -> None:
    last = await put(bench, 2, await put(bench, 1, None))
    await bench.pool.execute(
        "insert into requests (id, owner, surface, model, upstream, upstream_model, service_tier, state, request,"
        " response_status, created_at, started_at, finished_at)"
        " select gen_random_uuid(), 'blue', 'responses', 'm', 'u', 'm', 'auto', 'completed', '{\"input\": \"x\"}', 200,"
        " now(), now(), now() from generate_series(1, 3000)"
    )
    await bench.pool.execute(
        "insert into response_steps (id, response_id, sequence, kind, state, result, started_at, finished_at)"
        " select gen_random_uuid(), id, 1, 'model_call', 'completed', '{}', now(), now() from requests"
        " where model = 'm'"
    )
    await bench.pool.execute("analyze requests, response_steps")
    plans = {}
    async with bench.pool.connection() as connection:
        await connection.execute("set plan_cache_mode = force_generic_plan")
        for name, arguments in {
            "read_conversation": f"'{last.response_id}', 'blue', 1000, 1000000",
            "find_turns": f"array['{last.response_id}', '{last.first_step_id}']::uuid[], 'blue', 1000000",
        }.items():
            await connection.execute(f"prepare {name} as {load_query(name).text}")
            order = load_query(name).parameters
            plans[name] = (order, [row[0] for row in await connection.fetch(f"{EXPLAIN}execute {name}({arguments})")])
    for name, (order, plan) in plans.items():
        assert list(scanned(plan)) == [], (name, order, plan)
