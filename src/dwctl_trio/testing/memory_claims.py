"""In which order rows leave the queue in memory: what ``dwctl_claim`` of the schema does, over lists."""

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.lifecycle import LEASED_STATES, RowState
from dwctl_trio.testing.memory_rows import MemoryRow


def choose_rows(rows: Sequence[MemoryRow], demand: ClaimDemand, now: float) -> list[MemoryRow]:
    """Those of *rows* that *demand* gets at the moment *now*, the most urgent first."""
    waiting = sorted((row for row in rows if row.state is RowState.PENDING), key=_by_deadline)
    under_way = [row for row in rows if row.state in LEASED_STATES and row.is_queued]
    chosen = [row for row in waiting if _deadline(row) <= now][: demand.rows]
    ready = [row for row in waiting if _deadline(row) > now and (row.not_before is None or row.not_before <= now)]
    for priority in sorted({row.priority for row in ready}):
        urgent = [row for row in ready if row.priority == priority]
        while found := _take_turns(
            [row for row in urgent if row not in chosen], [*under_way, *chosen], demand, demand.rows - len(chosen)
        ):
            chosen += found
    return chosen


def _take_turns(
    ready: Sequence[MemoryRow], under_way: Sequence[MemoryRow], demand: ClaimDemand, rows_max: int
) -> list[MemoryRow]:
    """Some of *ready*, in the turns of their owners, within all capacities; at least one if one may be claimed."""
    of_model, of_owner = Counter(row.model for row in under_way), Counter(row.owner for row in under_way)

    def model_room(row: MemoryRow) -> int:
        return demand.models.get(row.model, demand.other_models) - of_model[row.model]

    def owner_room(row: MemoryRow) -> int:
        return demand.owner_rows - of_owner[row.owner]

    looked_at: Counter[tuple[str, str]] = Counter()
    owner_places: Counter[str] = Counter()
    allowed: list[tuple[int, MemoryRow]] = []
    for row in ready:
        if looked_at[row.model, row.owner] < min(rows_max, model_room(row), owner_room(row)):
            looked_at[row.model, row.owner] += 1
            owner_places[row.owner] += 1
            if owner_places[row.owner] <= owner_room(row):
                allowed.append((of_owner[row.owner] + owner_places[row.owner], row))
    chosen, model_places = [], Counter[str]()
    for _, row in sorted(allowed, key=lambda entry: (entry[0], *_by_deadline(entry[1]))):
        model_places[row.model] += 1
        if model_places[row.model] <= model_room(row):
            chosen.append(row)
    return chosen[:rows_max]


def _deadline(row: MemoryRow) -> float:
    assert row.deadline is not None, "a row that waits has one"
    return row.deadline


def _by_deadline(row: MemoryRow) -> tuple[float, UUID]:
    return _deadline(row), row.id
