"""Following a response from another process than the one that works on it: the same bytes, from wherever one begins."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import httpx
import pytest
import trio
from tests.acceptance.conftest import PROMISE_S, QUICK, open_world, write_config
from tests.acceptance.fleet import Fleet, Follower, Member, open_client, open_fleet, percentiles_ms, replay

from dwctl_trio.testing.simulator import Simulator

EVENTS = 60
WORDS = EVENTS - 9
"""Created, queued, in progress; an item and its part that begin, and end three times; completed."""
MODEL = f"slow-{WORDS}-30"
VISIBLE_S = 0.3
"""At most, from the first client's being told to a follower's in another process."""
RUNS = 5


@asynccontextmanager
async def two_servers(dsn, tmp_path) -> AsyncIterator[tuple[Fleet, httpx.AsyncClient, Simulator]]:
    """One that works on responses, and one that only serves."""
    async with open_world(dsn, tmp_path, QUICK) as (config, _, simulator):
        limits = attrs.evolve(QUICK, queue_workers=0)
        idle = write_config(tmp_path / "idle.yaml", simulator.base_url, limits, database_url=dsn)
        members = Member("working", "serve", config), Member("serving", "serve", idle)
        async with open_fleet(*members) as fleet, open_client() as http:
            yield fleet, http, simulator


async def stream_background(fleet: Fleet, http: httpx.AsyncClient, first: Follower) -> None:
    """Ask the process that works for a response, and read its stream to the end."""
    body = {"model": MODEL, "input": "hello", "background": True, "stream": True}
    async with http.stream("POST", f"{fleet['working'].server.url}/v1/responses", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        await first.read(answer)


async def follow_beside(fleet: Fleet, http: httpx.AsyncClient, cuts: Sequence[int]) -> tuple[Follower, list[Follower]]:
    """One response as its first client sees it, and as followers in the other process do.

    Each follower joins as soon as the first client has the event at its cut.
    """
    first, followers = Follower(), [Follower(after=cut) for cut in cuts]
    url = fleet["serving"].server.url
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream_background, fleet, http, first)
        for follower in followers:
            await first.wait_for(max(0, follower.after))
            follower.response_id = first.response_id
            nursery.start_soon(follower.connect, http, url)
    return first, followers


def expected(first: Follower, cut: int) -> bytes:
    return b"".join(frame.text for frame in first.frames if frame.number > cut)


@pytest.mark.slow
async def test_from_every_cut_point_the_other_process_tells_the_same_live_and_afterwards(postgres_dsn, tmp_path):
    cuts = list(range(-1, EVENTS))
    async with two_servers(postgres_dsn, tmp_path) as (fleet, http, _):
        with trio.fail_after(PROMISE_S):
            first, live = await follow_beside(fleet, http, cuts)
            after = {
                (name, cut): await replay(http, fleet[name].server.url, first.response_id, after=cut)
                for name in ("working", "serving")
                for cut in cuts
            }
    assert [frame.number for frame in first.frames] == list(range(EVENTS))
    assert [follower.told == expected(first, follower.after) for follower in live] == [True] * len(cuts)
    early = [follower for follower in live if follower.frames and follower.frames[0].at < first.frames[-1].at]
    assert len(early) > EVENTS / 4, "they followed while it ran"
    assert {place for place, follower in after.items() if follower.told != expected(first, place[1])} == set()
    print(f"{len(cuts)} cut points, {len(early)} of them joined while it ran: equal live, later from both processes")


async def note_tokens(simulator: Simulator, said_at: list[float]) -> None:
    """Write down when the upstream has said each of the next words."""
    before = simulator.statistics().tokens_sent
    for number in range(WORDS):
        await simulator.wait_until(lambda counts, least=before + number: counts.tokens_sent > least)
        said_at.append(trio.current_time())


@pytest.mark.slow
async def test_what_one_client_sees_a_follower_in_another_process_sees_soon(postgres_dsn, tmp_path):
    delays, ages = [], []
    async with two_servers(postgres_dsn, tmp_path) as (fleet, http, simulator):
        with trio.fail_after(PROMISE_S):
            for _ in range(RUNS):
                said_at: list[float] = []
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(note_tokens, simulator, said_at)
                    first, (follower,) = await follow_beside(fleet, http, [-1])
                assert follower.told == first.told
                joined_at = follower.frames[0].at
                pairs = zip(first.frames, follower.frames, strict=True)
                delays += [theirs.at - ours.at for ours, theirs in pairs if ours.at > joined_at]
                words = [frame for frame in follower.frames if b"output_text.delta" in frame.text]
                ages += [word.at - at for word, at in zip(words, said_at, strict=True)]
    print(f"a follower in another process, behind the first client ({len(delays)} events): {percentiles_ms(delays)}")
    print(f"the same, behind the upstream: {percentiles_ms(ages)}")
    assert len(delays) > RUNS * WORDS / 2
    assert sorted(delays)[int(0.99 * len(delays))] <= VISIBLE_S
