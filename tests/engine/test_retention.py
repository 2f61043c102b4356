"""The pruner in time: a sweep each interval, at once while there is more, in turns, and after whatever goes wrong."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing

from dwctl_trio.domain.errors import StoreUnavailable
from dwctl_trio.domain.limits import DEFAULT_LIMITS
from dwctl_trio.domain.retention import RetentionKind
from dwctl_trio.engine.retention import run_pruner
from dwctl_trio.observability.metrics import Metrics
from dwctl_trio.ports import PrunedBatch

LIMITS = attrs.evolve(DEFAULT_LIMITS, retention_rows=64, retention_batches=5, retention_interval_s=10.0)
KINDS = list(RetentionKind)


@attrs.define(eq=False)
class Backlog:
    """A retention store of so many rows of each kind, which may fail."""

    left: dict[RetentionKind, int]
    fails: Callable[[RetentionKind, int], Exception | None] = lambda _kind, _rows: None
    calls: list[tuple[float, RetentionKind, int]] = attrs.Factory(list)

    async def prune(self, kind: RetentionKind, rows: int) -> PrunedBatch:
        await trio.lowlevel.checkpoint()
        self.calls.append((trio.current_time(), kind, rows))
        if error := self.fails(kind, rows):
            raise error
        count = min(rows, self.left.get(kind, 0))
        self.left[kind] = self.left.get(kind, 0) - count
        return PrunedBatch(count=count, is_full=count == rows)

    def kinds_at(self, moment_s: float) -> list[RetentionKind]:
        return [kind for at, kind, _ in self.calls if at == moment_s]

    def rows_of(self, kind: RetentionKind) -> list[int]:
        return [rows for _, asked, rows in self.calls if asked is kind]


@asynccontextmanager
async def pruning(backlog: Backlog, seconds: float, metrics: Metrics | None = None) -> AsyncIterator[float]:
    """With the pruner at work for so long before the block; gives the moment of its beginning."""
    begun_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_pruner, backlog, LIMITS, metrics)
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()
    yield begun_at


async def test_every_kind_is_swept_at_once_and_then_each_interval(autojump_clock: trio.testing.MockClock) -> None:
    async with pruning(backlog := Backlog({}), 25.0) as begun_at:
        moments = sorted({at - begun_at for at, _, _ in backlog.calls})

        assert moments == [0.0, 10.0, 20.0]
        assert all(backlog.kinds_at(begun_at + moment) == KINDS for moment in moments)


async def test_while_there_is_more_kinds_take_turns_without_a_pause(autojump_clock: trio.testing.MockClock) -> None:
    backlog = Backlog({RetentionKind.EVENTS: 2 * 64 + 1, RetentionKind.ROWS: 64 + 1})
    async with pruning(backlog, 1.0) as begun_at:
        asked = backlog.kinds_at(begun_at)

        assert asked[len(KINDS) :] == [RetentionKind.EVENTS, RetentionKind.ROWS, RetentionKind.EVENTS]
        assert set(backlog.left.values()) == {0}


async def test_a_sweep_has_an_end_and_the_next_one_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    backlog = Backlog({RetentionKind.USAGE: 64 * 1000})
    async with pruning(backlog, 15.0) as begun_at:
        swept = [at - begun_at for at, kind, _ in backlog.calls if kind is RetentionKind.USAGE]

        assert swept == [0.0] * 5 + [10.0] * 5


async def test_a_batch_that_was_too_much_is_halved_until_it_is_not(autojump_clock: trio.testing.MockClock) -> None:
    def fails(kind: RetentionKind, rows: int) -> Exception | None:
        return StoreUnavailable("too slow") if kind is RetentionKind.BODIES and rows > 10 else None

    async with pruning(backlog := Backlog({RetentionKind.BODIES: 18}, fails), 35.0):
        assert backlog.rows_of(RetentionKind.BODIES)[:5] == [64, 32, 16, 8, 10]
        assert backlog.left[RetentionKind.BODIES] == 0
        assert set(backlog.rows_of(RetentionKind.EVENTS)) == {64}


async def test_when_all_is_well_again_batches_grow_to_what_they_were(autojump_clock: trio.testing.MockClock) -> None:
    begun_at = trio.current_time()

    def fails(_kind: RetentionKind, _rows: int) -> Exception | None:
        return StoreUnavailable("away") if trio.current_time() < begun_at + 95 else None

    async with pruning(backlog := Backlog({RetentionKind.EVENTS: 2000}, fails), 500.0):
        asked = backlog.rows_of(RetentionKind.EVENTS)

        assert asked[:14] == [64, 32, 16, 8, 4, 2, 1, 1, 1, 1, 1, 2, 3, 4]
        assert asked[-1] == max(asked[10:]) == 64


@pytest.mark.parametrize("error", [StoreUnavailable("the database is away"), RuntimeError("a bug")])
async def test_whatever_goes_wrong_with_one_kind_the_others_go_on_and_it_is_counted(
    autojump_clock: trio.testing.MockClock, error: Exception
) -> None:
    metrics = Metrics()
    backlog = Backlog(
        dict.fromkeys(KINDS, 7), lambda kind, _rows: error if kind is RetentionKind.EVENTS else None
    )  # fmt: skip
    async with pruning(backlog, 25.0, metrics):
        assert {kind for kind, left in backlog.left.items() if left} == {RetentionKind.EVENTS}
        assert len(backlog.rows_of(RetentionKind.EVENTS)) == 3

    def value(name: str, kind: RetentionKind) -> float | None:
        return metrics.registry.get_sample_value(name, {"kind": kind.value})

    assert value("dwctl_prune_failures_total", RetentionKind.EVENTS) == 3
    assert value("dwctl_pruned_rows_total", RetentionKind.EVENTS) == 0
    assert [value("dwctl_pruned_rows_total", kind) for kind in KINDS if kind is not RetentionKind.EVENTS] == [7] * 5
