"""500 responses wait, two workers take them: never more at the upstream than allowed, in the order specified."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise

import attrs
import pytest
import trio
from tests.acceptance.conftest import PROMISE_S, WAIT_S, open_world, wait_none_under_way, write_config
from tests.acceptance.fleet import Member, open_client, open_fleet, percentiles_ms

from dwctl_trio.domain.limits import DEFAULT_LIMITS
from dwctl_trio.postgres.keys import PostgresKeyStore
from dwctl_trio.postgres.pool import Pool

MODEL_LIMIT = 8
MODEL = "echo-2-after-40"
"""Takes the upstream 40 ms."""
OWNERS = {"many": 300, "ann": 50, "bob": 50, "cid": 50, "dot": 50}
TIERS: Mapping[str, Mapping[str, object]] = {
    "flex": {"service_tier": "flex", "background": True},
    "default": {"background": True},
    "priority": {"service_tier": "priority", "background": True},
}
PRIORITIES = {"priority": 0, "default": 1, "flex": 2}
SLACK = 50
"""Places by which an owner may end later than by strict turns: turns count what is under way, and some takes longer."""
FLEX_SHARE = 10
"""Of so many responses of an owner all but two are flex."""

WATCH_MOVES = """
    create table moves (
        number bigserial, transaction xid8 default pg_current_xact_id(), key text, state text
    );
    create function watch_moves() returns trigger language plpgsql as $$
    begin
        insert into moves (key, state) values (substring(new.request::text from 'key:([a-z.0-9]+)'), new.state);
        return null;
    end $$;
    create trigger watch_moves after update on requests
    for each row when (new.state is distinct from old.state) execute function watch_moves();
