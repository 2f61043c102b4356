"""Wrong stores, each with one fault, for the machine to find: the real statements and the fake, changed a little.

Rule: a fault is one that somebody could make; a statement that PostgreSQL refuses at once is none.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

import attrs

from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.lifecycle import TERMINAL_STATES
from dwctl_trio.ports import Claimed, EventSegment
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.postgres.queries import load_query, refusals
from dwctl_trio.postgres.store import PostgresStore
from dwctl_trio.testing.memory_rows import MemoryRow
from dwctl_trio.testing.memory_store import MemoryStore


@attrs.frozen
class SqlFault:
    """A statement that is written otherwise."""

    query: str
    """Its name; ``dwctl_claim`` for the function of the schema."""
    pattern: str
    """What is replaced, wherever it is."""
    replacement: str


_ANY_OWNER = r"daemon_id = (\$\d+) and epoch = (\$\d+)"
_NO_OWNER = r"\1::uuid is not null and \2::bigint is not null"
_OLD_EPOCH = (r"\bepoch = (\$\d+)", r"epoch >= \1")
_STATES = r"and state in \('claimed', 'processing'\)"

SQL_FAULTS = {
    "append leaves a gap": SqlFault("append_events", r"or last_sequence = ", "or last_sequence < "),
    "finish forgets the number of the last event": SqlFault(
        "finish_response", r"last_sequence = coalesce\(\$\d+, last_sequence\),", ""
    ),
    "a rescue takes rows that were renewed": SqlFault(
        "rescue_expired", r"< dwctl_now\(\)", "< dwctl_now() + interval '1 hour'"
    ),
    "a rescue leaves the epoch": SqlFault("rescue_expired", r"epoch = r\.epoch \+ 1", "epoch = r.epoch"),
    "a row comes without its events": SqlFault(
        "enqueue_response", r"where \$(\d+)::bigint is not null", r"where $\1::bigint < 0"
    ),
    "claims come in another order": SqlFault("claim_responses", "order by ordinality", "order by ordinality desc"),
    "a claim overshoots an owner's capacity": SqlFault(
        "dwctl_claim", "owner_max - coalesce", "owner_max + 1 - coalesce"
    ),
    "a claim resets the attempt": SqlFault("dwctl_claim", r"attempt = attempt \+ 1", "attempt = 1"),
}
"""Found within a few seconds."""

MORE_SQL_FAULTS = {
    "append ignores the epoch": SqlFault("append_events", *_OLD_EPOCH),
    "append repeats events": SqlFault("append_events", r"= \$\d+::bigint - 1", "is not null"),
    "a take-over asks nobody": SqlFault("take_over_response", "and cancel_requested_at is not null", ""),
    "claims do not wait for one another": SqlFault(
        "dwctl_claim",
        r"(?s)perform pg_advisory_xact_lock\(\d+\);(.*into found_ids from locked;)",
        r"\1 perform pg_sleep(0.005);",  # between counting and claiming, or it is seldom seen
    ),
    "append ignores owner and epoch": SqlFault("append_events", _ANY_OWNER, _NO_OWNER),
    "advance ignores owner and epoch": SqlFault("advance_response", _ANY_OWNER, _NO_OWNER),
    "advance leaves the lease": SqlFault(
        "advance_response", r"lease_expires_at = dwctl_now\(\) \+", "lease_expires_at = lease_expires_at + 0 *"
    ),
    "finish ignores the epoch": SqlFault("finish_response", *_OLD_EPOCH),
    "finish leaves the epoch": SqlFault("finish_response", r"epoch = epoch \+ 1", "epoch = epoch"),
    "finish keeps what was said": SqlFault("finish_response", r"where \$(\d+) and", r"where $\1 and false and"),
    "requeue ignores owner and epoch": SqlFault("requeue_response", _ANY_OWNER, _NO_OWNER),
    "a drain counts": SqlFault("requeue_response", "attempt - 1", "attempt"),
    "a rescue counts nothing": SqlFault("rescue_expired", r"reclaims = r\.reclaims \+ 1", "reclaims = r.reclaims"),
    "a renewal renews nothing": SqlFault("renew_leases", r"where id in \(select id from free\)", "where false"),
    "a renewal renews others' rows": SqlFault("renew_leases", r"and daemon_id = (\$\d+)", r"and \1::uuid is not null"),
    "a take-over has no patience": SqlFault("take_over_response", r"cancel_requested_at <=", "dwctl_now() >="),
    "a take-over leaves the epoch": SqlFault("take_over_response", r"epoch = epoch \+ 1", "epoch = epoch"),
    "a deletion deletes live rows": SqlFault("delete_response", r"and state in \([^)]*\)", ""),
    "a follower sees events twice": SqlFault("read_events", r"last_sequence > ", "last_sequence >= "),
    "what was told comes in another order": SqlFault(
        "read_told", "order by first_sequence", "order by first_sequence desc"
    ),
    "a claim overshoots a model's capacity": SqlFault(
        "dwctl_claim", r"other_models_max\) - coalesce", "other_models_max) + 1 - coalesce"
    ),
    "a claim takes no turns": SqlFault("dwctl_claim", r"held \+ owner_place as turn", "0 as turn"),
    "a claim does not wait for a retry's time": SqlFault(
        "dwctl_claim", r"not_before <= moment", "not_before is not null"
    ),
    "what is too late waits for its turn": SqlFault(
        "dwctl_claim", r"state = 'pending' and deadline <= moment", "false"
    ),
    "less urgent rows come first": SqlFault("dwctl_claim", r"order by priority\n", "order by priority desc\n"),
}
"""Found within 200 examples."""


def make_faulty(fault: SqlFault) -> Callable[..., PostgresStore]:
    """Stores with *fault*."""

    def text(name: str) -> str:
        whole = load_query(name).text
        if name == "claim_responses" and fault.query == "dwctl_claim":
            return whole.replace("dwctl_claim(", "dwctl_claim_wrongly(")
        return replaced(fault, whole) if name == fault.query else whole

    class FaultyPostgresStore(PostgresStore):
        async def _fetch(self, name: str, values: Mapping[str, object], *, retry: bool = True) -> Sequence[Any]:
            with refusals(name):
                return await self._pool.fetch(text(name), *load_query(name).arguments(values), retry=retry)

        async def _fetchrow(self, name: str, values: Mapping[str, object]) -> Any:
            with refusals(name):
                return await self._pool.fetchrow(text(name), *load_query(name).arguments(values), retry=True)

        async def _write(self, name: str, values: Mapping[str, object]) -> Any:
            with refusals(name):
                return await self._pool.fetchval(text(name), *load_query(name).arguments(values))

    return FaultyPostgresStore


def replaced(fault: SqlFault, text: str) -> str:
    """*text* with the fault in it."""
    wrong = re.sub(fault.pattern, fault.replacement, text)
    assert wrong != text, f"{fault.query} has nothing like {fault.pattern}"
    return wrong


async def make_claim_function(pool: Pool, fault: SqlFault) -> None:
    """``dwctl_claim_wrongly`` beside the right one."""
    right = await pool.fetchval("select pg_get_functiondef('dwctl_claim'::regproc)")
    wrong = replaced(fault, right.replace("public.dwctl_claim(", "public.dwctl_claim_wrongly("))
    await pool.execute(wrong)


# -- the fake


class AppendIgnoresEpoch(MemoryStore):
    async def append_events(self, response_id: UUID, epoch: int, segment: EventSegment) -> None:
        row = self.database.rows.get(response_id)
        await super().append_events(response_id, epoch if row is None else row.epoch, segment)


class RescueTakesRenewed(MemoryStore):
    def _rescue(self) -> Sequence[UUID]:
        self.database.advance_clock(3600.0)
        try:
            return super()._rescue()
        finally:
            self.database.advance_clock(-3600.0)


class ClaimOvershoots(MemoryStore):
    def _claim(self, demand: ClaimDemand) -> Sequence[Claimed]:
        return super()._claim(attrs.evolve(demand, owner_rows=demand.owner_rows + 1))


class ClaimResetsAttempt(MemoryStore):
    def _own(self, row: MemoryRow, now: float) -> MemoryRow:
        return super()._own(attrs.evolve(row, attempt=0), now)


class AppendRepeats(MemoryStore):
    async def append_events(self, response_id: UUID, epoch: int, segment: EventSegment) -> None:
        await super().append_events(response_id, epoch, segment)
        log = self.database.events[response_id]
        self.database.events[response_id] = attrs.evolve(log, segments=(*log.segments, log.segments[-1]))


class LateWriteChangesTheError(MemoryStore):
    def owned(self, response_id: UUID, epoch: int) -> MemoryRow | None:
        row = self.database.rows.get(response_id)
        if row is not None and row.state in TERMINAL_STATES and row.error is not None:
            other = attrs.evolve(row.error, message="Another one.")
            self.database.rows[row.id] = attrs.evolve(row, error=other)
        return super().owned(response_id, epoch)


MEMORY_FAULTS = {
    "append ignores the epoch": AppendIgnoresEpoch,
    "a rescue takes rows that were renewed": RescueTakesRenewed,
    "a claim overshoots a capacity": ClaimOvershoots,
    "a claim resets the attempt": ClaimResetsAttempt,
    "append repeats a segment": AppendRepeats,
    "a late write changes a terminal row's error": LateWriteChangesTheError,
}