"""


@attrs.frozen
class Waiting:
    """One response, and what decides about its place."""

    key: str
    owner: str
    priority: int
    created: int
    """Its number among all."""


def wanted() -> list[tuple[Waiting, str]]:
    """All responses with their tiers, owners mixed, in the order in which they are asked for."""
    found = []
    for place in range(max(OWNERS.values())):
        tier = {FLEX_SHARE - 2: "default", FLEX_SHARE - 1: "priority"}.get(place % FLEX_SHARE, "flex")
        for owner in [owner for owner, count in OWNERS.items() if count > place]:
            found.append((Waiting(f"{owner}.{place}", owner, PRIORITIES[tier], len(found)), tier))
    return found


@attrs.define
class Replay:
    """The moves of all rows once more, each claim beside what the specification says of that moment."""

    waiting: list[Waiting]
    under_way: Counter[str] = attrs.Factory(Counter)
    claims: list[int] = attrs.Factory(list)
    """Rows of each claim."""
    beyond: list[int] = attrs.Factory(list)
    """For each claim, how many places beyond the most urgent ones its last row was."""

    _ended: deque[str] = attrs.Factory(lambda: deque(maxlen=MODEL_LIMIT))
    """Owners of what ended last, which a claim at the same moment may not have seen."""

    def order(self, unseen: Iterable[str]) -> list[Waiting]:
        """Those that wait, by tier; then by turn, what the owner has under way and its place in line; then by age."""
        places, held = Counter[str](), self.under_way + Counter(unseen)
        ranked = []
        for one in sorted(self.waiting, key=lambda one: (one.priority, one.created)):
            places[one.owner] += 1
            ranked.append((one.priority, held[one.owner] + places[one.owner], one.created, one))
        return [one for *_, one in sorted(ranked, key=lambda entry: entry[:3])]

    def claim(self, rows: Sequence[Waiting]) -> None:
        self.claims.append(len(rows))
        self.beyond.append(self._least_beyond(rows))
        for one in rows:
            self.waiting.remove(one)
            self.under_way[one.owner] += 1

    def end(self, rows: Sequence[Waiting]) -> None:
        owners = [one.owner for one in rows]
        self.under_way.subtract(owners)
        self._ended.extend(owners)

    def _least_beyond(self, rows: Sequence[Waiting]) -> int:
        least = len(self.waiting)
        for count in range(len(self._ended) + 1):
            for unseen in combinations(self._ended, count):
                order = self.order(unseen)
                least = min(least, max(map(order.index, rows)) + 1 - len(rows))
                if least == 0:
                    return 0
        return least


async def replay_claims(pool: Pool, asked: Sequence[Waiting]) -> Replay:
    """What the database wrote down of the moves."""
    by_key = {one.key: one for one in asked}
    replay = Replay(list(asked))
    rows = await pool.fetch("""
        select state, array_agg(key) as keys from moves group by transaction, state order by min(number)
    """)
    for row in rows:
        moved = [by_key[key] for key in row["keys"]]
        if row["state"] == "claimed":
            replay.claim(moved)
        elif row["state"] == "completed":
            replay.end(moved)
    return replay


@pytest.mark.slow
async def test_five_hundred_waiting_responses_leave_the_queue_in_order_and_never_too_many_at_once(
    postgres_dsn, tmp_path
):
    asked = wanted()
    limits = attrs.evolve(DEFAULT_LIMITS, queue_workers=0, calm_responses=1000)
    fields = {
        "models": [{"name": "*", "upstream": "simulator", "queue_concurrency": MODEL_LIMIT}],
        "auth": {"mode": "keys"},
    }
    async with open_world(postgres_dsn, tmp_path, limits, **fields) as (config, pool, simulator):
        working = tmp_path / "working.yaml"
        write_config(working, simulator.base_url, DEFAULT_LIMITS, database_url=postgres_dsn, **fields)
        arrivals: list[tuple[str, float]] = []
        simulator.observers.append(lambda received: arrivals.append((received.key or "", trio.current_time())))
        keys = {owner: await PostgresKeyStore(pool).create_key(owner) for owner in OWNERS}
        serving = Member("api", "serve", config)
        workers = [Member("worker-1", "worker", working), Member("worker-2", "worker", working)]
        async with open_fleet(serving) as front, open_client() as http:
            url = f"{front['api'].server.url}/v1/responses"
            for waiting, tier in asked:
                headers = {"authorization": f"Bearer {keys[waiting.owner]}"}
                body = {"model": MODEL, "input": f"key:{waiting.key}", **TIERS[tier]}
                answer = await http.post(url, json=body, headers=headers)
                assert answer.status_code == 200, answer.text
            assert await pool.fetchval("select count(*) from requests where state = 'pending'") == len(asked)
            assert arrivals == []
            await pool.execute(WATCH_MOVES)
            async with open_fleet(*workers):
                with trio.fail_after(PROMISE_S + WAIT_S):
                    await wait_none_under_way(pool)
                took_part = await pool.fetch("select count(*) from daemons where kind = 'worker'")
        states = dict(await pool.fetch("select state, count(*) from requests group by state"))
        counts = simulator.statistics()
        replay = await replay_claims(pool, [waiting for waiting, _ in asked])

    by_key = {waiting.key: waiting for waiting, _ in asked}
    arrived = [by_key[key] for key, _ in arrivals]
    seconds = arrivals[-1][1] - arrivals[0][1]
    last_of = {owner: max(index for index, one in enumerate(arrived) if one.owner == owner) for owner in OWNERS}
    gaps = [later[1] - earlier[1] for earlier, later in pairwise(arrivals)]
    print(f"{len(arrived)} responses in {seconds:.1f} s, at most {counts.open_max} at the upstream at once")
    exact = replay.beyond.count(0)
    print(f"{exact} of {len(replay.claims)} claims took the most urgent, the others {max(replay.beyond)} places beyond")
    print(f"last place of each owner: {last_of}; between two arrivals {percentiles_ms(gaps)}")
    assert states == {"completed": len(asked)}
    assert (counts.total, len(set(arrivals))) == (len(asked), len(asked))
    assert took_part[0][0] == len(workers)
    assert counts.open_max == MODEL_LIMIT
    assert max(replay.beyond) <= MODEL_LIMIT
    urgent = sum(waiting.priority < PRIORITIES["flex"] for waiting, _ in asked)
    fair = urgent + len(OWNERS) * (OWNERS["ann"] - OWNERS["ann"] * 2 // FLEX_SHARE)
    assert max(last_of[owner] for owner in OWNERS if owner != "many") < fair + SLACK, "nobody is starved"
